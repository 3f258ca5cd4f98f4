"""A TCP proxy between real clients and a real server that counts, frame by frame, what passes.

Clients name its port as the server's; the ``data-port`` of the greeting is rewritten, so that channels come through
here too. It reads up to 1 MiB at a time and never holds bytes back: what dies on one side ends on the other. Counts are
kept per :class:`Tally`, one for all connections accepted since :meth:`CountingProxy.begin`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from twinport_protocol.errors import RemoteProtocolError
from twinport_protocol.frames import (
    CHANNEL_MAGIC,
    HEADER_BYTES,
    AckStatus,
    Chunk,
    FrameDecoder,
    FrameEvent,
    FrameType,
)
from twinport_protocol.segments import Layout

READ_BYTES = 1024 * 1024
WAIT_SECONDS = 60.0
_DATA_PORT = re.compile(rb"data-port=\d+")


@dataclass
class Tally:
    """What passed on the connections of one run. Bytes of payload, without headers."""

    put_bytes: int = 0
    """Payload of PUT frames, from clients."""
    seg_bytes: int = 0
    """Payload of SEG frames, to clients."""
    channel_up_bytes: int = 0
    channel_down_bytes: int = 0
    sealed: set[int] = field(default_factory=set)
    """Segments with an ACK that says SEALED, DUPLICATE or COMMITTED; all segments by their numbers, of one file."""
    control_lines: list[bytes] = field(default_factory=list)
    """What clients sent on control connections, as it came."""
    passages: list[Passage] = field(default_factory=list)

    def acknowledged_bytes(self, file_bytes: int) -> int:
        """The bytes of the segments that were acknowledged, of a file of that size."""
        layout = Layout.of(file_bytes)
        return sum(layout.length(segment) for segment in self.sealed)

    def delivered_segments(self, file_bytes: int, received_bytes: Mapping[Passage, int]) -> set[int]:
        """The segments whose bytes were all among the first ``received_bytes`` of some channel; among all that it
        carried, where that is not given."""
        layout = Layout.of(file_bytes)
        whole: set[int] = set()
        for passage in self.passages:
            limit = received_bytes.get(passage, passage.down_bytes)
            held: defaultdict[int, int] = defaultdict(int)
            for end, segment, length in list(passage.delivered):
                if end <= limit:
                    held[segment] += length
            whole |= {segment for segment, length in held.items() if length >= layout.length(segment)}
        return whole


class Passage:
    """One proxied connection."""

    def __init__(self, client: socket.socket, tally: Tally) -> None:
        self.client = client
        self.client_port = int(client.getpeername()[1])
        self.server: socket.socket | None = None
        self.tally = tally
        self.is_channel = False
        self.down_bytes = 0
        """Bytes that were handed to the kernel for the client."""
        self.delivered: list[tuple[int, int, int]] = []
        """For each SEG frame: the stream position of its end, its segment, its payload bytes."""
        self._decoders: dict[bool, FrameDecoder | None] = {}
        self._down_position = 0
        self._halves = 2
        self._lock = threading.Lock()

    def begin(self, is_channel: bool) -> None:
        """The first byte told what it is."""
        self.is_channel = is_channel
        for from_client in (True, False):
            self._decoders[from_client] = FrameDecoder(from_client=from_client) if is_channel else None

    def decode(self, data: memoryview, from_client: bool) -> list[FrameEvent]:
        """The frames in these bytes; none for control, or when they are no frames (attacks pass uncounted)."""
        decoder = self._decoders[from_client]
        if decoder is None:
            return []
        try:
            return decoder.feed(data)
        except RemoteProtocolError:
            self._decoders[from_client] = None
            return []

    def count_down(self, event: FrameEvent) -> None:
        """Keep the positions at which SEG frames end."""
        header = event.header
        if isinstance(event, Chunk):
            if event.ends:
                self._down_position += HEADER_BYTES + header.length
                if header.length:
                    self.delivered.append((self._down_position, header.segment, header.length))
        else:
            self._down_position += HEADER_BYTES + len(event.body)

    def half_ended(self) -> bool:
        """One direction is over; whether both are."""
        with self._lock:
            self._halves -= 1
            return self._halves == 0

    def close(self) -> None:
        """Both sockets."""
        for side in (self.client, self.server):
            if side is not None:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()


class CountingProxy:
    """Listens on loopback until closed. ``control_port`` and ``data_port`` are the server's, and may change."""

    def __init__(self, control_port: int, data_port: int) -> None:
        self.control_port = control_port
        self.data_port = data_port
        self.tally = Tally()
        self._changed = threading.Condition()
        self._open: set[Passage] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, name="proxy-accept")
        self._accepting.start()

    @property
    def host(self) -> str:
        """What ``--host`` takes."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> CountingProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def begin(self) -> Tally:
        """A new tally, for the connections that come from now on."""
        with self._changed:
            self.tally = Tally()
            return self.tally

    def wait_until(self, condition: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
        """Wait until something that passed made ``condition`` true; whether it did in time."""
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def wait_until_quiet(self, tally: Tally, seconds: float = WAIT_SECONDS) -> None:
        """Wait until every connection of a tally is closed on both sides: all that was on its way is counted."""
        ended = self.wait_until(lambda: not any(passage.tally is tally for passage in self._open), seconds)
        assert ended, "a connection stays open though one of its ends is dead"

    def close(self) -> None:
        """End all connections and threads."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for passage in list(self._open):
            passage.close()
        for thread in self._threads:
            thread.join()

    # threads ---------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._changed:
                    passage = Passage(client, self.tally)
                    self.tally.passages.append(passage)
                    self._open.add(passage)
            except OSError:  # gone before it was looked at
                client.close()
                continue
            self._start(self._connect, passage)

    def _start(self, work: Callable[[Passage], None], passage: Passage) -> None:
        thread = threading.Thread(target=work, args=(passage,), name=f"proxy-{work.__name__}")
        self._threads.append(thread)
        thread.start()

    def _connect(self, passage: Passage) -> None:
        """Look at the first byte, connect to the port it is for, then pump upwards."""
        try:
            first = passage.client.recv(1, socket.MSG_PEEK)
            passage.begin(first == CHANNEL_MAGIC[:1])
            port = self.data_port if passage.is_channel else self.control_port
            passage.server = socket.create_connection(("127.0.0.1", port), 30)
            passage.server.settimeout(None)
            passage.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # no server: the client finds its connection closed
            self._forget(passage)
            return
        self._start(self._pump_down, passage)
        self._pump_up(passage)

    def _pump_up(self, passage: Passage) -> None:
        tally = passage.tally
        skip = len(CHANNEL_MAGIC)

        def count(data: memoryview) -> None:
            nonlocal skip
            if not passage.is_channel:
                tally.control_lines.append(bytes(data))
                return
            head = min(skip, len(data))
            skip -= head
            tally.channel_up_bytes += len(data)
            for event in passage.decode(data[head:], True):
                if isinstance(event, Chunk):
                    tally.put_bytes += len(event.data)

        self._pump(passage, passage.client, passage.server, count, lambda sent: None)

    def _pump_down(self, passage: Passage) -> None:
        tally = passage.tally

        def count(data: memoryview) -> None:
            if not passage.is_channel:
                return
            tally.channel_down_bytes += len(data)
            for event in passage.decode(data, False):
                if isinstance(event, Chunk):
                    tally.seg_bytes += len(event.data)
                elif event.header.type == FrameType.ACK and event.header.status in (
                    AckStatus.SEALED,
                    AckStatus.DUPLICATE,
                    AckStatus.COMMITTED,
                ):
                    tally.sealed.add(event.header.segment)
                passage.count_down(event)

        def sent(count_bytes: int) -> None:
            passage.down_bytes += count_bytes

        self._pump(passage, passage.server, passage.client, count, sent)

    def _pump(
        self,
        passage: Passage,
        source: socket.socket | None,
        target: socket.socket | None,
        count: Callable[[memoryview], None],
        on_sent: Callable[[int], None],
    ) -> None:
        assert source is not None
        assert target is not None
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        is_first = source is passage.server and not passage.is_channel
        is_open = True
        with contextlib.suppress(OSError):
            while received := source.recv_into(buffer):
                data = view[:received]
                if is_first:  # the greeting is one line, written at once
                    data = memoryview(_DATA_PORT.sub(b"data-port=%d" % self.port, bytes(data)))
                    is_first = False
                with self._changed:
                    count(data)
                    self._changed.notify_all()
                while data and is_open:
                    try:
                        sent = target.send(data)
                    except OSError:
                        is_open = False
                        if target is passage.client:
                            source.shutdown(socket.SHUT_RD)
                        # Otherwise read on: to close with something of the client unread is a reset, and a reset takes
                        # back what was handed to the kernel for it.
                        break
                    on_sent(sent)
                    data = data[sent:]
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        if passage.half_ended():
            self._forget(passage)

    def _forget(self, passage: Passage) -> None:
        passage.close()
        with self._changed:
            self._open.discard(passage)
            self._changed.notify_all()

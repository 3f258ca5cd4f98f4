"""How long a PING takes while channels are idle and busy: the event loop's share under load.

    python -m benchmarks.ping [--idle 512] [--busy 64] [--seconds 10] [--place /dev/shm]

Half of the busy channels download, half upload, as fast as the server lets them; their payload goes nowhere and comes
from nowhere, so that the generator costs as little as it can.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import selectors
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from twinport_protocol.channel import ChannelClient
from twinport_protocol.control import ControlClient, Greeting
from twinport_protocol.frames import HEADER_BYTES, FrameType, Header
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES
from twinport_protocol.tickets import decode_ticket

from benchmarks.daemon import start_daemon
from benchmarks.measure import cpu_seconds

MIB = 1024 * 1024
FILE_BYTES = 64 * MIB
_PIECE = memoryview(bytearray(MIB))
_ZEROS = bytes(MIB)
_UNANSWERED_BYTES = 4 * MIB


class Control:
    """A blocking control connection, one command at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wire = ControlClient()
        self.sock.sendall(self.wire.hello({"agent": "benchmark"}))
        greeting = self._next()
        if not isinstance(greeting, Greeting):
            raise TypeError("no greeting")
        self.data_address = (address[0], int(greeting.options["data-port"]))

    def _next(self) -> Greeting | Reply:
        while True:
            for event in self.wire.events():
                return event
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the server left")
            self.wire.feed(data)

    def ask(self, verb: Verb, *words: str, **options: str) -> Reply:
        """Send a command and wait for its reply."""
        self.sock.sendall(self.wire.command(verb, words, options)[1])
        reply = self._next()
        if not isinstance(reply, Reply) or reply.kind is ReplyKind.ERROR:
            raise ConnectionError(f"{verb}: {reply}")
        return reply


def open_channel(control: Control, ticket: str) -> tuple[socket.socket, ChannelClient, int]:
    """A channel that has shown its ticket."""
    sock = socket.create_connection(control.data_address)
    wire = ChannelClient(control.wire.limits)
    attachment, frame = wire.attach(decode_ticket(ticket))
    sock.sendall(wire.open() + frame)
    return sock, wire, attachment


def load(address: tuple[str, int], name: str, idle: int, busy: int, stop_at: float, ready: object) -> None:
    """The generator's process: idle channels that do nothing, busy ones that never stop."""
    control = Control(address)
    ticket = control.ask(Verb.DOWNLOAD, name).options["ticket"]
    keep = [open_channel(control, ticket) for _ in range(idle)]
    selector = selectors.DefaultSelector()
    for number in range(busy):
        if number % 2:
            sock, wire, attachment = open_channel(control, ticket)
            driver: Getter | Putter = Getter(sock, wire, attachment)
        else:
            upload = secrets.token_hex(16)
            opened = control.ask(Verb.UPLOAD, f"endless-{number}", str(FILE_BYTES), upload=upload)
            sock, wire, attachment = open_channel(control, opened.options["ticket"])
            driver = Putter(sock, wire, attachment)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, driver)
    ready.set()  # type: ignore[attr-defined]
    while time.time() < stop_at:
        for key, events in selector.select(timeout=0.1):
            wanted = key.data.step(events)
            if wanted != key.events:
                selector.modify(key.fileobj, wanted, key.data)
    del keep


class Getter:
    """Asks for pieces for ever and throws them away in the kernel."""

    def __init__(self, sock: socket.socket, wire: ChannelClient, attachment: int) -> None:
        self.sock, self.attachment, self.owed, self.at = sock, attachment, 0, 0

    def step(self, events: int) -> int:
        """Take what is there; ask again when little is owed."""
        if events & selectors.EVENT_READ:
            try:
                self.owed -= self.sock.recv_into(_PIECE, len(_PIECE), socket.MSG_TRUNC)
            except BlockingIOError:
                return selectors.EVENT_READ
        while self.owed < 2 * MIB:
            segment, offset = divmod(self.at, MIN_SEGMENT_BYTES)
            self.sock.sendall(Header(FrameType.GET, 0, 0, self.attachment, segment, offset, MIB).encode())
            self.at = (self.at + MIB) % FILE_BYTES
            self.owed += MIB + HEADER_BYTES
        return selectors.EVENT_READ


class Putter:
    """Sends the beginning of one segment again and again, so that the server always hashes and stores."""

    def __init__(self, sock: socket.socket, wire: ChannelClient, attachment: int) -> None:
        self.sock, self.wire, self.attachment = sock, wire, attachment
        self.pending = bytearray()
        self.at = 0

    def step(self, events: int) -> int:
        """Send what goes, take what is answered."""
        if events & selectors.EVENT_READ:
            try:
                self.wire.feed(memoryview(self.sock.recv(65536)))
            except BlockingIOError:
                return selectors.EVENT_READ | selectors.EVENT_WRITE
        if not self.pending and self.wire.unanswered_bytes < _UNANSWERED_BYTES:
            self.pending += self.wire.put(self.attachment, 0, self.at, MIB, 0) + _ZEROS
            self.at = (self.at + MIB) % (MIN_SEGMENT_BYTES - MIB)
        if self.pending:
            try:
                del self.pending[: self.sock.send(self.pending)]
            except BlockingIOError:
                return selectors.EVENT_READ | selectors.EVENT_WRITE
        full = not self.pending and self.wire.unanswered_bytes >= _UNANSWERED_BYTES
        return selectors.EVENT_READ | (0 if full else selectors.EVENT_WRITE)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=512)
    parser.add_argument("--busy", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.place, prefix="twinport-ping-")))
        server = start_daemon(stack, directory / "root", "--log-level", "warning")
        (directory / "root" / "file").write_bytes(os.urandom(FILE_BYTES))
        address = server.control_address
        control = Control(address)
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        stop_at = time.time() + options.seconds + 30
        process = context.Process(
            target=load, args=(address, "file", options.idle, options.busy, stop_at, ready), daemon=True
        )
        process.start()
        stack.callback(process.kill)
        ready.wait()
        times = []
        before = cpu_seconds(server.pid)
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            control.ask(Verb.PING)
            times.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.005)
        used = cpu_seconds(server.pid) - before
        times.sort()
        print(
            f"{options.idle} idle and {options.busy} busy channels: {len(times)} PINGs, "
            f"p50 {statistics.median(times):.1f} ms, p99 {times[int(len(times) * 0.99)]:.1f} ms, "
            f"most {times[-1]:.1f} ms, server CPU {used / options.seconds:.0%}"
        )


if __name__ == "__main__":
    main()

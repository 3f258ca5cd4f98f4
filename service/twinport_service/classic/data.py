"""One classic data connection: a plain socket owned by the thread of its transfer.

The thread works on a non-blocking socket with a poll loop. Two clocks bound it: silence (``stall_seconds``) and a least
rate over the whole transfer, so that neither a dead nor a dripping client holds a thread for ever.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.bandwidth import Lane
from twinport_service.buffers import BufferPool
from twinport_service.storage.contract import Reader, SendingReader

_SEND_BYTES = 1024 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000))


class TransferRefusal(Refusal):
    """A refusal whose reason has a fixed text of its own; ``text`` is what the client is told."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(code, text)
        self.text = text


@dataclass(frozen=True)
class TransferTimes:
    """Seconds of silence; and the time a whole transfer has: ``grace_seconds`` plus its size at the least rate."""

    stall_seconds: float = 30.0
    grace_seconds: float = 30.0
    least_bytes_per_second: int = 8 * 1024


def tune_socket(sock: socket.socket) -> None:
    """No delay for small writes; a peer that vanished without a word is noticed within 90 s."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class DataConnection:
    """A paired data connection of ``size`` bytes. Its thread calls everything but :meth:`cancel`."""

    def __init__(
        self,
        sock: socket.socket,
        size: int,
        times: TransferTimes,
        clock: Callable[[], float] = time.monotonic,
        lane: Lane | None = None,
    ) -> None:
        self._sock = sock
        self._lane = lane
        self._times = times
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._cancelled: ErrorCode | None = None
        self._moved_at = clock()
        self._ends_at = self._moved_at + times.grace_seconds + size / times.least_bytes_per_second

    def cancel(self, code: ErrorCode) -> None:
        """End it from another thread: whatever waits on the socket wakes up and is refused with ``code``."""
        with self._lock:
            if not self._closed:
                self._cancelled = self._cancelled or code
                # shutdown, not close: the descriptor stays the owner's.
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """``Refusal`` when it was cancelled."""
        if self._cancelled is not None:
            raise Refusal(self._cancelled, "cancelled")

    def receive_exactly(self, view: memoryview) -> None:
        """Fill ``view``. ``ShortUpload`` at the end of the stream, ``Timeout``."""
        filled = 0
        while filled < len(view):
            allowed = self._allowed(len(view) - filled)
            try:
                count = self._sock.recv_into(view[filled : filled + allowed])
            except BlockingIOError:
                self._wait(select.POLLIN)
                continue
            except OSError as error:
                self.check()
                raise Refusal(ErrorCode.SHORT_UPLOAD, f"the data connection broke: {error.strerror}") from None
            if not count:
                self.check()
                raise Refusal(ErrorCode.SHORT_UPLOAD)
            filled += count
            self._note(count)

    def refuse_more(self) -> None:
        """``SizeMismatch`` if bytes have come after the announced ones."""
        self.check()
        try:
            extra = self._sock.recv(1, socket.MSG_PEEK)
        except OSError:
            return  # none is there; a reset after the last byte takes nothing away
        if extra:
            raise Refusal(ErrorCode.SIZE_MISMATCH)

    def send_all(self, size: int, send_some: Callable[[int, int], int]) -> None:
        """Send ``size`` bytes by ``send_some(offset, count)``, which sends what the socket takes now.

        ``Incomplete`` when the client goes away, ``Timeout``, ``Changed`` when the bytes end early.
        """
        offset = 0
        while offset < size:
            allowed = self._allowed(min(size - offset, _SEND_BYTES))
            try:
                count = send_some(offset, allowed)
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            except OSError:
                self.check()
                raise TransferRefusal(
                    ErrorCode.INCOMPLETE, "the data connection closed before the whole file was sent; try again"
                ) from None
            if not count:
                raise Refusal(ErrorCode.CHANGED, "the file ended early")
            offset += count
            self._note(count)
        self.check()
        with contextlib.suppress(OSError):  # all was sent; a client that left already has what it wanted
            self._sock.shutdown(socket.SHUT_WR)

    def send_reader(self, reader: Reader, size: int, buffers: BufferPool) -> None:
        """Send ``size`` bytes of ``reader``: straight from its storage where that can, else through a buffer."""
        if isinstance(reader, SendingReader):
            descriptor = self._sock.fileno()
            self.send_all(size, lambda offset, count: reader.send(descriptor, offset, count))
            return
        buffer = buffers.take()
        try:
            with memoryview(buffer) as view:
                start, end = 0, 0

                def send_some(offset: int, count: int) -> int:
                    nonlocal start, end
                    if offset >= end:
                        start = offset
                        end = offset + reader.read_into(offset, view[: min(count, len(view))])
                        if end == offset:
                            return 0
                    return self._sock.send(view[offset - start : min(end, offset + count) - start])

                self.send_all(size, send_some)
        finally:
            buffers.give(buffer)

    def _allowed(self, want_bytes: int) -> int:
        """How many bytes may move now, once the rate allows any. Time spent here is no silence of the client's."""
        if self._lane is None:
            return want_bytes
        while True:
            allowed, wait_seconds = self._lane.take(want_bytes)
            if allowed:
                return allowed
            poller = select.poll()
            poller.register(self._sock, 0)  # wakes for the end of the connection, and for cancel() so
            began = self._clock()
            broken = poller.poll(wait_seconds * 1000)
            self.check()
            self._ends_at += self._clock() - began
            self._moved_at = self._clock()
            if broken:
                return want_bytes  # the call that follows says what is wrong with it

    def _note(self, count: int) -> None:
        self._moved_at = self._clock()
        if self._lane is not None:
            self._lane.spend(count)

    def _wait(self, events: int) -> None:
        self.check()
        now = self._clock()
        deadline = min(self._moved_at + self._times.stall_seconds, self._ends_at)
        poller = select.poll()
        poller.register(self._sock, events)
        if now >= deadline or not poller.poll((deadline - now) * 1000):
            self.check()
            raise Refusal(ErrorCode.TIMEOUT, "the data connection made too little progress")

    def close(self, *, reset: bool = False) -> None:
        """Release the socket. ``reset`` tells the client that what it has is not the whole."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._lane is not None:
                self._lane.close()
            if reset:
                with contextlib.suppress(OSError):
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._sock.close()

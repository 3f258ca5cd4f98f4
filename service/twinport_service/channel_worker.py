"""The thread that owns one data connection: a non-blocking socket, one poll loop, nobody else touches it.

It reads while it writes, so neither end can block the other. Large payloads go from the reader to the socket with
``sendfile``; what is received lands in one borrowed buffer that frames are handed on from without a copy.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, Refusal

from .buffers import BufferPool
from .channel_session import ChannelSession, Payload
from .log import get_log

_SEND_BYTES = 256 * 1024
_READ_EVENTS = select.POLLIN | select.POLLHUP | select.POLLERR
_RECEIVES_IN_A_ROW = 4
_QUEUED_ANSWERS = 4096
"""More of them unsent, and no more frames are taken: a client that sends without reading would fill our memory."""
_PROGRESS_BYTES = 16 * 1024
"""What must move within ``stall_seconds`` in mid work: a byte now and then is no progress."""


@dataclass(frozen=True)
class ChannelTimes:
    """Seconds: until the first good ATTACH; of silence in mid work; of silence with nothing to do; of draining."""

    attach_seconds: float = 5.0
    stall_seconds: float = 30.0
    idle_seconds: float = 300.0
    drain_seconds: float = 1.0


class ChannelWorker:
    """Serves one accepted, non-blocking, plain socket until it ends. :meth:`run` is the thread's body."""

    def __init__(
        self,
        sock: socket.socket,
        peer: object,
        make_session: Callable[[Callable[[], None]], ChannelSession],
        pool: BufferPool,
        times: ChannelTimes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sock = sock
        self.peer = peer
        self._pool = pool
        self._times = times
        self._clock = clock
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._awake = False
        self._closed = False
        self._draining = False
        self._pending: bytearray = bytearray()
        self._payload: Payload | None = None
        self.session = make_session(self.wake)
        self.started_at = clock()
        self._moved_at = self.started_at
        self._moved_bytes = 0
        self.aborted = False

    @property
    def attached(self) -> bool:
        """Whether the channel has proved itself once."""
        return self.session.attached_once

    # from any thread -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Make the owner look: an outcome is there, or it is to drain."""
        with self._wake_lock:
            if self._awake or self._closed:
                return
            self._awake = True
            os.eventfd_write(self._wakeup, 1)

    def drain(self) -> None:
        """Stop at the next frame boundary, within ``drain_seconds``."""
        self._draining = True
        self.wake()

    def abort(self) -> None:
        """End the connection now; the owner notices."""
        with self._wake_lock:
            self.aborted = True
            if not self._closed:
                # shutdown, not close: the descriptor stays the owner's.
                try:
                    self._sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return

    # the owner -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the end; never raises."""
        try:
            self._serve()
        except (ConnectionError, TimeoutError) as error:
            get_log().debug("[CHANNEL] Lost", peer=self.peer, error=type(error).__name__)
        except OSError as error:
            get_log().info("[CHANNEL] Failed", peer=self.peer, error=error.strerror or type(error).__name__)
        except Refusal as refusal:
            get_log().warning("[CHANNEL] Failed", peer=self.peer, code=refusal.code.value, detail=refusal.detail)
        except Exception:
            get_log().exception("[CHANNEL] Internal error", peer=self.peer)
        finally:
            self.close()

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        poller.register(self._sock, select.POLLIN)
        watching = select.POLLIN
        buffer: bytearray | None = None
        end_at: float | None = None
        said_all = False
        try:
            while True:
                self.session.settle()
                blocked = not self._send()
                if self._draining or self.session.ended:
                    end_at = end_at or self._clock() + self._times.drain_seconds
                    if self._clock() >= end_at:
                        return
                    if not self.session.ended and self.session.at_boundary and self._payload is None:
                        self.session.goodbye()
                        continue
                    if self.session.ended and not self._unsent and not said_all:
                        # Not closed yet: with bytes of the client unread, a close destroys what it has not got so far.
                        self._sock.shutdown(socket.SHUT_WR)
                        said_all = True
                congested = blocked and len(self.session.outgoing) > _QUEUED_ANSWERS
                wanted = (0 if congested else select.POLLIN) | (select.POLLOUT if blocked else 0)
                if wanted != watching:
                    poller.modify(self._sock, wanted)
                    watching = wanted
                timeout = self._timeout(end_at)
                if buffer is not None:
                    ready = poller.poll(min(timeout, 0.05) * 1000)
                    if not ready:
                        self._pool.give(buffer)
                        buffer = None
                        continue
                else:
                    ready = poller.poll(timeout * 1000)
                self._check_clock()
                for descriptor, events in ready:
                    if descriptor == self._wakeup:
                        with self._wake_lock:
                            self._awake = False
                            os.eventfd_read(self._wakeup)
                    elif events & _READ_EVENTS:
                        if buffer is None:
                            buffer = self._pool.take()
                        if not self._receive(buffer):
                            return
        finally:
            if buffer is not None:
                self._pool.give(buffer)

    def _receive(self, buffer: bytearray) -> bool:
        """Take what is there; False at the end of the stream."""
        for _ in range(_RECEIVES_IN_A_ROW):
            try:
                count = self._sock.recv_into(buffer)
            except BlockingIOError:
                return True
            if not count:
                return False
            if self.session.ended:
                continue  # after a farewell, read and drop
            with memoryview(buffer) as view:
                self.session.receive(view[:count])
            self._note_progress(count)
            if count < len(buffer):
                return True
        return True

    @property
    def _unsent(self) -> bool:
        return bool(self._pending or self._payload is not None or self.session.outgoing)

    def _send(self) -> bool:
        """Send all that can be sent; False when the socket takes no more now."""
        while True:
            if self._payload is not None:
                if not self._send_payload(self._payload):
                    return False
                continue
            self._collect()
            if not self._pending:
                if self._payload is None:
                    return True
                continue
            try:
                count = self._sock.send(self._pending, socket.MSG_MORE if self._payload is not None else 0)
            except BlockingIOError:
                return False
            del self._pending[:count]
            self._note_progress(count)
            if self._pending:
                return False

    def _collect(self) -> None:
        """Join what is queued into one write, up to a payload or ``_SEND_BYTES``."""
        session = self.session
        while self._payload is None and len(self._pending) < _SEND_BYTES:
            if not session.outgoing:
                # When draining, what was begun is ended and nothing else is begun: so a boundary comes.
                if not session.wants_to_send or session.ended or self._draining:
                    return
                session.produce()
                continue
            item = session.outgoing.popleft()
            if isinstance(item, Payload):
                self._payload = item
            else:
                self._pending += item

    def _send_payload(self, payload: Payload) -> bool:
        if self._pending:
            try:
                count = self._sock.send(self._pending, socket.MSG_MORE)
            except BlockingIOError:
                return False
            del self._pending[:count]
            if self._pending:
                return False
        while payload.remaining:
            try:
                count = payload.reader.send(self._sock.fileno(), payload.offset, payload.remaining)
            except BlockingIOError:
                return False
            if count == 0:
                # The header has promised these bytes; the only honest end is the connection's.
                raise Refusal(ErrorCode.CORRUPT, "the stored file is shorter than it was")
            payload.offset += count
            payload.remaining -= count
            self._note_progress(count)
        self._payload = None
        payload.release()
        return True

    # time ------------------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        if not self.session.attached_once:
            return self.started_at + self._times.attach_seconds
        return self._moved_at + (self._times.stall_seconds if self._working else self._times.idle_seconds)

    def _note_progress(self, count: int) -> None:
        self._moved_bytes += count
        if self._moved_bytes >= _PROGRESS_BYTES or not self._working:
            self._moved_bytes = 0
            self._moved_at = self._clock()

    @property
    def _working(self) -> bool:
        # An answer that waits for our own disk is not the client's silence.
        return self._unsent or not self.session.at_boundary

    def _timeout(self, end_at: float | None) -> float:
        deadline = self._deadline() if end_at is None else end_at
        return max(0.0, deadline - self._clock()) + 0.001

    def _check_clock(self) -> None:
        if self._clock() >= self._deadline():
            raise TimeoutError("silent for too long")

    def close(self) -> None:
        """Release everything; for the owner, and for whoever could not make one."""
        if self._payload is not None:
            self._payload.release()
        self.session.close()
        with self._wake_lock:
            self._closed = True
            self._sock.close()
            os.close(self._wakeup)

"""The thread that owns one data connection: a non-blocking socket, one poll loop, nobody else touches it.

It reads while it writes, so neither end can block the other. How bytes move is the transport's matter: on a plain
socket large payloads go from the reader to the socket with ``sendfile``, under TLS and to a client on this machine
through a buffer. What is received lands in one borrowed buffer that frames are handed on from without a copy.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable

from twinport_protocol.errors import Refusal

from .buffers import BufferPool
from .channel_session import ChannelSession, Payload
from .channel_times import ChannelTimes, Patience
from .channel_transport import ChannelTransport
from .log import get_log

_SEND_BYTES = 256 * 1024
_END_EVENTS = select.POLLHUP | select.POLLERR
_RECEIVES_IN_A_ROW = 4
_LINGER_SECONDS = 0.05
"""How long an idle channel keeps its buffers."""
_WITHDRAWN_SECONDS = 1.0
"""How long a frame may go on to somebody who may not have it any more, before the connection is cut in its middle."""


class ChannelWorker:
    """Serves one accepted connection until it ends. :meth:`run` is the thread's body; ``on_ready`` is called in it once
    the handshake, if the transport has one, is over."""

    def __init__(
        self,
        transport: ChannelTransport,
        peer: object,
        make_session: Callable[[Callable[[], None]], ChannelSession],
        pool: BufferPool,
        times: ChannelTimes,
        clock: Callable[[], float] = time.monotonic,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._on_ready = on_ready
        self.peer = peer
        self._pool = pool
        self._buffer: bytearray | None = None
        self._patience = Patience(times, clock)
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._awake = False
        self._closed = False
        self._draining = False
        self._pending: bytearray = bytearray()
        self._payload: Payload | None = None
        self.session = make_session(self.wake)
        self._end_at: float | None = None
        self._cut_at: float | None = None
        self._said_all = False
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
                self._transport.abort()

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
        transport = self._transport
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        if not self._shake_hands(poller):
            return
        watching = transport.receive_events
        poller.register(transport.fileno(), watching)
        while True:
            self.session.settle()
            blocked = not self._send()
            if self._is_cut():
                get_log().info("[CHANNEL] Cut: its user may not have what it sends any more", peer=self.peer)
                return
            if self._draining or self.session.ended:
                if not self._end():
                    return
                blocked = not self._send()
            congested = blocked and self.session.holds_much
            wanted = (0 if congested else transport.receive_events) | (transport.send_events if blocked else 0)
            if wanted != watching:
                poller.modify(transport.fileno(), wanted)
                watching = wanted
            receivable = not congested and transport.pending()
            for descriptor, events in self._wait(poller, at_once=receivable):
                if descriptor == self._wakeup:
                    with self._wake_lock:
                        self._awake = False
                        os.eventfd_read(self._wakeup)
                elif events & _END_EVENTS and transport.hold_seconds():
                    return  # gone: there is nobody to wait for the rate with
                elif events & (transport.receive_events | _END_EVENTS):
                    receivable = True
            if receivable and not self._receive():
                return

    def _wait(self, poller: select.poll, *, at_once: bool) -> list[tuple[int, int]]:
        """What has happened, none if the wait was cut short to give borrowed buffers back. ``TimeoutError`` past the
        deadline."""
        hold_seconds = self._transport.hold_seconds()
        timeout = 0.0 if at_once else self._timeout()
        if hold_seconds:
            timeout = min(timeout, hold_seconds)
        borrows = self._buffer is not None or self._transport.borrows
        ready = poller.poll((min(timeout, _LINGER_SECONDS) if borrows else timeout) * 1000)
        if hold_seconds:
            self._patience.pause()
        if not ready and borrows and not at_once:
            self._transport.rest()
            self._rest()
            return ready
        self._check_clock()
        return ready

    def _rest(self) -> None:
        if self._buffer is not None:
            self._pool.give(self._buffer)
            self._buffer = None

    def _end(self) -> bool:
        """One more step towards the end; False when it is reached."""
        if self._end_at is None:
            self._end_at = self._patience.clock() + self._patience.times.drain_seconds
        if self._patience.clock() >= self._end_at:
            return False
        if not self.session.ended and self.session.at_boundary and self._payload is None:
            self.session.goodbye()
            self._send()
        if self.session.ended and not self._unsent and not self._said_all:
            # Not closed yet: with bytes of the client unread, a close destroys what it has not got so far.
            self._transport.end_sending()
            self._said_all = True
        return True

    def _shake_hands(self, poller: select.poll) -> bool:
        """Let the transport get ready within the time to attach; False when the server stops meanwhile."""
        transport = self._transport
        while True:
            try:
                transport.shake_hands()
            except BlockingIOError:
                poller.register(transport.fileno(), transport.receive_events)  # once more is a change
            else:
                if self._on_ready is not None:
                    self._on_ready()
                return True
            poller.poll(self._timeout() * 1000)
            self._check_clock()
            if self._draining or self.aborted:
                return False

    def _receive(self) -> bool:
        """Take what is there; False at the end of the stream."""
        if self._buffer is None:
            self._buffer = self._pool.take()
        buffer = self._buffer
        for _ in range(_RECEIVES_IN_A_ROW):
            try:
                count = self._transport.receive_into(buffer)
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
                count = self._transport.send(self._pending, self._payload is not None)
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
                count = self._transport.send(self._pending, True)
            except BlockingIOError:
                return False
            del self._pending[:count]
            if self._pending:
                return False
        while payload.remaining:
            try:
                count = self._transport.send_payload(payload)
            except BlockingIOError:
                return False
            payload.offset += count
            payload.remaining -= count
            self._note_progress(count)
        self._payload = None
        payload.release()
        return True

    # time ------------------------------------------------------------------------------------------------------------

    def _deadline(self) -> float:
        return self._patience.deadline(attached=self.session.attached_once, working=self._working)

    def _note_progress(self, count: int) -> None:
        self._patience.note_progress(count, working=self._working)

    @property
    def _working(self) -> bool:
        # An answer that waits for our own disk is not the client's silence.
        return self._unsent or not self.session.at_boundary

    def _is_cut(self) -> bool:
        if not self._unsent:
            self.session.all_is_sent()
        if not self.session.sends_withdrawn:
            self._cut_at = None
            return False
        if self._cut_at is None:
            self._cut_at = self._patience.clock() + _WITHDRAWN_SECONDS
        return self._patience.clock() >= self._cut_at

    def _timeout(self) -> float:
        deadline = self._deadline() if self._end_at is None else self._end_at
        if self._cut_at is not None:
            deadline = min(deadline, self._cut_at)
        return max(0.0, deadline - self._patience.clock()) + 0.001

    def _check_clock(self) -> None:
        if self._patience.clock() >= self._deadline():
            raise TimeoutError("silent for too long")

    def close(self) -> None:
        """Release everything; for the owner, and for whoever could not make one."""
        if self._payload is not None:
            self._payload.release()
        self.session.close()
        self._rest()
        with self._wake_lock:
            self._closed = True
            self._transport.close()
            os.close(self._wakeup)

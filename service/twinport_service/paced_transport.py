"""A transport that keeps to a rate: around another one, it lets so many bytes through as the lanes allow.

What moves bytes beneath it stays as it is: ``sendfile`` is given less to send at a time, TLS less to encrypt. While a
lane says wait, nothing is polled for in that direction, and ``hold_seconds`` tells the owner when to come back.
"""

from __future__ import annotations

import dataclasses

from .bandwidth import Bandwidth
from .channel_session import Payload
from .channel_transport import ChannelTransport

_UNBOUND_BYTES = 4096
"""What is received at a time before it is known whose it is: a ticket, and not the whole file behind it."""


class PacedTransport:
    """See the module. One lane each way: TLS insists on being offered again what it refused, so what is received must
    not use up what may be sent."""

    def __init__(self, inner: ChannelTransport, bandwidth: Bandwidth) -> None:
        self._inner = inner
        self._receiving = bandwidth.lane()
        self._sending = bandwidth.lane()
        self._clock = bandwidth.clock
        self._is_bound = False
        self._receive_at: float | None = None
        self._send_at: float | None = None
        self.secure = inner.secure
        self.fileno = inner.fileno
        self.shake_hands = inner.shake_hands
        self.end_sending = inner.end_sending
        self.rest = inner.rest
        self.abort = inner.abort

    def bind(self, user: str) -> None:
        """From now on the bytes are this user's; before, what it takes to show a ticket is free. For the owner."""
        self._is_bound = True
        self._receiving.bind(user)
        self._sending.bind(user)

    @property
    def receive_events(self) -> int:
        """Nothing while a lane says wait."""
        return self._inner.receive_events if self._receive_at is None else 0

    @property
    def send_events(self) -> int:
        """The same."""
        return self._inner.send_events if self._send_at is None else 0

    @property
    def borrows(self) -> bool:
        """As beneath."""
        return self._inner.borrows

    def hold_seconds(self) -> float:
        """For how long nothing moves in a direction that would move else; 0 when it is nobody's wait but the peer's."""
        now = self._clock()
        # One that has come is not waited for: the owner sees to it by itself, or has reasons not to.
        return min((at - now for at in (self._receive_at, self._send_at) if at is not None and at > now), default=0.0)

    def pending(self) -> bool:
        """Also what was not received because it had to wait, once that is over."""
        if self._receive_at is not None:
            return self._clock() >= self._receive_at
        return self._inner.pending()

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        if not self._is_bound:
            with memoryview(buffer) as view, view[:_UNBOUND_BYTES] as part:
                return self._inner.receive_into(part)
        allowed, wait_seconds = self._receiving.take(len(buffer))
        self._receive_at = self._clock() + wait_seconds if not allowed else None
        if not allowed:
            raise BlockingIOError
        with memoryview(buffer) as view, view[:allowed] as part:
            count = self._inner.receive_into(part)
        self._receiving.spend(count)
        return count

    def send(self, data: bytearray | memoryview, more: bool) -> int:
        """See the contract."""
        allowed = self._allowed(len(data))
        with memoryview(data) as view, view[:allowed] as part:
            count = self._inner.send(part, more or allowed < len(data))
        self._sending.spend(count)
        return count

    def send_payload(self, payload: Payload) -> int:
        """See the contract."""
        allowed = self._allowed(payload.remaining)
        count = self._inner.send_payload(dataclasses.replace(payload, remaining=allowed))
        self._sending.spend(count)
        return count

    def _allowed(self, want_bytes: int) -> int:
        if not self._is_bound:
            return want_bytes
        allowed, wait_seconds = self._sending.take(want_bytes)
        self._send_at = self._clock() + wait_seconds if not allowed else None
        if not allowed:
            raise BlockingIOError
        return allowed

    def close(self) -> None:
        """Close, and leave the rest of the share to the others."""
        self._receiving.close()
        self._sending.close()
        self._inner.close()

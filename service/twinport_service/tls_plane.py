"""Everything of TLS that a running server has: the certificate in force, the doors for both kinds of connections, and
the clock that warns before it expires."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from .channel_plane import ChannelPlane
from .control_tls import ControlDoor, SessionFactory
from .listener import refuse_handshake
from .networks import network_of
from .rationed_log import RationedLog
from .tls import TlsKeeper
from .turnstile import Turnstile

_DAY_SECONDS = 24 * 3600.0


class TlsPlane:
    """Belongs to the event loop. ``handshakes`` is how many run at once, of control connections and of
    channels each."""

    def __init__(
        self,
        keeper: TlsKeeper,
        channels: ChannelPlane,
        factory: SessionFactory,
        *,
        control_seconds: float,
        channel_seconds: float,
        handshakes: int = 64,
        check_seconds: float = _DAY_SECONDS,
    ) -> None:
        self._keeper = keeper
        self._channels = channels
        self._channel_seconds = channel_seconds
        self._check_seconds = check_seconds
        self._loop = asyncio.get_running_loop()
        self._rationed = RationedLog()
        self._turnstiles = Turnstile(at_once=handshakes), Turnstile(at_once=handshakes)
        self._door = ControlDoor(
            lambda: keeper.material, factory, handshake_seconds=control_seconds, turnstile=self._turnstiles[0]
        )
        self._renewal: asyncio.Future[None] | None = None
        self._timer = self._loop.call_later(check_seconds, self._check)
        self.accept_control = self._door.accept

    @property
    def next_sha256(self) -> bytes | None:
        """The SHA-256 of the certificate that will follow the one in force, if there is one."""
        return self._keeper.material.next_sha256

    def accept_channel(self, sock: socket.socket, peer: object) -> None:
        """Take over a non-blocking socket whose client wants TLS for a channel."""

        def refuse() -> None:
            self._rationed.info("[TLS] Refused: too many handshakes of channels", peer=peer)
            refuse_handshake(sock)

        def begin(leave: Callable[[], None]) -> Callable[[], None]:
            def on_ready() -> None:
                try:
                    self._loop.call_soon_threadsafe(leave)
                except RuntimeError:
                    return  # the loop is closed: the server has stopped and nobody waits for the place

            give_way = self._channels.accept_tls(sock, peer, self._keeper.material.channel, on_ready)
            if give_way is None:
                self._loop.call_soon(leave)
                return lambda: None
            return give_way

        deadline = self._loop.time() + self._channel_seconds
        self._turnstiles[1].enter(begin, refuse, deadline, network_of(peer))

    def renew(self) -> None:
        """Look at the certificate's files again; the outcome is in the log. One look at a time."""
        if self._renewal is None or self._renewal.done():
            self._renewal = self._loop.run_in_executor(None, self._keeper.renew)

    def _check(self) -> None:
        self._keeper.check_expiry()
        self._timer = self._loop.call_later(self._check_seconds, self._check)

    def close(self) -> None:
        """Take nobody in any more and cut the handshakes of control connections; those of channels end with the
        channels."""
        self._timer.cancel()
        for turnstile in self._turnstiles:
            turnstile.close()
        self._door.close()

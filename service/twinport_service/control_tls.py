"""TLS beneath control connections: asyncio's own, with buffers that let an idle connection be cheap."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import sys
from asyncio import sslproto
from collections.abc import Callable
from typing import Any, ClassVar

from twinport_protocol.errors import ErrorCode
from twinport_protocol.sniff import ALPN_CONTROL

from .log import get_log
from .tls import TlsMaterial
from .turnstile import Turnstile

_GOODBYE_SECONDS = 2.0
SessionFactory = Callable[[bytes, object], asyncio.Protocol]
"""Makes a session for a connection that presented the certificate of this SHA-256, to this peer."""


class _LeanProtocol(sslproto.SSLProtocol):
    """Since Python 3.11 every connection owns a read buffer of ``max_size``, 256 KiB, which would be most of what an
    idle one costs. A TLS record is 16 KiB, and a command line half of that."""

    max_size: ClassVar[int] = 16 * 1024


class _Doorkeeper(asyncio.Protocol):
    """Stands in until the handshake is done, checks what was agreed, and lets the session take its place."""

    def __init__(self, material: TlsMaterial, factory: SessionFactory, peer: object) -> None:
        self._sha256 = material.certificate.sha256
        self._factory = factory
        self._peer = peer
        self.done = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.done = True
        agreed = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        if agreed != ALPN_CONTROL:  # Python goes on without an agreement
            get_log().info("[TLS] Closed: no agreement on twinport/2", peer=self._peer)
            transport.abort()  # type: ignore[attr-defined]
            return
        session = self._factory(self._sha256, self._peer)
        transport.set_protocol(session)
        session.connection_made(transport)


class TurnAway(asyncio.Protocol):
    """In place of a session: says why there is none, and closes."""

    def __init__(self, code: ErrorCode) -> None:
        self._code = code

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done, so that it can be said."""
        if isinstance(transport, asyncio.Transport):
            transport.write(f"ERROR {self._code.value} {self._code.text}\n".encode())
        transport.close()


class ControlDoor:
    """Takes sockets whose client spoke TLS for control, and starts sessions on those whose handshake succeeds."""

    def __init__(
        self,
        material: Callable[[], TlsMaterial],
        factory: SessionFactory,
        *,
        handshake_seconds: float,
        turnstile: Turnstile,
    ) -> None:
        self._material = material
        self._factory = factory
        self._seconds = handshake_seconds
        self._turnstile = turnstile
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, sock: socket.socket, peer: object) -> None:
        """Take over a non-blocking socket."""
        deadline = self._loop.time() + self._seconds

        def refuse() -> None:
            get_log().info("[TLS] Refused: too many handshakes", peer=peer)
            sock.close()

        def begin(leave: Callable[[], None]) -> Callable[[], None]:
            task = self._loop.create_task(self._shake_hands(sock, peer, deadline))
            self._tasks.add(task)

            def ended(task: asyncio.Task[None]) -> None:
                self._tasks.discard(task)
                leave()

            task.add_done_callback(ended)
            return functools.partial(_cancel, task)

        self._turnstile.enter(begin, refuse, deadline)

    def close(self) -> None:
        """Cut the handshakes that are under way."""
        for task in self._tasks:
            task.cancel()

    async def _shake_hands(self, sock: socket.socket, peer: object, deadline: float) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        material = self._material()
        doorkeeper = _Doorkeeper(material, self._factory, peer)
        times: dict[str, Any] = {"ssl_handshake_timeout": max(0.01, deadline - self._loop.time())}
        if sys.version_info >= (3, 11):
            times["ssl_shutdown_timeout"] = _GOODBYE_SECONDS
        transport: asyncio.BaseTransport | None = None
        try:
            protocol = _LeanProtocol(self._loop, doorkeeper, material.control, waiter, server_side=True, **times)
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, sock)
            await waiter
        except asyncio.CancelledError:
            get_log().info("[TLS] Handshake gave way", peer=peer)
            _drop(transport, sock)
            raise
        except (OSError, RuntimeError) as error:
            get_log().info("[TLS] Handshake failed", peer=peer, error=reason_of(error))
            _drop(transport, sock)
            return
        if not doorkeeper.done:
            get_log().info("[TLS] Handshake failed", peer=peer, error="the client left")
            _drop(transport, sock)


def reason_of(error: BaseException) -> str:
    """Why a handshake failed, in a few words that hold nothing of the connection's contents."""
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _drop(transport: asyncio.BaseTransport | None, sock: socket.socket) -> None:
    if isinstance(transport, asyncio.Transport):
        transport.abort()
    else:
        sock.close()

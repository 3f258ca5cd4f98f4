"""TLS beneath control connections, on the event loop: a protocol that decrypts for a session, and the transport that
the session writes to.

Not asyncio's own: since Python 3.11 that holds a read buffer of 256 KiB for every connection, idle or not, and in 3.10
it waits without end for a client that does not say goodbye. Here an idle connection holds what OpenSSL needs, closing
says ``close_notify`` and closes, and a failed handshake ends in an alert that tells the client why.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

from twinport_protocol.errors import ErrorCode
from twinport_protocol.sniff import ALPN_CONTROL

from .listener import farewell_line, refuse_handshake
from .log import get_log
from .networks import network_of
from .rationed_log import RationedLog
from .tls import TlsMaterial
from .tls_records import RecordCounter
from .turnstile import Turnstile

_RECORD_BYTES = 16 * 1024
_MAX_EMPTY_RECORDS = 64
"""Records without a byte for the session: a handshake has a handful, a long connection a new key now and then."""
SessionFactory = Callable[[bytes, object], asyncio.Protocol]
"""Makes a session for a connection that presented the certificate of this SHA-256, to this peer."""


class TurnAway(asyncio.Protocol):
    """In place of a session: says why there is none, and closes."""

    def __init__(self, code: ErrorCode, retry_seconds: int | None = None) -> None:
        self._line = farewell_line(code, retry_seconds)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done, so that it can be said."""
        if isinstance(transport, asyncio.Transport):
            transport.write(self._line)
        transport.close()


class _TlsTransport(asyncio.Transport):
    """What a session has in its hands. Writing under TLS 1.3 never waits for reading."""

    def __init__(self, owner: _TlsProtocol, below: asyncio.Transport, tls: ssl.SSLObject) -> None:
        super().__init__()
        self._owner = owner
        self._below = below
        self._tls = tls
        self.paused = False
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._below.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self.closing or self._below.is_closing()

    def is_reading(self) -> bool:
        return not self.paused and not self.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self.is_closing():
            with contextlib.suppress(ssl.SSLError):  # the session learns of it as of every lost connection
                self._tls.write(data)
            self._owner.flush()

    def pause_reading(self) -> None:
        self.paused = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        if self.paused:
            self.paused = False
            self._below.resume_reading()
            self._owner.deliver_soon()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()  # says close_notify; nobody waits for the answer
            self._owner.flush()
            self._below.close()

    def abort(self) -> None:
        self.closing = True
        self._below.abort()


class _TlsProtocol(asyncio.Protocol):
    """One connection: the handshake, then the session's bytes. ``on_ready`` is called when the handshake is over,
    however it ends, and may be called again."""

    def __init__(
        self,
        material: TlsMaterial,
        factory: SessionFactory,
        peer: object,
        deadline: float,
        on_ready: Callable[[], None],
    ) -> None:
        self._sha256 = material.certificate.sha256
        self._factory = factory
        self._peer = peer
        self._on_ready = on_ready
        self._loop = asyncio.get_running_loop()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = material.control.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._below: asyncio.Transport | None = None
        self._transport: _TlsTransport | None = None
        self._session: asyncio.Protocol | None = None
        self._ended = False
        self._ahead = b""
        self._records = RecordCounter()
        self._reads = 0  # each yields one record at most, and every record that has data for the session
        self._timer = self._loop.call_at(deadline, self.give_up, "too slow")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._below = transport

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return  # behind its close_notify nobody takes anything: it would be kept for as long as a command runs
        self._ahead += data
        while self._session is None and self._feed():
            self._shake_hands()
        self._deliver()

    def eof_received(self) -> bool:
        if self._session is None:
            self.give_up("the client left")
            return False
        self._note_end()
        return True  # the session closes once it has answered

    def pause_writing(self) -> None:
        if self._session is not None:
            self._session.pause_writing()

    def resume_writing(self) -> None:
        if self._session is not None:
            self._session.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._on_ready()
        if self._transport is not None:
            self._transport.closing = True
        if self._session is not None:
            self._session.connection_lost(exc)
        self._session = self._below = None

    def give_up(self, reason: str | None) -> None:
        """Cut a connection whose handshake is not done; harmless afterwards. Without a reason the log says nothing."""
        if self._session is None and self._below is not None and not self._below.is_closing():
            if reason is not None:
                get_log().info("[TLS] Handshake failed", peer=self._peer, error=reason)
            self.flush()
            self._below.close()
            self._on_ready()

    def flush(self) -> None:
        """Send what TLS has made."""
        if self._outgoing.pending and self._below is not None and not self._below.is_closing():
            self._below.write(self._outgoing.read())

    def _feed(self) -> bool:
        """Let TLS have some more of what came; False when nothing is left, or it was too much of nothing.

        Not all at once: a new key costs 20 µs and 27 bytes, and all that TLS has of them it takes in one call."""
        if self._records.count - self._reads > _MAX_EMPTY_RECORDS:
            self._break("records without data")
            return False
        if not self._ahead:
            return False
        part, self._ahead = self._ahead[:_RECORD_BYTES], self._ahead[_RECORD_BYTES:]
        self._records.feed(part)
        self._incoming.write(part)
        return True

    def _break(self, reason: str) -> None:
        get_log().info("[TLS] Broken", peer=self._peer, error=reason)
        self._ahead = b""
        if self._transport is not None:
            self._transport.abort()
        elif self._below is not None:
            self._below.abort()

    def deliver_soon(self) -> None:
        """The session reads again."""
        self._loop.call_soon(self._deliver)

    def _shake_hands(self) -> None:
        if self._below is None or self._below.is_closing():
            return
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self.flush()
            return
        except ssl.SSLError as error:
            self.give_up(error.reason or type(error).__name__)  # an alert is among what goes out
            return
        if self._tls.selected_alpn_protocol() != ALPN_CONTROL:  # Python goes on without an agreement
            self.give_up("no agreement on twinport/2")
            return
        self.flush()
        self._timer.cancel()
        self._on_ready()
        self._transport = _TlsTransport(self, self._below, self._tls)
        self._session = self._factory(self._sha256, self._peer)
        self._session.connection_made(self._transport)

    def _deliver(self) -> None:
        while self._session is not None and self._transport is not None and self._transport.is_reading():
            try:
                data = self._tls.read(_RECORD_BYTES)
            except ssl.SSLWantReadError:
                if self._feed():
                    continue
                return
            except ssl.SSLError as error:
                self._break(error.reason or type(error).__name__)
                return
            if not data:  # close_notify
                self._note_end()
                return
            self._reads += 1
            self._session.data_received(data)

    def _note_end(self) -> None:
        """The client sends nothing more, be it said by TLS, by the connection below, or by both."""
        if self._ended or self._session is None or self._transport is None:
            return
        self._ended = True
        if not self._session.eof_received():
            self._transport.close()


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
        self._rationed = RationedLog()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: set[_TlsProtocol] = set()

    def accept(self, sock: socket.socket, peer: object) -> None:
        """Take over a non-blocking socket."""
        deadline = self._loop.time() + self._seconds

        def refuse() -> None:
            self._rationed.info("[TLS] Refused: too many handshakes", peer=peer)
            refuse_handshake(sock)

        def begin(leave: Callable[[], None]) -> Callable[[], None]:
            def on_ready() -> None:
                self._under_way.discard(protocol)
                leave()

            protocol = _TlsProtocol(self._material(), self._factory, peer, deadline, on_ready)
            self._under_way.add(protocol)
            task = self._loop.create_task(self._adopt(sock, protocol, on_ready))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

            def give_way() -> None:
                self._rationed.info("[TLS] Handshake gave way to another", peer=peer)
                protocol.give_up(None)

            return give_way

        self._turnstile.enter(begin, refuse, deadline, network_of(peer))

    async def _adopt(self, sock: socket.socket, protocol: _TlsProtocol, on_ready: Callable[[], None]) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, sock)
        except OSError as error:
            get_log().info("[LISTENER] Gone before it was served", error=error.strerror)
            sock.close()
            on_ready()

    def close(self) -> None:
        """Cut the handshakes that are under way."""
        for protocol in list(self._under_way):
            protocol.give_up("the server stops")

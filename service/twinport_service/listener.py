"""The two listening ports: accept, look at the first bytes without taking them, hand the socket to the plane it
belongs to.

One long-lived listener per port. The handshake, whichever it is, happens after the hand-off, so nothing here waits
for a client but for its first bytes, and that only in the event loop and only until a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.sniff import ALPN_CHANNEL, ALPN_CONTROL, MAX_CLIENT_HELLO_BYTES, FirstBytes, Sniffed, sniff

from .congestion import suit
from .log import get_log
from .rationed_log import RationedLog
from .tls import ALERT_INTERNAL_ERROR, ALERT_NO_APPLICATION_PROTOCOL, ALERT_PROTOCOL_VERSION

_ACCEPTS_IN_A_ROW = 64
_BACKLOG = 1024
_LOOK_AGAIN_SECONDS = 0.25
_TCP_ESTABLISHED = 1
_DISCARD_BYTES = 256 * 1024
_HELLO = b"HELLO "


@dataclass(frozen=True)
class Routes:
    """Where connections go, by their first bytes. A route owns the socket from then on; the handshake of TLS is its
    matter too."""

    control: Callable[[socket.socket, object], None]
    channel: Callable[[socket.socket, object], object]
    classic: Callable[[socket.socket, object], None] | None = None
    tls_control: Callable[[socket.socket, object], None] | None = None
    tls_channel: Callable[[socket.socket, object], None] | None = None


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class Acceptor:
    """Accepts on one listener and calls ``on_accept(socket, peer)`` on the event loop for each connection.

    ``suits_lines``: the congestion control of each is chosen by its line."""

    def __init__(
        self,
        listener: socket.socket,
        on_accept: Callable[[socket.socket, object], None],
        *,
        suits_lines: bool = False,
    ) -> None:
        self.listener = listener
        self._suits_lines = suits_lines
        self._on_accept = on_accept
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_IN_A_ROW):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the connection stays in the backlog; look again when some were freed.
                get_log().error("[LISTENER] Cannot accept", error=error.strerror)
                self._loop.remove_reader(self.listener.fileno())
                self._loop.call_later(0.5, self._resume)
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._suits_lines:
                suit(sock)
            self._on_accept(sock, peer)

    def _resume(self) -> None:
        if self.listener.fileno() >= 0:
            self._loop.add_reader(self.listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more; the port is free."""
        if self.listener.fileno() >= 0:
            self._loop.remove_reader(self.listener.fileno())
            self.listener.close()


class Receptionist:
    """Holds new connections until their first bytes say what they are, each until its deadline.

    ``first_byte_seconds`` bounds silence, ``decide_seconds`` the time from the first byte on, ``capacity`` how many
    wait at once: past it the oldest gives way.
    """

    def __init__(
        self, routes: Routes, *, first_byte_seconds: float, decide_seconds: float, capacity: int = 4096
    ) -> None:
        self._routes = routes
        self._first_byte_seconds = first_byte_seconds
        self._decide_seconds = decide_seconds
        self._capacity = capacity
        self._loop = asyncio.get_running_loop()
        self._rationed = RationedLog()
        self._waiting: dict[int, _Visitor] = {}

    @property
    def count(self) -> int:
        """How many connections have not said yet what they are."""
        return len(self._waiting)

    def receive(self, sock: socket.socket, peer: object) -> None:
        """Take a new, non-blocking connection."""
        if len(self._waiting) >= self._capacity:
            oldest = next(iter(self._waiting.values()))
            self._rationed.info("[LISTENER] Gave way: it did not say what it is", peer=oldest.peer)
            self._drop(oldest, ErrorCode.BUSY)
        visitor = _Visitor(sock, peer, self._loop.time() + self._first_byte_seconds)
        self._waiting[sock.fileno()] = visitor
        self._look(visitor)

    def _look(self, visitor: _Visitor) -> None:
        sock = visitor.sock
        try:
            data = sock.recv(MAX_CLIENT_HELLO_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            self._loop.add_reader(sock.fileno(), self._look, visitor)
            if visitor.timer is None:
                visitor.timer = self._loop.call_at(visitor.deadline, self._drop, visitor, ErrorCode.TIMEOUT)
            return
        except OSError:
            self._drop(visitor, None)
            return
        if not data:
            self._drop(visitor, None)
            return
        try:
            sniffed = sniff(data)
        except RemoteProtocolError as error:
            self._drop(visitor, error.code)
            return
        kind = sniffed.kind
        if kind is FirstBytes.TEXT and len(data) < len(_HELLO) and _HELLO.startswith(data):
            kind = FirstBytes.UNDECIDED
        if kind is FirstBytes.UNDECIDED:
            self._await_more(visitor, len(data))
            return
        self._hand_over(visitor, sniffed, data)

    def _await_more(self, visitor: _Visitor, seen_bytes: int) -> None:
        """Some bytes are there, but not enough: be called when there are more of them than now."""
        grew, visitor.seen_bytes = seen_bytes > visitor.seen_bytes, seen_bytes
        now = self._loop.time()
        if not visitor.spoke:
            visitor.spoke = True
            visitor.deadline = now + self._decide_seconds
        if visitor.timer is not None:
            visitor.timer.cancel()
        if now >= visitor.deadline:
            self._drop(visitor, ErrorCode.TIMEOUT)
        elif not grew and _has_ended(visitor.sock):
            self._drop(visitor, None)
        elif grew:
            visitor.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen_bytes + 1)
            self._loop.add_reader(visitor.sock.fileno(), self._look, visitor)
            visitor.timer = self._loop.call_at(visitor.deadline, self._drop, visitor, ErrorCode.TIMEOUT)
        else:
            # Readable without being more: the system is short of memory. It would be so again at once.
            self._loop.remove_reader(visitor.sock.fileno())
            visitor.timer = self._loop.call_later(_LOOK_AGAIN_SECONDS, self._look, visitor)

    def _hand_over(self, visitor: _Visitor, sniffed: Sniffed, data: bytes) -> None:
        self._forget(visitor)
        if visitor.seen_bytes:
            visitor.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if sniffed.kind is FirstBytes.CHANNEL:
            self._routes.channel(visitor.sock, visitor.peer)
        elif sniffed.kind is FirstBytes.TLS:
            self._hand_over_tls(visitor, sniffed)
        elif self._routes.classic is not None and not data.startswith(_HELLO):
            self._routes.classic(visitor.sock, visitor.peer)
        else:
            self._routes.control(visitor.sock, visitor.peer)

    def _hand_over_tls(self, visitor: _Visitor, sniffed: Sniffed) -> None:
        routes = {ALPN_CONTROL: self._routes.tls_control, ALPN_CHANNEL: self._routes.tls_channel}
        route = next((found for name in sniffed.alpn if (found := routes.get(name)) is not None), None)
        if not any(routes.values()):
            get_log().info("[LISTENER] TLS is not set up here", peer=visitor.peer)
            visitor.sock.close()
        elif not sniffed.tls_1_3:
            get_log().info("[LISTENER] TLS older than 1.3", peer=visitor.peer)
            _say_and_close(visitor.sock, ALERT_PROTOCOL_VERSION)
        elif route is None:
            get_log().info("[LISTENER] TLS without a known ALPN", peer=visitor.peer)
            _say_and_close(visitor.sock, ALERT_NO_APPLICATION_PROTOCOL)
        else:
            route(visitor.sock, visitor.peer)

    def _forget(self, visitor: _Visitor) -> None:
        self._waiting.pop(visitor.sock.fileno(), None)
        self._loop.remove_reader(visitor.sock.fileno())
        if visitor.timer is not None:
            visitor.timer.cancel()

    def _drop(self, visitor: _Visitor, code: ErrorCode | None) -> None:
        self._forget(visitor)
        if code is not None:
            turn_away(visitor.sock, code)
        else:
            visitor.sock.close()

    def close(self) -> None:
        """Turn away everybody who waits."""
        for visitor in list(self._waiting.values()):
            self._drop(visitor, ErrorCode.SHUTTING_DOWN)


class _Visitor:
    __slots__ = ("deadline", "peer", "seen_bytes", "sock", "spoke", "timer")

    def __init__(self, sock: socket.socket, peer: object, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.spoke = False
        self.seen_bytes = 0
        self.timer: asyncio.TimerHandle | None = None


def _has_ended(sock: socket.socket) -> bool:
    """Whether the client sends nothing more; what it sent stays readable, so only the state of the connection tells."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED
    except OSError:
        return True


def turn_away(sock: socket.socket, code: ErrorCode, retry_seconds: int | None = None) -> None:
    """Say why in a line that clients of every dialect read, and close."""
    _say_and_close(sock, farewell_line(code, retry_seconds))


def farewell_line(code: ErrorCode, retry_seconds: int | None = None) -> bytes:
    """The line that a connection ends with before anything was agreed on."""
    retry = "" if retry_seconds is None else f"retry={retry_seconds} "
    return f"ERROR {code.value} {retry}{code.text}\n".encode()


def refuse_handshake(sock: socket.socket) -> None:
    """Too many handshakes are ahead of this one: said by an alert, and closed."""
    _say_and_close(sock, ALERT_INTERNAL_ERROR)


def _say_and_close(sock: socket.socket, said: bytes) -> None:
    try:
        sock.send(said)
        sock.shutdown(socket.SHUT_WR)
        # Closed with bytes unread, it would be reset, and what was said with it.
        with contextlib.suppress(BlockingIOError):
            sock.recv(_DISCARD_BYTES)
    except OSError:
        get_log().debug("[LISTENER] Gone before it could be told")
    finally:
        sock.close()


def refuse_text(sock: socket.socket, peer: object) -> None:
    """Text where only channels belong."""
    get_log().info("[LISTENER] Text on the data port", peer=peer)
    turn_away(sock, ErrorCode.BAD_REQUEST)


def refuse_plaintext(sock: socket.socket, peer: object) -> None:
    """Text where TLS is required."""
    get_log().info("[LISTENER] Refused: text without TLS", peer=peer)
    turn_away(sock, ErrorCode.TLS_REQUIRED)


def refuse_plain_channel(sock: socket.socket, peer: object) -> None:
    """A channel where TLS is required: there is no form in which it could be told."""
    get_log().info("[LISTENER] Refused: a channel without TLS", peer=peer)
    sock.close()

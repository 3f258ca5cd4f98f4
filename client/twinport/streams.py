"""One socket as the poll loops see it: plain or TLS, never blocking, owned by one thread.

The loops only know :class:`Stream`. A plain socket gives and takes whole buffers in one system call; a TLS one has
records, may want to write in order to read, and holds decrypted bytes that no poll tells of (``tls_stream``).
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import sys
import termios
from collections import deque
from typing import Protocol

from .addresses import Address

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 15.0
"""A connection that owes an answer for so long is given up."""
MAX_BUFFERS = 512


class Stream(Protocol):
    """A connected, non-blocking connection. ``OSError`` from any call: it is lost."""

    def fileno(self) -> int:
        """The descriptor to poll."""

    def poll_mask(self, has_output: bool) -> int:
        """What to poll for; ``has_output`` says whether there is something to send."""

    def may_read(self, events: int) -> bool:
        """Whether reading is worth a try after the poll told of ``events``."""

    def has_input(self) -> bool:
        """Whether bytes are here already that no poll will tell of."""

    def receive_into(self, view: memoryview) -> int | None:
        """How many bytes were read, 0 at the end of the stream, None when there are none now."""

    def send(self, out: deque[memoryview]) -> bool:
        """Take from the head of ``out`` what the line takes now; whether that was anything."""

    def unsent_bytes(self) -> int:
        """What the peer's kernel has not acknowledged yet; 0 where this system does not tell."""

    def close(self) -> None:
        """End both directions and release the descriptor; harmless when the other side was first."""


class SocketStream:
    """What plain and TLS sockets have in common."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._number = connection.fileno()

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._number

    def unsent_bytes(self) -> int:
        """What the peer's kernel has not acknowledged yet; 0 where this system does not tell."""
        try:
            answer = fcntl.ioctl(self._number, termios.TIOCOUTQ, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(answer, sys.byteorder)

    def close(self) -> None:
        """End both directions and release the descriptor; harmless when the other side was first."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class PlainStream(SocketStream):
    """A plain socket."""

    def poll_mask(self, has_output: bool) -> int:
        """Always for reading, for writing when there is output."""
        return select.POLLIN | select.POLLOUT if has_output else select.POLLIN

    def may_read(self, events: int) -> bool:
        """For everything but room to write."""
        return bool(events & ~select.POLLOUT)

    def has_input(self) -> bool:
        """Never: the kernel holds what arrived."""
        return False

    def receive_into(self, view: memoryview) -> int | None:
        """One ``recv_into``."""
        try:
            return self._connection.recv_into(view)
        except BlockingIOError:
            return None

    def send(self, out: deque[memoryview]) -> bool:
        """One ``sendmsg`` of many buffers."""
        try:
            sent = self._connection.sendmsg([*out][:MAX_BUFFERS])
        except BlockingIOError:
            return False
        moved = sent > 0
        while sent:
            head = out[0]
            if sent < len(head):
                out[0] = head[sent:]
                break
            sent -= len(head)
            out.popleft()
        while out and not out[0]:
            out.popleft()
        return moved


def stream_of(connection: socket.socket) -> Stream:
    """The stream of a connected socket, which must not block from here on; it owns the socket."""
    connection.setblocking(False)
    if type(connection) is socket.socket:
        return PlainStream(connection)
    from .tls_stream import TlsStream  # noqa: PLC0415  # ssl only where there is TLS

    return TlsStream(connection)


def connect_channel(address: Address, certificate: bytes | None, seconds: float) -> socket.socket:
    """A data connection that still blocks, for at most ``seconds`` at a time: under TLS, to the server that proves
    itself with the very certificate of the control connection, if that had one (its SHA-256). ``OSError``,
    ``TwinportError``."""
    connection = socket.create_connection((address.host, address.port), seconds)
    if certificate is None:
        return connection
    from .tls import secure_channel  # noqa: PLC0415  # as above

    return secure_channel(connection, address, certificate, seconds)


def tune(connection: socket.socket, silent_seconds: float) -> None:
    """No delay for small writes; the kernel gives up a dead peer by itself."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silent_seconds * 1000))
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

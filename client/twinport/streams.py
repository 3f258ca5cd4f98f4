"""One socket as the poll loops see it: plain or TLS, never blocking, owned by one thread.

The loops only know :class:`Stream`. A plain socket gives and takes whole buffers in one system call; a TLS one has
records, may want to write in order to read, and holds decrypted bytes that no poll tells of (``tls_stream``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import termios
from collections import deque
from typing import Protocol

from .addresses import Address
from .congestion import LineFacts, is_local, look_at, suit

CONNECT_SECONDS = 10.0
SILENT_SECONDS = 15.0
"""A connection that owes an answer for so long is given up."""
UNSENT_BYTES = 64 * 1024
"""What the kernel takes beyond what it can send at once, to a server on this machine."""
MAX_BUFFERS = 512
_MORE = getattr(socket, "MSG_MORE", 0)
_NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class FileRange:
    """``length`` bytes of an open file from ``offset`` on, to be sent as they are in the page cache. Shrinks as it is
    sent."""

    __slots__ = ("descriptor", "length", "offset")

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self.descriptor = descriptor
        self.offset = offset
        self.length = length

    def advance(self, count: int) -> None:
        """So many bytes went."""
        self.offset += count
        self.length -= count


Outgoing = deque["memoryview | FileRange"]
"""What is to be sent, in its order."""


class Stream(Protocol):
    """A connected, non-blocking connection. ``OSError`` from any call: it is lost."""

    takes_files: bool
    """Whether :meth:`send` takes ranges of files."""

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

    def send(self, out: Outgoing) -> bool:
        """Take from the head of ``out`` what the line takes now; whether that was anything."""

    def unsent_bytes(self) -> int:
        """What the peer's kernel has not acknowledged yet; 0 where this system does not tell."""

    def look(self) -> LineFacts:
        """What the kernel knows of the line."""

    def drop_unsent(self) -> None:
        """What the kernel holds and has not sent is not to be sent after :meth:`close`: others send it."""

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

    def look(self) -> LineFacts:
        """What the kernel knows of the line."""
        return look_at(self._connection)

    def drop_unsent(self) -> None:
        """What the kernel holds and has not sent is not to be sent after :meth:`close`: others send it."""
        with contextlib.suppress(OSError):
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """End both directions and release the descriptor; harmless when the other side was first."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class PlainStream(SocketStream):
    """A plain socket."""

    takes_files = sys.platform == "linux"

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

    def send(self, out: Outgoing) -> bool:
        """One ``sendmsg`` of many buffers or one ``sendfile``, and the next while the line takes all of it."""
        moved = False
        while out:
            head = out[0]
            try:
                took, all_of_it = self._send_file(head, out) if isinstance(head, FileRange) else self._send_bytes(out)
            except BlockingIOError:
                break
            moved = moved or took
            if not all_of_it:
                break
        return moved

    def _send_bytes(self, out: Outgoing) -> tuple[bool, bool]:
        """The buffers at the head of ``out``: whether anything went, and whether all."""
        buffers: list[memoryview] = []
        more = 0
        for item in out:
            if isinstance(item, FileRange):
                more = _MORE
                break
            buffers.append(item)
            if len(buffers) == MAX_BUFFERS:
                break
        sent = left = self._connection.sendmsg(buffers, (), more)
        for buffer in buffers:
            if left < len(buffer):
                out[0] = buffer[left:]
                return sent > 0, False
            left -= len(buffer)
            out.popleft()
        return sent > 0, True

    def _send_file(self, head: FileRange, out: Outgoing) -> tuple[bool, bool]:
        """The range at the head of ``out``, in the same way."""
        try:
            count = os.sendfile(self._number, head.descriptor, head.offset, head.length)
        except OSError as error:
            if error.errno not in _NO_SENDFILE:
                raise
            data = os.pread(head.descriptor, head.length, head.offset)  # its file system has none
            out[0] = memoryview(data)
            count = 0
            if len(data) == head.length:
                return False, True
        if not count:
            # The frame's header has promised more; only the end of the connection is honest.
            raise OSError(errno.EIO, "the file became shorter while it was sent")
        head.advance(count)
        if head.length:
            return True, False
        out.popleft()
        return True, True


def stream_of(connection: socket.socket) -> Stream:
    """The stream of a connected socket, which must not block from here on; it owns the socket."""
    connection.setblocking(False)
    if type(connection) is socket.socket:
        return PlainStream(connection)
    from .tls_stream import TlsStream  # noqa: PLC0415  # ssl only where there is TLS

    return TlsStream(connection)


def dial(address: Address, seconds: float) -> socket.socket:
    """A connected socket that still blocks. What is written goes out at once from the first byte on: what follows a
    handshake would otherwise wait for a round trip until that was acknowledged. ``OSError``."""
    try:
        connection = socket.create_connection((address.host, address.port), seconds)
    except UnicodeError:
        raise OSError(f"{address.host!r} is no name of a host") from None
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def connect_channel(address: Address, certificate: bytes | None, seconds: float) -> socket.socket:
    """A data connection that still blocks, for at most ``seconds`` at a time: under TLS, to the server that proves
    itself with the very certificate of the control connection, if that had one (its SHA-256). ``OSError``,
    ``TwinportError``."""
    connection = dial(address, seconds)
    if certificate is None:
        return connection
    from .tls import secure_channel  # noqa: PLC0415  # as above

    return secure_channel(connection, address, certificate, seconds)


def tune(connection: socket.socket, silent_seconds: float) -> None:
    """The kernel gives up a dead peer by itself; congestion control as the line wants it."""
    suit(connection)
    if is_local(connection) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        # What waits in the kernel is sent in the server's time there, whenever that has made room.
        with contextlib.suppress(OSError):  # a kernel without it
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silent_seconds * 1000))
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

"""What a channel's thread moves bytes with: a plain socket, or TLS on one. Non-blocking, and used by that thread alone.

Both say ``BlockingIOError`` when nothing moves now, and in ``receive_events`` and ``send_events`` what to poll for
then.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from twinport_protocol.sniff import ALPN_CHANNEL

from .buffers import BufferPool
from .channel_session import Payload
from .congestion import is_local
from .payload_stage import PayloadStage, check_not_short


class ChannelTransport(Protocol):
    """What the channel's thread needs of its connection."""

    secure: bool

    @property
    def receive_events(self) -> int:
        """What to poll for before receiving."""

    @property
    def send_events(self) -> int:
        """What to poll for before sending."""

    @property
    def borrows(self) -> bool:
        """Whether there is something that :meth:`rest` would give back."""

    def fileno(self) -> int:
        """The descriptor to poll."""

    def shake_hands(self) -> None:
        """Get the connection ready; to be repeated after ``BlockingIOError``. ``OSError`` when it fails."""

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Fill the buffer with what is there; 0 at the end of the stream."""

    def pending(self) -> bool:
        """Whether there is something to receive that polling does not show."""

    def send(self, data: bytearray | memoryview, more: bool) -> int:
        """Send from the start of ``data``; ``more`` follows at once. After ``BlockingIOError`` the same bytes must come
        again, and at least as many: TLS has begun a record of them."""

    def send_payload(self, payload: Payload) -> int:
        """Send some of a payload; how much of it counts as gone. The same payload must follow until it is gone."""

    def hold_seconds(self) -> float:
        """For how long nothing moves because we do not want it to; 0 when it does not for other reasons."""

    def end_sending(self) -> None:
        """Nothing more will be sent. What still comes is to be received and dropped."""

    def rest(self) -> None:
        """Give back what only a busy channel needs."""

    def abort(self) -> None:
        """End the connection now; the one thing that any thread may do, while it is not closed."""

    def close(self) -> None:
        """Close it."""


class PlainTransport:
    """A plain socket: payloads go from the reader to the socket without a copy."""

    secure = False
    receive_events = select.POLLIN
    send_events = select.POLLOUT

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self.receive_into: Callable[[bytearray | memoryview], int] = sock.recv_into

    def shake_hands(self) -> None:
        """Nothing to do."""

    def pending(self) -> bool:
        """Polling shows all there is."""
        return False

    @property
    def borrows(self) -> bool:
        """It borrows nothing."""
        return False

    def send(self, data: bytearray | memoryview, more: bool) -> int:
        """See the contract."""
        return self._sock.send(data, socket.MSG_MORE if more else 0)

    def send_payload(self, payload: Payload) -> int:
        """See the contract."""
        return check_not_short(payload.reader.send(self._sock.fileno(), payload.offset, payload.remaining))

    def hold_seconds(self) -> float:
        """It moves what can be moved."""
        return 0.0

    def end_sending(self) -> None:
        """End our direction."""
        self._sock.shutdown(socket.SHUT_WR)

    def rest(self) -> None:
        """It borrows nothing."""

    def abort(self) -> None:
        """Shut down, not close: the descriptor stays the owner's."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._sock.close()


class LocalTransport(PlainTransport):
    """A plain socket to a peer on this machine, through a buffer. What ``sendfile`` hands over the peer has to copy
    from single pages that its core has not seen, and it is the busier of the two: there a copy here costs less."""

    def __init__(self, sock: socket.socket, pool: BufferPool) -> None:
        super().__init__(sock)
        self._stage = PayloadStage(pool, sock.send)

    def send_payload(self, payload: Payload) -> int:
        """See the contract."""
        return self._stage.send(payload)

    @property
    def borrows(self) -> bool:
        """Whether the buffer is there and empty."""
        return self._stage.borrows

    def rest(self) -> None:
        """Give the buffer back if it is empty."""
        self._stage.rest()

    def close(self) -> None:
        """Close, and give back what was borrowed."""
        self._stage.close()
        super().close()


def plain_transport(sock: socket.socket, pool: BufferPool) -> PlainTransport:
    """What suits an accepted plain socket."""
    return LocalTransport(sock, pool) if is_local(sock) else PlainTransport(sock)


class TlsTransport:
    """TLS on an accepted socket. Payloads are read into a borrowed buffer and sent from there."""

    secure = True

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, pool: BufferPool) -> None:
        """Takes the socket over; ``OSError`` (and the socket closed) when it is gone already."""
        self._sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._stage = PayloadStage(pool, self._write)
        self._ended = self._said_end = False
        self.receive_events = select.POLLIN
        self.send_events = select.POLLOUT
        self.fileno = self._sock.fileno

    def shake_hands(self) -> None:
        """The handshake; ``ssl.SSLError`` when it fails, or when the client did not agree on channels."""
        try:
            self._sock.do_handshake()
        except ssl.SSLWantReadError:
            self.receive_events = select.POLLIN
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.receive_events = select.POLLOUT
            raise BlockingIOError from None
        self.receive_events = select.POLLIN
        if self._sock.selected_alpn_protocol() != ALPN_CHANNEL:  # Python goes on without an agreement
            raise ConnectionAbortedError("no agreement on twinport-data/2")

    def receive_into(self, buffer: bytearray | memoryview) -> int:
        """See the contract. A call of TLS yields one record of 16 KiB at most: they are collected."""
        if self._said_end:
            # What comes after our farewell is dropped anyway, and TLS would not have it without complaint.
            return socket.socket.recv_into(self._sock, buffer)
        if self._ended:
            return 0
        count = 0
        with memoryview(buffer) as view:
            while count < len(view):
                try:
                    got = self._sock.recv_into(view[count:])
                except ssl.SSLWantReadError:
                    self.receive_events = select.POLLIN
                    break
                except ssl.SSLWantWriteError:
                    self.receive_events = select.POLLOUT
                    break
                if not got:
                    self._ended = True
                    return count
                count += got
        if not count:
            raise BlockingIOError
        return count

    def pending(self) -> bool:
        """Whether a record was taken off the socket and not yet received completely, or the end was seen."""
        return not self._said_end and (self._ended or self._sock.pending() > 0)

    def send(self, data: bytearray | memoryview, more: bool) -> int:
        """See the contract. Records need no hint: a payload begins one of its own."""
        del more
        return self._write(data)

    def _write(self, data: bytearray | memoryview) -> int:
        try:
            return self._sock.send(data)
        except ssl.SSLWantReadError:
            self.send_events = select.POLLIN
        except ssl.SSLWantWriteError:
            self.send_events = select.POLLOUT
        raise BlockingIOError

    def send_payload(self, payload: Payload) -> int:
        """See the contract. After ``BlockingIOError`` the very bytes that were refused are offered again."""
        return self._stage.send(payload)

    def hold_seconds(self) -> float:
        """It moves what can be moved."""
        return 0.0

    def end_sending(self) -> None:
        """Say ``close_notify`` if the socket takes it, and end our direction."""
        self._said_end = True
        self.receive_events = select.POLLIN
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._sock.unwrap()
        socket.socket.shutdown(self._sock, socket.SHUT_WR)

    @property
    def borrows(self) -> bool:
        """Whether the buffer is there and empty."""
        return self._stage.borrows

    def rest(self) -> None:
        """Give the buffer back if it is empty."""
        self._stage.rest()

    def abort(self) -> None:
        """Shut the socket down beneath TLS: its own ``shutdown`` would drop the state that the owner is using."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close, and give back what was borrowed."""
        self._stage.close()
        self._sock.close()

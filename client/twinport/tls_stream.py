"""A TLS connection in a poll loop. All calls from one thread: an ``SSLSocket`` shared by two can deadlock or crash."""

from __future__ import annotations

import select
import socket
import ssl

from .streams import FileRange, Outgoing, SocketStream

# A write that would block must be repeated with the same bytes; a piece of this size makes that cheap to keep to.
PIECE_BYTES = 128 * 1024


class TlsStream(SocketStream):
    """An ``SSLSocket`` after its handshake."""

    takes_files = False

    def __init__(self, connection: socket.socket) -> None:
        if not isinstance(connection, ssl.SSLSocket):
            raise TypeError("not a TLS connection")
        super().__init__(connection)
        self._tls = connection
        self._read_wants_write = False
        self._write_wants_read = False
        self._read_error: OSError | None = None
        self._ended = False

    def poll_mask(self, has_output: bool) -> int:
        """Reading always; writing when there is output that waits for room, or TLS has something of its own to say."""
        writes = (has_output and not self._write_wants_read) or self._read_wants_write
        return select.POLLIN | select.POLLOUT if writes else select.POLLIN

    def may_read(self, events: int) -> bool:
        """For everything but room to write, and for that where the reading waits for it."""
        return bool(events & ~select.POLLOUT) or (events != 0 and self._read_wants_write)

    def has_input(self) -> bool:
        """Whether a record is decrypted and not fetched, or the reading must be told how it ended."""
        return not self._ended and (self._read_error is not None or self._tls.pending() > 0)

    def receive_into(self, view: memoryview) -> int | None:
        """As many records as there are and ``view`` takes: one call of TLS gives 16 KiB at most."""
        if self._read_error is not None:
            error, self._read_error = self._read_error, None
            raise error
        self._read_wants_write = self._write_wants_read = False
        count = 0
        while count < len(view) and not self._ended:
            try:
                got = self._tls.recv_into(view[count:])
            except ssl.SSLWantReadError:
                return count or None
            except ssl.SSLWantWriteError:
                self._read_wants_write = True
                return count or None
            except OSError as error:
                if not count:
                    raise
                self._read_error = error
                return count
            self._ended = got == 0
            count += got
        return count

    def send(self, out: Outgoing) -> bool:
        """Piece by piece, as long as the line takes them."""
        moved = False
        while out:
            head = out[0]
            if isinstance(head, FileRange):
                raise TypeError("what is to be encrypted has to be read first")
            if head:
                try:
                    sent = self._tls.send(head[:PIECE_BYTES])
                except ssl.SSLWantWriteError:
                    return moved
                except ssl.SSLWantReadError:
                    self._write_wants_read = True
                    return moved
                moved = moved or sent > 0
                if sent < len(head):
                    out[0] = head[sent:]
                    continue
            out.popleft()
        return moved

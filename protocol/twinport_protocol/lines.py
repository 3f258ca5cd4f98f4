"""Bounded lines: bytes in, whole lines out.

One rule for every dialect: LF ends a line, one CR before it is dropped, any other CR is the business of the parser that reads
the line (no word may hold one). A line is bounded; what follows an unfinished line that is too long is never kept.
"""

from __future__ import annotations

from .errors import ErrorCode, RemoteProtocolError


class LineBuffer:
    """Cuts a byte stream into lines of at most ``max_bytes`` bytes, line end not counted.

    Holds at most what was fed and not yet popped; a caller that feeds only after :meth:`pop` returned ``None`` holds at most
    one line and one read.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._scanned = 0

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes as they came from the connection."""
        self._buffer += data

    def pop(self) -> bytes | None:
        """The next whole line without its end, or None. Raises ``RemoteProtocolError(LineTooLong)``, and again each time."""
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            # +1: a CR that waits for its LF does not count.
            if self._scanned > self._max_bytes + 1:
                del self._buffer[self._max_bytes + 2 :]
                self._scanned = len(self._buffer)
                raise RemoteProtocolError(ErrorCode.LINE_TOO_LONG)
            return None
        stop = end - 1 if end and self._buffer[end - 1] == 0x0D else end
        if stop > self._max_bytes:
            raise RemoteProtocolError(ErrorCode.LINE_TOO_LONG)
        line = bytes(self._buffer[:stop])
        del self._buffer[: end + 1]
        self._scanned = 0
        return line

"""Bounded lines: bytes in, whole lines out.

One rule for every dialect: LF ends a line, one CR before it is dropped, any other CR is the business of the parser
that reads the line (no word may hold one). A line is bounded; of a line that is too long, and of what follows it,
nothing is kept.
"""

from __future__ import annotations

from .errors import ErrorCode, RemoteProtocolError

_CR = 0x0D


class LineBuffer:
    """Cuts a byte stream into lines of at most ``max_bytes`` bytes, line end not counted.

    Holds at most what was fed and not yet popped; a caller that feeds only after :meth:`pop` returned ``None`` holds at
    most one line and one read. After a line that was too long it holds nothing and takes nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._spent = False

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes as they came from the connection."""
        if not self._spent:
            self._buffer += data

    def pop(self) -> bytes | None:
        """The next whole line without its end, or None.

        Raises ``RemoteProtocolError(LineTooLong)``, and then again each time.
        """
        end = self._buffer.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._buffer)
            # +1: a CR that waits for its LF does not count.
            if self._spent or self._scanned > self._max_bytes + 1:
                raise self._too_long()
            return None
        stop = end - 1 if end and self._buffer[end - 1] == _CR else end
        if stop > self._max_bytes:
            raise self._too_long()
        line = bytes(self._buffer[:stop])
        del self._buffer[: end + 1]
        self._scanned = 0
        return line

    def _too_long(self) -> RemoteProtocolError:
        self._spent = True
        self._buffer.clear()
        self._scanned = 0
        return RemoteProtocolError(ErrorCode.LINE_TOO_LONG)

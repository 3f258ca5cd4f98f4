"""Counts TLS records as they come in, by the one thing of them that is not encrypted: their length (RFC 8446 §5)."""

from __future__ import annotations

_HEADER_BYTES = 5
_LENGTH_AT = 3


class RecordCounter:
    """``count`` is how many records have begun in what was fed. Of bytes that are no TLS it says nothing."""

    __slots__ = ("_header", "_left", "count")

    def __init__(self) -> None:
        self.count = 0
        self._header = b""
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Bytes as they came from the connection, cut anywhere."""
        at = 0
        while at < len(data):
            if self._left:
                skipped = min(self._left, len(data) - at)
                self._left -= skipped
                at += skipped
                continue
            taken = data[at : at + _HEADER_BYTES - len(self._header)]
            self._header += taken
            at += len(taken)
            if len(self._header) == _HEADER_BYTES:
                self.count += 1
                self._left = int.from_bytes(self._header[_LENGTH_AT:], "big")
                self._header = b""

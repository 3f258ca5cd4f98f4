"""A pool of buffers: busy channels borrow one, idle ones hold none, so memory follows the work, not the connections."""

from __future__ import annotations

import threading

LARGE_AT_ONCE = 128
SMALL_BYTES = 32 * 1024


class BufferPool:
    """Buffers of ``size_bytes`` for the first ``large_at_once`` who borrow; keeps at most ``keep`` idle ones.

    Whoever comes when all of those are out gets one of ``SMALL_BYTES`` and works in smaller steps: nobody waits, as a
    borrower may hold on to its buffer for as long as its client does not read. Thread-safe.
    """

    def __init__(self, size_bytes: int, keep: int, large_at_once: int = LARGE_AT_ONCE) -> None:
        self._size_bytes = size_bytes
        self._keep = keep
        self._left = large_at_once
        self._lock = threading.Lock()
        self._idle: list[bytearray] = []

    def take(self) -> bytearray:
        """Borrow a buffer; its contents are whatever they are."""
        with self._lock:
            if self._left <= 0 and self._size_bytes > SMALL_BYTES:
                return bytearray(SMALL_BYTES)
            self._left -= 1
            if self._idle:
                return self._idle.pop()
        return bytearray(self._size_bytes)

    def give(self, buffer: bytearray) -> None:
        """Return a borrowed buffer; no view of it may be in use any more."""
        if len(buffer) < self._size_bytes:
            return
        with self._lock:
            self._left += 1
            if len(self._idle) < self._keep:
                self._idle.append(buffer)

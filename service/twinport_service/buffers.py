"""A pool of equal buffers: busy channels borrow one, idle ones hold none, so memory follows the work and not the
connections."""

from __future__ import annotations

import threading


class BufferPool:
    """Buffers of ``size_bytes``; keeps at most ``keep`` idle ones. Thread-safe."""

    def __init__(self, size_bytes: int, keep: int) -> None:
        self.size_bytes = size_bytes
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[bytearray] = []

    def take(self) -> bytearray:
        """Borrow a buffer; its contents are whatever they are."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return bytearray(self.size_bytes)

    def give(self, buffer: bytearray) -> None:
        """Return a borrowed buffer; no view of it may be in use any more."""
        with self._lock:
            if len(self._idle) < self._keep:
                self._idle.append(buffer)

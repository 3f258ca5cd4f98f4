"""Room: a floor of free disk that uploads must leave.

A large upload has its blocks before it is answered, so asking the file system decides. A small one is answered from
memory: it is judged by a figure that is at most ``fresh_seconds`` old, less what was let through since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from twinport_protocol.errors import ErrorCode, Refusal

FRESH_SECONDS = 0.25


class Room:
    """See the module. ``free_bytes`` may block; None is a storage without such a bound. Thread-safe."""

    def __init__(
        self,
        free_bytes: Callable[[], int | None],
        min_free_bytes: int,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = free_bytes
        self._min_free_bytes = min_free_bytes
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known_bytes = 0
        self._stale_at = float("-inf")

    @property
    def is_fresh(self) -> bool:
        """Whether :meth:`take` will not look at the disk."""
        return not self._min_free_bytes or self._clock() < self._stale_at

    def take(self, size_bytes: int) -> None:
        """Let a small upload through; ``DiskFull`` when it would not leave the floor. May look at the disk."""
        if not self._min_free_bytes:
            return
        with self._lock:
            if self._clock() >= self._stale_at:
                free_bytes = self._free_bytes()
                self._known_bytes = 2**63 if free_bytes is None else free_bytes
                self._stale_at = self._clock() + self._fresh_seconds
            if self._known_bytes - size_bytes < self._min_free_bytes:
                raise Refusal(ErrorCode.DISK_FULL, f"{self._min_free_bytes} bytes are to stay free")
            self._known_bytes -= size_bytes

    def check(self, size_bytes: int) -> None:
        """``DiskFull`` unless that many more bytes leave the floor now. Looks at the disk."""
        if self._min_free_bytes:
            free_bytes = self._free_bytes()
            if free_bytes is not None and free_bytes - size_bytes < self._min_free_bytes:
                raise Refusal(ErrorCode.DISK_FULL, f"{self._min_free_bytes} bytes are to stay free")

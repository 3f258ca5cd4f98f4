"""Room: floors of free disk and of free inodes that uploads and new directories must leave.

A large upload has its blocks before it is answered, so asking the file system decides. A small one is answered from
memory: it is judged by figures that are at most ``fresh_seconds`` old, less what was let through since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, Refusal

FRESH_SECONDS = 0.25
DIRECTORY_BYTES = 4096
"""What a new directory counts for: the block it takes on most disks."""
_UNBOUNDED = 2**63


@dataclass(frozen=True)
class Floors:
    """What is to stay free; 0 is no floor. ``files`` are inodes: one for each file and directory."""

    free_bytes: int = 0
    free_files: int = 0


class Room:
    """See the module. ``free_bytes`` and ``free_files`` may block; None is a storage without such a bound.
    Thread-safe."""

    def __init__(
        self,
        free_bytes: Callable[[], int | None],
        free_files: Callable[[], int | None],
        floors: Floors,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = free_bytes
        self._free_files = free_files
        self._floors = floors
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._known_bytes = 0
        self._known_files = 0
        self._stale_at = float("-inf")

    @property
    def _is_bounded(self) -> bool:
        return bool(self._floors.free_bytes or self._floors.free_files)

    @property
    def is_fresh(self) -> bool:
        """Whether :meth:`take` will not look at the disk."""
        return not self._is_bounded or self._clock() < self._stale_at

    def take(self, size_bytes: int, files: int = 1) -> None:
        """Let small uploads or a directory through; ``DiskFull`` when they would not leave the floors. May look at the
        disk."""
        if not self._is_bounded:
            return
        with self._lock:
            if self._clock() >= self._stale_at:
                self._known_bytes, self._known_files = self._look()
                self._stale_at = self._clock() + self._fresh_seconds
            self._require(self._known_bytes - size_bytes, self._known_files - files)
            self._known_bytes -= size_bytes
            self._known_files -= files

    def check(self, size_bytes: int, files: int = 1) -> None:
        """``DiskFull`` unless that many more bytes and files leave the floors now. Looks at the disk."""
        if self._is_bounded:
            free_bytes, free_files = self._look()
            self._require(free_bytes - size_bytes, free_files - files)

    def _look(self) -> tuple[int, int]:
        free_bytes = self._free_bytes() if self._floors.free_bytes else None
        free_files = self._free_files() if self._floors.free_files else None
        return _UNBOUNDED if free_bytes is None else free_bytes, _UNBOUNDED if free_files is None else free_files

    def _require(self, bytes_left: int, files_left: int) -> None:
        if self._floors.free_bytes and bytes_left < self._floors.free_bytes:
            raise Refusal(ErrorCode.DISK_FULL, f"{self._floors.free_bytes} bytes are to stay free")
        if self._floors.free_files and files_left < self._floors.free_files:
            raise Refusal(ErrorCode.DISK_FULL, f"{self._floors.free_files} inodes are to stay free")

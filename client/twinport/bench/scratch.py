"""What lies on this side while it is measured."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from twinport.errors import local_failure

PREFIX = "twinport-bench-"
_BLOCK_BYTES = 4 * 1024 * 1024
_TURN_BYTES = 1_234_577


class LocalScratch:
    """Files to send, of bytes that no compression makes smaller, in a directory of its own. ``OSError`` is told as the
    library's own errors are."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        # One random block, turned otherwise each time it is used: random enough, and quicker than the disk.
        self._block = os.urandom(_BLOCK_BYTES)
        self._turns = 0

    def make_files(self, name: str, count: int, size_bytes: int) -> list[str]:
        """So many files in a directory ``name``, none of them called as one in another; their paths."""
        with self._told(name):
            place = self.directory / name
            place.mkdir(exist_ok=True)
            paths = [str(place / f"{name}-{number:04}") for number in range(count)]
            for path in paths:
                with open(path, "wb") as file:
                    left = size_bytes
                    while left > 0:
                        left -= file.write(self._next_piece(left))
            return paths

    def _next_piece(self, most_bytes: int) -> memoryview:
        self._turns += 1
        at = self._turns * _TURN_BYTES % _BLOCK_BYTES
        return memoryview(self._block)[at : at + min(most_bytes, _BLOCK_BYTES)]

    def place(self, name: str) -> Path:
        """A directory to fetch into."""
        with self._told(name):
            place = self.directory / name
            place.mkdir(exist_ok=True)
            return place

    def remove(self, name: str) -> None:
        """A directory that is needed no more."""
        import shutil  # noqa: PLC0415  # only here

        shutil.rmtree(self.directory / name, ignore_errors=True)

    def flush_seconds(self, tries: int = 3) -> float:
        """What flushing a tiny file to this disk takes, the quickest of some tries."""
        with self._told("flush"):
            found: list[float] = []
            for _ in range(tries):
                with open(self.directory / "flush", "wb") as file:
                    file.write(b"x")
                    file.flush()
                    began = time.perf_counter()
                    os.fsync(file.fileno())
                    found.append(time.perf_counter() - began)
            return min(found)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_failure(f"cannot write to {self.directory / name}", error) from None

"""What lies on both sides while it is measured, and taking it away again, whatever happened meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twinport.errors import DeniedError, NetworkError, NotFoundError, TwinportError, local_failure

if TYPE_CHECKING:
    from twinport.client import Client

PREFIX = "twinport-bench-"
_BLOCK_BYTES = 4 * 1024 * 1024
_TURN_BYTES = 1_234_577
_LOOKS = 3
_PAUSE_SECONDS = 0.3


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


class RemoteScratch:
    """A directory of its own below ``above`` on the server. Every name that is sent goes through :meth:`begin` first,
    so that it can be taken away again."""

    def __init__(self, client: Client, above: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._above = above.strip("/")
        self._made: list[str] = []
        self._names: list[str] = []
        self._unfinished: set[str] = set()
        self._uploads: list[str] = []
        self._sleep = sleep
        base = PREFIX + secrets.token_hex(6)
        self.name = f"{self._above}/{base}" if self._above else base

    def make(self) -> None:
        """Make it; what is missing of the directories above is made, and will be removed too. ``DeniedError``."""
        parts = self._above.split("/") if self._above else []
        for count in range(1, len(parts) + 1):
            name = "/".join(parts[:count])
            try:
                self._client.stat(name)
            except NotFoundError:
                self._made.append(name)
            except DeniedError:
                continue  # what may not be looked at is there, or making the rest will say what is wrong
        self._made.append(self.name)
        try:
            self._client.mkdir(self.name)
        except DeniedError as error:
            self._made.clear()
            where = f"{self._above}/" if self._above else "the server's top directory"
            text = f"cannot measure in {where}: you may not write there; name a directory where you may with --to"
            hint = error.message.partition("]; ")[2]
            raise DeniedError(f"{text}; {hint}" if hint else text, error.code) from None
        except TwinportError:
            self._made.clear()
            raise

    def new_upload_id(self) -> str:
        """For the client's uploads; kept, to give up those that are interrupted."""
        self._uploads.append(os.urandom(16).hex())
        return self._uploads[-1]

    def begin(self, below: str, paths: list[str]) -> str:
        """Files are about to be sent to a directory ``below``: what it is called on the server."""
        place = f"{self.name}/{below}"
        names = [f"{place}/{os.path.basename(path)}" for path in paths]
        self._names += names
        self._unfinished.update(names)
        return place

    def finish(self, names: list[str]) -> None:
        """These are there, and nothing of them is under way any more."""
        self._unfinished.difference_update(names)

    def remove(self) -> tuple[str, ...]:
        """Take it all away; the names of what could not be.

        After an interrupted transfer what was on its way may still arrive: then it is looked for more than once.
        """
        looks = _LOOKS if self._unfinished else 1
        left: tuple[str, ...] = ()
        try:
            for look in range(looks):
                if look:
                    self._sleep(_PAUSE_SECONDS)
                if self._unfinished:
                    self._client.abandon(self._uploads)
                left = self._remove_once()
        except NetworkError:
            return tuple(reversed(self._made))
        return left

    def _remove_once(self) -> tuple[str, ...]:
        left: list[str] = []
        self._client.delete_files(self._names)
        for name in reversed(self._made):
            try:
                self._client.delete(name, recursive=name == self.name)
            except NotFoundError:
                continue
            except NetworkError:
                raise
            except TwinportError as error:
                if name == self.name or error.code != "NotEmpty":  # somebody else's files by now
                    left.append(name)
        return tuple(left)

"""The files that are moved, and whether what arrived is what was sent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

_BLOCK_BYTES = 1024 * 1024


class WrongResultError(Exception):
    """What arrived is not what was sent."""


@dataclass(frozen=True)
class Input:
    """A file, or the files of a directory, and their digests by name."""

    path: Path
    digests: dict[str, bytes]

    @property
    def sources(self) -> list[Path]:
        """The files one by one."""
        return [self.path / name for name in self.digests] if self.path.is_dir() else [self.path]


def make_input(directory: Path, files: int, file_bytes: int) -> Input:
    """New random files, in the page cache and on the disk."""
    if files == 1:
        path = directory / "file"
        _write(path, file_bytes)
        return Input(path, {"file": digest(path)})
    path = directory / "tree"
    path.mkdir()
    names = [f"{number:06}" for number in range(files)]
    for name in names:
        _write(path / name, file_bytes)
    return Input(path, {name: digest(path / name) for name in names})


def _write(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for at in range(0, size, _BLOCK_BYTES):
            file.write(os.urandom(min(_BLOCK_BYTES, size - at)))


def digest(path: Path) -> bytes:
    """The BLAKE3 digest of a file."""
    hasher = blake3(max_threads=blake3.AUTO)
    if path.stat().st_size < _BLOCK_BYTES:
        return hasher.update(path.read_bytes()).digest()
    return hasher.update_mmap(path).digest()


def check_file(name: str, wanted: bytes, path: Path) -> None:
    """Raises :class:`WrongResultError` unless a file is there and whole."""
    if not path.is_file():
        raise WrongResultError(f"{name} did not arrive")
    if digest(path) != wanted:
        raise WrongResultError(f"{name} arrived, but is not what was sent")


def check_tree(wanted: dict[str, bytes], directory: Path) -> None:
    """Raises :class:`WrongResultError` unless a directory holds exactly the files that were sent, each whole."""
    found = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if found != set(wanted):
        raise WrongResultError(f"{len(wanted)} files were sent, {len(found)} arrived")
    for name, expected in wanted.items():
        check_file(name, expected, directory / name)

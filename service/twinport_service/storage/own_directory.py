"""The storage's own place below the root: who may open it, and the mark that says whose it is.

Functions raise ``OSError`` besides what is named."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from twinport_protocol.names import RESERVED

from .disk_door import DiskDoor
from .staging import write_all
from .troubles import StorageInUse, StorageMissing, StorageUnknown

MARK = "storage"
FORMAT = "twinport storage 1"
_MARK_BYTES = 4096


def open_own_directory(door: DiskDoor, root_fd: int, root: Path, *, require_used: bool) -> int:
    """Open the storage's own place below a root, making it unless it must have been used before."""
    if not require_used:
        with suppress(FileExistsError):
            door.make_directory(root_fd, RESERVED, 0o700)
    try:
        own = door.open_at(root_fd, RESERVED, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if require_used:
                door.stat_at(own, MARK)
        except BaseException:
            door.drop(own)
            raise
        return own
    except FileNotFoundError:
        raise StorageMissing(f"{root} was never used by a Twinport storage; is its disk mounted?") from None
    except NotADirectoryError:
        raise StorageUnknown(f"{root / RESERVED} is not a directory; move it away") from None


def take_lock(door: DiskDoor, own: int, root: Path) -> int:
    """The descriptor that holds the lock. ``StorageInUse``."""
    lock = door.open_at(own, "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        door.lock(lock)
    except BlockingIOError:
        door.drop(lock)
        raise StorageInUse(
            f"{root} is served by another process (it holds {RESERVED}/lock there); stop it, or choose another root"
        ) from None
    return lock


def check_mark(door: DiskDoor, own: int, root: Path) -> None:
    """See that this version made the place, or mark it. ``StorageUnknown``."""
    try:
        fd = door.open_at(own, MARK, os.O_RDONLY)
    except FileNotFoundError:
        _write_mark(door, own)
        return
    try:
        mark = bytearray(_MARK_BYTES)
        count = door.read_into(fd, mark, 0)
    finally:
        door.close(fd)
    lines = mark[:count].decode("utf-8", "replace").splitlines()
    if lines[:1] != [FORMAT]:
        found = lines[0] if lines else "nothing"
        raise StorageUnknown(
            f"{root / RESERVED / MARK} says {found!r}, not {FORMAT!r}: written by another version; install that one"
        )


def _write_mark(door: DiskDoor, own: int) -> None:
    """Written whole or not at all: under another name first."""
    fd = door.open_at(own, MARK + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(door, fd, f"{FORMAT}\n{secrets.token_hex(16)}\n".encode(), 0)
        door.fsync(fd)
    finally:
        door.close(fd)
    door.rename(own, MARK + ".new", own, MARK)


def open_staging(door: DiskDoor, own: int) -> int:
    """Open the directory for uploads under way, making it if it is missing."""
    with suppress(FileExistsError):
        door.make_directory(own, "staging", 0o700)
    return door.open_at(own, "staging", os.O_RDONLY | os.O_DIRECTORY)

"""What goes wrong with a disk, in the words of the contract, and the one switch that makes a storage read-only.

    StorageError             the storage cannot be opened at all; the message says what to do
    ├── StorageInUse         another process serves the same root
    ├── StorageMissing       the root should have been used before, and was not: perhaps a disk is not mounted
    └── StorageUnknown       something stands in the storage's own place that this version did not make

Everything that goes wrong later is a ``Refusal``.
"""

from __future__ import annotations

import errno
import sqlite3

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.log import get_log

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CODES = {
    **dict.fromkeys(_FULL, ErrorCode.DISK_FULL),
    errno.ENOENT: ErrorCode.FILE_NOT_FOUND,
    errno.ENOTDIR: ErrorCode.NAME_CONFLICT,
    errno.EISDIR: ErrorCode.NAME_CONFLICT,
    errno.ENOTEMPTY: ErrorCode.NOT_EMPTY,
    errno.EEXIST: ErrorCode.EXISTS,
    errno.ENAMETOOLONG: ErrorCode.INVALID_NAME,
    errno.EILSEQ: ErrorCode.INVALID_NAME,
    errno.EROFS: ErrorCode.READ_ONLY,
    errno.EMFILE: ErrorCode.BUSY,
    errno.ENFILE: ErrorCode.BUSY,
    # A symlink, a way out of the root, a socket, and what the server's own user may not touch.
    **dict.fromkeys((errno.ELOOP, errno.EXDEV, errno.ENXIO, errno.EACCES, errno.EPERM), ErrorCode.DENIED),
}


class StorageError(Exception):
    """The storage cannot be opened; the text is for the operator."""


class StorageInUse(StorageError):  # noqa: N818  named by the state it reports
    """Another process serves the same root."""


class StorageMissing(StorageError):  # noqa: N818  named by the state it reports
    """The root carries no mark of having been used before."""


class StorageUnknown(StorageError):  # noqa: N818  named by the state it reports
    """What stands in the storage's own place was not made by this version."""


def refusal_of(error: OSError) -> Refusal:
    """The refusal that an error of the file system is answered with."""
    return Refusal(_CODES.get(error.errno or 0, ErrorCode.STORAGE_FAULT), str(error))


def is_full(error: OSError) -> bool:
    """Whether an error says that there is no room."""
    return error.errno in _FULL


def refusal_of_database(error: sqlite3.Error) -> Refusal:
    """The refusal that an error of the storage's database is answered with."""
    is_no_room = "full" in str(error)
    return Refusal(ErrorCode.DISK_FULL if is_no_room else ErrorCode.STORAGE_FAULT, f"manifests.db: {error}")


class Health:
    """Whether the storage may still be written to. One failed flush ends that until a restart.

    After a failed fsync the kernel marks the lost pages clean: asking again would succeed and mean nothing.
    """

    def __init__(self) -> None:
        self._cause: str | None = None

    @property
    def is_read_only(self) -> bool:
        """Whether a flush has failed."""
        return self._cause is not None

    def check_writable(self) -> None:
        """``ReadOnly`` after a failed flush."""
        if self._cause is not None:
            raise Refusal(ErrorCode.READ_ONLY, self._cause)

    def fail(self, what: str, error: BaseException) -> None:
        """A flush has failed: take no more writes."""
        if self._cause is None:
            self._cause = f"{what}: {error}"
            get_log().error("[STORAGE] A flush failed; the storage is read-only until a restart", cause=self._cause)

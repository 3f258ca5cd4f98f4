"""Bundles: many small files in one frame, up (``PUT_MANY``) and down (``GET_MANY``, answered by ``FILES``).

What a small file costs is not its bytes but the commands, tickets, attachments and frames about it. A bundle has none
of them for each file: one ticket, given by the command ``BUNDLE``, stands for all small files of its user.

    PUT_MANY, for each file    id 16 | flags 1 | mtime 8 | size 4 | name length 2 | digest 32 | name | bytes
    ACKS, for each of them     status 2
    GET_MANY, for each file    name length 2 | name
    FILES, for each of them    status 2 | flags 1 | mtime 8 | size 4 | digest 32 | bytes

All numbers are big-endian. A record says of its file all that the commands of the ordinary way would, so whatever is
refused here can be asked for again there, under the same upload id.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from .errors import ErrorCode, RemoteProtocolError
from .segments import DIGEST_BYTES

MAX_BUNDLE_FILES: Final = 1024
MAX_NAMES_BYTES: Final = 64 * 1024
"""The body of a ``GET_MANY``."""
UPLOAD_ID_BYTES: Final = 16
RECORD_BYTES: Final = 96
"""What a record needs beside name and bytes, at most."""

_UPLOADED: Final = struct.Struct(f"!{UPLOAD_ID_BYTES}sBqIH{DIGEST_BYTES}s")
_NAME: Final = struct.Struct("!H")
_FETCHED: Final = struct.Struct(f"!HBqI{DIGEST_BYTES}s")
_STATUS: Final = struct.Struct("!H")
_EXECUTABLE: Final = 1
_IF_ABSENT: Final = 2
_NO_DIGEST: Final = bytes(DIGEST_BYTES)

Buffer = bytes | bytearray | memoryview


class UploadedFile(NamedTuple):
    """One file of a ``PUT_MANY``. ``name`` is not judged yet, ``data`` is not compared with ``digest`` yet."""

    upload_id: bytes
    name: bytes
    mtime_ns: int
    executable: bool
    if_absent: bool
    digest: bytes
    data: Buffer


class FetchedFile(NamedTuple):
    """One file of a ``FILES``: ``status`` 0 and all the rest, or the number of an error code and nothing else."""

    status: int
    mtime_ns: int
    executable: bool
    digest: bytes
    data: Buffer


def is_recordable(mtime_ns: int) -> bool:
    """Whether a record has room for that time: one of 1677 to 2262. A file of another goes by itself."""
    return -(2**63) <= mtime_ns < 2**63


def uploaded_head(
    upload_id: bytes, name: bytes, mtime_ns: int, size: int, digest: bytes, *, executable: bool, if_absent: bool
) -> bytes:
    """What stands before the bytes of one file in a ``PUT_MANY``."""
    flags = _EXECUTABLE * executable + _IF_ABSENT * if_absent
    return _UPLOADED.pack(upload_id, flags, mtime_ns, size, len(name), digest) + name


def decode_uploaded(body: Buffer) -> list[UploadedFile]:
    """The files of a ``PUT_MANY``, their bytes as views into ``body``. ``RemoteProtocolError(BadRequest)`` for none,
    too many, unknown flags, or lengths that do not add up."""
    view = memoryview(body)
    files: list[UploadedFile] = []
    at, end = 0, len(view)
    while at < end:
        if end - at < _UPLOADED.size or len(files) == MAX_BUNDLE_FILES:
            raise _broken("a bundle of a broken length")
        upload_id, flags, mtime_ns, size, name_bytes, digest = _UPLOADED.unpack_from(view, at)
        name_at = at + _UPLOADED.size
        data_at = name_at + name_bytes
        at = data_at + size
        if at > end or flags & ~(_EXECUTABLE | _IF_ABSENT):
            raise _broken("a file beyond its bundle, or unknown flags")
        files.append(
            UploadedFile(
                upload_id,
                bytes(view[name_at:data_at]),
                mtime_ns,
                bool(flags & _EXECUTABLE),
                bool(flags & _IF_ABSENT),
                digest,
                view[data_at:at],
            )
        )
    if not files:
        raise _broken("an empty bundle")
    return files


def encode_statuses(statuses: Iterable[int]) -> bytes:
    """The body of ``ACKS``."""
    return b"".join(map(_STATUS.pack, statuses))


def decode_statuses(body: bytes) -> list[int]:
    """The statuses of ``ACKS``. ``RemoteProtocolError(BadRequest)``."""
    if len(body) % _STATUS.size:
        raise _broken("statuses of a broken length")
    return [status for (status,) in _STATUS.iter_unpack(body)]


def encode_names(names: Iterable[bytes]) -> bytes:
    """The body of ``GET_MANY``."""
    return b"".join(_NAME.pack(len(name)) + name for name in names)


def count_names(body: bytes) -> int:
    """How many names a ``GET_MANY`` has. ``RemoteProtocolError(BadRequest)`` for none, too many, or lengths that do not
    add up."""
    count = at = 0
    end = len(body)
    while at < end:
        if end - at < _NAME.size or count == MAX_BUNDLE_FILES:
            raise _broken("names of a broken length")
        at += _NAME.size + int(_NAME.unpack_from(body, at)[0])
        count += 1
    if at != end or not count:
        raise _broken("no names, or one beyond its frame")
    return count


def iterate_names(body: bytes) -> Iterator[bytes]:
    """The names of a ``GET_MANY`` that was counted, not judged yet. One by one: all at once would be many times the
    memory of ``body``, for as long as they wait."""
    at = 0
    while at < len(body):
        name_at = at + _NAME.size
        at = name_at + int(_NAME.unpack_from(body, at)[0])
        yield body[name_at:at]


def fetched_head(mtime_ns: int, size: int, digest: bytes, *, executable: bool) -> bytes:
    """What stands before the bytes of one file in a ``FILES``."""
    return _FETCHED.pack(0, _EXECUTABLE * executable, mtime_ns, size, digest)


def fetched_refusal(code: ErrorCode) -> bytes:
    """The record of a file that is not sent."""
    return _FETCHED.pack(code.number, 0, 0, 0, _NO_DIGEST)


def decode_fetched(body: Buffer) -> list[FetchedFile]:
    """The files of a ``FILES``, their bytes as views into ``body``. ``RemoteProtocolError(BadRequest)``."""
    view = memoryview(body)
    files: list[FetchedFile] = []
    at, end = 0, len(view)
    while at < end:
        if end - at < _FETCHED.size:
            raise _broken("files of a broken length")
        status, flags, mtime_ns, size, digest = _FETCHED.unpack_from(view, at)
        data_at = at + _FETCHED.size
        at = data_at + size
        if at > end or flags & ~_EXECUTABLE or (status and size):
            raise _broken("a file beyond its frame, or one that is and is not sent")
        files.append(FetchedFile(status, mtime_ns, bool(flags & _EXECUTABLE), digest, view[data_at:at]))
    return files


def _broken(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.BAD_REQUEST, detail)

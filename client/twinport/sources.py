"""Local files to send: what they were when they were found, and whether they still are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from twinport_protocol.segments import Layout, Manifest, digest_of

_READ_BYTES = 1024 * 1024
# O_NONBLOCK: a pipe put in the place of a file must not hang the open.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class SourceChangedError(Exception):
    """The file is not what it was when it was found."""


@dataclass(frozen=True)
class SourceFile:
    """A regular file as it was when it was found; ``name`` is what it shall be called on the server."""

    path: str
    name: str
    size: int
    mtime_ns: int
    executable: bool
    device: int
    inode: int

    @classmethod
    def of(cls, path: str, name: str, found: os.stat_result) -> SourceFile:
        """The source that ``found`` (of ``path``) describes."""
        return cls(
            path, name, found.st_size, found.st_mtime_ns, bool(found.st_mode & stat.S_IXUSR), found.st_dev, found.st_ino
        )

    def check(self, descriptor: int) -> None:
        """Raises ``SourceChangedError`` unless the open file is the one that was found, unchanged."""
        now = os.fstat(descriptor)
        if (
            now.st_size != self.size
            or now.st_mtime_ns != self.mtime_ns
            or now.st_ino != self.inode
            or now.st_dev != self.device
            or not stat.S_ISREG(now.st_mode)
        ):
            raise SourceChangedError(self.path)

    def open(self) -> int:
        """A descriptor for reading. ``OSError``; ``SourceChangedError`` when another file is there by now."""
        descriptor = os.open(self.path, _OPEN_FLAGS)
        try:
            self.check(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read_whole(self) -> bytes:
        """All bytes of a small file, checked before and after reading."""
        descriptor = self.open()
        try:
            data = os.read(descriptor, self.size + 1) if self.size else b""
            while 0 < len(data) < self.size:
                more = os.read(descriptor, self.size - len(data))
                if not more:
                    break
                data += more
            if len(data) != self.size:
                raise SourceChangedError(self.path)
            self.check(descriptor)
            return data
        finally:
            os.close(descriptor)


def find_source(path: str, name: str) -> SourceFile:
    """The source at ``path``, a regular file; a symlink is followed. ``OSError``; ``SourceChangedError`` if not
    regular."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise SourceChangedError(path)
    return SourceFile.of(path, name, found)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill ``buffer`` from ``offset``; ``SourceChangedError`` where the file ends before."""
    at = 0
    while at < len(buffer):
        count = os.preadv(descriptor, [buffer[at:]], offset + at)
        if count == 0:
            raise SourceChangedError
        at += count


def hash_file(path: str) -> Manifest:
    """The manifest of a local file, made in one pass. ``OSError``; ``SourceChangedError`` if it changes meanwhile."""
    source = find_source(path, path)
    descriptor = source.open()
    try:
        layout = Layout.of(source.size)
        buffer = memoryview(bytearray(min(_READ_BYTES, max(1, source.size))))
        digests = [
            digest_range(descriptor, layout.start(segment), layout.length(segment), buffer)
            for segment in range(layout.count)
        ]
        source.check(descriptor)
        return Manifest(source.size, b"".join(digests))
    finally:
        os.close(descriptor)


def digest_range(descriptor: int, start: int, length: int, buffer: memoryview) -> bytes:
    """The digest of a range of a file, read through ``buffer``. ``SourceChangedError`` where the file ends before."""
    from blake3 import blake3  # noqa: PLC0415  # --help must not pay for the hash

    if length <= len(buffer):
        read_into(descriptor, buffer[:length], start)
        return digest_of(buffer[:length])
    hasher = blake3()
    at = 0
    while at < length:
        piece = buffer[: min(len(buffer), length - at)]
        read_into(descriptor, piece, start + at)
        hasher.update(piece)
        at += len(piece)
    return hasher.digest()

"""Segments, manifests and roots: how a file is cut, and the one value that stands for all of its bytes.

The segment size is a function of the file size alone, so both ends cut alike without asking: 8 MiB, doubled until a
file has at most 10,000 segments. The *manifest* is the list of the segments' BLAKE3 digests. The *root* of a file of
one segment is its plain BLAKE3 digest (what ``b3sum`` prints); that of a larger file is a BLAKE3 hash with a context of
its own (``derive_key``) over size, segment size and list.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from blake3 import blake3

from .errors import ErrorCode, RemoteProtocolError
from .numbers import MAX_SIZE

MIN_SEGMENT_BYTES = 8 * 1024 * 1024
MAX_SEGMENTS = 10_000
DIGEST_BYTES = 32
MANIFEST_CONTEXT = "twinport manifest v1"
EMPTY_DIGEST = blake3().digest()


def digest_of(data: bytes | bytearray | memoryview) -> bytes:
    """The BLAKE3 digest (32 bytes) of ``data``."""
    return blake3(data).digest()


def segment_size_for(file_bytes: int) -> int:
    """The segment size in bytes of a file of ``file_bytes`` bytes."""
    size = MIN_SEGMENT_BYTES
    while size * MAX_SEGMENTS < file_bytes:
        size *= 2
    return size


@dataclass(frozen=True)
class Layout:
    """How a file of ``file_bytes`` bytes is cut. An empty file is one segment of length 0."""

    file_bytes: int
    segment_bytes: int
    count: int

    @classmethod
    def of(cls, file_bytes: int) -> Layout:
        """The layout of a file size; ``ValueError`` outside 0…2^63-1."""
        if file_bytes <= MIN_SEGMENT_BYTES and file_bytes >= 0:
            return cls(file_bytes, MIN_SEGMENT_BYTES, 1)
        if not 0 <= file_bytes <= MAX_SIZE:
            raise ValueError(f"file size {file_bytes} is outside 0..2^63-1")
        size = segment_size_for(file_bytes)
        return cls(file_bytes, size, -(-file_bytes // size))

    def start(self, segment: int) -> int:
        """The offset in the file, in bytes, at which ``segment`` begins."""
        return segment * self.segment_bytes

    def length(self, segment: int) -> int:
        """The length of ``segment`` in bytes; ``IndexError`` outside 0…count-1."""
        if not 0 <= segment < self.count:
            raise IndexError(segment)
        return min(self.segment_bytes, self.file_bytes - segment * self.segment_bytes)


@dataclass(frozen=True)
class Manifest:
    """The digests of a whole file, in order: ``digests`` is their concatenation, 32 bytes each."""

    file_bytes: int
    digests: bytes

    @property
    def layout(self) -> Layout:
        """How the file is cut."""
        return Layout.of(self.file_bytes)

    @property
    def root(self) -> bytes:
        """The file's root, 32 bytes."""
        return root_of(self.file_bytes, self.digests)

    def digest(self, segment: int) -> bytes:
        """The digest of one segment."""
        return self.digests[segment * DIGEST_BYTES : (segment + 1) * DIGEST_BYTES]

    @classmethod
    def checked(cls, file_bytes: int, digests: bytes, root: bytes) -> Manifest:
        """The manifest, if ``digests`` is of the right length and adds up to ``root``; else ``RootMismatch``."""
        if len(digests) != Layout.of(file_bytes).count * DIGEST_BYTES or root_of(file_bytes, digests) != root:
            raise RemoteProtocolError(ErrorCode.ROOT_MISMATCH)
        return cls(file_bytes, digests)


def root_of(file_bytes: int, digests: bytes) -> bytes:
    """The root of a file of ``file_bytes`` bytes whose segment digests, concatenated, are ``digests``."""
    layout = Layout.of(file_bytes)
    if layout.count == 1:
        return bytes(digests)
    hasher = blake3(derive_key_context=MANIFEST_CONTEXT)
    hasher.update(struct.pack("!QQ", file_bytes, layout.segment_bytes))
    hasher.update(digests)
    return hasher.digest()

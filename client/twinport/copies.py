"""Comparing what is here already with what the server has, by hashing it now."""

from __future__ import annotations

import os
import stat

from blake3 import blake3
from twinport_protocol.segments import root_of

from .download_job import DownloadJob
from .engine import Order
from .partials import Partial
from .sources import SourceChangedError, digest_range
from .target_tree import TargetTree


def is_target(tree: TargetTree, job: DownloadJob, buffer: memoryview) -> bool:
    """Whether the target has the file's size, time, executable bit and, hashed through ``buffer``, its root.
    ``OSError``."""
    parent, _, base = job.target.rpartition("/")
    directory = tree.hold(parent)
    try:
        found = os.stat(base, dir_fd=directory.descriptor, follow_symlinks=False)
        if (
            not stat.S_ISREG(found.st_mode)
            or found.st_size != job.size
            or found.st_mtime_ns != job.mtime_ns
            or bool(found.st_mode & stat.S_IXUSR) != job.executable
        ):
            return False
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(base, flags, dir_fd=directory.descriptor)
        try:
            layout = job.layout
            digests = [
                digest_range(descriptor, layout.start(segment), layout.length(segment), buffer)
                for segment in range(layout.count)
            ]
        finally:
            os.close(descriptor)
        return root_of(job.size, b"".join(digests)) == job.root
    except (FileNotFoundError, SourceChangedError):
        return False
    finally:
        tree.release(directory)


def hash_prefix(order: Order, partial: Partial | None, hasher: blake3, buffer: memoryview) -> int:
    """Feed ``hasher`` what an order's segment has before its offset; how many bytes that were."""
    return _hash(order, partial, order.job.layout.start(order.segment), order.offset, hasher, buffer)


def hash_segment(order: Order, partial: Partial | None, start: int, length: int, buffer: memoryview) -> bytes | None:
    """The digest of a whole segment of the partial; None where that is not there or no longer wanted."""
    hasher = blake3()
    return hasher.digest() if _hash(order, partial, start, length, hasher, buffer) == length else None


def _hash(order: Order, partial: Partial | None, start: int, length: int, hasher: blake3, buffer: memoryview) -> int:
    at = 0
    while at < length:
        piece = buffer[: min(len(buffer), length - at)]
        if not _read(order, partial, piece, start + at):
            break
        hasher.update(piece)
        at += len(piece)
    return at


def _read(order: Order, partial: Partial | None, piece: memoryview, offset: int) -> bool:
    if partial is None:
        return False
    with partial.lock:
        if order.is_stale or partial.descriptor < 0:
            return False
        at = 0
        while at < len(piece):
            count = os.preadv(partial.descriptor, [piece[at:]], offset + at)
            if count == 0:
                return False
            at += count
    return True

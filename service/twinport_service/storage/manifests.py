"""Manifests of files as they stand: from the catalogue, or made anew by hashing.

A file is hashed when it got there by other means or no longer looks as it was published. If it changes meanwhile,
hashing begins again, ``attempts`` times, then ``Changed``. A manifest is kept only if the file had rested for two
seconds: a change within the same tick of the file system's clock would leave no trace in its times.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.segments import DIGEST_BYTES, Layout, Manifest

from twinport_service.usage import UsageKeeper

from .catalogue import Catalogue
from .contract import HashingNeeded, SmallFile
from .disk_door import DiskDoor
from .rows import NewRow
from .staging import read_all
from .tree import Identity, Tree
from .troubles import refusal_of

READ_BYTES = 1024 * 1024
REST_NS = 2_000_000_000
_LOCKS = 16


@dataclass(frozen=True)
class KnownFile:
    """An open file whose manifest is known. The descriptor is the holder's to close."""

    fd: int
    identity: Identity
    mode: int
    manifest: Manifest


class Manifests:
    """See the module. ``publication_lock`` is the publisher's."""

    def __init__(
        self,
        door: DiskDoor,
        tree: Tree,
        catalogue: Catalogue,
        publication_lock: threading.Lock,
        usage: UsageKeeper,
        *,
        attempts: int = 4,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._door = door
        self._tree = tree
        self._catalogue = catalogue
        self._publication_lock = publication_lock
        self._usage = usage
        self._attempts = attempts
        self._now_ns = now_ns
        self._is_stopped = threading.Event()
        # So that a hundred downloads of a new file hash it once; one lock of many, so that others need not wait.
        self._hashing = [threading.Lock() for _ in range(_LOCKS)]

    def stop(self) -> None:
        """Hashing ends with ``ShuttingDown``, now and from now on."""
        self._is_stopped.set()

    def recorded(self, name: str, identity: Identity) -> Manifest | None:
        """The manifest in the catalogue, if it is that of the file which looks like this."""
        recent = self._catalogue.recent(name)
        if recent is not None and recent.matches(identity):
            return recent.manifest
        try:
            row = self._catalogue.current(name)
        except sqlite3.Error as error:
            raise Refusal(ErrorCode.STORAGE_FAULT, str(error)) from None
        return row.manifest if row is not None and row.matches(identity) else None

    def open(self, name: str, *, may_hash: bool = True) -> KnownFile:
        """The file under a name, with its manifest. ``FileNotFound``, ``Denied``, ``Changed``, ``StorageFault``;
        ``HashingNeeded`` where not ``may_hash``."""
        fd, identity, mode = self._tree.open_file(name)
        try:
            manifest = self.recorded(name, identity)
            if manifest is not None:
                return KnownFile(fd, identity, mode, manifest)
        except BaseException:
            self._door.drop(fd)
            raise
        self._door.drop(fd)
        if not may_hash:
            raise HashingNeeded
        with self._hashing[hash(name) % _LOCKS]:
            for _ in range(self._attempts):
                known = self._hash_once(name)
                if known is not None:
                    return known
        raise Refusal(ErrorCode.CHANGED, "the file changes faster than it can be hashed")

    def read_small(self, name: str, most_bytes: int) -> SmallFile:
        """A file of at most ``most_bytes`` with its bytes and its recorded root. Refusals as :meth:`open`;
        ``TooLarge``, ``HashingNeeded``."""
        fd, identity, mode = self._tree.open_file(name)
        try:
            if identity.size > most_bytes:
                raise Refusal(ErrorCode.TOO_LARGE, "not for a bundle")
            manifest = self.recorded(name, identity)
            if manifest is None:
                raise HashingNeeded
            data = bytearray(identity.size)
            if read_all(self._door, fd, memoryview(data), 0) != identity.size:
                raise Refusal(ErrorCode.CORRUPT, "the file was cut short")
        except OSError as error:
            raise refusal_of(error) from None
        finally:
            self._door.drop(fd)
        return SmallFile(data, identity.mtime_ns, bool(mode & stat.S_IXUSR), manifest.root)

    def _hash_once(self, name: str) -> KnownFile | None:
        with self._publication_lock:
            # Between a batch's rows and its renames the newest row speaks of a file that is not there yet.
            fd, identity, mode = self._tree.open_file(name)
        try:
            started_ns = self._now_ns()
            manifest = self.recorded(name, identity)
            if manifest is None:
                manifest = self._hash(fd, identity.size)
                if manifest is None or Identity.of(self._door.fstat(fd)) != identity:
                    self._door.drop(fd)
                    return None
                self._keep(name, identity, manifest, started_ns)
            return KnownFile(fd, identity, mode, manifest)
        except OSError as error:
            self._door.drop(fd)
            raise refusal_of(error) from None
        except BaseException:
            self._door.drop(fd)
            raise

    def _hash(self, fd: int, size: int) -> Manifest | None:
        layout = Layout.of(size)
        buffer = memoryview(bytearray(min(READ_BYTES, max(1, size))))
        digests: list[bytes] = []
        for segment in range(layout.count):
            hasher = blake3()
            position, end = layout.start(segment), layout.start(segment) + layout.length(segment)
            while position < end:
                if self._is_stopped.is_set():
                    raise Refusal(ErrorCode.SHUTTING_DOWN)
                count = self._door.read_into(fd, buffer[: min(len(buffer), end - position)], position)
                if not count:
                    return None
                hasher.update(buffer[:count])
                position += count
            digests.append(hasher.digest())
        return Manifest(size, b"".join(digests))

    def _keep(self, name: str, identity: Identity, manifest: Manifest, started_ns: int) -> None:
        if max(identity.ctime_ns, identity.mtime_ns) > started_ns - REST_NS:
            return
        digests = manifest.digests if len(manifest.digests) > DIGEST_BYTES else None
        row = NewRow(
            name,
            None,
            identity.size,
            identity.mtime_ns,
            identity.ctime_ns,
            identity.inode,
            manifest.root,
            digests,
            None,
        )
        with self._publication_lock:
            try:
                if Identity.of(self._tree.facts(name)) == identity:
                    # Changed in place by other means, it stays whose it was, with the size that it has now.
                    owned = self._catalogue.owner(name)
                    self._catalogue.record((row if owned is None else row._replace(user=owned.user),))
                    if owned is not None:
                        self._usage.resized(owned, identity.size)
            except (OSError, sqlite3.Error):
                return  # only a cache: the next one hashes again

"""The storage of the embedded server: plain files under a root on a local disk.

    ROOT/…                       the files, under their own names, as anybody may read them
    ROOT/.twinport/              0700, the storage's own place; no remote name leads there
        storage                  the mark: format version and this storage's id
        lock                     held (flock) while a server serves the root
        manifests.db             manifests and finished uploads
        staging/00…3f/           uploads under way

Everything on the way to a name is in one place each: :mod:`staging`, :mod:`small_files`, :mod:`staged_files`,
:mod:`publication`. Start: open the root, take the lock, open the database (the constructor; ``StorageError`` with a
text for the operator), then ``start``: decide the publications that a crash left open, drop stale staging, begin to
take commits. ``close`` finishes those.

A disk that is not mounted shows an empty directory. A storage that is known to have been used before should be opened
with ``require_used``: it then refuses a root without the mark, instead of writing to the disk beneath.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import RESERVED, RemoteName
from twinport_protocol.segments import Manifest

from twinport_service.usage import UsageBook, UsageKeeper

from .catalogue import Catalogue
from .contract import (
    SMALL_BYTES,
    Buffer,
    Entry,
    OnDone,
    OnProgress,
    Page,
    Published,
    SmallFile,
    UploadSpec,
    VersionInfo,
    WholeFile,
)
from .disk_door import DiskDoor
from .listing import Listing
from .manifests import Manifests
from .naming import Naming
from .own_directory import check_mark, open_own_directory, open_staging, take_lock
from .owners import Owners
from .publication import Commit, Publisher
from .recovery import resolve_names
from .small_files import SmallFlusher
from .staged_files import StagedFlusher
from .staging import Staging
from .tree import Identity, Tree
from .troubles import (
    Health,
    StorageError,
    StorageInUse,
    StorageMissing,
    StorageUnknown,
    refusal_of,
    refusal_of_database,
)
from .versions import LocalReader, Version, Versions

__all__ = [
    "DEFAULT_LIMITS",
    "Limits",
    "LocalStorage",
    "StorageError",
    "StorageInUse",
    "StorageMissing",
    "StorageUnknown",
]


@dataclass(frozen=True)
class Limits:
    """The bounds of a local storage."""

    small_files: int = 1024
    """Small commits under way; then ``commit_small`` blocks."""
    small_bytes: int = 64 * 1024 * 1024
    """Their bytes."""
    flush_threads: int = 2
    """Large commits flushed at once; more wait."""
    open_versions: int = 256
    """Descriptors kept for versions that are being downloaded."""
    open_stagings: int = 256
    """Descriptors kept for uploads under way."""
    staging_directories: int = 64
    """Over how many directories staging is spread, each with a descriptor."""
    cached_names: int = 500_000
    """Names kept sorted for listings."""


DEFAULT_LIMITS = Limits()


class LocalStorage:
    """See the module. ``door`` is the way to the disk; ``usage`` is told who has what; ``now`` and ``now_ns`` are the
    wall clock."""

    def __init__(
        self,
        root: Path,
        door: DiskDoor | None = None,
        *,
        require_used: bool = False,
        usage: UsageKeeper | None = None,
        limits: Limits = DEFAULT_LIMITS,
        now: Callable[[], float] = time.time,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._door = door = door or DiskDoor()
        self._health = Health()
        usage = UsageBook() if usage is None else usage
        with ExitStack() as undo:
            try:
                if not require_used:
                    os.makedirs(root, exist_ok=True)
                self._root_fd = door.open_root(os.fspath(root))
                undo.callback(door.drop, self._root_fd)
                own = open_own_directory(door, self._root_fd, root, require_used=require_used)
                undo.callback(door.drop, own)
                undo.callback(door.drop, take_lock(door, own, root))
                check_mark(door, own, root)
                self._catalogue = Catalogue(os.fspath(root / RESERVED / "manifests.db"), now=now)
                undo.callback(self._catalogue.close)
                staging_fd = open_staging(door, own)
                undo.callback(door.drop, staging_fd)
                self._staging = Staging(
                    door,
                    staging_fd,
                    self._health,
                    open_files=limits.open_stagings,
                    directories=limits.staging_directories,
                )
                undo.callback(self._staging.close)
                door.fsync_directory(own)
                door.fsync_directory(self._root_fd)
            except OSError as error:
                if require_used and isinstance(error, FileNotFoundError):
                    raise StorageMissing(f"the root {root} is not there; is its disk mounted?") from None
                reason = error.strerror or error
                raise StorageError(
                    f"the root {root} cannot be used: {reason}. Choose another --root or mend its rights."
                ) from error
            self._tree = Tree(door, self._root_fd)
            self._publisher = Publisher(
                door, self._tree, self._catalogue, self._staging, self._health, usage, now_ns=now_ns
            )
            lock = self._publisher.lock
            self._owners = Owners(self._tree, self._catalogue, lock, usage)
            self._manifests = Manifests(door, self._tree, self._catalogue, lock, usage, now_ns=now_ns)
            self._versions = Versions(door, self._tree, self._manifests, capacity=limits.open_versions)
            undo.callback(self._versions.close)
            self._listing = Listing(door, self._tree, self._catalogue, cached_names=limits.cached_names, now_ns=now_ns)
            self._naming = Naming(door, self._tree, self._catalogue, self._manifests, lock, self._health, usage)
            self._small = SmallFlusher(
                door,
                self._staging,
                self._health,
                self._publisher,
                max_files=limits.small_files,
                max_bytes=limits.small_bytes,
            )
            self._staged = StagedFlusher(
                door, self._staging, self._health, self._publisher, self._verify, threads=limits.flush_threads
            )
            self._resources = undo.pop_all()

    # opening ---------------------------------------------------------------------------------------------------------

    def start(self, live_uploads: Mapping[bytes, int]) -> Collection[bytes]:
        """See the contract. ``StorageError`` when the disk fails already now."""
        try:
            resolve_names(self._door, self._tree, self._catalogue, self._root_fd)
            kept = self._staging.recover(live_uploads)
            self._owners.start()
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"the storage cannot be recovered: {error}") from error
        self._publisher.start()
        self._small.start()
        return kept

    def interrupt(self) -> None:
        """See the contract."""
        self._manifests.stop()

    def close(self) -> None:
        """See the contract."""
        self._staged.close()
        self._small.close()
        self._publisher.close()
        self._owners.close()
        self._resources.close()

    # uploads ---------------------------------------------------------------------------------------------------------

    def begin(self, spec: UploadSpec) -> None:
        """See the contract."""
        self._health.check_writable()
        if not self._staging.holds(spec.upload_id):
            self._naming.check_publishable(spec)
        self._staging.begin(spec.upload_id, spec.size, executable=spec.executable)

    def put_piece(self, upload_id: bytes, writer: int, segment: int, offset: int, data: Buffer) -> None:
        """See the contract."""
        self._health.check_writable()
        self._staging.write(upload_id, segment, offset, data)

    def seal_segment(self, upload_id: bytes, writer: int, segment: int, digest: bytes) -> None:
        """See the contract. There is one file for all writers: nothing to choose."""

    def read_staged(self, upload_id: bytes, segment: int, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract; what was never written reads as zeros."""
        return self._staging.read(upload_id, segment, offset, buffer)

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """See the contract."""
        done = self.finished(spec.upload_id)
        if done is not None:
            on_done(done)
            return
        self._staged.submit(spec, manifest, on_done, on_progress)

    def commit_small(self, spec: UploadSpec, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """See the contract."""
        if len(data) > SMALL_BYTES:
            raise ValueError(f"{len(data)} bytes are not a small file")
        commit = Commit(spec, digest, None, on_done)
        if spec.precondition.if_match is None:
            self._small.submit(commit, data)
        else:
            self._staged.verify_first(commit, lambda: self._small.submit(commit, data))

    def commit_small_files(self, files: Sequence[WholeFile]) -> None:
        """See the contract."""
        if any(len(file.data) > SMALL_BYTES for file in files):
            raise ValueError("one of them is not a small file")
        plain = [file for file in files if file.spec.precondition.if_match is None]
        self._small.submit_all([(Commit(file.spec, file.digest, None, file.on_done), file.data) for file in plain])
        for file in files:
            if file.spec.precondition.if_match is not None:
                try:
                    self.commit_small(file.spec, bytes(file.data), file.digest, file.on_done)
                except Refusal as refusal:
                    file.on_done(refusal)

    def abort(self, upload_id: bytes) -> None:
        """See the contract."""
        self._staging.remove(upload_id)

    def finished(self, upload_id: bytes) -> Published | None:
        """See the contract."""
        try:
            return self._catalogue.finished(upload_id)
        except sqlite3.Error as error:
            raise refusal_of_database(error) from None

    def _verify(self, spec: UploadSpec) -> Identity | None:
        """The version of which ``if_match`` is true now; None without ``if_match``."""
        if spec.precondition.if_match is None:
            return None
        return self._naming.matching(spec.name, spec.precondition.if_match)

    # versions --------------------------------------------------------------------------------------------------------

    def open_version(self, name: RemoteName, may_hash: bool = True) -> VersionInfo:
        """See the contract."""
        with self._noticing(name):
            facts = self._tree.look(name)
        if stat.S_ISDIR(facts.st_mode):
            raise Refusal(ErrorCode.DENIED, "a directory")
        identity, mode = Identity.of(facts), facts.st_mode
        manifest = self._manifests.recorded(name, identity) if identity.size <= SMALL_BYTES else None
        if manifest is None:
            known = self._manifests.open(name, may_hash=may_hash)
            identity, mode, manifest = known.identity, known.mode, known.manifest
            version = Version(name, identity, manifest.root)
            if identity.size <= SMALL_BYTES:
                self._door.drop(known.fd)
            else:
                self._versions.hold(version.token(), known.fd, manifest)
        else:
            version = Version(name, identity, manifest.root)
        is_executable = bool(mode & stat.S_IXUSR)
        return VersionInfo(version.token(), name, identity.size, identity.mtime_ns, is_executable, manifest.root)

    def read_small(self, name: RemoteName, most_bytes: int) -> SmallFile:
        """See the contract."""
        with self._noticing(name):
            return self._manifests.read_small(name, min(most_bytes, SMALL_BYTES))

    def open_reader(self, token: bytes) -> LocalReader:
        """See the contract."""
        return self._versions.open_reader(token)

    def manifest(self, token: bytes) -> Manifest:
        """See the contract."""
        return self._versions.manifest(token)

    def name_of(self, token: bytes) -> RemoteName:
        """See the contract."""
        return Version.parse(token).name

    # names -----------------------------------------------------------------------------------------------------------

    def list(self, prefix: str, after: str, limit: int, recursive: bool) -> Page:
        """See the contract."""
        return self._listing.page(prefix, after, limit, recursive=recursive)

    def stat(self, name: RemoteName) -> Entry:
        """See the contract."""
        with self._noticing(name):
            return self._listing.entry(name)

    def delete(self, name: RemoteName, if_match: bytes | None = None) -> None:
        """See the contract."""
        with self._noticing(name):
            self._naming.delete(name, if_match)

    def move(self, source: RemoteName, target: RemoteName, if_absent: bool = False) -> None:
        """See the contract."""
        self._naming.move(source, target, if_absent=if_absent)

    def make_directory(self, name: RemoteName) -> bool:
        """See the contract."""
        return self._naming.make_directory(name)

    def free_bytes(self) -> int | None:
        """See the contract."""
        try:
            return self._door.free_bytes(self._root_fd) - self._staging.promised_bytes
        except OSError as error:
            raise refusal_of(error) from None

    def free_files(self) -> int | None:
        """See the contract."""
        try:
            return self._door.free_files(self._root_fd)
        except OSError as error:
            raise refusal_of(error) from None

    @contextmanager
    def _noticing(self, name: str) -> Iterator[None]:
        """A file that turns out to be missing does not count any more."""
        try:
            yield
        except Refusal as refusal:
            if refusal.code is ErrorCode.FILE_NOT_FOUND:
                self._owners.note_missing(name)
            raise

"""A storage that lives in memory: the contract in its shortest form, for tests and for several nodes in one process.

Everything is kept in dictionaries under one lock; commits are decided and published in the calling thread: ``on_done``
is called before ``commit`` returns. Nothing survives the process. Bounds: ``capacity_bytes`` (all bytes held, then
``DiskFull``) and ``open_versions`` (versions kept readable after they were replaced).
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import MAX_NAME_BYTES, RemoteName
from twinport_protocol.segments import Manifest

from twinport_service.usage import Stored, UsageBook, UsageKeeper

from .contract import (
    SMALL_BYTES,
    Buffer,
    Entry,
    OnDone,
    OnProgress,
    Page,
    Precondition,
    Published,
    SmallFile,
    UploadSpec,
    VersionInfo,
    WholeFile,
)
from .memory_parts import MemoryReader, MemoryStaging, MemoryVersion

FINISHED_SECONDS = 24 * 3600


class MemoryStorage:
    """See the module. ``usage`` is told who has what; ``now_ns`` gives the mtime of files whose sender named none,
    ``now`` ages the finished ids."""

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        open_versions: int = 256,
        usage: UsageKeeper | None = None,
        now: Callable[[], float] = time.time,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._lock = threading.RLock()
        self._usage = UsageBook() if usage is None else usage
        self._capacity_bytes = capacity_bytes
        self._open_versions = open_versions
        self._now = now
        self._now_ns = now_ns
        self._files: dict[str, MemoryVersion] = {}
        self._directories: set[str] = set()
        self._stagings: dict[bytes, MemoryStaging] = {}
        self._finished: OrderedDict[bytes, tuple[float, Published]] = OrderedDict()
        self._opened: OrderedDict[bytes, tuple[RemoteName, MemoryVersion]] = OrderedDict()
        self._keys: Sequence[str] | None = None
        self._serial = 0
        self._held_bytes = 0

    def start(self, live_uploads: Mapping[bytes, int]) -> Collection[bytes]:
        """See the contract."""
        with self._lock:
            for upload_id, staging in list(self._stagings.items()):
                if live_uploads.get(upload_id) != staging.spec.size:
                    self.abort(upload_id)
            stored: dict[str, Stored] = {}
            for version in self._files.values():
                size_bytes, files = stored.get(version.user, Stored(0, 0))
                stored[version.user] = Stored(size_bytes + len(version.data), files + 1)
            self._usage.load(stored)
            return set(self._stagings)

    def interrupt(self) -> None:
        """See the contract; nothing is hashed here."""

    def close(self) -> None:
        """See the contract; what is stored stays, as it would on a disk."""
        with self._lock:
            self._opened.clear()

    # uploads ---------------------------------------------------------------------------------------------------------

    def begin(self, spec: UploadSpec) -> None:
        """See the contract."""
        with self._lock:
            if spec.upload_id in self._stagings:
                return
            self._check_publishable(spec.name, spec.precondition)
            self._reserve(spec.size)
            self._stagings[spec.upload_id] = MemoryStaging(spec)

    def put_piece(self, upload_id: bytes, writer: int, segment: int, offset: int, data: Buffer) -> None:
        """See the contract."""
        with self._lock:
            held = self._staging(upload_id).pieces.setdefault((segment, writer), bytearray())
            if offset > len(held):
                held.extend(bytes(offset - len(held)))
            held[offset : offset + len(data)] = data

    def seal_segment(self, upload_id: bytes, writer: int, segment: int, digest: bytes) -> None:
        """See the contract."""
        with self._lock:
            staging = self._staging(upload_id)
            staging.pieces.setdefault((segment, writer), bytearray())  # the only segment of an empty file
            staging.sealed[segment, digest] = writer

    def read_staged(self, upload_id: bytes, segment: int, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        with self._lock:
            staging = self._staging(upload_id)
            writers = [writer for (sealed, _), writer in staging.sealed.items() if sealed == segment]
            held = staging.pieces.get((segment, writers[-1])) if writers else None
            if held is None:
                held = max((piece for key, piece in staging.pieces.items() if key[0] == segment), key=len, default=None)
            return 0 if held is None else MemoryReader(bytes(held)).read_into(offset, buffer)

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """See the contract."""
        on_done(self._outcome(lambda: self._commit_staged(spec, manifest, on_progress)))

    def commit_small(self, spec: UploadSpec, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """See the contract."""
        on_done(self._outcome(lambda: self._commit_whole(spec, bytes(data), Manifest(len(data), digest))))

    def commit_small_files(self, files: Sequence[WholeFile]) -> None:
        """See the contract."""
        for file in files:
            self.commit_small(file.spec, bytes(file.data), file.digest, file.on_done)

    def abort(self, upload_id: bytes) -> None:
        """See the contract."""
        with self._lock:
            staging = self._stagings.pop(upload_id, None)
            if staging is not None:
                self._held_bytes -= staging.spec.size

    def finished(self, upload_id: bytes) -> Published | None:
        """See the contract."""
        with self._lock:
            while self._finished and next(iter(self._finished.values()))[0] < self._now() - FINISHED_SECONDS:
                self._finished.popitem(last=False)
            found = self._finished.get(upload_id)
            return replace(found[1], is_repeated=True) if found else None

    def _outcome(self, decide: Callable[[], Published]) -> Published | Refusal:
        try:
            with self._lock:
                return decide()
        except Refusal as refusal:
            return refusal

    def _commit_staged(self, spec: UploadSpec, manifest: Manifest, on_progress: OnProgress | None) -> Published:
        done = self.finished(spec.upload_id)
        if done is not None:
            return done
        staging = self._staging(spec.upload_id)
        count = manifest.layout.count
        wanted = [(segment, manifest.digest(segment)) for segment in range(count)]
        if any(key not in staging.sealed for key in wanted):
            raise Refusal(ErrorCode.INCOMPLETE)
        data = b"".join(staging.pieces[key[0], staging.sealed[key]] for key in wanted)
        if len(data) != manifest.file_bytes:
            raise Refusal(ErrorCode.INCOMPLETE, f"{len(data)} of {manifest.file_bytes} bytes are staged")
        self._check_publishable(spec.name, spec.precondition)
        self.abort(spec.upload_id)
        self._reserve(len(data))
        if on_progress is not None:
            on_progress(len(data))
        return self._publish(spec, data, manifest)

    def _commit_whole(self, spec: UploadSpec, data: bytes, manifest: Manifest) -> Published:
        done = self.finished(spec.upload_id)
        if done is not None:
            return done
        self._check_publishable(spec.name, spec.precondition)
        self._reserve(len(data))
        return self._publish(spec, data, manifest)

    def _publish(self, spec: UploadSpec, data: bytes, manifest: Manifest) -> Published:
        self._make_parents(spec.name)
        replaced = self._files.get(spec.name)
        self._forget(spec.name)
        self._serial += 1
        mtime_ns = self._now_ns() if spec.mtime_ns is None else spec.mtime_ns
        version = MemoryVersion(self._serial, data, mtime_ns, spec.executable, manifest, spec.user)
        self._files[spec.name] = version
        self._usage.publish(spec.upload_id, version.owned, None if replaced is None else replaced.owned)
        self._keys = None
        published = Published(spec.upload_id, spec.name, len(data), mtime_ns, manifest.root, spec.user)
        self._finished[spec.upload_id] = (self._now(), published)
        return published

    def _check_publishable(self, name: str, precondition: Precondition) -> None:
        self._check_parents(name)
        if name in self._directories:
            raise Refusal(ErrorCode.NAME_CONFLICT)
        present = self._files.get(name)
        if precondition.if_absent and present is not None:
            raise Refusal(ErrorCode.EXISTS)
        if precondition.if_match is not None and (present is None or present.manifest.root != precondition.if_match):
            raise Refusal(ErrorCode.CHANGED)

    def _staging(self, upload_id: bytes) -> MemoryStaging:
        staging = self._stagings.get(upload_id)
        if staging is None:
            raise Refusal(ErrorCode.UPLOAD_UNKNOWN)
        return staging

    def _reserve(self, size_bytes: int) -> None:
        if self._capacity_bytes is not None and self._held_bytes + size_bytes > self._capacity_bytes:
            raise Refusal(ErrorCode.DISK_FULL)
        self._held_bytes += size_bytes

    # versions --------------------------------------------------------------------------------------------------------

    def open_version(self, name: RemoteName, may_hash: bool = True) -> VersionInfo:
        """See the contract; nothing is hashed here."""
        with self._lock:
            version = self._files.get(name)
            if version is None:
                raise Refusal(ErrorCode.DENIED if name in self._directories else ErrorCode.FILE_NOT_FOUND)
            token = version.serial.to_bytes(8, "big")
            self._opened[token] = name, version
            self._opened.move_to_end(token)
            if len(self._opened) > self._open_versions:
                self._opened.popitem(last=False)
            size = len(version.data)
            return VersionInfo(token, name, size, version.mtime_ns, version.executable, version.manifest.root)

    def read_small(self, name: RemoteName, most_bytes: int) -> SmallFile:
        """See the contract; every root is known."""
        with self._lock:
            version = self._files.get(name)
            if version is None:
                raise Refusal(ErrorCode.DENIED if name in self._directories else ErrorCode.FILE_NOT_FOUND)
            if len(version.data) > min(most_bytes, SMALL_BYTES):
                raise Refusal(ErrorCode.TOO_LARGE)
            return SmallFile(version.data, version.mtime_ns, version.executable, version.manifest.root)

    def open_reader(self, token: bytes) -> MemoryReader:
        """See the contract."""
        return MemoryReader(self._opened_version(token)[1].data)

    def manifest(self, token: bytes) -> Manifest:
        """See the contract."""
        return self._opened_version(token)[1].manifest

    def name_of(self, token: bytes) -> RemoteName:
        """See the contract."""
        return self._opened_version(token)[0]

    def _opened_version(self, token: bytes) -> tuple[RemoteName, MemoryVersion]:
        with self._lock:
            opened = self._opened.get(token)
            if opened is None:
                raise Refusal(ErrorCode.VERSION_GONE)
            return opened

    # names -----------------------------------------------------------------------------------------------------------

    def list(self, prefix: str, after: str, limit: int, recursive: bool) -> Page:
        """See the contract."""
        with self._lock:
            if prefix in self._files:
                return Page((self._entry(prefix),) if prefix > after and limit > 0 else (), limit <= 0)
            if prefix and prefix not in self._directories:
                raise Refusal(ErrorCode.FILE_NOT_FOUND)
            # Strings compare by code point, which is the order of their UTF-8 bytes.
            if self._keys is None:
                self._keys = sorted([*self._files, *(name + "/" for name in self._directories)])
            keys, below = self._keys, prefix + "/" if prefix else ""
            found: list[Entry] = []
            for index in range(bisect.bisect_right(keys, max(after, below)), len(keys)):
                key = keys[index]
                if not key.startswith(below):
                    break
                if recursive:  # what a directory holds follows it at once
                    is_listed = not (key.endswith("/") and index + 1 < len(keys) and keys[index + 1].startswith(key))
                else:
                    is_listed = "/" not in key[len(below) : -1]
                if is_listed and len(found) == limit:
                    return Page(found, True)
                if is_listed:
                    found.append(self._entry(key.rstrip("/")))
            return Page(found, False)

    def stat(self, name: RemoteName) -> Entry:
        """See the contract."""
        with self._lock:
            if name not in self._files and name not in self._directories:
                raise Refusal(ErrorCode.FILE_NOT_FOUND)
            return self._entry(name)

    def delete(self, name: RemoteName, if_match: bytes | None = None) -> None:
        """See the contract."""
        with self._lock:
            present = self._files.get(name)
            if present is None and name not in self._directories:
                raise Refusal(ErrorCode.FILE_NOT_FOUND)
            if if_match is not None and (present is None or present.manifest.root != if_match):
                raise Refusal(ErrorCode.CHANGED)
            if present is None and not self._is_empty(name + "/"):
                raise Refusal(ErrorCode.NOT_EMPTY)
            self._forget(name)
            self._directories.discard(name)
            if present is not None:
                self._usage.removed((present.owned,))

    def move(self, source: RemoteName, target: RemoteName, if_absent: bool = False) -> None:
        """See the contract."""
        with self._lock:
            is_file = source in self._files
            if not is_file and source not in self._directories:
                raise Refusal(ErrorCode.FILE_NOT_FOUND)
            self._check_parents(target)
            if (if_absent or (not is_file and source != target)) and (
                target in self._files or target in self._directories
            ):
                raise Refusal(ErrorCode.EXISTS)
            if source == target:
                return
            if (is_file and target in self._directories) or target.startswith(source + "/"):
                raise Refusal(ErrorCode.NAME_CONFLICT)
            for name in (*self._files, *self._directories):
                if name.startswith(source + "/") and len((target + name[len(source) :]).encode()) > MAX_NAME_BYTES:
                    raise Refusal(ErrorCode.INVALID_NAME, "a name in the directory would become too long")
            self._make_parents(target)
            replaced = self._files.get(target)
            if is_file and replaced is not None:
                self._forget(target)
                self._usage.removed((replaced.owned,))
            for name in [key for key in self._files if key == source or key.startswith(source + "/")]:
                self._files[target + name[len(source) :]] = self._files.pop(name)
            for name in [key for key in self._directories if key == source or key.startswith(source + "/")]:
                self._directories.remove(name)
                self._directories.add(target + name[len(source) :])
            self._keys = None

    def make_directory(self, name: RemoteName) -> bool:
        """See the contract."""
        with self._lock:
            self._check_parents(name + "/")
            is_new = name not in self._directories
            self._make_parents(name + "/")
            return is_new

    def free_bytes(self) -> int | None:
        """See the contract; None without a capacity."""
        with self._lock:
            return None if self._capacity_bytes is None else self._capacity_bytes - self._held_bytes

    def free_files(self) -> int | None:
        """See the contract; memory has no such bound."""
        return None

    def _entry(self, name: str) -> Entry:
        version = self._files.get(name)
        if version is None:
            return Entry(name, "d", 0, 0)
        return Entry(name, "f", len(version.data), version.mtime_ns, version.executable, version.manifest.root)

    def _is_empty(self, directory_key: str) -> bool:
        return not any(name.startswith(directory_key) for name in (*self._files, *self._directories))

    def _forget(self, name: str) -> None:
        version = self._files.pop(name, None)
        if version is not None:
            self._held_bytes -= len(version.data)
        self._keys = None

    def _check_parents(self, name: str) -> None:
        if any(parent in self._files for parent in _parents(name)):
            raise Refusal(ErrorCode.NAME_CONFLICT)

    def _make_parents(self, name: str) -> None:
        self._directories.update(_parents(name))
        self._keys = None


def _parents(name: str) -> Collection[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]

"""Publication: flushed files get their rows, then their names, many at a time, by one thread.

What comes here is durable under a staging name already. One batch is: check preconditions → rows, durably, in one
transaction → rename each → fsync each directory that changed, once → tell. The publication lock is held from the
first check to the last rename, so that ``if_match`` and ``if_absent``, deletions and moves are decided one after the
other. It is not held while directories are flushed.

A crash before the rows leaves staging files, which the next start removes; between rows and renames, rows without
files, which it drops; after the renames, rows that match their files, which it keeps.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.log import get_log
from twinport_service.usage import Owned, UsageKeeper

from .catalogue import Catalogue
from .contract import OnDone, Published, UploadSpec
from .disk_door import DiskDoor
from .rows import NewRow
from .staging import Staging
from .tree import Identity, OpenDirectories, Tree, check_plain, split
from .troubles import Health, refusal_of, refusal_of_database

BATCH_FILES = 512
SETTLE_SECONDS = 0.5
PURGE_SECONDS = 60.0
_NOREPLACE_REFUSED = (errno.EEXIST, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


@dataclass(slots=True)
class Commit:
    """One upload on its way to its name. ``verified`` is the identity of the version that ``if_match`` was found true
    of."""

    spec: UploadSpec
    root: bytes
    digests: bytes | None
    on_done: OnDone
    directory: int = -1
    staged_name: str = ""
    is_small: bool = True
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    verified: Identity | None = None
    is_told: bool = False

    def describe(self, door: DiskDoor, fd: int) -> None:
        """Set the mtime of the staging file, and its mode where that is another by now; note what the row will say of
        it."""
        if self.spec.mtime_ns is not None:
            door.set_mtime(fd, self.spec.mtime_ns)
        facts = door.fstat(fd)
        if bool(facts.st_mode & stat.S_IXUSR) != self.spec.executable:
            door.set_executable(fd, executable=self.spec.executable)
        self.size = facts.st_size
        self.mtime_ns = facts.st_mtime_ns
        self.inode = facts.st_ino

    def published(self) -> Published:
        """What is told when it has its name."""
        spec = self.spec
        return Published(spec.upload_id, spec.name, self.size, self.mtime_ns, self.root, spec.user)

    def row(self) -> NewRow:
        """What is recorded of it."""
        spec = self.spec
        return NewRow(
            spec.name, spec.upload_id, self.size, self.mtime_ns, None, self.inode, self.root, self.digests, spec.user
        )


def tell(commit: Commit, outcome: Published | Refusal) -> None:
    """Call ``on_done``, once; it must not raise, and one that does must not stop the others."""
    if commit.is_told:
        return
    commit.is_told = True
    try:
        commit.on_done(outcome)
    except Exception:
        get_log().exception("[STORAGE] A commit's callback failed")


class Publisher:
    """See the module. ``lock`` is the publication lock. Start once, close once; ``submit`` from any thread."""

    def __init__(
        self,
        door: DiskDoor,
        tree: Tree,
        catalogue: Catalogue,
        staging: Staging,
        health: Health,
        usage: UsageKeeper,
        *,
        batch_files: int = BATCH_FILES,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.lock = threading.Lock()
        self._door = door
        self._tree = tree
        self._catalogue = catalogue
        self._staging = staging
        self._health = health
        self._usage = usage
        self._batch_files = batch_files
        self._now_ns = now_ns
        self._waiting: deque[Commit] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._purged_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="storage-publisher", daemon=True)

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def submit(self, commits: Iterable[Commit]) -> None:
        """Hand over flushed files. Blocks while two batches wait already."""
        with self._changed:
            while len(self._waiting) >= 2 * self._batch_files:
                self._changed.wait()
            self._waiting.extend(commits)
            self._changed.notify_all()

    def close(self) -> None:
        """Publish what waits, then stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._is_closing:
                    self._changed.wait(SETTLE_SECONDS if self._catalogue.has_chores else PURGE_SECONDS)
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_files))]
                if not batch and self._is_closing:
                    return
                self._changed.notify_all()
            self.publish(batch)
            self._tidy(is_idle=not batch)

    def _tidy(self, *, is_idle: bool) -> None:
        """Write down what could wait, once there is nothing else to do; purge in any case, now and then."""
        try:
            if time.monotonic() - self._purged_at >= PURGE_SECONDS:
                self._purged_at = time.monotonic()
                self._catalogue.purge()
            if is_idle:
                self._catalogue.settle()
        except sqlite3.Error as error:
            # Without room it is tried again; what waits is not lost, and no file depends on it.
            if refusal_of_database(error).code is not ErrorCode.DISK_FULL:
                self._health.fail("settling the catalogue", error)

    # one batch -------------------------------------------------------------------------------------------------------

    def publish(self, batch: list[Commit]) -> None:
        """Publish flushed files and tell their outcomes. In the order given, but for names that come twice."""
        while batch:
            later: list[Commit] = []
            try:
                self._publish_distinct(batch, later)
            except Exception as error:
                # A bug here must not leave commits without an answer, nor the disk in a state that nobody knows.
                get_log().exception("[STORAGE] Publishing failed unexpectedly")
                self._health.fail("publishing", error)
                for commit in batch:
                    tell(commit, Refusal(ErrorCode.OUTCOME_UNKNOWN, str(error)))
                later = []  # they were of this batch
            batch = later

    def _publish_distinct(self, batch: list[Commit], later: list[Commit]) -> None:
        done: list[Commit] = []
        refused: list[tuple[Commit, Published | Refusal]] = []
        first = last = 0
        with OpenDirectories(self._door, self._tree) as directories:
            with self.lock:
                ready = self._check_all(batch, directories, later, refused)
                if ready:
                    first, ready, owners = self._record(ready, later, refused)
                    last = first + len(ready) - 1
                    done = self._rename_all(first, ready, owners, directories, refused)
                    ctime_ns = self._latest_ctime(done, directories)
            unknown = self._flush(done, directories)
        for commit, outcome in refused:
            self._refuse(commit, outcome)
        if unknown is not None:
            for commit in done:
                tell(commit, unknown)
        elif done:
            outcomes = [commit.published() for commit in done]
            self._catalogue.settle_later(first, last, ctime_ns, outcomes)
            for commit, outcome in zip(done, outcomes, strict=True):
                tell(commit, outcome)

    def _check_all(
        self,
        batch: list[Commit],
        directories: OpenDirectories,
        later: list[Commit],
        refused: list[tuple[Commit, Published | Refusal]],
    ) -> list[Commit]:
        ready: list[Commit] = []
        names: set[str] = set()
        for commit in batch:
            name = commit.spec.name
            if name in names:  # its precondition is about what the other one leaves
                later.append(commit)
                continue
            names.add(name)
            try:
                self._health.check_writable()
                precondition = commit.spec.precondition
                if precondition.if_absent or precondition.if_match is not None:
                    self._check_precondition(commit)
                directories.make(split(name)[0])
            except OSError as error:
                refused.append((commit, refusal_of(error)))
            except Refusal as refusal:
                refused.append((commit, refusal))
            else:
                ready.append(commit)
        return ready

    def _check_precondition(self, commit: Commit) -> None:
        precondition = commit.spec.precondition
        try:
            facts = self._tree.facts(commit.spec.name)
        except FileNotFoundError:
            if precondition.if_match is not None:
                raise Refusal(ErrorCode.CHANGED, "the file is gone") from None
            return
        check_plain(facts)
        if stat.S_ISDIR(facts.st_mode):
            raise Refusal(ErrorCode.NAME_CONFLICT)
        if precondition.if_absent:
            raise Refusal(ErrorCode.EXISTS)
        identity = Identity.of(facts)
        if identity != commit.verified:
            row = self._catalogue.current(commit.spec.name)
            if row is None or not row.matches(identity) or row.root != precondition.if_match:
                raise Refusal(ErrorCode.CHANGED)

    def _record(
        self, ready: list[Commit], later: list[Commit], refused: list[tuple[Commit, Published | Refusal]]
    ) -> tuple[int, list[Commit], Mapping[str, Owned]]:
        """Write the rows; the id of the first, whose they are, and whose files they replace. None are left when they
        cannot be written."""
        try:
            try:
                first, owners = self._catalogue.record_replacing([commit.row() for commit in ready])
            except sqlite3.IntegrityError:
                ready = self._without_repeated(ready, later, refused)
                first, owners = self._catalogue.record_replacing([commit.row() for commit in ready])
            return first, ready, owners
        except sqlite3.Error as error:
            refusal = refusal_of_database(error)
            if refusal.code is not ErrorCode.DISK_FULL:
                self._health.fail("writing the catalogue", error)
            refused.extend((commit, refusal) for commit in ready)
            return 0, [], {}

    def _without_repeated(
        self, ready: list[Commit], later: list[Commit], refused: list[tuple[Commit, Published | Refusal]]
    ) -> list[Commit]:
        """Some uploads have been committed before, or twice at once: the first commit of each counts."""
        known = self._catalogue.recorded({commit.spec.upload_id for commit in ready})
        left: list[Commit] = []
        seen: set[bytes] = set()
        for commit in ready:
            upload_id = commit.spec.upload_id
            if upload_id in seen:
                later.append(commit)
            elif upload_id in known:
                outcome = self._catalogue.finished(upload_id)
                # A row that did not become a file is dropped with the next transaction at the latest: this one.
                refused.append((commit, outcome or Refusal(ErrorCode.BUSY, "id in use", retry_seconds=1)))
            else:
                left.append(commit)
            seen.add(upload_id)
        return left

    def _rename_all(
        self,
        first: int,
        ready: list[Commit],
        owners: Mapping[str, Owned],
        directories: OpenDirectories,
        refused: list[tuple[Commit, Published | Refusal]],
    ) -> list[Commit]:
        done: list[Commit] = []
        dropped: list[int] = []
        for row_id, commit in enumerate(ready, first):
            parent, leaf = split(commit.spec.name)
            try:
                self._rename(commit, directories.open(parent), leaf)
                published = Owned(commit.spec.user, commit.size)
                self._usage.publish(commit.spec.upload_id, published, owners.get(commit.spec.name))
                directories.note_change(parent)
                done.append(commit)
            except (OSError, Refusal) as error:
                refused.append((commit, refusal_of(error) if isinstance(error, OSError) else error))
                dropped.append(row_id)
        if dropped:
            self._catalogue.drop_later(dropped)
        return done

    def _rename(self, commit: Commit, parent: int, leaf: str) -> None:
        try:
            # Most names are new: then this one call both looks and renames.
            self._door.rename_new(commit.directory, commit.staged_name, parent, leaf)
            return
        except OSError as error:
            if commit.spec.precondition.if_absent or error.errno not in _NOREPLACE_REFUSED:
                raise
        try:
            facts = self._door.stat_at(parent, leaf)
        except FileNotFoundError:
            pass
        else:
            check_plain(facts)
            if stat.S_ISDIR(facts.st_mode):
                raise Refusal(ErrorCode.NAME_CONFLICT)
        self._door.rename(commit.directory, commit.staged_name, parent, leaf)

    def _latest_ctime(self, done: list[Commit], directories: OpenDirectories) -> int:
        """A moment that no rename of the batch is after; the kernel's coarse clock runs behind this one."""
        latest = self._now_ns()
        if done:
            parent, leaf = split(done[-1].spec.name)
            try:
                latest = max(latest, self._door.stat_at(directories.open(parent), leaf).st_ctime_ns)
            except OSError:
                return latest
        return latest

    def _flush(self, done: list[Commit], directories: OpenDirectories) -> Refusal | None:
        """Make the names durable. After a failure nobody knows which of them are: until a restart has looked."""
        try:
            directories.flush()
            for directory in {commit.directory for commit in done}:
                self._door.fsync_directory(directory)
        except OSError as error:
            self._health.fail("flushing a directory", error)
            return Refusal(ErrorCode.OUTCOME_UNKNOWN, str(error))
        return None

    def _refuse(self, commit: Commit, outcome: Published | Refusal) -> None:
        if isinstance(outcome, Refusal) and outcome.code in (ErrorCode.EXISTS, ErrorCode.CHANGED):
            # Perhaps by its own hand: an upload that is finished answers what it published, however often it is asked.
            outcome = self._finished(commit.spec.upload_id) or outcome
        if commit.is_small:
            self._staging.discard(commit.directory, commit.staged_name)
        elif isinstance(outcome, Published) or outcome.code in (ErrorCode.DISK_FULL, ErrorCode.STORAGE_FAULT):
            self._staging.remove(commit.spec.upload_id)
        tell(commit, outcome)

    def _finished(self, upload_id: bytes) -> Published | None:
        try:
            return self._catalogue.finished(upload_id)
        except sqlite3.Error:
            return None

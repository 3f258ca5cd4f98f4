"""The ledger of the embedded server: memory is the truth, SQLite remembers what a client may want to resume.

Only uploads of at least ``RESUMABLE_BYTES`` are written down, as they change, before the
caller is answered; a small file costs no transaction. What is written survives ``kill -9`` at once; a power cut may
take the last moments (``synchronous=NORMAL``: no flush is waited for), never the consistency. That is enough, because
after an unclean start the sealed segments are trusted only once their bytes were hashed again, which is the caller's
business.

The log of SQLite is folded into the database by a thread of its own, every ``checkpoint_writes`` changes. What writes
waits while it folds in what came during its first pass; what touches memory alone (small files, every look) does not:
the event loop must not wait for a disk. So there are two locks: whatever may write takes ``_writing`` before ``_lock``.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.upload import UploadState

from .ledger import SessionKey, UploadRecord
from .ledger_memory import MAX_OPEN_UPLOADS_PER_USER, MemoryLedger, OpenUpload
from .log import get_log
from .storage.contract import FileMarks, Precondition, UploadSpec
from .usage import UsageKeeper

RESUMABLE_BYTES = 1024 * 1024
CHECKPOINT_WRITES = 2000
_PATIENT_WRITES = 8
FORMAT_VERSION = 1
_SCHEMA = """
CREATE TABLE uploads (
    id BLOB PRIMARY KEY, user TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER,
    executable INTEGER NOT NULL, if_absent INTEGER NOT NULL, if_match BLOB, root BLOB, generation INTEGER NOT NULL,
    touched_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE sealed (
    upload BLOB NOT NULL, segment INTEGER NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (upload, segment)
) WITHOUT ROWID;
"""


class LedgerUnknown(Exception):  # noqa: N818  named by the state it reports
    """The database is none that this version can read; the message says what to do."""


def is_resumable(spec: UploadSpec) -> bool:
    """Whether an upload is worth being remembered."""
    return spec.size >= RESUMABLE_BYTES  # which every file of several segments is


class SqliteLedger(MemoryLedger):
    """See the module. ``path`` is made with mode 0600. A failing database is ``StorageFault`` to the caller."""

    def __init__(
        self,
        path: Path,
        *,
        now: Callable[[], float] = time.time,
        max_open_uploads_per_user: int = MAX_OPEN_UPLOADS_PER_USER,
        checkpoint_writes: int = CHECKPOINT_WRITES,
        usage: UsageKeeper | None = None,
    ) -> None:
        super().__init__(now=now, max_open_uploads_per_user=max_open_uploads_per_user, usage=usage)
        self._path = path
        self._checkpoint_writes = checkpoint_writes
        self._writes = 0
        self._writer_lock = threading.RLock()
        self._is_closed = False
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare_database()
            self._load_all()
        except BaseException:
            self._database.close()
            raise
        self._checkpoint_due = threading.Event()
        self._checkpointer = threading.Thread(target=self._run_checkpoints, name="ledger-checkpoint", daemon=True)
        self._checkpointer.start()

    def _prepare_database(self) -> None:
        try:
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("PRAGMA wal_autocheckpoint = 0")
            if version == 0:
                self._database.executescript(
                    f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT_VERSION}; COMMIT;"
                )
        except sqlite3.DatabaseError as error:
            raise LedgerUnknown(
                f"{self._path} is not a database that can be read ({error}); move it away, and open uploads begin anew"
            ) from error
        if version not in (0, FORMAT_VERSION):
            raise LedgerUnknown(f"{self._path} was written by a newer twinportd (format {version}); install that one")

    def _load_all(self) -> None:
        rows = self._database.execute(
            "SELECT id, user, name, size, mtime_ns, executable, if_absent, if_match, root, generation, touched_at"
            " FROM uploads ORDER BY touched_at"
        )
        for *spec_columns, generation, touched_at in rows:
            upload_id, user, name, size, mtime_ns, executable, if_absent, if_match, root = spec_columns
            precondition = Precondition(bool(if_absent), if_match)
            spec = UploadSpec(upload_id, user, parse_name(name), size, mtime_ns, bool(executable), precondition, root)
            # A commit that was under way when the process died has ended: the upload is open, or finished.
            self._insert(OpenUpload(spec, generation, UploadState.OPEN, touched_at))
            self._usage.restore(upload_id, user, size)
        for upload_id, segment, digest in self._database.execute("SELECT upload, segment, digest FROM sealed"):
            upload = self._uploads.get(upload_id)
            if upload is not None:
                upload.sealed[segment] = digest

    def close(self) -> None:
        """See the contract. Harmless when repeated."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._checkpoint_due.set()
        self._checkpointer.join()
        with self._lock:
            self._database.close()

    # what may write --------------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self, spec: UploadSpec | None) -> Iterator[None]:
        """Around a change of an upload, which is written down if it may be resumed (or if that is not known yet)."""
        if spec is not None and not is_resumable(spec):
            yield
            return
        with self._writer_lock:
            yield
            if self._writes >= _PATIENT_WRITES * self._checkpoint_writes:
                # The thread gets no turn, and the log must not grow without bound.
                self._fold(self._database)

    def _writing_any(self, specs: Sequence[UploadSpec | None]) -> AbstractContextManager[None]:
        """The same around a change of several."""
        may_write = any(spec is None or is_resumable(spec) for spec in specs)
        return self._writing(None) if may_write else nullcontext()

    def _spec_of(self, upload_id: bytes) -> UploadSpec | None:
        upload = self._uploads.get(upload_id)
        return None if upload is None else upload.spec

    def begin(self, spec: UploadSpec, reserve: bool = True, session: SessionKey | None = None) -> UploadRecord:
        """See the contract."""
        with self._writing(spec):
            return super().begin(spec, reserve, session)

    def admit(self, specs: Sequence[UploadSpec]) -> Sequence[Refusal | None]:
        """See the contract."""
        with self._writing_any(specs):
            return super().admit(specs)

    def claim(self, upload_id: bytes, generation: int) -> None:
        """See the contract."""
        with self._writing(self._spec_of(upload_id)):
            super().claim(upload_id, generation)

    def lease(
        self, upload_id: bytes, user: str, session: SessionKey | None = None, marks: FileMarks | None = None
    ) -> UploadRecord:
        """See the contract."""
        with self._writing(self._spec_of(upload_id)):
            return super().lease(upload_id, user, session, marks)

    def seal(self, upload_id: bytes, generation: int, segment: int, digest: bytes) -> bool:
        """See the contract."""
        with self._writing(self._spec_of(upload_id)):
            return super().seal(upload_id, generation, segment, digest)

    def unseal(self, upload_id: bytes, segments: Collection[int]) -> None:
        """See the contract."""
        with self._writing(self._spec_of(upload_id)):
            super().unseal(upload_id, segments)

    def finish(self, upload_id: bytes) -> None:
        """See the contract."""
        with self._writing(self._spec_of(upload_id)):
            super().finish(upload_id)

    def finish_all(self, upload_ids: Sequence[bytes]) -> None:
        """See the contract."""
        with self._writing_any([self._spec_of(upload_id) for upload_id in upload_ids]), self._lock:
            for upload_id in upload_ids:
                super().finish(upload_id)

    # what changes ----------------------------------------------------------------------------------------------------

    def _on_begin(self, upload: OpenUpload) -> None:
        spec, condition = upload.spec, upload.spec.precondition
        if is_resumable(spec):
            try:
                row = (spec.upload_id, spec.user, spec.name, spec.size, spec.mtime_ns, spec.executable)
                rest = (condition.if_absent, condition.if_match, spec.root, upload.generation, upload.touched_at)
                self._write("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", [(*row, *rest)])
            except Refusal:
                self.finish(spec.upload_id)
                raise

    def _on_lease(self, upload: OpenUpload) -> None:
        spec = upload.spec
        if is_resumable(spec):
            self._write(
                "UPDATE uploads SET generation = ?, touched_at = ?, mtime_ns = ?, executable = ? WHERE id = ?",
                [(upload.generation, upload.touched_at, spec.mtime_ns, spec.executable, spec.upload_id)],
            )

    def _on_seal(self, upload: OpenUpload, segment: int, digest: bytes) -> None:
        if is_resumable(upload.spec):
            try:
                self._write("INSERT INTO sealed VALUES (?, ?, ?)", [(upload.spec.upload_id, segment, digest)])
            except Refusal:
                del upload.sealed[segment]
                raise

    def _on_unseal(self, upload: OpenUpload, segments: Collection[int]) -> None:
        if is_resumable(upload.spec) and segments:
            upload_id = upload.spec.upload_id
            self._write(
                "DELETE FROM sealed WHERE upload = ? AND segment = ?", [(upload_id, segment) for segment in segments]
            )

    def _on_finish(self, upload: OpenUpload) -> None:
        if not is_resumable(upload.spec):
            return
        upload_id = upload.spec.upload_id
        try:
            self._write("DELETE FROM uploads WHERE id = ?", [(upload_id,)])
            self._write("DELETE FROM sealed WHERE upload = ?", [(upload_id,)])
        except Refusal as refusal:
            # The upload is finished all the same; after a restart its staging is gone, and with it this row.
            get_log().error("[STORAGE] A finished upload stays in the ledger", cause=refusal.detail)

    def _write(self, statement: str, rows: list[tuple[object, ...]]) -> None:
        try:
            if len(rows) == 1:
                self._database.execute(statement, rows[0])
            else:
                self._database.execute("BEGIN")
                try:
                    self._database.executemany(statement, rows)
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            code = ErrorCode.DISK_FULL if "full" in str(error) else ErrorCode.STORAGE_FAULT
            raise Refusal(code, f"{self._path.name}: {error}") from error
        self._writes += 1
        if self._writes >= self._checkpoint_writes:
            self._checkpoint_due.set()

    def _fold(self, database: sqlite3.Connection) -> None:
        try:
            busy, logged, folded = database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            get_log().error("[STORAGE] The ledger's log could not be folded in", cause=str(error))
            return
        if not busy and logged == folded:
            self._writes = 0  # the log begins anew

    def _run_checkpoints(self) -> None:
        """Its own connection: SQLite lets others write to the log while it is folded in."""
        database = sqlite3.connect(self._path, isolation_level=None)
        try:
            while True:
                self._checkpoint_due.wait()
                if self._is_closed:
                    return
                self._checkpoint_due.clear()
                self._fold(database)
                # What was written meanwhile keeps the log from beginning anew: fold those few pages in undisturbed.
                with self._writer_lock:
                    self._fold(database)
        finally:
            database.close()

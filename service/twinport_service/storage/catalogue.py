"""The catalogue: manifests of stored files and finished uploads, in one SQLite table of publications.

A row is written, durably, *before* its file is renamed into place, many rows in one transaction; so a row may speak
of a file that never came. Rows up to ``settled`` are certain; those after it belong to the last batch before a crash,
and the next start decides them by looking at the files (:meth:`Catalogue.pending`). The newest row of a path counts,
and only while inode, size and mtime of the file are the row's and its ctime is not after the row's ``ctime_ns``: the
moment when the batch had been renamed, or when the file was hashed. (The device number is left out: it may change
when a machine starts again.)

A rename to another name is noted, durably, before it is done, and taken back once the rows have followed: so the next
start knows whose a moved file is (:meth:`Catalogue.unfinished_moves`).

What can wait (settling, forgetting deleted files) is done at the beginning of the next transaction. One connection
writes, one reads, each under its lock.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from twinport_protocol.errors import ErrorCode
from twinport_protocol.names import parse_name

from twinport_service.usage import Owned, Stored

from .contract import Published
from .descriptors import LeastRecentlyUsed
from .rows import Move, NewRow, OwnedPath, Row, signed
from .schema import (
    BELOW,
    COLUMNS,
    FOLLOW,
    FOLLOW_BELOW,
    FORGET,
    FORGET_BELOW,
    INSERT,
    NEWER,
    NO_MOVES,
    OWNED,
    SCHEMA,
)
from .troubles import StorageUnknown, refusal_of_database

FORMAT_VERSION = 1
FINISHED_SECONDS = 24 * 3600
PURGE_ROWS = 5000
_IN_CHUNK = 500
_RECENT_ROWS = 8192
_SPANS = 16
_T = TypeVar("_T")


class Catalogue:
    """See the module. ``path`` is the database; ``now`` gives wall-clock seconds. Methods raise ``sqlite3.Error``."""

    def __init__(self, path: str, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._chores: list[tuple[str, tuple[object, ...]]] = []
        self._unsettled: dict[bytes, Published] = {}
        self._spans: deque[tuple[int, int, int]] = deque(maxlen=_SPANS)
        """Of the last batches: first id, last id, ctime; for rows that were read before they were settled."""
        self._recent: LeastRecentlyUsed[str, Row] = LeastRecentlyUsed(_RECENT_ROWS)
        self._swept_id = 0
        self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._prepare_database(path)
            self._reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
        except BaseException:
            self._writer.close()
            raise
        self._last_id: int = self._writer.execute("SELECT coalesce(max(id), 0) FROM publications").fetchone()[0]
        self._last_id = max(self._last_id, self._writer.execute("SELECT id FROM settled").fetchone()[0])

    def _prepare_database(self, path: str) -> None:
        try:
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute("PRAGMA wal_autocheckpoint = 4000")
            if version == 0:
                self._writer.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT_VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            raise StorageUnknown(
                f"{path} is not a database that can be read ({error}); move it away, and manifests are made anew"
            ) from error
        if version not in (0, FORMAT_VERSION):
            raise StorageUnknown(f"{path} was written by a newer twinportd (format {version}); install that version")

    def close(self) -> None:
        """Do the chores, close the database."""
        try:
            self.settle()
        finally:
            self._reader.close()
            self._writer.close()

    # writing ---------------------------------------------------------------------------------------------------------

    def record(self, rows: Sequence[NewRow]) -> int:
        """Write rows durably in one transaction, chores first; the id of the first, the others follow it.

        ``sqlite3.IntegrityError`` (nothing written) when an upload of them has a row already.
        """
        with self._write_lock:
            first = self._transact(lambda: self._insert(rows))
            self._last_id += len(rows)
            return first

    def record_replacing(self, rows: Sequence[NewRow]) -> tuple[int, Mapping[str, Owned]]:
        """The same; and whose the files are that stand under these names until then."""
        with self._write_lock:
            owners, first = self._transact(lambda: (self._owners([row.path for row in rows]), self._insert(rows)))
            self._last_id += len(rows)
            return first, owners

    def _insert(self, rows: Sequence[NewRow]) -> int:
        first, now = self._last_id + 1, int(self._now())
        values = [
            (first + index, path, upload, size, mtime_ns, ctime_ns, signed(inode), root, digests, user, now)
            for index, (path, upload, size, mtime_ns, ctime_ns, inode, root, digests, user) in enumerate(rows)
        ]
        self._writer.executemany(INSERT, values)
        return first

    def _transact(self, work: Callable[[], _T], ending: str = "COMMIT") -> _T:
        """Chores and ``work`` in one transaction."""
        chores = len(self._chores)
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            for statement, parameters in self._chores:
                self._writer.execute(statement, parameters)
            result = work()
            self._writer.execute(ending)
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise
        if ending == "COMMIT":
            del self._chores[:chores]
            self._unsettled.clear()
        return result

    def settle_later(self, first: int, last: int, ctime_ns: int, published: Iterable[Published]) -> None:
        """The rows ``first``…``last`` have become files, durably, by ``ctime_ns``. Written with the next
        transaction."""
        with self._write_lock:
            self._chores.append(
                ("UPDATE publications SET ctime_ns = ? WHERE id BETWEEN ? AND ?", (ctime_ns, first, last))
            )
            self._chores.append(("UPDATE settled SET id = max(id, ?)", (last,)))
            self._spans.append((first, last, ctime_ns))
            self._unsettled.update((outcome.upload_id, outcome) for outcome in published)

    def drop_later(self, row_ids: Iterable[int]) -> None:
        """Rows did not become files."""
        with self._write_lock:
            self._chores.extend(("DELETE FROM publications WHERE id = ?", (row_id,)) for row_id in row_ids)

    def forget_later(self, path: str) -> None:
        """The file at ``path`` was deleted."""
        with self._write_lock:
            self._chores.append((FORGET, (path, self._last_id)))

    def settle(self) -> None:
        """Do the chores now, if there are any."""
        if self._chores:
            self.record(())

    @property
    def has_chores(self) -> bool:
        """Whether something waits for the next transaction."""
        return bool(self._chores)

    def begin_move(self, move: Move) -> list[Owned]:
        """A rename is about to be done: noted durably, unless there is no room for that. Whose files the newest rows at
        and below its target speak of. For the holder of the publication lock, who ends it by :meth:`follow` or
        :meth:`cancel_move`."""

        def look() -> list[Owned]:
            below = self._writer.execute(
                f"SELECT user, size, max(id) FROM publications WHERE {BELOW} GROUP BY path",  # noqa: S608
                _range_below(move.target),
            )
            owners = self._owners([move.target]).values()
            return [*owners, *(Owned(*found[:2]) for found in below if found[0] is not None)]

        def note() -> list[Owned]:
            self._writer.execute("INSERT INTO moves VALUES (?, ?, ?)", move)
            return look()

        with self._write_lock:
            try:
                return self._transact(note)
            except sqlite3.OperationalError as error:
                if refusal_of_database(error).code is not ErrorCode.DISK_FULL:
                    raise
                # Names may change on a full disk, too. Only who dies in the middle of it leaves a wrong owner.
                return self._transact(look, ending="ROLLBACK")

    def cancel_move(self) -> None:
        """The rename that was begun has not been done."""
        with self._write_lock:
            self._chores.append(NO_MOVES)

    def follow(self, source: str, target: str, ctime_ns: int) -> None:
        """The file or directory ``source`` was renamed to ``target``, durably; a file has the given ctime since."""
        with self._write_lock:
            last = self._last_id
            # The row that moves gets a new path first; the older rows of the source then stand for nothing.
            self._chores += [
                (FORGET, (target, last)),
                (FOLLOW, (target, ctime_ns, source, last)),
                (FORGET, (source, last)),
                (FORGET_BELOW, (*_range_below(target), last)),
                (FOLLOW_BELOW, (target, len(source) + 1, *_range_below(source), last)),
                NO_MOVES,
            ]
        self.settle()

    def purge(self) -> None:
        """Forget finished uploads older than 24 h and rows that no longer count, a bounded number per call."""
        oldest = int(self._now()) - FINISHED_SECONDS
        with self._write_lock:
            found = self._writer.execute(
                "SELECT id FROM publications WHERE id > ? AND published_at < ? ORDER BY id LIMIT ?",
                (self._swept_id, oldest, PURGE_ROWS),
            ).fetchall()
            first, self._swept_id = self._swept_id, found[-1][0] if len(found) == PURGE_ROWS else 0
            if found:
                span = (first, found[-1][0], oldest)
                where = "WHERE id > ? AND id <= ? AND published_at < ?"
                self._chores += [
                    (f"DELETE FROM publications AS old {where} AND (path IS NULL OR EXISTS ({NEWER}))", span),  # noqa: S608
                    (f"UPDATE publications SET upload = NULL {where} AND upload IS NOT NULL", span),  # noqa: S608
                ]
        self.settle()

    # reading ---------------------------------------------------------------------------------------------------------

    def recent(self, path: str) -> Row | None:
        """The row that a listing found for a path a while ago, without asking the database: whoever lists a directory
        fetches from it next. Not always the newest, but one that matches a file speaks of that file: any later one
        has a later ctime."""
        with self._read_lock:
            return self._recent.get(path)

    def current(self, path: str) -> Row | None:
        """The newest row of a path."""
        with self._read_lock:
            found = self._reader.execute(
                f"SELECT {COLUMNS} FROM publications WHERE path = ? ORDER BY id DESC LIMIT 1",  # noqa: S608
                (path,),
            ).fetchone()
        return None if found is None else self._timed(Row(*found))

    def current_of(self, paths: Sequence[str]) -> dict[str, Row]:
        """The newest rows of many paths, by path."""
        newest: dict[str, Row] = {}
        for start in range(0, len(paths), _IN_CHUNK):
            chunk = paths[start : start + _IN_CHUNK]
            marks = ",".join("?" * len(chunk))
            query = f"SELECT {COLUMNS} FROM publications WHERE path IN ({marks}) ORDER BY id"  # noqa: S608
            with self._read_lock:
                newest.update((found[1], self._timed(Row(*found))) for found in self._reader.execute(query, chunk))
                for path in chunk:
                    row = newest.get(path)
                    if row is not None and row.ctime_ns is not None and row.digests is None:
                        self._recent.put(path, row)
        return newest

    def _timed(self, row: Row) -> Row:
        """The row with the ctime that the next transaction will give it."""
        if row.ctime_ns is None:
            for first, last, ctime_ns in tuple(self._spans):
                if first <= row.id <= last:
                    return row._replace(ctime_ns=ctime_ns)
        return row

    def finished(self, upload_id: bytes) -> Published | None:
        """What an upload of the last 24 h is known to have published."""
        # In this order: a transaction is readable before what it settles leaves this table.
        unsettled = self._unsettled.get(upload_id)
        if unsettled is not None:
            return replace(unsettled, is_repeated=True)
        with self._read_lock:
            found = self._reader.execute(
                "SELECT coalesce(name, path), size, mtime_ns, root, user FROM publications"
                " WHERE upload = ? AND published_at >= ? AND id <= (SELECT id FROM settled)",
                (upload_id, int(self._now()) - FINISHED_SECONDS),
            ).fetchone()
        if found is None:
            return None
        path, size, mtime_ns, root, user = found
        return Published(upload_id, parse_name(path), size, mtime_ns, root, user, is_repeated=True)

    def recorded(self, upload_ids: Collection[bytes]) -> set[bytes]:
        """Those uploads that have a row, whether or not it became a file."""
        with self._read_lock:
            query = "SELECT 1 FROM publications WHERE upload = ?"
            return {upload for upload in upload_ids if self._reader.execute(query, (upload,)).fetchone() is not None}

    @property
    def last_id(self) -> int:
        """The id of the newest row."""
        return self._last_id

    def has_newer_below(self, path: str, row_id: int) -> bool:
        """Whether a row after that one speaks of a file below a directory."""
        with self._read_lock:  # the few newest rows, and not all below the path
            query = "SELECT 1 FROM publications WHERE id > ? AND +path > ? AND +path < ? LIMIT 1"
            return self._reader.execute(query, (row_id, *_range_below(path))).fetchone() is not None

    # owners ----------------------------------------------------------------------------------------------------------

    def stored(self) -> Mapping[str, Stored]:
        """What the files of each user come to, going by the newest rows; not during a batch."""
        query = f"SELECT user, sum(size), count(*) FROM publications AS old WHERE {OWNED} GROUP BY user"  # noqa: S608
        with self._read_lock:
            return {user: Stored(size, files) for user, size, files in self._reader.execute(query)}

    def owned_after(self, path: str, limit: int) -> list[OwnedPath]:
        """Paths after ``path`` that belong to somebody, in their order."""
        query = f"SELECT path, user, size FROM publications AS old WHERE path > ? AND {OWNED} ORDER BY path LIMIT ?"  # noqa: S608
        with self._read_lock:
            return [OwnedPath(found, Owned(*owned)) for found, *owned in self._reader.execute(query, (path, limit))]

    def owner(self, path: str) -> Owned | None:
        """Whose the file at a path is, as of this moment. For the holder of the publication lock."""
        return self._as_it_stands(lambda: self._owners([path])).get(path)

    def _as_it_stands(self, look: Callable[[], _T]) -> _T:
        """What ``look`` finds once the chores are done. They need not be durable: the next transaction sees to that."""
        with self._write_lock:
            if not self._chores:
                return look()
            self._writer.execute("PRAGMA synchronous = NORMAL")
            try:
                return self._transact(look)
            except sqlite3.OperationalError:  # no room, not even for the log: then without writing
                return self._transact(look, ending="ROLLBACK")
            finally:
                self._writer.execute("PRAGMA synchronous = FULL")

    def _owners(self, paths: Sequence[str]) -> dict[str, Owned]:
        owners: dict[str, Owned] = {}
        for start in range(0, len(paths), _IN_CHUNK):
            chunk = paths[start : start + _IN_CHUNK]
            marks = ",".join("?" * len(chunk))
            # Beside max(), SQLite takes the other columns from the row that has it.
            query = f"SELECT path, user, size, max(id) FROM publications WHERE path IN ({marks}) GROUP BY path"  # noqa: S608
            for path, user, size, _ in self._writer.execute(query, chunk):
                if user is not None:
                    owners[path] = Owned(user, size)
        return owners

    # after a crash ---------------------------------------------------------------------------------------------------

    def unfinished_moves(self) -> list[Move]:
        """Renames of which only the files can tell whether they were done; to be decided before :meth:`pending`."""
        with self._read_lock:
            return [Move(*found) for found in self._reader.execute("SELECT source, target, inode FROM moves")]

    def pending(self) -> list[Row]:
        """Rows of which only their files can tell whether they became true."""
        with self._read_lock:
            query = f"SELECT {COLUMNS} FROM publications WHERE id > (SELECT id FROM settled) ORDER BY id"  # noqa: S608
            return [Row(*found) for found in self._reader.execute(query)]

    def resolve(self, kept: Iterable[tuple[int, int]], dropped: Iterable[int]) -> None:
        """Decide pending rows: ``kept`` gives ids and the ctimes of their files."""
        with self._write_lock:
            self._chores += [("UPDATE publications SET ctime_ns = ? WHERE id = ?", (ctime, row)) for row, ctime in kept]
            self._chores += [("DELETE FROM publications WHERE id = ?", (row,)) for row in dropped]
            self._chores.append(("UPDATE settled SET id = max(id, ?)", (self._last_id,)))
        self.settle()


def _range_below(path: str) -> tuple[str, str]:
    """Everything below a directory: "0" is the character after "/"."""
    return path + "/", path + "0"

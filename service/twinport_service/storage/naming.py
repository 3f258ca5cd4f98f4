"""Naming: what happens to names besides publication: delete, move, make, and what an upload's name allows.

Changes are made under the publication lock and made durable after it is let go, but for moves: their rows follow only
what is durable. When making them durable fails, the outcome is unknown and the storage read-only.
"""

from __future__ import annotations

import errno
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.usage import UsageKeeper

from .catalogue import Catalogue
from .contract import UploadSpec
from .disk_door import DiskDoor
from .manifests import Manifests
from .rows import Move, signed
from .tree import Identity, OpenDirectories, Tree, check_plain, split
from .troubles import Health, refusal_of, refusal_of_database

_WALKS = 4


class Naming:
    """See the module. ``lock`` is the publication lock."""

    def __init__(
        self,
        door: DiskDoor,
        tree: Tree,
        catalogue: Catalogue,
        manifests: Manifests,
        lock: threading.Lock,
        health: Health,
        usage: UsageKeeper,
    ) -> None:
        self._door = door
        self._tree = tree
        self._catalogue = catalogue
        self._manifests = manifests
        self._lock = lock
        self._health = health
        self._usage = usage
        self._serial = 0
        """Counts what gives or may give a directory new names, but for publications: those the catalogue knows."""

    def matching(self, name: str, root: bytes) -> Identity:
        """The identity of the current version, if its root is ``root``; ``Changed`` otherwise. May take as long as
        hashing."""
        try:
            known = self._manifests.open(name)
        except Refusal as refusal:
            if refusal.code is ErrorCode.FILE_NOT_FOUND:
                raise Refusal(ErrorCode.CHANGED, "the file is gone") from None
            raise
        self._door.drop(known.fd)
        if known.manifest.root != root:
            raise Refusal(ErrorCode.CHANGED)
        return known.identity

    def check_publishable(self, spec: UploadSpec) -> None:
        """What is certain already about an upload's name. ``NameConflict``, ``Denied``, ``Exists``, ``Changed``."""
        try:
            facts = self._tree.facts(spec.name)
        except FileNotFoundError:
            if spec.precondition.if_match is not None:
                raise Refusal(ErrorCode.CHANGED, "the file is gone") from None
            return
        except OSError as error:
            raise refusal_of(error) from None
        check_plain(facts)
        if stat.S_ISDIR(facts.st_mode):
            raise Refusal(ErrorCode.NAME_CONFLICT)
        if spec.precondition.if_absent:
            raise Refusal(ErrorCode.EXISTS)
        if spec.precondition.if_match is not None:
            manifest = self._manifests.recorded(spec.name, Identity.of(facts))
            if manifest is not None and manifest.root != spec.precondition.if_match:
                raise Refusal(ErrorCode.CHANGED)

    def delete(self, name: str, if_match: bytes | None) -> None:
        """See ``Storage.delete``."""
        self._health.check_writable()
        parent, leaf = split(name)
        if if_match is not None and stat.S_ISDIR(self._tree.look(name).st_mode):
            raise Refusal(ErrorCode.CHANGED, "a directory")
        verified = None
        if if_match is not None:
            verified = self.matching(name, if_match)
        with OpenDirectories(self._door, self._tree) as directories:
            try:
                with self._lock:
                    facts = self._door.stat_at(directories.open(parent), leaf)
                    check_plain(facts)
                    if verified is not None and Identity.of(facts) != verified:
                        raise Refusal(ErrorCode.CHANGED)
                    if stat.S_ISDIR(facts.st_mode):
                        self._door.remove_directory(directories.open(parent), leaf)
                    else:
                        owned = self._catalogue.owner(name)
                        self._door.unlink(directories.open(parent), leaf)
                        self._catalogue.forget_later(name)
                        if owned is not None:
                            self._usage.removed((owned,))
                    directories.note_change(parent)
            except NotADirectoryError as error:
                raise Refusal(ErrorCode.FILE_NOT_FOUND, str(error)) from None
            except OSError as error:
                raise refusal_of(error) from None
            except sqlite3.Error as error:
                raise refusal_of_database(error) from None
            self._flush(directories)

    def move(self, source: str, target: str, *, if_absent: bool) -> None:
        """See ``Storage.move``."""
        self._health.check_writable()
        is_directory = stat.S_ISDIR(self._tree.look(source).st_mode)
        if source == target:
            if if_absent:
                raise Refusal(ErrorCode.EXISTS)
            return
        if target.startswith(source + "/"):
            raise Refusal(ErrorCode.NAME_CONFLICT, "a directory into itself" if is_directory else "beneath a file")
        growth_bytes = len(target.encode()) - len(source.encode()) if is_directory else 0
        with OpenDirectories(self._door, self._tree) as directories:
            try:
                with self._names_checked(source, growth_bytes):
                    self._rename(source, target, directories, is_new=if_absent or is_directory)
            except OSError as error:
                raise refusal_of(error) from None
            except sqlite3.Error as error:
                # The file has moved. Its manifest follows with the next transaction, or is made anew.
                if refusal_of_database(error).code is not ErrorCode.DISK_FULL:
                    self._health.fail("writing the catalogue", error)

    @contextmanager
    def _names_checked(self, directory: str, growth_bytes: int) -> Iterator[None]:
        """Holds the publication lock, with room for the growth of all names below a directory; ``InvalidName``.

        A walk may take long and must not hold up publications, so it comes first, and is repeated if new names have
        come meanwhile."""
        for _ in range(_WALKS):
            serial, row_id = self._serial, self._catalogue.last_id
            if growth_bytes > 0 and not self._tree.has_room_for_names(directory, growth_bytes):
                raise Refusal(ErrorCode.INVALID_NAME, "a name in the directory would become too long")
            with self._lock:
                if growth_bytes <= 0 or (
                    serial == self._serial and not self._catalogue.has_newer_below(directory, row_id)
                ):
                    self._serial += 1
                    yield
                    return
        raise Refusal(ErrorCode.BUSY, "new names keep coming into the directory", retry_seconds=1)

    def _rename(self, source: str, target: str, directories: OpenDirectories, *, is_new: bool) -> None:
        source_parent, source_leaf = split(source)
        target_parent, target_leaf = split(target)
        above = directories.open(source_parent)
        # Look before parents are made: a refused move leaves nothing behind.
        self._check_target(target, is_new=is_new)
        inode = self._door.stat_at(above, source_leaf).st_ino
        try:
            replaced = self._catalogue.begin_move(Move(source, target, signed(inode)))
        except sqlite3.Error as error:
            raise refusal_of_database(error) from None
        try:
            below = directories.make(target_parent)
            if is_new:
                self._door.rename_new(above, source_leaf, below, target_leaf)
            else:
                self._door.rename(above, source_leaf, below, target_leaf)
        except OSError as error:
            self._catalogue.cancel_move()
            if is_new and error.errno == errno.EINVAL:
                raise Refusal(ErrorCode.NAME_CONFLICT, str(error)) from None
            raise
        self._usage.removed(replaced)
        directories.note_change(source_parent)
        directories.note_change(target_parent)
        ctime_ns = self._door.stat_at(below, target_leaf).st_ctime_ns
        # The names first: rows that had followed a rename which a power cut takes back would speak of another file.
        self._flush(directories)
        self._catalogue.follow(source, target, ctime_ns)

    def _check_target(self, target: str, *, is_new: bool) -> None:
        try:
            facts = self._tree.facts(target)
        except FileNotFoundError:
            return
        check_plain(facts)
        if is_new:
            raise Refusal(ErrorCode.EXISTS)
        if stat.S_ISDIR(facts.st_mode):
            raise Refusal(ErrorCode.NAME_CONFLICT)

    def make_directory(self, name: str) -> bool:
        """See ``Storage.make_directory``."""
        self._health.check_writable()
        with OpenDirectories(self._door, self._tree) as directories:
            try:
                with self._lock:
                    self._serial += 1
                    directories.make(name)
            except OSError as error:
                raise refusal_of(error) from None
            self._flush(directories)
            return directories.has_made

    def _flush(self, directories: OpenDirectories) -> None:
        try:
            directories.flush()
        except OSError as error:
            self._health.fail("flushing a directory", error)
            raise Refusal(ErrorCode.OUTCOME_UNKNOWN, str(error)) from None

"""Listings: what is under the root, page by page, in the order of the UTF-8 bytes of the full path.

Only plain files and directories with names that the protocol can say are listed. A directory's sorted names are kept,
at most ``cached_names`` in all, while its inode, mtime and ctime stay the same, so that each page of a large
directory costs what is in the page. Names read within ``SETTLE_NS`` of the directory's last change are used once and
not kept: another change within the same tick of the clock would not show.
"""

from __future__ import annotations

import bisect
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.names import parse_name

from .catalogue import Catalogue
from .contract import Entry, Page
from .disk_door import DiskDoor
from .tree import Identity, Tree, split
from .troubles import refusal_of

SETTLE_NS = 100_000_000


class _Names(NamedTuple):
    identity: Identity
    keys: Sequence[str]
    """Names as listing keys (a directory ends in ``/``), without the directory's own path, sorted."""


class Listing:
    """See the module."""

    def __init__(
        self,
        door: DiskDoor,
        tree: Tree,
        catalogue: Catalogue,
        *,
        cached_names: int = 500_000,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._door = door
        self._tree = tree
        self._catalogue = catalogue
        self._cached_names = cached_names
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, _Names] = OrderedDict()
        self._count = 0

    def page(self, prefix: str, after: str, limit: int, *, recursive: bool) -> Page:
        """See ``Storage.list``."""
        if prefix:
            facts = self._tree.look(prefix)
            if stat.S_ISREG(facts.st_mode):
                return Page(self._with_roots([_found(prefix, facts)]), False) if prefix > after else Page((), False)
        entries: list[tuple[Entry, Identity]] = []
        keys = self._walk(prefix + "/" if prefix else "", after) if recursive else self._below(prefix, after)
        with closing(self._look_at(keys)) as looked_at:
            for name, facts in looked_at:
                if len(entries) == limit:
                    return Page(self._with_roots(entries), True)
                entries.append(_found(name, facts))
        return Page(self._with_roots(entries), False)

    def _look_at(self, keys: Iterator[str]) -> Generator[tuple[str, os.stat_result], None, None]:
        """Names and facts of what is still there; a directory is resolved once for all that follow each other in it."""
        opened, directory = "", -1
        try:
            for key in keys:
                name = key.rstrip("/")
                parent, leaf = split(name)
                try:
                    if directory < 0 or parent != opened:
                        if directory >= 0:
                            self._door.drop(directory)
                            directory = -1
                        opened, directory = parent, self._tree.open_directory(parent)
                    facts = self._door.stat_at(directory, leaf)
                except OSError:
                    continue  # gone since its directory was read
                if stat.S_ISDIR(facts.st_mode) if key.endswith("/") else stat.S_ISREG(facts.st_mode):
                    yield name, facts
        finally:
            if directory >= 0:
                self._door.drop(directory)

    def entry(self, name: str) -> Entry:
        """See ``Storage.stat``."""
        return self._with_roots([_found(name, self._tree.look(name))])[0]

    def _with_roots(self, found: Sequence[tuple[Entry, Identity]]) -> Sequence[Entry]:
        rows = self._catalogue.current_of([entry.name for entry, _ in found if entry.kind == "f"])
        return [
            replace(entry, root=row.root) if (row := rows.get(entry.name)) and row.matches(identity) else entry
            for entry, identity in found
        ]

    def _below(self, prefix: str, after: str) -> Iterator[str]:
        """Keys directly below a directory that follow ``after``."""
        start = prefix + "/" if prefix else ""
        keys = self._keys(prefix)
        for index in range(_first_after(keys, start, after), len(keys)):
            if start + keys[index] > after:
                yield start + keys[index]

    def _walk(self, start: str, after: str) -> Iterator[str]:
        """Keys of all files and empty directories below ``start`` that follow ``after``, depth first: that is their
        order."""
        keys = self._keys(start[:-1])
        stack = [(start, keys, _first_after(keys, start, after))]
        while stack:
            start, keys, index = stack.pop()
            if index == len(keys):
                continue
            stack.append((start, keys, index + 1))
            key = start + keys[index]
            if not key.endswith("/"):
                if key > after:
                    yield key
                continue
            try:
                below = self._keys(key[:-1])
            except Refusal:
                continue  # gone since the directory above was read, or not ours to read
            if below:
                stack.append((key, below, _first_after(below, key, after)))
            elif key > after:
                yield key

    def _keys(self, path: str) -> Sequence[str]:
        """The sorted keys of a directory, from the cache or from the disk."""
        try:
            directory = self._tree.open_directory(path)
        except NotADirectoryError as error:
            raise Refusal(ErrorCode.FILE_NOT_FOUND, str(error)) from None
        except OSError as error:
            raise refusal_of(error) from None
        try:
            identity = Identity.of(self._door.fstat(directory))
            with self._lock:
                names = self._cache.get(path)
                if names is not None and names.identity == identity:
                    self._cache.move_to_end(path)
                    return names.keys
            started_ns = self._now_ns()
            keys = self._read(directory, path + "/" if path else "")
            has_rested = max(identity.mtime_ns, identity.ctime_ns) < started_ns - SETTLE_NS
            if has_rested and Identity.of(self._door.fstat(directory)) == identity:
                self._keep(path, _Names(identity, keys))
            return keys
        except OSError as error:
            raise refusal_of(error) from None
        finally:
            self._door.drop(directory)

    def _read(self, directory: int, start: str) -> Sequence[str]:
        keys: list[str] = []
        for name, kind in self._door.scan(directory):
            if kind == "-":
                continue
            try:
                parse_name(start + name)
            except RemoteProtocolError:
                continue
            keys.append(name + "/" if kind == "d" else name)
        # Strings compare by code point, which is the order of their UTF-8 bytes.
        keys.sort()
        return keys

    def _keep(self, path: str, names: _Names) -> None:
        with self._lock:
            previous = self._cache.pop(path, None)
            self._count += len(names.keys) - (len(previous.keys) if previous is not None else 0)
            self._cache[path] = names
            while self._cache and self._count > self._cached_names:
                self._count -= len(self._cache.popitem(last=False)[1].keys)


def _first_after(keys: Sequence[str], start: str, after: str) -> int:
    """The first of the keys below ``start`` that follows ``after`` or holds what does."""
    if after < start:
        return 0
    if not after.startswith(start):
        return len(keys)
    component, slash, _ = after[len(start) :].partition("/")
    return bisect.bisect_left(keys, component + slash)


def _found(name: str, facts: os.stat_result) -> tuple[Entry, Identity]:
    if stat.S_ISDIR(facts.st_mode):
        return Entry(name, "d", 0, facts.st_mtime_ns), Identity.of(facts)
    is_executable = bool(facts.st_mode & stat.S_IXUSR)
    return Entry(name, "f", facts.st_size, facts.st_mtime_ns, is_executable), Identity.of(facts)

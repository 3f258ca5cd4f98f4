"""The tree of files beneath a root: names become descriptors here, and nowhere else.

A remote name was judged as text before it comes here; what counts is that the kernel resolves it by ``openat2`` beneath
the root's descriptor without passing a symlink, so that no name, planted link or race leads outside.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import MAX_NAME_BYTES

from .disk_door import O_PATH, DiskDoor
from .troubles import refusal_of

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


class Identity(NamedTuple):
    """What tells one version of a file from another without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, facts: os.stat_result) -> Identity:
        """The identity in what ``fstat`` says."""
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def split(name: str) -> tuple[str, str]:
    """The directory ("" for the root) and the last component of a name."""
    parent, _, leaf = name.rpartition("/")
    return parent, leaf


def check_plain(facts: os.stat_result) -> None:
    """``Denied`` for anything but a plain file or a directory."""
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise Refusal(ErrorCode.DENIED, "neither a file nor a directory")


class Tree:
    """The directories and files beneath ``root_fd``. Methods raise ``OSError`` unless they say otherwise."""

    def __init__(self, door: DiskDoor, root_fd: int) -> None:
        self._door = door
        self._root_fd = root_fd
        self._unflushed_lock = threading.Lock()
        self._unflushed: dict[str, int] = {}
        self._made = 0

    def note_made(self, parent: str) -> None:
        """A directory was made in ``parent``: whoever relies on it, too, makes that durable before saying so."""
        with self._unflushed_lock:
            self._made += 1
            self._unflushed[parent] = self._made

    def unflushed_above(self, path: str) -> list[str]:
        """The parents of ``path`` and of its parents in which a directory was made that may not be durable yet."""
        if not self._unflushed:
            return []
        found = []
        while path:
            path = split(path)[0]
            if path in self._unflushed:
                found.append(path)
        return found

    def flush_directory(self, path: str, descriptor: int) -> None:
        """Make the names in a directory durable."""
        serial = self._unflushed.get(path)
        self._door.fsync_directory(descriptor)
        with self._unflushed_lock:
            if serial is not None and self._unflushed.get(path) == serial:  # else another came after the flush began
                del self._unflushed[path]

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A directory's descriptor for a while."""
        descriptor = self.open_directory(path)
        try:
            yield descriptor
        finally:
            self._door.drop(descriptor)

    def open_directory(self, path: str) -> int:
        """A directory's descriptor, to be closed by the caller."""
        if not path:
            return self._door.open_at(self._root_fd, ".", _OPEN_DIRECTORY)
        return self._door.open_beneath(self._root_fd, path, _OPEN_DIRECTORY)

    def facts(self, name: str) -> os.stat_result:
        """What stands under a name; of a symlink itself."""
        if "/" not in name:
            return self._door.stat_at(self._root_fd, name)
        descriptor = self._door.open_beneath(self._root_fd, name, O_PATH)
        try:
            return self._door.fstat(descriptor)
        finally:
            self._door.drop(descriptor)

    def look(self, name: str) -> os.stat_result:
        """What stands under a name, for a reader: refusals ``FileNotFound``, ``Denied`` for what is not plain."""
        try:
            facts = self.facts(name)
        except NotADirectoryError as error:
            raise Refusal(ErrorCode.FILE_NOT_FOUND, str(error)) from None
        except OSError as error:
            raise refusal_of(error) from None
        check_plain(facts)
        return facts

    def open_file(self, name: str) -> tuple[int, Identity, int]:
        """A plain file's descriptor, identity and mode, to be closed by the caller; refusals as :meth:`look`."""
        try:
            descriptor = self._door.open_beneath(self._root_fd, name, _OPEN_FILE)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Refusal(ErrorCode.FILE_NOT_FOUND, str(error)) from None
        except OSError as error:
            raise refusal_of(error) from None
        try:
            facts = self._door.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise Refusal(ErrorCode.DENIED, "not a plain file")
        except BaseException:
            self._door.drop(descriptor)
            raise
        return descriptor, Identity.of(facts), facts.st_mode

    def has_room_for_names(self, directory: str, growth_bytes: int) -> bool:
        """Whether each name below ``directory`` stays a name when it grows by that much. What is no name already, for
        its length or its bytes, does not count. Walks all that is there, a directory at a time."""
        waiting = [directory]
        while waiting:
            path = waiting.pop()
            try:
                with self.directory(path) as descriptor:
                    for leaf, kind in self._door.scan(descriptor):
                        try:
                            length = len(path.encode()) + 1 + len(leaf.encode())
                        except UnicodeEncodeError:
                            continue
                        if kind == "-" or length > MAX_NAME_BYTES:
                            continue
                        if length + growth_bytes > MAX_NAME_BYTES:
                            return False
                        if kind == "d":
                            waiting.append(f"{path}/{leaf}")
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # gone meanwhile, or nobody gets to see what is in it
        return True


class OpenDirectories:
    """Directories opened during one batch of changes, by path, and which of them have new names to make durable.

    A context manager; used by one thread. A path is resolved once per batch: what another program moves about meanwhile
    takes a published file along, as it would a moment later.
    """

    def __init__(self, door: DiskDoor, tree: Tree) -> None:
        self._door = door
        self._tree = tree
        self._descriptors: dict[str, int] = {}
        self._changed: dict[str, None] = {}
        self.has_made = False
        """Whether :meth:`make` has made anything."""

    def __enter__(self) -> OpenDirectories:
        return self

    def __exit__(self, *exception: object) -> None:
        while self._descriptors:
            self._door.drop(self._descriptors.popitem()[1])

    def open(self, path: str) -> int:
        """An existing directory."""
        descriptor = self._descriptors.get(path)
        if descriptor is None:
            descriptor = self._descriptors[path] = self._tree.open_directory(path)
        return descriptor

    def make(self, path: str) -> int:
        """A directory that is made, with its parents, if it is not there; ``ENOTDIR`` where a file is in the way.

        One that another batch has made and not flushed yet is flushed by this one as well."""
        try:
            descriptor = self.open(path)
        except FileNotFoundError:
            parent, leaf = split(path)
            above = self.make(parent)
            try:
                self._door.make_directory(above, leaf)
            except FileExistsError:
                pass
            else:
                self._tree.note_made(parent)
                self._changed[parent] = None
                self.has_made = True
            descriptor = self.open(path)
        for unflushed in self._tree.unflushed_above(path):
            self.open(unflushed)  # now: it may be moved before the flush
            self._changed[unflushed] = None
        return descriptor

    def note_change(self, path: str) -> None:
        """A name in an opened directory was added, replaced or removed."""
        self._changed[path] = None

    def flush(self) -> None:
        """Make all changes durable."""
        while self._changed:
            path = next(iter(self._changed))
            self._tree.flush_directory(path, self.open(path))
            del self._changed[path]

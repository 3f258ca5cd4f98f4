"""Where downloads land: directories below one local root, reached without following a single symlink on the way.

The root is what the user named and may be anything. Below it every directory is opened from its parent's descriptor
with ``O_NOFOLLOW``, so that neither a server that sends clever names nor a link that somebody left in the tree leads
out of it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict

from twinport_protocol.errors import ProtocolError
from twinport_protocol.names import is_portable, parse_name

from .errors import DeniedError, IntegrityError, TwinportError, UsageError, local_failure
from .walk import is_partial_name, show

MAX_CACHED = 64
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """An open directory below the root. Held by its users; closed when evicted and no longer held."""

    __slots__ = ("descriptor", "is_new", "users")

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.users = 0
        self.is_new = False


class TargetTree:
    """The directories below ``root``, which is made if missing. Any thread may use it; close it after the last user."""

    def __init__(self, root: str, max_cached: int = MAX_CACHED) -> None:
        self._path = root
        self._max_cached = max_cached
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Directory] = OrderedDict()
        try:
            os.makedirs(root, exist_ok=True)
            # The root itself may be a link: the user named it.
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileExistsError, NotADirectoryError):
            text = "it is no directory, or below a file; choose another place"
            raise UsageError(f"cannot write to {show(root)}: {text}") from None
        except OSError as error:
            raise local_failure(f"cannot write to {show(root)}", error) from None
        self._root = Directory(descriptor)
        self._made: set[str] = set()

    def show(self, name: str) -> str:
        """A target for people."""
        return show(os.path.join(self._path, name))

    def hold(self, parent: str) -> Directory:
        """The directory with that name below the root ("" is the root), made if missing; :meth:`release` it.

        ``DeniedError`` where a component is a symlink or no directory; ``OSError`` otherwise.
        """
        with self._lock:
            directory = self._find(parent)
            directory.users += 1
            return directory

    def _find(self, parent: str) -> Directory:
        if not parent:
            return self._root
        known = self._open.get(parent)
        if known is not None:
            self._open.move_to_end(parent)
            return known
        above, _, base = parent.rpartition("/")
        upper = self._find(above)
        upper.users += 1  # not to be evicted while it is needed here
        try:
            descriptor = self._enter(upper, parent, base)
        finally:
            upper.users -= 1
        directory = Directory(descriptor)
        self._open[parent] = directory
        self._evict(directory)
        return directory

    def _enter(self, upper: Directory, parent: str, base: str) -> int:
        try:
            try:
                return os.open(base, _DIRECTORY_FLAGS, dir_fd=upper.descriptor)
            except FileNotFoundError:
                os.mkdir(base, dir_fd=upper.descriptor)
                self._made.add(parent.rpartition("/")[0])
                self._made.add(parent)
                return os.open(base, _DIRECTORY_FLAGS, dir_fd=upper.descriptor)
        except NotADirectoryError:
            # Linux says this for a symlink too.
            what = "a symbolic link or a file" if os.path.lexists(os.path.join(self._path, parent)) else "in the way"
            raise DeniedError(f"cannot write below {self.show(parent)}: it is {what}; remove it first") from None
        except OSError as error:
            raise local_failure(f"cannot write below {self.show(parent)}", error) from None

    def _evict(self, keep: Directory) -> None:
        if len(self._open) <= self._max_cached:
            return
        for parent, directory in list(self._open.items()):
            if directory.users == 0 and directory is not keep:
                del self._open[parent]
                os.close(directory.descriptor)
                if len(self._open) <= self._max_cached:
                    return

    def release(self, directory: Directory) -> None:
        """No longer needed by who held it."""
        with self._lock:
            directory.users -= 1

    def make_directory(self, name: str) -> None:
        """An empty directory."""
        self.release(self.hold(name))

    def sync_made(self) -> None:
        """Make durable the directories that were made, and their names in their parents. ``OSError``."""
        with self._lock:
            made, self._made = sorted(self._made), set()
        try:
            while made:
                directory = self.hold(made[-1])
                try:
                    os.fsync(directory.descriptor)
                finally:
                    self.release(directory)
                made.pop()
        finally:
            with self._lock:  # what could not be flushed is no more durable for the next who asks
                self._made.update(made)

    def close(self) -> None:
        """Close all; nobody may hold anything any more."""
        with self._lock:
            for directory in self._open.values():
                os.close(directory.descriptor)
            self._open.clear()
            if self._root.descriptor >= 0:
                os.close(self._root.descriptor)
                self._root.descriptor = -1


def safe_name(name: str, platform: str = sys.platform) -> str:
    """``name`` as it came from the server, if it can be nothing but a path below the target; else raises.

    ``IntegrityError``: no honest server lists such a name. ``DeniedError``: this system has no such file name, or it
    is one of those under which unfinished downloads are kept, so that one file's bytes could end up under another name.
    """
    try:
        safe = parse_name(name)
    except ProtocolError:
        text = "the server names a file in a way that could lead outside the target; nothing was written for it"
        raise IntegrityError(f"{show(name)}: {text}", "InvalidName") from None
    if platform == "win32" and not is_portable(safe):
        raise DeniedError(f"{show(name)}: Windows has no such file name; rename it on the server", "InvalidName")
    if any(map(is_partial_name, safe.split("/"))):
        text = "such names are kept for unfinished downloads here; rename or remove it on the server"
        raise DeniedError(f"{show(name)}: {text}", "InvalidName")
    return safe


def as_failure(subject: str, error: OSError | TwinportError) -> TwinportError:
    """A failure of the target as an error of this library."""
    return error if isinstance(error, TwinportError) else local_failure(subject, error)

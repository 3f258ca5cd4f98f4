"""Finding what to send: local paths in, sources with remote names out, while the transfer already runs.

Entries come in the order of listings (bytes of the key, a directory's ends in ``/``). Symlinks are skipped with a note
unless ``follow`` is set, and then only where they stay inside the tree. A name that no server takes is a failure of
that file; the rest goes on.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from twinport_protocol.errors import ProtocolError
from twinport_protocol.names import parse_name

from .errors import NotFoundError, SourceError, TwinportError, UsageError, local_failure
from .report import Failure
from .sources import SourceFile

PARTIAL_SUFFIX = ".twinport-part"


@dataclass(frozen=True)
class EmptyDirectory:
    """A directory without entries, by its remote name."""

    name: str


@dataclass(frozen=True)
class Note:
    """Something that was skipped, and why."""

    text: str


Found = SourceFile | EmptyDirectory | Note | Failure


def find_paths(
    paths: list[str], to: str, *, recursive: bool, follow: bool = False, exact: bool = False
) -> Iterator[Found]:
    """What is at ``paths``, to be called ``to/<last part of the path>`` on the server, or with ``exact`` just ``to``.

    A directory needs ``recursive``; ``.`` and what ends in ``/.`` stands for its content alone.
    """
    for path in paths:
        try:
            found = os.stat(path)
        except FileNotFoundError:
            yield Failure(show(path), NotFoundError(f"cannot send {show(path)}: there is no such file here"))
            continue
        except (OSError, ValueError) as error:
            cause = error if isinstance(error, OSError) else OSError(str(error))
            yield Failure(show(path), local_failure(f"cannot send {show(path)}", cause))
            continue
        name = to if exact else _join(to, remote_base(path))
        if stat.S_ISDIR(found.st_mode):
            if not recursive:
                text = f"cannot send {show(path)}: it is a directory; add -r (recursive=True) to send all in it"
                yield Failure(show(path), UsageError(text))
                continue
            yield from find_tree(path, name, follow=follow)
        elif stat.S_ISREG(found.st_mode):
            yield _named(SourceFile.of(path, name, found))
        else:
            yield Failure(show(path), SourceError(f"cannot send {show(path)}: it is neither a file nor a directory"))


def remote_base(path: str) -> str:
    """What a local path is called on the server: its last part, empty for ``.`` and ``…/.``, that of the full path for
    ``..``."""
    base = os.path.basename(path.rstrip(os.sep))
    if base == "." or not path.strip(os.sep):
        return ""
    return os.path.basename(os.path.realpath(path)) if base in ("", "..") else base


def find_tree(path: str, name: str, *, follow: bool = False) -> Iterator[Found]:
    """Everything below the directory ``path``, under the remote name ``name``."""
    yield from _Walk(os.path.realpath(path), follow).tree(path, name)


class _Level:
    """One open directory of a walk: where it is, what of it is still to come, under which prefix, and which it is. Of
    what is in it only the names are kept, a directory's with a ``/`` at its end: there may be a million of them."""

    __slots__ = ("identity", "keys", "links", "path", "prefix")

    def __init__(
        self, path: str, keys: Iterator[str], links: set[str], prefix: str, identity: tuple[int, int] | None
    ) -> None:
        self.path = path
        self.keys = keys
        self.links = links
        self.prefix = prefix
        self.identity = identity


class _Walk:
    def __init__(self, real_root: str, follow: bool) -> None:
        self._inside = real_root.rstrip(os.sep) + os.sep
        self._follow = follow
        self._levels: list[_Level] = []
        self._above: set[tuple[int, int]] = set()
        """The directories on the way, so that a link loop ends."""

    def tree(self, path: str, name: str) -> Iterator[Found]:
        """One directory and what is below, however deep."""
        yield from self._enter(path, name)
        while self._levels:
            level = self._levels[-1]
            key = next(level.keys, None)
            if key is None:
                self._levels.pop()
                if level.identity is not None:
                    self._above.discard(level.identity)
                continue
            base = key.rstrip("/")
            path = os.path.join(level.path, base)
            if base in level.links and not self._may_follow(path):
                reason = "it does not stay inside the tree" if self._follow else "it is a symbolic link"
                yield Note(f"skipped {show(path)}: {reason}")
            elif key.endswith("/"):
                yield from self._enter(path, level.prefix + base)
            else:
                yield self._file(path, base, level.prefix + base)

    def _enter(self, path: str, name: str) -> Iterator[Found]:
        """Go into a directory; itself, if there is nothing in it."""
        identity: tuple[int, int] | None = None
        keys: list[str] = []
        links: set[str] = set()
        try:
            with os.scandir(path) as scan:
                for entry in scan:
                    keys.append(entry.name + "/" if _is_directory(entry, self._follow) else entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
            if self._follow:
                here = os.stat(path)
                identity = (here.st_dev, here.st_ino)
        except OSError as error:
            yield Failure(show(path), local_failure(f"cannot read {show(path)}", error))
            return
        if not keys and name:
            refused = name_error(name, path)
            yield EmptyDirectory(name) if refused is None else Failure(show(path), refused)
            return
        keys.sort()
        if identity in self._above:
            identity = None  # mounted within itself: whoever entered first also leaves last
        elif identity is not None:
            self._above.add(identity)
        self._levels.append(_Level(path, iter(keys), links, name + "/" if name else "", identity))

    def _may_follow(self, path: str) -> bool:
        if not self._follow or not os.path.realpath(path).startswith(self._inside):
            return False
        try:
            target = os.stat(path)
        except OSError:
            return False
        return (target.st_dev, target.st_ino) not in self._above

    def _file(self, path: str, base: str, name: str) -> Found:
        try:
            found = os.stat(path)
        except OSError as error:
            return Failure(show(path), local_failure(f"cannot send {show(path)}", error))
        if not stat.S_ISREG(found.st_mode):
            return Note(f"skipped {show(path)}: it is neither a file nor a directory")
        if is_partial_name(base):
            return Note(f"skipped {show(path)}: it is an unfinished download")
        return _named(SourceFile.of(path, name, found))


def _is_directory(entry: os.DirEntry[str], follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError:
        return False


def _named(source: SourceFile) -> SourceFile | Failure:
    error = name_error(source.name, source.path)
    return source if error is None else Failure(show(source.path), error)


def name_error(name: str, path: str) -> TwinportError | None:
    """Why ``name`` cannot be the remote name of ``path``, or None."""
    try:
        parse_name(name)
    except ProtocolError as error:
        text = error.code.text
        if any("\udc80" <= char <= "\udcff" for char in name):
            text = "the name is not valid UTF-8; rename it"
        return SourceError(f"cannot send {show(path)}: {text} [{error.code.value}]", error.code.value)
    return None


def is_partial_name(base: str) -> bool:
    """Whether an unfinished download may be called so; where case is nothing, also in other letters."""
    return base.startswith(".") and base.casefold().endswith(PARTIAL_SUFFIX)


def show(path: str) -> str:
    """A local path for people: what is no text is escaped, so that no terminal takes it for a command."""
    if not path:
        return "''"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in path)


def _join(to: str, base: str) -> str:
    return f"{to}/{base}" if to and base else to or base

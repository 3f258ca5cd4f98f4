"""What a transfer is fed with: local trees compared with the server's listing, remote trees, single names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinport_protocol.errors import ProtocolError
from twinport_protocol.names import parse_name

from .download_engine import DownloadEngine
from .engine import Event, EventKind
from .errors import IntegrityError, NotFoundError, SourceError, TwinportError, UsageError, local_failure
from .report import Failure
from .sources import SourceChangedError, SourceFile, find_source, hash_file
from .target_tree import TargetTree, as_failure, safe_name
from .upload_engine import UploadEngine
from .walk import EmptyDirectory, Found, Note, find_paths, remote_base, show

if TYPE_CHECKING:
    from .entries import RemoteEntry

Listing = Callable[[str, bool], Iterator["RemoteEntry"]]


@dataclass(frozen=True)
class Kept:
    """A file that is on the server already, compared byte for byte by its root."""

    source: SourceFile


class UploadFeed:
    """Finds what to send. A directory is compared with what the server lists below the same name, so that a second run
    sends only what is missing: same size, same time, and the same root, hashed now."""

    def __init__(self, paths: list[str], to: str, *, recursive: bool, follow: bool, listing: Listing) -> None:
        self._paths = paths
        self._to = to
        self._recursive = recursive
        self._follow = follow
        self._listing = listing

    def items(self) -> Iterator[Found | Kept]:
        """Everything, in the order of names for each path."""
        tops: set[str] = set()
        for path in self._paths:
            top = remote_base(path)
            if top in tops:
                text = f"cannot send {show(path)}: another path goes to the same place; send it by itself"
                yield Failure(show(path), UsageError(text))
                continue
            tops.add(top)
            found = find_paths([path], self._to, recursive=self._recursive, follow=self._follow)
            if not self._recursive or not os.path.isdir(path):
                yield from found
                continue
            prefix = f"{self._to}/{top}" if self._to and top else self._to or top
            yield from self._missing(found, _Lookahead(self._remote(prefix)))

    def _remote(self, prefix: str) -> Iterator[RemoteEntry]:
        try:
            yield from self._listing(prefix, True)
        except NotFoundError:
            return

    @staticmethod
    def _missing(found: Iterator[Found], remote: _Lookahead) -> Iterator[Found | Kept]:
        for item in found:
            if isinstance(item, SourceFile):
                entry = remote.find(item.name)
                if entry is not None and _is_same(item, entry):
                    yield Kept(item)
                    continue
            yield item

    def add(self, engine: UploadEngine, item: Found | Kept) -> None:
        """Hand one item to the engine."""
        if isinstance(item, SourceFile):
            engine.add(item)
        elif isinstance(item, Kept):
            engine.add_kept(item.source)
        elif isinstance(item, EmptyDirectory):
            engine.add_directory(item.name)
        elif isinstance(item, Note):
            engine.report.notes.append(item.text)
            engine.events.append(Event(EventKind.NOTE, item.text))
        else:
            engine.add_failure(item.name, item.error)

    @staticmethod
    def find_again(source: SourceFile) -> SourceFile:
        """A source after it changed."""
        try:
            return find_source(source.path, source.name)
        except OSError as error:
            raise local_failure(f"cannot send {show(source.path)}", error) from None
        except SourceChangedError:
            raise SourceError(f"cannot send {show(source.path)}: it is no regular file any more") from None


class _Lookahead:
    """Walks a listing in step with a local walk of the same order."""

    def __init__(self, entries: Iterator[RemoteEntry]) -> None:
        self._entries = entries
        self._next = next(entries, None)

    def find(self, name: str) -> RemoteEntry | None:
        """The file ``name``, if listed. Names must be asked for in the order of listings."""
        while self._next is not None and self._next.key < name:
            self._next = next(self._entries, None)
        entry = self._next
        return entry if entry is not None and entry.key == name else None


def _is_same(source: SourceFile, entry: RemoteEntry) -> bool:
    if (
        entry.root is None
        or entry.size != source.size
        or entry.mtime_ns != source.mtime_ns
        or entry.executable != source.executable
    ):
        return False
    try:
        return hash_file(source.path).root == entry.root
    except (OSError, SourceChangedError):
        return False  # whoever sends it will say why it cannot be read


@dataclass(frozen=True)
class Wanted:
    """A remote file and where it goes below the target tree; ``entry`` is what a listing told of it."""

    name: str
    target: str
    entry: RemoteEntry | None = None


@dataclass(frozen=True)
class WantedDirectory:
    """An empty directory to make below the target tree."""

    target: str


Fetchable = Wanted | WantedDirectory | Failure


def fetchable_name(name: str) -> str:
    """A remote name as the user wrote it. ``UsageError``; ``DeniedError`` where this system has no such file name."""
    try:
        return safe_name(parse_name(name))
    except ProtocolError as error:
        raise UsageError(f"{show(name)!r}: {error.code.text} [{error.code.value}]", error.code.value) from None


class DownloadFeed:
    """Finds what to fetch. ``root`` is the local directory below which everything lands."""

    def __init__(
        self,
        names: list[str],
        to: str,
        *,
        recursive: bool,
        exact: bool,
        listing: Listing,
        case_blind: bool = sys.platform in ("darwin", "win32"),
    ) -> None:
        self._case_blind = case_blind
        self._names = names
        self._recursive = recursive
        self._listing = listing
        self._targets: set[str] = set()
        self._exact_name = ""
        self.root = to
        if exact:
            # What the user named may be a link to a directory; below it none is followed.
            full = os.path.realpath(to) if os.path.isdir(to) else os.path.abspath(to)
            self.root, self._exact_name = os.path.split(full)

    def items(self) -> Iterator[Fetchable]:
        """Everything that the names stand for."""
        for name in self._names:
            try:
                if self._recursive:
                    yield from self._tree("" if name in ("", "/", ".") else fetchable_name(name.rstrip("/")))
                else:
                    asked = fetchable_name(name)
                    yield self._once(Wanted(asked, self._exact_name or asked.rpartition("/")[2]))
            except TwinportError as error:
                yield Failure(name, error)

    def _tree(self, prefix: str) -> Iterator[Fetchable]:
        base = prefix.rpartition("/")[2]
        for entry in self._listing(prefix, True):
            try:
                name = safe_name(entry.name)
                if name == prefix and not entry.is_directory:
                    yield self._once(Wanted(name, self._exact_name or base, entry))
                    continue
                if prefix and name != prefix and not name.startswith(prefix + "/"):
                    text = "the server lists a name outside of what was asked for; nothing was written for it"
                    raise IntegrityError(f"{show(name)}: {text}", "InvalidName")
                below = name[len(prefix) :].lstrip("/") if prefix else name
                target = "/".join(part for part in (self._exact_name or base, below) if part)
                if entry.is_directory:
                    yield WantedDirectory(target)
                else:
                    yield self._once(Wanted(name, target, entry))
            except TwinportError as error:
                yield Failure(entry.name, error)

    def _once(self, wanted: Wanted) -> Wanted:
        # Where A.txt and a.txt are one file, the second must not replace the first unasked.
        key = wanted.target.casefold() if self._case_blind else wanted.target
        if key in self._targets:
            raise UsageError(f"{wanted.name}: another file goes to {wanted.target} already; fetch them one by one")
        self._targets.add(key)
        return wanted

    def add(self, engine: DownloadEngine, tree: TargetTree, item: Fetchable) -> None:
        """Hand one item to the engine."""
        if isinstance(item, Wanted):
            engine.add(item.name, item.target, item.entry)
        elif isinstance(item, WantedDirectory):
            try:
                if item.target:
                    tree.make_directory(item.target)
                engine.report.directories_done += 1
            except (OSError, TwinportError) as error:
                engine.add_failure(item.target, as_failure(f"cannot make {show(item.target)}", error))
        else:
            engine.add_failure(item.name, item.error)

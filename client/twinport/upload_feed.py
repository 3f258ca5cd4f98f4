"""What an upload is fed with: local trees, compared with the server's listing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .engine import Event, EventKind
from .errors import NotFoundError, SourceError, UsageError, local_failure
from .report import Failure
from .sources import SourceChangedError, SourceFile, find_source, hash_file
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

    def __init__(
        self, paths: list[str], to: str, *, recursive: bool, follow: bool, listing: Listing, exact: bool = False
    ) -> None:
        self._paths = paths
        self._exact = exact
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
            found = find_paths([path], self._to, recursive=self._recursive, follow=self._follow, exact=self._exact)
            if not self._recursive or not os.path.isdir(path):
                yield from found
                continue
            prefix = f"{self._to}/{top}" if self._to and top and not self._exact else self._to or top
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

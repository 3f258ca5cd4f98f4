"""What a download is fed with: remote trees and single names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinport_protocol.errors import ProtocolError
from twinport_protocol.names import parse_name

from .errors import IntegrityError, TwinportError, UsageError
from .report import Failure
from .target_tree import TargetTree, as_failure, safe_name
from .walk import show

if TYPE_CHECKING:
    from .download_engine import DownloadEngine
    from .entries import RemoteEntry
    from .upload_feed import Listing


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
        # A listing names each file once, and in memory a million of them would weigh: only several sources can clash.
        self._may_clash = case_blind or len(names) > 1
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
        if not self._may_clash:
            return wanted
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

"""Removing a directory with all in it: files first, then the directories from the deepest up; and many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from twinport_protocol.messages import ReplyKind, Verb

from .errors import NotFoundError, ServerProtocolError

if TYPE_CHECKING:
    from .control_link import ControlLink
    from .entries import RemoteEntry

WINDOW_COMMANDS = 256


def delete_tree(listing: Callable[..., Iterator[RemoteEntry]], delete_one: Callable[[str], None], name: str) -> int:
    """Remove ``name`` and all below it; the number of entries that were removed. ``NotFoundError`` if there is
    nothing, ``ServerProtocolError`` when the server lists what is not directly below."""
    removed = 0
    levels: list[_Level] = []
    below: str | None = name
    while below is not None or levels:
        if below is not None:
            levels.append(_Level(below, list(listing(below, recursive=False)), removed))
        level, below = levels[-1], None
        if level.entries:
            entry = level.entries.pop()
            if entry.is_directory:
                below = entry.name
            else:
                delete_one(entry.name)
                removed += 1
            continue
        levels.pop()
        if not level.is_file:  # a file lists itself
            try:
                delete_one(level.name)
                removed += 1
            except NotFoundError:
                if removed == level.removed_before:  # a storage without directories drops them with their last file
                    raise
    return removed


class _Level:
    """One directory that is being removed: what is still in it."""

    __slots__ = ("entries", "is_file", "name", "removed_before")

    def __init__(self, name: str, entries: list[RemoteEntry], removed_before: int) -> None:
        self.name = name
        self.entries = entries[::-1]
        self.is_file = [(entry.name, entry.is_directory) for entry in entries] == [(name, False)]
        self.removed_before = removed_before
        if not self.is_file and not all(_is_directly_below(entry.name, name) for entry in entries):
            raise ServerProtocolError(f"the server's listing of {name} names something else")


def _is_directly_below(name: str, above: str) -> bool:
    parent, _, base = name.rpartition("/")
    return parent == above and bool(base)


def ask_many(link: ControlLink, verb: Verb, words: Sequence[str]) -> int:
    """One command for each word, ``WINDOW_COMMANDS`` of them at once; how many were not refused. ``NetworkError``."""
    done = 0
    for start in range(0, len(words), WINDOW_COMMANDS):
        calls = [link.call(verb, (word,)) for word in words[start : start + WINDOW_COMMANDS]]
        done += sum(call.result()[-1].kind is not ReplyKind.ERROR for call in calls)
    return done

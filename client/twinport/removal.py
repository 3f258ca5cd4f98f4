"""Removing a directory with all in it: files first, then the directories from the deepest up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .errors import NotFoundError

if TYPE_CHECKING:
    from .entries import RemoteEntry


def delete_tree(
    listing: Callable[..., Iterator[RemoteEntry]], delete_one: Callable[[str], None], name: str
) -> int:
    """Remove ``name`` and all below it; the number of entries that were removed. ``NotFoundError`` if there is
    nothing."""
    removed = 0
    entries = list(listing(name, recursive=False))
    for entry in entries:
        if entry.is_directory:
            removed += delete_tree(listing, delete_one, entry.name)
        else:
            delete_one(entry.name)
            removed += 1
    if not any(entry.name == name for entry in entries):  # a file lists itself
        try:
            delete_one(name)
            removed += 1
        except NotFoundError:
            if not removed:  # a storage without directories of their own drops them with their last file
                raise
    return removed

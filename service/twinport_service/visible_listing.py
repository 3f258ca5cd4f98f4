"""Listings of what a user may see: the storage's pages without what is nobody's business, in the storage's order.

An entry is shown when it may be listed, or when it is a directory on the way to something allowed. Directories that
are neither are jumped over, not walked through. Where there is much to leave out the work is done in turns, so that
one listing does not keep others from the thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from .access import Act, Decide
from .storage.contract import Entry, Page

TURN_SECONDS = 0.1
_PROBE_ENTRIES = 16
_MAX_ENTRIES = 1000
# Follows every name in a directory but those that begin with it, and these are merely looked at one by one.
_BEYOND = "/\U0010ffff"

ListPage = Callable[[str, str, int, bool], Page]
"""``Storage.list``."""


def list_visible(
    list_page: ListPage,
    decide: Decide,
    user: str,
    prefix: str,
    after: str,
    limit: int,
    recursive: bool,
    *,
    turn_seconds: float = TURN_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Page | None]:
    """None whenever a turn is over, at last the page: at most ``limit`` entries that the user may see, and whether more
    may follow. A page without an entry is the end. Raises what ``list_page`` does."""
    if decide(user, Act.LIST, prefix + "/"):
        yield list_page(prefix, after, limit, recursive)
        return
    found: list[Entry] = []
    count = limit
    turn_ends = clock() + turn_seconds
    while True:
        page = list_page(prefix, after, count, recursive)
        for index, entry in enumerate(page.entries, 1):
            if _is_visible(decide, user, entry):
                found.append(entry)
                if len(found) == limit:
                    yield Page(found, page.more or index < len(page.entries))
                    return
        if not page.more:
            yield Page(found, False)
            return
        last = page.entries[-1]
        after = max(last.key, _end_of_foreign(decide, user, prefix, last))
        # Behind a jump there may be another foreign directory, of which as little as possible should be read.
        count = min(_MAX_ENTRIES, 4 * count) if after == last.key else _PROBE_ENTRIES
        if clock() >= turn_ends:
            if found:
                yield Page(found, True)
                return
            yield None
            turn_ends = clock() + turn_seconds


def _is_visible(decide: Decide, user: str, entry: Entry) -> bool:
    if decide(user, Act.LIST, entry.name):
        return True
    return entry.kind == "d" and decide(user, Act.SEE, entry.name)


def _end_of_foreign(decide: Decide, user: str, prefix: str, entry: Entry) -> str:
    """Where the topmost directory around the entry that must not be seen ends; "" when there is none."""
    start = prefix + "/" if prefix else ""
    parts = entry.name[len(start) :].split("/")
    for count in range(1, len(parts)):
        directory = start + "/".join(parts[:count])
        if not decide(user, Act.SEE, directory):
            return directory + _BEYOND
    return ""

"""Listings of what a user may see, against the plain meaning: list everything, then leave out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_service.access import Act, allow_all
from twinport_service.accounts.grants import Grant, is_allowed, parse_grant
from twinport_service.storage.contract import Entry, Page
from twinport_service.visible_listing import list_visible


class Shelf:
    """A listing of files in memory that counts what it was asked for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.entries = sorted((Entry(name, "f", 1, 0) for name in names), key=lambda entry: entry.key)
        self.looked_at = 0

    def list(self, prefix: str, after: str, limit: int, recursive: bool) -> Page:
        start = prefix + "/" if prefix else ""
        inside = [entry for entry in self.entries if entry.name.startswith(start)]
        if not recursive:
            directories = {
                entry.name[len(start) :].partition("/")[0] for entry in inside if "/" in entry.name[len(start) :]
            }
            inside = [entry for entry in inside if "/" not in entry.name[len(start) :]]
            inside += [Entry(start + name, "d", 0, 0) for name in directories]
            inside.sort(key=lambda entry: entry.key)
        found = [entry for entry in inside if entry.key > after]
        self.looked_at += len(found[:limit])
        return Page(found[:limit], len(found) > limit)


def list_all(shelf: Shelf, grants: Sequence[Grant], prefix: str, limit: int, recursive: bool) -> list[str]:
    """All pages, as a client asks for them; a page that says ``more`` must get it further."""
    names: list[str] = []
    after = ""
    while True:
        pages = list_visible(
            shelf.list, lambda _, act, path: is_allowed(grants, act, path), "u", prefix, after, limit, recursive
        )
        (page,) = [page for page in pages if page is not None]
        assert len(page.entries) <= limit
        names += [entry.name for entry in page.entries]
        if not page.more:
            return names
        assert page.entries, "the client has nothing to go on with"
        after = page.entries[-1].key


def visible(shelf: Shelf, grants: Sequence[Grant], prefix: str, recursive: bool) -> list[str]:
    """What should come out."""
    everything = shelf.list(prefix, "", 10**6, recursive).entries
    return [
        entry.name
        for entry in everything
        if is_allowed(grants, Act.LIST, entry.name) or (entry.kind == "d" and is_allowed(grants, Act.SEE, entry.name))
    ]


COMPONENTS = st.sampled_from(["a", "b", "ab", "a b", "\U0010ffff", "\U0010ffffx", "z"])
NAMES = st.lists(COMPONENTS, min_size=1, max_size=3).map("/".join)
PATTERNS = st.builds(lambda name, end: name + end, NAMES, st.sampled_from(["", "/**", "/*"]))
GRANTS = st.lists(
    st.builds(lambda pattern, act: parse_grant(pattern, [act]), PATTERNS, st.sampled_from(["list", "write"])),
    max_size=3,
)


@given(st.sets(NAMES, max_size=25), GRANTS, st.sampled_from(["", "a", "a/b"]), st.integers(1, 5), st.booleans())
def test_exactly_what_may_be_seen_is_listed_once_and_in_order(
    names: set[str], grants: list[Grant], prefix: str, limit: int, recursive: bool
) -> None:
    plain = {name for name in names if not any(other.startswith(name + "/") for other in names)}
    shelf = Shelf(sorted(plain))
    assert list_all(shelf, grants, prefix, limit, recursive) == visible(shelf, grants, prefix, recursive)


def test_foreign_directories_are_jumped_over() -> None:
    users = [f"user{number:03}" for number in range(100)]
    shelf = Shelf([f"{user}/file{number:04}" for user in users for number in range(200)])
    grants = [parse_grant("user050/**", ["list"])]
    names = list_all(shelf, grants, "", 1000, True)
    assert names == [f"user050/file{number:04}" for number in range(200)]
    assert shelf.looked_at < 5000, "of 20,000"


def test_without_restrictions_a_page_is_one_call() -> None:
    shelf = Shelf([f"file{number}" for number in range(50)])
    (page,) = list_visible(shelf.list, allow_all, "u", "", "", 10, True)
    assert page is not None
    assert len(page.entries) == shelf.looked_at == 10


def test_a_long_search_lets_others_have_their_turns_and_still_ends() -> None:
    shelf = Shelf([*(f"foreign{number:05}" for number in range(20_000)), "z"])
    ticks = itertools.count()
    grants = [parse_grant("z", ["list"])]
    pages = list(
        list_visible(
            shelf.list,
            lambda _, act, path: is_allowed(grants, act, path),
            "u", "", "", 10, True,
            turn_seconds=3.0,
            clock=lambda: float(next(ticks)),
        )
    )  # fmt: skip
    assert pages.count(None) >= 3
    assert pages.index(None) == 0
    last = pages[-1]
    assert last is not None
    assert [entry.name for entry in last.entries] == ["z"]
    assert not last.more


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_a_turn_that_is_over_gives_what_it_found(limit: int) -> None:
    shelf = Shelf([*(f"a{number:05}" for number in range(5000)), "z1", "z2"])
    grants = [parse_grant("a00000", ["list"]), parse_grant("z*", ["list"])]
    assert list_all(shelf, grants, "", limit, True) == ["a00000", "z1", "z2"]

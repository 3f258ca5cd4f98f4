"""Who may do what, as a table; and what must hold for any grants at all."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.messages import Verb
from twinport_service.access import BEFORE_LOGIN, EVERYTHING, GRANTABLE, POLICY, Act
from twinport_service.accounts.grants import (
    ADMIN_GRANT,
    Grant,
    GrantError,
    home_grants,
    is_allowed,
    may_see,
    parse_acts,
    parse_grant,
    parse_home,
    parse_pattern,
)


def test_every_verb_has_a_policy_and_only_three_are_answered_before_a_login() -> None:
    assert set(POLICY) == set(Verb)
    assert {Verb.LOGIN, Verb.PING, Verb.QUIT} == BEFORE_LOGIN


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a", "a", True),
        ("a", "a/b", False),
        ("a", "", False),
        ("a", "A", False),
        ("a", "ab", False),
        ("a/**", "a", True),
        ("a/**", "a/b", True),
        ("a/**", "a/b/c/d", True),
        ("a/**", "ab", False),
        ("a/**", "b/a/b", False),
        ("a/b/**", "a", False),
        ("a/b/**", "a/b", True),
        ("*", "a", True),
        ("*", "a/b", False),
        ("*", "", False),
        ("*/public/**", "bob/public/x", True),
        ("*/public/**", "bob/private/x", False),
        ("*/public/**", "a/b/public/x", False),
        ("reports/*.csv", "reports/2026.csv", True),
        ("reports/*.csv", "reports/.csv", True),
        ("reports/*.csv", "reports/2026.csv.gz", False),
        ("reports/*.csv", "reports/a/b.csv", False),
        ("reports/a*b*c", "reports/a1b2c", True),
        ("reports/a*b*c", "reports/a1c2b", False),
        ("reports/a*a", "reports/a", False),
        ("reports/a*a", "reports/aa", True),
        ("reports/ab*b*ba", "reports/abba", False),
        ("x[ab]?", "x[ab]?", True),
        ("x[ab]?", "xa1", False),
        ("x.y", "xzy", False),
        ("**", "", True),
        ("**", "a", True),
        ("**", "a/b/c", True),
        ("\u00e9", "e\u0301", False),
    ],
)
def test_what_a_pattern_covers(pattern: str, path: str, expected: bool) -> None:
    grant = parse_grant(pattern, ["read"])
    assert is_allowed([grant], Act.READ, path) is expected
    assert not any(is_allowed([grant], act, path) for act in GRANTABLE if act is not Act.READ)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a/**", "a/", True),
        ("a/**", "a/b/", True),
        ("a", "a/", False),
        ("a/*", "a/", False),
        ("a/*", "a/b/", False),
        ("a/b/**", "a/", False),
        ("*/**", "a/", True),
        ("*/**", "/", False),
        ("**", "/", True),
        ("**", "a/", True),
        ("a/**", "/", False),
    ],
)
def test_what_a_pattern_covers_with_all_below(pattern: str, path: str, expected: bool) -> None:
    assert is_allowed([parse_grant(pattern, ["list"])], Act.LIST, path) is expected


@pytest.mark.parametrize(
    ("pattern", "acts", "path", "expected"),
    [
        ("a/b/**", "list", "", True),
        ("a/b/**", "list", "a", True),
        ("a/b/**", "list", "a/b", True),
        ("a/b/**", "list", "a/b/c", True),
        ("a/b/**", "list", "a/c", False),
        ("a/b/**", "list", "b", False),
        ("a/*/c", "read", "a/x", True),
        ("a/*/c", "read", "a/x/c", True),
        ("a/*/c", "read", "a/x/d", False),
        ("inbox/**", "write", "", True),
        ("inbox/**", "write", "inbox", True),
        ("inbox/**", "write", "inbox/of somebody else", False),
        ("**", "write", "", True),
        ("**", "write", "a", False),
        ("**", "list", "a/b", True),
    ],
)
def test_what_may_be_seen(pattern: str, acts: str, path: str, expected: bool) -> None:
    grants = [parse_grant(pattern, acts.split(","))]
    assert may_see(grants, path) is expected
    assert is_allowed(grants, Act.SEE, path) is expected


def test_a_home_is_ones_own_and_nothing_beside_it() -> None:
    grants = home_grants("people/alice")
    for act in GRANTABLE:
        assert is_allowed(grants, act, "people/alice")
        assert is_allowed(grants, act, "people/alice/")
        assert is_allowed(grants, act, "people/alice/deep/file")
        for path in ("", "people", "people/bob", "people/alice2", "alice"):
            assert not is_allowed(grants, act, path)
    assert may_see(grants, "people")
    assert not may_see(grants, "people/bob")


def test_an_admin_may_do_everything() -> None:
    for act in GRANTABLE:
        for path in ("", "/", "a", "a/b/", "a/b/c"):
            assert is_allowed([ADMIN_GRANT], act, path)


@pytest.mark.parametrize(
    "pattern", ["", "/", "/a", "a//b", "../a", "a/../b", ".", "**/a", "a/**/b", "a**", "***", ".twinport/**", "a\nb"]
)
def test_patterns_that_cannot_be_used(pattern: str) -> None:
    with pytest.raises(GrantError):
        parse_pattern(pattern)


@pytest.mark.parametrize("text", ["", "a*", "*", "**", "/a", "../a", "a/../b", ".twinport"])
def test_homes_that_cannot_be_used(text: str) -> None:
    with pytest.raises(GrantError):
        parse_home(text)


@pytest.mark.parametrize("words", [[], [""], ["read", ""], ["see"], ["READ"], ["all"]])
def test_acts_that_are_none(words: list[str]) -> None:
    with pytest.raises(GrantError):
        parse_acts(words)


PARTS = st.sampled_from(["a", "b", "ab", "*", "a*", "*b"])
PATTERNS = st.one_of(
    st.just("**"),
    st.builds(
        lambda parts, end: "/".join(parts) + end, st.lists(PARTS, min_size=1, max_size=3), st.sampled_from(["", "/**"])
    ),
)
ACTS = st.sets(st.sampled_from(GRANTABLE), min_size=1).map(frozenset)
GRANTS = st.lists(st.builds(Grant, PATTERNS, ACTS), max_size=4)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=4).map("/".join)


@given(GRANTS, st.sampled_from(Act), PATHS, st.booleans())
def test_taking_a_grant_away_never_allows_more(grants: list[Grant], act: Act, path: str, is_tree: bool) -> None:
    path = path + "/" if is_tree and act is not Act.SEE else path
    if is_allowed(grants, act, path):
        return
    for index in range(len(grants)):
        assert not is_allowed(grants[:index] + grants[index + 1 :], act, path)


@given(st.sampled_from(Act), PATHS)
def test_without_a_grant_nothing_is_allowed(act: Act, path: str) -> None:
    assert not is_allowed([], act, path)
    assert not is_allowed([], act, path + "/")


@given(GRANTS, st.sampled_from(GRANTABLE), PATHS, PATHS)
def test_what_is_allowed_on_a_tree_is_allowed_everywhere_in_it(
    grants: list[Grant], act: Act, path: str, below: str
) -> None:
    if is_allowed(grants, act, path + "/"):
        assert is_allowed(grants, act, path)
        deeper = "/".join(part for part in (path, below) if part)
        assert is_allowed(grants, act, deeper)
        assert is_allowed(grants, act, deeper + "/")


@given(GRANTS, PATHS)
def test_every_directory_on_the_way_to_something_listed_may_be_seen(grants: list[Grant], path: str) -> None:
    if is_allowed(grants, Act.LIST, path):
        parts = path.split("/")
        assert all(may_see(grants, "/".join(parts[:count])) for count in range(len(parts) + 1))


COMPONENTS = st.text("ab", max_size=8)


@given(st.lists(COMPONENTS, min_size=1, max_size=5).map("*".join), COMPONENTS)
def test_a_star_stands_for_any_characters(text: str, name: str) -> None:
    if not text or not name or "**" in text:
        return
    expected = re.fullmatch(".*".join(map(re.escape, text.split("*"))), name) is not None
    assert is_allowed([parse_grant(f"logs/{text}", ["write"])], Act.WRITE, f"logs/{name}") is expected


def test_many_stars_cost_no_more_than_a_look_at_the_name() -> None:
    # A search that steps back would try some 10 to the power of 19 ways: this ends at once, or never.
    grant = parse_grant("logs/" + "*-" * 10 + "*x", ["write"])
    assert not is_allowed([grant], Act.WRITE, "logs/" + "-" * 250)
    assert is_allowed([grant], Act.WRITE, "logs/" + "-" * 250 + "x")


def test_everything_means_the_four_that_can_be_granted() -> None:
    assert frozenset(Act) - {Act.SEE} == EVERYTHING

"""Grants: which acts a user may do on which paths. Pure; what no grant allows is denied.

A pattern is a path. It covers itself and, when it ends in ``/**``, everything below; ``*`` stands for any characters
within one component; ``**`` alone covers everything, the top directory included. There are no negative grants, so
taking one away never allows more.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from twinport_protocol.errors import ProtocolError
from twinport_protocol.names import parse_name

from twinport_service.access import EVERYTHING, GRANTABLE, Act

MAX_PATTERN_CHARACTERS = 900


class GrantError(ValueError):
    """A pattern or a list of acts cannot be used; the message says why and what it may be."""


@dataclass(frozen=True)
class Grant:
    """``acts`` on whatever ``pattern`` covers. Made by :func:`parse_grant` from what a person wrote."""

    pattern: str
    acts: frozenset[Act]


def parse_grant(pattern: str, acts: Iterable[str]) -> Grant:
    """A grant from a pattern and the words of its acts. ``GrantError``."""
    return Grant(parse_pattern(pattern), parse_acts(acts))


def parse_pattern(text: str) -> str:
    """The one spelling of a pattern: no ``/`` at either end. ``GrantError`` for what covers no name at all."""
    pattern = text[:-1] if text.endswith("/") else text
    if pattern == "**":
        return pattern
    base = pattern[:-3] if pattern.endswith("/**") else pattern
    if "**" in base:
        raise GrantError(f"{text!r}: ** may only stand at the end, as in 'shared/**', or alone.")
    try:
        parse_name(base)
    except ProtocolError:
        raise GrantError(f"{text!r} is no relative path; write it as in 'shared/**' or 'reports/*.csv'.") from None
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise GrantError(f"the pattern is longer than {MAX_PATTERN_CHARACTERS} characters.")
    return pattern


def parse_acts(words: Iterable[str]) -> frozenset[Act]:
    """Acts from their words. ``GrantError`` for an unknown one and for none at all."""
    known = {act.value: act for act in GRANTABLE}
    found: set[Act] = set()
    for word in words:
        if word not in known:
            raise GrantError(f"{word!r} is no act; known are {', '.join(known)}.")
        found.add(known[word])
    if not found:
        raise GrantError(f"a grant needs acts: some of {', '.join(known)}.")
    return frozenset(found)


def parse_home(text: str) -> str:
    """A home directory: a plain path. ``GrantError``; also for one with ``*``, which would cover other homes."""
    path = text[:-1] if text.endswith("/") else text
    try:
        parse_name(path)
    except ProtocolError:
        raise GrantError(f"{text!r} is no relative path; a home is one, as in 'people/alice'.") from None
    if "*" in path:
        raise GrantError(f"{text!r}: a home holds no '*'.")
    return path


def home_grants(home: str) -> tuple[Grant, ...]:
    """What having a home means."""
    return (Grant(home, EVERYTHING), Grant(f"{home}/**", EVERYTHING))


ADMIN_GRANT = Grant("**", EVERYTHING)


def is_allowed(grants: Iterable[Grant], act: Act, path: str) -> bool:
    """Whether the grants allow ``act`` on ``path``, in the terms of ``access.Decide``."""
    if act is Act.SEE:
        return may_see(grants, path)
    is_tree = path.endswith("/")
    name = path[:-1] if is_tree else path
    for grant in grants:
        if act in grant.acts:
            shape = _shape(grant.pattern)
            if shape.covers(name) and (shape.is_tree or not is_tree):
                return True
    return False


def may_see(grants: Iterable[Grant], path: str) -> bool:
    """Whether a directory may be known to be there: it may be listed, or something allowed may lie below it."""
    name = path.rstrip("/")
    for grant in grants:
        shape = _shape(grant.pattern)
        if shape.leads_to(name) or (Act.LIST in grant.acts and shape.covers(name)):
            return True
    return False


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")) if path else ()


@dataclass(frozen=True)
class _Wildcard:
    """A component with ``*``: how it begins, what follows in this order, how it ends."""

    first: str
    between: tuple[str, ...]
    last: str

    def matches(self, name: str) -> bool:
        # Each text at the first place it is found: never a step back, as a regular expression takes. Whoever may name
        # files chooses the names, and a decision is made on the event loop.
        start, end = len(self.first), len(name) - len(self.last)
        if start > end or not name.startswith(self.first) or not name.endswith(self.last):
            return False
        for text in self.between:
            found = name.find(text, start, end)
            if found < 0:
                return False
            start = found + len(text)
        return True


@dataclass(frozen=True)
class _Shape:
    """A pattern taken apart: components (a text, or a wildcard where there is a ``*``)."""

    parts: tuple[str | _Wildcard, ...]
    is_tree: bool
    plain: str | None
    """All components as one path where there is no ``*``: most patterns, and asked for every file."""

    def _matches(self, parts: tuple[str, ...], count: int) -> bool:
        return all(
            mine == other if isinstance(mine, str) else mine.matches(other)
            for mine, other in zip(self.parts[:count], parts[:count], strict=True)
        )

    def covers(self, path: str) -> bool:
        """Whether the pattern covers this path."""
        if self.plain is not None:
            if path == self.plain:
                return True
            return self.is_tree and (not self.plain or path.startswith(self.plain + "/"))
        parts = _split(path)
        count = len(self.parts)
        fits = len(parts) >= count if self.is_tree else len(parts) == count
        return fits and self._matches(parts, count)

    def leads_to(self, path: str) -> bool:
        """Whether this path is what the pattern names, or a directory on the way there."""
        parts = _split(path)
        return len(parts) <= len(self.parts) and self._matches(parts, len(parts))


@functools.lru_cache(maxsize=16_384)
def _shape(pattern: str) -> _Shape:
    is_tree = pattern == "**" or pattern.endswith("/**")
    base = pattern[:-2].rstrip("/") if is_tree else pattern
    return _Shape(tuple(_component(part) for part in _split(base)), is_tree, None if "*" in base else base)


def _component(text: str) -> str | _Wildcard:
    if "*" not in text:
        return text
    first, *between, last = text.split("*")
    return _Wildcard(first, tuple(filter(None, between)), last)

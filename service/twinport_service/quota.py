"""How much a user may have stored: the bounds, without the counting (see ``usage``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    """The most that stored files and unfinished uploads of a user may come to together; None is no bound."""

    max_bytes: int | None = None
    max_files: int | None = None


UNLIMITED = Quota()
QuotaOf = Callable[[str], Quota]
"""The quota of a user, as it stands now; cheap, from memory."""

"""Who may do what: one pure function type, asked by every handler of both dialects before it acts.

Access is never decided in decorators or storage code: a rule that is checked in one place can be tested as a table.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from twinport_protocol.errors import ErrorCode, Refusal

ANONYMOUS = "anonymous"


class Act(enum.Enum):
    """What a user may be allowed to do to a path."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"


Decide = Callable[[str, Act, str], bool]
"""``decide(user, act, path)``; ``path`` is a remote name, or "" for the top directory."""


def allow_all(user: str, act: Act, path: str) -> bool:
    """The decision of a server without accounts: everybody may do everything."""
    del user, act, path
    return True


def require(decide: Decide, user: str, act: Act, path: str) -> None:
    """``Refusal(Denied)`` unless ``decide`` allows it."""
    if not decide(user, act, path):
        raise Refusal(ErrorCode.DENIED, f"{act.value} by {user}")

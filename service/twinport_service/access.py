"""Who may do what: one pure function type, asked by every handler of both dialects before it acts.

Access is never decided in decorators or storage code: a rule that is checked in one place can be tested as a table.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.messages import Verb

ANONYMOUS = "anonymous"


class Act(enum.Enum):
    """What a user may be allowed to do to a path."""

    LIST = "list"
    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    SEE = "see"
    """To learn that a directory is there, because something below it is allowed. Follows from the others; nobody is
    granted it."""


GRANTABLE = (Act.LIST, Act.READ, Act.WRITE, Act.DELETE)
EVERYTHING = frozenset(GRANTABLE)

Decide = Callable[[str, Act, str], bool]
"""``decide(user, act, path)``; ``path`` is a remote name, or "" for the top directory. With a ``/`` at its end ("/" for
the top) the question is whether the act is allowed on it and on everything that is or may be below it."""

POLICY: Mapping[Verb, str] = {
    Verb.LOGIN: "anybody, once",
    Verb.PING: "anybody",
    Verb.QUIT: "anybody",
    Verb.QUOTA: "the user's own",
    Verb.UPLOAD: "write on the name, with if-match also read",
    Verb.COMMIT: "the user's own upload, write on its name",
    Verb.ABORT: "the user's own upload, whatever else was taken away: it only gives room back",
    Verb.RENEW: "the user's own ticket, write or read on its name",
    Verb.DOWNLOAD: "read on the name",
    Verb.BUNDLE: "see on the top, which means anything at all; then write or read on each name",
    Verb.LIST: "list or see on the prefix; list on each entry, or see on a directory",
    Verb.STAT: "list on the name, or see on a directory",
    Verb.DELETE: "delete on the name, with if-match also read",
    Verb.MOVE: "delete and read on the source, write on the target; of a directory, on all below both",
    Verb.MKDIR: "write on the name",
}
"""The rule of every verb, in words; a verb without one does not pass the tests."""
BEFORE_LOGIN = frozenset({Verb.LOGIN, Verb.PING, Verb.QUIT})
"""What is answered while a login is required and not done. Everything else, of a later version too, is not."""


def allow_all(user: str, act: Act, path: str) -> bool:
    """The decision of a server without accounts: everybody may do everything."""
    del user, act, path
    return True


def require(decide: Decide, user: str, act: Act, path: str) -> None:
    """``Refusal(Denied)`` unless ``decide`` allows it."""
    if not decide(user, act, path):
        raise Refusal(ErrorCode.DENIED, f"{act.value} by {user}")

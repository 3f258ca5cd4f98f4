"""What administrators change about accounts, for the audit log.

Each change leaves a row, written in the same transaction, so that there is none without the other. The server takes the
rows over into the audit log and removes them once they are on the disk there; those of the time when it was stopped,
when it starts. A row that a crash left behind is taken over again: under the same id, so that it can be told.
"""

from __future__ import annotations

import os
import pwd
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from twinport_protocol.auth import key_fingerprint

from twinport_service.audit import AuditEntry, AuditEvent, AuditLog
from twinport_service.quota import Quota

from . import descriptions
from .grants import Grant
from .records import Account, Key, Token
from .words import format_moment

SCHEMA = """CREATE TABLE pending_changes (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, time REAL NOT NULL, user TEXT NOT NULL, what TEXT NOT NULL,
    detail TEXT, author TEXT
)"""
_ID_BYTES = 8


@dataclass(frozen=True)
class Change:
    """One change. ``what`` is the command that makes it; ``detail`` has names, numbers and fingerprints, never a
    secret, and no text that somebody typed but for patterns and homes; ``author`` is who ran the command."""

    user: str
    what: str
    detail: str | None = None
    author: str | None = None
    time: float = 0.0
    id: str = ""

    def entry(self) -> AuditEntry:
        """Its line for the audit log."""
        return AuditEntry(
            AuditEvent.ACCOUNT,
            self.user,
            what=self.what,
            detail=self.detail,
            author=self.author,
            change=self.id,
            at=self.time,
        )


def this_person(environment: Mapping[str, str] = os.environ) -> str:
    """Who runs this process, as this machine calls them; with who they were before ``sudo``."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    before = environment.get("SUDO_USER", "") if uid == 0 else ""
    return f"{name} (sudo by {before})" if before else name


# the rows ------------------------------------------------------------------------------------------------------------


def write_change(database: sqlite3.Connection, change: Change, now: float) -> None:
    """Within the transaction of the change itself."""
    database.execute(
        "INSERT INTO pending_changes (id, time, user, what, detail, author) VALUES (?, ?, ?, ?, ?, ?)",
        (secrets.token_hex(_ID_BYTES), now, change.user, change.what, change.detail, change.author),
    )


def read_changes(database: sqlite3.Connection) -> list[Change]:
    """Those that nobody has taken over, the oldest first."""
    rows = database.execute("SELECT user, what, detail, author, time, id FROM pending_changes ORDER BY number")
    return [Change(*row) for row in rows]


def remove_changes(database: sqlite3.Connection, ids: Iterable[str]) -> None:
    """They have been taken over."""
    database.executemany("DELETE FROM pending_changes WHERE id = ?", [(one,) for one in ids])


class ChangeDesk:
    """Takes changes over into the audit log, each once for as long as this object lives."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._taken: set[str] = set()

    def take(self, changes: Sequence[Change]) -> list[str]:
        """Take over; the ids of those that are on the disk there, and may be removed. May wait some seconds."""
        for change in changes:
            if change.id not in self._taken and self._audit.take(change.entry()):
                self._taken.add(change.id)
        taken = [change.id for change in changes if change.id in self._taken]
        return taken if taken and self._audit.sync() else []

    def note_replaced(self) -> None:
        """All accounts are others now: somebody put another file in the place of the old one."""
        self._audit.record(AuditEntry(AuditEvent.ACCOUNT, what="replaced"))

    def forget(self, ids: Iterable[str]) -> None:
        """They were removed, and will not be seen again."""
        self._taken.difference_update(ids)


# what is said of each ------------------------------------------------------------------------------------------------


def describe_added(account: Account) -> Iterator[Change]:
    """A new account: a line for it, and one for all that it was given."""
    name = account.name
    yield Change(name, "add", "no home" if account.home is None else f"home {account.home}")
    if account.password_hash is not None:
        yield describe_password(name, is_set=True)
    for key in account.keys:
        yield describe_key("keys add", name, key)
    for grant in account.grants:
        yield describe_grant(name, grant)
    if account.quota != Quota() or account.rate is not None:
        yield describe_bounds(name, account.quota, account.rate)


def describe_password(name: str, *, is_set: bool) -> Change:
    """Another password, or none any more."""
    return Change(name, "passwd", "set" if is_set else "removed")


def describe_bounds(name: str, quota: Quota, rate: int | None) -> Change:
    """The bounds that hold from now on."""
    bounds = {"max-bytes": quota.max_bytes, "max-files": quota.max_files, "max-rate": rate}
    return Change(name, "quota", " ".join(f"{key}={'none' if most is None else most}" for key, most in bounds.items()))


def describe_key(what: str, name: str, key: Key) -> Change:
    """A key that was added or removed; its comment is anybody's text."""
    return Change(name, what, f"{key_fingerprint(key.blob)} expires {format_moment(key.expires)}")


def describe_token(token: Token) -> Change:
    """A token that was made, by its public id."""
    return Change(token.user, "token add", f"{token.id} expires {format_moment(token.expires)}")


def describe_grant(name: str, grant: Grant) -> Change:
    """What is granted from now on."""
    return Change(name, "grant", descriptions.describe_grant(grant))

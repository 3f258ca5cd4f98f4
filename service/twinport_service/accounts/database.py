"""The database of accounts: SQLite in one 0600 file, written by the ``twinportd user`` commands, read by the server.

Every change is one transaction that is on the disk when it is answered (WAL, ``synchronous=FULL``), together with what
the audit log is to say of it (see ``changes``). Several processes may have it open. Methods may block; a connection is
used by one thread at a time, which is the caller's business.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from twinport_protocol.auth import key_fingerprint, parse_user
from twinport_protocol.errors import ProtocolError, Refusal

from twinport_service.quota import Quota

from .changes import (
    SCHEMA as CHANGES_SCHEMA,
)
from .changes import (
    Change,
    describe_added,
    describe_bounds,
    describe_grant,
    describe_key,
    describe_password,
    describe_token,
    read_changes,
    remove_changes,
    write_change,
)
from .grants import Grant, GrantError, parse_grant, parse_home
from .records import Account, Key, Snapshot, Token

FORMAT_VERSION = 3
_FIRST_WITH_PENDING_CHANGES = 3
BUSY_SECONDS = 10.0
_OTHERS = 0o077
_VERSION_START, _VERSION_END = 60, 64  # of user_version, in the header of an SQLite file
_SCHEMA = """
CREATE TABLE users (
    name TEXT PRIMARY KEY, created REAL NOT NULL, password_hash TEXT, disabled INTEGER NOT NULL DEFAULT 0, home TEXT,
    max_bytes INTEGER, max_files INTEGER, rate INTEGER, changes INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE keys (
    user TEXT NOT NULL REFERENCES users ON DELETE CASCADE, blob BLOB NOT NULL, comment TEXT NOT NULL, expires REAL,
    PRIMARY KEY (user, blob)
) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, user TEXT NOT NULL REFERENCES users ON DELETE CASCADE, digest BLOB NOT NULL,
    label TEXT NOT NULL, created REAL NOT NULL, expires REAL, revoked INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE grants (
    user TEXT NOT NULL REFERENCES users ON DELETE CASCADE, pattern TEXT NOT NULL, acts TEXT NOT NULL,
    PRIMARY KEY (user, pattern)
) WITHOUT ROWID;
"""


FileId = tuple[int, int]
"""Device and inode."""


def _file_id(path: Path) -> FileId | None:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class AccountsUnusable(Exception):  # noqa: N818  named by the state it reports
    """The database cannot be used; the message says why and what to do."""


class AccountError(Exception):
    """A change that makes no sense: an account that is not there, or there already. The message says which."""


class AccountDatabase:
    """One connection. The file is made, with mode 0600, when it is missing; without ``make`` one that is missing or
    empty is refused and left alone. ``author`` is who makes the changes, for the audit log. Raises
    ``AccountsUnusable``."""

    def __init__(
        self, path: Path, *, make: bool = True, author: str | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._file: FileId | None = None
        self._beside: dict[Path, FileId | None] = {}
        self._author = author
        self._now = now
        try:
            self._file = self._open_file(make=make)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
        except (OSError, sqlite3.Error) as error:
            raise AccountsUnusable(f"cannot open {path}: {error}. Mend its rights or restore it.") from None
        try:
            with self._explained():
                self._prepare()
            self._beside = {Path(f"{path}{suffix}"): _file_id(Path(f"{path}{suffix}")) for suffix in ("-wal", "-shm")}
            if self.is_replaced():
                raise AccountsUnusable(f"{path} was replaced while it was opened")
        except BaseException:
            self._database.close()
            raise

    def _open_file(self, *, make: bool) -> FileId:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        descriptor = os.open(self.path, flags, 0o600)
        try:
            found = os.fstat(descriptor)
            if found.st_mode & _OTHERS:
                raise AccountsUnusable(f"{self.path} can be read by others. Run: chmod 600 {self.path}")
            if not make and not any(os.pread(descriptor, _VERSION_END, 0)[_VERSION_START:]):
                # SQLite would make a new database of it, perhaps while somebody copies the backup to here.
                raise AccountsUnusable(f"{self.path} holds no accounts. Put a backup there, by renaming it")
            if os.geteuid() == 0:  # made by root for a server that runs as somebody else
                owner = os.stat(self.path.parent)
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            return found.st_dev, found.st_ino
        finally:
            os.close(descriptor)

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            version = execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    execute(statement)
            elif version == 1:
                execute("ALTER TABLE users ADD COLUMN changes INTEGER NOT NULL DEFAULT 0")
            if version < _FIRST_WITH_PENDING_CHANGES:
                execute(CHANGES_SCHEMA)
            if version < FORMAT_VERSION:
                execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            elif version != FORMAT_VERSION:
                raise AccountsUnusable(
                    f"{self.path} was written by a newer twinportd (format {version}); install that one"
                )
        if execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("its pages contradict each other")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, GrantError, ProtocolError, Refusal, ValueError, TypeError) as error:
            raise AccountsUnusable(
                f"{self.path} cannot be used ({error}). Restore it from a backup; without it nobody can log in."
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Release it; harmless when repeated."""
        self._database.close()

    # the file --------------------------------------------------------------------------------------------------------

    def is_replaced(self) -> bool:
        """Whether another file has the name now, or none."""
        return self._file is None or _file_id(self.path) != self._file

    def gather(self) -> bool:
        """Have all in the one file, and nothing in those that SQLite keeps beside it: so a copy of it is whole, and
        another may take its place. False where somebody is just using them. ``AccountsUnusable``."""
        with self._explained():
            is_busy: int = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            return not is_busy

    def abandon(self) -> None:
        """The file was replaced: release it, and remove what SQLite keeps beside its name, which would be taken for
        changes of the new one."""
        if self._file is None:
            return
        self._file = None
        with suppress(AccountsUnusable):
            self.gather()
        for path, mine in self._beside.items():
            if mine is not None and _file_id(path) == mine:
                path.unlink(missing_ok=True)
        self._database.close()

    # reading ---------------------------------------------------------------------------------------------------------

    def version(self) -> int:
        """A number that differs once another connection has changed something. ``AccountsUnusable``."""
        with self._explained():
            number: int = self._database.execute("PRAGMA data_version").fetchone()[0]
            return number

    def load(self) -> Snapshot:
        """All accounts at one moment. ``AccountsUnusable`` for anything in it that makes no sense."""
        with self._explained():
            self._database.execute("BEGIN")
            try:
                return self._load()
            finally:
                self._database.execute("ROLLBACK")

    def _load(self) -> Snapshot:
        rows = self._database.execute
        keys: defaultdict[str, list[Key]] = defaultdict(list)
        for user, blob, comment, expires in rows("SELECT user, blob, comment, expires FROM keys ORDER BY comment"):
            keys[user].append(Key(bytes(blob), comment, expires))
        tokens: defaultdict[str, list[Token]] = defaultdict(list)
        for token_id, user, digest, label, created, expires, revoked in rows(
            "SELECT id, user, digest, label, created, expires, revoked FROM tokens ORDER BY created"
        ):
            tokens[user].append(Token(token_id, user, bytes(digest), label, created, expires, bool(revoked)))
        grants: defaultdict[str, list[Grant]] = defaultdict(list)
        for user, pattern, acts in rows("SELECT user, pattern, acts FROM grants ORDER BY pattern"):
            grants[user].append(parse_grant(pattern, acts.split(",")))
        accounts: dict[str, Account] = {}
        for name, created, password_hash, disabled, home, max_bytes, max_files, rate, changes in rows(
            "SELECT name, created, password_hash, disabled, home, max_bytes, max_files, rate, changes "
            "FROM users ORDER BY name"
        ):
            accounts[parse_user(name)] = Account(
                name=name,
                created=created,
                # What is no text is no hash: as "", which is refused and reported when it is used.
                password_hash=password_hash if password_hash is None or isinstance(password_hash, str) else "",
                is_disabled=bool(disabled),
                home=None if home is None else parse_home(home),
                quota=Quota(max_bytes, max_files),
                rate=rate,
                keys=tuple(keys[name]),
                tokens=tuple(tokens[name]),
                grants=tuple(grants[name]),
                changes=changes,
            )
        return Snapshot.of(accounts)

    def pending_changes(self) -> list[Change]:
        """What was changed and is not in the audit log yet, the oldest first. ``AccountsUnusable``."""
        with self._explained():
            return read_changes(self._database)

    # changes ---------------------------------------------------------------------------------------------------------

    def add(self, account: Account) -> None:
        """Add an account with all that belongs to it, tokens excepted. ``AccountError`` when the name is taken."""
        try:
            with self._writing():
                self._database.execute(
                    "INSERT INTO users VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        account.name, account.created, account.password_hash, account.is_disabled, account.home,
                        account.quota.max_bytes, account.quota.max_files, account.rate, account.changes,
                    ),
                )  # fmt: skip
                for key in account.keys:
                    self._insert_key(account.name, key)
                for grant in account.grants:
                    self._insert_grant(account.name, grant)
                self._note(*describe_added(account))
        except sqlite3.IntegrityError:
            raise AccountError(f"there is an account {account.name!r} already") from None

    def remove(self, name: str) -> None:
        """Remove an account, its keys, tokens and grants; its files stay. ``AccountError`` when there is none."""
        self._change(Change(name, "remove"), "DELETE FROM users WHERE name = ?", (name,))

    def set_password(self, name: str, password_hash: str | None, *, only_if: str | None = None) -> None:
        """Replace the password hash, or take it away, and end the logins; with ``only_if`` only that one, as the same
        password in another form. ``AccountError``."""
        if only_if is None:
            statement = "UPDATE users SET password_hash = ?, changes = changes + 1 WHERE name = ?"
            self._change(describe_password(name, is_set=password_hash is not None), statement, (password_hash, name))
        else:
            statement = "UPDATE users SET password_hash = ? WHERE name = ? AND password_hash = ?"
            with self._writing():
                self._change_one(name, statement, (password_hash, name, only_if), "another password by now")

    def set_disabled(self, name: str, is_disabled: bool) -> None:
        """Disable or enable an account; ends its logins. ``AccountError``."""
        statement = "UPDATE users SET disabled = ?, changes = changes + 1 WHERE name = ?"
        self._change(Change(name, "disable" if is_disabled else "enable"), statement, (is_disabled, name))

    def set_bounds(self, name: str, quota: Quota, rate: int | None) -> None:
        """Replace an account's bounds. ``AccountError``."""
        statement = "UPDATE users SET max_bytes = ?, max_files = ?, rate = ? WHERE name = ?"
        self._change(describe_bounds(name, quota, rate), statement, (quota.max_bytes, quota.max_files, rate, name))

    def add_key(self, name: str, key: Key) -> None:
        """Add a key, or give a known one another comment and expiry. ``AccountError``."""
        with self._writing_to(name):
            self._insert_key(name, key)
            self._note(describe_key("keys add", name, key))

    def remove_key(self, name: str, blob: bytes) -> None:
        """Remove a key; ends the logins. ``AccountError`` when the account does not have it."""
        statement = "DELETE FROM keys WHERE user = ? AND blob = ?"
        change = Change(name, "keys remove", key_fingerprint(blob))
        self._withdraw(change, statement, (name, blob), "no such key")

    def add_token(self, token: Token) -> None:
        """Add a token. ``AccountError``."""
        row = (token.id, token.user, token.digest, token.label, token.created, token.expires, token.is_revoked)
        with self._writing_to(token.user):
            self._database.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._note(describe_token(token))

    def revoke_token(self, name: str, token_id: str) -> None:
        """Revoke a token for good; ends the logins. ``AccountError`` when the account has none of that id."""
        statement = "UPDATE tokens SET revoked = 1 WHERE user = ? AND id = ?"
        self._withdraw(Change(name, "token revoke", token_id), statement, (name, token_id), "no such token")

    def put_grant(self, name: str, grant: Grant) -> None:
        """Grant; replaces the acts of the same pattern. ``AccountError``."""
        with self._writing_to(name):
            self._insert_grant(name, grant)
            self._note(describe_grant(name, grant))

    def remove_grant(self, name: str, pattern: str) -> None:
        """Take a grant away. ``AccountError`` when the account has none of that pattern."""
        statement = "DELETE FROM grants WHERE user = ? AND pattern = ?"
        self._change(Change(name, "revoke", pattern), statement, (name, pattern), "no such grant")

    def remove_changes(self, ids: Iterable[str]) -> None:
        """They are in the audit log now. ``AccountsUnusable``."""
        with self._writing():
            remove_changes(self._database, ids)

    def _insert_key(self, name: str, key: Key) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", (name, key.blob, key.comment, key.expires)
        )

    def _insert_grant(self, name: str, grant: Grant) -> None:
        acts = ",".join(sorted(act.value for act in grant.acts))
        self._database.execute("INSERT OR REPLACE INTO grants VALUES (?, ?, ?)", (name, grant.pattern, acts))

    def _change(self, change: Change, statement: str, values: tuple[object, ...], missing: str = "not changed") -> None:
        with self._writing():
            self._change_one(change.user, statement, values, missing)
            self._note(change)

    def _withdraw(self, change: Change, statement: str, values: tuple[object, ...], missing: str) -> None:
        with self._writing():
            self._change_one(change.user, statement, values, missing)
            self._database.execute("UPDATE users SET changes = changes + 1 WHERE name = ?", (change.user,))
            self._note(change)

    def _note(self, *changes: Change) -> None:
        for change in changes:
            write_change(self._database, replace(change, author=self._author), self._now())

    def _change_one(self, name: str, statement: str, values: tuple[object, ...], missing: str) -> None:
        if self._database.execute(statement, values).rowcount != 1:
            known = self._database.execute("SELECT 1 FROM users WHERE name = ?", (name,)).fetchone()
            raise AccountError(f"account {name!r}: {missing}" if known else f"there is no account {name!r}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._transaction():
                yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise AccountsUnusable(f"{self.path} could not be changed: {error}") from None

    @contextmanager
    def _writing_to(self, name: str) -> Iterator[None]:
        try:
            with self._writing():
                yield
        except sqlite3.IntegrityError:
            raise AccountError(f"there is no account {name!r}") from None

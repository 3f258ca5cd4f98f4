"""What is changed about accounts is in the audit log: all of it, once, with nothing secret."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from twinport_protocol.auth import key_fingerprint
from twinport_service.accounts.changes import Change, this_person
from twinport_service.accounts.database import AccountDatabase, AccountError
from twinport_service.accounts.grants import parse_grant
from twinport_service.accounts.records import Account, Key
from twinport_service.accounts.store import AccountStore
from twinport_service.accounts.tokens import make_token
from twinport_service.audit import AuditEntry, AuditLog
from twinport_service.audit_reader import AuditReader
from twinport_service.cli_audit import audit as audit_command
from twinport_service.cli_user import user as user_command
from twinport_service.embedded import open_foundation
from twinport_service.quota import Quota

from tests.service.accounts.conftest import PASSWORD, WATCH_SECONDS, SshKey
from tests.service.conftest import settings_for
from tests.service.raw_client import await_true

Row = Mapping[str, Any]
ME = pwd.getpwuid(os.getuid()).pw_name


def words(found: list[Change]) -> list[tuple[str, str, str | None]]:
    """What each says."""
    return [(change.user, change.what, change.detail) for change in found]


CHANGES: list[tuple[Callable[[AccountDatabase], None], list[tuple[str, str | None]]]] = [
    (lambda database: database.set_password("alice", "hash"), [("passwd", "set")]),
    (lambda database: database.set_password("alice", None), [("passwd", "removed")]),
    (lambda database: database.set_disabled("alice", True), [("disable", None)]),
    (lambda database: database.set_disabled("alice", False), [("enable", None)]),
    (
        lambda database: database.set_bounds("alice", Quota(5, None), 2048),
        [("quota", "max-bytes=5 max-files=none max-rate=2048")],
    ),
    (
        lambda database: database.add_key("alice", Key(b"key", "a comment", 86_400.0)),
        [("keys add", f"{key_fingerprint(b'key')} expires 1970-01-02 00:00 UTC")],
    ),
    (lambda database: database.remove_key("alice", b"old"), [("keys remove", key_fingerprint(b"old"))]),
    (
        lambda database: database.put_grant("alice", parse_grant("shared/**", ["read", "list"])),
        [("grant", "list,read on shared/**")],
    ),
    (lambda database: database.remove_grant("alice", "given/**"), [("revoke", "given/**")]),
    (lambda database: database.revoke_token("alice", "0123456789abcdef"), [("token revoke", "0123456789abcdef")]),
    (lambda database: database.remove("alice"), [("remove", None)]),
]


@pytest.fixture
def known(database: AccountDatabase) -> AccountDatabase:
    """A database with an account that has something of everything, whose changes are taken over."""
    grants = (parse_grant("given/**", ["read"]),)
    database.add(Account("alice", 0.0, "old hash", home="alice", keys=(Key(b"old"),), grants=grants))
    _, token = make_token("alice", "label", 0.0)
    database.add_token(type(token)("0123456789abcdef", "alice", token.digest, "label", 0.0))
    database.remove_changes([change.id for change in database.pending_changes()])
    return database


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said[0][0] for _, said in CHANGES])
def test_every_change_leaves_what_it_was(
    known: AccountDatabase, change: Callable[[AccountDatabase], None], said: list[tuple[str, str | None]]
) -> None:
    change(known)
    assert words(known.pending_changes()) == [("alice", what, detail) for what, detail in said]


def test_no_method_that_changes_something_is_missing_in_the_table() -> None:
    """``add``, ``add_token`` and ``remove_changes`` have tests of their own."""
    changing = ("add", "remove", "set_", "put_", "revoke_")
    methods = {name for name in vars(AccountDatabase) if name.startswith(changing)}
    used = {name for change, _ in CHANGES for name in change.__code__.co_names}
    assert methods - used == {"add", "add_token", "remove_changes"}


def test_a_new_account_says_what_it_was_given(database: AccountDatabase) -> None:
    grants = (parse_grant("**", ["list", "read", "write", "delete"]),)
    database.add(Account("bob", 0.0, "hash", home="b", keys=(Key(b"key"),), grants=grants, quota=Quota(None, 7)))
    database.add(Account("ci", 0.0))
    text, token = make_token("ci", "the label", 0.0)
    database.add_token(token)
    found = database.pending_changes()
    assert words(found) == [
        ("bob", "add", "home b"),
        ("bob", "passwd", "set"),
        ("bob", "keys add", f"{key_fingerprint(b'key')} expires never"),
        ("bob", "grant", "list,read,write,delete on **"),
        ("bob", "quota", "max-bytes=none max-files=7 max-rate=none"),
        ("ci", "add", "no home"),
        ("ci", "token add", f"{token.id} expires never"),
    ]
    said = repr(found)
    assert text not in said
    assert token.digest.hex() not in said


def test_what_is_refused_and_what_the_server_itself_does_leave_nothing(known: AccountDatabase) -> None:
    with pytest.raises(AccountError):
        known.remove("nobody")
    with pytest.raises(AccountError):
        known.add(Account("alice", 0.0, "hash"))
    with pytest.raises(AccountError):
        known.revoke_token("alice", "0" * 16)
    known.set_password("alice", "the same password, hashed anew", only_if="old hash")
    assert known.pending_changes() == []


def test_a_change_that_cannot_be_noted_is_not_made(known: AccountDatabase) -> None:
    with closing(sqlite3.connect(known.path)) as raw:
        raw.execute("CREATE TRIGGER full BEFORE INSERT ON pending_changes BEGIN SELECT RAISE(FAIL, 'no room'); END")
    before = known.load()
    with pytest.raises((sqlite3.Error, AccountError)):
        known.set_disabled("alice", True)
    assert known.load() == before


def test_who_did_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_person({"SUDO_USER": "anna"}) in (ME, f"{ME} (sudo by anna)")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert this_person({}) == "root"
    assert this_person({"SUDO_USER": "anna"}) == "root (sudo by anna)"
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert this_person({"SUDO_USER": "anna"}) == "uid 54321"


# the server takes them over ------------------------------------------------------------------------------------------


@pytest.fixture
def audit(shm_path: Path) -> Iterator[AuditLog]:
    """The log."""
    with closing(AuditLog(shm_path / "audit")) as opened:
        yield opened


def rows(directory: Path) -> list[Row]:
    """What is in the log about accounts."""
    return [row for row in AuditReader(directory).rows() if row["event"] == "account"]


def test_the_server_takes_over_what_is_changed_and_what_was(
    database: AccountDatabase, audit: AuditLog, shm_path: Path
) -> None:
    database.add(Account("alice", 0.0))
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
        store.record_changes(audit)
        await_true(lambda: not database.pending_changes(), what="what was changed before")
        database.set_disabled("alice", True)
        await_true(lambda: not database.pending_changes(), what="what is changed now")
    database.remove("alice")
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
        store.record_changes(audit)
        await_true(lambda: not database.pending_changes(), what="what was changed in between")
    found = rows(shm_path / "audit")
    assert [(row["user"], row["what"]) for row in found] == [
        ("alice", "add"),
        ("alice", "disable"),
        ("alice", "remove"),
    ]
    assert len({row["change"] for row in found}) == 3


def test_the_time_of_a_line_is_that_of_the_change(shm_path: Path, audit: AuditLog) -> None:
    with closing(AccountDatabase(shm_path / "accounts.db", author="anna", now=lambda: 86_400.5)) as database:
        database.add(Account("alice", 0.0))
        with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
            store.record_changes(audit)
            await_true(lambda: not database.pending_changes())
    (line,) = rows(shm_path / "audit")
    assert (line["time"], line["author"]) == ("1970-01-02T00:00:00.500Z", "anna")
    assert "at" not in line


def test_what_cannot_be_written_is_taken_over_once_it_can(
    database: AccountDatabase, audit: AuditLog, shm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = iter([False, False])
    really = audit.sync
    monkeypatch.setattr(audit, "sync", lambda: next(synced, True) and really())
    database.add(Account("alice", 0.0))
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
        store.record_changes(audit)
        await_true(lambda: not database.pending_changes())
    assert next(synced, None) is None, "it was tried again"
    assert [row["what"] for row in rows(shm_path / "audit")] == ["add"], "and written once"


def test_a_line_that_found_no_room_is_handed_over_again(
    database: AccountDatabase, audit: AuditLog, shm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = audit.take
    refused: list[AuditEntry] = []

    def take(entry: AuditEntry) -> bool:
        if not refused:
            refused.append(entry)
            return False
        return really(entry)

    monkeypatch.setattr(audit, "take", take)
    database.add(Account("alice", 0.0))
    database.set_disabled("alice", True)
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
        store.record_changes(audit)
        await_true(lambda: not database.pending_changes())
    assert sorted(row["what"] for row in rows(shm_path / "audit")) == ["add", "disable"]
    assert refused[0].what == "add"


def test_it_is_on_the_disk_before_the_row_goes(
    database: AccountDatabase, audit: AuditLog, shm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, remove = os.fsync, AccountDatabase.remove_changes
    inode = (shm_path / "audit" / "audit.jsonl").stat().st_ino

    def note_fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == inode:
            order.append("log")
        fsync(descriptor)

    def note_remove(database: AccountDatabase, ids: list[str]) -> None:
        order.append("row")
        remove(database, ids)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(AccountDatabase, "remove_changes", note_remove)
    database.add(Account("alice", 0.0))
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
        store.record_changes(audit)
        await_true(lambda: not database.pending_changes())
    assert order == ["log", "row"]


# the commands --------------------------------------------------------------------------------------------------------


def run(root: Path, *command: str, stdin: str | None = None) -> str:
    """The output of ``twinportd user …``."""
    result = CliRunner().invoke(user_command, [*command, "--root", str(root)], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def shown(root: Path, *options: str) -> list[Row]:
    """What ``twinportd audit`` shows."""
    result = CliRunner().invoke(audit_command, ["--root", str(root), "--json", *options])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_commands_are_shown_with_and_without_a_server(root: Path, ssh_keys: Callable[[str], SshKey]) -> None:
    run(root, "add", "alice", "--password-stdin", stdin=f"{PASSWORD}\n")
    run(root, "keys", "add", "alice", str(ssh_keys("ed25519").path.with_suffix(".pub")))
    token = run(root, "token", "add", "alice", "--label", "a label").strip()
    before = shown(root)
    assert [(row["event"], row["user"], row["what"]) for row in before] == [
        ("account", "alice", what) for what in ("add", "passwd", "keys add", "token add")
    ]
    assert {row["author"] for row in before} == {this_person()}
    with closing(open_foundation(settings_for(root))) as foundation:
        foundation.begin_recording()
        run(root, "disable", "alice")
        with closing(AccountDatabase(root / ".twinport" / "accounts.db")) as database:
            await_true(lambda: not database.pending_changes())
        assert foundation.audit is not None
        during = shown(root)
        assert during[:4] == before, "the same lines, from the log now"
        assert [row["what"] for row in during[4:]] == ["disable"]
    run(root, "remove", "alice", "--yes")
    after = shown(root, "--user", "alice")
    assert [row["what"] for row in after[-2:]] == ["disable", "remove"]
    everything = json.dumps(after) + (root / ".twinport" / "audit" / "audit.jsonl").read_text()
    for secret in (PASSWORD, token, token.split("_", 2)[2], "argon2"):
        assert secret not in everything


def test_people_read_what_was_changed_and_by_whom(root: Path) -> None:
    run(root, "add", "bob", "--no-password", "--grant", "shared/**=list,read")
    result = CliRunner().invoke(audit_command, ["--root", str(root), "--event", "account"])
    found = [[word.strip() for word in row.split("  ")[-3:]] for row in result.stdout.splitlines()]
    assert found == [
        ["add", "home bob", f"by {this_person()}"],
        ["grant", "list,read on shared/**", f"by {this_person()}"],
    ]

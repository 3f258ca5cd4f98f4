"""Another file in the place of accounts.db, as from a backup: it counts at once, or what was in force stays."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from twinport_service.accounts.database import FORMAT_VERSION, AccountDatabase
from twinport_service.accounts.records import Account
from twinport_service.accounts.store import AccountStore
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader
from twinport_service.log import configure_logging

from tests.service.accounts.conftest import WATCH_SECONDS
from tests.service.raw_client import await_true

Add = Callable[..., None]


@pytest.fixture
def log() -> io.StringIO:
    """The server's log."""
    stream = io.StringIO()
    configure_logging("human", "info", stream)
    return stream


@pytest.fixture
def audit(shm_path: Path) -> Iterator[AuditLog]:
    """The audit log."""
    with closing(AuditLog(shm_path / "audit")) as opened:
        yield opened


def names(path: Path) -> set[str]:
    """The accounts in a file, as the next command finds them."""
    with closing(AccountDatabase(path)) as database:
        return set(database.load().accounts)


def make_backup(path: Path, *accounts: str) -> Path:
    """A file with those accounts, and nothing beside it."""
    with closing(AccountDatabase(path)) as database:
        for name in accounts:
            database.add(Account(name, 1.0))
    assert [found.name for found in path.parent.glob(f"{path.name}*")] == [path.name]
    return path


def test_a_backup_that_takes_its_place_counts_at_once(
    database: AccountDatabase, store: AccountStore, add: Add, shm_path: Path, log: io.StringIO
) -> None:
    for number in range(300):
        add(f"user{number}")
    await_true(lambda: store.account("user299") is not None)
    database.close()
    backup = make_backup(shm_path / "backup.db", "anna", "user7")
    backup.rename(database.path)
    await_true(lambda: store.account("anna") is not None)
    assert {name for name in ("anna", "user7", "user8") if store.is_active(name)} == {"anna", "user7"}
    assert not store.holds("user7", (0.0, 0)), "another account by that name"
    assert log.getvalue().count("accounts.db was replaced") == 1
    with closing(AccountDatabase(database.path)) as again:
        again.add(Account("bob", 2.0))
        await_true(lambda: store.account("bob") is not None, what="what is changed in the new one")
    assert names(database.path) == {"anna", "user7", "bob"}, "nothing of the old one was mixed in"


def test_what_was_moved_away_is_whole(database: AccountDatabase, store: AccountStore, add: Add, shm_path: Path) -> None:
    add("alice")
    await_true(lambda: store.account("alice") is not None)
    database.close()
    backup = make_backup(shm_path / "backup.db", "anna")
    away = database.path.rename(shm_path / "away.db")
    backup.rename(database.path)
    await_true(lambda: store.account("anna") is not None)
    assert names(away) == {"alice"}
    away.rename(database.path)
    await_true(lambda: store.account("alice") is not None, what="the old one again")
    assert not store.is_active("anna")


def test_the_one_file_is_a_whole_backup_and_the_audit_log_tells_of_its_return(
    database: AccountDatabase, add: Add, shm_path: Path, audit: AuditLog
) -> None:
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as store:
        store.record_changes(audit)
        add("alice")
        beside = database.path.with_name("accounts.db-wal")
        await_true(lambda: not database.pending_changes() and beside.stat().st_size == 0, what="all in one file")
        copied = Path(shutil.copy2(database.path, shm_path / "backup.db"))
        add("bob")
        await_true(lambda: store.account("bob") is not None)
        copied.rename(database.path)
        await_true(lambda: store.account("bob") is None)
        assert store.is_active("alice")
        assert audit.flush()
        said = [row["what"] for row in AuditReader(shm_path / "audit").rows()]
        assert said.count("replaced") == 1
        assert names(database.path) == {"alice"}


def empty(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o600)


def nonsense(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))
    path.chmod(0o600)


def half(path: Path) -> None:
    make_backup(path, *(f"user{number}" for number in range(300)))
    os.truncate(path, path.stat().st_size // 2)


def newer(path: Path) -> None:
    make_backup(path, "anna")
    with closing(sqlite3.connect(path)) as raw:
        raw.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")


def readable_by_all(path: Path) -> None:
    make_backup(path, "anna").chmod(0o644)


def link(path: Path) -> None:
    path.symlink_to(make_backup(path.with_name("target.db"), "anna"))


@pytest.mark.parametrize("make", [empty, nonsense, half, newer, readable_by_all, link, None])
def test_one_that_cannot_be_read_leaves_in_force_what_is_and_says_what_to_do(
    database: AccountDatabase,
    store: AccountStore,
    add: Add,
    shm_path: Path,
    log: io.StringIO,
    make: Callable[[Path], None] | None,
) -> None:
    add("alice")
    await_true(lambda: store.account("alice") is not None)
    database.close()
    bad = shm_path / "bad.db"
    if make is None:
        database.path.unlink()
        before = None
    else:
        make(bad)
        before = bad.read_bytes()
        bad.rename(database.path)
    await_true(lambda: "[ACCOUNTS] Cannot be read; what was known stays in force" in log.getvalue())
    assert any(advice in log.getvalue() for advice in ("Restore it", "restore it", "Put a backup", "chmod", "install"))
    for _ in range(5):
        store.refresh()
    assert store.is_active("alice")
    assert log.getvalue().count("[ACCOUNTS] Cannot be read") == 1
    if before is None:
        assert not database.path.exists()
    else:
        assert database.path.read_bytes() == before, "left alone"
    store.replace_password_hash("alice", "old", "new")
    make_backup(shm_path / "good.db", "alice", "anna").rename(database.path)
    await_true(lambda: store.account("anna") is not None)
    assert "[ACCOUNTS] Can be read again" in log.getvalue()
    assert names(database.path) == {"alice", "anna"}

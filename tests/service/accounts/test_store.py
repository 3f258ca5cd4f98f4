"""The store: what it remembers, how soon it sees a change, and what it makes of a damaged database."""

from __future__ import annotations

import io
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from twinport_service.access import Act
from twinport_service.accounts.database import AccountDatabase, AccountError, AccountsUnusable
from twinport_service.accounts.grants import parse_grant
from twinport_service.accounts.records import Account, Key
from twinport_service.accounts.store import AccountStore, LoginMode
from twinport_service.accounts.tokens import make_token
from twinport_service.config import Settings
from twinport_service.embedded import FoundationError, open_foundation
from twinport_service.log import configure_logging
from twinport_service.quota import UNLIMITED, Quota

from tests.service.accounts.conftest import SshKey

Add = Callable[..., None]


def await_true(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)


def test_everything_comes_back(database: AccountDatabase, ssh_keys: Callable[[str], SshKey]) -> None:
    account = Account(
        "alice",
        123.5,
        "hash",
        is_disabled=True,
        home="people/alice",
        quota=Quota(10, 20),
        rate=30,
        keys=(ssh_keys("ed25519").public,),
        grants=(parse_grant("shared/**", ["list", "read"]),),
    )
    database.add(account)
    _, token = make_token("alice", "label", 1.0, 2.0)
    database.add_token(token)
    (loaded,) = database.load().accounts.values()
    assert loaded.tokens == (token,)
    assert Account(**{**vars(loaded), "tokens": ()}) == account
    with closing(AccountDatabase(database.path)) as again:
        assert again.load() == database.load()


def test_the_files_are_for_the_owner_alone(database: AccountDatabase, add: Add) -> None:
    add("alice")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.path.parent.glob("accounts.db*")}
    assert set(modes.values()) == {0o600}, modes


def test_changes_that_make_no_sense_are_named(
    database: AccountDatabase, add: Add, ssh_keys: Callable[[str], SshKey]
) -> None:
    add("alice")
    changes: list[Callable[[], None]] = [
        lambda: add("alice"),
        lambda: database.remove("bob"),
        lambda: database.set_password("bob", "x"),
        lambda: database.set_disabled("bob", True),
        lambda: database.set_bounds("bob", UNLIMITED, None),
        lambda: database.add_key("bob", ssh_keys("ed25519").public),
        lambda: database.remove_key("alice", b"x"),
        lambda: database.add_token(make_token("bob", "", 0.0)[1]),
        lambda: database.revoke_token("alice", "0123456789abcdef"),
        lambda: database.put_grant("bob", parse_grant("x", ["read"])),
        lambda: database.remove_grant("alice", "x"),
    ]
    before = database.load()
    for change in changes:
        with pytest.raises(AccountError):
            change()
    assert database.load() == before


def test_removing_an_account_removes_all_that_belongs_to_it(
    database: AccountDatabase, add: Add, ssh_keys: Callable[[str], SshKey]
) -> None:
    add("alice", keys=(ssh_keys("ed25519").public,), grants=(parse_grant("x", ["read"]),))
    database.add_token(make_token("alice", "", 0.0)[1])
    database.remove("alice")
    add("alice", home=None)
    (account,) = database.load().accounts.values()
    assert (account.keys, account.tokens, account.grants, account.home) == ((), (), (), None)


def test_the_running_server_sees_every_change_at_once(store: AccountStore, database: AccountDatabase, add: Add) -> None:
    assert store.login_mode is LoginMode.NONE
    assert store.decide("anybody", Act.DELETE, "x")
    assert store.is_active("anybody")
    add("alice")
    await_true(lambda: store.login_mode is LoginMode.REQUIRED)
    await_true(lambda: store.is_active("alice"))
    assert not store.decide("anybody", Act.READ, "x")
    assert not store.decide("anonymous", Act.READ, "alice/x")
    assert store.decide("alice", Act.WRITE, "alice/x")
    assert not store.decide("alice", Act.READ, "shared/x")
    database.put_grant("alice", parse_grant("shared/**", ["read"]))
    await_true(lambda: store.decide("alice", Act.READ, "shared/x"))
    database.remove_grant("alice", "shared/**")
    await_true(lambda: not store.decide("alice", Act.READ, "shared/x"))
    database.set_bounds("alice", Quota(5, None), 7)
    await_true(lambda: store.quota_of("alice") == Quota(5, None) and store.rate_of("alice") == 7)
    assert store.quota_of("nobody") == UNLIMITED
    assert store.rate_of("nobody") is None
    database.set_disabled("alice", True)
    await_true(lambda: not store.is_active("alice"))
    assert not store.decide("alice", Act.READ, "alice/x")
    add("anonymous", home=None, password_hash=None, grants=(parse_grant("public/**", ["list", "read"]),))
    await_true(lambda: store.login_mode is LoginMode.OFFERED)
    assert store.decide("anonymous", Act.READ, "public/x")
    assert not store.decide("anonymous", Act.WRITE, "public/x")
    database.set_disabled("anonymous", True)
    await_true(lambda: store.login_mode is LoginMode.REQUIRED)


def test_removing_the_last_account_opens_nothing(store: AccountStore, database: AccountDatabase, add: Add) -> None:
    add("alice")
    await_true(lambda: store.has_accounts)
    database.remove("alice")
    await_true(lambda: store.account("alice") is None)
    assert store.login_mode is LoginMode.REQUIRED
    assert not store.allows_anonymous
    assert not store.decide("anonymous", Act.LIST, "")
    assert not store.is_active("alice")


def test_a_password_that_was_changed_meanwhile_is_not_overwritten(
    store: AccountStore, database: AccountDatabase, add: Add
) -> None:
    add("alice", password_hash="old")
    store.replace_password_hash("alice", "another", "new")
    assert database.load().accounts["alice"].password_hash == "old"
    store.replace_password_hash("alice", "old", "new")
    assert database.load().accounts["alice"].password_hash == "new"
    account = store.account("alice")
    assert account is not None
    assert account.password_hash == "new", "seen at once"


def test_a_database_damaged_under_the_running_server_leaves_the_last_state_in_force(
    store: AccountStore, database: AccountDatabase, add: Add
) -> None:
    log = io.StringIO()
    configure_logging("human", "info", log)
    add("alice")
    await_true(lambda: store.is_active("alice"))
    with closing(sqlite3.connect(database.path)) as raw, raw:
        raw.execute("INSERT INTO grants VALUES ('alice', 'a/**/b', 'read')")
    await_true(lambda: "[ACCOUNTS] Cannot be read" in log.getvalue())
    assert store.decide("alice", Act.READ, "alice/x")
    database.remove_grant("alice", "a/**/b")
    await_true(lambda: "[ACCOUNTS] Can be read again" in log.getvalue())
    assert log.getvalue().count("[ACCOUNTS] Cannot be read") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE users SET name = 'a b'",
        "UPDATE users SET home = '../x'",
        "UPDATE users SET home = '*'",
        "INSERT INTO grants VALUES ('alice', '..', 'read')",
        "INSERT INTO grants VALUES ('alice', 'x', 'fly')",
        "INSERT INTO grants VALUES ('alice', 'x', '')",
        "DROP TABLE grants",
        "PRAGMA user_version = 4",
    ],
)
def test_a_server_does_not_start_on_accounts_that_make_no_sense(root: Path, statement: str) -> None:
    own = root / ".twinport"
    own.mkdir(mode=0o700)
    with closing(AccountDatabase(own / "accounts.db")) as database:
        database.add(Account("alice", 0.0))
    with closing(sqlite3.connect(own / "accounts.db")) as raw:
        raw.execute(statement)
        raw.commit()
    with pytest.raises(FoundationError, match=r"accounts\.db"):
        open_foundation(Settings(root=root, tls="off"))


@pytest.mark.parametrize("version", [1, 2])
def test_a_database_of_an_earlier_format_is_taken_over(database: AccountDatabase, version: int) -> None:
    database.add(Account("alice", 1.0))
    with closing(sqlite3.connect(database.path, isolation_level=None)) as raw:
        raw.execute("DROP TABLE pending_changes")
        if version == 1:
            raw.execute("ALTER TABLE users DROP COLUMN changes")
        raw.execute(f"PRAGMA user_version = {version}")
    for _ in range(2):
        with closing(AccountDatabase(database.path)) as again:
            assert again.load().accounts["alice"] == Account("alice", 1.0)
    with closing(AccountDatabase(database.path)) as again:
        again.set_password("alice", "hash")
        assert again.load().accounts["alice"].epoch == (1.0, 1)


def test_an_epoch_ends_where_a_way_to_log_in_was_taken_away(database: AccountDatabase, store: AccountStore) -> None:
    database.add(Account("alice", 1.0, "hash", keys=(Key(b"key"),)))
    _, token = make_token("alice", "", 1.0)

    def ends(change: Callable[[], None]) -> bool:
        store.refresh(force=True)
        account = store.account("alice")
        assert account is not None
        assert store.holds("alice", account.epoch)
        change()
        store.refresh(force=True)
        return not store.holds("alice", account.epoch)

    assert not ends(lambda: database.add_token(token))
    assert not ends(lambda: database.add_key("alice", Key(b"another")))
    assert not ends(lambda: database.put_grant("alice", parse_grant("x", ["read"])))
    assert not ends(lambda: database.set_bounds("alice", Quota(1, 1), None))
    assert not ends(lambda: database.set_password("alice", "newer", only_if="hash")), "the same password"
    assert ends(lambda: database.set_password("alice", "other"))
    assert ends(lambda: database.set_disabled("alice", True))
    assert ends(lambda: database.set_disabled("alice", False))
    assert ends(lambda: database.remove_key("alice", b"key"))
    assert ends(lambda: database.revoke_token("alice", token.id))
    assert ends(lambda: database.remove("alice"))
    assert not store.holds("alice", (1.0, 0))
    assert store.holds("alice", None)


@pytest.mark.parametrize("content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_server_does_not_start_on_a_damaged_database(root: Path, content: bytes) -> None:
    own = root / ".twinport"
    own.mkdir(mode=0o700)
    (own / "accounts.db").write_bytes(content)
    (own / "accounts.db").chmod(0o600)
    with pytest.raises(FoundationError, match="Restore it from a backup"):
        open_foundation(Settings(root=root, tls="off"))


def test_damaged_pages_are_noticed_at_the_start(database: AccountDatabase, add: Add) -> None:
    for number in range(500):
        add(f"user{number}", grants=tuple(parse_grant(f"path{index}/**", ["read"]) for index in range(3)))
    database.close()
    raw = bytearray(database.path.read_bytes())
    for page in range(2, len(raw) // 4096):
        raw[page * 4096 : page * 4096 + 64] = b"\xa5" * 64
    database.path.write_bytes(raw)
    with pytest.raises(AccountsUnusable, match="cannot be used"):
        AccountDatabase(database.path)


def test_a_database_that_others_can_read_is_refused(database: AccountDatabase) -> None:
    database.path.chmod(0o640)
    with pytest.raises(AccountsUnusable, match="chmod 600"):
        AccountDatabase(database.path)


def test_a_link_in_its_place_is_not_followed(shm_path: Path) -> None:
    (shm_path / "link.db").symlink_to(shm_path / "elsewhere")
    with pytest.raises(AccountsUnusable):
        AccountDatabase(shm_path / "link.db")
    assert not (shm_path / "elsewhere").exists()


def test_a_look_up_stays_cheap_with_ten_thousand_accounts(shm_path: Path) -> None:
    path = shm_path / "many.db"
    with closing(AccountDatabase(path)) as database, closing(sqlite3.connect(path)) as raw, raw:
        raw.executemany(
            "INSERT INTO users (name, created, home) VALUES (?, 0, ?)", [(f"u{n}", f"u{n}") for n in range(10_000)]
        )
        raw.commit()
        assert len(database.load().accounts) == 10_000
    with closing(AccountStore(path)) as store:
        assert store.decide("u9999", Act.READ, "u9999/x")
        best = min(_seconds(lambda: store.decide("u9999", Act.READ, "u9999/x")) for _ in range(200))
        assert best < 0.001


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began

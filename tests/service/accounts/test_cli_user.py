"""``twinportd user``: what a person types, what comes of it, and what is said when it cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from twinport_protocol.auth import key_fingerprint
from twinport_service.access import EVERYTHING, Act
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.grants import ADMIN_GRANT, parse_grant
from twinport_service.accounts.passwords import make_hasher
from twinport_service.accounts.records import Account
from twinport_service.accounts.words import format_bytes, parse_bytes, parse_count, parse_expiry
from twinport_service.cli_user import user
from twinport_service.embedded import open_foundation
from twinport_service.quota import UNLIMITED, Quota

from tests.service.accounts.conftest import PASSWORD, SshKey
from tests.service.conftest import settings_for

MakeKey = Callable[[str], SshKey]


class Command:
    """Runs ``twinportd user …`` on a root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, *words: str, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(user, [*words, "--root", str(self.root)], input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        assert PASSWORD not in result.output
        return result

    def ok(self, *words: str, stdin: str | None = None) -> str:
        """The output of a command that must work."""
        result = self(*words, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.output

    def refused(self, *words: str, stdin: str | None = None) -> str:
        """What is said by a command that must not work, and changes nothing."""
        before = self.accounts
        result = self(*words, stdin=stdin)
        assert result.exit_code in (1, 2), result.output
        assert self.accounts == before
        return result.output

    @property
    def accounts(self) -> dict[str, Account]:
        """What the database holds."""
        path = self.root / ".twinport" / "accounts.db"
        if not path.exists():
            return {}
        with closing(AccountDatabase(path)) as database:
            return dict(database.load().accounts)


@pytest.fixture
def run(tmp_path: Path) -> Command:
    return Command(tmp_path / "files")


def test_adding_makes_the_root_and_an_account_with_a_home(run: Command) -> None:
    assert "home alice/" in run.ok("add", "alice", "--password-stdin", stdin=f"{PASSWORD}\n")
    account = run.accounts["alice"]
    assert account.home == "alice"
    assert account.quota == UNLIMITED
    assert account.password_hash is not None
    assert make_hasher().verify(account.password_hash, PASSWORD)
    assert (run.root / ".twinport").stat().st_mode & 0o777 == 0o700
    assert (run.root / ".twinport" / "accounts.db").stat().st_mode & 0o777 == 0o600


def test_adding_with_everything(run: Command, ssh_keys: MakeKey) -> None:
    key = ssh_keys("ed25519")
    run.ok(
        *("add", "bob", "--key", str(key.path.with_suffix(".pub")), "--home", "people/bob/", "--admin"),
        *("--grant", "shared/**=list,read", "--max-bytes", "10G", "--max-files", "500", "--max-rate", "20 MiB"),
    )
    account = run.accounts["bob"]
    assert account.password_hash is None
    assert account.home == "people/bob"
    assert account.keys == (key.public,)
    assert set(account.grants) == {ADMIN_GRANT, parse_grant("shared/**", ["list", "read"])}
    assert account.quota == Quota(10 * 2**30, 500)
    assert account.rate == 20 * 2**20


def test_keys_come_from_stdin_too_and_none_twice(run: Command, ssh_keys: MakeKey) -> None:
    line = ssh_keys("ed25519").path.with_suffix(".pub").read_text()
    run.ok("add", "bob", "--key", "-", "--no-home", stdin=line * 2)
    assert len(run.accounts["bob"].keys) == 1
    assert run.accounts["bob"].home is None


def test_anonymous_and_machines_need_no_password(run: Command) -> None:
    run.ok("add", "anonymous", "--no-home", "--grant", "public/**=list,read")
    run.ok("add", "ci", "--no-password")
    assert run.accounts["anonymous"].password_hash is run.accounts["ci"].password_hash is None


def test_an_account_where_no_server_has_been_says_where_it_is(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    run.root.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(run.root.parent)
    run.root = Path("elsewhere")
    assert f"no server has used {run.root.absolute()} yet" in run.ok("add", "alice", "--no-password")
    open_foundation(settings_for(run.root)).close()
    assert "no server" not in run.ok("add", "bob", "--no-password")


@pytest.mark.parametrize(
    ("words", "stdin", "why"),
    [
        (("add", "alice"), "", "--password-stdin"),
        (("add", "alice", "--password-stdin"), "short\n", "fewer than 8"),
        (("add", "alice", "--password-stdin"), "", "fewer than 8"),
        (("add", "alice", "--password-stdin"), f"{PASSWORD}\nmore\n", "more than one line"),
        (("add", "a b", "--no-password"), None, "no user name"),
        (("add", "../x", "--no-password"), None, "no user name"),
        (("add", "-x", "--no-password"), None, "option"),
        (("add", ".x", "--no-password"), None, "no user name"),
        (("add", "alice", "--no-password", "--home", "../x"), None, "no relative path"),
        (("add", "alice", "--no-password", "--home", "x", "--no-home"), None, "contradict"),
        (("add", "alice", "--no-password", "--password-stdin"), None, "goes neither"),
        (("add", "alice", "--no-password", "--max-bytes", "much"), None, "no size"),
        (("add", "alice", "--no-password", "--max-files", "-1"), None, "no number"),
        (("add", "alice", "--no-password", "--grant", "x"), None, "list,read"),
        (("add", "alice", "--no-password", "--grant", "x=fly"), None, "no act"),
        (("add", "alice", "--key", "/nowhere.pub"), None, "cannot read"),
        (("add", "alice", "--key", "-"), "nonsense\n", "line 1"),
        (("list",), None, "twinportd user add"),
        (("passwd", "alice", "--remove"), None, "no accounts"),
    ],
)
def test_what_cannot_be_says_why(run: Command, words: tuple[str, ...], stdin: str | None, why: str) -> None:
    assert why in run.refused(*words, stdin=stdin)


def test_commands_on_an_account_that_is_not_there_say_so(run: Command, ssh_keys: MakeKey) -> None:
    run.ok("add", "alice", "--no-password")
    key = str(ssh_keys("ed25519").path.with_suffix(".pub"))
    for words in (
        ("passwd", "bob", "--remove"), ("disable", "bob"), ("enable", "bob"), ("remove", "bob", "--yes"),
        ("show", "bob"),
        ("grant", "bob", "x", "read"), ("revoke", "bob", "x"), ("quota", "bob", "--max-files", "1"),
        ("keys", "add", "bob", key), ("keys", "list", "bob"), ("keys", "remove", "bob", "x"),
        ("token", "add", "bob"), ("token", "list", "bob"), ("token", "revoke", "bob", "x"),
    ):  # fmt: skip
        assert "there is no account 'bob'" in run.refused(*words), words
    assert "already" in run.refused("add", "alice", "--no-password")
    assert "no such grant" in run.refused("revoke", "alice", "x")
    assert "no such token" in run.refused("token", "revoke", "alice", "x")
    assert "no key" in run.refused("keys", "remove", "alice", "x")
    assert "--yes" in run.refused("remove", "alice", stdin="")


def test_an_account_over_its_life(run: Command, ssh_keys: MakeKey) -> None:
    run.ok("add", "alice", "--no-password")
    run.ok("passwd", "alice", "--password-stdin", stdin=f"{PASSWORD}\r\n")
    password_hash = run.accounts["alice"].password_hash
    assert password_hash is not None
    assert make_hasher().verify(password_hash, PASSWORD)
    run.ok("disable", "alice")
    assert run.accounts["alice"].is_disabled
    assert "DISABLED" in run.ok("list")
    run.ok("enable", "alice")
    assert not run.accounts["alice"].is_disabled

    run.ok("grant", "alice", "shared/**", "list,read")
    run.ok("grant", "alice", "shared/**", "write")
    assert run.accounts["alice"].grants == (parse_grant("shared/**", ["write"]),)
    run.ok("revoke", "alice", "shared/**")
    assert run.accounts["alice"].grants == ()

    assert "10 GiB" in run.ok("quota", "alice", "--max-bytes", "10G", "--max-files", "7")
    assert "files none" not in run.ok("quota", "alice", "--max-bytes", "none", "--max-rate", "1K")
    assert (run.accounts["alice"].quota, run.accounts["alice"].rate) == (Quota(None, 7), 1024)
    assert "no size" in run.refused("quota", "alice", "--max-bytes", "-5")
    assert "too little" in run.refused("quota", "alice", "--max-rate", "0")

    key = ssh_keys("ecdsa-256")
    run.ok("keys", "add", "alice", str(key.path.with_suffix(".pub")), "--expires", "2027-12-31")
    fingerprint = key_fingerprint(key.public.blob)
    assert fingerprint in run.ok("keys", "list", "alice")
    assert run.accounts["alice"].keys[0].expires == 1830297600.0
    run.ok("keys", "remove", "alice", fingerprint)
    assert run.accounts["alice"].keys == ()

    run.ok("passwd", "alice", "--remove")
    assert run.accounts["alice"].password_hash is None
    run.ok("remove", "alice", "--yes")
    assert run.accounts == {}


def test_a_token_is_shown_once(run: Command) -> None:
    run.ok("add", "ci", "--no-password")
    result = CliRunner().invoke(
        user, ["token", "add", "ci", "--label", "backup", "--expires", "90d", "--root", str(run.root)]
    )
    text = result.stdout.strip()
    assert re.fullmatch(r"tp_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", text), "stdout holds nothing else"
    token_id = text.split("_")[1]
    for words in (("show", "ci"), ("show", "ci", "--json"), ("token", "list", "ci"), ("list", "--json")):
        output = run.ok(*words)
        assert text not in output
        assert text.split("_", 2)[2] not in output
    assert f"{token_id}  backup  expires" in run.ok("token", "list", "ci")
    run.ok("token", "revoke", "ci", token_id)
    assert "revoked" in run.ok("token", "list", "ci")


def test_machines_read_json(run: Command, ssh_keys: MakeKey) -> None:
    run.ok("add", "bob", "--key", str(ssh_keys("rsa-3072").path.with_suffix(".pub")), "--grant", "x/**=read")
    (listed,) = json.loads(run.ok("list", "--json"))
    assert listed == json.loads(run.ok("show", "bob", "--json"))
    assert listed["grants"] == [{"pattern": "x/**", "acts": ["read"]}]
    assert listed["keys"][0]["comment"] == "rsa-3072"
    assert listed["password"] is False


def test_help_gives_examples() -> None:
    for words in ([], ["add"], ["grant"], ["quota"], ["keys"], ["token"]):
        output = CliRunner().invoke(user, [*words, "--help"]).output
        assert "twinportd user" in output, words


@pytest.mark.parametrize(
    ("word", "size"),
    [("0", 0), ("1000", 1000), ("1K", 1024), ("10G", 10 * 2**30), ("5 MiB", 5 * 2**20), ("1tb", 2**40), ("none", None)],
)
def test_sizes(word: str, size: int | None) -> None:
    assert parse_bytes(word) == size


@pytest.mark.parametrize("word", ["", "-1", "1.5G", "G", "9999999P", "１", "1E"])
def test_what_is_no_size(word: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        parse_bytes(word)


def test_other_words() -> None:
    assert parse_count("100000") == 100_000
    assert parse_count("none") is None
    assert parse_expiry("90d", 5.0) == 5.0 + 90 * 86_400
    assert parse_expiry("12h", 5.0) == 5.0 + 12 * 3600
    assert parse_expiry("never", 5.0) is None
    for word in ("", "90", "2027-13-01", "2027-1-1", "tomorrow"):
        with pytest.raises(ValueError, match="no time"):
            parse_expiry(word, 5.0)
    assert [format_bytes(size) for size in (None, 0, 1023, 1024, 10 * 2**30)] == [
        "-",
        "0 B",
        "1023 B",
        "1 KiB",
        "10 GiB",
    ]


def test_admin_means_all_four() -> None:
    assert ADMIN_GRANT.acts == EVERYTHING == {Act.LIST, Act.READ, Act.WRITE, Act.DELETE}

"""``twinportd user`` beside a ``twinportd serve`` that runs: two processes, one database."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import ReplyKind, Verb

from tests.e2e.processes import Daemon
from tests.service.raw_client import RawControl

SERVER = [sys.executable, "-c", "from twinport_service.cli import main; main()"]
PASSWORD = "correct horse battery staple"
PASSWORD_OPTIONS = {"user": "alice", "password": PASSWORD}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path / "root", tmp_path / "server.log", "--no-classic", "--log-level", "debug") as started:
        yield started
        started.assert_no_traceback()


def manage(daemon: Daemon, *words: str, given: str = "") -> str:
    """Run ``twinportd user`` on the root of a server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TWINPORT_")}
    command = [*SERVER, "user", *words, "--root", str(daemon.root)]
    done = subprocess.run(
        command, check=False, input=given, capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def logs_in(daemon: Daemon, options: Mapping[str, str]) -> bool:
    """Whether a token is good by now; on a connection of its own, since one is closed after some tries in vain."""
    with RawControl(("127.0.0.1", daemon.control_port)) as control:
        return control.refused(Verb.LOGIN, "token", options=options) is None


def await_true(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_every_change_reaches_the_server_that_runs(daemon: Daemon) -> None:
    with RawControl(("127.0.0.1", daemon.control_port)) as control:
        assert control.ask(Verb.LIST).kind is ReplyKind.DONE, "open, without accounts"
        manage(daemon, "add", "alice", "--password-stdin", given=f"{PASSWORD}\n")
        await_true(lambda: control.refused(Verb.LIST) is ErrorCode.LOGIN_REQUIRED)
        assert control.ask(Verb.LOGIN, "password", options=PASSWORD_OPTIONS).options["home"] == "alice"
        assert control.refused(Verb.MKDIR, "shared/x") is ErrorCode.DENIED
        manage(daemon, "grant", "alice", "shared/**", "list,write")
        await_true(lambda: control.refused(Verb.MKDIR, "shared/x") is None)
        manage(daemon, "quota", "alice", "--max-bytes", "1K", "--max-files", "10")
        await_true(lambda: control.ask(Verb.QUOTA).options.get("max-bytes") == "1024")
        upload = {"upload": "00" * 16}
        assert control.refused(Verb.UPLOAD, "alice/x", "1025", options=upload) is ErrorCode.QUOTA_EXCEEDED
        assert control.refused(Verb.UPLOAD, "alice/x", "1024", options=upload) is None
        manage(daemon, "disable", "alice")
        await_true(lambda: control.refused(Verb.LIST) is ErrorCode.DENIED)
        with RawControl(("127.0.0.1", daemon.control_port)) as other:
            assert other.refused(Verb.LOGIN, "password", options=PASSWORD_OPTIONS) is ErrorCode.LOGIN_FAILED
    token = manage(daemon, "token", "add", "alice").strip()
    manage(daemon, "enable", "alice")
    await_true(lambda: logs_in(daemon, {"token": token}))
    written = daemon.log.read_text()
    assert "[LOGIN] alice by password" in written
    assert PASSWORD not in written
    assert token not in written


def test_accounts_outlive_the_server(daemon: Daemon) -> None:
    manage(daemon, "add", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    daemon.end(signal.SIGKILL)
    daemon.start()
    with RawControl(("127.0.0.1", daemon.control_port)) as control:
        assert control.greeting["login"] == "required"
        assert control.ask(Verb.LOGIN, "password", options=PASSWORD_OPTIONS).kind is ReplyKind.OK


def test_a_damaged_database_stops_the_start_with_a_plain_text(daemon: Daemon) -> None:
    daemon.end(signal.SIGTERM)
    (daemon.root / ".twinport" / "accounts.db").write_bytes(b"nonsense" * 1000)
    done = subprocess.run(
        [*SERVER, "serve", "--root", str(daemon.root), "--control-port", "0", "--data-port", "0"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "accounts.db cannot be used" in done.stderr
    assert "Restore it from a backup" in done.stderr
    assert "Traceback" not in done.stderr


def audited(daemon: Daemon) -> list[dict[str, str]]:
    """What ``twinportd audit`` shows of changes of accounts."""
    command = [*SERVER, "audit", "--root", str(daemon.root), "--event", "account", "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_change_is_missing_in_the_audit_log_when_the_server_is_killed(daemon: Daemon) -> None:
    manage(daemon, "add", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    expected = ["add", "passwd"]
    for _ in range(3):
        manage(daemon, "disable", "alice")
        daemon.end(signal.SIGKILL)
        manage(daemon, "enable", "alice")
        expected += ["disable", "enable"]
        assert [row["what"] for row in distinct(audited(daemon))] == expected, "while it is stopped too"
        daemon.start()
    manage(daemon, "remove", "alice", "--yes")
    expected.append("remove")
    await_true(lambda: [row["what"] for row in distinct(audited(daemon))] == expected)
    assert {(row["user"], bool(row["author"])) for row in audited(daemon)} == {("alice", True)}


def distinct(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without those that were taken over a second time after a crash."""
    return list({row["change"]: row for row in reversed(rows)}.values())[::-1]


def test_a_backup_put_in_place_of_the_accounts_counts_at_once(daemon: Daemon) -> None:
    accounts = daemon.root / ".twinport" / "accounts.db"
    manage(daemon, "add", "alice", "--password-stdin", given=f"{PASSWORD}\n")
    await_true(lambda: accounts.with_name("accounts.db-wal").stat().st_size == 0)
    backup = shutil.copy2(accounts, daemon.root.parent / "backup.db")
    manage(daemon, "passwd", "alice", "--password-stdin", given="another password\n")
    manage(daemon, "add", "bob", "--no-password")
    bob = {"token": manage(daemon, "token", "add", "bob").strip()}
    await_true(lambda: logs_in(daemon, bob))
    with RawControl(("127.0.0.1", daemon.control_port)) as control:
        assert control.refused(Verb.LOGIN, "token", options=bob) is None
        os.replace(backup, accounts)
        await_true(lambda: control.refused(Verb.LIST) in (ErrorCode.DENIED, ErrorCode.LOGIN_REQUIRED))
    with RawControl(("127.0.0.1", daemon.control_port)) as control:
        assert control.refused(Verb.LOGIN, "token", options=bob) is ErrorCode.LOGIN_FAILED
        assert control.ask(Verb.LOGIN, "password", options=PASSWORD_OPTIONS).kind is ReplyKind.OK
        manage(daemon, "grant", "alice", "shared/**", "write")
        await_true(lambda: control.refused(Verb.MKDIR, "shared") is None)
    assert manage(daemon, "list").split()[0] == "alice"
    assert "bob" not in manage(daemon, "list")
    await_true(lambda: "replaced" in [row["what"] for row in audited(daemon)])

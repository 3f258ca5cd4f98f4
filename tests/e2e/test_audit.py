"""What a real server writes into its audit log when real clients log in, move files and are refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import twinport
from twinport.errors import TwinportError

from tests.e2e.processes import Daemon, make_file

SERVER = [sys.executable, "-c", "from twinport_service.cli import main; main()"]
PASSWORD = "correct horse battery staple"
ODD_NAMES = ["a b", "ä\U0001f600", '"quoted"', "back\\slash", "100%=1", "-rf", "a\u2028b", "a\u202eb"]
SMALL_FILES = 2000


def manage(root: Path, *words: str, given: str = "") -> str:
    """``twinportd`` for a root."""
    command = [*SERVER, *words, "--root", str(root)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def audit(root: Path, *words: str) -> list[dict[str, Any]]:
    """The rows that the command prints."""
    return [json.loads(line) for line in manage(root, "audit", "--json", *words).splitlines()]


@pytest.fixture
def daemon(shm_path: Path) -> Iterator[Daemon]:
    """A server with an account that may do everything at its home, and nothing elsewhere."""
    root = shm_path / "root"
    manage(root, "user", "add", "alice", "--password-stdin", given=PASSWORD + "\n")
    with Daemon(root, shm_path / "server.log", "--no-classic") as found:
        yield found
        found.assert_no_traceback()


def refused_code(daemon: Daemon, user: str) -> str:
    """Why a wrong password is refused."""
    with pytest.raises(TwinportError) as caught:
        twinport.connect("127.0.0.1", daemon.control_port, user=user, password="wrong", tls=False)
    return caught.value.code


def test_who_did_what(daemon: Daemon, shm_path: Path) -> None:
    source = shm_path / "source"
    source.mkdir()
    for name in ODD_NAMES:
        (source / name).write_text(name)
    make_file(source / "large", 20_000_000, 1)
    with twinport.connect("127.0.0.1", daemon.control_port, user="alice", password=PASSWORD, tls=False) as client:
        client.put(source, to="alice", recursive=True)
        client.get("alice/source", shm_path / "back", recursive=True)
        client.mkdir("alice/new")
        client.move("alice/source/large", "alice/new/large")
        client.delete("alice/source/a b")
        with pytest.raises(TwinportError):
            client.delete("bob/secret")
    codes: list[str] = []
    while not codes or codes[-1] != "Locked":  # on a busy machine the first wait may be over, but not each longer one
        codes.append(refused_code(daemon, "alice"))
    assert refused_code(daemon, "hunter2-by-mistake") == "LoginFailed"
    daemon.end(signal.SIGTERM)
    rows = audit(daemon.root)
    events = [row["event"] for row in rows]
    assert events[:2] == ["start", "exposure"], rows
    assert "login=required" in rows[1]["what"]
    assert events[-1] == "stop", rows
    logins = [(row["event"], row["user"], row["outcome"]) for row in rows if row["event"] in ("login", "lock")]
    assert logins == [
        ("login", "alice", "ok"),
        *[("login", "alice", "LoginFailed")] * (len(codes) - 1),
        ("lock", "alice", "Locked"),
        ("login", "(unknown)", "LoginFailed"),
    ]
    assert all(row["method"] == "password" for row in rows if row["event"] in ("login", "lock"))
    names = {f"alice/source/{name}" for name in [*ODD_NAMES, "large"]}
    uploads = [row for row in rows if row["event"] == "upload"]
    assert {row["file"] for row in uploads} == names
    assert len(uploads) == len(names)
    assert all(row["user"] == "alice" and row["outcome"] == "ok" and len(row["root"]) == 64 for row in uploads)
    assert {row["size"] for row in uploads if row["file"].endswith("large")} == {20_000_000}
    downloads = [row for row in rows if row["event"] == "download"]
    assert {row["file"] for row in downloads} == names
    assert sum(row["size"] for row in downloads if row["file"].endswith("large")) >= 20_000_000
    found = [(row["file"], row.get("to")) for row in rows if row["event"] in ("mkdir", "move", "delete")]
    assert found == [
        ("alice/new", None),
        ("alice/source/large", "alice/new/large"),
        ("alice/source/a b", None),
    ]
    refusals = [(row["user"], row["file"], row["outcome"]) for row in rows if row["event"] == "refusal"]
    assert ("alice", "bob/secret", "Denied") in refusals
    raw = (daemon.root / ".twinport" / "audit" / "audit.jsonl").read_bytes()
    assert PASSWORD.encode() not in raw
    assert b"wrong" not in raw
    assert b"by-mistake" not in raw
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in raw)
    assert [row["event"] for row in audit(daemon.root, "--file", "alice/new/*")] == ["move"]
    shown = manage(daemon.root, "audit", "--user", "alice", "--event", "move")
    assert shown.rstrip().endswith("alice/source/large  -> alice/new/large")


def test_what_is_changed_at_the_last_moment_stands_before_the_end(daemon: Daemon) -> None:
    manage(daemon.root, "user", "disable", "alice")
    daemon.end(signal.SIGTERM)
    lines = (daemon.root / ".twinport/audit/audit.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["event"] for row in rows[:2]] == ["start", "exposure"]
    assert [row["what"] for row in rows if row["event"] == "account"][-1] == "disable"
    assert rows[-1]["event"] == "stop"


def test_a_stream_of_small_files_is_there_line_by_line(shm_path: Path) -> None:
    """With rotation on the way; and SIGHUP after somebody moved the file away."""
    source = shm_path / "source"
    source.mkdir()
    for number in range(SMALL_FILES):
        (source / f"{number:04}").write_bytes(b"x" * number)
    flags = ["--audit-max-bytes", "65536", "--audit-keep", "100", "--no-classic"]
    with Daemon(shm_path / "root", shm_path / "server.log", *flags) as daemon:
        with twinport.connect("127.0.0.1", daemon.control_port) as client:
            client.put(source, recursive=True)
        daemon.end(signal.SIGTERM)
        rows = [row for row in audit(daemon.root) if row["event"] == "upload"]
        daemon.assert_no_traceback()
    assert {row["file"]: row["size"] for row in rows} == {
        f"source/{number:04}": number for number in range(SMALL_FILES)
    }
    assert len(rows) == SMALL_FILES
    assert len(list((daemon.root / ".twinport" / "audit").glob("audit.0*"))) >= 5

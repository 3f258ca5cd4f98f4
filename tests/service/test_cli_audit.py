"""``twinportd audit``: which rows it shows, in which form, and on as they come."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from twinport_service.audit import AuditEntry, AuditEvent, AuditLog, format_entry
from twinport_service.audit_files import CURRENT_NAME
from twinport_service.audit_reader import AuditFilter, AuditReader, parse_moment
from twinport_service.cli_audit import AUDIT_DIRECTORY, audit

from tests.service.raw_client import await_true

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
PEER = ("192.0.2.7", 40000)


@pytest.fixture
def directory(shm_path: Path) -> Path:
    """The audit directory of a root."""
    found = shm_path / AUDIT_DIRECTORY
    found.mkdir(parents=True)
    return found


def line(event: AuditEvent, hours_ago: float = 0, **fields: object) -> bytes:
    """A line that was written so long before ``NOW``."""
    return format_entry(AuditEntry(event, **fields), (NOW - timedelta(hours=hours_ago)).timestamp())  # type: ignore[arg-type]


@pytest.fixture
def log(directory: Path) -> Path:
    """A log of three files; its root."""
    oldest = line(AuditEvent.START, 50) + line(AuditEvent.LOGIN, 49, user="alice", peer=PEER, method="key")
    (directory / "audit.000001.jsonl.gz").write_bytes(gzip.compress(oldest))
    (directory / "audit.000002.jsonl").write_bytes(
        line(AuditEvent.UPLOAD, 5, user="alice", peer=PEER, file="photos/2026/a.jpg", size=5_000_000, seconds=1.5)
        + line(AuditEvent.MOVE, 4, user="bob", peer=PEER, file="draft.txt", to="photos/final.txt")
    )
    (directory / CURRENT_NAME).write_bytes(
        line(AuditEvent.REFUSAL, 1, user="bob", peer=PEER, file="a\x1b[2J\nb", outcome="Denied", what="DELETE")
        + b"half a line\n"
        + line(AuditEvent.LOGIN, 0.5, user="mallory", peer=PEER, outcome="LoginFailed", method="password")
    )
    return directory.parent.parent


def show(root: Path, *arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(audit, ["--root", str(root), *arguments])


def events(result: Result) -> list[str]:
    """The second column."""
    assert result.exit_code == 0, result.output
    return [row.split()[1] for row in result.stdout.splitlines()]


def test_all_files_are_read_the_oldest_first(log: Path) -> None:
    result = show(log)
    assert events(result) == ["start", "login", "upload", "move", "refusal", "login"]
    assert "1 damaged lines" in result.stderr
    rows = result.stdout.splitlines()
    assert rows[2].split() == [
        "2026-03-01T07:00:00.000Z", "upload", "alice", "192.0.2.7:40000", "ok", "4.8", "MiB", "1.5", "s",
        "photos/2026/a.jpg",
    ]  # fmt: skip
    assert rows[3].endswith("draft.txt  -> photos/final.txt")


def test_nothing_in_it_moves_the_cursor(log: Path) -> None:
    for arguments in ([], ["--json"]):
        output = show(log, *arguments).stdout
        assert "\x1b" not in output
        assert len(output.splitlines()) == 6


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--user", "bob"], ["move", "refusal"]),
        (["--user", "nobody"], []),
        (["--event", "login"], ["login", "login"]),
        (["--file", "photos/*"], ["upload", "move"]),
        (["--file", "*.JPG"], []),
        (["--file", "draft.txt"], ["move"]),
        (["--since", "2026-03-01T07:00"], ["upload", "move", "refusal", "login"]),
        (["--since", "2026-03-01T08:00+01:00", "--until", "2026-03-01T08:00:00Z"], ["upload"]),
        (["--until", "2026-02-28"], ["start", "login"]),
        (["--user", "alice", "--event", "upload", "--file", "*a.jpg"], ["upload"]),
    ],
)
def test_filters(log: Path, arguments: list[str], shown: list[str]) -> None:
    assert events(show(log, *arguments)) == shown


def test_json_is_what_was_written(log: Path) -> None:
    rows = [json.loads(row) for row in show(log, "--json", "--user", "bob").stdout.splitlines()]
    assert rows[1]["file"] == "a\x1b[2J\nb"
    assert rows[1]["outcome"] == "Denied"


@pytest.mark.parametrize(
    ("word", "moment"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("999999999w", datetime.min.replace(tzinfo=timezone.utc)),
        ("2026-01-31T12:00", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=timezone.utc)),
        ("2026-01-31T12:00+02:00", datetime(2026, 1, 31, 10, tzinfo=timezone.utc)),
    ],
)
def test_moments(word: str, moment: datetime) -> None:
    assert parse_moment(word, NOW) == moment


@pytest.mark.parametrize("word", ["", "soon", "2", "h", "-2h", "2026-13-01", "２h"])
def test_what_is_no_moment_is_told(log: Path, word: str) -> None:
    result = show(log, "--since", word)
    assert result.exit_code == 2
    assert "is no time. Write" in result.stderr


def test_a_row_without_a_time_passes_no_filter_of_time() -> None:
    assert AuditFilter().passes({"event": "login"})
    assert not AuditFilter(since=NOW).passes({"event": "login", "time": "never"})


def test_without_a_log_one_is_told_where_it_was_sought(tmp_path: Path) -> None:
    result = show(tmp_path)
    assert result.exit_code == 1
    assert "there is no audit log at" in result.stderr
    assert "--root" in result.stderr


def test_a_damaged_archive_is_told(log: Path) -> None:
    (log / AUDIT_DIRECTORY / "audit.000001.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    result = show(log)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "cannot read the audit log" in result.stderr


def test_following_misses_nothing_over_rotations(directory: Path) -> None:
    """A reader that follows while a log is written and rotated many times sees each row once and in order."""
    log = AuditLog(directory, max_bytes=3000, keep=10_000)
    found: list[int] = []
    enough = threading.Event()

    class EnoughError(Exception):
        """The test has seen what it wanted."""

    def pause() -> None:
        if enough.is_set():
            raise EnoughError
        enough.wait(0.001)

    def follow() -> None:
        rows: Iterator[object] = AuditReader(directory, pause=pause).rows(follow=True)
        with pytest.raises(EnoughError):
            found.extend(row["size"] for row in rows)  # type: ignore[index]

    thread = threading.Thread(target=follow)
    thread.start()
    for number in range(3000):
        log.record(AuditEntry(AuditEvent.UPLOAD, size=number))
        if number % 100 == 0:
            assert log.flush()
    log.close()
    try:
        await_true(lambda: len(found) >= 3000, what="all rows")
    finally:
        enough.set()
        thread.join()
    assert found == list(range(3000))


def test_following_goes_on_in_the_new_file_when_the_old_one_was_moved_away(directory: Path) -> None:
    log = AuditLog(directory)
    log.record(AuditEntry(AuditEvent.UPLOAD, size=1))
    assert log.flush()

    def pause() -> None:
        if (directory / "elsewhere").exists():
            log.record(AuditEntry(AuditEvent.UPLOAD, size=3))
            assert log.flush()
            return
        (directory / CURRENT_NAME).rename(directory / "elsewhere")
        log.reopen()
        log.record(AuditEntry(AuditEvent.UPLOAD, size=2))
        assert log.flush()

    rows = AuditReader(directory, pause=pause).rows(follow=True)
    assert [next(rows)["size"] for _ in range(3)] == [1, 2, 3]
    rows.close()  # type: ignore[attr-defined] # a generator
    log.close()

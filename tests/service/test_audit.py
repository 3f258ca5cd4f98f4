"""The audit log: what a line is, that none is lost but for a broken disk, and the files it lives in."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twinport_service import audit_files
from twinport_service.audit import AuditEntry, AuditEvent, AuditLog, address_of, discard, format_entry
from twinport_service.audit_files import CURRENT_NAME, list_rotated
from twinport_service.audit_reader import AuditReader
from twinport_service.log import configure_logging

from tests.service.raw_client import await_true

NOW = 1_700_000_000.0419
HOSTILE = ["a\nb", "a\x1b[2Jb", "a\x7fb", "a\x9bb", "a\u2028b", 'a"b\\', "ä\U0001f600", "a\udcffb", "a\x00b"]


@pytest.fixture
def log_stream() -> io.StringIO:
    """The server's own log."""
    stream = io.StringIO()
    configure_logging("human", "debug", stream)
    return stream


@pytest.fixture
def directory(shm_path: Path) -> Path:
    """Where the audit log goes; not there yet."""
    return shm_path / "root" / "audit"


def upload(number: int, file: str = "photo.jpg") -> AuditEntry:
    """An entry with a number."""
    return AuditEntry(AuditEvent.UPLOAD, "alice", ("192.0.2.7", 40000), file, size=number)


def numbers(directory: Path) -> list[int]:
    """The numbers of all entries, by the reader."""
    return [row["size"] for row in AuditReader(directory).rows()]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one file."""
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_a_line_has_these_fields_in_this_order() -> None:
    entry = AuditEntry(
        AuditEvent.UPLOAD,
        "alice",
        ("::ffff:192.0.2.7", 40000, 0, 0),
        "photo.jpg",
        size=118601,
        root=bytes(range(32)),
        seconds=1.23456,
        session=7,
    )
    assert format_entry(entry, NOW) == (
        b'{"time":"2023-11-14T22:13:20.041Z","event":"upload","user":"alice","peer":"192.0.2.7:40000",'
        b'"file":"photo.jpg","size":118601,'
        b'"root":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",'
        b'"seconds":1.235,"outcome":"ok","session":7}\n'
    )


def test_what_is_not_known_is_left_out() -> None:
    assert json.loads(format_entry(AuditEntry(AuditEvent.STOP), 0.0)) == {
        "time": "1970-01-01T00:00:00.000Z",
        "event": "stop",
        "outcome": "ok",
    }


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_reaches_a_terminal_raw(name: str) -> None:
    line = format_entry(AuditEntry(AuditEvent.MOVE, name, name, name, name, method=name, what=name, outcome=name), NOW)
    assert re.fullmatch(rb"[\x20-\x7e]+\n", line)
    row = json.loads(line)
    assert (row["user"], row["file"], row["to"], row["peer"]) == (name, name, name, name)


def test_a_field_has_a_bound() -> None:
    assert len(format_entry(upload(1, "x" * 100_000), NOW)) < 1500


@pytest.mark.parametrize(
    ("peer", "word"),
    [
        (("192.0.2.7", 40000), "192.0.2.7:40000"),
        (("2001:db8::1", 40000, 0, 0), "[2001:db8::1]:40000"),
        (("::ffff:10.0.0.1", 1, 0, 0), "10.0.0.1:1"),
        ("a socket pair", "a socket pair"),
    ],
)
def test_a_peer_is_one_word(peer: object, word: str) -> None:
    assert address_of(peer) == word


def test_entries_are_written_in_order_for_the_owner_only(directory: Path) -> None:
    log = AuditLog(directory)
    for number in range(5000):
        log.record(upload(number))
    assert log.flush()
    log.close()
    log.close()
    assert [row["size"] for row in rows_of(directory / CURRENT_NAME)] == list(range(5000))
    assert (directory / CURRENT_NAME).stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700
    discard(upload(1))


def test_a_crowd_of_lines_is_few_writes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 small files cost a handful of writes."""
    writes: list[int] = []
    real = os.write

    def counted(descriptor: int, data: bytes | memoryview) -> int:
        writes.append(len(data))
        return real(descriptor, data)

    log = AuditLog(directory)
    monkeypatch.setattr(os, "write", counted)
    for number in range(2000):
        log.record(upload(number))
    log.close()
    assert numbers(directory) == list(range(2000))
    assert len(writes) <= 20


def test_a_later_run_appends(directory: Path) -> None:
    for number in range(3):
        log = AuditLog(directory)
        log.record(upload(number))
        log.close()
    assert numbers(directory) == [0, 1, 2]


def test_half_a_line_of_a_power_cut_spoils_no_other(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / CURRENT_NAME).write_bytes(format_entry(upload(0), NOW) + format_entry(upload(1), NOW)[:30])
    log = AuditLog(directory)
    log.record(upload(2))
    log.close()
    reader = AuditReader(directory)
    assert [row["size"] for row in reader.rows()] == [0, 2]
    assert reader.damaged == 1


def test_rotation_under_load_loses_no_line_and_keeps_the_order(directory: Path) -> None:
    log = AuditLog(directory, max_bytes=20_000, keep=10_000, queued_lines=500)

    def write(first: int) -> None:
        for number in range(first, first + 3000):
            log.record(upload(number))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100_000, 200_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found = numbers(directory)
    assert len(found) == 9000
    for first in (0, 100_000, 200_000):
        assert [number for number in found if first <= number < first + 3000] == list(range(first, first + 3000))
    rotated = list_rotated(directory)
    assert len(rotated) > 40
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in rotated)
    assert (directory / CURRENT_NAME).stat().st_size <= 20_000


def test_old_files_are_compressed_and_the_oldest_removed(directory: Path) -> None:
    log = AuditLog(directory, max_bytes=2000, keep=3)
    for number in range(200):
        log.record(upload(number))
        if number % 10 == 9:
            assert log.flush()
    log.close()
    rotated = list_rotated(directory)
    assert len(rotated) == 3
    # What the last compressor left, the next start takes up.
    AuditLog(directory, max_bytes=2000, keep=3).close()
    rotated = list_rotated(directory)
    assert [path.suffix for path in rotated] == [".gz"] * 3
    assert all(len(gzip.decompress(path.read_bytes())) <= 2000 for path in rotated)
    found = numbers(directory)
    assert found == list(range(found[0], 200))
    assert not list(directory.glob("*.new"))


def test_numbers_go_on_where_an_earlier_run_ended(directory: Path) -> None:
    for start in (0, 100, 200):
        log = AuditLog(directory, max_bytes=1000, keep=100)
        for number in range(start, start + 100):
            log.record(upload(number))
        log.close()
    assert numbers(directory) == list(range(300))


def test_a_file_that_was_moved_away_is_made_anew(directory: Path) -> None:
    log = AuditLog(directory)
    log.record(upload(1))
    assert log.flush()
    (directory / CURRENT_NAME).rename(directory / "mine.jsonl")
    log.reopen()
    await_true((directory / CURRENT_NAME).exists, what="a new file")
    log.record(upload(2))
    log.close()
    assert [row["size"] for row in rows_of(directory / "mine.jsonl")] == [1]
    assert [row["size"] for row in rows_of(directory / CURRENT_NAME)] == [2]


def test_that_a_file_was_moved_away_is_noticed_too(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_files, "_LOOK_SECONDS", 0.0)
    log = AuditLog(directory)
    log.record(upload(1))
    assert log.flush()
    (directory / CURRENT_NAME).unlink()
    log.record(upload(2))
    log.close()
    assert numbers(directory) == [2]


class Disk:
    """Writes that fail when they are told to, some of them half way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.attempts = 0
        self._real = os.write
        monkeypatch.setattr(os, "write", self._write)
        monkeypatch.setattr("twinport_service.audit._RETRY_SECONDS", 0.01)

    def _write(self, descriptor: int, data: memoryview) -> int:
        if not self.full:
            return self._real(descriptor, data)
        self.attempts += 1
        if self.attempts % 2:
            return self._real(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """See ``Disk``."""
    return Disk(monkeypatch)


def test_a_full_disk_stops_nobody_and_what_found_no_room_is_told(
    directory: Path, disk: Disk, log_stream: io.StringIO
) -> None:
    log = AuditLog(directory, queued_lines=100, patience_seconds=10)
    log.record(upload(0))
    assert log.flush()
    disk.full = True
    for number in range(1, 151):
        log.record(upload(number))
        if number == 1:
            await_true(lambda: disk.attempts >= 2, what="a failed write")
    assert log.lost == 50
    assert "cannot be written" in log_stream.getvalue()
    assert "No space left" in log_stream.getvalue()
    assert log_stream.getvalue().count("Cannot write the audit log") == 1, "once a minute, not once a try"
    disk.full = False
    await_true(lambda: log.lost == 0, what="the gap")
    log.record(upload(999))
    log.close()
    rows = list(AuditReader(directory).rows())
    assert [row["size"] for row in rows if row["event"] == "upload"] == [*range(101), 999]
    assert [row["left_out"] for row in rows if row["event"] == "gap"] == [50]
    assert "can be written again" in log_stream.getvalue()


def test_a_full_queue_makes_the_caller_wait_and_not_lose(
    directory: Path, monkeypatch: pytest.MonkeyPatch, log_stream: io.StringIO
) -> None:
    gate = threading.Event()
    real = os.write

    def slow(descriptor: int, data: memoryview) -> int:
        gate.wait()
        return real(descriptor, data)

    log = AuditLog(directory, queued_lines=10, patience_seconds=60)
    monkeypatch.setattr(os, "write", slow)
    done = threading.Event()

    def write() -> None:
        for number in range(50):
            log.record(upload(number))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not done.wait(0.1)
    gate.set()
    thread.join()
    log.close()
    assert numbers(directory) == list(range(50))
    assert log_stream.getvalue() == ""


def test_a_disk_that_hangs_stops_nobody_for_ever(
    directory: Path, monkeypatch: pytest.MonkeyPatch, log_stream: io.StringIO
) -> None:
    gate, hangs = threading.Event(), threading.Event()
    real = os.write

    def hanging(descriptor: int, data: memoryview) -> int:
        hangs.set()
        gate.wait()
        return real(descriptor, data)

    log = AuditLog(directory, queued_lines=10, patience_seconds=0.3)
    monkeypatch.setattr(os, "write", hanging)
    log.record(upload(0))
    assert hangs.wait(30)
    for number in range(1, 10):
        log.record(upload(number))
    began = time.monotonic()
    for number in range(10, 60):
        log.record(upload(number))
    assert time.monotonic() - began < 50 * 0.3 / 2, "one caller found out for all"
    assert log.lost == 50
    assert "Entries are lost" in log_stream.getvalue()
    gate.set()
    await_true(lambda: log.lost == 0, what="the gap")
    log.close()
    assert [row.get("size", row.get("left_out")) for row in AuditReader(directory).rows()] == [*range(10), 50]


def test_a_disk_that_stays_full_does_not_stop_the_end(directory: Path, disk: Disk, log_stream: io.StringIO) -> None:
    log = AuditLog(directory)
    disk.full = True
    log.record(upload(1))
    log.close()
    assert "Cannot write the audit log" in log_stream.getvalue()


def test_a_directory_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(OSError, match="exists"):
        AuditLog(tmp_path / "audit")


def test_a_symlink_in_place_of_the_log_is_not_followed(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / CURRENT_NAME).symlink_to(directory.parent / "victim")
    with pytest.raises(OSError, match="symbolic"):
        AuditLog(directory)
    assert not (directory.parent / "victim").exists()


def test_strangers_cannot_wash_the_log_away(directory: Path) -> None:
    now = 0.0
    log = AuditLog(directory, clock=lambda: now)
    for number in range(1000):
        log.record(AuditEntry(AuditEvent.LOGIN, "alice", size=number, outcome="LoginFailed"))
        log.record(upload(number))
    now = 0.15
    log.record(AuditEntry(AuditEvent.LOGIN, "alice", size=1000, outcome="LoginFailed"))
    log.record(AuditEntry(AuditEvent.LOGIN, "alice", size=1001, outcome="LoginFailed"))
    log.record(AuditEntry(AuditEvent.REFUSAL, "alice", outcome="Denied"))
    log.close()
    rows = list(AuditReader(directory).rows())
    assert [row["size"] for row in rows if row["event"] == "upload"] == list(range(1000)), "what was done is all there"
    logins = [row for row in rows if row["event"] == "login"]
    assert [row["size"] for row in logins] == [*range(200), 1000]
    assert logins[-1]["left_out"] == 800
    assert [row["what"] for row in rows if row["event"] == "gap"] == ["login"]
    assert sum(row["event"] == "refusal" for row in rows) == 1


def test_a_user_cannot_wash_the_log_away(directory: Path) -> None:
    now = 0.0
    log = AuditLog(directory, clock=lambda: now)
    for number in range(10_500):
        log.record(AuditEntry(AuditEvent.MOVE, "mallory", size=number))
    log.record(AuditEntry(AuditEvent.MOVE, "alice", size=1))
    log.record(AuditEntry(AuditEvent.MKDIR, "mallory", size=1))
    now = 1.0
    log.record(AuditEntry(AuditEvent.MOVE, "mallory", size=10_500))
    log.record(AuditEntry(AuditEvent.MOVE, "mallory", size=10_501))
    log.close()
    rows = list(AuditReader(directory).rows())
    moves = [row for row in rows if row["event"] == "move" and row["user"] == "mallory"]
    assert [row["size"] for row in moves] == [*range(10_000), 10_500]
    assert moves[-1]["left_out"] == 500
    assert [row["user"] for row in rows if row["event"] == "move"].count("alice") == 1, "others are not concerned"
    assert [row["event"] for row in rows].count("mkdir") == 1
    gaps = [(row["user"], row["what"], row["left_out"]) for row in rows if row["event"] == "gap"]
    assert gaps == [("mallory", "move", 1)]


def test_that_young_lines_go_is_told(directory: Path, log_stream: io.StringIO) -> None:
    log = AuditLog(directory, max_bytes=1000, keep=2)
    for number in range(200):
        log.record(upload(number))
    log.close()
    assert log_stream.getvalue().count("less than 7 days old") == 1, "once an hour"


def test_that_old_lines_go_is_not(directory: Path, log_stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 8 * 86_400)
    log = AuditLog(directory, max_bytes=1000, keep=1)
    for number in range(60):
        log.record(upload(number))
        assert log.flush()
    log.close()
    assert len(list_rotated(directory)) == 1
    assert "less than 7 days old" not in log_stream.getvalue()


def test_strangers_do_not_hide_what_users_are_refused(directory: Path) -> None:
    log = AuditLog(directory, clock=lambda: 0.0)
    for number in range(500):
        log.record(AuditEntry(AuditEvent.REFUSAL, size=number, outcome="TicketInvalid"))
        log.record(AuditEntry(AuditEvent.REFUSAL, "anonymous", size=number, outcome="LoginRequired"))
    log.record(AuditEntry(AuditEvent.REFUSAL, "mallory", file="payroll", outcome="Denied"))
    log.close()
    rows = list(AuditReader(directory).rows())
    assert sum(row["event"] == "refusal" for row in rows) == 201
    assert [row["file"] for row in rows if row.get("user") == "mallory"] == ["payroll"]


def test_what_is_synced_is_on_the_disk_or_said_not_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, synced, fails = os.fsync, threading.Event(), threading.Event()
    fails.set()

    def sync(descriptor: int) -> None:
        if fails.is_set():
            raise OSError(errno.EIO, "no disk")
        fsync(descriptor)
        synced.set()

    with closing(AuditLog(tmp_path)) as log:
        assert log.sync(), "nothing to do"
        monkeypatch.setattr(os, "fsync", sync)
        assert log.take(AuditEntry(AuditEvent.START))
        assert not log.sync(0.05)
        assert not synced.is_set()
        assert log.take(AuditEntry(AuditEvent.STOP))
        fails.clear()
        assert log.sync(30)
        assert synced.is_set()
    assert [row["event"] for row in AuditReader(tmp_path).rows()] == ["start", "stop"], "each once"


def test_the_end_does_not_wait_for_a_disk_that_never_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr(os, "fsync", sync)
    log = AuditLog(tmp_path)
    assert log.take(AuditEntry(AuditEvent.START))
    assert not log.sync(0.05)
    log.close()
    assert not log.sync(0.05)

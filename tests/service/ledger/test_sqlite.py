"""What only the SQLite ledger promises: what survives, what is not written at all, and what it refuses to read."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.upload import UploadState
from twinport_service.ledger_sqlite import LedgerUnknown, SqliteLedger
from twinport_service.storage.contract import Precondition, UploadSpec

SEAL_AND_DIE = """
import os, signal, sys
from pathlib import Path
from twinport_protocol.names import parse_name
from twinport_service.ledger_sqlite import SqliteLedger
from twinport_service.storage.contract import UploadSpec
ledger = SqliteLedger(Path(sys.argv[1]))
spec = UploadSpec(b"i" * 16, "alice", parse_name("big"), 800 << 20)
ledger.begin(spec)
ledger.lease(spec.upload_id, "alice")
for segment in range(int(sys.argv[2])):
    ledger.seal(spec.upload_id, 2, segment, bytes([segment]) * 32)
ledger.fence(spec.upload_id, 2)
print("sealed", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_generation_and_digests_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    child = subprocess.run(
        [sys.executable, "-c", SEAL_AND_DIE, str(path), "90"], capture_output=True, text=True, check=False
    )
    assert (child.stdout, child.returncode) == ("sealed\n", -9)
    ledger = SqliteLedger(path)
    record = ledger.load(b"i" * 16)
    assert record is not None
    assert (record.generation, record.state, record.spec.size) == (2, UploadState.OPEN, 800 << 20)
    assert ledger.sealed(b"i" * 16) == {segment: bytes([segment]) * 32 for segment in range(90)}
    assert ledger.resumable("alice", parse_name("big"), 800 << 20) == b"i" * 16
    ledger.close()


def test_all_of_a_spec_survives(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    condition = Precondition(if_match=b"r" * 32)
    spec = UploadSpec(b"i" * 16, "bob", parse_name("dir/名 前"), 2**62, -5, executable=True, precondition=condition)
    with_close = SqliteLedger(path)
    with_close.begin(spec)
    with_close.close()
    with_close.close()
    again = SqliteLedger(path)
    assert [record.spec for record in again.open_uploads()] == [spec]
    again.finish(spec.upload_id)
    again.close()
    empty = SqliteLedger(path)
    assert list(empty.open_uploads()) == []
    empty.close()


def test_small_files_cost_no_transaction(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    written = Path(f"{path}-wal").stat().st_size
    for number in range(50):
        spec = UploadSpec(number.to_bytes(16, "big"), "alice", parse_name(f"f{number}"), 4096)
        ledger.begin(spec)
        ledger.seal(spec.upload_id, 1, 0, b"d" * 32)
        ledger.fence(spec.upload_id, 1)
        ledger.finish(spec.upload_id)
        ledger.admit([spec])
        ledger.finish_all([spec.upload_id])
    assert Path(f"{path}-wal").stat().st_size == written
    ledger.close()


def test_database_is_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    old = os.umask(0)
    try:
        ledger = SqliteLedger(path)
    finally:
        os.umask(old)
    ledger.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_log_is_folded_in_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path, checkpoint_writes=50)
    spec = UploadSpec(b"i" * 16, "alice", parse_name("big"), 8 << 40)
    ledger.begin(spec)
    for _ in range(4000):
        ledger.seal(spec.upload_id, 1, 0, b"d" * 32)
        ledger.unseal(spec.upload_id, [0])
    # 8,000 transactions of at least one page each would be 32 MiB.
    assert Path(f"{path}-wal").stat().st_size < 8 * 1024 * 1024
    ledger.close()


def test_small_uploads_and_looks_do_not_wait_while_the_log_is_folded_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds, in_second, go = [0], threading.Event(), threading.Event()
    fold = SqliteLedger._fold

    def slow_fold(ledger: SqliteLedger, database: sqlite3.Connection) -> None:
        folds[0] += 1
        if folds[0] == 2:  # the pass that others must not write during
            in_second.set()
            go.wait(30)
        fold(ledger, database)

    monkeypatch.setattr(SqliteLedger, "_fold", slow_fold)
    ledger = SqliteLedger(tmp_path / "ledger.db", checkpoint_writes=1)
    small = UploadSpec(b"s" * 16, "alice", parse_name("small"), 5)
    big = UploadSpec(b"b" * 16, "alice", parse_name("big"), 8 << 20)
    late = UploadSpec(b"l" * 16, "alice", parse_name("late"), 8 << 20)

    def use() -> None:
        ledger.begin(small)
        ledger.check(small.upload_id, 1)
        ledger.seal(small.upload_id, 1, 0, b"d" * 32)
        ledger.fence(small.upload_id, 1)
        ledger.finish(small.upload_id)
        assert list(ledger.admit([small])) == [None]
        assert list(ledger.admit([])) == []
        ledger.finish_all([small.upload_id])
        ledger.finish_all([])
        ledger.check(big.upload_id, 1)
        assert ledger.load(big.upload_id) is not None
        assert ledger.usage_of("alice").open_uploads == 1

    with ThreadPoolExecutor(2) as pool:
        try:
            ledger.begin(big)
            assert in_second.wait(30)
            writes = pool.submit(ledger.begin, late)
            pool.submit(use).result(30)
            assert not writes.done(), "what writes waits"
        finally:
            go.set()
        writes.result(30)
    ledger.close()


@pytest.mark.parametrize("newer", [True, False], ids=["newer", "garbage"])
def test_database_that_cannot_be_read_is_refused_and_left_alone(tmp_path: Path, newer: bool) -> None:
    path = tmp_path / "ledger.db"
    if newer:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
    else:
        path.write_bytes(b"not a database" * 1000)
    before = path.read_bytes()
    with pytest.raises(LedgerUnknown, match=r"newer twinportd" if newer else r"move it away"):
        SqliteLedger(path)
    if not newer:
        assert path.read_bytes() == before


def test_failing_database_is_a_refusal_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    known = UploadSpec(b"k" * 16, "alice", parse_name("known"), 20 << 20)
    ledger.begin(known)
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ledger._database.execute("PRAGMA busy_timeout = 0")
    blocker.execute("BEGIN IMMEDIATE")
    other = UploadSpec(b"o" * 16, "alice", parse_name("other"), 20 << 20)
    for use in (lambda: ledger.begin(other), lambda: ledger.seal(known.upload_id, 1, 0, b"d" * 32)):
        with pytest.raises(Refusal) as caught:
            use()
        assert caught.value.code is ErrorCode.STORAGE_FAULT
    small = [UploadSpec(bytes([number]) * 16, "alice", parse_name(f"s{number}"), 5) for number in range(2)]
    told = ledger.admit([small[0], other, small[1]])
    assert [outcome and outcome.code for outcome in told] == [None, ErrorCode.STORAGE_FAULT, None]
    ledger.finish_all([spec.upload_id for spec in small])
    assert ledger.usage_of("alice").open_uploads == 1
    blocker.execute("ROLLBACK")
    blocker.close()
    assert ledger.load(other.upload_id) is None
    assert ledger.sealed(known.upload_id) == {}
    assert ledger.seal(known.upload_id, 1, 0, b"d" * 32)
    ledger.close()

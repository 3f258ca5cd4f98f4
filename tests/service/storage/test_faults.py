"""A disk that fails at the worst moment: never a DONE that is not so, never a torn file, never a second fsync."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.segments import Manifest, digest_of
from twinport_service.storage.contract import ALWAYS, Precondition, Published, Storage, UploadSpec, WholeFile
from twinport_service.storage.disk_door import DiskDoor
from twinport_service.storage.local import Limits, LocalStorage, StorageError

from .conftest import (
    OpenLocal,
    Outcomes,
    commit_bundle,
    commit_bundled,
    commit_small,
    commit_staged,
    get,
    list_all,
    make_spec,
    put,
    read,
    refused,
    stage,
)
from .faulty_door import FaultyDoor

MIB = 1024 * 1024
COMMITS: dict[str, Callable[[Storage, UploadSpec, bytes], Published | Refusal]] = {
    "small": commit_small,
    "staged": commit_staged,
    "bundled": commit_bundled,
}
both_ways = pytest.mark.parametrize("way", COMMITS)
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]


def code_of(outcome: Published | Refusal) -> ErrorCode | None:
    return outcome.code if isinstance(outcome, Refusal) else None


def staged_files(root: Path) -> list[str]:
    """Names of all files in the staging of a root."""
    return [path.name for path in (root / ".twinport/staging").rglob("*") if path.is_file()]


def assert_read_only(storage: LocalStorage) -> None:
    """Every change is refused, and reading goes on."""
    assert code_of(commit_small(storage, make_spec("other", 1), b"x")) is ErrorCode.READ_ONLY
    changes: list[Callable[[], object]] = [
        lambda: storage.begin(make_spec("other", 1)),
        lambda: storage.put_piece(b"any", 1, 0, 0, b"x"),
        lambda: storage.delete(parse_name("before")),
        lambda: storage.move(parse_name("before"), parse_name("after")),
        lambda: storage.make_directory(parse_name("dir")),
    ]
    for change in changes:
        with refused(ErrorCode.READ_ONLY):
            change()
    assert get(storage, "before")[1] == b"before"


@pytest.mark.parametrize("number", FULL)
def test_no_room_at_begin_is_told_before_a_byte_travels(shm_path: Path, open_local: OpenLocal, number: int) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    door.fail("allocate", number)
    spec = make_spec("large", 10 * MIB)
    with refused(ErrorCode.DISK_FULL):
        storage.begin(spec)
    assert staged_files(shm_path / "root") == []
    with refused(ErrorCode.UPLOAD_UNKNOWN):
        storage.put_piece(spec.upload_id, 1, 0, 0, b"x")
    assert isinstance(commit_staged(storage, make_spec("large", MIB), bytes(MIB)), Published)


@both_ways
@pytest.mark.parametrize("number", FULL)
def test_no_room_at_a_write_drops_that_upload_alone(
    shm_path: Path, open_local: OpenLocal, way: str, number: int
) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    door.fail("write", number)
    spec = make_spec("name", 3)
    if way != "staged":
        assert code_of(COMMITS[way](storage, spec, b"abc")) is ErrorCode.DISK_FULL
    else:
        with refused(ErrorCode.DISK_FULL):
            stage(storage, spec, b"abc")
    assert staged_files(shm_path / "root") == []
    assert list_all(storage) == []
    put(storage, "name", b"room again")


class ShortDoor(DiskDoor):
    """Writes at most ten bytes at once, as a nearly full disk does."""

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        return super().write(descriptor, memoryview(data)[:10], offset)


@both_ways
def test_short_writes_are_gone_on_with(shm_path: Path, open_local: OpenLocal, way: str) -> None:
    storage = open_local(shm_path / "root", ShortDoor())
    data = bytes(range(256)) * 3
    assert isinstance(COMMITS[way](storage, make_spec("name", len(data)), data), Published)
    assert get(storage, "name")[1] == data


@both_ways
def test_failed_fsync_of_a_file(shm_path: Path, open_local: OpenLocal, way: str) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "before", b"before")
    before = len(door.calls())
    door.fail("fsync", errno.EIO)
    spec = make_spec("name", 3)
    assert code_of(COMMITS[way](storage, spec, b"abc")) is ErrorCode.STORAGE_FAULT
    assert_read_only(storage)
    assert storage.finished(spec.upload_id) is None
    flushed = [descriptor for name, descriptor in door.calls()[before:] if name == "fsync"]
    assert len(flushed) == 1
    storage.close()
    storage = open_local(shm_path / "root")
    assert [entry.name for entry in list_all(storage)] == ["before"]
    assert staged_files(shm_path / "root") == []
    put(storage, "name", b"abc")


@pytest.mark.parametrize("which", range(1, 6))
def test_failed_fsync_of_one_of_many(shm_path: Path, open_local: OpenLocal, which: int) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    door.fail("fsync", errno.EIO, which)
    outcomes = Outcomes()
    for number in range(5):
        storage.commit_small(make_spec(f"f{number}", 1), b"x", digest_of(b"x"), outcomes)
    told = [outcomes.next() for _ in range(5)]
    codes = [code_of(outcome) for outcome in told]
    assert codes.count(ErrorCode.STORAGE_FAULT) == 1
    assert set(codes) <= {None, ErrorCode.STORAGE_FAULT, ErrorCode.READ_ONLY}
    published = {str(outcome.name) for outcome in told if isinstance(outcome, Published)}
    storage.close()
    assert {entry.name for entry in list_all(open_local(shm_path / "root"))} == published


@pytest.mark.parametrize("call", ["open_at", "write", "set_mtime"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failure_in_the_middle_of_a_bundle(shm_path: Path, open_local: OpenLocal, call: str, number: int) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "before", b"before")
    door.fail(call, number, 10)
    told = commit_bundle(storage, [(make_spec(f"d/f{at:02}", 1), b"x") for at in range(20)])
    codes = [code_of(outcome) for outcome in told]
    published = [f"d/f{at:02}" for at, code in enumerate(codes) if code is None]
    if number == errno.ENOSPC:
        assert codes == [None] * 9 + [ErrorCode.DISK_FULL] + [None] * 10
    else:  # what is not known to be broken is published, or nothing more of it
        assert ErrorCode.STORAGE_FAULT in codes
        assert set(codes) <= {None, ErrorCode.STORAGE_FAULT, ErrorCode.READ_ONLY}
        if call != "open_at":  # which has lost nothing
            assert_read_only(storage)
    assert staged_files(shm_path / "root") == []
    assert [entry.name for entry in list_all(storage)] == ["before", *published]
    storage.close()
    assert [entry.name for entry in list_all(open_local(shm_path / "root"))] == ["before", *published]


def test_a_bundle_that_comes_after_the_end_is_refused_as_a_whole(shm_path: Path) -> None:
    storage = LocalStorage(shm_path / "root")
    storage.start({})
    storage.close()
    outcomes = Outcomes()
    match = Precondition(if_match=digest_of(b"x"))
    for preconditions in ((ALWAYS, ALWAYS), (ALWAYS, match), (match, ALWAYS)):
        specs = [make_spec(f"f{number}", 1, precondition=each) for number, each in enumerate(preconditions)]
        with refused(ErrorCode.SHUTTING_DOWN):
            storage.commit_small_files([WholeFile(spec, b"x", digest_of(b"x"), outcomes) for spec in specs])
    assert outcomes.are_all_told


def test_a_bundle_of_which_a_part_was_taken_tells_each_outcome_once(
    shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_local(shm_path / "root")

    def refuse(*arguments: object) -> None:
        raise Refusal(ErrorCode.SHUTTING_DOWN)

    monkeypatch.setattr(storage._staged, "verify_first", refuse)  # it ends first
    match = Precondition(if_match=digest_of(b"x"))
    told = commit_bundle(storage, [(make_spec("a", 1), b"a"), (make_spec("b", 1, precondition=match), b"b")])
    assert [code_of(outcome) for outcome in told] == [None, ErrorCode.SHUTTING_DOWN]


def test_failing_reads_of_small_files(shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "file", b"bytes")
    before = len(os.listdir("/proc/self/fd"))
    door.fail("read_into", errno.EIO)
    with refused(ErrorCode.STORAGE_FAULT):
        storage.read_small(parse_name("file"), 5)
    with monkeypatch.context() as patch, refused(ErrorCode.CORRUPT):
        patch.setattr("twinport_service.storage.manifests.read_all", lambda *arguments: 3)  # cut short meanwhile
        storage.read_small(parse_name("file"), 5)
    assert bytes(storage.read_small(parse_name("file"), 5).data) == b"bytes"
    assert len(os.listdir("/proc/self/fd")) == before


@both_ways
@pytest.mark.parametrize("which", [1, 2])
def test_failed_fsync_of_a_directory_leaves_the_outcome_open_until_a_restart(
    shm_path: Path, open_local: OpenLocal, way: str, which: int
) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "before", b"before")
    door.fail("fsync_directory", errno.EIO, which)
    spec = make_spec("dir/name", 3)
    assert code_of(COMMITS[way](storage, spec, b"abc")) is ErrorCode.OUTCOME_UNKNOWN
    assert storage.finished(spec.upload_id) is None
    assert_read_only(storage)
    storage.close()
    storage = open_local(shm_path / "root")
    # No power was cut: the name is there, and the repeated commit learns it.
    outcomes = Outcomes()
    storage.commit(spec, Manifest(3, digest_of(b"abc")), outcomes)
    assert isinstance(outcomes.next(), Published)
    assert get(storage, "dir/name")[1] == b"abc"


@pytest.mark.parametrize("change", ["delete", "move", "make_directory"])
def test_failed_fsync_after_a_change_of_names(shm_path: Path, open_local: OpenLocal, change: str) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "before", b"before")
    put(storage, "file", b"x")
    door.fail("fsync_directory", errno.EIO)
    changes: dict[str, Callable[[], object]] = {
        "delete": lambda: storage.delete(parse_name("file")),
        "move": lambda: storage.move(parse_name("file"), parse_name("to/there")),
        "make_directory": lambda: storage.make_directory(parse_name("a/b")),
    }
    with refused(ErrorCode.OUTCOME_UNKNOWN):
        changes[change]()
    assert_read_only(storage)


@both_ways
def test_failed_close_is_a_failed_write(shm_path: Path, open_local: OpenLocal, way: str) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "before", b"before")
    spec = make_spec("name", 3)
    outcomes = Outcomes()
    if way != "staged":
        door.fail("close", errno.EIO)
        outcomes(COMMITS[way](storage, spec, b"abc"))
    else:
        manifest = stage(storage, spec, b"abc")
        door.fail("close", errno.EIO)
        storage.commit(spec, manifest, outcomes)
    assert code_of(outcomes.next()) is ErrorCode.STORAGE_FAULT
    assert_read_only(storage)
    assert [entry.name for entry in list_all(storage)] == ["before"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("database or disk is full", ErrorCode.DISK_FULL), ("disk I/O error", ErrorCode.STORAGE_FAULT)],
)
def test_failing_catalogue(
    shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch, text: str, code: ErrorCode
) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "before", b"before")

    def fail(rows: object) -> int:
        raise sqlite3.OperationalError(text)

    with monkeypatch.context() as patch:
        patch.setattr(storage._catalogue, "_insert", fail)
        assert code_of(commit_small(storage, make_spec("small", 1), b"x")) is code
    assert staged_files(shm_path / "root") == []
    assert [entry.name for entry in list_all(storage)] == ["before"]
    if code is ErrorCode.DISK_FULL:
        put(storage, "small", b"room again")
    else:
        assert_read_only(storage)


def test_failing_reads(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    put(storage, "file", bytes(MIB))
    version = storage.open_version(parse_name("file"))
    reader = storage.open_reader(version.token)
    door.fail("read_into", errno.EIO)
    with refused(ErrorCode.STORAGE_FAULT):
        reader.read_into(0, bytearray(10))
    door.fail("send", errno.EIO)
    with refused(ErrorCode.STORAGE_FAULT):
        reader.send(-1, 0, 10)
    door.fail("send", errno.EPIPE)
    with pytest.raises(BrokenPipeError):
        reader.send(-1, 0, 10)
    reader.close()
    assert read(storage, version.token, MIB) == bytes(MIB)


def test_file_that_was_cut_short_is_corrupt(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "file", bytes(MIB))
    reader = storage.open_reader(storage.open_version(parse_name("file")).token)
    os.truncate(shm_path / "root/file", 1000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with refused(ErrorCode.CORRUPT):
            reader.read_into(0, bytearray(5000))
        with refused(ErrorCode.CORRUPT):
            reader.send(ours.fileno(), 1000, 10)
    reader.close()


# every call of the way -----------------------------------------------------------------------------------------------


def exercise(storage: LocalStorage, told: dict[str, Published | Refusal]) -> None:
    """One commit of each kind, replacing and new, near and deep; ``told`` gets what was told."""
    for name, data, way in (
        ("deep/er/small", b"small new", "small"),
        ("old/small", b"small newer", "small"),
        ("deep/staged", b"staged new", "staged"),
        ("old/staged", b"staged newer", "staged"),
    ):
        try:
            told[name] = COMMITS[way](storage, make_spec(name, len(data)), data)
        except Refusal as refusal:
            told[name] = refusal


OLD = {"old/small": b"old", "old/staged": b"old"}
NEW = {
    "deep/er/small": b"small new",
    "old/small": b"small newer",
    "deep/staged": b"staged new",
    "old/staged": b"staged newer",
}


def test_error_at_every_call_of_the_way(shm_path: Path, open_local: OpenLocal) -> None:
    call = 0
    while True:
        call += 1
        root = shm_path / f"root{call}"
        door = FaultyDoor()
        storage = open_local(root, door, limits=Limits(staging_directories=2))
        for name, data in OLD.items():
            put(storage, name, data)
        before = door.count()
        door.fail_any_at(call, errno.EIO)
        told: dict[str, Published | Refusal] = {}
        exercise(storage, told)
        is_past_the_end = door.count() - before < call
        storage.close()
        again = open_local(root, limits=Limits(staging_directories=2))
        for name, outcome in told.items():
            present = {entry.name for entry in list_all(again)}
            found = get(again, name)[1] if name in present else None
            if isinstance(outcome, Published):
                assert found == NEW[name], (call, name)
            elif outcome.code is ErrorCode.OUTCOME_UNKNOWN:
                assert found in (NEW[name], OLD.get(name)), (call, name)
            else:
                assert found == OLD.get(name), (call, name, outcome)
        assert staged_files(root) == []
        again.close()
        if is_past_the_end:
            assert all(isinstance(outcome, Published) for outcome in told.values())
            break
    assert call > 60


# a real small disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(shm_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB and few inodes."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; the injected faults above run everywhere")
    path = shm_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,nr_inodes=150", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_real_disk_without_room(small_disk: Path) -> None:
    storage = LocalStorage(small_disk / "root", limits=Limits(staging_directories=4))
    storage.start({})
    try:
        with refused(ErrorCode.DISK_FULL):
            storage.begin(make_spec("large", 13 * MIB))
        kept: dict[str, bytes] = {}
        for number in range(100):
            data = os.urandom(200_000)
            outcome = commit_small(storage, make_spec(f"f{number}", len(data)), data)
            if isinstance(outcome, Refusal):
                assert outcome.code is ErrorCode.DISK_FULL
                break
            kept[f"f{number}"] = data
        assert 10 < len(kept) < 100
        assert staged_files(small_disk / "root") == []
        storage.delete(parse_name("f0"))
        storage.delete(parse_name("f1"))
        put(storage, "f0", kept["f0"])
        del kept["f1"]
        assert {entry.name: get(storage, entry.name)[1] for entry in list_all(storage)} == kept
    finally:
        storage.close()


def test_room_is_promised_once(small_disk: Path) -> None:
    """A tmpfs allocates nothing beforehand: what is under way is counted, until it is written or given up."""
    storage = LocalStorage(small_disk / "root", limits=Limits(staging_directories=4))
    storage.start({})
    try:
        first, second, third = (make_spec(name, 5 * MIB) for name in ("first", "second", "third"))
        storage.begin(first)
        storage.begin(second)
        with refused(ErrorCode.DISK_FULL):
            storage.begin(third)
        storage.put_piece(first.upload_id, 1, 0, 0, bytes(4 * MIB))
        with refused(ErrorCode.DISK_FULL):
            storage.begin(third)
        storage.abort(second.upload_id)
        storage.begin(third)
    finally:
        storage.close()


def test_room_stays_promised_across_a_restart(small_disk: Path) -> None:
    storage = LocalStorage(small_disk / "root", limits=Limits(staging_directories=4))
    storage.start({})
    first, second, third = (make_spec(name, 5 * MIB) for name in ("first", "second", "third"))
    storage.begin(first)
    storage.begin(second)
    storage.put_piece(first.upload_id, 1, 0, 0, bytes(4 * MIB))
    before = storage.free_bytes()
    storage.close()
    storage = LocalStorage(small_disk / "root", limits=Limits(staging_directories=4))
    live = {spec.upload_id: spec.size for spec in (first, second)}
    try:
        assert set(storage.start(live)) == set(live)
        assert before is not None
        assert abs((storage.free_bytes() or 0) - before) < MIB // 4
        with refused(ErrorCode.DISK_FULL):
            storage.begin(third)
        storage.abort(second.upload_id)
        storage.begin(third)
    finally:
        storage.close()


def test_real_disk_without_inodes(small_disk: Path) -> None:
    storage = LocalStorage(small_disk / "root", limits=Limits(staging_directories=4))
    storage.start({})
    try:
        outcome: Published | Refusal | None = None
        count = 0
        while not isinstance(outcome, Refusal):
            count += 1
            outcome = commit_small(storage, make_spec(f"f{count}", 1), b"x")
        assert outcome.code is ErrorCode.DISK_FULL
        with refused(ErrorCode.DISK_FULL):
            storage.make_directory(parse_name("one more"))
        storage.delete(parse_name("f1"))
        put(storage, "again", b"x")
    finally:
        storage.close()


def test_root_that_cannot_be_used(shm_path: Path) -> None:
    (shm_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be used"):
        LocalStorage(shm_path / "file")
    door = FaultyDoor()
    door.fail("make_directory", errno.EROFS)
    with pytest.raises(StorageError, match="Read-only"):
        LocalStorage(shm_path / "root", door)
    assert stat.S_ISREG((shm_path / "file").stat().st_mode)

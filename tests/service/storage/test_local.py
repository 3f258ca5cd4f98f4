"""What only the local storage promises: its start, manifests of foreign files, versions, listings, catalogue."""

from __future__ import annotations

import errno
import os
import random
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.segments import Manifest, digest_of
from twinport_service.storage import small_files
from twinport_service.storage.contract import HashingNeeded, Precondition, Published, SendingReader
from twinport_service.storage.disk_door import DiskDoor
from twinport_service.storage.local import (
    Limits,
    LocalStorage,
    StorageInUse,
    StorageMissing,
    StorageUnknown,
)
from twinport_service.storage.tree import Tree

from .conftest import (
    OpenLocal,
    Outcomes,
    commit_bundle,
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
SEGMENT = 8 * MIB
LARGE = random.Random(3).randbytes(SEGMENT + 54_321)
LONG_AGO_NS = 1_600_000_000_000_000_000


def hashed_bytes(door: FaultyDoor, use: Callable[[], object]) -> int:
    """How many reads through the door ``use`` takes."""
    before = door.count("read_into")
    use()
    return door.count("read_into") - before


# start ---------------------------------------------------------------------------------------------------------------


def test_root_is_made_and_marked(shm_path: Path, open_local: OpenLocal) -> None:
    open_local(shm_path / "a/b/root")
    own = shm_path / "a/b/root/.twinport"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    first = (own / "storage").read_text()
    assert first.startswith("twinport storage 1\n")
    open_local(shm_path / "other")
    assert (shm_path / "other/.twinport/storage").read_text() != first


def test_second_server_on_one_root_is_refused(shm_path: Path, open_local: OpenLocal) -> None:
    first = open_local(shm_path / "root")
    with pytest.raises(StorageInUse, match="served by another process"):
        LocalStorage(shm_path / "root")
    program = "import sys; from pathlib import Path; from twinport_service.storage.local import LocalStorage"
    child = subprocess.run(
        [sys.executable, "-c", f"{program}; LocalStorage(Path(sys.argv[1]))", str(shm_path / "root")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StorageInUse" in child.stderr
    first.close()
    open_local(shm_path / "root")


def test_missing_mount_is_noticed(shm_path: Path, open_local: OpenLocal) -> None:
    (shm_path / "mount").mkdir()
    with pytest.raises(StorageMissing, match="is its disk mounted"):
        LocalStorage(shm_path / "mount", require_used=True)
    assert list((shm_path / "mount").iterdir()) == []
    open_local(shm_path / "used").close()
    open_local(shm_path / "used", require_used=True)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (".twinport/storage", b"twinport storage 2\nabc\n"),
        (".twinport/storage", b""),
        (".twinport/storage", b"\xff\xfe"),
        (".twinport/manifests.db", b"not a database at all" * 1000),
        (".twinport", b"a file"),
    ],
)
def test_unknown_things_in_the_storages_place_are_left_alone(shm_path: Path, path: str, content: bytes) -> None:
    target = shm_path / "root" / path
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    with pytest.raises(StorageUnknown, match=r"move it away|another version"):
        LocalStorage(shm_path / "root")
    assert target.read_bytes() == content


def test_catalogue_of_a_newer_version_is_refused(shm_path: Path, open_local: OpenLocal) -> None:
    open_local(shm_path / "root").close()
    database = sqlite3.connect(shm_path / "root/.twinport/manifests.db")
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(StorageUnknown, match="newer"):
        LocalStorage(shm_path / "root")


def test_own_directory_is_never_a_link(shm_path: Path) -> None:
    (shm_path / "elsewhere").mkdir()
    (shm_path / "root").mkdir()
    (shm_path / "root/.twinport").symlink_to(shm_path / "elsewhere")
    with pytest.raises(StorageUnknown, match="not a directory"):
        LocalStorage(shm_path / "root")
    assert list((shm_path / "elsewhere").iterdir()) == []


def test_close_without_start_and_twice(shm_path: Path) -> None:
    storage = LocalStorage(shm_path / "root")
    storage.close()
    storage.close()


def test_closed_storage_takes_no_commits(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    spec = make_spec("staged", 3)
    manifest = stage(storage, spec, b"abc")
    storage.close()
    with refused(ErrorCode.SHUTTING_DOWN):
        storage.commit_small(make_spec("x", 1), b"x", digest_of(b"x"), Outcomes())
    with pytest.raises(Refusal):
        storage.commit(spec, manifest, Outcomes())


def test_close_finishes_what_is_under_way(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    outcomes = Outcomes()
    for number in range(300):
        storage.commit_small(make_spec(f"f{number}", 1), b"x", digest_of(b"x"), outcomes)
    spec = make_spec("large", len(LARGE))
    storage.commit(spec, stage(storage, spec, LARGE), outcomes)
    storage.close()
    assert all(isinstance(outcomes.next(), Published) for _ in range(301))
    assert len(list_all(open_local(shm_path / "root"))) == 301


# recovery ------------------------------------------------------------------------------------------------------------


def test_staging_of_live_uploads_survives_and_can_be_gone_on_with(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    kept, dropped = make_spec("kept", len(LARGE)), make_spec("dropped", len(LARGE))
    for spec in (kept, dropped):
        storage.begin(spec)
        storage.put_piece(spec.upload_id, 1, 0, 0, LARGE[:SEGMENT])
    storage.close()
    unknown = b"u" * 16
    storage = LocalStorage(shm_path / "root")
    try:
        assert set(storage.start({kept.upload_id: len(LARGE), unknown: 1})) == {kept.upload_id}
        buffer = bytearray(SEGMENT)
        assert storage.read_staged(kept.upload_id, 0, 0, buffer) == SEGMENT
        assert buffer == LARGE[:SEGMENT]
        storage.put_piece(kept.upload_id, 2, 1, 0, LARGE[SEGMENT:])
        outcomes = Outcomes()
        digests = digest_of(LARGE[:SEGMENT]) + digest_of(LARGE[SEGMENT:])
        storage.commit(kept, Manifest(len(LARGE), digests), outcomes)
        assert isinstance(outcomes.next(), Published)
        assert get(storage, "kept")[1] == LARGE
        with refused(ErrorCode.UPLOAD_UNKNOWN):
            storage.put_piece(dropped.upload_id, 1, 0, 0, b"x")
    finally:
        storage.close()


@pytest.mark.parametrize("size", [0, SEGMENT])
def test_staging_that_was_not_made_whole_is_dropped(shm_path: Path, open_local: OpenLocal, size: int) -> None:
    storage = open_local(shm_path / "root")
    spec = make_spec("x", len(LARGE))
    storage.begin(spec)
    storage.close()
    (staged,) = (path for path in (shm_path / "root/.twinport/staging").rglob("*") if path.is_file())
    os.truncate(staged, size)  # as a crash between making and allocating leaves it
    storage = LocalStorage(shm_path / "root")
    try:
        assert set(storage.start({spec.upload_id: spec.size})) == set()
        assert not staged.exists()
        storage.begin(spec)
        assert storage.read_staged(spec.upload_id, 1, 0, bytearray(9)) == 9
    finally:
        storage.close()


def test_staging_that_is_cut_short_by_others_is_not_known(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root", limits=Limits(open_stagings=1))
    first, second = make_spec("x", len(LARGE)), make_spec("y", 1)
    storage.begin(first)
    (staged,) = (path for path in (shm_path / "root/.twinport/staging").rglob("*") if path.is_file())
    os.truncate(staged, 0)
    storage.begin(second)  # takes the only place among the open ones
    with refused(ErrorCode.UPLOAD_UNKNOWN):
        storage.read_staged(first.upload_id, 1, 0, bytearray(9))


def test_finished_uploads_and_manifests_survive_a_restart(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    small, large = put(storage, "small", b"bytes"), put(storage, "large", LARGE)
    storage.close()
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    assert storage.finished(small.upload_id) == small
    assert storage.finished(large.upload_id) == large
    assert {entry.name: entry.root for entry in list_all(storage)} == {"small": small.root, "large": large.root}
    assert hashed_bytes(door, lambda: storage.open_version(parse_name("large"))) == 0
    assert storage.manifest(storage.open_version(parse_name("large")).token).digest(1) == digest_of(LARGE[SEGMENT:])


@pytest.mark.parametrize("change", ["none", "gone", "replaced", "touched"])
def test_row_that_a_crash_left_open_is_decided_by_its_file(shm_path: Path, open_local: OpenLocal, change: str) -> None:
    storage = open_local(shm_path / "root")
    published = put(storage, "name", b"bytes")
    storage.close()
    # As if the process had died before the batch was settled.
    database = sqlite3.connect(shm_path / "root/.twinport/manifests.db")
    database.execute("UPDATE settled SET id = 0")
    database.execute("UPDATE publications SET ctime_ns = NULL")
    database.commit()
    database.close()
    path = shm_path / "root/name"
    if change == "gone":
        path.unlink()
    elif change == "replaced":
        (shm_path / "root/new").write_bytes(b"BYTES")
        os.utime(shm_path / "root/new", ns=(published.mtime_ns, published.mtime_ns))
        os.rename(shm_path / "root/new", path)
    elif change == "touched":
        os.utime(path)
    storage = open_local(shm_path / "root")
    assert storage.finished(published.upload_id) == (published if change == "none" else None)
    storage.close()
    storage = open_local(shm_path / "root")
    assert storage.finished(published.upload_id) == (published if change == "none" else None)


def test_finished_uploads_are_forgotten_after_a_day_and_manifests_kept(shm_path: Path, open_local: OpenLocal) -> None:
    clock = [2_000_000_000.0]
    storage = open_local(shm_path / "root", now=lambda: clock[0])
    kept = put(storage, "kept", b"kept")
    for _ in range(5):
        put(storage, "again and again", b"x")
    deleted = put(storage, "deleted", b"x")
    storage.delete(parse_name("deleted"))
    clock[0] += 24 * 3600 - 1
    storage._catalogue.purge()
    assert storage.finished(kept.upload_id) == kept
    assert storage.finished(deleted.upload_id) == deleted
    clock[0] += 2
    assert storage.finished(kept.upload_id) is None
    storage._catalogue.purge()
    rows = sqlite3.connect(shm_path / "root/.twinport/manifests.db")
    assert sorted(rows.execute("SELECT path, upload FROM publications")) == [("again and again", None), ("kept", None)]
    rows.close()
    assert storage.stat(parse_name("kept")).root == digest_of(b"kept")
    assert commit_small(storage, make_spec("anew", 1, upload_id=kept.upload_id), b"x") != kept


def test_purge_goes_through_all_rows_in_bounded_steps(
    shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinport_service.storage.catalogue.PURGE_ROWS", 7)
    clock = [2_000_000_000.0]
    storage = open_local(shm_path / "root", now=lambda: clock[0])
    for number in range(40):
        put(storage, f"f{number % 4}", b"x")
    clock[0] += 25 * 3600
    put(storage, "f0", b"newest")
    rows = sqlite3.connect(shm_path / "root/.twinport/manifests.db")
    counts = []
    for _ in range(14):
        storage._catalogue.purge()
        counts.append(rows.execute("SELECT count(*) FROM publications").fetchone()[0])
    rows.close()
    assert counts[0] >= 41 - 7
    assert counts[-1] == 4
    assert {entry.name: entry.root is not None for entry in list_all(storage)} == {f"f{n}": True for n in range(4)}


# manifests of foreign files ------------------------------------------------------------------------------------------


def test_foreign_file_is_hashed_once_when_it_has_rested(shm_path: Path, open_local: OpenLocal) -> None:
    root = shm_path / "root"
    root.mkdir()
    (root / "foreign").write_bytes(LARGE)
    door = FaultyDoor()
    later = [time.time_ns() + 10_000_000_000]
    storage = open_local(root, door, now_ns=lambda: later[0])
    assert storage.stat(parse_name("foreign")).root is None
    version, data = get(storage, "foreign")
    expected = Manifest(len(LARGE), digest_of(LARGE[:SEGMENT]) + digest_of(LARGE[SEGMENT:]))
    assert data == LARGE
    assert storage.manifest(version.token) == expected
    assert version.root == expected.root
    assert storage.stat(parse_name("foreign")).root == expected.root
    assert hashed_bytes(door, lambda: storage.open_version(parse_name("foreign"))) == 0


def test_manifest_of_a_file_that_changed_just_now_is_not_kept(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    (shm_path / "root/fresh").write_bytes(b"fresh")
    for _ in range(2):
        assert hashed_bytes(door, lambda: storage.open_version(parse_name("fresh"))) > 0
    assert storage.stat(parse_name("fresh")).root is None


@pytest.mark.parametrize("kind", ["content", "mtime put back", "replaced"])
def test_published_file_that_was_changed_by_hand_is_hashed_anew(
    shm_path: Path, open_local: OpenLocal, kind: str
) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "name", b"first bytes")
    path = shm_path / "root/name"
    facts = path.stat()
    if kind == "replaced":
        (shm_path / "root/new").write_bytes(b"other bytes")
        os.rename(shm_path / "root/new", path)
    else:
        threading.Event().wait(0.02)  # the file system's clock ticks every few milliseconds
        path.write_bytes(b"other bytes")
    if kind != "content":
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert storage.stat(parse_name("name")).root is None
    version, data = get(storage, "name")
    assert data == b"other bytes"
    assert version.root == digest_of(b"other bytes")
    matches = Precondition(if_match=digest_of(b"first bytes"))
    assert isinstance(commit_small(storage, make_spec("name", 1, precondition=matches), b"x"), Refusal)
    matches = Precondition(if_match=digest_of(b"other bytes"))
    assert isinstance(commit_small(storage, make_spec("name", 1, precondition=matches), b"x"), Published)


def test_file_that_never_rests_is_changed(shm_path: Path, open_local: OpenLocal) -> None:
    path = shm_path / "root/busy"

    class GrowingDoor(FaultyDoor):
        def read_into(self, descriptor: int, buffer: bytearray | memoryview, offset: int) -> int:
            with path.open("ab") as file:
                file.write(b"more")
            return super().read_into(descriptor, buffer, offset)

    storage = open_local(shm_path / "root", GrowingDoor())
    path.write_bytes(b"start")
    with refused(ErrorCode.CHANGED):
        storage.open_version(parse_name("busy"))


def test_file_that_changes_once_while_it_is_hashed(shm_path: Path, open_local: OpenLocal) -> None:
    path = shm_path / "root/busy"
    changes = iter([b"second, longer"])

    class ChangingDoor(FaultyDoor):
        def read_into(self, descriptor: int, buffer: bytearray | memoryview, offset: int) -> int:
            for content in changes:
                path.write_bytes(content)
            return super().read_into(descriptor, buffer, offset)

    storage = open_local(shm_path / "root", ChangingDoor())
    path.write_bytes(b"first")
    assert storage.open_version(parse_name("busy")).root == digest_of(b"second, longer")


def test_lost_catalogue_is_made_anew(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    published = put(storage, "name", LARGE)
    storage.close()
    for path in (shm_path / "root/.twinport").glob("manifests.db*"):
        path.unlink()
    storage = open_local(shm_path / "root")
    assert storage.stat(parse_name("name")).root is None
    assert storage.open_version(parse_name("name")).root == published.root
    assert storage.finished(published.upload_id) is None


# versions ------------------------------------------------------------------------------------------------------------


def test_open_versions_are_bounded(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root", limits=Limits(open_versions=3))
    versions = []
    for number in range(5):
        put(storage, f"f{number}", bytes([number]) * MIB)
        versions.append(storage.open_version(parse_name(f"f{number}")))
    readers = [storage.open_reader(versions[4].token)]
    for number in range(5):
        storage.delete(parse_name(f"f{number}"))
    for version in versions[:2]:
        with refused(ErrorCode.VERSION_GONE):
            storage.open_reader(version.token)
    for number in (2, 3, 4):
        assert read(storage, versions[number].token, MIB) == bytes([number]) * MIB
    storage.close()
    buffer = bytearray(10)
    assert readers[0].read_into(5, buffer) == 10
    readers[0].close()


def test_small_version_that_was_replaced_is_gone(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "name", b"one")
    token = storage.open_version(parse_name("name")).token
    assert read(storage, token, 3) == b"one"
    put(storage, "name", b"two")
    with refused(ErrorCode.VERSION_GONE):
        storage.open_reader(token)
    storage.delete(parse_name("name"))
    with refused(ErrorCode.VERSION_GONE):
        storage.open_reader(token)


def test_token_survives_a_restart(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "name", LARGE)
    version = storage.open_version(parse_name("name"))
    storage.close()
    storage = open_local(shm_path / "root")
    assert read(storage, version.token, version.size) == LARGE
    assert storage.manifest(version.token).root == version.root
    put(storage, "name", LARGE[1:])
    with refused(ErrorCode.VERSION_GONE):
        storage.manifest(version.token)


def test_send_to_a_socket(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "name", LARGE)
    reader = storage.open_reader(storage.open_version(parse_name("name")).token)
    assert isinstance(reader, SendingReader)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        sent = reader.send(ours.fileno(), 100, 5000)
        assert theirs.recv(5000, socket.MSG_WAITALL) == LARGE[100 : 100 + sent]
        assert reader.send(ours.fileno(), len(LARGE) - 3, 5000) == 3
        assert theirs.recv(10) == LARGE[-3:]
        assert reader.send(ours.fileno(), len(LARGE), 10) == 0

        def fill() -> None:
            while True:
                reader.send(ours.fileno(), 0, MIB)

        with pytest.raises(BlockingIOError):
            fill()
    reader.close()


# staging -------------------------------------------------------------------------------------------------------------


def test_open_stagings_are_bounded_and_flushed_when_let_go(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door, limits=Limits(open_stagings=2))
    specs = [make_spec(f"f{number}", 1000) for number in range(5)]
    for spec in specs:
        storage.begin(spec)
    descriptors = len(os.listdir("/proc/self/fd"))
    flushes = door.count("fsync")
    for offset in range(0, 1000, 100):
        for number, spec in enumerate(specs):
            storage.put_piece(spec.upload_id, 1, 0, offset, bytes([number]) * 100)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert door.count("fsync") - flushes == 48
    outcomes = Outcomes()
    for number, spec in enumerate(specs):
        storage.commit(spec, Manifest(1000, digest_of(bytes([number]) * 1000)), outcomes)
    assert all(isinstance(outcomes.next(), Published) for _ in specs)
    assert get(storage, "f3")[1] == bytes([3]) * 1000


def test_failed_flush_of_a_staging_that_is_let_go(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door, limits=Limits(open_stagings=1))
    first, second = make_spec("first", 10), make_spec("second", 10)
    storage.begin(first)
    storage.put_piece(first.upload_id, 1, 0, 0, bytes(10))
    door.fail("fsync", errno.EIO)
    storage.begin(second)
    with refused(ErrorCode.READ_ONLY):
        storage.put_piece(second.upload_id, 1, 0, 0, bytes(10))


def test_write_back_is_started_while_bytes_arrive(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    spec = make_spec("large", 3 * SEGMENT)
    storage.begin(spec)
    started = []
    for segment in range(3):
        for offset in range(0, SEGMENT, MIB):
            storage.put_piece(spec.upload_id, 1, segment, offset, bytes(MIB))
        started.append(door.count("start_write_back"))
    assert started == [1, 2, 3]


def test_piece_beyond_the_end_is_refused(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    spec = make_spec("name", 10)
    storage.begin(spec)
    with refused(ErrorCode.BAD_REQUEST):
        storage.put_piece(spec.upload_id, 1, 0, 5, bytes(6))
    storage.put_piece(spec.upload_id, 1, 0, 5, bytes(5))


# flushing ------------------------------------------------------------------------------------------------------------


def send_batch(storage: LocalStorage, count: int) -> list[Published | Refusal]:
    """Many small files at once: the first goes alone, and the rest are waiting together when it is done."""
    outcomes = Outcomes()
    for _ in range(count):
        spec = make_spec(f"f{random.random()}", 1)
        storage.commit_small(spec, b"x", digest_of(b"x"), outcomes)
    return [outcomes.next() for _ in range(count)]


def test_many_files_share_their_flushes(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    before = door.count("fsync", "fsync_directory", "sync_file_system")
    assert all(isinstance(outcome, Published) for outcome in send_batch(storage, 400))
    assert door.count("fsync", "fsync_directory", "sync_file_system") - before < 200
    assert door.count("sync_file_system") > 0


def test_failed_common_flush_fails_all_of_its_files(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    door.fail("sync_file_system", errno.EIO)
    told = send_batch(storage, 300)
    published = {str(outcome.name) for outcome in told if isinstance(outcome, Published)}
    codes = {outcome.code for outcome in told if isinstance(outcome, Refusal)}
    assert codes <= {ErrorCode.STORAGE_FAULT, ErrorCode.READ_ONLY}
    assert ErrorCode.STORAGE_FAULT in codes
    assert door.count("sync_file_system") == 1
    storage.close()
    assert {entry.name for entry in list_all(open_local(shm_path / "root"))} == published


@pytest.mark.parametrize("reason", ["a large upload", "slow", "dishonest"])
def test_common_flush_is_avoided(
    shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    if reason == "a large upload":
        stage(storage, make_spec("large", 10), bytes(10))
    elif reason == "slow":
        monkeypatch.setattr(small_files, "SLOW_SECONDS", 0.0)
        while not door.count("sync_file_system"):
            send_batch(storage, 100)
    else:
        monkeypatch.setattr("twinport_service.storage.disk_door._KERNEL", (5, 4))
    before = door.count("sync_file_system")
    assert all(isinstance(outcome, Published) for outcome in send_batch(storage, 200))
    assert door.count("sync_file_system") == before
    assert door.count("fsync") >= 200


def test_large_commits_do_not_hold_up_small_ones(shm_path: Path, open_local: OpenLocal) -> None:
    gate = threading.Event()

    class SlowDoor(FaultyDoor):
        def fsync(self, descriptor: int) -> None:
            if os.fstat(descriptor).st_size > MIB:
                assert gate.wait(60)
            super().fsync(descriptor)

    storage = open_local(shm_path / "root", SlowDoor(), limits=Limits(flush_threads=1))
    outcomes = Outcomes()
    for number in range(2):
        spec = make_spec(f"large{number}", 2 * MIB)
        storage.commit(spec, stage(storage, spec, bytes(2 * MIB)), outcomes)
    put(storage, "small", b"x")
    assert outcomes.are_all_told
    gate.set()
    assert all(isinstance(outcomes.next(), Published) for _ in range(2))


def test_small_commits_under_way_are_bounded(shm_path: Path, open_local: OpenLocal) -> None:
    gate = threading.Event()

    class SlowDoor(FaultyDoor):
        def open_at(self, directory: int, name: str, flags: int, mode: int = 0o666) -> int:
            if name.startswith("s") and flags & os.O_EXCL:
                assert gate.wait(60)
            return super().open_at(directory, name, flags, mode)

    storage = open_local(shm_path / "root", SlowDoor(), limits=Limits(small_files=4))
    outcomes = Outcomes()
    sent = []

    def send() -> None:
        for number in range(6):
            storage.commit_small(make_spec(f"f{number}", 1), b"x", digest_of(b"x"), outcomes)
            sent.append(number)

    sender = threading.Thread(target=send)
    sender.start()
    while len(sent) < 4:
        sender.join(0.01)
    sender.join(0.1)
    assert sent == [0, 1, 2, 3]
    gate.set()
    sender.join()
    assert all(isinstance(outcomes.next(), Published) for _ in range(6))


def test_callback_that_raises_harms_nobody(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")

    def raise_error(outcome: object) -> None:
        raise RuntimeError("a bug above")

    storage.commit_small(make_spec("one", 1), b"x", digest_of(b"x"), raise_error)
    put(storage, "two", b"x")
    assert [entry.name for entry in list_all(storage)] == ["one", "two"]


def test_staged_commit_of_another_size_is_incomplete(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    spec = make_spec("name", 10)
    stage(storage, spec, bytes(10))
    outcomes = Outcomes()
    wrong = make_spec("name", 11, upload_id=spec.upload_id)
    storage.commit(wrong, Manifest(11, digest_of(bytes(11))), outcomes)
    outcome = outcomes.next()
    assert isinstance(outcome, Refusal)
    assert outcome.code is ErrorCode.INCOMPLETE


def test_small_commit_of_too_much_is_a_mistake_of_the_caller(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    data = bytes(300_000)
    with pytest.raises(ValueError, match="not a small file"):
        storage.commit_small(make_spec("x", len(data)), data, digest_of(data), Outcomes())
    assert isinstance(commit_staged(storage, make_spec("x", len(data)), data), Published)


# listings ------------------------------------------------------------------------------------------------------------


def test_pages_of_a_large_directory_read_it_once(shm_path: Path, open_local: OpenLocal) -> None:
    root = shm_path / "root"
    (root / "large").mkdir(parents=True)
    for number in range(3000):
        (root / f"large/f{number:05}").touch()
    door = FaultyDoor()
    later = [time.time_ns() + 10_000_000_000]
    storage = open_local(root, door, now_ns=lambda: later[0])
    for recursive in (True, False):
        scans = door.count("scan")
        assert len(list_all(storage, "large", recursive=recursive, limit=100)) == 3000
        assert door.count("scan") - scans <= 1
    (root / "large/one more").touch()
    assert len(list_all(storage, "large", limit=100)) == 3001


def test_directory_that_has_just_changed_is_read_again(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    for number in range(200):
        (shm_path / "root" / f"f{number}").touch()
        assert len(list_all(storage)) == number + 1


def test_names_kept_for_listings_are_bounded(shm_path: Path, open_local: OpenLocal) -> None:
    root = shm_path / "root"
    for directory in range(10):
        (root / f"d{directory}").mkdir(parents=True)
        for number in range(10):
            (root / f"d{directory}/f{number}").touch()
    door = FaultyDoor()
    later = [time.time_ns() + 10_000_000_000]
    storage = open_local(root, door, now_ns=lambda: later[0], limits=Limits(cached_names=35))
    for _ in range(3):
        assert len(list_all(storage)) == 100
    assert storage._listing._count <= 35
    assert sum(len(names.keys) for names in storage._listing._cache.values()) == storage._listing._count


def test_listing_costs_one_query_a_page(shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_local(shm_path / "root")
    for number in range(50):
        put(storage, f"f{number}", b"x")
    asked: list[int] = []
    answer = storage._catalogue.current_of

    def count(paths: list[str]) -> object:
        asked.append(len(paths))
        return answer(paths)

    monkeypatch.setattr(storage._catalogue, "current_of", count)
    assert all(entry.root for entry in list_all(storage, limit=20))
    assert asked == [20, 20, 10]


def test_files_that_vanish_while_they_are_listed(shm_path: Path, open_local: OpenLocal) -> None:
    root = shm_path / "root"

    class VanishingDoor(FaultyDoor):
        def stat_at(self, directory: int, name: str) -> os.stat_result:
            if name.startswith("gone"):
                raise FileNotFoundError(errno.ENOENT, "gone")
            return super().stat_at(directory, name)

    storage = open_local(root, VanishingDoor())
    for name in ("a", "gone1", "gone2", "gone3", "z"):
        (root / name).touch()
    assert [entry.name for entry in list_all(storage, limit=1)] == ["a", "z"]


def test_listing_while_many_write(shm_path: Path, open_local: OpenLocal) -> None:
    """Sorted, no duplicates, no staging, and what stands all the time is in every listing."""
    storage = open_local(shm_path / "root")
    steady = [f"d/steady{number}" for number in range(20)]
    for name in steady:
        put(storage, name, b"steady")
    stop = threading.Event()

    def write(part: int) -> None:
        outcomes = Outcomes()
        number = 0
        while not stop.is_set():
            number += 1
            data = b"%d" % number * 50
            storage.commit_small(make_spec(f"d/f{part}-{number % 30}", len(data)), data, digest_of(data), outcomes)
            outcomes.next()  # one at a time: the writers are to disturb the listings, not to starve them

    writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(30):
            keys = [entry.key for entry in list_all(storage, limit=29)]
            assert keys == sorted(set(keys))
            assert set(steady) <= set(keys)
            assert all(key.startswith("d/") for key in keys)
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_a_file_that_comes_during_the_walk_of_a_move_is_not_overlooked(
    shm_path: Path, open_local: OpenLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_local(shm_path / "root")
    put(storage, "from/short")
    walk, walks = Tree.has_room_for_names, []

    def walk_and_publish(tree: Tree, directory: str, growth_bytes: int) -> bool:
        fits = walk(tree, directory, growth_bytes)
        walks.append(fits)
        if len(walks) == 1:
            put(storage, "from/" + "/".join(["x" * 200] * 4))
        return fits

    monkeypatch.setattr(Tree, "has_room_for_names", walk_and_publish)
    with refused(ErrorCode.INVALID_NAME):
        storage.move(parse_name("from"), parse_name("t" * 200))
    assert walks == [True, False]
    storage.move(parse_name("from"), parse_name("to"))
    assert len(walks) == 2, "no name grows"
    assert len(list_all(storage)) == 2


class FlushWatch(DiskDoor):
    """Notes which directories are flushed, and lets something happen in the middle of the next flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []
        self.meanwhile: Callable[[], None] | None = None

    def fsync_directory(self, descriptor: int) -> None:
        """As ever."""
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()
        super().fsync_directory(descriptor)
        self.flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))


@pytest.mark.parametrize(
    "rely",
    [lambda storage: storage.make_directory(parse_name("a/b")), lambda storage: put(storage, "a/b/file", b"bytes")],
    ids=["MKDIR", "upload"],
)
def test_who_relies_on_a_directory_that_is_not_durable_yet_makes_it_durable(
    shm_path: Path, open_local: OpenLocal, rely: Callable[[LocalStorage], object]
) -> None:
    root, door = shm_path / "root", FlushWatch()
    storage = open_local(root, door)
    seen: list[set[str]] = []

    def meanwhile() -> None:
        door.flushed.clear()
        rely(storage)
        seen.append(set(door.flushed))

    door.meanwhile = meanwhile
    storage.make_directory(parse_name("a/b"))
    assert seen
    assert {str(root), str(root / "a")} <= seen[0]
    door.flushed.clear()
    storage.make_directory(parse_name("a/b"))
    assert door.flushed == [], "it is durable now"


# small files, whole ---------------------------------------------------------------------------------------------------


def test_a_small_file_is_read_only_where_its_root_is_known(shm_path: Path, open_local: OpenLocal) -> None:
    door = FaultyDoor()
    storage = open_local(shm_path / "root", door)
    root = shm_path / "root"
    for name in ("kept", "appended", "rewritten", "replaced"):
        put(storage, name, b"bytes")
    (root / "placed").write_bytes(b"p")
    with (root / "appended").open("ab") as file:
        file.write(b"!")
    (root / "rewritten").write_bytes(b"other")
    os.utime(root / "rewritten", ns=(1_700_000_000_123_456_789, 1_700_000_000_123_456_789))
    (root / "new").write_bytes(b"bytes")
    (root / "new").rename(root / "replaced")
    for name in ("placed", "appended", "rewritten", "replaced"):
        before = door.count("read_into")
        with pytest.raises(HashingNeeded):
            storage.read_small(parse_name(name), 100)
        assert door.count("read_into") == before, "what nobody hashes nobody reads"
    assert bytes(storage.read_small(parse_name("kept"), 100).data) == b"bytes"


def test_what_is_no_file_is_not_read_and_does_not_block(shm_path: Path, open_local: OpenLocal) -> None:
    storage = open_local(shm_path / "root")
    root = shm_path / "root"
    put(storage, "d/file", b"bytes")
    (shm_path / "outside").write_bytes(b"secret")
    (root / "link").symlink_to(shm_path / "outside")
    (root / "inside").symlink_to("d/file")
    (root / "away").symlink_to(shm_path)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(root / "socket"))
        before = len(os.listdir("/proc/self/fd"))
        for name in ("link", "inside", "pipe", "socket", "d", "away"):
            with refused(ErrorCode.DENIED):
                storage.read_small(parse_name(name), 100)
        for name in ("away/outside", "link/below"):
            with pytest.raises(Refusal) as caught:
                storage.read_small(parse_name(name), 100)
            assert caught.value.code in (ErrorCode.DENIED, ErrorCode.FILE_NOT_FOUND)
        assert len(os.listdir("/proc/self/fd")) == before


def test_bundles_beyond_the_bounds_wait_for_their_turn_and_all_come_through(
    shm_path: Path, open_local: OpenLocal
) -> None:
    storage = open_local(shm_path / "root", limits=Limits(small_files=4, small_bytes=1000))
    told: list[Published | Refusal] = []

    def send(part: int) -> None:
        for turn in range(5):
            files = [(make_spec(f"{part}/{turn}/{number}", 100), b"%0100d" % number) for number in range(50)]
            told.extend(commit_bundle(storage, files))

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    put(storage, "single", b"x" * 999)
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, Published) for outcome in told) == 1000
    assert len(list_all(storage)) == 1001

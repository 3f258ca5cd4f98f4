"""Things that others planted in the root: links, pipes, devices, foreign names: denied, not listed, not followed."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.segments import digest_of
from twinport_service.storage.contract import Precondition, Published
from twinport_service.storage.disk_door import DiskDoor
from twinport_service.storage.local import LocalStorage

from .conftest import OpenLocal, commit_small, commit_staged, get, list_all, make_spec, put, refused

DOORS: dict[str, Callable[[], DiskDoor]] = {
    "openat2": DiskDoor,
    "walk": lambda: DiskDoor(use_openat2=False, use_renameat2=False),
}


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Every path below, with inode, size, mtime and digest: a change of anything shows."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(directory.rglob("*")):
        facts = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (facts.st_ino, facts.st_mode, facts.st_size, facts.st_mtime_ns, facts.st_nlink, digest)
    return found


@pytest.fixture
def canary(shm_path: Path) -> Path:
    """A tree outside the root that nothing may change."""
    canary = shm_path / "canary"
    (canary / "dir").mkdir(parents=True)
    (canary / "file").write_bytes(b"canary")
    (canary / "dir/file").write_bytes(b"canary below")
    return canary


@pytest.fixture(params=DOORS)
def storage(request: pytest.FixtureRequest, shm_path: Path, open_local: OpenLocal) -> LocalStorage:
    return open_local(shm_path / "root", DOORS[request.param]())


@pytest.fixture
def root(shm_path: Path, storage: LocalStorage, canary: Path) -> Path:
    """A root in which everything evil is planted."""
    root = shm_path / "root"
    put(storage, "plain", b"plain")
    put(storage, "plain-dir/x", b"x")
    (root / "file-link").symlink_to(canary / "file")
    (root / "dir-link").symlink_to(canary / "dir")
    (root / "inner-link").symlink_to("plain")
    (root / "inner-dir-link").symlink_to("plain-dir")
    (root / "broken-link").symlink_to("nothing")
    (root / "parent-link").symlink_to("..")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        old = os.getcwd()
        os.chdir(root)  # a socket's path is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(old)
    if os.geteuid() == 0:
        os.mknod(root / "device", 0o666 | 0o020000, os.makedev(1, 3))
    os.makedirs(os.fsencode(root) + b"/not-utf8-\xff/below")
    (root / "bad\nname").write_bytes(b"")
    (root / "plain-dir/.twinport").write_bytes(b"nobody's business")
    return root


PLANTED = ["file-link", "inner-link", "broken-link", "parent-link", "dir-link", "inner-dir-link", "pipe", "socket"]
BELOW = ["dir-link/file", "dir-link/new", "inner-dir-link/x", "parent-link/canary/file", "parent-link/new"]


@pytest.fixture(params=PLANTED + BELOW)
def planted(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_planted_things_are_denied_and_nothing_outside_is_touched(
    storage: LocalStorage, root: Path, canary: Path, planted: str
) -> None:
    before = snapshot(canary)
    name = parse_name(planted)
    for use in (
        lambda: storage.open_version(name),
        lambda: storage.stat(name),
        lambda: storage.delete(name),
        lambda: storage.delete(name, digest_of(b"canary")),
        lambda: storage.move(name, parse_name("elsewhere")),
        lambda: storage.move(parse_name("plain"), name),
        lambda: storage.move(parse_name("plain"), parse_name(f"{planted}/x")),
        lambda: storage.begin(make_spec(planted, 3)),
        lambda: storage.begin(make_spec(f"{planted}/x", 3)),
        lambda: storage.list(planted, "", 10, True),
        lambda: storage.list(planted, "", 10, False),
    ):
        with pytest.raises(Refusal) as caught:
            use()
        # Below a pipe or a socket there can be nothing: that is a conflict of names.
        assert caught.value.code in (ErrorCode.DENIED, ErrorCode.NAME_CONFLICT, ErrorCode.EXISTS)
    for precondition in (Precondition(), Precondition(if_match=digest_of(b"canary"))):
        outcome = commit_small(storage, make_spec(planted, 3, precondition=precondition), b"new")
        assert isinstance(outcome, Refusal)
        assert outcome.code is ErrorCode.DENIED
    assert isinstance(commit_small(storage, make_spec(f"{planted}/x", 3), b"new"), Refusal)
    assert snapshot(canary) == before
    assert get(storage, "plain")[1] == b"plain"


def test_planted_link_is_not_replaced_by_a_staged_upload(storage: LocalStorage, root: Path, canary: Path) -> None:
    spec = make_spec("late", 3)
    storage.begin(spec)
    (root / "late").symlink_to(canary / "file")
    outcome = commit_staged(storage, spec, b"new")
    assert isinstance(outcome, Refusal)
    assert outcome.code is ErrorCode.DENIED
    assert (root / "late").is_symlink()
    assert (canary / "file").read_bytes() == b"canary"


def test_only_what_can_be_named_and_read_is_listed(storage: LocalStorage, root: Path) -> None:
    keys = [entry.key for entry in list_all(storage)]
    assert keys == ["plain", "plain-dir/.twinport", "plain-dir/x"]
    assert [entry.key for entry in list_all(storage, recursive=False)] == ["plain", "plain-dir/"]


def test_device_is_denied(storage: LocalStorage, root: Path) -> None:
    if not (root / "device").exists():
        pytest.skip("making a device needs root; pipe and socket are denied by the same check")
    with refused(ErrorCode.DENIED):
        storage.open_version(parse_name("device"))
    outcome = commit_small(storage, make_spec("device", 1), b"x")
    assert isinstance(outcome, Refusal)
    assert outcome.code is ErrorCode.DENIED


def test_hard_link_to_a_foreign_file_is_replaced_not_written(storage: LocalStorage, root: Path, canary: Path) -> None:
    os.link(canary / "file", root / "hard")
    assert get(storage, "hard")[1] == b"canary"
    put(storage, "hard", b"new bytes")
    put(storage, "hard", b"newer bytes")
    assert (canary / "file").read_bytes() == b"canary"
    assert (canary / "file").stat().st_nlink == 1


def test_replacing_never_writes_in_place(storage: LocalStorage, root: Path) -> None:
    put(storage, "name", b"old")
    with (root / "name").open("rb") as held:
        inode = os.fstat(held.fileno()).st_ino
        put(storage, "name", b"new")
        assert held.read() == b"old"
    assert (root / "name").stat().st_ino != inode


def test_modes_follow_the_umask(shm_path: Path, open_local: OpenLocal) -> None:
    old = os.umask(0o027)
    try:
        storage = open_local(shm_path / "other")
        put(storage, "dir/plain", b"")
        put(storage, "dir/run", b"", executable=True)
        spec = make_spec("dir/staged", 3, executable=True)
        assert isinstance(commit_staged(storage, spec, b"abc"), Published)
        storage.make_directory(parse_name("made"))
    finally:
        os.umask(old)
    modes = {name: (shm_path / "other" / name).stat().st_mode & 0o777 for name in ("dir", "made", ".twinport")}
    assert modes == {"dir": 0o750, "made": 0o750, ".twinport": 0o700}
    modes = {name: (shm_path / "other/dir" / name).stat().st_mode & 0o777 for name in ("plain", "run", "staged")}
    assert modes == {"plain": 0o640, "run": 0o750, "staged": 0o750}


def test_directories_that_turn_into_links_while_files_are_published(
    storage: LocalStorage, root: Path, canary: Path
) -> None:
    """Another program swaps a directory and a link for a while: every file lands inside the root or nowhere."""
    before = snapshot(canary)
    stop = threading.Event()
    (root / "swap").mkdir()

    def swap() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            os.rename(root / "swap", root / f"real{number}")
            try:
                (root / "swap").symlink_to(canary / "dir")
            except FileExistsError:
                continue  # a publication has made the directory anew
            os.unlink(root / "swap")
            with suppress(OSError):  # as above
                os.rename(root / f"real{number}", root / "swap")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        codes = set()
        for number in range(100):
            try:
                outcome = commit_small(storage, make_spec(f"swap/f{number}", 1), b"x")
            except Refusal as refusal:
                outcome = refusal
            codes.add(outcome.code if isinstance(outcome, Refusal) else None)
    finally:
        stop.set()
        swapper.join()
    assert snapshot(canary) == before
    assert None in codes

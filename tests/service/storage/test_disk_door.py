"""The disk door: what it opens and what not, with the kernel's newer calls and without."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twinport_service.storage.disk_door import O_PATH, DiskDoor

DOORS = {
    "newest": DiskDoor(),
    "without openat2": DiskDoor(use_openat2=False),
    "without renameat2": DiskDoor(use_renameat2=False),
    "without fallocate": DiskDoor(use_fallocate=False),
}


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> DiskDoor:
    return DOORS[request.param]


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[int]:
    """A tree with links of all kinds that lead outside, and its descriptor."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "dir/deep").mkdir(parents=True)
    (root / "dir/deep/file").write_bytes(b"bytes")
    (root / "to-file").symlink_to("dir/deep/file")
    (root / "to-dir").symlink_to("dir")
    (root / "dir/out").symlink_to(outside)
    (root / "dir/out-relative").symlink_to("../../outside")
    (root / "loop").symlink_to("loop")
    (root / "magic").symlink_to("/proc/self/root")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_opens_what_is_beneath(door: DiskDoor, inside: int) -> None:
    for path in ("dir/deep/file", "dir"):
        descriptor = door.open_beneath(inside, path, os.O_RDONLY)
        assert not os.get_inheritable(descriptor)
        door.close(descriptor)
    descriptor = door.open_beneath(inside, "dir/deep/file", os.O_RDONLY)
    buffer = bytearray(10)
    assert door.read_into(descriptor, buffer, 1) == 4
    door.drop(descriptor)
    door.drop(descriptor)


@pytest.mark.parametrize(
    ("path", "numbers"),
    [
        ("to-file", {errno.ELOOP}),
        ("to-dir/deep/file", {errno.ELOOP}),
        ("dir/out/secret", {errno.ELOOP}),
        ("dir/out-relative/secret", {errno.ELOOP}),
        ("loop", {errno.ELOOP}),
        ("magic/etc/passwd", {errno.ELOOP}),
        ("dir/../../outside/secret", {errno.EXDEV}),
        ("..", {errno.EXDEV}),
        ("/etc/passwd", {errno.EXDEV}),
        ("dir/nothing", {errno.ENOENT}),
        ("nothing/file", {errno.ENOENT}),
        ("dir/deep/file/below", {errno.ENOTDIR}),
    ],
)
def test_opens_nothing_else(door: DiskDoor, inside: int, path: str, numbers: set[int]) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        os.close(door.open_beneath(inside, path, os.O_RDONLY))
    assert caught.value.errno in numbers


@pytest.mark.parametrize("path", ["to-dir", "dir/out"])
def test_directory_is_never_a_link(door: DiskDoor, inside: int, path: str) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        os.close(door.open_beneath(inside, path, os.O_RDONLY | os.O_DIRECTORY))
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError, match=r"."):
        os.close(door.open_beneath(inside, path + "/x", os.O_RDONLY))


def test_link_itself_can_be_looked_at(door: DiskDoor, inside: int) -> None:
    descriptor = door.open_beneath(inside, "dir/out", O_PATH)
    assert stat.S_ISLNK(door.fstat(descriptor).st_mode)
    door.close(descriptor)
    assert stat.S_ISLNK(door.stat_at(inside, "to-file").st_mode)
    with pytest.raises(OSError, match=r".") as caught:
        door.open_at(inside, "to-file", os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP


def test_scan_tells_kinds(door: DiskDoor, inside: int) -> None:
    assert dict(door.scan(inside)) == {"dir": "d", "to-file": "-", "to-dir": "-", "loop": "-", "magic": "-"}


component = st.sampled_from(["dir", "deep", "file", "..", ".", "", "to-dir", "out", "secret", "loop", "nothing"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(component, min_size=1, max_size=5))
def test_walk_and_openat2_open_the_same(inside: int, parts: list[str]) -> None:
    """The fallback is stricter at most: ``.``, ``..`` and empty components are never passed."""
    path = "/".join(parts)
    inodes: list[int | None] = []
    for name in ("newest", "without openat2"):
        try:
            descriptor = DOORS[name].open_beneath(inside, path, os.O_RDONLY)
        except OSError:
            inodes.append(None)
        else:
            inodes.append(os.fstat(descriptor).st_ino)
            os.close(descriptor)
    if set(parts) & {"", ".", ".."}:
        assert inodes[1] is None
    else:
        assert inodes[0] == inodes[1]
    secret = os.stat("../outside/secret", dir_fd=inside).st_ino
    assert secret not in inodes


def test_rename_new(door: DiskDoor, inside: int) -> None:
    deep = door.open_beneath(inside, "dir/deep", os.O_RDONLY | os.O_DIRECTORY)
    for name in ("dir", "to-file", "loop"):
        with pytest.raises(FileExistsError):
            door.rename_new(deep, "file", inside, name)
    door.rename_new(deep, "file", inside, "moved")
    assert os.listdir(deep) == []
    assert door.stat_at(inside, "moved").st_nlink == 1
    with pytest.raises(FileNotFoundError):
        door.rename_new(deep, "file", inside, "again")
    door.rename_new(inside, "dir", inside, "renamed")
    with pytest.raises(FileExistsError):
        door.rename_new(inside, "renamed", inside, "moved")
    with pytest.raises(OSError, match=r".") as caught:
        door.rename_new(inside, "renamed", deep, "into-itself")
    assert caught.value.errno == errno.EINVAL
    door.drop(deep)


def test_allocate(door: DiskDoor, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        door.allocate(file.fileno(), 0)
        assert os.fstat(file.fileno()).st_size == 0
        door.allocate(file.fileno(), 1_000_001)
        assert os.fstat(file.fileno()).st_size == 1_000_001
        with pytest.raises(OSError, match=r".") as caught:
            door.allocate(file.fileno(), 1 << 50)
        assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_allocation_is_of_real_blocks_or_says_that_it_is_not(tmp_path: Path, shm_path: Path) -> None:
    for directory in (tmp_path, shm_path):
        for number, door in enumerate((DiskDoor(), DiskDoor(use_fallocate=False))):
            with (directory / f"file{number}").open("wb") as file:
                is_real = door.allocate(file.fileno(), 1 << 20)
                assert (os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20) == is_real
    with (tmp_path / "file").open("wb") as file:
        assert DiskDoor().allocate(file.fileno(), 1 << 20)


def test_durability_calls_take_any_file(door: DiskDoor, tmp_path: Path, shm_path: Path) -> None:
    for directory in (tmp_path, shm_path):
        with (directory / "file").open("wb") as file:
            assert door.write(file.fileno(), b"x" * 100, 5) == 100
            door.start_write_back(file.fileno(), 0, 0)
            door.await_write_back(file.fileno(), 0, 105)
            door.set_mtime(file.fileno(), 10**18 + 1)
            door.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_mtime_ns == 10**18 + 1
        descriptor = door.open_root(str(directory))
        door.fsync_directory(descriptor)
        door.sync_file_system(descriptor)
        door.spread_children(descriptor)
        assert door.free_bytes(descriptor) > 0
        door.drop(descriptor)


def test_durability_calls_report_what_is_wrong(door: DiskDoor) -> None:
    calls = (
        lambda: door.start_write_back(-1, 0, 0),
        lambda: door.sync_file_system(-1),
        lambda: door.allocate(-1, 5),
        lambda: door.open_beneath(-1, "x", os.O_RDONLY),
    )
    for call in calls:
        with pytest.raises(OSError, match=r".") as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_syncfs_is_trusted_where_linux_reports_its_errors() -> None:
    release = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True).stdout
    major, minor = (int(part) for part in release.split("-")[0].split(".")[:2])
    assert DiskDoor().syncs_honestly == ((major, minor) >= (5, 8))

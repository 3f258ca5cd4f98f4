"""Partials and the tree that they stand in."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twinport import errors
from twinport.flusher import Flusher
from twinport.partials import Partial, partial_name
from twinport.target_tree import TargetTree, safe_name
from twinport_protocol.segments import MIN_SEGMENT_BYTES, Layout

SIZE = 2 * MIN_SEGMENT_BYTES + 3
ROOT = bytes(range(32))
AWAIT_SECONDS = 30.0


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[TargetTree]:
    """A tree below a directory that does not exist yet."""
    made = TargetTree(str(tmp_path / "made" / "target"))
    yield made
    made.close()


def test_claims_survive_and_those_of_another_version_do_not(tree: TargetTree) -> None:
    partial = Partial(tree, "a/file")
    assert partial.begin(SIZE, ROOT) == [0, 0, 0]
    partial.write(memoryview(b"x" * 100), MIN_SEGMENT_BYTES)
    partial.claim(1, 100)
    partial.claim(2, 10**9)
    partial.close()

    partial = Partial(tree, "a/file")
    assert not partial.is_fresh
    assert partial.begin(SIZE, ROOT) == [0, 100, 3]  # a claim beyond the segment is cut
    partial.close()

    partial = Partial(tree, "a/file")
    assert partial.begin(SIZE, bytes(32)) == [0, 0, 0]
    partial.close()
    partial = Partial(tree, "a/file")
    assert partial.begin(SIZE + 1, bytes(32)) == [0, 0, 0]
    partial.close()


def test_a_partial_that_was_sealed_but_not_named_claims_all_of_it(tree: TargetTree) -> None:
    partial = Partial(tree, "file")
    partial.begin(SIZE, ROOT)
    partial.seal(SIZE, 0, False)
    partial.close()
    layout = Layout.of(SIZE)
    wholes = [layout.length(segment) for segment in range(layout.count)]
    for _ in range(2):  # the first to find it may be killed too
        partial = Partial(tree, "file")
        assert partial.begin(SIZE, ROOT) == wholes
        partial.close()
    partial = Partial(tree, "file")
    assert partial.begin(SIZE, bytes(32)) == [0, 0, 0]
    partial.close()


def test_a_partial_is_worked_on_by_one_only(tree: TargetTree) -> None:
    partial = Partial(tree, "file")
    with pytest.raises(errors.BusyError, match="another program is fetching it"):
        Partial(tree, "file")
    partial.close()
    Partial(tree, "file").close()


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "y" * 240, "z" * 241])
def test_a_long_name_has_a_partial_too(tree: TargetTree, tmp_path: Path, name: str) -> None:
    assert len(partial_name(name).encode()) <= 255
    partial = Partial(tree, name)
    partial.write_whole(b"data")
    partial.seal(4, 7, executable=True)
    partial.publish()
    partial.close()
    path = tmp_path / "made/target" / name
    assert path.read_bytes() == b"data"
    assert path.stat().st_mtime_ns == 7
    assert os.access(path, os.X_OK)


def test_more_than_the_disk_holds_is_refused_before_a_byte(tree: TargetTree, tmp_path: Path) -> None:
    partial = Partial(tree, "file")
    with pytest.raises(errors.SpaceError, match="the disk has less free"):
        partial.begin(2**61, ROOT)
    partial.close()


def test_a_small_partial_that_was_left_is_overwritten(tree: TargetTree, tmp_path: Path) -> None:
    partial = Partial(tree, "file")
    partial.write_whole(b"longer than the new content")
    partial.close()
    partial = Partial(tree, "file", executable=True)
    partial.write_whole(b"new")
    partial.seal(3, 0, executable=True)
    partial.publish()
    partial.close()
    assert (tmp_path / "made/target/file").read_bytes() == b"new"
    assert os.access(tmp_path / "made/target/file", os.X_OK)


def test_directories_beyond_the_cache_stay_reachable(tmp_path: Path) -> None:
    tree = TargetTree(str(tmp_path), max_cached=4)
    held = [tree.hold(f"{number}/below") for number in range(20)]
    assert len({directory.descriptor for directory in held}) == 20
    for directory in held:
        os.fstat(directory.descriptor)
        tree.release(directory)
    for number in range(20):
        tree.release(tree.hold(f"{number}/below/more"))
    tree.sync_made()
    tree.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(20)))


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(errors.UsageError, match="cannot write to"):
        TargetTree(str(tmp_path / "file"))
    with pytest.raises(errors.UsageError, match="cannot write to"):
        TargetTree(str(tmp_path / "file" / "below"))


@pytest.mark.parametrize("name", ["x", "x" * 255, ".x", "X.TWINPORT-PART"])
def test_no_remote_name_may_be_that_of_a_partial(name: str) -> None:
    partial = partial_name(name)
    for remote in (partial, partial.upper(), f"{partial}/below", f"above/{partial}"):
        with pytest.raises(errors.DeniedError, match="kept for unfinished downloads"):
            safe_name(remote)
    assert safe_name(f"{partial}.old") == f"{partial}.old"
    assert safe_name("x.twinport-part") == "x.twinport-part"


@pytest.mark.parametrize("replaced", [True, False])
def test_a_partial_that_lost_its_name_publishes_nothing(tree: TargetTree, tmp_path: Path, replaced: bool) -> None:
    outcomes = Outcomes()
    flusher = Flusher(tree, outcomes)
    partials = {name: sealed(tree, name, name.encode()) for name in ("x", "y")}
    place = tmp_path / "made/target" / partial_name("x")
    place.unlink()
    if replaced:
        place.write_bytes(b"nobody verified this")
    for name, partial in partials.items():
        flusher.add(name, partial)
    flusher.flush()
    assert isinstance(outcomes.all["x"], errors.BusyError)
    assert outcomes.all["y"] is None
    assert (tmp_path / "made/target/y").read_bytes() == b"y"
    assert sorted(os.listdir(tmp_path / "made/target")) == sorted({"y", place.name} if replaced else {"y"})


def test_a_partial_discards_only_itself(tree: TargetTree, tmp_path: Path) -> None:
    partial = sealed(tree, "x", b"x")
    place = tmp_path / "made/target" / partial_name("x")
    place.unlink()
    place.write_bytes(b"another program's")
    partial.discard()
    partial.close()
    assert place.read_bytes() == b"another program's"


class Outcomes:
    """Collects what a flusher reports."""

    def __init__(self) -> None:
        self.all: dict[Any, errors.TwinportError | None] = {}

    def __call__(self, outcomes: list[tuple[Any, errors.TwinportError | None]]) -> None:
        self.all.update(outcomes)


def sealed(tree: TargetTree, name: str, data: bytes) -> Partial:
    """A partial that is ready to be published."""
    partial = Partial(tree, name)
    partial.write_whole(data)
    partial.seal(len(data), 0, executable=False)
    return partial


@pytest.mark.parametrize("count", [1, 20, 300])
def test_a_flusher_publishes_everything_and_closes_it(tree: TargetTree, tmp_path: Path, count: int) -> None:
    outcomes = Outcomes()
    flusher = Flusher(tree, outcomes)
    flusher.start()
    for number in range(count):
        flusher.add(number, sealed(tree, f"d{number % 3}/{number}", str(number).encode()))
    flusher.close()
    assert outcomes.all == dict.fromkeys(range(count))
    assert all((tmp_path / f"made/target/d{n % 3}/{n}").read_bytes() == str(n).encode() for n in range(count))


@pytest.mark.parametrize("count", [1, 20])
def test_nothing_is_published_whose_flush_failed(
    tree: TargetTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    outcomes = Outcomes()
    flusher = Flusher(tree, outcomes)
    partials = [sealed(tree, str(number), b"x") for number in range(count)]
    failing = {partial.descriptor for partial in partials}
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if descriptor in failing:
            raise OSError(5, "Input/output error")
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr("twinport.flusher._find_syncfs", lambda: lambda descriptor: False)
    for number, partial in enumerate(partials):
        flusher.add(number, partial)
    flusher.flush()
    assert [type(error) for error in outcomes.all.values()] == [errors.SourceError] * count
    assert os.listdir(tmp_path / "made/target") == []


def test_contents_are_flushed_before_names_and_names_before_success(
    tree: TargetTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        steps.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "content")
        real_fsync(descriptor)

    def rename(*names: Any, **directories: Any) -> None:
        steps.append("rename")
        real_rename(*names, **directories)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    flusher = Flusher(tree, lambda outcomes: steps.append("done"))
    flusher.add(1, sealed(tree, "sub/file", b"x"))
    flusher.flush()
    assert steps[:2] == ["content", "rename"]
    assert steps[-1] == "done"
    assert steps[2:-1].count("directory") >= 3  # the new directory, its parent, and the one renamed in


@pytest.mark.parametrize("trouble", [OSError(errno.EROFS, "Read-only file system"), RuntimeError("a surprise")])
def test_a_flusher_reports_and_goes_on_whatever_fails(
    tree: TargetTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """After an I/O error the file system turns read-only: then the failed file cannot be removed either."""
    outcomes = Outcomes()
    told = threading.Event()

    def on_done(group: list[tuple[Any, errors.TwinportError | None]]) -> None:
        outcomes(group)
        if len(outcomes.all) == 3:
            told.set()

    flusher = Flusher(tree, on_done)
    flusher.start()

    def fail(*rest: Any, **more: Any) -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "unlink", fail)
        for number in range(3):
            flusher.add(number, sealed(tree, str(number), b"x"))
        assert told.wait(AWAIT_SECONDS), "the flusher's thread is gone"
    assert all(isinstance(error, errors.TwinportError) for error in outcomes.all.values())
    assert all("cannot write" in str(error) for error in outcomes.all.values())
    flusher.add("later", sealed(tree, "later", b"y"))
    flusher.close()
    assert outcomes.all["later"] is None
    assert (tmp_path / "made/target/later").read_bytes() == b"y"


def test_a_directory_whose_flush_failed_is_flushed_before_the_next_success(
    tree: TargetTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.make_directory("above/below")
    flushed: list[tuple[int, int]] = []
    real_fsync = os.fsync

    def identity(descriptor: int) -> tuple[int, int]:
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino

    wanted = []
    for name in ("", "above", "above/below"):
        held = tree.hold(name)
        wanted.append(identity(held.descriptor))
        tree.release(held)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def fsync(descriptor: int) -> None:
        flushed.append(identity(descriptor))
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            tree.sync_made()
    monkeypatch.setattr(os, "fsync", fsync)
    tree.sync_made()
    assert sorted(flushed) == sorted(wanted)
    tree.sync_made()
    assert len(flushed) == len(wanted)

"""Whose stored files are: exact after everything that can happen to a name, in every storage, and after a restart."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_service.storage.contract import SMALL_BYTES, Precondition, Published, Storage, UploadSpec
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.usage import Stored, UsageBook

from .conftest import commit_small, commit_staged, make_spec, put, refused

LARGE = SMALL_BYTES + 1
WAIT_SECONDS = 30.0
NOTHING = Stored(0, 0)


@pytest.fixture
def book() -> UsageBook:
    return UsageBook()


@pytest.fixture(params=["memory", "tmpfs"])
def storage(request: pytest.FixtureRequest, shm_path: Path, book: UsageBook) -> Iterator[Storage]:
    """Each implementation, telling ``book``."""
    made: Storage
    made = MemoryStorage(usage=book) if request.param == "memory" else LocalStorage(shm_path / "root", usage=book)
    made.start({})
    try:
        yield made
    finally:
        made.close()


def stored(book: UsageBook, user: str = "alice") -> Stored:
    """What a user has stored."""
    return book.usage_of(user).stored


def spec_of(user: str, name: str, size: int, precondition: Precondition | None = None) -> UploadSpec:
    """An upload of that user."""
    return UploadSpec(os.urandom(16), user, parse_name(name), size, precondition=precondition or Precondition())


def put_as(storage: Storage, user: str, name: str, size: int) -> None:
    """A file of that user, there."""
    spec = spec_of(user, name, size)
    outcome = (commit_small if size <= SMALL_BYTES else commit_staged)(storage, spec, bytes(size))
    assert isinstance(outcome, Published), outcome


@pytest.mark.parametrize("size", [0, 5, LARGE])
def test_a_file_counts_for_its_publisher(storage: Storage, book: UsageBook, size: int) -> None:
    put(storage, "d/file", bytes(size))
    assert stored(book) == (size, 1)


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_replaced_file_counts_no_more(storage: Storage, book: UsageBook, size: int) -> None:
    put_as(storage, "bob", "file", 100)
    put_as(storage, "alice", "file", size)
    assert (stored(book, "bob"), stored(book)) == (NOTHING, (size, 1))
    put_as(storage, "alice", "file", 7)
    assert stored(book) == (7, 1)


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_commit_that_is_refused_changes_nothing(storage: Storage, book: UsageBook, size: int) -> None:
    put_as(storage, "bob", "file", 100)
    spec = spec_of("alice", "file", size, Precondition(if_match=bytes(32)))
    if size == LARGE:
        with refused(ErrorCode.CHANGED):
            storage.begin(spec)
    else:
        outcome = commit_small(storage, spec, bytes(size))
        assert isinstance(outcome, Refusal)
    assert (stored(book, "bob"), stored(book)) == ((100, 1), NOTHING)


@pytest.mark.parametrize("size", [3, LARGE])
def test_a_repeated_commit_counts_once(storage: Storage, book: UsageBook, size: int) -> None:
    spec = make_spec("file", size)
    for _ in range(3):
        outcome = (commit_small if size == 3 else commit_staged)(storage, spec, bytes(size))
        assert isinstance(outcome, Published)
    assert stored(book) == (size, 1)


def test_a_name_that_cannot_be_had_leaves_what_was_there(storage: Storage, book: UsageBook) -> None:
    put_as(storage, "bob", "file", 10)
    outcome = commit_small(storage, spec_of("alice", "file/below", 3), b"abc")
    assert isinstance(outcome, Refusal)
    storage.make_directory(parse_name("dir"))
    outcome = commit_small(storage, spec_of("alice", "dir", 3), b"abc")
    assert isinstance(outcome, Refusal)
    assert (stored(book, "bob"), stored(book)) == ((10, 1), NOTHING)
    storage.delete(parse_name("file"))
    put_as(storage, "alice", "file", 4)
    assert (stored(book, "bob"), stored(book)) == (NOTHING, (4, 1))


def test_a_deleted_file_counts_no_more(storage: Storage, book: UsageBook) -> None:
    for name in ("a", "b", "d/c"):
        put(storage, name, b"12345")
    for left, name in ((2, "a"), (1, "d/c"), (0, "b")):
        storage.delete(parse_name(name))
        assert stored(book) == (5 * left, left)
    with refused(ErrorCode.FILE_NOT_FOUND):
        storage.delete(parse_name("a"))
    storage.delete(parse_name("d"))
    assert stored(book) == NOTHING


def test_a_moved_file_stays_its_owners(storage: Storage, book: UsageBook) -> None:
    put_as(storage, "bob", "a", 10)
    storage.move(parse_name("a"), parse_name("d/b"))
    storage.move(parse_name("d/b"), parse_name("d/b"))
    storage.move(parse_name("d"), parse_name("e"))
    assert stored(book, "bob") == (10, 1)
    put_as(storage, "alice", "e/b", 3)
    assert (stored(book, "bob"), stored(book)) == (NOTHING, (3, 1))


def test_a_file_that_was_moved_away_from_its_name_is_not_replaced_there(storage: Storage, book: UsageBook) -> None:
    put_as(storage, "bob", "a", 10)
    storage.move(parse_name("a"), parse_name("b"))
    put_as(storage, "alice", "a", 3)
    storage.delete(parse_name("a"))
    assert (stored(book, "bob"), stored(book)) == ((10, 1), NOTHING)


def test_a_file_that_is_moved_onto_takes_its_place(storage: Storage, book: UsageBook) -> None:
    put_as(storage, "bob", "a", 10)
    put_as(storage, "alice", "b", 20)
    with refused(ErrorCode.EXISTS):
        storage.move(parse_name("a"), parse_name("b"), if_absent=True)
    assert (stored(book, "bob"), stored(book)) == ((10, 1), (20, 1))
    storage.move(parse_name("a"), parse_name("b"))
    assert (stored(book, "bob"), stored(book)) == ((10, 1), NOTHING)


# what only a disk can do ---------------------------------------------------------------------------------------------

OpenCounted = Callable[[], tuple[LocalStorage, UsageBook]]


@pytest.fixture
def reopen(shm_path: Path) -> Iterator[OpenCounted]:
    """Opens the root anew, with a book that knows nothing, after closing what was open."""
    opened: list[LocalStorage] = []

    def open_one() -> tuple[LocalStorage, UsageBook]:
        while opened:
            opened.pop().close()
        book = UsageBook()
        opened.append(LocalStorage(shm_path / "root", usage=book))
        opened[0].start({})
        return opened[0], book

    yield open_one
    while opened:
        opened.pop().close()


def assert_checked(storage: LocalStorage) -> None:
    """Every path was looked at."""
    assert storage._owners.wait_checked(WAIT_SECONDS)


def test_a_restart_counts_what_is_there(reopen: OpenCounted) -> None:
    storage, book = reopen()
    for user, name, size in (("alice", "a", 1), ("alice", "d/b", 20), ("bob", "d/c", 300), ("bob", "gone", 4000)):
        put_as(storage, user, name, size)
    put_as(storage, "bob", "a", 50_000)
    storage.move(parse_name("d"), parse_name("e"))
    storage.delete(parse_name("gone"))
    for _ in range(2):
        assert (stored(book), stored(book, "bob")) == ((20, 1), (50_300, 2))
        storage, book = reopen()
    assert_checked(storage)
    assert (stored(book), stored(book, "bob")) == ((20, 1), (50_300, 2))


def test_files_that_came_by_other_means_are_nobodys(reopen: OpenCounted, shm_path: Path) -> None:
    storage, book = reopen()
    (shm_path / "root" / "other").write_bytes(b"other")
    os.utime(shm_path / "root" / "other", (0, 0))
    storage.open_version(parse_name("other"))
    storage.move(parse_name("other"), parse_name("moved"))
    put_as(storage, "alice", "moved", 1)
    assert stored(book) == (1, 1)
    storage, book = reopen()
    assert stored(book) == (1, 1)


def test_files_that_were_removed_by_other_means_are_taken_back_after_the_start(
    reopen: OpenCounted, shm_path: Path
) -> None:
    storage, book = reopen()
    for number in range(600):  # more than a page of them
        put_as(storage, "alice", f"d/{number:03}", 2)
    for number in range(0, 600, 2):
        (shm_path / "root" / "d" / f"{number:03}").unlink()
    assert stored(book) == (1200, 600)
    storage, book = reopen()
    assert_checked(storage)
    assert stored(book) == (600, 300)
    storage, book = reopen()
    assert stored(book) == (600, 300)


@pytest.mark.parametrize("asking", ["stat", "open_version", "delete"])
def test_a_missing_file_is_taken_back_by_who_asks_for_it(reopen: OpenCounted, shm_path: Path, asking: str) -> None:
    storage, book = reopen()
    put_as(storage, "alice", "d/file", 5)
    put_as(storage, "alice", "other", 7)
    (shm_path / "root" / "d" / "file").unlink()
    for _ in range(2):
        with refused(ErrorCode.FILE_NOT_FOUND):
            getattr(storage, asking)(parse_name("d/file"))
        assert stored(book) == (7, 1)


def test_a_name_whose_file_was_removed_by_other_means_can_be_published_anew(
    reopen: OpenCounted, shm_path: Path
) -> None:
    storage, book = reopen()
    put_as(storage, "bob", "file", 5)
    put_as(storage, "bob", "d/target/x", 11)
    (shm_path / "root" / "file").unlink()
    put_as(storage, "alice", "file", 3)
    assert (stored(book, "bob"), stored(book)) == ((11, 1), (3, 1))
    (shm_path / "root" / "d" / "target" / "x").unlink()
    (shm_path / "root" / "d" / "target").rmdir()
    put_as(storage, "alice", "source/x", 2)
    storage.move(parse_name("source"), parse_name("d/target"))
    for _ in range(2):
        assert (stored(book, "bob"), stored(book)) == (NOTHING, (5, 2))
        storage, book = reopen()


def test_a_file_changed_in_place_stays_its_owners_with_the_size_it_has(reopen: OpenCounted, shm_path: Path) -> None:
    storage, book = reopen()
    put_as(storage, "alice", "file", 5)
    (shm_path / "root" / "file").write_bytes(bytes(50))
    os.utime(shm_path / "root" / "file", (1, 1))
    storage._manifests._now_ns = lambda: 2**62  # it has rested long enough to be believed
    storage.open_version(parse_name("file"))
    for _ in range(2):
        assert stored(book) == (50, 1)
        storage, book = reopen()


def test_a_full_disk_does_not_make_deletions_inexact(
    reopen: OpenCounted, shm_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, book = reopen()
    put_as(storage, "alice", "a", 5)
    put_as(storage, "alice", "b", 6)
    catalogue = storage._catalogue
    transact = catalogue._transact

    def fail(work: Callable[[], object], ending: str = "COMMIT") -> object:
        if ending == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return transact(work, ending)

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "_transact", fail)
        storage.delete(parse_name("a"))
        with refused(ErrorCode.FILE_NOT_FOUND):
            storage.delete(parse_name("a"))
        storage.delete(parse_name("b"))
        assert stored(book) == NOTHING
    put_as(storage, "alice", "b", 1)
    assert stored(book) == (1, 1)
    _, book = reopen()
    assert stored(book) == (1, 1)

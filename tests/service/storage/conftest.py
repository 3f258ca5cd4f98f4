"""The storages under test and the small words that tests about them are written in."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.segments import Layout, Manifest, digest_of
from twinport_service.storage.contract import (
    ALWAYS,
    SMALL_BYTES,
    Entry,
    Precondition,
    Published,
    Storage,
    UploadSpec,
    VersionInfo,
    WholeFile,
)
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage

OUTCOME_SECONDS = 30.0
_serial = itertools.count(1)


def make_spec(
    name: str,
    size: int,
    *,
    precondition: Precondition = ALWAYS,
    upload_id: bytes | None = None,
    mtime_ns: int | None = 1_700_000_000_123_456_789,
    executable: bool = False,
) -> UploadSpec:
    """An upload of its own."""
    upload_id = upload_id or next(_serial).to_bytes(16, "little")
    return UploadSpec(upload_id, "alice", parse_name(name), size, mtime_ns, executable, precondition)


@contextmanager
def refused(code: ErrorCode) -> Iterator[None]:
    """What happens within is refused with that code."""
    with pytest.raises(Refusal) as caught:
        yield
    assert caught.value.code is code


class Outcomes:
    """What commits told, in the order they did."""

    def __init__(self) -> None:
        self._told: queue.Queue[Published | Refusal] = queue.Queue()

    def __call__(self, outcome: Published | Refusal) -> None:
        self._told.put(outcome)

    def next(self) -> Published | Refusal:
        """The next outcome."""
        return self._told.get(timeout=OUTCOME_SECONDS)

    @property
    def are_all_told(self) -> bool:
        """Whether none is left to be taken."""
        return self._told.empty()


def stage(storage: Storage, spec: UploadSpec, data: bytes) -> Manifest:
    """Begin an upload and put all its bytes."""
    storage.begin(spec)
    layout = Layout.of(len(data))
    digests = []
    for segment in range(layout.count):
        start = layout.start(segment)
        piece = data[start : start + layout.length(segment)]
        half = len(piece) // 2
        for offset, part in ((0, piece[:half]), (half, piece[half:])):
            if part:
                storage.put_piece(spec.upload_id, 1, segment, offset, part)
        digests.append(digest_of(piece))
        storage.seal_segment(spec.upload_id, 1, segment, digests[-1])
    return Manifest(len(data), b"".join(digests))


def commit_staged(storage: Storage, spec: UploadSpec, data: bytes) -> Published | Refusal:
    """A staged upload from its beginning to its outcome."""
    outcomes = Outcomes()
    storage.commit(spec, stage(storage, spec, data), outcomes)
    return outcomes.next()


def commit_small(storage: Storage, spec: UploadSpec, data: bytes) -> Published | Refusal:
    """A small upload from its beginning to its outcome."""
    outcomes = Outcomes()
    storage.commit_small(spec, data, digest_of(data), outcomes)
    return outcomes.next()


def commit_bundle(storage: Storage, files: Sequence[tuple[UploadSpec, bytes]]) -> list[Published | Refusal]:
    """Small files handed over at once, to their outcomes, in their order."""
    outcomes = [Outcomes() for _ in files]
    storage.commit_small_files(
        [
            WholeFile(spec, memoryview(data), digest_of(data), told)
            for (spec, data), told in zip(files, outcomes, strict=True)
        ]
    )
    told = [each.next() for each in outcomes]
    assert all(each.are_all_told for each in outcomes)
    return told


def commit_bundled(storage: Storage, spec: UploadSpec, data: bytes) -> Published | Refusal:
    """A bundle of one file."""
    return commit_bundle(storage, [(spec, data)])[0]


def put(
    storage: Storage,
    name: str,
    data: bytes = b"",
    *,
    precondition: Precondition = ALWAYS,
    executable: bool = False,
    mtime_ns: int | None = 1_700_000_000_123_456_789,
) -> Published:
    """A file, there."""
    spec = make_spec(name, len(data), precondition=precondition, executable=executable, mtime_ns=mtime_ns)
    outcome = (commit_small if len(data) <= SMALL_BYTES else commit_staged)(storage, spec, data)
    assert isinstance(outcome, Published), outcome
    return outcome


def read(storage: Storage, token: bytes, size: int) -> bytes:
    """The bytes of a version, read in uneven pieces."""
    reader = storage.open_reader(token)
    try:
        data = bytearray()
        buffer = bytearray(100_003)
        while count := reader.read_into(len(data), buffer):
            data += buffer[:count]
        assert len(data) == size
        return bytes(data)
    finally:
        reader.close()


def get(storage: Storage, name: str) -> tuple[VersionInfo, bytes]:
    """The current version of a file and its bytes."""
    version = storage.open_version(parse_name(name))
    return version, read(storage, version.token, version.size)


def list_all(storage: Storage, prefix: str = "", *, recursive: bool = True, limit: int = 1000) -> list[Entry]:
    """A whole listing, page by page."""
    entries: list[Entry] = []
    after = ""
    while True:
        page = storage.list(prefix, after, limit, recursive)
        entries += page.entries
        assert len(page.entries) <= limit
        if not page.more:
            return entries
        assert page.entries, "a page that says that there is more must not be empty"
        after = page.entries[-1].key


@pytest.fixture(params=["memory", "tmpfs", "disk"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, shm_path: Path) -> Iterator[Storage]:
    """Each implementation, empty and started."""
    made: Storage
    if request.param == "memory":
        made = MemoryStorage()
    else:
        made = LocalStorage((shm_path if request.param == "tmpfs" else tmp_path) / "root")
    made.start({})
    try:
        yield made
    finally:
        made.close()


OpenLocal = Callable[..., LocalStorage]


@pytest.fixture
def open_local() -> Iterator[OpenLocal]:
    """Opens local storages, started unless told otherwise, and closes those that are still open in the end."""
    opened: list[LocalStorage] = []

    def open_one(root: Path, *arguments: object, **options: object) -> LocalStorage:
        made = LocalStorage(root, *arguments, **options)  # type: ignore[arg-type]
        opened.append(made)
        made.start({})
        return made

    yield open_one
    for made in opened:
        made.close()

"""The upload desk at its narrow places: another node acts between two steps of this one, and storages fail."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import AckStatus
from twinport_protocol.names import parse_name
from twinport_protocol.segments import MIN_SEGMENT_BYTES, Manifest, digest_of
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import Buffer, OnDone, OnProgress, Published, UploadSpec
from twinport_service.storage.memory import MemoryStorage
from twinport_service.upload_handle import UploadHandle
from twinport_service.uploads import UploadDesk

from tests.service.raw_client import await_true, root_of_data

UPLOAD = b"u" * 16
USER = "anonymous"


class ScriptedLedger(MemoryLedger):
    """Another node acts right after this one asked whether it may still write."""

    between: Callable[[], None] | None = None

    def check(self, upload_id: bytes, generation: int) -> None:
        """See the contract."""
        super().check(upload_id, generation)
        if self.between is not None:
            act, self.between = self.between, None
            act()


class FailingStorage(MemoryStorage):
    """Fails where it is told to."""

    refusal: Refusal | None = None
    crash: Exception | None = None

    def _fail(self) -> None:
        if self.crash is not None:
            raise self.crash
        if self.refusal is not None:
            raise self.refusal

    def put_piece(self, upload_id: bytes, writer: int, segment: int, offset: int, data: Buffer) -> None:
        """See the contract."""
        self._fail()
        super().put_piece(upload_id, writer, segment, offset, data)

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """See the contract."""
        self._fail()
        super().commit(spec, manifest, on_done, on_progress)

    def commit_small(self, spec: UploadSpec, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """See the contract."""
        self._fail()
        super().commit_small(spec, data, digest, on_done)


def spec_of(size: int) -> UploadSpec:
    """An upload of that size."""
    return UploadSpec(UPLOAD, USER, parse_name("x"), size)


def send(handle: UploadHandle, data: bytes, segment: int = 0) -> AckStatus:
    """One segment in one piece."""
    assert handle.begin_piece(segment, 0, len(data), last=True)
    handle.write(segment, 0, data)
    return handle.end_piece(segment, digest_of(data))


def read(storage: MemoryStorage) -> bytes:
    """The published file."""
    version = storage.open_version(parse_name("x"))
    buffer = bytearray(version.size)
    storage.open_reader(version.token).read_into(0, buffer)
    return bytes(buffer)


def test_a_holder_that_is_fenced_while_it_seals_spoils_nothing() -> None:
    storage, ledger = MemoryStorage(), ScriptedLedger()
    here, there = UploadDesk(storage, ledger), UploadDesk(storage, ledger)
    stale, data = os.urandom(1_000_000), os.urandom(1_000_000)
    here.open(spec_of(len(data)))
    old = here.attach(UPLOAD, 1, USER)
    old.begin_piece(0, 0, len(stale), last=True)
    old.write(0, 0, stale)

    def take_over() -> None:
        there.resume(USER, UPLOAD, parse_name("x"), len(data))
        assert send(there.attach(UPLOAD, 2, USER), data) is AckStatus.SEALED

    ledger.between = take_over
    with pytest.raises(Refusal) as refused:
        old.end_piece(0, digest_of(stale))
    assert refused.value.code is ErrorCode.FENCED
    outcomes: list[Published | Refusal] = []
    there.committer.commit(USER, UPLOAD, 2, digest_of(data), outcomes.append)
    assert isinstance(outcomes[0], Published)
    assert read(storage) == data


def test_two_nodes_that_seal_one_segment_at_once_publish_the_copy_that_was_first() -> None:
    storage, ledger = MemoryStorage(), ScriptedLedger()
    here, there = UploadDesk(storage, ledger), UploadDesk(storage, ledger)
    late, data = os.urandom(1_000_000), os.urandom(1_000_000)
    here.open(spec_of(len(data)))
    mine, theirs = here.attach(UPLOAD, 1, USER), there.attach(UPLOAD, 1, USER)
    mine.begin_piece(0, 0, len(late), last=True)
    mine.write(0, 0, late)
    sealed: list[AckStatus] = []
    ledger.between = lambda: sealed.append(send(theirs, data))
    assert mine.end_piece(0, digest_of(late)) is AckStatus.DUPLICATE
    assert sealed == [AckStatus.SEALED]
    outcomes: list[Published | Refusal] = []
    here.committer.commit(USER, UPLOAD, 1, digest_of(data), outcomes.append)
    assert isinstance(outcomes[0], Published)
    assert read(storage) == data


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_storage_that_fails_at_publication_leaves_the_upload_open_or_gone(size: int) -> None:
    storage, ledger = FailingStorage(), MemoryLedger()
    desk = UploadDesk(storage, ledger)
    data = os.urandom(size)
    outcomes: list[Published | Refusal] = []

    def commit() -> ErrorCode | None:
        handle = desk.attach(UPLOAD, 1, USER)
        if handle.takes_whole(size):
            handle.commit_whole(data, digest_of(data), outcomes.append)
        else:
            handle.commit(digest_of(data), outcomes.append)
        outcome = outcomes.pop()
        assert not outcomes
        return outcome.code if isinstance(outcome, Refusal) else None

    if size == 1000:
        desk.open_small(spec_of(size))
    else:
        desk.open(spec_of(size))
        send(desk.attach(UPLOAD, 1, USER), data)
    storage.refusal = Refusal(ErrorCode.STORAGE_FAULT, "the disk said no")
    assert commit() is ErrorCode.STORAGE_FAULT
    storage.refusal = None
    for storage.crash in (OSError("a bug"), None):
        if size == 1000:  # of a small one nothing is kept
            assert not ledger.open_uploads()
            desk.open_small(spec_of(size))
        if storage.crash is not None:
            assert commit() is ErrorCode.INTERNAL
    assert commit() is None
    assert read(storage) == data
    assert not ledger.open_uploads()


def test_a_full_disk_in_mid_upload_forgets_the_upload() -> None:
    storage, ledger = FailingStorage(), MemoryLedger()
    desk = UploadDesk(storage, ledger)
    desk.open(spec_of(1_000_000))
    handle = desk.attach(UPLOAD, 1, USER)
    handle.begin_piece(0, 0, 10, last=False)
    storage.refusal = Refusal(ErrorCode.DISK_FULL)
    with pytest.raises(Refusal) as refused:
        handle.write(0, 0, b"0123456789")
    assert refused.value.code is ErrorCode.DISK_FULL
    with pytest.raises(Refusal) as refused:
        handle.begin_piece(0, 0, 10, last=False)
    assert refused.value.code is ErrorCode.UPLOAD_UNKNOWN
    assert not ledger.open_uploads()
    handle.detach()
    assert desk.table.find(UPLOAD) is None


def test_no_handle_of_an_upload_whose_bytes_were_lost_writes_into_the_one_that_has_its_id_next() -> None:
    storage, ledger = FailingStorage(), MemoryLedger()
    desk = UploadDesk(storage, ledger)
    data = os.urandom(2 * MIN_SEGMENT_BYTES)
    parts = data[:MIN_SEGMENT_BYTES], data[MIN_SEGMENT_BYTES:]
    desk.open(spec_of(len(data)))
    unlucky, old = desk.attach(UPLOAD, 1, USER), desk.attach(UPLOAD, 1, USER)
    for segment, handle in enumerate((unlucky, old)):
        handle.begin_piece(segment, 0, 1000, last=False)
        handle.write(segment, 0, parts[segment][:500])
    storage.refusal = Refusal(ErrorCode.DISK_FULL)
    with pytest.raises(Refusal):
        unlucky.write(0, 500, parts[0][500:1000])
    storage.refusal = None
    storage.abort(UPLOAD)
    desk.open(spec_of(len(data)))
    for segment, part in enumerate(parts):
        assert send(desk.attach(UPLOAD, 1, USER), part, segment) is AckStatus.SEALED
    with pytest.raises(Refusal) as refused:
        old.write(1, 500, b"Z" * 500)
    assert refused.value.code is ErrorCode.UPLOAD_CLOSED
    outcomes: list[Published | Refusal] = []
    desk.committer.commit(USER, UPLOAD, 1, root_of_data(data), outcomes.append)
    assert isinstance(outcomes[0], Published), outcomes
    assert read(storage) == data


def test_a_finished_upload_is_told_to_its_user_alone_and_under_its_root_alone() -> None:
    storage, ledger = MemoryStorage(), MemoryLedger()
    desk = UploadDesk(storage, ledger)
    data = os.urandom(1_000_000)
    desk.open(spec_of(len(data)))
    send(desk.attach(UPLOAD, 1, USER), data)
    outcomes: list[Published | Refusal] = []
    for user, root in ((USER, digest_of(data)), ("mallory", digest_of(data)), (USER, bytes(32))):
        desk.committer.commit(user, UPLOAD, 1, root, outcomes.append)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [
        None,
        ErrorCode.UPLOAD_UNKNOWN,
        ErrorCode.ROOT_MISMATCH,
    ]
    name = parse_name("x")
    assert isinstance(desk.resume(USER, UPLOAD, name, len(data)), Published)
    for user, asked in (("mallory", "x"), (USER, "y")):
        with pytest.raises(Refusal) as refused:
            desk.resume(user, UPLOAD, parse_name(asked), len(data))
        assert refused.value.code is ErrorCode.UPLOAD_UNKNOWN
    with pytest.raises(Refusal) as refused:
        desk.open(UploadSpec(UPLOAD, "mallory", name, len(data)))
    assert refused.value.code is ErrorCode.DENIED


def test_a_commit_that_waits_for_another_one_is_answered_for_its_own_root() -> None:
    held: list[Callable[[], None]] = []

    class Late(MemoryStorage):
        def commit(
            self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
        ) -> None:
            held.append(functools.partial(super().commit, spec, manifest, on_done, on_progress))

    desk = UploadDesk(Late(), MemoryLedger())
    data = os.urandom(1_000_000)
    desk.open(spec_of(len(data)))
    send(desk.attach(UPLOAD, 1, USER), data)
    outcomes: list[Published | Refusal] = []
    for root in (digest_of(data), bytes(32)):
        desk.committer.commit(USER, UPLOAD, 1, root, outcomes.append)
    held.pop()()
    assert isinstance(outcomes[0], Published)
    assert isinstance(outcomes[1], Refusal)
    assert outcomes[1].code is ErrorCode.ROOT_MISMATCH


def test_whoever_waits_for_a_commit_that_fails_is_told() -> None:
    ledger = MemoryLedger()
    held: list[Callable[[], None]] = []

    class Late(MemoryStorage):
        def commit(
            self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
        ) -> None:
            held.append(lambda: on_done(Refusal(ErrorCode.STORAGE_FAULT)))

    desk = UploadDesk(Late(), ledger)
    data = os.urandom(1_000_000)
    desk.open(spec_of(len(data)))
    send(desk.attach(UPLOAD, 1, USER), data)
    outcomes: list[Published | Refusal] = []
    desk.committer.commit(USER, UPLOAD, 1, digest_of(data), outcomes.append)
    desk.committer.commit(USER, UPLOAD, 1, digest_of(data), outcomes.append)
    with pytest.raises(Refusal) as refused:
        desk.abort(USER, UPLOAD, 1)
    assert refused.value.code is ErrorCode.UPLOAD_CLOSED
    assert not outcomes
    held.pop()()
    assert [outcome.code for outcome in outcomes if isinstance(outcome, Refusal)] == [ErrorCode.STORAGE_FAULT] * 2
    assert not held, "one publication for both"
    desk.abort(USER, UPLOAD, 1)
    assert not ledger.open_uploads()


def test_the_sweep_takes_what_nobody_moved_and_nobody_is_attached_to() -> None:
    now = 1000.0
    storage, ledger = MemoryStorage(), MemoryLedger(now=lambda: now)
    desk = UploadDesk(storage, ledger)
    ids = [bytes((number,)) * 16 for number in range(3)]
    for upload_id in ids:
        desk.open(UploadSpec(upload_id, USER, parse_name("x"), 2 * MIN_SEGMENT_BYTES))
    attached = desk.attach(ids[0], 1, USER)
    now = 2000.0
    desk.resume(USER, ids[1], parse_name("x"), 2 * MIN_SEGMENT_BYTES)
    assert desk.sweep(older_than=1500.0) == 1
    assert {record.spec.upload_id for record in ledger.open_uploads()} == {ids[0], ids[1]}
    attached.detach()
    assert desk.sweep(older_than=1500.0) == 1
    assert set(storage._stagings) == {ids[1]}


def test_two_channels_that_send_the_first_pieces_of_a_late_upload_begin_it_once() -> None:
    class Slow(MemoryStorage):
        """A beginning lasts as long as it is told."""

        def __init__(self) -> None:
            super().__init__()
            self.begun: list[bytes] = []
            self.go_on = threading.Event()

        def begin(self, spec: UploadSpec) -> None:
            """See the contract."""
            self.begun.append(spec.upload_id)
            assert self.go_on.wait(30)
            super().begin(spec)

    storage = Slow()
    desk = UploadDesk(storage, MemoryLedger())
    desk.open(UploadSpec(UPLOAD, USER, parse_name("file"), 2 * MIN_SEGMENT_BYTES), reserve=False)
    assert not storage.begun
    handles = [desk.attach(UPLOAD, 1, USER) for _ in range(2)]
    threads = [
        threading.Thread(target=handle.begin_piece, args=(segment, 0, 10), kwargs={"last": False})
        for segment, handle in enumerate(handles)
    ]
    for thread in threads:
        thread.start()
    segments = handles[0]._upload.segments
    await_true(lambda: len(segments) == 2 and all(state.lock.locked() for state in segments.values()))
    storage.go_on.set()
    for thread in threads:
        thread.join()
    assert storage.begun == [UPLOAD]

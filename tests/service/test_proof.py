"""After a restart sealed segments are hashed again: once, whoever asks, and no further than the server lives."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import AckStatus
from twinport_protocol.names import parse_name
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import UploadSpec
from twinport_service.storage.memory import MemoryStorage
from twinport_service.upload_handle import UploadHandle
from twinport_service.uploads import UploadDesk

from tests.service.raw_client import await_true

UPLOAD = b"u" * 16
USER = "anonymous"
SEGMENTS = [os.urandom(MIN_SEGMENT_BYTES), os.urandom(MIN_SEGMENT_BYTES), b"rest"]
SPEC = UploadSpec(UPLOAD, USER, parse_name("x"), sum(map(len, SEGMENTS)))


class WatchedStorage(MemoryStorage):
    """Counts how often the hashing of each segment begins, and does at the first byte of one what it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: Counter[int] = Counter()
        self.at: dict[int, Callable[[], None]] = {}

    def read_staged(self, upload_id: bytes, segment: int, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        if offset == 0:
            self.begun[segment] += 1
            act = self.at.get(segment)
            if act is not None:
                act()
        return super().read_staged(upload_id, segment, offset, buffer)


def send(handle: UploadHandle, segment: int) -> AckStatus:
    """One segment in one piece."""
    data = SEGMENTS[segment]
    assert handle.begin_piece(segment, 0, len(data), last=True)
    handle.write(segment, 0, data)
    return handle.end_piece(segment, digest_of(data))


@pytest.fixture
def storage() -> WatchedStorage:
    """A storage that holds the whole upload."""
    return WatchedStorage()


@pytest.fixture
def desk(storage: WatchedStorage) -> UploadDesk:
    """A desk after a restart: all segments were sealed before it."""
    ledger = MemoryLedger()
    before = UploadDesk(storage, ledger)
    before.recover()
    before.open(SPEC)
    handle = before.attach(UPLOAD, 1, USER)
    for segment in range(3):
        assert send(handle, segment) is AckStatus.SEALED
    assert [held.segment for held in handle.have()] == [0, 1, 2]
    assert not storage.begun, "this process saw them come"
    after = UploadDesk(storage, ledger)
    after.recover()
    return after


def test_many_who_ask_at_once_share_one_pass(desk: UploadDesk, storage: WatchedStorage) -> None:
    go = threading.Event()
    storage.at[1] = lambda: assert_true(go.wait(30))
    handles = [desk.attach(UPLOAD, 1, USER) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(handle.have) for handle in handles]
        await_true(lambda: storage.begun[1] > 0)
        go.set()
        answers = [[held.segment for held in future.result(30)] for future in asked]
    assert answers == [[0, 1, 2]] * 4
    assert desk.attach(UPLOAD, 1, USER).have()
    assert storage.begun == {0: 1, 1: 1, 2: 1}


def test_who_asks_again_finds_the_work_that_was_done(desk: UploadDesk, storage: WatchedStorage) -> None:
    def fail() -> None:
        raise Refusal(ErrorCode.STORAGE_FAULT)

    storage.at[1] = fail
    handle = desk.attach(UPLOAD, 1, USER)
    with pytest.raises(Refusal):
        handle.have()
    del storage.at[1]
    assert [held.segment for held in handle.have()] == [0, 1, 2]
    assert storage.begun == {0: 1, 1: 2, 2: 1}


def test_a_segment_that_is_lost_and_sent_again_meanwhile_is_not_unsealed(
    desk: UploadDesk, storage: WatchedStorage
) -> None:
    """Two passes at once would both find it lost, the second after it was sealed anew."""
    storage.put_piece(UPLOAD, next(iter(storage._stagings[UPLOAD].pieces))[1], 0, 5, b"damage")
    go, second_begun = threading.Event(), threading.Event()
    first, second = desk.attach(UPLOAD, 1, USER), desk.attach(UPLOAD, 1, USER)
    storage.at[2] = lambda: assert_true(go.wait(30))

    def ask_second() -> list[int]:
        second_begun.set()
        return [held.segment for held in second.have()]

    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(lambda: [held.segment for held in first.have()])
        await_true(lambda: storage.begun[2] > 0)  # segment 0 was found lost by now
        later = pool.submit(ask_second)
        assert second_begun.wait(30)
        assert send(first, 0) is AckStatus.SEALED
        go.set()
        assert asked.result(30) == [0, 1, 2]
        assert later.result(30) == [0, 1, 2]
    assert set(desk.ledger.sealed(UPLOAD)) == {0, 1, 2}
    assert storage.begun[0] == 1


def test_hashing_ends_with_the_server(desk: UploadDesk, storage: WatchedStorage) -> None:
    storage.at[1] = desk.interrupt
    handle = desk.attach(UPLOAD, 1, USER)
    with pytest.raises(Refusal) as caught:
        handle.have()
    assert caught.value.code is ErrorCode.SHUTTING_DOWN
    assert storage.begun == {0: 1, 1: 1}


def assert_true(value: bool) -> None:
    """For lambdas."""
    assert value

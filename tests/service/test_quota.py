"""Quotas over the wire: hard, given back in full, shown by QUOTA, and the same for both dialects."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_service.embedded import OWN_DIRECTORY
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.ledger_sqlite import SqliteLedger
from twinport_service.quota import UNLIMITED, Quota
from twinport_service.storage.contract import SMALL_BYTES
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.usage import UsageBook

from tests.service.classic.reference_client import ReferenceClient, ServerError
from tests.service.conftest import KEYS, StartServer
from tests.service.raw_client import (
    RawChannel,
    RawControl,
    await_true,
    many,
    parts_of,
    root_of_data,
    run_all,
    send_file,
)
from tests.service.running_server import RunningServer

MIB = 1024 * 1024
MakeId = Callable[[], bytes]


class Office:
    """Where quotas are set."""

    def __init__(self) -> None:
        self.quota = UNLIMITED

    def __call__(self, user: str) -> Quota:
        assert user == "anonymous"
        return self.quota


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.fixture
def foundation(storage_kind: str, root: Path, office: Office) -> Foundation:
    """What a server stands on, with the quota of the office."""
    usage = UsageBook(office)
    if storage_kind == "memory":
        return Foundation(MemoryStorage(usage=usage), MemoryLedger(usage=usage), KEYS)
    storage = LocalStorage(root, usage=usage)
    return Foundation(storage, SqliteLedger(root / OWN_DIRECTORY / "ledger.db", usage=usage), KEYS)


@pytest.fixture
def server(start_server: StartServer, foundation: Foundation) -> RunningServer:
    return start_server(foundation)


def shown(control: RawControl) -> dict[str, str]:
    """What QUOTA says, but for the user."""
    reply = control.ask(Verb.QUOTA)
    assert reply.kind is ReplyKind.OK, reply
    options = dict(reply.options)
    assert options.pop("user") == "anonymous"
    return options


def held(control: RawControl) -> tuple[int, int, int, int]:
    """Bytes, files, reserved bytes, open uploads."""
    options = shown(control)
    return tuple(int(options[key]) for key in ("bytes", "files", "reserved-bytes", "open-uploads"))  # type: ignore[return-value]


def ask_upload(control: RawControl, name: str, size: int, upload_id: bytes, **options: str) -> Reply:
    """UPLOAD and its reply."""
    return control.ask(Verb.UPLOAD, name, str(size), options={"upload": upload_id.hex(), **options})


def test_quota_shows_what_is_stored_reserved_and_allowed(
    control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office
) -> None:
    assert shown(control) == {"bytes": "0", "files": "0", "reserved-bytes": "0", "open-uploads": "0"}
    office.quota = Quota(10 * MIB, 7)
    send_file(control, channel, "small", b"12345", upload_id())
    send_file(control, channel, "d/large", bytes(SMALL_BYTES + 1), upload_id())
    control.upload("open", 1000, upload_id())
    assert shown(control) == {
        "bytes": str(SMALL_BYTES + 6),
        "files": "2",
        "reserved-bytes": "1000",
        "open-uploads": "1",
        "max-bytes": str(10 * MIB),
        "max-files": "7",
    }


@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1, MIN_SEGMENT_BYTES + 1])
def test_of_ten_uploads_at_once_exactly_as_many_succeed_as_fit(
    server: RunningServer, upload_id: MakeId, office: Office, size: int
) -> None:
    office.quota = Quota(5 * size, None)
    data = os.urandom(size)
    start = threading.Barrier(10)

    def upload(number: int) -> ErrorCode | None:
        with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
            start.wait()
            asked = control.start(Verb.UPLOAD, f"x{number}", str(size), options={"upload": (mine := upload_id()).hex()})
            code = control.finish(asked)[-1].code
            start.wait()  # nobody begins when another is through
            if code is None:
                outcome = send_file(control, channel, f"x{number}", data, mine)
                assert outcome is AckStatus.COMMITTED or (isinstance(outcome, Reply) and outcome.code is None)
            return code

    codes = run_all([lambda number=number: upload(number) for number in range(10)])  # type: ignore[misc]
    assert sorted(str(code) for code in codes) == sorted([str(None)] * 5 + [str(ErrorCode.QUOTA_EXCEEDED)] * 5)
    with RawControl(server.control_address) as control:
        assert len(control.names()) == 5
        assert held(control) == (5 * size, 5, 0, 0)
        assert ask_upload(control, "one byte more", 1, upload_id()).code is ErrorCode.QUOTA_EXCEEDED


@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1, MIN_SEGMENT_BYTES + 1])
def test_what_ends_without_a_file_gives_all_back(
    server: RunningServer, control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office, size: int
) -> None:
    office.quota = Quota(3 * size + 1, 3)
    data = os.urandom(size)
    send_file(control, channel, "file", data, upload_id())
    aborted = control.upload("aborted", size, upload_id())
    attachment = channel.attach_next(aborted.ticket)
    channel.put(attachment, 0, 0, data[:100])
    assert channel.acknowledged() is AckStatus.RECEIVED
    assert held(control) == (size, 1, size, 1)
    control.ask(Verb.ABORT, aborted.upload_id.hex())
    assert held(control) == (size, 1, 0, 0)
    # Open at the same time, so that the second commit comes too late.
    late = [(upload_id(), data), (upload_id(), data + b"x")]
    for mine, content in late:
        assert ask_upload(control, "new", len(content), mine, **{"if-absent": "1"}).code is None
    assert held(control) == (size, 1, 2 * size + 1, 2)
    with RawChannel(server.data_address) as other:  # closed afterwards: who is attached is not swept
        outcomes = [send_file(control, other, "new", content, mine, {"if-absent": "1"}) for mine, content in late]
    codes = [outcome.code if isinstance(outcome, Reply) else outcome for outcome in outcomes]
    assert codes[1] is ErrorCode.EXISTS
    if size <= SMALL_BYTES:
        assert held(control) == (2 * size, 2, 0, 0)
    else:  # it can be committed under another circumstance, and is kept for that
        assert held(control) == (2 * size, 2, size + 1, 1)
        await_true(lambda: server.server._desk.sweep(time.time() + 1) == 1, what="the sweep")
        assert held(control) == (2 * size, 2, 0, 0)
    # A staging that the storage refuses at once.
    assert ask_upload(control, "file/below", size, upload_id()).code in (None, ErrorCode.NAME_CONFLICT)
    server.server._desk.sweep(time.time() + 1)
    assert held(control) == (2 * size, 2, 0, 0)


def test_replacing_moving_and_deleting_over_the_wire(
    control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office
) -> None:
    office.quota = Quota(100, None)
    send_file(control, channel, "a", bytes(60), upload_id())
    assert ask_upload(control, "a", 60, upload_id()).code is ErrorCode.QUOTA_EXCEEDED  # both versions are there at once
    send_file(control, channel, "a", bytes(40), upload_id())
    send_file(control, channel, "b", bytes(60), upload_id())
    assert held(control) == (100, 2, 0, 0)
    control.ask(Verb.MOVE, "b", "a")
    assert held(control) == (60, 1, 0, 0)
    control.ask(Verb.DELETE, "a")
    assert held(control) == (0, 0, 0, 0)


def test_a_small_file_that_is_sent_twice_under_one_id_counts_once(
    control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office
) -> None:
    office.quota = Quota(100, None)
    mine = upload_id()
    for _ in range(3):
        assert send_file(control, channel, "a", bytes(50), mine) is AckStatus.COMMITTED
        assert held(control) == (50, 1, 0, 0)


def test_a_lowered_quota_lets_the_open_upload_end_and_the_next_not_begin(
    control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office
) -> None:
    upload = control.upload("open", 1000, upload_id())
    office.quota = Quota(10, 0)
    attachment = channel.attach_next(upload.ticket)
    assert channel.put_segment(attachment, 0, bytes(1000), commit=True) is AckStatus.COMMITTED
    assert ask_upload(control, "next", 0, upload_id()).code is ErrorCode.QUOTA_EXCEEDED


def test_a_resume_needs_no_room_for_a_second_copy(
    control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office
) -> None:
    data = os.urandom(2 * MIN_SEGMENT_BYTES)
    size = len(data)
    office.quota = Quota(size + 10, None)
    first = control.upload("file", size, upload_id())
    attachment = channel.attach_next(first.ticket)
    assert channel.put_segment(attachment, 0, parts_of(data)[0]) is AckStatus.SEALED
    second = control.upload("file", size, upload_id())
    assert second.resumable == first.upload_id
    assert held(control) == (0, 0, size, 1)
    # Who sends all of it anew needs the room, is told so, and is not out of step.
    attachment = channel.attach_next(second.ticket)
    assert channel.put_segment(attachment, 0, parts_of(data)[0]) is ErrorCode.QUOTA_EXCEEDED
    assert held(control) == (0, 0, size, 1)
    third = control.upload("file", size, upload_id())
    assert third.resumable == first.upload_id  # not the second, which holds nothing
    resumed = control.resume("file", size, first.upload_id)
    attachment = channel.attach_next(resumed.ticket)
    assert [record.segment for record in channel.have(attachment)] == [0]  # type: ignore[union-attr]
    assert channel.put_segment(attachment, 1, parts_of(data)[1]) is AckStatus.SEALED
    assert control.commit(resumed, root_of_data(data)).kind is ReplyKind.DONE
    assert held(control) == (size, 1, 0, 0)


def test_an_upload_without_room_gets_it_with_its_first_piece_from_whichever_channel(
    server: RunningServer, control: RawControl, upload_id: MakeId, office: Office
) -> None:
    data = os.urandom(3 * MIN_SEGMENT_BYTES)
    size = len(data)
    office.quota = Quota(2 * size, None)
    control.upload("file", size, upload_id())
    second = control.upload("file", size, upload_id())
    assert second.resumable is not None
    assert held(control) == (0, 0, size, 1)
    start = threading.Barrier(3)

    def send(segment: int) -> int | ErrorCode:
        with RawChannel(server.data_address) as channel:
            attachment = channel.attach_next(second.ticket)
            start.wait()
            return channel.put_segment(attachment, segment, parts_of(data)[segment])

    sealed = run_all([lambda segment=segment: send(segment) for segment in range(3)])  # type: ignore[misc]
    assert sealed == [AckStatus.SEALED] * 3
    assert held(control) == (0, 0, 2 * size, 2)
    assert control.commit(second, root_of_data(data)).kind is ReplyKind.DONE
    assert held(control) == (size, 1, size, 1)
    assert server.live_uploads() == server.staged_uploads()


def test_an_upload_asked_for_many_times_at_once_is_staged_once(
    server: RunningServer, upload_id: MakeId, office: Office
) -> None:
    size = SMALL_BYTES + 1
    office.quota = Quota(size, 1)
    for _ in range(10):
        mine = upload_id()
        start = threading.Barrier(6)

        def meddle(number: int, mine: bytes = mine, start: threading.Barrier = start) -> None:
            with RawControl(server.control_address) as control:
                start.wait()
                for _ in range(3):
                    ask_upload(control, "file", size, mine)
                    if number % 2:
                        control.ask(Verb.ABORT, mine.hex())

        run_all([lambda number=number: meddle(number) for number in range(6)])  # type: ignore[misc]
        with RawControl(server.control_address) as control:
            control.ask(Verb.ABORT, mine.hex())
            assert held(control) == (0, 0, 0, 0)
        assert server.live_uploads() == server.staged_uploads() == set()


def test_a_small_file_in_pieces_on_one_channel_and_whole_on_another_leaves_nothing_behind(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    data = os.urandom(2000)
    for round_ in range(20):
        upload = control.upload("file", len(data), upload_id())
        with RawChannel(server.data_address) as one, RawChannel(server.data_address) as other:
            first, second = one.attach_next(upload.ticket), other.attach_next(upload.ticket)
            for offset in range(0, 1000 if round_ % 2 else 100, 100):
                one.put(first, 0, offset, data[offset : offset + 100])
            other.put_segment(second, 0, data, commit=True)
    await_true(lambda: server.staged_uploads() == set(), what="no staging")
    await_true(lambda: held(control)[2:] == (0, 0), what="no reservation")
    assert held(control)[1] <= 1


@pytest.mark.parametrize("size", [1000, SMALL_BYTES, SMALL_BYTES + 1])
def test_a_classic_upload_reserves_before_ok_and_shares_the_account(
    start_server: StartServer, foundation: Foundation, upload_id: MakeId, office: Office, size: int
) -> None:
    server = start_server(foundation, classic=True)
    host, port = server.control_address
    office.quota = Quota(2 * size, None)
    with RawControl(server.control_address) as control:
        first, second = ReferenceClient(host, port), ReferenceClient(host, port)
        with first.begin_upload("one", size) as data:
            assert held(control) == (0, 0, size, 1)
            assert ask_upload(control, "two", size, upload_id()).code is None
            with pytest.raises(ServerError, match="QuotaExceeded"):
                second.begin_upload("three", 1)
            data.sendall(bytes(size))
            assert first.reply() == "DONE"
        assert held(control) == (size, 1, size, 1)
        server.server._desk.sweep(time.time() + 1)
        with first.begin_upload("four", size) as data:
            data.sendall(bytes(size // 2))
        with pytest.raises(ServerError, match="ShortUpload"):
            first.reply()
        await_true(lambda: held(control) == (size, 1, 0, 0), what="the room of the short upload")
        first.upload("one", bytes(size))
        assert held(control) == (size, 1, 0, 0)
        first.quit()
        second.quit()


class Filling(MemoryStorage):
    """Its disk has as much room as is said."""

    free = 10_000_000
    inodes = 10_000

    def free_bytes(self) -> int | None:
        """See the contract."""
        return self.free - sum(staging.spec.size for staging in self._stagings.values())

    def free_files(self) -> int | None:
        """See the contract."""
        return self.inodes - len(self._stagings) - len(self._files) - len(self._directories)


@pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)
@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1])
def test_uploads_leave_the_floor_free(start_server: StartServer, upload_id: MakeId, size: int) -> None:
    storage = Filling()
    server = start_server(replace(Foundation(storage, MemoryLedger(), KEYS), min_free_bytes=1_000_000))
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        storage.free = 1_000_000 + size
        send_file(control, channel, "fits", bytes(size), upload_id())
        storage.free = 1_000_000 + size - 1
        await_true(lambda: server.server._desk.room.is_fresh is False, what="a look at the disk")
        assert ask_upload(control, "not", size, upload_id()).code is ErrorCode.DISK_FULL
        assert held(control)[2:] == (0, 0)
        assert server.staged_uploads() == set()


@pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)
def test_uploads_that_begin_at_once_do_not_pass_the_floor_together(
    start_server: StartServer, upload_id: MakeId
) -> None:
    storage = Filling()
    server = start_server(replace(Foundation(storage, MemoryLedger(), KEYS), min_free_bytes=1_000_000))
    storage.free = 1_000_000 + 5 * MIB
    start = threading.Barrier(10)

    def ask(control: RawControl) -> ErrorCode | None:
        start.wait()
        mine = upload_id()
        return ask_upload(control, mine.hex(), MIB, mine).code

    controls = [RawControl(server.control_address) for _ in range(10)]
    with many(controls):
        codes = run_all([functools.partial(ask, control) for control in controls])
        assert codes.count(None) <= 5
        assert set(codes) <= {None, ErrorCode.DISK_FULL}
        assert (storage.free_bytes() or 0) >= 1_000_000
        assert len(server.live_uploads()) == len(server.staged_uploads()) == codes.count(None)


@pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)
def test_directories_and_files_leave_the_floor_of_inodes_free(start_server: StartServer, upload_id: MakeId) -> None:
    storage = Filling()
    server = start_server(replace(Foundation(storage, MemoryLedger(), KEYS), min_free_files=9_990))
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        send_file(control, channel, "small", b"abc", upload_id())
        send_file(control, channel, "large", bytes(SMALL_BYTES + 1), upload_id())
        for number in range(8):
            assert control.ask(Verb.MKDIR, f"d{number}").kind is ReplyKind.DONE
        await_true(lambda: server.server._desk.room.is_fresh is False, what="a look at the disk")
        assert control.refused(Verb.MKDIR, "one-more") is ErrorCode.DISK_FULL
        for size in (3, SMALL_BYTES + 1):
            assert ask_upload(control, "one-more", size, upload_id()).code is ErrorCode.DISK_FULL
        storage.inodes += 1
        await_true(lambda: server.server._desk.room.is_fresh is False, what="a look at the disk")
        assert control.ask(Verb.MKDIR, "one-more").kind is ReplyKind.DONE
        assert storage.free_files() == 9_990


@pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)
def test_directories_leave_the_floor_of_bytes_free(start_server: StartServer) -> None:
    storage = Filling()
    server = start_server(replace(Foundation(storage, MemoryLedger(), KEYS), min_free_bytes=1_000_000))
    storage.free = 1_000_000
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.MKDIR, "d") is ErrorCode.DISK_FULL


def test_the_digest_of_a_piece_of_a_refused_upload_is_not_taken_for_a_frame(
    control: RawControl, channel: RawChannel, upload_id: MakeId, office: Office
) -> None:
    """What follows on the channel is understood."""
    size = SMALL_BYTES + 1
    first = control.upload("file", 2 * MIN_SEGMENT_BYTES, upload_id())
    second = control.upload("file", 2 * MIN_SEGMENT_BYTES, upload_id())
    assert second.resumable == first.upload_id
    office.quota = Quota(0, 0)
    attachment = channel.attach_next(second.ticket)
    assert channel.put_segment(attachment, 0, bytes(MIN_SEGMENT_BYTES)) is ErrorCode.QUOTA_EXCEEDED
    office.quota = UNLIMITED
    assert send_file(control, channel, "other", bytes(size), upload_id()) is AckStatus.COMMITTED
    assert control.download("other").root == digest_of(bytes(size))

"""Many clients at one name: readers see one whole version, exactly one of those who may not both win does win."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES
from twinport_service.storage.contract import SMALL_BYTES

from tests.service.oracle import Oracle
from tests.service.raw_client import (
    RawChannel,
    RawControl,
    RefusedError,
    fetch_file,
    root_of_data,
    run_all,
    send_file,
)
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
SIZES = [1000, SMALL_BYTES + 1000, MIN_SEGMENT_BYTES + 1000]


def outcome_of(sent: Reply | int | ErrorCode) -> ErrorCode | None:
    """None for a published file, else why it was not."""
    if isinstance(sent, Reply):
        return sent.code
    return sent if isinstance(sent, ErrorCode) else None


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precondition", ["if-absent", "if-match"])
def test_of_many_that_may_not_replace_each_other_exactly_one_wins(
    server: RunningServer,
    control: RawControl,
    oracle: Oracle,
    upload_id: MakeId,
    size: int,
    precondition: str,
) -> None:
    crowd = 6
    barrier = threading.Barrier(crowd)
    options = {"if-absent": "1"}
    if precondition == "if-match":
        with RawChannel(server.data_address) as channel:
            assert send_file(control, channel, "x", b"before", upload_id()) is AckStatus.COMMITTED
        options = {"if-match": root_of_data(b"before").hex()}
    contents = [os.urandom(size) for _ in range(crowd)]

    def send(data: bytes) -> ErrorCode | None:
        with RawControl(server.control_address) as mine, RawChannel(server.data_address) as my_channel:
            number = upload_id()
            opened = mine.upload("x", size, number, options)
            barrier.wait()
            del opened  # the same command again inside: it is repeatable
            return outcome_of(send_file(mine, my_channel, "x", data, number, options))

    outcomes = run_all([lambda data=data: send(data) for data in contents])  # type: ignore[misc]
    loses = ErrorCode.EXISTS if precondition == "if-absent" else ErrorCode.CHANGED
    assert Counter(outcomes) == {None: 1, loses: crowd - 1}
    winner = contents[outcomes.index(None)]
    oracle.sent("x", winner)
    control.close()
    # Who lost keeps an upload that may be tried again; its staging is accounted for.
    oracle.check()


@pytest.mark.parametrize("size", SIZES)
def test_a_precondition_that_fails_changes_nothing(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    old, new = os.urandom(size), os.urandom(size)
    send_file(control, channel, "x", old, upload_id())
    oracle.sent("x", old)
    wrong = {"if-match": root_of_data(new).hex()}
    for name, options, code in (
        ("x", {"if-absent": "1"}, ErrorCode.EXISTS),
        ("x", wrong, ErrorCode.CHANGED),
        ("not there", wrong, ErrorCode.CHANGED),
    ):
        asked = {"upload": upload_id().hex(), **options}
        reply = control.ask(Verb.UPLOAD, name, str(size), options=asked)
        refused = reply.code or outcome_of(send_file(control, channel, name, new, upload_id(), options))
        assert refused is code
    assert control.refused(Verb.DELETE, "x", options=wrong) is ErrorCode.CHANGED
    assert control.refused(Verb.MOVE, "x", "x", options={"if-absent": "1"}) is ErrorCode.EXISTS
    oracle.check(is_idle=False)
    right = {"if-match": root_of_data(old).hex()}
    assert outcome_of(send_file(control, channel, "x", new, upload_id(), right)) is None
    oracle.sent("x", new)
    assert fetch_file(control, channel, "x") == new
    oracle.check(is_idle=False)


def test_of_a_file_and_a_directory_of_one_name_one_is_there(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    for round_number in range(10):
        start = threading.Barrier(2)
        top = f"n{round_number}"

        def send(name: str, barrier: threading.Barrier = start) -> ErrorCode | None:
            with RawControl(server.control_address) as mine, RawChannel(server.data_address) as my_channel:
                barrier.wait()
                return outcome_of(send_file(mine, my_channel, name, b"x", upload_id()))

        outcomes = run_all([lambda name=top: send(name), lambda name=f"{top}/below": send(name)])  # type: ignore[misc]
        assert sorted(outcomes, key=str) == sorted([None, ErrorCode.NAME_CONFLICT], key=str)
        assert control.names(top) == [top if outcomes[0] is None else f"{top}/below"]


@pytest.mark.parametrize("size", SIZES)
def test_readers_see_whole_versions_while_writers_replace_them(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    contents = [os.urandom(size) for _ in range(4)]
    oracle.sent("x", *contents)
    send_file(control, channel, "x", contents[0], upload_id())
    enough = threading.Event()
    reads = 0

    def write() -> int:
        with RawControl(server.control_address) as mine, RawChannel(server.data_address) as my_channel:
            for turn in range(12):
                assert outcome_of(send_file(mine, my_channel, "x", contents[turn % 4], upload_id())) is None
        return 0

    def read() -> int:
        count = 0
        with RawControl(server.control_address) as mine, RawChannel(server.data_address) as my_channel:
            while not enough.is_set():
                try:
                    content = fetch_file(mine, my_channel, "x")
                except RefusedError as refused:
                    # Small versions are not kept once they are replaced: the client begins anew.
                    if refused.code is not ErrorCode.VERSION_GONE or size > SMALL_BYTES:
                        raise
                    continue
                assert content in contents
                count += 1
        return count

    def write_all() -> int:
        try:
            return sum(run_all([write, write]))
        finally:
            enough.set()

    reads = sum(run_all([write_all, read, read]))
    assert reads > 0
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [SMALL_BYTES + 1000, MIN_SEGMENT_BYTES + 1000])
@pytest.mark.parametrize("change", ["replace", "delete", "move away"])
def test_a_download_goes_on_with_its_version_whatever_happens_to_the_name(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int, change: str
) -> None:
    old, new = os.urandom(size), os.urandom(size)
    send_file(control, channel, "x", old, upload_id())
    version = control.download("x")
    channel.attach(version.ticket, 1)
    half = min(size, MIN_SEGMENT_BYTES) // 2
    assert channel.get_all(1, 0, 0, half) == old[:half]
    if change == "replace":
        send_file(control, channel, "x", new, upload_id())
        oracle.sent("x", new)
    elif change == "delete":
        assert control.ask(Verb.DELETE, "x").kind is ReplyKind.DONE
    else:
        assert control.ask(Verb.MOVE, "x", "y").kind is ReplyKind.DONE
        oracle.sent("y", old)
    rest = min(size, MIN_SEGMENT_BYTES) - half
    assert channel.get_all(1, 0, half, rest) == old[half : half + rest]
    channel.attach(version.ticket, 2)  # the ticket is as good as before
    assert channel.get_all(2, 0, 0, half) == old[:half]
    oracle.check(is_idle=False)


def test_listings_during_writes_hold_each_name_once_and_whole(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    writers, files = 4, 40
    sizes = {
        f"d{writer}/f{number:03}": 1 + writer * files + number for writer in range(writers) for number in range(files)
    }
    enough = threading.Event()

    def write(writer: int) -> int:
        with RawControl(server.control_address) as mine, RawChannel(server.data_address) as my_channel:
            for name, size in sizes.items():
                if name.startswith(f"d{writer}/"):
                    assert outcome_of(send_file(mine, my_channel, name, bytes(size), upload_id())) is None
        return 0

    def write_all() -> int:
        try:
            return sum(run_all([lambda writer=writer: write(writer) for writer in range(writers)]))  # type: ignore[misc]
        finally:
            enough.set()

    def watch() -> int:
        listings, seen_before = 0, 0
        with RawControl(server.control_address) as mine:
            while not enough.is_set():
                *entries, done = mine.finish(mine.start(Verb.LIST))
                assert done.kind is ReplyKind.DONE
                names = [entry.words[0] for entry in entries]
                assert names == sorted(set(names), key=str.encode)
                for entry in entries:
                    if entry.options["kind"] == "f":
                        assert int(entry.options["size"]) == sizes[entry.words[0]]
                files_seen = sum(entry.options["kind"] == "f" for entry in entries)
                assert files_seen >= seen_before, "a file that was listed is gone"
                seen_before = files_seen
                listings += 1
        return listings

    assert sum(run_all([write_all, watch])) > 0
    assert control.names() == sorted(sizes, key=str.encode)


def test_a_session_that_ends_at_any_moment_of_a_commit_leaves_all_or_nothing(
    server: RunningServer, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(SMALL_BYTES + 1000)
    for round_number in range(60):
        name = f"n{round_number}"
        oracle.sent(name, data)
        with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
            upload = control.upload(name, len(data), upload_id())
            channel.attach(upload.ticket)
            channel.put_segment(1, 0, data)
            options = {"generation": "1", "root": root_of_data(data).hex()}
            control.start(Verb.COMMIT, upload.upload_id.hex(), options=options)
            if round_number % 3 == 0:
                control.reset()
            elif round_number % 3 == 1:
                channel.reset()
    oracle.check()

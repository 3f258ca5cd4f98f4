"""How uploads end over real connections: commit, resume, fencing, abort, and what may be repeated."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import LAST, AckStatus, FrameType
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import SMALL_BYTES
from twinport_service.storage.memory import MemoryStorage

from tests.service.conftest import KEYS, StartServer
from tests.service.oracle import Oracle
from tests.service.raw_client import (
    Opened,
    RawChannel,
    RawControl,
    await_true,
    opened,
    parts_of,
    root_of_data,
    run_all,
    send_file,
)
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
TWO_SEGMENTS = MIN_SEGMENT_BYTES + 1000
IN_MEMORY = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # where the bound is easily small
FORGETFUL = pytest.mark.parametrize("unsent_seconds", [0.01], ids=["forgetful"])
WRONG = b"\x5a" * 32


def send_segments(channel: RawChannel, attachment: int, data: bytes, segments: Sequence[int]) -> None:
    """Send some segments; each must be sealed."""
    for segment in segments:
        assert channel.put_segment(attachment, segment, parts_of(data)[segment]) is AckStatus.SEALED


def commit_line(upload: Opened, root: bytes) -> dict[str, str]:
    """The options of a COMMIT."""
    return {"generation": str(upload.generation), "root": root.hex()}


# commit ---------------------------------------------------------------------------------------------------------------


def test_commit_without_all_segments_or_with_a_wrong_root_leaves_the_upload_open(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    upload = control.upload("x", len(data), upload_id())
    channel.attach(upload.ticket)
    assert control.commit(upload, root_of_data(data)).code is ErrorCode.INCOMPLETE
    send_segments(channel, 1, data, (1,))
    assert control.commit(upload, root_of_data(data)).code is ErrorCode.INCOMPLETE
    send_segments(channel, 1, data, (0,))
    assert control.commit(upload, WRONG).code is ErrorCode.ROOT_MISMATCH
    assert control.commit(upload, digest_of(data)).code is ErrorCode.ROOT_MISMATCH
    oracle.check(is_idle=False)
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    oracle.sent("x", data)
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1, TWO_SEGMENTS])
def test_a_commit_repeated_after_a_lost_reply_answers_the_same(
    server: RunningServer, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    number = upload_id()
    with RawControl(server.control_address) as control:
        upload = control.upload("x", size, number)
        channel.attach(upload.ticket)
        send_segments(channel, 1, data, range(len(parts_of(data))))
        control.start(Verb.COMMIT, number.hex(), options=commit_line(upload, root_of_data(data)))
        control.reset()
    with RawControl(server.control_address) as control:

        def settled() -> Reply:
            while (reply := control.commit(upload, root_of_data(data))).code is ErrorCode.BUSY:
                continue
            return reply

        first = settled()
        assert first.kind is ReplyKind.DONE
        assert first.options["root"] == root_of_data(data).hex()
        assert settled().options == first.options
        # Another root than the published one is none of a lost reply: whoever names it must not believe in it.
        assert control.commit(upload, WRONG).code is ErrorCode.ROOT_MISMATCH
        if size > SMALL_BYTES:  # of small ones the server looks no further than its memory
            reply = control.ask(Verb.UPLOAD, "x", str(size), options={"upload": number.hex()})
            assert (reply.kind, reply.options) == (ReplyKind.DONE, first.options)
            assert control.refused(Verb.UPLOAD, "y", str(size), options={"upload": number.hex()}) is ErrorCode.DENIED
        # A later file of that name is not touched by yet another repetition.
        newer = os.urandom(10)
        assert send_file(control, channel, "x", newer, upload_id()) is AckStatus.COMMITTED
        assert settled().options == first.options
    oracle.sent("x", newer)
    oracle.check(is_idle=False)


def test_the_id_of_a_finished_small_upload_publishes_nothing_else(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    number = upload_id()
    assert send_file(control, channel, "x", b"one", number) is AckStatus.COMMITTED
    assert send_file(control, channel, "x", b"one", number) is AckStatus.COMMITTED
    oracle.sent("x", b"one")
    assert send_file(control, channel, "x", b"two", number) is ErrorCode.DENIED
    assert send_file(control, channel, "y", b"one", number) is ErrorCode.DENIED
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [1000, TWO_SEGMENTS])
def test_a_finished_id_answers_only_for_the_file_that_it_published(
    control: RawControl, channel: RawChannel, upload_id: MakeId, size: int
) -> None:
    data, mine = os.urandom(size), upload_id()
    send_file(control, channel, "x", data, mine)
    root = root_of_data(data)
    resume = {"resume": mine.hex()}
    assert control.ask(Verb.UPLOAD, "x", str(size), options=resume).options["root"] == root.hex()
    assert control.refused(Verb.UPLOAD, "other", str(size), options=resume) is ErrorCode.UPLOAD_UNKNOWN
    assert control.refused(Verb.UPLOAD, "x", str(size + 1), options=resume) is ErrorCode.UPLOAD_UNKNOWN
    upload = Opened(mine, 1, b"", size)
    assert control.commit(upload, root).options["root"] == root.hex()
    assert control.commit(upload, bytes(32)).code is ErrorCode.ROOT_MISMATCH
    if size > SMALL_BYTES:  # of a small file the bytes are asked for once more, and compared then
        again = {"upload": mine.hex(), "root": bytes(32).hex()}
        assert control.refused(Verb.UPLOAD, "x", str(size), options=again) is ErrorCode.DENIED


@pytest.mark.parametrize("size", [1000, TWO_SEGMENTS])
def test_commits_at_the_same_time_share_one_outcome(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    upload = control.upload("x", size, upload_id())
    channel.attach(upload.ticket)
    send_segments(channel, 1, data, range(len(parts_of(data))))
    crowd = 8
    barrier = threading.Barrier(crowd)

    def commit() -> Reply:
        with RawControl(server.control_address) as mine:
            barrier.wait()
            return mine.commit(upload, root_of_data(data))

    replies = run_all([commit] * crowd)
    done = [reply.options for reply in replies if reply.kind is ReplyKind.DONE]
    assert done
    assert all(options == done[0] for options in done)
    assert {reply.code for reply in replies} <= {None, ErrorCode.BUSY}
    oracle.sent("x", data)
    oracle.check(is_idle=False)


# one id, one upload ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, TWO_SEGMENTS])
def test_an_upload_command_can_be_repeated_but_not_changed(
    control: RawControl, channel: RawChannel, upload_id: MakeId, size: int
) -> None:
    number = upload_id()
    first, second = control.upload("x", size, number), control.upload("x", size, number)
    assert (first.upload_id, first.generation) == (second.upload_id, second.generation) == (number, 1)
    channel.attach(second.ticket)
    options = {"upload": number.hex()}
    for name, other_size, extra in (
        ("y", size, {}),
        ("x", size + 1, {}),
        ("x", size, {"exec": "1"}),
        ("x", size, {"if-absent": "1"}),
        ("x", size, {"mtime": "5"}),
    ):
        assert control.refused(Verb.UPLOAD, name, str(other_size), options={**options, **extra}) is ErrorCode.DENIED
    assert control.upload("x", size, number).generation == 1


def test_a_client_learns_of_what_it_may_resume(control: RawControl, channel: RawChannel, upload_id: MakeId) -> None:
    first = control.upload("x", TWO_SEGMENTS, upload_id())
    assert first.resumable is None
    second = control.upload("x", TWO_SEGMENTS, upload_id())
    assert second.resumable == first.upload_id
    assert control.upload("y", TWO_SEGMENTS, upload_id()).resumable is None
    assert control.upload("x", TWO_SEGMENTS + 1, upload_id()).resumable is None
    # A resumed upload keeps its precondition, so one with another is none to go on with.
    careful = control.upload("x", TWO_SEGMENTS, upload_id(), {"if-absent": "1"})
    assert careful.resumable is None
    assert control.upload("x", TWO_SEGMENTS, upload_id(), {"if-absent": "1"}).resumable == careful.upload_id
    assert control.upload("x", TWO_SEGMENTS, upload_id()).resumable is None


# resume and fencing ---------------------------------------------------------------------------------------------------


def test_a_resumed_upload_is_fenced_off_from_its_former_holder(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    old = control.upload("x", len(data), upload_id())
    channel.attach(old.ticket)
    send_segments(channel, 1, data, (0,))
    channel.put(1, 1, 0, data[-1000:-500])
    assert channel.acknowledged() is AckStatus.RECEIVED
    channel.frame(FrameType.PUT, 1, 1, 500, 100, 0, data[-500:-450])  # half of it
    with RawControl(server.control_address) as other, RawChannel(server.data_address) as theirs:
        new = other.resume("x", len(data), old.upload_id)
        assert (new.upload_id, new.generation) == (old.upload_id, 2)
        theirs.attach(new.ticket)
        held = theirs.have()
        assert isinstance(held, list)
        assert held[0] == (0, MIN_SEGMENT_BYTES, digest_of(parts_of(data)[0]))
        begun = held[1].length
        assert held[1] == (1, begun, digest_of(data[-1000 : begun - 1000]))
        assert 500 <= begun < 600
        # The former holder: everything it does is refused as fenced.
        channel.send(data[-450:-400])
        assert channel.acknowledged() is ErrorCode.FENCED
        channel.put(1, 1, 0, data[-1000:], LAST, digest_of(data[-1000:]))
        assert channel.acknowledged() is ErrorCode.FENCED
        assert channel.have() is ErrorCode.FENCED
        assert control.commit(old, root_of_data(data)).code is ErrorCode.FENCED
        abort = {"generation": "1"}
        assert control.refused(Verb.ABORT, old.upload_id.hex(), options=abort) is ErrorCode.FENCED
        channel.attach(old.ticket, 9)
        assert channel.answer().code is ErrorCode.FENCED
        oracle.check(is_idle=False)
        # The new one is not disturbed.
        assert theirs.put_segment(1, 1, data[-1000:], start=begun) is AckStatus.SEALED
        assert other.commit(new, root_of_data(data)).kind is ReplyKind.DONE
        oracle.sent("x", data)
        assert control.commit(old, root_of_data(data)).kind is ReplyKind.DONE  # finished: told to everybody who asks
    oracle.check(is_idle=False)


@pytest.mark.parametrize("executable", [False, True])
def test_a_resumed_upload_is_published_with_the_mtime_and_the_mode_of_now(
    control: RawControl, channel: RawChannel, upload_id: MakeId, executable: bool
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    before = {"mtime": "1000000000", **({} if executable else {"exec": "1"})}
    now = {"mtime": "2000000000", **({"exec": "1"} if executable else {})}
    for name, said in (("x", now), ("y", {})):
        upload = control.upload(name, len(data), upload_id(), before)
        channel.attach(upload.ticket, 1)
        send_segments(channel, 1, data, [0])
        channel.detach(1)
        again = {"resume": upload.upload_id.hex(), **said}
        resumed = opened(control.ask(Verb.UPLOAD, name, str(len(data)), options=again), len(data))
        channel.attach(resumed.ticket, 1)
        send_segments(channel, 1, data, [1])
        channel.detach(1)
        assert control.commit(resumed, root_of_data(data)).kind is ReplyKind.DONE
    facts = [control.ask(Verb.STAT, name).options for name in ("x", "y")]
    assert [(fact["mtime"], fact["exec"]) for fact in facts] == [
        ("2000000000", "1" if executable else "0"),
        ("1000000000", "0" if executable else "1"),
    ]


def test_of_many_that_resume_at_once_exactly_one_holds_the_upload(
    server: RunningServer, control: RawControl, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    upload = control.upload("x", len(data), upload_id())
    crowd = 6
    barrier = threading.Barrier(crowd)

    def resume() -> tuple[int, ErrorCode | None]:
        with RawControl(server.control_address) as mine, RawChannel(server.data_address) as channel:
            barrier.wait()
            held = mine.resume("x", len(data), upload.upload_id)
            barrier.wait()
            channel.attach(held.ticket)
            for segment, part in enumerate(parts_of(data)):
                if isinstance(channel.put_segment(1, segment, part), ErrorCode):
                    break
            return held.generation, mine.commit(held, root_of_data(data)).code

    outcomes = sorted(run_all([resume] * crowd), key=lambda outcome: outcome[0])
    assert [generation for generation, _ in outcomes] == list(range(2, 2 + crowd))
    assert outcomes[-1][1] is None
    # An older holder was fenced, or asked when all was over.
    assert {code for _, code in outcomes[:-1]} <= {ErrorCode.FENCED, None}
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_what_cannot_be_resumed(control: RawControl, channel: RawChannel, upload_id: MakeId) -> None:
    data = os.urandom(TWO_SEGMENTS)
    upload = control.upload("x", len(data), upload_id())
    resume = {"resume": upload.upload_id.hex()}
    size = str(len(data))
    assert control.refused(Verb.UPLOAD, "y", size, options=resume) is ErrorCode.UPLOAD_UNKNOWN
    assert control.refused(Verb.UPLOAD, "x", "5", options=resume) is ErrorCode.UPLOAD_UNKNOWN
    unknown = {"resume": upload_id().hex()}
    assert control.refused(Verb.UPLOAD, "x", size, options=unknown) is ErrorCode.UPLOAD_UNKNOWN
    channel.attach(upload.ticket)
    send_segments(channel, 1, data, (0, 1))
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    assert control.ask(Verb.UPLOAD, "x", size, options=resume).kind is ReplyKind.DONE
    aborted = control.upload("x", len(data), upload_id())
    assert control.ask(Verb.ABORT, aborted.upload_id.hex(), options={"generation": "1"}).kind is ReplyKind.DONE
    gone = {"resume": aborted.upload_id.hex()}
    assert control.refused(Verb.UPLOAD, "x", size, options=gone) is ErrorCode.UPLOAD_UNKNOWN


# abort ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 1_000_000, TWO_SEGMENTS])
def test_abort_in_mid_put_ends_the_upload_and_leaves_nothing(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    upload = control.upload("x", size, upload_id())
    channel.attach(upload.ticket)
    assert channel.have() == []  # it is attached before the other connection says anything
    channel.frame(FrameType.PUT, 1, 0, 0, 500, 0, data[:100])  # a part of it
    abort = {"generation": "1"}
    assert control.ask(Verb.ABORT, upload.upload_id.hex(), options=abort).kind is ReplyKind.DONE
    channel.send(data[100:500])
    assert channel.acknowledged() in (ErrorCode.UPLOAD_CLOSED, ErrorCode.UPLOAD_UNKNOWN)
    assert channel.put_segment(1, 0, parts_of(data)[0]) in (ErrorCode.UPLOAD_CLOSED, ErrorCode.UPLOAD_UNKNOWN)
    assert channel.have() is ErrorCode.UPLOAD_UNKNOWN
    assert control.commit(upload, root_of_data(data)).code is ErrorCode.UPLOAD_UNKNOWN
    assert control.ask(Verb.ABORT, upload.upload_id.hex(), options=abort).kind is ReplyKind.DONE
    assert control.ask(Verb.ABORT, "00" * 16).kind is ReplyKind.DONE
    oracle.check(is_idle=False)
    # The same id may open an upload again: a client that repeats itself after an abort begins anew.
    again = control.upload("x", size, upload.upload_id)
    channel.attach(again.ticket, 2)
    for segment, part in enumerate(parts_of(data)):
        assert channel.put_segment(2, segment, part) is AckStatus.SEALED
    assert control.commit(again, root_of_data(data)).kind is ReplyKind.DONE
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_abort_against_commit_has_one_winner(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    oracle.sent("x", data)
    for _ in range(10):
        upload = control.upload("x", len(data), upload_id())
        attachment = channel.attach_next(upload.ticket)
        send_segments(channel, attachment, data, (0, 1))
        start = threading.Barrier(2)
        number = upload.upload_id.hex()
        commit = functools.partial(_race, server, start, Verb.COMMIT, number, commit_line(upload, root_of_data(data)))
        abort = functools.partial(_race, server, start, Verb.ABORT, number, {"generation": "1"})
        committing, aborting = run_all([commit, abort])
        committed = committing.kind is ReplyKind.DONE
        exists = control.ask(Verb.STAT, "x").code is None
        assert committed == exists, (committing, aborting)
        if committed:  # aborting what is over or being published changes nothing
            assert aborting.code in (None, ErrorCode.UPLOAD_CLOSED)
            assert control.ask(Verb.DELETE, "x").kind is ReplyKind.DONE
        else:
            assert aborting.kind is ReplyKind.DONE
            assert committing.code in (ErrorCode.UPLOAD_UNKNOWN, ErrorCode.UPLOAD_CLOSED, ErrorCode.BUSY)
    oracle.check(is_idle=False)


def _race(server: RunningServer, start: threading.Barrier, verb: Verb, word: str, options: dict[str, str]) -> Reply:
    with RawControl(server.control_address) as control:
        start.wait()
        return control.ask(verb, word, options=options)


@FORGETFUL
@pytest.mark.parametrize("size", [5, SMALL_BYTES + 1, TWO_SEGMENTS])
def test_uploads_for_which_nothing_was_sent_end_with_their_session(
    server: RunningServer, control: RawControl, upload_id: MakeId, size: int
) -> None:
    with RawControl(server.control_address) as other:
        mine = [other.upload(f"x{number}", size, upload_id()) for number in range(20)]
        assert control.ask(Verb.QUOTA).options["open-uploads"] == "20"
        kept = control.upload("x0", size, mine[0].upload_id)  # asked for again, by another session
    await_true(lambda: server.live_uploads() == {kept.upload_id}, what="the end of 19 uploads")

    def held() -> tuple[str, str]:
        usage = control.ask(Verb.QUOTA).options
        return usage["open-uploads"], usage["reserved-bytes"]

    await_true(lambda: held() == ("1", str(size)), what="the room of 19 uploads")
    await_true(
        lambda: server.staged_uploads() == ({kept.upload_id} if size > SMALL_BYTES else set()), what="no staging"
    )
    # Their client comes back and asks for the same.
    data = os.urandom(size)
    with RawChannel(server.data_address) as channel:
        outcome = send_file(control, channel, "x1", data, mine[1].upload_id)
        assert outcome is AckStatus.COMMITTED or (isinstance(outcome, Reply) and outcome.kind is ReplyKind.DONE)


@FORGETFUL
@pytest.mark.parametrize("size", [1000, TWO_SEGMENTS])
def test_an_upload_with_a_piece_outlives_its_session(
    server: RunningServer, control: RawControl, channel: RawChannel, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    with RawControl(server.control_address) as other:
        upload, empty = other.upload("x", size, upload_id()), other.upload("empty", size, upload_id())
        channel.attach(upload.ticket)
        channel.put(1, 0, 0, data[:100])
        assert channel.acknowledged() is AckStatus.RECEIVED
        channel.detach(1)
        assert channel.have(2) is ErrorCode.NOT_ATTACHED  # the detaching is done
    await_true(lambda: empty.upload_id not in server.live_uploads(), what="the end of the empty one")
    assert server.live_uploads() == {upload.upload_id}
    resumed = control.resume("x", size, upload.upload_id)
    channel.attach(resumed.ticket, 3)
    for segment, part in enumerate(parts_of(data)):
        assert channel.put_segment(3, segment, part) is AckStatus.SEALED
    assert control.commit(resumed, root_of_data(data)).kind is ReplyKind.DONE


@FORGETFUL
@pytest.mark.parametrize("size", [1000, TWO_SEGMENTS])
def test_a_channel_keeps_an_upload_alive_whose_session_ended_until_it_leaves(
    server: RunningServer, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    with RawChannel(server.data_address) as channel:
        with RawControl(server.control_address) as other:
            used, unused = other.upload("used", size, upload_id()), other.upload("unused", size, upload_id())
            marker = other.upload("marker", size, upload_id())
            channel.attach(used.ticket, 1)
            channel.attach(unused.ticket, 2)
            assert channel.have(2) == []  # both are attached
        await_true(lambda: marker.upload_id not in server.live_uploads(), what="the end of the session")
        assert server.live_uploads() == {used.upload_id, unused.upload_id}
        channel.put(1, 0, 0, data[:100])
        assert channel.acknowledged() is AckStatus.RECEIVED
    await_true(lambda: server.live_uploads() == {used.upload_id}, what="the end of the unused one")


def test_a_session_has_a_bounded_number_of_uploads_for_which_nothing_was_sent(
    start_server: StartServer, upload_id: MakeId
) -> None:
    server = start_server(Foundation(MemoryStorage(), MemoryLedger(max_untouched_per_session=2), KEYS))
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        first = control.upload("x0", 5, upload_id())
        control.upload("x1", 5, upload_id())
        reply = control.ask(Verb.UPLOAD, "x2", "5", options={"upload": upload_id().hex()})
        assert (reply.code, reply.retry_seconds) == (ErrorCode.BUSY, 1)
        assert send_file(control, channel, "x0", b"12345", first.upload_id) is AckStatus.COMMITTED
        control.upload("x2", 5, upload_id())


@IN_MEMORY
def test_uploads_past_the_cap_of_a_user_are_refused(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(Foundation(MemoryStorage(), MemoryLedger(max_open_uploads_per_user=3), KEYS))
    with RawControl(running.control_address) as control:
        open_ones = [control.upload(f"x{number}", 1000, upload_id()) for number in range(3)]
        reply = control.ask(Verb.UPLOAD, "x", "1000", options={"upload": upload_id().hex()})
        assert (reply.code, reply.retry_seconds) == (ErrorCode.BUSY, 1)
        assert control.ask(Verb.ABORT, open_ones[0].upload_id.hex()).kind is ReplyKind.DONE
        assert control.upload("x", 1000, upload_id()).generation == 1


@IN_MEMORY
def test_a_full_storage_refuses_before_a_byte_travels_and_gives_the_room_back(
    start_server: StartServer, upload_id: MakeId
) -> None:
    storage = MemoryStorage(capacity_bytes=5_000_000)
    running = start_server(Foundation(storage, MemoryLedger(), KEYS))
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        uploads = []
        for number in range(10):  # ten at once, room for five
            options = {"upload": upload_id().hex()}
            uploads.append(control.ask(Verb.UPLOAD, f"x{number}", "1000000", options=options))
        assert [upload.code for upload in uploads] == [None] * 5 + [ErrorCode.DISK_FULL] * 5
        assert running.live_uploads() == running.staged_uploads()
        small = send_file(control, channel, "small", b"s" * 1000, upload_id())
        assert small is ErrorCode.DISK_FULL
        control.ask(Verb.ABORT, uploads[0].options["upload"])
        assert send_file(control, channel, "small", b"s" * 1000, upload_id()) is AckStatus.COMMITTED
        for upload in uploads[1:5]:
            control.ask(Verb.ABORT, upload.options["upload"])
        assert running.live_uploads() == running.staged_uploads() == set()
        assert storage.free_bytes() == 5_000_000 - 1000

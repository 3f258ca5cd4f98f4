"""Pieces and segments over real connections: any order, any cut, any copy, and every way to get them wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import COMMIT, LAST, AckStatus, FrameType
from twinport_protocol.messages import Reply, ReplyKind
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_service.storage.contract import SMALL_BYTES

from tests.service.conftest import MakeFoundation, StartServer
from tests.service.oracle import Oracle
from tests.service.raw_client import (
    RawChannel,
    RawControl,
    await_true,
    fetch_file,
    parts_of,
    root_of_data,
    send_file,
)
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
TWO_SEGMENTS = MIN_SEGMENT_BYTES + 1000
IN_MEMORY = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # where the bound is easily small
WRONG = b"\x5a" * 32


def send_segments(channel: RawChannel, attachment: int, data: bytes, segments: Sequence[int]) -> None:
    """Send some segments; each must be sealed."""
    for segment in segments:
        assert channel.put_segment(attachment, segment, parts_of(data)[segment]) is AckStatus.SEALED


# pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, SMALL_BYTES, SMALL_BYTES + 1, MIN_SEGMENT_BYTES, MIN_SEGMENT_BYTES + 1])
def test_a_file_of_any_size_goes_up_and_comes_down(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    outcome = send_file(control, channel, "x", data, upload_id())
    assert outcome is AckStatus.COMMITTED or (isinstance(outcome, Reply) and outcome.kind is ReplyKind.DONE)
    assert fetch_file(control, channel, "x") == data
    oracle.sent("x", data)
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [5, 1000, SMALL_BYTES, 1_000_000])
@pytest.mark.parametrize("commits_by_control", [False, True])
def test_a_small_file_may_come_in_pieces(
    control: RawControl,
    channel: RawChannel,
    oracle: Oracle,
    upload_id: MakeId,
    size: int,
    commits_by_control: bool,
) -> None:
    data = os.urandom(size)
    upload = control.upload("x", size, upload_id())
    channel.attach(upload.ticket)
    status = channel.put_segment(1, 0, data, piece_bytes=size // 3, commit=not commits_by_control)
    if commits_by_control:
        assert status is AckStatus.SEALED
        assert control.names() == []
        assert control.commit(upload, digest_of(data)).kind is ReplyKind.DONE
    else:
        assert status is AckStatus.COMMITTED
    oracle.sent("x", data)
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_small_file_begun_in_pieces_may_still_come_whole(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    channel.attach(control.upload("x", size, upload_id()).ticket)
    channel.put(1, 0, 0, b"other bytes")
    assert channel.acknowledged() is AckStatus.RECEIVED
    channel.put(1, 0, 0, data, LAST | COMMIT, digest_of(data))
    assert channel.acknowledged() is AckStatus.COMMITTED
    oracle.sent("x", data)
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1000, TWO_SEGMENTS])
def test_pieces_that_do_not_fit_are_refused_and_the_upload_goes_on(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    first = parts_of(data)[0]
    upload = control.upload("x", size, upload_id())
    channel.attach(upload.ticket)
    attempts = [
        (7, 0, b"x", 0, ErrorCode.BAD_REQUEST),  # no such segment
        (2**32 - 1, 0, b"x", 0, ErrorCode.BAD_REQUEST),
        (0, len(first), b"x", 0, ErrorCode.BAD_REQUEST),  # beyond the segment
        (0, 2**62, b"x", 0, ErrorCode.BAD_REQUEST),
        (0, 0, b"x", LAST, ErrorCode.BAD_REQUEST),  # a last piece that is not the last
        (0, 0, b"x", LAST | COMMIT, ErrorCode.BAD_REQUEST),
        (0, 0, b"x", COMMIT, ErrorCode.BAD_REQUEST),
        (0, len(first) - 1, b"x", 0, ErrorCode.BAD_REQUEST),  # the last piece that does not say so
        (0, 500, b"x", 0, ErrorCode.BAD_STATE),  # out of order
    ]
    for segment, offset, piece, flags, code in attempts:
        channel.put(1, segment, offset, piece, flags, WRONG if flags & LAST else b"")
        assert channel.acknowledged() is code, (segment, offset, flags)
    for segment, part in enumerate(parts_of(data)):
        assert channel.put_segment(1, segment, part) is AckStatus.SEALED
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    oracle.sent("x", data)
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [0, 1000, SMALL_BYTES + 1000])
def test_a_wrong_digest_drops_the_bytes_and_they_can_be_sent_again(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    channel.attach(control.upload("x", size, upload_id()).ticket)
    for flags in (LAST, LAST | COMMIT):
        channel.put(1, 0, 0, data, flags, WRONG)
        assert channel.acknowledged() is ErrorCode.DIGEST_MISMATCH
    oracle.check(is_idle=False)
    assert channel.put_segment(1, 0, data, commit=True) is AckStatus.COMMITTED
    oracle.sent("x", data)
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [1000, SMALL_BYTES + 1000])
def test_another_root_than_was_promised_is_refused(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data, other = os.urandom(size), os.urandom(size)
    channel.attach(control.upload("x", size, upload_id(), {"root": digest_of(data).hex()}).ticket)
    assert channel.put_segment(1, 0, other, commit=True) is ErrorCode.ROOT_MISMATCH
    oracle.check(is_idle=False)


def test_commit_is_for_files_of_one_segment(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    upload = control.upload("x", len(data), upload_id())
    channel.attach(upload.ticket)
    last = parts_of(data)[1]
    channel.put(1, 1, 0, last, LAST | COMMIT, digest_of(last))
    assert channel.acknowledged() is ErrorCode.BAD_REQUEST
    oracle.check(is_idle=False)
    send_segments(channel, 1, data, (1, 0))
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    oracle.sent("x", data)
    oracle.check(is_idle=False)


# sealed segments ------------------------------------------------------------------------------------------------------


def test_a_sealed_segment_is_immutable(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    upload = control.upload("x", len(data), upload_id())
    channel.attach(upload.ticket)
    send_segments(channel, 1, data, (0, 1))
    other = os.urandom(1000)
    channel.put(1, 1, 0, other, LAST, digest_of(other))
    assert channel.acknowledged() is AckStatus.DUPLICATE
    with RawChannel(server.data_address) as late:
        late.attach(upload.ticket)
        late.put(1, 0, 0, other)
        assert late.acknowledged() is AckStatus.DUPLICATE
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_the_first_copy_of_a_segment_that_arrives_late_is_dropped(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(MIN_SEGMENT_BYTES)
    upload = control.upload("x", len(data), upload_id())
    channel.attach(upload.ticket)
    with RawChannel(server.data_address) as slow:
        slow.attach(upload.ticket)
        slow.frame(FrameType.PUT, 1, 0, 0, 1000, 0, data[:500])  # half of it
        await_true(lambda: channel.have() != [], what="the first half")
        assert channel.put_segment(1, 0, data) is AckStatus.SEALED
        slow.send(data[500:1000])
        assert slow.acknowledged() is ErrorCode.BAD_STATE
        slow.put(1, 0, 1000, data[1000:2000])
        assert slow.acknowledged() is AckStatus.DUPLICATE
    assert control.commit(upload, digest_of(data)).kind is ReplyKind.DONE
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_another_channel_goes_on_where_one_ended(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(MIN_SEGMENT_BYTES)
    upload = control.upload("x", len(data), upload_id())
    with RawChannel(server.data_address) as first:
        first.attach(upload.ticket)
        first.put(1, 0, 0, data[:1_000_000])
        assert first.acknowledged() is AckStatus.RECEIVED
    channel.attach(upload.ticket)
    held = channel.have()
    assert held == [(0, 1_000_000, digest_of(data[:1_000_000]))]
    assert channel.put_segment(1, 0, data, start=1_000_000, commit=True) is AckStatus.COMMITTED
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_a_sealed_segment_stays_sealed_over_a_restart(
    start_server: StartServer, make_foundation: MakeFoundation, storage_kind: str, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    foundation = make_foundation()
    running = start_server(foundation)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        upload = control.upload("x", len(data), upload_id())
        channel.attach(upload.ticket)
        send_segments(channel, 1, data, (0,))
    running.stop()
    again = start_server(make_foundation() if storage_kind == "local" else foundation)
    with RawControl(again.control_address) as control, RawChannel(again.data_address) as channel:
        channel.attach(upload.ticket)
        assert channel.have() == [(0, MIN_SEGMENT_BYTES, digest_of(parts_of(data)[0]))]
        # Whoever writes over it now does so in vain, and nothing of it can be published.
        channel.put(1, 0, 0, os.urandom(1000))
        assert channel.acknowledged() is AckStatus.DUPLICATE
        send_segments(channel, 1, data, (1,))
        assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
        assert fetch_file(control, channel, "x") == data


def test_a_segment_whose_bytes_are_lost_over_a_restart_is_sent_again(
    start_server: StartServer, make_foundation: MakeFoundation, storage_kind: str, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    foundation = make_foundation()
    running = start_server(foundation)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        upload = control.upload("x", len(data), upload_id())
        channel.attach(upload.ticket)
        send_segments(channel, 1, data, (0, 1))
    running.foundation.storage.put_piece(upload.upload_id, 0, 0, 0, b"rot")
    if storage_kind == "memory":  # its copies are told apart by writer
        for pieces in running.foundation.storage._stagings.values():  # type: ignore[attr-defined]
            for held in pieces.pieces.values():
                held[:3] = b"rot"
    running.stop()
    again = start_server(make_foundation() if storage_kind == "local" else foundation)
    with RawControl(again.control_address) as control, RawChannel(again.data_address) as channel:
        channel.attach(upload.ticket)
        # A client that does not ask first is told at the latest when it commits.
        assert channel.put_segment(1, 0, parts_of(data)[0][:10]) is ErrorCode.BAD_REQUEST
        assert control.commit(upload, root_of_data(data)).code is ErrorCode.INCOMPLETE
        held = channel.have()
        assert isinstance(held, list)
        missing = {0, 1} - {record.segment for record in held}
        assert 0 in missing
        send_segments(channel, 1, data, sorted(missing))
        assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
        assert fetch_file(control, channel, "x") == data

"""Any node serves any connection: two server processes on one store, control on one and every channel on the other."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import LAST, AckStatus, FrameType
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_service.storage.contract import SMALL_BYTES

from tests.service.any_node import Node, started_nodes
from tests.service.raw_client import (
    ClosedError,
    RawChannel,
    RawControl,
    Small,
    await_true,
    fetch_file,
    parts_of,
    root_of_data,
    run_all,
    send_file,
)

MakeId = Callable[[], bytes]
Nodes = tuple[Node, Node]
TWO_SEGMENTS = MIN_SEGMENT_BYTES + 1000


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes on one store."""
    with started_nodes() as both:
        yield both


@pytest.fixture
def control(nodes: Nodes) -> Iterator[RawControl]:
    """A control connection to the first node."""
    with RawControl(nodes[0].control_address) as client:
        yield client


@pytest.fixture
def far(nodes: Nodes) -> Iterator[RawChannel]:
    """A channel to the second node."""
    with RawChannel(nodes[1].data_address) as client:
        yield client


@pytest.mark.parametrize("size", [0, 1000, SMALL_BYTES, SMALL_BYTES + 1, MIN_SEGMENT_BYTES, TWO_SEGMENTS])
def test_control_on_one_node_and_every_channel_on_the_other(
    control: RawControl, far: RawChannel, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    name = f"whole {size}"
    outcome = send_file(control, far, name, data, upload_id())
    assert outcome is AckStatus.COMMITTED or (isinstance(outcome, Reply) and outcome.kind is ReplyKind.DONE)
    assert fetch_file(control, far, name) == data
    assert name in control.names()


def test_a_bundle_goes_over_any_node_and_is_known_to_all(nodes: Nodes, control: RawControl, far: RawChannel) -> None:
    files = [Small(f"bundle/{number}", os.urandom(number * 100)) for number in range(50)]
    putting, getting = far.attach_next(control.bundle("UPLOAD")), far.attach_next(control.bundle("DOWNLOAD"))
    assert far.put_many(putting, files) == [AckStatus.COMMITTED] * 50
    assert far.put_many(putting, [Small("bundle/0/below", b"")]) == [ErrorCode.NAME_CONFLICT]
    names = [file.name for file in files]
    assert far.get_many(getting, [*names, "nothing"]) == [*(file.data for file in files), ErrorCode.FILE_NOT_FOUND]
    with RawControl(nodes[1].control_address) as other, RawChannel(nodes[0].data_address) as near:
        # The other node has not published them, and says so all the same.
        again = near.attach_next(other.bundle("UPLOAD"))
        assert near.put_many(again, files) == [AckStatus.COMMITTED] * 50
        assert near.put_many(again, [Small("bundle/x", b"", files[7].upload_id)]) == [ErrorCode.DENIED]
        upload = other.upload("bundle/open", 1, os.urandom(16))
        taken = [Small("bundle/open", b"1", upload.upload_id)]
        assert far.put_many(putting, taken) == [ErrorCode.UPLOAD_CLOSED]


@pytest.mark.parametrize("size", [1000, SMALL_BYTES, 1_000_000])
def test_a_small_file_in_pieces_on_the_other_node(
    control: RawControl, far: RawChannel, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    far.attach(control.upload("pieces", size, upload_id()).ticket)
    assert far.put_segment(1, 0, data, piece_bytes=size // 3, commit=True) is AckStatus.COMMITTED
    assert fetch_file(control, far, "pieces") == data


def test_the_segments_of_one_file_over_channels_of_both_nodes(
    nodes: Nodes, control: RawControl, far: RawChannel, upload_id: MakeId
) -> None:
    data = os.urandom(5 * MIN_SEGMENT_BYTES + 7)
    upload = control.upload("spread", len(data), upload_id())
    with RawChannel(nodes[0].data_address) as near:
        channels = [near, far]
        for channel in channels:
            channel.attach(upload.ticket)
        for segment, part in enumerate(parts_of(data)):
            assert channels[segment % 2].put_segment(1, segment, part) is AckStatus.SEALED
        # What is sealed on one node is sealed on the other, and both know all of it.
        far.put(1, 0, 0, b"other bytes")
        assert far.acknowledged() is AckStatus.DUPLICATE
        assert near.have() == far.have()
    with RawControl(nodes[1].control_address) as other:
        assert other.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    assert fetch_file(control, far, "spread") == data


def test_a_resume_on_the_other_node_fences_the_former_holder_everywhere(
    nodes: Nodes, control: RawControl, far: RawChannel, upload_id: MakeId
) -> None:
    first, data = os.urandom(TWO_SEGMENTS), os.urandom(TWO_SEGMENTS)
    old = control.upload("resumed", len(data), upload_id())
    far.attach(old.ticket)
    # The former holder is in the middle of segment 0, with other bytes than the file has by now.
    far.put(1, 0, 0, first[:1_000_000])
    assert far.acknowledged() is AckStatus.RECEIVED
    far.frame(FrameType.PUT, 1, 0, 1_000_000, 1_000_000, 0, first[1_000_000:1_500_000])
    with RawControl(nodes[1].control_address) as other, RawChannel(nodes[0].data_address) as near:
        new = other.resume("resumed", len(data), old.upload_id)
        assert new.generation == 2
        near.attach(new.ticket)
        assert near.have() == []
        for segment, part in enumerate(parts_of(data)):
            assert near.put_segment(1, segment, part) is AckStatus.SEALED
        far.send(first[1_500_000:2_000_000])
        assert far.acknowledged() in (AckStatus.RECEIVED, ErrorCode.FENCED)
        far.put(1, 0, 0, first[:100])
        assert far.acknowledged() is ErrorCode.FENCED
        assert control.commit(old, root_of_data(first)).code is ErrorCode.FENCED
        assert other.commit(new, root_of_data(data)).kind is ReplyKind.DONE
        assert fetch_file(other, near, "resumed") == data


def test_a_stale_copy_of_a_segment_on_another_node_never_becomes_the_file(
    nodes: Nodes, control: RawControl, far: RawChannel, upload_id: MakeId
) -> None:
    stale, data = os.urandom(1_000_000), os.urandom(1_000_000)
    upload = control.upload("copies", len(data), upload_id())
    with RawChannel(nodes[0].data_address) as near:
        far.attach(upload.ticket)
        near.attach(upload.ticket)
        far.put(1, 0, 0, stale[:-10])
        assert far.acknowledged() is AckStatus.RECEIVED
        assert near.put_segment(1, 0, data) is AckStatus.SEALED
        far.put(1, 0, len(stale) - 10, stale[-10:], LAST, digest_of(stale))
        assert far.acknowledged() is AckStatus.DUPLICATE
        assert control.commit(upload, digest_of(data)).kind is ReplyKind.DONE
        assert fetch_file(control, near, "copies") == data


def test_commits_on_both_nodes_publish_once(
    nodes: Nodes, control: RawControl, far: RawChannel, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    upload = control.upload("twice", len(data), upload_id())
    far.attach(upload.ticket)
    for segment, part in enumerate(parts_of(data)):
        assert far.put_segment(1, segment, part) is AckStatus.SEALED
    barrier = threading.Barrier(4)

    def commit(node: Node) -> Reply:
        with RawControl(node.control_address) as mine:
            barrier.wait()
            return mine.commit(upload, root_of_data(data))

    replies = run_all([lambda node=node: commit(node) for node in (*nodes, *nodes)])  # type: ignore[misc]
    assert {reply.code for reply in replies} <= {None, ErrorCode.BUSY}
    done = {tuple(reply.options.items()) for reply in replies if reply.kind is ReplyKind.DONE}
    assert len(done) == 1
    with RawControl(nodes[1].control_address) as other:  # and later, on any node, the same answer
        assert tuple(other.commit(upload, root_of_data(data)).options.items()) in done


def test_a_session_that_ends_takes_along_only_what_no_node_has_bytes_of(
    nodes: Nodes, far: RawChannel, upload_id: MakeId
) -> None:
    data = os.urandom(TWO_SEGMENTS)
    with RawControl(nodes[0].control_address) as control:
        upload, empty = control.upload("left", len(data), upload_id()), control.upload("none", len(data), upload_id())
        far.attach(upload.ticket)
        far.put(1, 0, 0, data[:1000])
        assert far.acknowledged() is AckStatus.RECEIVED
        far.attach(empty.ticket, 2)
        assert far.have(2) == []
    # Asked by what changes nothing: a COMMIT at that very moment would keep it.
    await_true(lambda: far.have(2) is ErrorCode.UPLOAD_UNKNOWN, what="the empty one's end")
    with RawControl(nodes[1].control_address) as other:
        assert other.commit(empty, bytes(32)).code is ErrorCode.UPLOAD_UNKNOWN
        assert far.put_segment(1, 0, parts_of(data)[0], start=1000) is AckStatus.SEALED
        assert far.put_segment(1, 1, parts_of(data)[1]) is AckStatus.SEALED
        assert other.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
        # A client that was about to send the other one asks for it again, wherever it comes back.
        assert other.upload("none", len(data), empty.upload_id).generation == 1


def test_an_abort_on_the_other_node_ends_the_upload(
    nodes: Nodes, control: RawControl, far: RawChannel, upload_id: MakeId
) -> None:
    upload = control.upload("aborted", TWO_SEGMENTS, upload_id())
    far.attach(upload.ticket)
    far.put(1, 0, 0, bytes(1000))
    assert far.acknowledged() is AckStatus.RECEIVED
    assert control.ask(Verb.ABORT, upload.upload_id.hex(), options={"generation": "1"}).kind is ReplyKind.DONE
    far.put(1, 0, 1000, bytes(1000))
    assert far.acknowledged() is ErrorCode.UPLOAD_UNKNOWN
    with RawControl(nodes[1].control_address) as other:
        assert other.commit(upload, bytes(32)).code is ErrorCode.UPLOAD_UNKNOWN
    assert "aborted" not in control.names()


@pytest.mark.parametrize("size", [1000, TWO_SEGMENTS])
def test_of_two_nodes_that_may_not_replace_each_other_one_wins(nodes: Nodes, upload_id: MakeId, size: int) -> None:
    for turn in range(3):
        barrier = threading.Barrier(2)
        contents = [os.urandom(size), os.urandom(size)]
        name = f"absent {size} {turn}"

        def send(
            node: Node, data: bytes, name: str = name, start: threading.Barrier = barrier
        ) -> Reply | int | ErrorCode:
            with RawControl(node.control_address) as mine, RawChannel(node.data_address) as channel:
                start.wait()
                return send_file(mine, channel, name, data, upload_id(), {"if-absent": "1"})

        sends = [functools.partial(send, node, data) for node, data in zip(nodes, contents, strict=True)]
        outcomes = [sent.code if isinstance(sent, Reply) else sent for sent in run_all(sends)]
        lost = [outcome for outcome in outcomes if outcome is ErrorCode.EXISTS]
        assert len(lost) == 1, outcomes
        winner = contents[1 - outcomes.index(ErrorCode.EXISTS)]
        with RawControl(nodes[0].control_address) as mine, RawChannel(nodes[1].data_address) as channel:
            assert fetch_file(mine, channel, name) == winner


def test_a_version_stays_readable_on_the_other_node_when_its_name_goes(
    control: RawControl, far: RawChannel, upload_id: MakeId
) -> None:
    data = os.urandom(1_000_000)
    send_file(control, far, "gone", data, upload_id())
    version = control.download("gone")
    assert control.ask(Verb.DELETE, "gone").kind is ReplyKind.DONE
    far.attach(version.ticket, 1)
    assert far.get_all(1, 0, 0, len(data)) == data


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_when_a_node_dies_in_mid_upload_another_takes_over(upload_id: MakeId, ending: signal.Signals) -> None:
    data = os.urandom(4 * MIN_SEGMENT_BYTES)
    with started_nodes() as (first, second), RawControl(first.control_address) as control:
        with RawChannel(second.data_address) as channel:
            upload = control.upload("x", len(data), upload_id())
            channel.attach(upload.ticket)
            for segment in range(2):
                assert channel.put_segment(1, segment, parts_of(data)[segment]) is AckStatus.SEALED
            channel.put(1, 2, 0, data[:1000])
            assert channel.acknowledged() is AckStatus.RECEIVED
            second.process.send_signal(ending)
            if ending is signal.SIGTERM:
                assert channel.answer().type is FrameType.GOODBYE
            with pytest.raises(ClosedError):
                channel.answer()
        assert second.process.wait(60) == (0 if ending is signal.SIGTERM else -signal.SIGKILL)
        with RawChannel(first.data_address) as channel:
            channel.attach(upload.ticket)
            held = channel.have()
            assert isinstance(held, list)
            assert [record.segment for record in held] == [0, 1]
            for segment in (2, 3):
                assert channel.put_segment(1, segment, parts_of(data)[segment]) is AckStatus.SEALED
            assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
            assert fetch_file(control, channel, "x") == data

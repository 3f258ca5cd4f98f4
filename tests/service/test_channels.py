"""Channels that break the rules: each broken frame has one clear answer, and nobody else is disturbed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import COMMIT, DETACH_AFTER, LAST, WHOLE_CHANNEL, AckStatus, FrameType
from twinport_protocol.messages import Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_protocol.tickets import Action, Ticket, TicketKeys, decode_ticket, encode_ticket

from tests.service.conftest import KEYS, StartServer, in_a_hurry
from tests.service.oracle import Oracle
from tests.service.raw_client import (
    RawChannel,
    RawControl,
    await_true,
    fetch_file,
    many,
    root_of_data,
    send_file,
)
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
LATER = 2**40


def make_ticket(action: Action, scope: bytes, *, keys: TicketKeys = KEYS, **changes: object) -> bytes:
    """A ticket of this server, unless ``keys`` are another's."""
    values: dict[str, object] = {"user": "anonymous", "size": 10, "expires_at": LATER, "generation": 1, **changes}
    return keys.sign(Ticket(action, scope=scope, **values))  # type: ignore[arg-type]


def flipped(ticket: bytes, at: int) -> bytes:
    """The ticket with one bit changed."""
    return ticket[:at] + bytes((ticket[at] ^ 1,)) + ticket[at + 1 :]


# tickets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forge", "code"),
    [
        (lambda good: b"", ErrorCode.TICKET_INVALID),
        (lambda good: b"\0" * 2048, ErrorCode.TICKET_INVALID),
        (lambda good: good[:-1], ErrorCode.TICKET_INVALID),
        (lambda good: good + b"\0", ErrorCode.TICKET_INVALID),
        (lambda good: flipped(good, 5), ErrorCode.TICKET_INVALID),
        (lambda good: flipped(good, len(good) // 2), ErrorCode.TICKET_INVALID),
        (lambda good: flipped(good, -2), ErrorCode.TICKET_INVALID),
        (
            lambda good: make_ticket(Action.UPLOAD, b"u" * 16, keys=TicketKeys(bytes(16), {7: bytes(range(32))}, 7)),
            ErrorCode.TICKET_INVALID,
        ),
        (
            lambda good: make_ticket(Action.UPLOAD, b"u" * 16, keys=TicketKeys(bytes(range(16)), {7: bytes(32)}, 7)),
            ErrorCode.TICKET_INVALID,
        ),
        (
            lambda good: make_ticket(Action.UPLOAD, b"u" * 16, keys=TicketKeys(bytes(range(16)), {8: bytes(32)}, 8)),
            ErrorCode.TICKET_INVALID,
        ),
        (lambda good: make_ticket(Action.UPLOAD, b"u" * 16, expires_at=1), ErrorCode.TICKET_EXPIRED),
        (lambda good: make_ticket(Action.UPLOAD, b"nobody's upload!"), ErrorCode.UPLOAD_UNKNOWN),
        (lambda good: make_ticket(Action.UPLOAD, b"short"), ErrorCode.UPLOAD_UNKNOWN),
    ],
)
def test_a_bad_ticket_attaches_to_nothing(
    control: RawControl,
    channel: RawChannel,
    oracle: Oracle,
    upload_id: MakeId,
    forge: Callable[[bytes], bytes],
    code: ErrorCode,
) -> None:
    good = control.upload("x", 10, upload_id())
    channel.attach(forge(good.ticket), 5)
    failed = channel.answer()
    assert (failed.type, failed.attachment, failed.code) == (FrameType.FAIL, 5, code)
    # What was already on its way is answered in kind, so that its credit comes back.
    assert channel.put_segment(5, 0, b"0123456789", commit=True) is code
    channel.frame(FrameType.GET, 5, 0, 0, 10)
    answer = channel.answer()
    assert (answer.type, answer.code, answer.body, answer.flags) == (FrameType.SEG, code, b"", LAST)
    channel.frame(FrameType.MANIFEST, 5)
    assert channel.answer().code is code
    assert channel.have(5) is code
    # The channel is as good as before.
    channel.detach(5)
    channel.attach(good.ticket, 5)
    assert channel.put_segment(5, 0, b"0123456789", commit=True) is AckStatus.COMMITTED
    oracle.sent("x", b"0123456789")
    oracle.check(is_idle=False)


def test_a_ticket_of_another_user_or_generation_is_of_no_use(
    control: RawControl, channel: RawChannel, upload_id: MakeId
) -> None:
    mine = control.upload("x", 10, upload_id())
    for changes, code in (
        ({"user": "mallory"}, ErrorCode.UPLOAD_UNKNOWN),
        ({"generation": 2}, ErrorCode.FENCED),
        ({"generation": 0}, ErrorCode.FENCED),
    ):
        channel.attach_next(make_ticket(Action.UPLOAD, mine.upload_id, **changes))
        assert channel.answer().code is code


def test_a_ticket_is_good_for_its_direction_only(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    send_file(control, channel, "kept", b"old bytes", upload_id())
    channel.attach(control.upload("new", 10, upload_id()).ticket, 1)
    channel.attach(control.download("kept").ticket, 2)
    channel.get(1, 0, 0, 10)
    assert channel.answer().code is ErrorCode.NOT_ATTACHED
    channel.frame(FrameType.MANIFEST, 1)
    assert channel.answer().code is ErrorCode.NOT_ATTACHED
    assert channel.put_segment(2, 0, b"other one", commit=True) is ErrorCode.NOT_ATTACHED
    assert channel.have(2) is ErrorCode.NOT_ATTACHED
    oracle.sent("kept", b"old bytes")
    oracle.check(is_idle=False)


@pytest.mark.parametrize("size", [10, 300_000])
def test_the_ticket_of_an_upload_that_is_over_is_refused(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId, size: int
) -> None:
    data = os.urandom(size)
    aborted = control.upload("aborted", size, upload_id())
    finished = control.upload("finished", size, upload_id())
    channel.attach(aborted.ticket, 1)
    channel.attach(finished.ticket, 2)
    assert channel.put_segment(2, 0, data, commit=True) is AckStatus.COMMITTED
    assert control.ask(Verb.ABORT, aborted.upload_id.hex(), options={"generation": "1"}).code is None
    assert channel.put_segment(1, 0, data, commit=True) in (ErrorCode.UPLOAD_UNKNOWN, ErrorCode.UPLOAD_CLOSED)
    for upload in (aborted, finished):
        channel.attach_next(upload.ticket)
        assert channel.answer().code is ErrorCode.UPLOAD_UNKNOWN
    oracle.sent("finished", data)
    oracle.check(is_idle=False)


def test_a_ticket_outlives_its_control_connection(
    server: RunningServer, channel: RawChannel, upload_id: MakeId
) -> None:
    with RawControl(server.control_address) as control:
        upload = control.upload("x", 3, upload_id())
    await_true(lambda: server.session_count == 0)
    channel.attach(upload.ticket)
    assert channel.put_segment(1, 0, b"abc", commit=True) is AckStatus.COMMITTED


def test_tickets_are_renewed_while_their_upload_is_open(
    control: RawControl, channel: RawChannel, upload_id: MakeId
) -> None:
    upload = control.upload("x", 3, upload_id())
    now = int(time.time())
    expired = make_ticket(Action.UPLOAD, upload.upload_id, size=3, expires_at=now - 60)
    channel.attach(expired, 1)
    assert channel.answer().code is ErrorCode.TICKET_EXPIRED
    renewed = control.ask(Verb.RENEW, encode_ticket(expired))
    channel.attach(decode_ticket(renewed.options["ticket"]), 2)
    assert channel.put_segment(2, 0, b"abc", commit=True) is AckStatus.COMMITTED
    assert control.refused(Verb.RENEW, encode_ticket(expired)) is ErrorCode.UPLOAD_UNKNOWN
    ancient = make_ticket(Action.UPLOAD, upload.upload_id, expires_at=now - 2 * 24 * 3600)
    assert control.refused(Verb.RENEW, encode_ticket(ancient)) is ErrorCode.TICKET_EXPIRED
    assert control.refused(Verb.RENEW, "AAAA") is ErrorCode.TICKET_INVALID
    assert control.refused(Verb.RENEW, "&&&&") is ErrorCode.TICKET_INVALID
    assert control.refused(Verb.RENEW, encode_ticket(make_ticket(Action.DOWNLOAD, b"gone"))) is ErrorCode.VERSION_GONE


# frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (lambda c: c.send(b"GET / HTTP/1.1\r\n\r\n" * 3), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(0, 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(99, 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.ACK, 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.SEG, 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.ATTACH, 1, 0, 0, 2049), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.HAVE, 1, 0, 0, 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.PUT, 1, 0, 0, 1024 * 1024 + 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.PUT, 1, 0, 0, 2**32 - 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.PUT, 1, 0, 2**63, 1), ErrorCode.BAD_REQUEST),
        (lambda c: c.frame(FrameType.GET, 1, 0, 2**64 - 1, 1), None),
        (lambda c: c.frame(FrameType.GET, 1, 0, 0, 32 * 1024 * 1024 + 1), ErrorCode.CREDIT_EXCEEDED),
        (lambda c: c.frame(FrameType.ATTACH, WHOLE_CHANNEL), ErrorCode.BAD_STATE),
        (lambda c: c.frame(FrameType.ATTACH, 1), ErrorCode.BAD_STATE),
    ],
)
def test_a_broken_frame_ends_the_channel_with_its_reason(
    control: RawControl,
    channel: RawChannel,
    oracle: Oracle,
    upload_id: MakeId,
    attack: Callable[[RawChannel], None],
    code: ErrorCode | None,
) -> None:
    channel.attach(control.upload("x", 10, upload_id()).ticket, 1)
    attack(channel)
    if code is None:  # a GET is bounded by credit; where it reaches is judged by whoever answers it
        answer = channel.answer()
        assert answer.code in (ErrorCode.NOT_ATTACHED, ErrorCode.BAD_REQUEST)
        channel.close()
    else:
        answer = channel.answer()
        assert (answer.type, answer.attachment, answer.code) == (FrameType.FAIL, WHOLE_CHANNEL, code)
        assert channel.is_closed()
        channel.close()
    control.close()
    oracle.check()


def test_too_many_attachments_and_frames_end_the_channel(server: RunningServer, oracle: Oracle) -> None:
    with RawChannel(server.data_address) as channel:
        for number in range(1024):
            channel.attach(b"", number)
        assert [channel.answer().code for _ in range(1024)] == [ErrorCode.TICKET_INVALID] * 1024
        channel.attach(b"", 1024)
        last = channel.answer()
        assert (last.attachment, last.code) == (WHOLE_CHANNEL, ErrorCode.CREDIT_EXCEEDED)
        assert channel.is_closed()
    oracle.check()


def test_what_is_asked_beyond_a_segment_is_refused_and_nothing_else(
    control: RawControl, channel: RawChannel, upload_id: MakeId
) -> None:
    data = os.urandom(MIN_SEGMENT_BYTES + 10)
    send_file(control, channel, "big", data, upload_id())
    channel.attach(control.download("big").ticket, 1)
    for segment, offset, length in (
        (2, 0, 1),
        (1, 0, 11),
        (1, 11, 0),
        (1, 5, 6),
        (0, MIN_SEGMENT_BYTES, 1),
        (2**32 - 1, 0, 0),
    ):
        channel.get(1, segment, offset, length)
        answer = channel.answer()
        assert (answer.code, answer.body) == (ErrorCode.BAD_REQUEST, b""), (segment, offset, length)
    assert channel.get_all(1, 1, 10, 0) == b""
    assert channel.get_all(1, 1, 3, 7) == data[-7:]
    assert channel.get_all(1, 0, 5, 3 * 1024 * 1024) == data[5 : 5 + 3 * 1024 * 1024]
    assert channel.get_all(1, 1, 0, 10, DETACH_AFTER) == data[-10:]
    channel.get(1, 1, 0, 10)
    assert channel.answer().code is ErrorCode.NOT_ATTACHED


def test_requests_for_nothing_that_is_attached(channel: RawChannel, control: RawControl, upload_id: MakeId) -> None:
    channel.attach(control.upload("x", 1, upload_id()).ticket, 1)
    assert channel.put_segment(2, 0, b"a", commit=True) is ErrorCode.NOT_ATTACHED
    channel.get(3, 0, 0, 1)
    assert channel.answer().code is ErrorCode.NOT_ATTACHED
    assert channel.have(4) is ErrorCode.NOT_ATTACHED
    channel.detach(77)
    assert channel.put_segment(1, 0, b"a", commit=True) is AckStatus.COMMITTED


def test_a_download_goes_on_when_its_attachment_is_detached_in_mid_answer(
    start_server: StartServer, upload_id: MakeId
) -> None:
    running = start_server()
    data = os.urandom(MIN_SEGMENT_BYTES)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        send_file(control, channel, "x", data, upload_id())
        ticket = control.download("x").ticket
        with RawChannel(running.data_address, receive_buffer=4096) as slow:
            slow.attach(ticket, 1)
            slow.get(1, 0, 0, len(data))
            slow.detach(1)
            slow.attach(control.download("x").ticket, 2)
            # Each SEG is whole and true, or says that the attachment is over; nothing else ever comes.
            got = bytearray()
            while True:
                answer = slow.answer()
                if answer.code is not None:
                    assert answer.code is ErrorCode.NOT_ATTACHED
                    break
                got += answer.body
                if answer.flags & LAST:
                    break
            assert data.startswith(bytes(got))
            assert slow.get_all(2, 0, 7, 100) == data[7:107]


# unattached sockets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage_kind", ["local"], indirect=True)
@pytest.mark.parametrize("size", [10, 300_000], ids=["small", "kept open as a version"])
def test_open_files_do_not_follow_attachments(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, size: int
) -> None:
    files = {f"f{number:02d}": os.urandom(size) for number in range(60)}
    for name, data in files.items():
        (server.settings.root / name).write_bytes(data)
    versions = {name: control.download(name) for name in files}
    before = len(os.listdir("/proc/self/fd"))
    for attachment, (name, data) in enumerate(files.items(), 1):
        channel.attach(versions[name].ticket, attachment)
        assert channel.get_all(attachment, 0, 0, size // 2) == data[: size // 2]
    assert len(os.listdir("/proc/self/fd")) - before <= 17
    for attachment, data in enumerate(files.values(), 1):  # and every one of them goes on
        assert channel.get_all(attachment, 0, size // 2, size // 2, DETACH_AFTER) == data[size // 2 :]
    await_true(lambda: len(os.listdir("/proc/self/fd")) <= before)


@in_a_hurry
def test_a_socket_that_does_not_attach_is_closed(server: RunningServer, oracle: Oracle) -> None:
    silent = RawChannel(server.data_address, magic=False)
    magic = RawChannel(server.data_address)
    partial = RawChannel(server.data_address, magic=False)
    liar = RawChannel(server.data_address)
    with many([silent, magic, partial, liar]):
        partial.send(b"\x89TP")
        liar.attach(b"not a ticket")
        for client in (silent, magic, partial, liar):
            assert client.is_closed()
    oracle.check()


@in_a_hurry
def test_a_drip_of_frames_does_not_prolong_the_time_to_attach(server: RunningServer) -> None:
    with RawChannel(server.data_address) as channel, suppress(OSError):
        for _ in range(1000):
            channel.detach(1)
            if channel.is_closed(within_seconds=0.02):
                break
        else:
            pytest.fail("it was kept open")


def test_of_too_many_unattached_sockets_the_oldest_gives_way_and_transfers_go_on(
    start_server: StartServer, upload_id: MakeId
) -> None:
    running = start_server(max_unattached=4, attach_seconds=600.0)
    data = os.urandom(300_000)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as victim:
        victim.attach(control.upload("x", len(data), upload_id()).ticket, 1)
        victim.put(1, 0, 0, data[:100_000])
        assert victim.acknowledged() is AckStatus.RECEIVED
        with ExitStack() as stack:
            crowd: list[RawChannel] = []
            for number in range(20):
                crowd.append(stack.enter_context(RawChannel(running.data_address)))
                if number < 4:
                    await_true(lambda: running.channel_count == len(crowd) + 1, what="the channel's admission")
                else:  # the newest is in once the oldest is out
                    assert crowd[number - 4].is_closed()
            assert not any(client.is_closed(within_seconds=0.01) for client in crowd[-4:])
            victim.put(1, 0, 100_000, data[100_000:], LAST | COMMIT, digest_of(data))
            assert victim.acknowledged() is AckStatus.COMMITTED
            assert fetch_file(control, victim, "x") == data
            # A late but honest one pushes out the oldest of the crowd and is served.
            with RawChannel(running.data_address) as late:
                assert fetch_file(control, late, "x") == data
            assert crowd[16].is_closed()


def test_a_stranger_cannot_disturb_a_transfer(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(2 * MIN_SEGMENT_BYTES)
    upload = control.upload("x", len(data), upload_id())
    channel.attach(upload.ticket, 1)
    sent = 0
    for round_number in range(32):
        with RawChannel(server.data_address) as stranger:
            stranger.attach(os.urandom(len(upload.ticket)))
            stranger.put(1, 0, 0, os.urandom(100))
            stranger.reset()
        segment, offset = divmod(sent, MIN_SEGMENT_BYTES)
        piece = data[sent : sent + 512 * 1024]
        sent += len(piece)
        last = offset + len(piece) == MIN_SEGMENT_BYTES
        start = segment * MIN_SEGMENT_BYTES
        digest = digest_of(data[start : start + MIN_SEGMENT_BYTES]) if last else b""
        channel.put(1, segment, offset, piece, LAST if last else 0, digest)
        assert channel.acknowledged() is (AckStatus.SEALED if last else AckStatus.RECEIVED), round_number
    assert control.commit(upload, root_of_data(data)).code is None
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_both_connections_reset_in_mid_transfer(server: RunningServer, oracle: Oracle, upload_id: MakeId) -> None:
    data = os.urandom(MIN_SEGMENT_BYTES)
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        send_file(control, channel, "x", data, upload_id())
    oracle.sent("x", data)
    for reset_channel_first in (True, False):
        control = RawControl(server.control_address)
        up, down = RawChannel(server.data_address), RawChannel(server.data_address, receive_buffer=4096)
        with many([control, up, down]):
            up.attach(control.upload("x", len(data), upload_id()).ticket, 1)
            up.put(1, 0, 0, data[:1000])
            down.attach(control.download("x").ticket, 1)
            down.get(1, 0, 0, len(data))
            assert down.answer().body == data[: 1024 * 1024]
            for client in (up, down, control) if reset_channel_first else (control, up, down):
                client.reset()
        oracle.check()


def test_a_channel_that_stalls_in_mid_piece_is_given_up(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(stall_seconds=0.3)
    with RawControl(running.control_address) as control:
        for drip in (False, True):
            with RawChannel(running.data_address) as channel:
                channel.attach(control.upload("x", 100_000, upload_id()).ticket, 1)
                channel.frame(FrameType.PUT, 1, 0, 0, 100_000, LAST | COMMIT)
                with suppress(OSError):
                    for _ in range(1000):
                        if drip:
                            channel.send(b"x")
                        if channel.is_closed(within_seconds=0.02):
                            break
                    else:
                        pytest.fail(f"it was not given up, drip={drip}")
        assert control.names() == []


def test_a_downloader_that_does_not_read_is_given_up(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(stall_seconds=0.3)
    data = os.urandom(MIN_SEGMENT_BYTES)
    with RawControl(running.control_address) as control:
        with RawChannel(running.data_address) as channel:
            send_file(control, channel, "x", data, upload_id())
        await_true(lambda: running.channel_count == 0)
        with RawChannel(running.data_address, receive_buffer=4096) as deaf:
            deaf.attach(control.download("x").ticket, 1)
            for _ in range(4):
                deaf.get(1, 0, 0, len(data))
            deaf.sock.recv(1, socket.MSG_PEEK)  # it was served
            await_true(lambda: running.channel_count == 0, what="the end of the deaf channel")
            assert deaf.is_closed()

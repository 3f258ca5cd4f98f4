"""Both ends of a channel, joined in memory: what is counted, what is refused, and that splits change nothing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.channel import ChannelClient, ChannelServer
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from twinport_protocol.frames import (
    CHANNEL_MAGIC,
    COMMIT,
    DETACH_AFTER,
    LAST,
    WHOLE_CHANNEL,
    AckStatus,
    FrameType,
    Header,
)
from twinport_protocol.numbers import MAX_SIZE

from tests.protocol.helpers import Frame, FrameLog, attempt, byte_by_byte, cut, frames_of, places

LIMITS = Limits(frames=8, credit=1000, piece=300, attachments=3)
DIGEST = b"d" * 32


class Pair:
    """A client and a server whose bytes are carried by hand; ``split`` says how they are cut on the way."""

    def __init__(
        self, limits: Limits = LIMITS, split: Callable[[bytes], Iterable[bytes]] = lambda data: [data]
    ) -> None:
        self.client = ChannelClient(limits)
        self.server = ChannelServer(limits)
        self._split = split
        self.to_server(self.client.open())

    def to_server(self, data: bytes) -> list[Frame]:
        return frames_of(self.server.feed, self._split(data))

    def to_client(self, data: bytes) -> list[Frame]:
        return frames_of(self.client.feed, self._split(data))

    def attach(self, ticket: bytes = b"ticket") -> int:
        number, frame = self.client.attach(ticket)
        assert self.to_server(frame) == [(Header(FrameType.ATTACH, 0, 0, number, 0, 0, len(ticket)), ticket, None)]
        return number

    def put(self, attachment: int, segment: int, offset: int, data: bytes, flags: int = 0) -> Header:
        frame = self.client.put(attachment, segment, offset, len(data), flags)
        (got,) = self.to_server(frame + data + (DIGEST if flags & LAST else b""))
        assert got[1:] == (data, DIGEST if flags & LAST else None)
        return got[0]

    def get(self, attachment: int, segment: int, offset: int, length: int, flags: int = 0) -> Header:
        ((header, body, _),) = self.to_server(self.client.get(attachment, segment, offset, length, flags))
        assert body == b""
        return header

    @property
    def owed(self) -> tuple[int, int]:
        """What the client counts as unanswered; the server must count the same frames."""
        assert self.client.unanswered_frames == self.server.unanswered
        return self.client.unanswered_frames, self.client.unanswered_bytes


splits = pytest.mark.parametrize(
    "split",
    [lambda data: [data], byte_by_byte, lambda data: cut(data, [1, 7, 24, 25, 60])],
    ids=["whole", "bytes", "cut"],
)


@splits
def test_an_upload(split: Callable[[bytes], Iterable[bytes]]) -> None:
    pair = Pair(split=split)
    number = pair.attach()
    first = pair.put(number, 0, 0, b"a" * 300)
    second = pair.put(number, 0, 300, b"b" * 100, LAST)
    assert pair.owed == (2, 400)
    pair.to_client(pair.server.acknowledge(first, AckStatus.RECEIVED))
    assert pair.owed == (1, 100)
    ((ack, _, _),) = pair.to_client(pair.server.acknowledge(second, AckStatus.SEALED))
    assert (ack.attachment, ack.segment, ack.offset, ack.status) == (number, 0, 400, AckStatus.SEALED)
    assert pair.owed == (0, 0)
    assert pair.client.attachment_count == 1


@splits
def test_a_small_file_in_one_piece(split: Callable[[bytes], Iterable[bytes]]) -> None:
    pair = Pair(split=split)
    for data in (b"x" * 50, b""):
        number = pair.attach()
        header = pair.put(number, 0, 0, data, LAST | COMMIT)
        pair.to_client(pair.server.acknowledge(header, AckStatus.COMMITTED))
        assert pair.owed == (0, 0)
        assert pair.client.attachment_count == 0
    assert all(pair.attach() for _ in range(LIMITS.attachments)), "COMMITTED has ended the attachment on both sides"


@splits
def test_a_download_in_several_frames(split: Callable[[bytes], Iterable[bytes]]) -> None:
    pair = Pair(split=split)
    number = pair.attach()
    get = pair.get(number, 2, 100, 700, DETACH_AFTER)
    assert pair.owed == (1, 700)
    for offset, length, last in ((100, 300, False), (400, 300, False), (700, 100, True)):
        assert pair.client.attachment_count == 1
        ((seg, body, _),) = pair.to_client(pair.server.segment_header(get, offset, length, last=last) + b"z" * length)
        assert (seg.segment, seg.offset, body) == (2, offset, b"z" * length)
    assert pair.owed == (0, 0)
    assert pair.client.attachment_count == 0
    assert all(pair.attach() for _ in range(LIMITS.attachments))


def test_an_answer_that_fails_in_its_middle_gives_all_its_credit_back() -> None:
    pair = Pair()
    number = pair.attach()
    for _ in range(20):  # what leaked each time would add up to a refusal
        get = pair.get(number, 0, 0, 1000)
        pair.to_client(pair.server.segment_header(get, 0, 300, last=False) + bytes(300))
        ((seg, _, _),) = pair.to_client(
            pair.server.segment_header(get, 300, 0, last=True, status=ErrorCode.CORRUPT.number)
        )
        assert seg.status == ErrorCode.CORRUPT.number
        assert pair.owed == (0, 0)
    pair.get(number, 0, 0, 1000)
    with pytest.raises(RemoteProtocolError):
        pair.server.feed(memoryview(Header(FrameType.GET, 0, 0, number, 0, 0, 1).encode()))


def test_frames_for_what_is_not_attached_are_answered_in_kind() -> None:
    pair = Pair()
    number = pair.attach()
    status = ErrorCode.TICKET_EXPIRED.number
    put = pair.put(number, 0, 0, b"x" * 300)
    get = pair.get(number, 0, 0, 200, DETACH_AFTER)
    ((manifest, _, _),) = pair.to_server(pair.client.request(FrameType.MANIFEST, number))
    ((have, _, _),) = pair.to_server(pair.client.request(FrameType.HAVE, number))
    assert pair.owed == (4, 500)
    frames = pair.to_client(
        pair.server.fail(number, ErrorCode.TICKET_EXPIRED)
        + pair.server.acknowledge(put, status)
        + pair.server.segment_header(get, 0, 0, last=True, status=status)
        + pair.server.answer(manifest, FrameType.MANIFEST_IS, b"", status)
        + pair.server.answer(have, FrameType.HAVE_IS, b"", status)
    )
    assert {header.status for header, _, _ in frames} == {status}
    assert pair.owed == (0, 0)


def test_manifest_and_have() -> None:
    pair = Pair()
    number = pair.attach()
    requests = [
        pair.to_server(pair.client.request(kind, number))[0][0] for kind in (FrameType.MANIFEST, FrameType.HAVE)
    ]
    assert pair.owed == (2, 0)
    body = b"m" * 64
    assert pair.to_client(pair.server.answer(requests[0], FrameType.MANIFEST_IS, body))[0][1] == body
    pair.to_client(pair.server.answer(requests[1], FrameType.HAVE_IS, b""))
    assert pair.owed == (0, 0)


def test_acks_of_different_attachments_come_in_any_order() -> None:
    pair = Pair()
    one, two = pair.attach(), pair.attach()
    headers = [
        pair.put(one, 0, 0, b"a"),
        pair.put(two, 0, 0, b"b"),
        pair.put(one, 1, 0, b"c"),
        pair.put(one, 0, 1, b"d"),
    ]
    for index in (1, 2, 0, 3):
        pair.to_client(pair.server.acknowledge(headers[index], AckStatus.RECEIVED))
    assert pair.owed == (0, 0)


def test_a_zero_length_get() -> None:
    pair = Pair()
    get = pair.get(pair.attach(), 0, 0, 0)
    assert pair.owed == (1, 0)
    pair.to_client(pair.server.segment_header(get, 0, 0, last=True))
    assert pair.owed == (0, 0)


def test_answers_come_after_a_detach_too() -> None:
    pair = Pair()
    number = pair.attach()
    get = pair.get(number, 0, 0, 5)
    put = pair.put(number, 0, 0, b"x")
    pair.to_server(pair.client.detach(number))
    assert pair.client.attachment_count == 0
    pair.to_client(pair.server.segment_header(get, 0, 5, last=True) + b"hello")
    pair.to_client(pair.server.acknowledge(put, ErrorCode.FENCED.number))
    assert pair.owed == (0, 0)
    with pytest.raises(LocalProtocolError):
        pair.client.get(number, 0, 0, 1)


def test_goodbye_and_farewell() -> None:
    pair = Pair()
    ((goodbye, _, _),) = pair.to_client(pair.server.goodbye())
    assert goodbye.type == FrameType.GOODBYE
    ((fail, _, _),) = pair.to_client(pair.server.farewell(ErrorCode.CREDIT_EXCEEDED))
    assert (fail.attachment, fail.status) == (WHOLE_CHANNEL, ErrorCode.CREDIT_EXCEEDED.number)


def test_attachment_numbers_are_not_used_again_soon_and_never_twice_at_once() -> None:
    client = ChannelClient(LIMITS)
    kept, _ = client.attach(b"t")
    seen = set()
    for _ in range(50):
        number, _ = client.attach(b"t")
        assert number != kept
        seen.add(number)
        client.detach(number)
    assert len(seen) == 50
    client.attach(b"t")
    client.attach(b"t")
    assert not client.can_attach
    with pytest.raises(LocalProtocolError):
        client.attach(b"t")


# The credit, from both sides ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda client, number: [client.put(number, 0, 0, 301, 0)], "CreditExceeded"),
        (lambda client, number: [client.get(number, 0, 0, 1001)], "CreditExceeded"),
        (lambda client, number: [client.get(number, 0, 0, 600), client.get(number, 0, 0, 401)], "CreditExceeded"),
        (lambda client, number: [client.request(FrameType.HAVE, number) for _ in range(9)], "CreditExceeded"),
        (lambda client, number: [client.put(number, 0, 0, 1, COMMIT)], "BadRequest"),
        (lambda client, number: [client.put(number + 1, 0, 0, 1, 0)], "NotAttached"),
    ],
)
def test_a_client_does_not_send_past_its_bounds(send: Callable[[ChannelClient, int], object], code: str) -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError, match=code):
        send(pair.client, pair.attach())


def serve(pieces: Iterable[bytes], limits: Limits = LIMITS) -> list[Frame]:
    """The frames that a server without answers makes of a stream."""
    return frames_of(ChannelServer(limits).feed, pieces)


def raw(kind: FrameType, length: int = 0, *, attachment: int = 1, flags: int = 0) -> bytes:
    """A client's frame as no honest client would send it."""
    body = bytes(length) if kind in (FrameType.PUT, FrameType.ATTACH) else b""
    return Header(kind, flags, 0, attachment, 0, 0, length).encode() + body


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (raw(FrameType.GET, 1001), ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.GET, 2**32 - 1), ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.GET, 500) * 3, ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.PUT, 300) * 4, ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.PUT, 0) * 9, ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.MANIFEST) * 9, ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.HAVE) * 9, ErrorCode.CREDIT_EXCEEDED),
        (raw(FrameType.PUT, 301), ErrorCode.BAD_REQUEST),
        (raw(FrameType.ATTACH) * 2, ErrorCode.BAD_STATE),
        (raw(FrameType.ATTACH, attachment=WHOLE_CHANNEL), ErrorCode.BAD_STATE),
        (b"".join(raw(FrameType.ATTACH, attachment=number) for number in range(4)), ErrorCode.CREDIT_EXCEEDED),
    ],
)
def test_a_server_ends_a_channel_that_breaks_the_rules(stream: bytes, code: ErrorCode) -> None:
    for pieces in ([stream], byte_by_byte(stream)):
        assert attempt(serve, [CHANNEL_MAGIC, *pieces]) is code


@pytest.mark.parametrize("stream", [b"x", b"\x89PNG", b"\x89TPC2\r\n\x1b", b"HELLO 2\n", b"\x16\x03\x01"])
def test_a_channel_begins_with_its_magic(stream: bytes) -> None:
    for pieces in ([stream], byte_by_byte(stream)):
        assert attempt(serve, pieces) is ErrorCode.BAD_REQUEST


def test_where_a_server_may_stop() -> None:
    server = ChannelServer(LIMITS)
    assert server.at_boundary, "nothing was received yet"
    server.feed(memoryview(CHANNEL_MAGIC[:3]))
    assert not server.at_boundary
    server.feed(memoryview(CHANNEL_MAGIC[3:]))
    assert server.at_boundary
    server.feed(memoryview(raw(FrameType.PUT, 10)[:-1]))
    assert not server.at_boundary


@pytest.mark.parametrize(
    ("offset", "length", "last", "status"),
    [
        (0, 300, True, 0), (0, 1001, True, 0), (0, 1000, False, 0), (0, 0, False, 0), (300, 701, True, 0),
        (0, 300, True, 205), (0, 0, False, 205), (0, 300, False, 205),
    ],
)  # fmt: skip
def test_a_server_does_not_send_a_seg_that_does_not_fit(offset: int, length: int, last: bool, status: int) -> None:
    pair = Pair()
    get = pair.get(pair.attach(), 0, 0, 1000)
    with pytest.raises(LocalProtocolError):
        pair.server.segment_header(get, offset, length, last=last, status=status)


def test_a_server_does_not_answer_twice() -> None:
    pair = Pair()
    number = pair.attach()
    put = pair.put(number, 0, 0, b"x")
    pair.server.acknowledge(put, AckStatus.RECEIVED)
    with pytest.raises(LocalProtocolError):
        pair.server.acknowledge(put, AckStatus.RECEIVED)
    with pytest.raises(LocalProtocolError):
        pair.server.answer(put, FrameType.HAVE_IS, b"")


# A lying server ----------------------------------------------------------------------------------------------------


def reply(
    kind: FrameType, *, status: int = 0, flags: int = 0, segment: int = 0, at: int = 0, body: bytes = b"", to: int = 1
) -> bytes:
    """A server's frame as no honest server would send it."""
    return Header(kind, flags, status, to, segment, at, len(body)).encode() + body


LIES = {
    "an ACK of nothing": reply(FrameType.ACK, segment=5, at=10),
    "an ACK for another": reply(FrameType.ACK, to=2, at=10),
    "an ACK of another end": reply(FrameType.ACK, at=11),
    "COMMITTED, unasked": reply(FrameType.ACK, at=10, status=AckStatus.COMMITTED),
    "SEALED without the last piece": reply(FrameType.ACK, at=10, status=AckStatus.SEALED),
    "RECEIVED of the last piece": reply(FrameType.ACK, segment=1, at=20),
    "a SEG for another": reply(FrameType.SEG, flags=LAST, at=100, body=bytes(50), to=2),
    "a SEG of another segment": reply(FrameType.SEG, flags=LAST, segment=2, at=100, body=bytes(50)),
    "a SEG of another place": reply(FrameType.SEG, flags=LAST, segment=7, at=101, body=bytes(50)),
    "a SEG before its turn": reply(FrameType.SEG, flags=LAST, segment=8, at=0, body=bytes(50)),
    "too many bytes": reply(FrameType.SEG, flags=LAST, segment=7, at=100, body=bytes(51)),
    "too few bytes": reply(FrameType.SEG, flags=LAST, segment=7, at=100, body=bytes(49)),
    "no progress": reply(FrameType.SEG, segment=7, at=100),
    "bytes in an error": reply(FrameType.SEG, flags=LAST, status=205, segment=7, at=100, body=bytes(50)),
    "an error that goes on": reply(FrameType.SEG, status=205, segment=7, at=100),
    "a gap": reply(FrameType.SEG, segment=7, at=100, body=bytes(10))
    + reply(FrameType.SEG, segment=7, at=111, body=bytes(39)),
    "a MANIFEST unasked": reply(FrameType.MANIFEST_IS, body=bytes(32)),
    "HAVE from another": reply(FrameType.HAVE_IS, to=2),
    "HAVE twice": reply(FrameType.HAVE_IS) * 2,
}


def asking_client() -> ChannelClient:
    """A client with two PUTs, two GETs and a HAVE unanswered."""
    client = ChannelClient(LIMITS)
    client.attach(b"t")
    client.put(1, 0, 0, 10, 0)
    client.put(1, 1, 0, 20, LAST)
    client.get(1, 7, 100, 50)
    client.get(1, 8, 0, 50)
    client.request(FrameType.HAVE, 1)
    return client


@pytest.mark.parametrize("lie", LIES)
def test_a_client_believes_no_lie(lie: str) -> None:
    client = asking_client()
    with pytest.raises(RemoteProtocolError) as caught:
        client.feed(memoryview(LIES[lie]))
    assert caught.value.code is ErrorCode.BAD_STATE


def test_the_answers_of_two_gets_are_not_mixed() -> None:
    client = ChannelClient(LIMITS)
    for number in (1, 2):
        assert client.attach(b"t")[0] == number
        client.get(number, 0, 0, 100)
    client.feed(memoryview(reply(FrameType.SEG, body=bytes(50), to=1)))
    with pytest.raises(RemoteProtocolError, match="out of order"):
        client.feed(memoryview(reply(FrameType.SEG, flags=LAST, at=50, body=bytes(50), to=2)))


def test_a_client_believes_the_truth() -> None:
    client = asking_client()
    truth = [
        reply(FrameType.SEG, segment=7, at=100, body=bytes(20)),
        reply(FrameType.ACK, segment=1, at=20, status=AckStatus.SEALED),
        reply(FrameType.SEG, flags=LAST, segment=7, at=120, body=bytes(30)),
        reply(FrameType.HAVE_IS),
        reply(FrameType.SEG, flags=LAST, status=205, segment=8, at=0),
        reply(FrameType.ACK, at=10, status=ErrorCode.FENCED.number),
    ]
    assert len(frames_of(client.feed, truth)) == len(truth)
    assert (client.unanswered_frames, client.unanswered_bytes) == (0, 0)


@given(st.lists(st.sampled_from([*LIES.values(), reply(FrameType.GOODBYE), reply(FrameType.FAIL, status=500)])), places)
def test_a_client_says_the_same_however_the_bytes_come(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frames)

    def ask(pieces: Iterable[bytes]) -> list[Frame]:
        return frames_of(asking_client().feed, pieces)

    assert attempt(ask, [stream]) == attempt(ask, cut(stream, cuts)) == attempt(ask, byte_by_byte(stream))


# Both ends, at random ----------------------------------------------------------------------------------------------


class Walk:
    """Random use of a pair: commands of the client, answers of the server in any order that is allowed."""

    def __init__(self, limits: Limits) -> None:
        self.pair = Pair(limits)
        self.sent = bytearray(CHANNEL_MAGIC)
        self.log = FrameLog()
        self.puts: list[Header] = []
        self.gets: list[tuple[Header, int]] = []
        self.attached: list[int] = []

    def step(self, kind: str, number: int, length: int, offset: int) -> None:
        client, server = self.pair.client, self.pair.server
        attachment = self.attached[number % len(self.attached)] if self.attached else 0
        if kind == "attach":
            added, frame = client.attach(b"t")
            self.attached.append(added)
            self._send(frame)
        elif kind == "put":
            self.puts.append(self._send(client.put(attachment, number, offset, length, 0) + bytes(length)))
        elif kind == "get":
            self.gets.append((self._send(client.get(attachment, number, offset, length)), 0))
        elif kind == "detach" and attachment:
            self.attached.remove(attachment)
            self._send(client.detach(attachment))
        elif kind == "ack" and self.puts:
            put = self.puts[number % len(self.puts)]
            oldest = next(other for other in self.puts if other[3:5] == put[3:5])
            self.puts.remove(oldest)
            self.pair.to_client(server.acknowledge(oldest, AckStatus.RECEIVED))
        elif kind == "seg" and self.gets:
            self._answer(*self.gets[0], length)

    def _send(self, data: bytes) -> Header:
        self.sent += data
        (frame,) = self.pair.to_server(data)
        return frame[0]

    def _answer(self, get: Header, done: int, length: int) -> None:
        server = self.pair.server
        left = get.length - done
        part = min(length, left)
        if not part and left:
            status = ErrorCode.CORRUPT.number
            data = server.segment_header(get, get.offset + done, 0, last=True, status=status)
        else:
            data = server.segment_header(get, get.offset + done, part, last=part == left) + bytes(part)
        self.pair.to_client(data)
        if part and part != left:
            self.gets[0] = (get, done + part)
        else:
            self.gets.pop(0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["attach", "put", "put", "get", "get", "detach", "ack", "ack", "seg", "seg", "seg"]),
            st.integers(0, 5),
            st.integers(0, 320),
            st.sampled_from([0, 1, 300, MAX_SIZE - 320]),
        ),
        max_size=60,
    ),
    places,
)
def test_the_counts_of_both_ends_agree_whatever_is_done(
    steps: list[tuple[str, int, int, int]], cuts: list[int]
) -> None:
    walk = Walk(LIMITS)
    for step in steps:
        try:
            walk.step(*step)
        except LocalProtocolError:
            continue  # the client's own bounds; the server never sees it
        frames, size = walk.pair.owed
        assert 0 <= frames <= LIMITS.frames
        assert 0 <= size <= LIMITS.credit
        assert size == sum(put.length for put in walk.puts) + sum(get.length for get, _ in walk.gets)
    stream = bytes(walk.sent)
    endless = dataclasses.replace(LIMITS, frames=2**20, credit=2**30, attachments=2**20)
    whole = serve([stream], endless)
    assert serve(cut(stream, cuts), endless) == serve(byte_by_byte(stream), endless) == whole


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([raw(kind, 5) for kind in (FrameType.PUT, FrameType.GET)]), max_size=8
    ),
    places,
)
def test_garbage_raises_only_the_protocols_error(parts: list[bytes], cuts: list[int]) -> None:
    stream = CHANNEL_MAGIC + b"".join(parts)
    assert attempt(serve, [stream]) == attempt(serve, cut(stream, cuts)) == attempt(serve, byte_by_byte(stream))


def test_every_wrong_number_of_frames_is_noticed_exactly_at_the_bound() -> None:
    for frames, piece in itertools.product((1, 2, 7), (0, 1, 50)):
        limits = Limits(frames=frames, credit=100, piece=50, attachments=1)
        pair = Pair(limits)
        number = pair.attach()
        sent = 0
        while pair.client.has_credit(piece):
            pair.put(number, 0, sent * piece, bytes(piece))
            sent += 1
        assert sent == min(frames, 100 // piece if piece else frames)
        with pytest.raises(ProtocolError):
            pair.client.put(number, 0, 0, piece, 0)
        with pytest.raises(RemoteProtocolError):
            pair.server.feed(memoryview(raw(FrameType.PUT, piece)))

"""Bundles of small files: their bodies, their credit, and which answers fit them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.bundle_credit import BundleAnswer, SentFiles
from twinport_protocol.bundles import (
    MAX_BUNDLE_FILES,
    FetchedFile,
    UploadedFile,
    count_names,
    decode_fetched,
    decode_statuses,
    decode_uploaded,
    encode_names,
    encode_statuses,
    fetched_head,
    fetched_refusal,
    iterate_names,
    uploaded_head,
)
from twinport_protocol.channel import ChannelClient, ChannelServer
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from twinport_protocol.frames import HEADER_BYTES, LAST, AckStatus, FrameType, Header, Message

from tests.protocol.helpers import cut, places

LIMITS = Limits(frames=4, credit=2000, piece=300, attachments=2, bundle=1000)
DIGEST = b"d" * 32

uploads = st.builds(
    UploadedFile,
    st.binary(min_size=16, max_size=16),
    st.binary(max_size=40),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.booleans(),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=100),
)
fetched = st.builds(
    FetchedFile,
    st.just(0),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=100),
)


def encode_uploaded(files: list[UploadedFile]) -> bytes:
    return b"".join(
        uploaded_head(
            file.upload_id,
            file.name,
            file.mtime_ns,
            len(file.data),
            file.digest,
            executable=file.executable,
            if_absent=file.if_absent,
        )
        + bytes(file.data)
        for file in files
    )


def encode_fetched(files: list[FetchedFile]) -> bytes:
    return b"".join(
        fetched_head(file.mtime_ns, len(file.data), file.digest, executable=file.executable) + bytes(file.data)
        for file in files
    )


# bodies --------------------------------------------------------------------------------------------------------------


@given(st.lists(uploads, min_size=1, max_size=5))
def test_uploaded_files_come_back(files: list[UploadedFile]) -> None:
    assert [file._replace(data=bytes(file.data)) for file in decode_uploaded(encode_uploaded(files))] == files


@given(st.lists(fetched, max_size=5))
def test_fetched_files_come_back(files: list[FetchedFile]) -> None:
    assert [file._replace(data=bytes(file.data)) for file in decode_fetched(encode_fetched(files))] == files


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_names_come_back(names: list[bytes]) -> None:
    assert list(iterate_names(encode_names(names))) == names
    assert count_names(encode_names(names)) == len(names)


@given(st.lists(st.integers(0, 65535), max_size=9))
def test_statuses_come_back(statuses: list[int]) -> None:
    assert decode_statuses(encode_statuses(statuses)) == statuses


@pytest.mark.parametrize("decode", [decode_uploaded, count_names, decode_fetched, decode_statuses])
@given(data=st.data())
def test_whatever_comes_is_decoded_or_refused(decode: Callable[[bytes], object], data: st.DataObject) -> None:
    sound = st.one_of(
        st.lists(uploads, max_size=3).map(encode_uploaded),
        st.lists(fetched, max_size=3).map(encode_fetched),
        st.lists(st.binary(max_size=30), max_size=3).map(encode_names),
    )
    body = bytearray(data.draw(st.one_of(st.binary(max_size=300), sound)))
    for at in data.draw(st.lists(st.integers(0, max(0, len(body) - 1)), max_size=3)) if body else []:
        body[at] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(body))
    except RemoteProtocolError as error:
        assert error.code is ErrorCode.BAD_REQUEST  # noqa: PT017  # either is fine, nothing else is


def test_what_is_no_bundle() -> None:
    one = encode_uploaded([UploadedFile(b"i" * 16, b"n", 0, False, False, DIGEST, b"data")])
    flags = bytearray(one)
    flags[16] = 4
    for body in (b"", one[:-1], one + b"x", bytes(flags), one * (MAX_BUNDLE_FILES + 1)):
        with pytest.raises(RemoteProtocolError):
            decode_uploaded(body)
    assert len(decode_uploaded(one * MAX_BUNDLE_FILES)) == MAX_BUNDLE_FILES
    for body in (b"", b"\0", b"\0\2x", encode_names([b""] * (MAX_BUNDLE_FILES + 1))):
        with pytest.raises(RemoteProtocolError):
            count_names(body)
    sent = encode_fetched([FetchedFile(0, 0, False, DIGEST, b"data")])
    with pytest.raises(RemoteProtocolError):  # refused, and yet with bytes
        decode_fetched(b"\0\xc8" + sent[2:])
    with pytest.raises(RemoteProtocolError):
        decode_statuses(b"\0")


# frames --------------------------------------------------------------------------------------------------------------


class Pair:
    """A client and a server whose bytes are carried by hand."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.client = ChannelClient(limits)
        self.server = ChannelServer(limits)
        self.server.feed(memoryview(self.client.open()))
        self.number, attach = self.client.attach(b"ticket")
        self.server.feed(memoryview(attach))

    def to_server(self, data: bytes) -> Message:
        (message,) = self.server.feed(memoryview(data))
        assert isinstance(message, Message)
        return message

    def to_client(self, data: bytes) -> BundleAnswer:
        (answer,) = self.client.feed(memoryview(data))
        assert isinstance(answer, BundleAnswer)
        return answer

    @property
    def owed(self) -> tuple[int, int]:
        assert self.client.unanswered_frames == self.server.unanswered
        return self.client.unanswered_frames, self.client.unanswered_bytes


def test_a_bundle_of_uploads() -> None:
    pair = Pair()
    body = bytes(900)
    put = pair.to_server(pair.client.put_many(pair.number, 5, 3, len(body)) + body)
    assert (put.header.type, put.header.segment, put.body) == (FrameType.PUT_MANY, 5, body)
    assert pair.owed == (1, 900)
    answer = pair.to_client(pair.server.acknowledge_many(put.header, [3, 201, 3]))
    assert (answer.header.segment, answer.statuses, answer.files, answer.ends) == (5, [3, 201, 3], [], True)
    assert pair.owed == (0, 0)
    assert pair.client.attachment_count == 1, "a bundle does not end its attachment"


@given(places)
def test_a_bundle_of_downloads_in_several_frames(cuts: list[int]) -> None:
    pair = Pair()
    names = encode_names([b"a", b"b", b"c"])
    get = pair.to_server(pair.client.get_many(pair.number, 1, 3, names, 500))
    assert pair.owed == (1, 500 + len(names))
    first = encode_fetched([FetchedFile(0, 7, True, DIGEST, b"x" * 100), FetchedFile(0, 8, False, DIGEST, b"")])
    second = fetched_refusal(ErrorCode.FILE_NOT_FOUND)
    stream = pair.server.files_header(get.header, len(first), 100, last=False) + first
    stream += pair.server.files_header(get.header, len(second), 0, last=True) + second
    answers: list[BundleAnswer] = []
    for piece in cut(stream, cuts):
        for event in pair.client.feed(memoryview(piece)):
            assert isinstance(event, BundleAnswer)
            answers.append(event)
    assert [answer.ends for answer in answers] == [False, True]
    assert [answer.header.offset for answer in answers] == [0, 100]
    files = [file._replace(data=bytes(file.data)) for answer in answers for file in answer.files]
    assert [file.status for file in files] == [0, 0, ErrorCode.FILE_NOT_FOUND.number]
    assert files[0] == FetchedFile(0, 7, True, DIGEST, b"x" * 100)
    assert pair.owed == (0, 0)


def test_a_server_without_bundles_takes_none() -> None:
    pair = Pair(Limits(frames=4, credit=2000))
    with pytest.raises(LocalProtocolError):
        pair.client.put_many(pair.number, 1, 1, 100)
    for kind, length, offset in ((FrameType.PUT_MANY, 0, 0), (FrameType.GET_MANY, 0, 50)):
        with pytest.raises(RemoteProtocolError) as refused:
            pair.server.feed(memoryview(Header(kind, 0, 0, pair.number, 1, offset, length).encode()))
        assert refused.value.code is ErrorCode.BAD_REQUEST
        pair = Pair(Limits(frames=4, credit=2000))
    with pytest.raises(RemoteProtocolError):
        pair.server.feed(memoryview(Header(FrameType.PUT_MANY, 0, 0, pair.number, 1, 0, 1).encode()))


def test_the_credit_of_bundles() -> None:
    pair = Pair()
    with pytest.raises(LocalProtocolError):
        pair.client.put_many(pair.number, 1, 1, LIMITS.bundle + 1)
    with pytest.raises(LocalProtocolError):
        pair.client.get_many(pair.number, 1, 1, b"\0\0", LIMITS.credit - 1)
    pair.to_server(pair.client.get_many(pair.number, 1, 1, b"\0\0", LIMITS.credit - 2))
    with pytest.raises(LocalProtocolError):
        pair.client.put_many(pair.number, 2, 1, 1)
    with pytest.raises(RemoteProtocolError) as refused:
        pair.server.feed(memoryview(Header(FrameType.PUT_MANY, 0, 0, pair.number, 2, 0, 1).encode() + b"x"))
    assert refused.value.code is ErrorCode.CREDIT_EXCEEDED
    with pytest.raises(LocalProtocolError):
        Pair().client.get_many(9, 1, 1, b"\0\0", 1)  # not attached


def test_the_numbers_of_bundles() -> None:
    pair = Pair()
    pair.to_server(pair.client.get_many(pair.number, 1, 1, b"\0\0", 10))
    with pytest.raises(LocalProtocolError):
        pair.client.get_many(pair.number, 1, 1, b"\0\0", 10)
    pair.to_server(pair.client.get_many(pair.number, 2, 1, b"\0\0", 10))


def test_a_bundle_larger_than_announced_ends_the_channel() -> None:
    pair = Pair()
    with pytest.raises(RemoteProtocolError):
        pair.server.feed(memoryview(Header(FrameType.PUT_MANY, 0, 0, pair.number, 1, 0, LIMITS.bundle + 1).encode()))


def answer_to(kind: FrameType, body: bytes, *, flags: int = 0, serial: int = 1) -> bytes:
    return Header(kind, flags, 0, 1, serial, 0, len(body)).encode() + body


FILE = encode_fetched([FetchedFile(0, 0, False, DIGEST, b"12345")])
NONE = fetched_refusal(ErrorCode.DENIED)


@pytest.mark.parametrize(
    "answer",
    [
        answer_to(FrameType.ACKS, encode_statuses([3])),
        answer_to(FrameType.FILES, FILE, flags=LAST),
        answer_to(FrameType.FILES, FILE * 3, flags=LAST),
        answer_to(FrameType.FILES, FILE * 2),
        answer_to(FrameType.FILES, b"", flags=LAST),
        answer_to(FrameType.FILES, b""),
        answer_to(FrameType.FILES, NONE * 3, flags=LAST),
        answer_to(FrameType.FILES, FILE * 2, flags=LAST, serial=2),
        answer_to(FrameType.FILES, FILE[:-1], flags=LAST),
        answer_to(FrameType.FILES, encode_fetched([FetchedFile(0, 0, False, DIGEST, b"123456")] * 2), flags=LAST),
    ],
    ids=["other kind", "few", "many", "no end", "nothing", "nothing yet", "refusals", "number", "broken", "bytes"],
)
def test_answers_that_fit_no_get(answer: bytes) -> None:
    pair = Pair()
    pair.client.get_many(pair.number, 1, 2, encode_names([b"a", b"b"]), 10)
    with pytest.raises(RemoteProtocolError):
        pair.client.feed(memoryview(answer))


@pytest.mark.parametrize(
    "answer",
    [
        answer_to(FrameType.ACKS, encode_statuses([3])),
        answer_to(FrameType.ACKS, encode_statuses([3, 3, 3])),
        answer_to(FrameType.ACKS, encode_statuses([3, 3]), serial=2),
        answer_to(FrameType.FILES, NONE * 2, flags=LAST),
        Header(FrameType.ACK, 0, AckStatus.COMMITTED, 1, 1, 0, 0).encode(),
    ],
    ids=["few", "many", "number", "other kind", "single"],
)
def test_answers_that_fit_no_put(answer: bytes) -> None:
    pair = Pair()
    pair.client.put_many(pair.number, 1, 2, 100)
    with pytest.raises(RemoteProtocolError):
        pair.client.feed(memoryview(answer))


def test_a_server_does_not_send_more_than_was_asked_for() -> None:
    get = Header(FrameType.GET_MANY, 0, 0, 1, 1, 100, 3)
    sent = SentFiles()
    assert sent.give(get, 60, last=False) == (0, 60)
    with pytest.raises(LocalProtocolError):
        sent.give(get, 41, last=True)
    other = get._replace(segment=2)
    assert sent.give(other, 100, last=True) == (0, 103)
    assert sent.give(other, 100, last=True) == (0, 103), "a number is free again after its answer"


def test_what_a_decoder_holds_of_a_bundle_is_bounded() -> None:
    pair = Pair()
    frame = pair.client.put_many(pair.number, 1, 1, 1000)
    assert pair.server.feed(memoryview(frame + bytes(999))) == []
    assert not pair.server.at_boundary
    (message,) = pair.server.feed(memoryview(b"x"))
    assert len(frame) == HEADER_BYTES
    assert message.header.length == 1000
    assert pair.server.at_boundary

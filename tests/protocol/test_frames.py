"""Frames: the byte form, any split of the stream, garbage, and bounds."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.bundles import MAX_BUNDLE_FILES
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.frames import (
    COMMIT,
    HEADER_BYTES,
    LAST,
    MAX_BODY_BYTES,
    MAX_FILES_BYTES,
    FrameDecoder,
    FrameType,
    Header,
    Held,
    decode_held,
    encode_held,
)
from twinport_protocol.numbers import MAX_SIZE
from twinport_protocol.segments import DIGEST_BYTES, MAX_SEGMENTS
from twinport_protocol.tickets import MAX_TICKET_BYTES

from tests.protocol.helpers import Frame, allocating_at_most, attempt, byte_by_byte, cut, frames_of, places

PIECE = 64
u32 = st.integers(0, 2**32 - 1)


@st.composite
def client_frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from([FrameType.ATTACH, FrameType.PUT, FrameType.GET, FrameType.MANIFEST, FrameType.DETACH]))
    body, digest, flags, length = b"", None, 0, 0
    if kind is FrameType.ATTACH:
        body = draw(st.binary(max_size=100))
        length = len(body)
    elif kind is FrameType.GET:
        length = draw(u32)
    elif kind is FrameType.PUT:
        body = draw(st.binary(max_size=PIECE))
        length = len(body)
        flags = draw(st.sampled_from([0, LAST, LAST | COMMIT]))
        digest = draw(st.binary(min_size=32, max_size=32)) if flags else None
    offset = draw(st.integers(0, MAX_SIZE - length))
    return Header(kind, flags, draw(st.integers(0, 65535)), draw(u32), draw(u32), offset, length), body, digest


@st.composite
def server_frames(draw: st.DrawFn) -> Frame:
    kind = draw(st.sampled_from([kind for kind in FrameType if kind >= FrameType.FAIL]))
    body = b""
    if kind in (FrameType.SEG, FrameType.MANIFEST_IS, FrameType.HAVE_IS):
        body = draw(st.binary(max_size=PIECE))
    header = Header(
        kind, draw(st.sampled_from([0, LAST])), draw(st.integers(0, 65535)), draw(u32), draw(u32), 0, len(body)
    )
    return header, body, None


def encode(frames: list[Frame]) -> bytes:
    """The bytes of some frames."""
    return b"".join(header.encode() + body + (digest or b"") for header, body, digest in frames)


@given(st.lists(client_frames(), max_size=6), places)
def test_the_frames_of_a_client_go_round_however_they_come(frames: list[Frame], cuts: list[int]) -> None:
    stream = encode(frames)
    for pieces in ([stream], cut(stream, cuts), byte_by_byte(stream)):
        decoder = FrameDecoder(from_client=True, max_piece_bytes=PIECE)
        assert frames_of(decoder.feed, pieces) == frames
        assert decoder.at_boundary


@given(st.lists(server_frames(), max_size=6), places)
def test_the_frames_of_a_server_go_round_however_they_come(frames: list[Frame], cuts: list[int]) -> None:
    stream = encode(frames)
    for pieces in ([stream], cut(stream, cuts), byte_by_byte(stream)):
        decoder = FrameDecoder(from_client=False, max_piece_bytes=PIECE)
        assert frames_of(decoder.feed, pieces) == frames
        assert decoder.at_boundary


@given(client_frames())
def test_a_frame_is_at_its_end_only_at_its_end(frame: Frame) -> None:
    stream = encode([frame])
    for end in range(1, len(stream)):
        decoder = FrameDecoder(from_client=True, max_piece_bytes=PIECE)
        log = frames_of(decoder.feed, [stream[:end]])
        assert not log
        assert not decoder.at_boundary


@given(st.booleans(), st.binary(max_size=200) | st.lists(
    st.builds(
        lambda kind, flags, length, offset: struct.pack("!BBHIIQI", kind, flags, 0, 1, 0, offset, length),
        st.sampled_from([*range(10), *range(128, 138), 255]),
        st.integers(0, 255),
        st.integers(0, 40) | u32,
        st.integers(0, 10) | st.integers(0, 2**64 - 1),
    ),
    max_size=5,
).map(b"".join), places)  # fmt: skip
def test_garbage_raises_only_the_protocols_error(from_client: bool, stream: bytes, cuts: list[int]) -> None:
    def decode(pieces: Iterable[bytes]) -> list[Frame]:
        decoder = FrameDecoder(from_client=from_client, max_piece_bytes=PIECE, max_bundle_bytes=PIECE)
        return frames_of(decoder.feed, pieces)

    whole = attempt(decode, [stream])
    assert isinstance(whole, list) or whole is ErrorCode.BAD_REQUEST
    assert attempt(decode, cut(stream, cuts)) == attempt(decode, byte_by_byte(stream)) == whole


def header(kind: int, length: int, offset: int = 0, flags: int = 0) -> bytes:
    """A header, right or wrong."""
    return Header(kind, flags, 0, 1, 0, offset, length).encode()


@pytest.mark.parametrize(
    "stream",
    [
        header(0, 0), header(7, 0), header(255, 0), header(FrameType.ACK, 0), header(FrameType.SEG, 0),
        header(FrameType.ATTACH, MAX_TICKET_BYTES + 1), header(FrameType.PUT, PIECE + 1), header(FrameType.MANIFEST, 1),
        header(FrameType.HAVE, 1), header(FrameType.DETACH, 1), header(FrameType.PUT, 2**32 - 1),
        header(FrameType.PUT, 1, 2**64 - 1), header(FrameType.PUT, 1, MAX_SIZE),
        header(FrameType.GET, 2**32 - 1, 2**64 - 1),
        header(FrameType.GET, 1, MAX_SIZE), header(FrameType.PUT, 0, 2**63),
    ],
)  # fmt: skip
def test_a_server_refuses(stream: bytes) -> None:
    decoder = FrameDecoder(from_client=True, max_piece_bytes=PIECE)
    with pytest.raises(RemoteProtocolError):
        decoder.feed(memoryview(stream))


@pytest.mark.parametrize(
    "stream",
    [
        header(FrameType.PUT, 0), header(FrameType.GET, 0), header(FrameType.ACK, 1), header(FrameType.FAIL, 1),
        header(FrameType.GOODBYE, 1), header(FrameType.SEG, PIECE + 1), header(FrameType.SEG, 1, MAX_SIZE),
        header(FrameType.MANIFEST_IS, MAX_SEGMENTS * DIGEST_BYTES + 1), header(FrameType.HAVE_IS, MAX_BODY_BYTES + 1),
        header(FrameType.ACKS, 2 * MAX_BUNDLE_FILES + 1), header(FrameType.FILES, MAX_FILES_BYTES + 1), header(137, 0),
    ],
)  # fmt: skip
def test_a_client_refuses(stream: bytes) -> None:
    decoder = FrameDecoder(from_client=False, max_piece_bytes=PIECE)
    with pytest.raises(RemoteProtocolError):
        decoder.feed(memoryview(stream))


def test_the_largest_manifest_and_have_fit() -> None:
    held = [Held(number, 8 * 2**20, bytes(32)) for number in range(MAX_SEGMENTS)]
    partial = [Held(number, 5, bytes(32)) for number in range(1024)]
    body = encode_held(held + partial)
    assert len(body) <= MAX_BODY_BYTES
    manifest = bytes(MAX_SEGMENTS * DIGEST_BYTES)
    stream = header(FrameType.HAVE_IS, len(body)) + body + header(FrameType.MANIFEST_IS, len(manifest)) + manifest
    frames = frames_of(FrameDecoder(from_client=False).feed, cut(stream, range(0, len(stream), 65536)))
    assert [decode_held(frames[0][1]), frames[1][1]] == [held + partial, manifest]


@given(st.lists(st.builds(Held, u32, st.integers(0, 2**64 - 1), st.binary(min_size=32, max_size=32)), max_size=5))
def test_records_of_have_go_round(held: list[Held]) -> None:
    assert decode_held(encode_held(held)) == held


@pytest.mark.parametrize("size", [1, 43, 45, 87])
def test_have_of_a_broken_length_is_refused(size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_held(bytes(size))


def test_payloads_are_handed_on_as_views_and_never_kept() -> None:
    decoder = FrameDecoder(from_client=True, max_piece_bytes=64 * 2**20)
    piece = memoryview(bytearray(1024 * 1024))
    decoder.feed(memoryview(header(FrameType.PUT, 50 * 2**20, flags=LAST)))
    with allocating_at_most(64 * 1024):
        for at in range(50):
            (chunk,) = decoder.feed(piece)
            assert chunk[0].length == 50 * 2**20
            assert chunk[1] == at * 2**20
    (end,) = decoder.feed(memoryview(bytes(DIGEST_BYTES)))
    assert end[3:] == (True, bytes(DIGEST_BYTES))


def test_a_body_that_never_ends_holds_at_most_its_bound() -> None:
    decoder = FrameDecoder(from_client=True, max_piece_bytes=PIECE)
    with allocating_at_most(64 * 1024):
        decoder.feed(memoryview(header(FrameType.ATTACH, MAX_TICKET_BYTES) + bytes(MAX_TICKET_BYTES - 1)))
    assert not decoder.at_boundary
    assert HEADER_BYTES == 24

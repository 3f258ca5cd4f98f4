"""Lines: bounded, ended by LF, the same however the bytes come."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.lines import LineBuffer

from tests.protocol.helpers import allocating_at_most, byte_by_byte, cut, places

MAX_BYTES = 20


def lines_of(pieces: Iterable[bytes]) -> list[bytes | ErrorCode]:
    """The lines of a stream, the error that ended it last."""
    buffer = LineBuffer(MAX_BYTES)
    found: list[bytes | ErrorCode] = []
    for piece in pieces:
        buffer.feed(piece)
        try:
            while (line := buffer.pop()) is not None:
                found.append(line)
        except RemoteProtocolError as error:
            found.append(error.code)
            break
    return found


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"a\nb\r\nc", [b"a", b"b"]),
        (b"\n\n", [b"", b""]),
        (b"\n\ra\n", [b"", b"\ra"]),
        (b"a\rb\n", [b"a\rb"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"\r\n", [b""]),
        (b"x" * 20 + b"\n", [b"x" * 20]),
        (b"x" * 20 + b"\r\n", [b"x" * 20]),
        (b"x" * 21 + b"\n", [ErrorCode.LINE_TOO_LONG]),
        (b"x" * 20 + b"\r\r\n", [ErrorCode.LINE_TOO_LONG]),
        (b"x" * 21, []),
        (b"x" * 22, [ErrorCode.LINE_TOO_LONG]),
        (b"a\n" + b"x" * 99 + b"\nb\n", [b"a", ErrorCode.LINE_TOO_LONG]),
        (b"\x00\xff\n", [b"\x00\xff"]),
    ],
)
def test_lines(stream: bytes, expected: list[bytes | ErrorCode]) -> None:
    assert lines_of([stream]) == expected
    assert lines_of(byte_by_byte(stream)) == expected


@given(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"x" * 19, b"x" * 20, b"x" * 21])).map(b"".join), places)
def test_the_lines_do_not_depend_on_how_the_bytes_come(stream: bytes, cuts: list[int]) -> None:
    assert lines_of(cut(stream, cuts)) == lines_of([stream])


def test_after_a_line_too_long_nothing_is_taken() -> None:
    buffer = LineBuffer(MAX_BYTES)
    buffer.feed(b"x" * 100)
    for _ in range(3):
        with pytest.raises(RemoteProtocolError):
            buffer.pop()
        buffer.feed(b"\nok\n")
        assert len(buffer) == 0


def test_fifty_megabytes_without_a_line_end_are_not_kept() -> None:
    buffer = LineBuffer(8192)
    piece = b"x" * 65536
    refused = 0
    with allocating_at_most(256 * 1024):
        for _ in range(800):
            buffer.feed(piece)
            try:
                buffer.pop()
            except RemoteProtocolError:
                refused += 1
    assert refused == 800


def test_many_lines_in_one_read_are_cut_in_linear_time() -> None:
    buffer = LineBuffer(8192)
    buffer.feed(b"x\n" * 200_000)
    count = 0
    while buffer.pop() is not None:
        count += 1
    assert count == 200_000
    assert len(buffer) == 0

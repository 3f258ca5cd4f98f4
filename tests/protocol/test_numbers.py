"""Sizes have one spelling; the digits that only Python would take are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.numbers import MAX_SIZE, parse_signed, parse_size

from tests.protocol.helpers import attempt

REFUSED = [
    b"", b"-1", b"-0", b"+5", b"5.0", b"1e3", b"0x10", b"0b1", b"0o7", b"1_0", b" 5", b"5 ", b"\t5", b"5\n", b"5\r",
    b"007", b"00", b"01", "٣".encode(), "１２".encode(), "²".encode(), b"\x00", b"5\x00", b"inf", b"nan", b"1,000",
    b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"9" * 19, b"9" * 20, b"1" + b"0" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("word", REFUSED, ids=lambda word: ascii(word[:24]))
def test_another_spelling_of_a_size_is_refused(word: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_size(word)
    assert caught.value.code is ErrorCode.INVALID_SIZE
    with pytest.raises(RemoteProtocolError):
        parse_signed(word if word != b"-1" else b"--1")


@pytest.mark.parametrize("number", [0, 1, 9, 10, 2**31, 2**32, 2**53 + 1, 10**18, MAX_SIZE])
def test_a_size_is_read(number: int) -> None:
    assert parse_size(str(number).encode()) == number


@given(st.integers(0, MAX_SIZE))
def test_a_size_has_exactly_one_spelling(number: int) -> None:
    word = str(number).encode()
    assert parse_size(word) == number
    for other in (b"0" + word, b"+" + word, word + b" ", word + b".0"):
        with pytest.raises(RemoteProtocolError):
            parse_size(other)


@given(st.binary(max_size=24))
def test_what_is_taken_is_spelled_as_python_would_spell_it(word: bytes) -> None:
    number = attempt(parse_size, word)
    assert number is ErrorCode.INVALID_SIZE or str(number).encode() == word


def test_a_maximum_is_kept() -> None:
    assert parse_size(b"1000", maximum=1000) == 1000
    with pytest.raises(RemoteProtocolError):
        parse_size(b"1001", maximum=1000)


@given(st.integers(-MAX_SIZE, MAX_SIZE))
def test_a_signed_number_is_read(number: int) -> None:
    assert parse_signed(str(number).encode()) == number


@pytest.mark.parametrize("word", [b"-0", b"--1", b"-", b"- 1", b"-01", b"-9223372036854775808"])
def test_a_signed_number_has_one_spelling_too(word: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_signed(word)

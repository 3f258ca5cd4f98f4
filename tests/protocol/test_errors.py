"""The error codes: stable words, stable numbers, fixed texts."""

from __future__ import annotations

import re

import pytest
from twinport_protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, Refusal, RemoteProtocolError
from twinport_protocol.frames import AckStatus


def test_numbers_and_words_are_unique_and_apart_from_good_statuses() -> None:
    numbers = [code.number for code in ErrorCode]
    assert len(set(numbers)) == len(numbers)
    assert all(max(AckStatus) < 100 <= number < 2**16 for number in numbers)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_is_one_word_and_says_what_to_do(code: ErrorCode) -> None:
    assert re.fullmatch("[A-Z][A-Za-z]+", code.value)
    assert re.fullmatch("[ -~]{10,120}", code.text)
    assert ErrorCode.from_number(code.number) is code
    assert ErrorCode.from_word(code.value) is code


@pytest.mark.parametrize("number", [0, 4, 99, 999, 65535])
def test_an_unknown_number_reads_as_internal(number: int) -> None:
    assert ErrorCode.from_number(number) is ErrorCode.INTERNAL


@pytest.mark.parametrize("word", ["", "Nonsense", "filenotfound", "FILE_NOT_FOUND"])
def test_an_unknown_word_reads_as_internal(word: str) -> None:
    assert ErrorCode.from_word(word) is ErrorCode.INTERNAL


def test_the_tree_of_errors() -> None:
    assert issubclass(LocalProtocolError, ProtocolError)
    assert issubclass(RemoteProtocolError, ProtocolError)
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
    assert not issubclass(Refusal, ProtocolError), "a refusal leaves the connection as it is"
    assert str(Refusal(ErrorCode.BUSY)) == f"Busy: {ErrorCode.BUSY.text}"
    assert str(RemoteProtocolError(ErrorCode.BAD_STATE, "twice")) == "BadState: twice"

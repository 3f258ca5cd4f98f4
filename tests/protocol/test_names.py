"""Names: whatever the one door lets through stays beneath the root, and is one word on the wire."""

from __future__ import annotations

import os.path
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.names import (
    MAX_COMPONENT_BYTES,
    MAX_NAME_BYTES,
    is_portable,
    parse_name,
    parse_name_bytes,
    parse_prefix,
    quote,
    unquote,
)

from tests.protocol.helpers import attempt, awkward, names, texts

ROOT = "/srv/files"

INVALID = [
    "", " ", "   ", ".", "..", "/", "//", "../x", "a/../../x", "a/..", "../", "./x", "x/.", "x/./y", "x/../y",
    "/etc/passwd", "//x", "a//b", "a/", "a/b/", "a/ /b", " /b", "a/   ", "a\x00.txt", "\x00", "a\nb", "a\rb", "\n",
    "a\x1b[2Jb", "a\x7fb", "a\x85b", "a\x9bb", "x" * 256, "é" * 128, "a/" + "x" * 256, "/".join(["x" * 99] * 10),
    ".twinport", ".twinport/x", ".TWINPORT/staging", ".Twinport",
]  # fmt: skip
VALID = [
    "a", "photo.jpg", "my  file.txt", " lead", "trail ", "dot.", "...", "..a", "a..", "a/b/c", "-rf", "~", "~/x",
    "%2e%2e%2fx", "%252e", "%",
    "．．／x", "a∕b", "QUIT", "DONE", "OK 5", "ERROR x", "CON", "nul.txt", "a:b", "a\\..\\b",
    "a=b", "x" * 255, "é" * 127, "/".join(["x" * 89] * 10), ".twinport2", "a/.twinport/b", ".twinpor", "\u2028", "\xa0",
    "\U0001f600",
]  # fmt: skip


@pytest.mark.parametrize("text", INVALID, ids=lambda text: ascii(text[:24]))
def test_a_bad_name_is_refused(text: str) -> None:
    for parse in (parse_name, lambda text: parse_name_bytes(text.encode())):
        with pytest.raises(RemoteProtocolError) as caught:
            parse(text)
        assert caught.value.code is ErrorCode.INVALID_NAME


@pytest.mark.parametrize("text", VALID, ids=lambda text: ascii(text[:24]))
def test_a_name_is_taken_as_it_is(text: str) -> None:
    assert parse_name(text) == text
    assert parse_name_bytes(text.encode()) == text


@pytest.mark.parametrize(
    "raw", [b"\xc0\xae\xc0\xae\xc0\xaf", b"\xed\xa0\x80", b"\xff", b"a\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"]
)
def test_bytes_that_are_not_utf8_are_no_name(raw: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_name_bytes(raw)
    assert caught.value.code is ErrorCode.INVALID_ENCODING
    with pytest.raises(RemoteProtocolError) as caught:
        parse_name(raw.decode("utf-8", "surrogateescape"))
    assert caught.value.code is ErrorCode.INVALID_ENCODING


def test_the_lengths_are_in_bytes() -> None:
    assert parse_name("é" * 127 + "x")  # 255 bytes
    with pytest.raises(RemoteProtocolError):
        parse_name("é" * 128)  # 256 bytes, 128 characters
    name = "/".join(["x" * 224] * 4) + "y"
    assert len(name) == MAX_NAME_BYTES
    assert parse_name(name) == name
    with pytest.raises(RemoteProtocolError):
        parse_name(name + "y")


@given(awkward | texts)
@example("a/..")
@example("..\\x")
def test_an_accepted_name_stays_beneath_the_root(text: str) -> None:
    name = attempt(parse_name, text)
    if isinstance(name, ErrorCode):
        assert name in (ErrorCode.INVALID_NAME, ErrorCode.INVALID_ENCODING)
        return
    assert name == text, "one spelling: a name is never changed"
    path = os.path.join(ROOT, name)
    assert os.path.normpath(path) == path, "nothing in it is special to the file system"
    assert path.startswith(ROOT + "/")
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert all(0 < len(part.encode()) <= MAX_COMPONENT_BYTES for part in name.split("/"))
    assert not any(unicodedata.category(character) == "Cc" for character in name)


@given(names)
def test_the_words_of_names_go_round(name: str) -> None:
    word = quote(name)
    assert unquote(word) == name
    assert not set(" =\n\r\x00") & set(word)


@given(texts)
def test_any_text_goes_round_as_a_word(text: str) -> None:
    word = quote(text)
    assert " " not in word
    assert "=" not in word
    assert unquote(word) == text


@given(st.text(max_size=30) | st.text(st.sampled_from(list("%0aAfFgé\ud800")), max_size=12))
def test_garbage_words_raise_only_the_protocols_error(word: str) -> None:
    text = attempt(unquote, word)
    if "%" not in word:
        assert text == word
    assert not isinstance(text, ErrorCode) or text in (ErrorCode.BAD_REQUEST, ErrorCode.INVALID_ENCODING)


@pytest.mark.parametrize("word", ["%", "%4", "%zz", "a%", "%4g", "100%", "%%41"])
def test_a_stray_percent_sign_is_refused(word: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unquote(word)
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("word", ["%ff", "%c0%ae", "%ED%A0%80", "é%A9"])
def test_escaped_bytes_must_be_utf8(word: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        unquote(word)
    assert caught.value.code is ErrorCode.INVALID_ENCODING


def test_percent_signs_are_decoded_once() -> None:
    assert unquote("%252e%252e%252fx") == "%2e%2e%2fx"
    assert unquote("%C3%A9%2fb") == "é/b"


def test_prefixes() -> None:
    assert parse_prefix("") == parse_prefix("/") == ""
    assert parse_prefix("a/b") == parse_prefix("a/b/") == "a/b"
    for text in ("//", "a//", "..", "../", "/a"):
        with pytest.raises(RemoteProtocolError):
            parse_prefix(text)


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("photo.jpg", True), ("a/b c/d", True), ("CON", False), ("con", False), ("a/NUL.txt", False), ("COM1", False),
        ("com¹", False), ("lpt9.log", False), ("COM10", True), ("CONSOLE", True), ("nul2", True), ("a:b", False),
        ("a\\b", False), ("a?", False), ("dot.", False), ("trail ", False), (" lead", False), ("a/b./c", False),
        ("...", False), ("aux.", False), ("conout$", False), (".config", True),
    ],
)  # fmt: skip
def test_portable_names(name: str, portable: bool) -> None:
    assert parse_name(name) == name
    assert is_portable(name) is portable

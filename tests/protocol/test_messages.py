"""The lines of twinport/2: what is formatted is read back the same, and garbage raises one kind of error."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from twinport_protocol.messages import (
    MAX_LINE_BYTES,
    WORDS,
    Command,
    CommandError,
    Reply,
    ReplyKind,
    Verb,
    format_command,
    format_greeting,
    format_reply,
    parse_command,
    parse_greeting,
    parse_reply,
)
from twinport_protocol.names import MAX_NAME_BYTES
from twinport_protocol.numbers import MAX_SIZE
from twinport_protocol.tickets import MAX_TICKET_BYTES, encode_ticket

from tests.protocol.helpers import attempt, awkward, texts

ids = st.integers(1, MAX_SIZE)
words = (awkward | texts).filter(bool)
options: st.SearchStrategy[Mapping[str, str]] = st.dictionaries(
    st.sampled_from(["upload", "if-match", "after", "x-new", "root"]), awkward | texts, max_size=4
)


@st.composite
def commands(draw: st.DrawFn) -> Command:
    verb = draw(st.sampled_from(list(Verb)))
    least, most = WORDS[verb]
    return Command(draw(ids), verb, tuple(draw(st.lists(words, min_size=least, max_size=most))), draw(options))


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    reply_id = draw(ids | st.just(0))
    kind = draw(st.sampled_from(list(ReplyKind)))
    if kind is not ReplyKind.ERROR:
        return Reply(reply_id, kind, tuple(draw(st.lists(words, max_size=3))), draw(options))
    code = draw(st.sampled_from(list(ErrorCode)))
    retry = draw(st.none() | st.integers(0, 3600))
    return Reply(reply_id, kind, code=code, retry_seconds=retry, text=code.text)


@given(commands())
def test_a_command_goes_round(command: Command) -> None:
    line = format_command(command)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_command(line[:-1]) == command


@given(replies())
def test_a_reply_goes_round(reply: Reply) -> None:
    line = format_reply(reply)
    assert line.count(b"\n") == 1
    assert parse_reply(line[:-1]) == reply


@given(st.sampled_from(["HELLO", "OK"]), options)
def test_a_greeting_goes_round(lead: str, keys: Mapping[str, str]) -> None:
    line = format_greeting(lead, keys)
    assert parse_greeting(line[:-1], lead) == keys


garbage = st.binary(max_size=80) | st.lists(
    st.sampled_from([
        b"1", b"0", b"99999999999999999999", b" ", b"PING", b"LIST", b"UPLOAD", b"OK", b"ERROR", b"retry=", b"x", b"=",
        b"%", b"%0a", b"%ff", b"\xff", b"\x00", b"\r", b"HELLO", b"2", "é".encode(), b"NOTICE", b"ENTRY", b"a=b",
    ]),
    max_size=12,
).map(b"".join)  # fmt: skip


@given(garbage)
def test_garbage_raises_only_the_protocols_error(line: bytes) -> None:
    command = attempt(parse_command, line)
    if isinstance(command, Command):
        assert parse_command(format_command(command)[:-1]) == command
    reply = attempt(parse_reply, line)
    if isinstance(reply, Reply) and reply.kind is not ReplyKind.ERROR:
        assert parse_reply(format_reply(reply)[:-1]) == reply
    for lead in ("HELLO", "OK"):
        keys = attempt(functools.partial(parse_greeting, lead=lead), line)
        if not isinstance(keys, ErrorCode):
            assert parse_greeting(format_greeting(lead, keys)[:-1], lead) == keys


@pytest.mark.parametrize(
    ("line", "code", "command_id"),
    [
        (b"", ErrorCode.BAD_REQUEST, 0),
        (b"PING", ErrorCode.BAD_REQUEST, 0),
        (b"x PING", ErrorCode.BAD_REQUEST, 0),
        (b"0 PING", ErrorCode.BAD_REQUEST, 0),
        (b"01 PING", ErrorCode.BAD_REQUEST, 0),
        (b"-1 PING", ErrorCode.BAD_REQUEST, 0),
        (b"9223372036854775808 PING", ErrorCode.BAD_REQUEST, 0),
        (b"7", ErrorCode.BAD_REQUEST, 7),
        (b"7 ", ErrorCode.BAD_REQUEST, 7),
        (b"7 ping", ErrorCode.BAD_REQUEST, 7),
        (b"7 P\xc4\xb0NG", ErrorCode.BAD_REQUEST, 7),
        (b"7 FLY", ErrorCode.BAD_REQUEST, 7),
        (b"7  PING", ErrorCode.BAD_REQUEST, 7),
        (b" 7 PING", ErrorCode.BAD_REQUEST, 0),
        (b"7 PING ", ErrorCode.BAD_REQUEST, 7),
        (b"7 PING x", ErrorCode.BAD_REQUEST, 7),
        (b"7 LIST ", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT a b", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT a  b", ErrorCode.BAD_REQUEST, 7),
        (b"7 UPLOAD a", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT a\tb", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT a\rb", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT a\x00", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT %", ErrorCode.BAD_REQUEST, 7),
        (b"7 LIST a=1 a=2", ErrorCode.BAD_REQUEST, 7),
        (b"7 LIST a=b=c", ErrorCode.BAD_REQUEST, 7),
        (b"7 LIST =b", ErrorCode.BAD_REQUEST, 7),
        (b"7 STAT \xff", ErrorCode.INVALID_ENCODING, 7),
        (b"7 STAT %ff", ErrorCode.INVALID_ENCODING, 7),
    ],
)
def test_a_bad_command_names_its_code_and_where_it_can_its_id(line: bytes, code: ErrorCode, command_id: int) -> None:
    with pytest.raises(CommandError) as caught:
        parse_command(line)
    assert (caught.value.code, caught.value.command_id) == (code, command_id)


def test_keys_may_stand_anywhere_and_unknown_ones_are_kept_for_the_reader() -> None:
    command = parse_command(b"7 MOVE new=1 a%20b if-absent=1 c")
    assert command.words == ("a b", "c")
    assert command.options == {"new": "1", "if-absent": "1"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"1",
        b"1 ",
        b"x OK",
        b"1 NO",
        b"1 ok",
        b"1 OK ",
        b"1 OK  x",
        b"1 OK \xff",
        b"-1 OK",
        b"1 ENTRY a\x00",
        b"1 OK a=1 a=2",
    ],
)
def test_a_bad_reply_is_refused(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_reply(line)


def test_error_replies() -> None:
    assert parse_reply(b"3 ERROR Busy retry=5 later please") == Reply(
        3, ReplyKind.ERROR, code=ErrorCode.BUSY, retry_seconds=5, text="later please"
    )
    assert parse_reply(b"3 ERROR FromTheFuture") == Reply(3, ReplyKind.ERROR, code=ErrorCode.INTERNAL)
    with pytest.raises(RemoteProtocolError):
        parse_reply(b"3 ERROR Busy retry=soon x")
    assert format_reply(Reply(3, ReplyKind.ERROR)) == f"3 ERROR Internal {ErrorCode.INTERNAL.text}\n".encode()


@pytest.mark.parametrize("text", ["a\n0 OK", "a\rb", "retry=1 x", "\x00"])
def test_an_error_text_cannot_be_another_reply(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        format_reply(Reply(1, ReplyKind.ERROR, code=ErrorCode.BUSY, text=text))


@pytest.mark.parametrize("words", [("",), ("\ud800",)])
def test_what_cannot_be_a_word_is_not_sent(words: tuple[str, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        format_command(Command(1, Verb.STAT, words))
    with pytest.raises(LocalProtocolError):
        format_reply(Reply(1, ReplyKind.ENTRY, words))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"HELLO 1", ErrorCode.UNSUPPORTED),
        (b"HELLO 3 agent=x", ErrorCode.UNSUPPORTED),
        (b"HELLO", ErrorCode.UNSUPPORTED),
        (b"HELLO agent=x", ErrorCode.UNSUPPORTED),
        (b"hello 2", ErrorCode.BAD_REQUEST),
        (b"OK 2", ErrorCode.BAD_REQUEST),
        (b"", ErrorCode.BAD_REQUEST),
        (b"HELLO 2 ", ErrorCode.BAD_REQUEST),
        (b"HELLO 2 a=1 a=1", ErrorCode.BAD_REQUEST),
        (b"HELLO 2 a=\x01", ErrorCode.BAD_REQUEST),
        (b"HELLO 2 \xff", ErrorCode.INVALID_ENCODING),
        (b"UPLOAD x 3", ErrorCode.BAD_REQUEST),
    ],
)
def test_a_bad_greeting_is_refused(line: bytes, code: ErrorCode) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_greeting(line, "HELLO")
    assert caught.value.code is code


def test_the_longest_names_and_tickets_fit_into_a_line() -> None:
    name = "\x85" * (MAX_NAME_BYTES // 2)  # every byte of it is escaped
    hexes = {"upload": "f" * 32, "root": "f" * 64, "if-match": "f" * 64, "mtime": f"-{MAX_SIZE}", "exec": "1"}
    longest = [
        Command(MAX_SIZE, Verb.MOVE, (name, name), {"if-absent": "1"}),
        Command(MAX_SIZE, Verb.UPLOAD, (name, str(MAX_SIZE)), {**hexes, "resume": "f" * 32, "if-absent": "1"}),
        Command(MAX_SIZE, Verb.LIST, (name,), {"after": name + "/", "limit": "10000", "depth": "1"}),
        Command(MAX_SIZE, Verb.RENEW, (encode_ticket(bytes(MAX_TICKET_BYTES)),)),
    ]
    assert all(len(format_command(command)) <= MAX_LINE_BYTES for command in longest)

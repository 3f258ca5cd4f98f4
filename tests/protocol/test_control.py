"""Both ends of a control connection, joined in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.control import (
    MAX_BAD_LINES,
    MAX_EMPTY_LINES,
    BadLine,
    ControlClient,
    ControlServer,
    ControlState,
    Greeting,
    Limits,
)
from twinport_protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb, format_reply

from tests.protocol.helpers import GREETING_OPTIONS, byte_by_byte, cut, places, ready_server

SMALL = Limits(window_commands=3, window_bytes=200, line=120)


def greet(limits: Limits | None = None) -> tuple[ControlClient, ControlServer]:
    """A pair past its greeting."""
    client, server = ControlClient(), ControlServer(limits or Limits())
    server.feed(client.hello(GREETING_OPTIONS))
    (event,) = server.events()
    assert event == Greeting(GREETING_OPTIONS)
    client.feed(server.greet({"data-port": "5002"}))
    (answer,) = client.events()
    assert isinstance(answer, Greeting)
    assert answer.options["data-port"] == "5002"
    return client, server


def events_of(make: Callable[[], ControlServer], pieces: Iterable[bytes]) -> list[object]:
    """What a server makes of a stream; each command is answered at once, and an error ends it."""
    server = make()
    found: list[object] = []
    for piece in pieces:
        server.feed(piece)
        try:
            for event in server.events():
                found.append(event)
                if isinstance(event, Greeting):
                    server.greet({})
                elif isinstance(event, Command):
                    server.reply(Reply(event.id, ReplyKind.OK))
        except RemoteProtocolError as error:
            return [*found, error.code]
    return found


def test_commands_are_answered_in_any_order() -> None:
    client, server = greet()
    first, line_1 = client.command(Verb.STAT, ("my file.txt",))
    second, line_2 = client.command(Verb.LIST, (), {"after": "a=b"})
    server.feed(line_1 + line_2)
    assert list(server.events()) == [
        Command(first, Verb.STAT, ("my file.txt",)),
        Command(second, Verb.LIST, (), {"after": "a=b"}),
    ]
    assert server.outstanding == client.outstanding == 2
    sent = [
        Reply(second, ReplyKind.ENTRY, ("x y",), {"size": "5"}),
        Reply(0, ReplyKind.NOTICE, ("draining",)),
        Reply(first, ReplyKind.ERROR, code=ErrorCode.FILE_NOT_FOUND, text=ErrorCode.FILE_NOT_FOUND.text),
        Reply(second, ReplyKind.PROGRESS, ("1", "2")),
        Reply(second, ReplyKind.DONE, (), {"count": "1"}),
    ]
    client.feed(b"".join(server.reply(reply) for reply in sent))
    assert list(client.events()) == sent
    assert server.outstanding == client.outstanding == 0


def test_the_limits_go_round_in_the_greeting() -> None:
    limits = Limits(*range(1000, 1000 + len(dataclasses.fields(Limits))))
    client, _ = greet(limits)
    assert client.limits == limits
    assert Limits.from_options({"unknown": "x"}) == Limits()


@pytest.mark.parametrize(
    "key", ["window-commands", "window-bytes", "line", "channels", "frames", "credit", "piece", "attachments"]
)
@pytest.mark.parametrize("value", ["0", "", "-1", "1e9", "9223372036854775808"])
def test_a_limit_that_nothing_could_be_done_with_is_refused(key: str, value: str) -> None:
    client = ControlClient()
    client.feed(f"OK 2 {key}={value}\n".encode())
    with pytest.raises(RemoteProtocolError):
        list(client.events())


def test_a_full_window_pauses_both_ends() -> None:
    client, server = greet(SMALL)
    lines = [client.command(Verb.PING)[1] for _ in range(3)]
    with pytest.raises(LocalProtocolError):
        client.command(Verb.PING)
    server.feed(b"".join(lines) + b"4 PING\n5 PING\n")
    assert [event.id for event in server.events() if isinstance(event, Command)] == [1, 2, 3]
    assert server.paused
    assert server.buffered_bytes == len(b"4 PING\n5 PING\n")
    server.reply(Reply(2, ReplyKind.OK))
    assert [event.id for event in server.events() if isinstance(event, Command)] == [4]
    assert server.paused


def test_the_window_counts_bytes_too() -> None:
    client, server = greet(SMALL)
    name = "x" * 100
    _, line_1 = client.command(Verb.STAT, (name,))
    with pytest.raises(LocalProtocolError):
        client.command(Verb.STAT, (name,))
    server.feed(line_1 + b"2 STAT " + name.encode() + b"\n3 PING\n")
    assert len(list(server.events())) == 2
    assert server.paused, "the line that crosses the window is the last one taken"
    with pytest.raises(LocalProtocolError, match="LineTooLong"):
        client.command(Verb.STAT, ("x" * 200,))


def test_a_line_longer_than_the_window_can_still_be_sent_alone() -> None:
    client, _ = greet(Limits(window_bytes=10))
    client.command(Verb.STAT, ("x" * 50,))
    with pytest.raises(LocalProtocolError):
        client.command(Verb.PING)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"HELLO 1\n", ErrorCode.UNSUPPORTED),
        (b"1 PING\n", ErrorCode.BAD_REQUEST),
        (b"\n", ErrorCode.BAD_REQUEST),
        (b"\x16\x03\x01\x02\x00\x01\n", ErrorCode.BAD_REQUEST),
        (b"\xff" * 1000 + b"\n", ErrorCode.INVALID_ENCODING),
        (b"\x00" * 1000 + b"\n", ErrorCode.BAD_REQUEST),
        (b"HELLO 2\n" + b"\n" * (MAX_EMPTY_LINES + 1), ErrorCode.BAD_REQUEST),
        (b"HELLO 2\n" + b"nonsense\n" * (MAX_BAD_LINES + 1), ErrorCode.BAD_REQUEST),
        (b"HELLO 2\n1 STAT " + b"x" * 9000 + b"\n", ErrorCode.LINE_TOO_LONG),
        (b"HELLO 2\n" + b"x" * 9000, ErrorCode.LINE_TOO_LONG),
    ],
)
def test_what_ends_a_connection(stream: bytes, expected: ErrorCode) -> None:
    assert events_of(lambda: ControlServer(Limits()), [stream])[-1] is expected
    assert events_of(lambda: ControlServer(Limits()), byte_by_byte(stream))[-1] is expected


def test_an_id_that_is_outstanding_ends_the_connection() -> None:
    server = ready_server()
    server.feed(b"1 PING\n1 PING\n")
    events = server.events()
    assert next(events) == Command(1, Verb.PING)
    with pytest.raises(RemoteProtocolError) as caught:
        next(events)
    assert caught.value.code is ErrorCode.BAD_STATE


def test_bad_lines_are_answered_and_the_connection_goes_on() -> None:
    client, server = greet()
    server.feed(b"7 FLY\n8 STAT %ff\nwhat\n\n9 PING\n")
    events = list(server.events())
    bad = [event.reply for event in events if isinstance(event, BadLine)]
    assert [(reply.id, reply.code) for reply in bad] == [
        (7, ErrorCode.BAD_REQUEST),
        (8, ErrorCode.INVALID_ENCODING),
        (0, ErrorCode.BAD_REQUEST),
    ]
    assert events[-1] == Command(9, Verb.PING)
    assert server.outstanding == 1, "a bad line holds no place in the window"
    client.feed(format_reply(bad[2]))
    assert [reply.code for reply in client.events() if isinstance(reply, Reply)] == [ErrorCode.BAD_REQUEST]


def test_a_bad_line_under_an_outstanding_id_does_not_end_that_command() -> None:
    server = ready_server()
    server.feed(b"7 PING\n7 FLY\n")
    assert [event.reply.id for event in server.events() if isinstance(event, BadLine)] == [0]
    assert server.reply(Reply(7, ReplyKind.OK)) == b"7 OK\n"


def test_commands_wait_until_the_greeting_is_answered() -> None:
    server = ControlServer(Limits())
    server.feed(b"HELLO 2\n1 PING\n")
    assert list(server.events()) == [Greeting({})]
    assert list(server.events()) == []
    server.greet({})
    assert list(server.events()) == [Command(1, Verb.PING)]
    with pytest.raises(LocalProtocolError):
        server.greet({})


def test_a_closed_end_says_nothing_more() -> None:
    client, server = greet()
    server.feed(client.command(Verb.QUIT)[1] + b"2 PING\n")
    events = server.events()
    assert next(events) == Command(1, Verb.QUIT)
    client.feed(server.reply(Reply(1, ReplyKind.DONE)) + b"0 NOTICE draining\n")
    server.close()
    assert list(events) == []
    replies = client.events()
    assert next(replies) == Reply(1, ReplyKind.DONE)
    client.close()
    assert list(replies) == []
    assert client.state is server.state is ControlState.CLOSED


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (b"5 OK\n", ErrorCode.BAD_STATE),
        (b"1 ENTRY x\n", ErrorCode.BAD_STATE),
        (b"nonsense\n", ErrorCode.INVALID_SIZE),
        (b"0 FLY\n", ErrorCode.BAD_REQUEST),
        (b"x" * 9000, ErrorCode.LINE_TOO_LONG),
        (b"\n", ErrorCode.INVALID_SIZE),
    ],
)
def test_a_client_takes_no_nonsense(stream: bytes, code: ErrorCode) -> None:
    client, _ = greet()
    client.feed(stream)
    with pytest.raises(RemoteProtocolError) as caught:
        list(client.events())
    assert caught.value.code is code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"ERROR BadRequest the request is malformed\n", ErrorCode.BAD_REQUEST),
        (b"0 ERROR Busy later\n", ErrorCode.BUSY),
        (b"ERROR Busy\n", ErrorCode.BUSY),
        (b"0 ERROR \xff\n", ErrorCode.INTERNAL),
        (b"OK 3\n", ErrorCode.UNSUPPORTED),
        (b"SSH-2.0-OpenSSH\n", ErrorCode.BAD_REQUEST),
    ],
)
def test_a_greeting_that_is_refused_says_why(line: bytes, code: ErrorCode) -> None:
    client = ControlClient()
    client.feed(line)
    with pytest.raises(RemoteProtocolError) as caught:
        list(client.events())
    assert caught.value.code is code


def test_our_own_mistakes_are_not_the_peers() -> None:
    client = ControlClient()
    with pytest.raises(LocalProtocolError):
        client.command(Verb.PING)
    with pytest.raises(LocalProtocolError):
        ready_server().reply(Reply(5, ReplyKind.OK))


streams = st.lists(
    st.sampled_from([
        b"HELLO 2 agent=x\n", b"1 PING\n", b"2 STAT a%20b\r\n",
        b"3 LIST after=x\n", b"\n", b"FLY\n", b"4 FLY\n", b"5 STAT %ff\n",
        b"0 PING\n", b"6 STAT " + b"y" * 60 + b"\n", b"7 STAT " + b"z" * 130 + b"\n", b"partial",
    ]),
    max_size=14,
).map(b"".join)  # fmt: skip


@given(streams, places)
def test_the_events_do_not_depend_on_how_the_bytes_come(stream: bytes, cuts: list[int]) -> None:
    def make() -> ControlServer:
        return ControlServer(SMALL)

    whole = events_of(make, [stream])
    assert events_of(make, cut(stream, cuts)) == whole
    assert events_of(make, byte_by_byte(stream)) == whole


@given(st.binary(max_size=300), places)
def test_garbage_raises_only_the_protocols_error(stream: bytes, cuts: list[int]) -> None:
    assert events_of(lambda: ready_server(SMALL), cut(stream, cuts)) == events_of(lambda: ready_server(SMALL), [stream])
    client, _ = greet()
    client.feed(stream)
    try:
        assert list(client.events()) == [] or stream.startswith(b"0 ")
    except RemoteProtocolError:
        return


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60))
def test_the_two_ends_agree_about_the_window(steps: list[tuple[bool, int]]) -> None:
    """Whatever is sent and answered in whichever order: the client never overruns a window, the counts stay equal."""
    client, server = greet(SMALL)
    open_ids: list[int] = []
    for sends, number in steps:
        if sends:
            words = ("n" * (number + 1),)
            try:
                command_id, line = client.command(Verb.STAT, words)
            except LocalProtocolError:
                assert open_ids
                continue
            server.feed(line)
            assert list(server.events()) == [Command(command_id, Verb.STAT, words)]
            open_ids.append(command_id)
        elif open_ids:
            answered = open_ids.pop(number % len(open_ids))
            client.feed(server.reply(Reply(answered, ReplyKind.OK)))
            assert list(client.events()) == [Reply(answered, ReplyKind.OK)]
        assert client.outstanding == server.outstanding == len(open_ids)

"""The classic dialect without a socket: its lines, its table, and what any split or any garbage may do to it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.classic import (
    MAX_BAD_LINES,
    MAX_EMPTY_LINES,
    MAX_LINE_BYTES,
    MAX_QUEUE_LINES,
    MAX_REPLY_BYTES,
    TRANSITIONS,
    BadLine,
    ClassicServer,
    Command,
    Download,
    List,
    Quit,
    Ready,
    Reply,
    ReplyKind,
    SessionEvent,
    SessionState,
    Upload,
    format_command,
    format_error,
    listing_head,
    parse_command,
    parse_reply,
)
from twinport_protocol.errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from twinport_protocol.names import RemoteName, parse_name
from twinport_protocol.numbers import MAX_SIZE

PORT = 5002

names = (
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=60)
    .filter(lambda text: text.strip(" ") == text and all(part.strip(" .") for part in text.split("/")))
    .filter(lambda text: not text.startswith(".twinport"))
    .map(parse_name)
)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(Upload, names, st.integers(0, MAX_SIZE)),
    st.builds(Download, names),
    st.sampled_from([List(), Ready(), Quit()]),
)


def drain(server: ClassicServer) -> list[Command | BadLine | ErrorCode]:
    """All events that may be served now; the error that ends the session, as its code."""
    events: list[Command | BadLine | ErrorCode] = []
    try:
        while (event := server.next_event()) is not None:
            events.append(event)
    except RemoteProtocolError as error:
        events.append(error.code)
    return events


def fed(lines: bytes) -> ClassicServer:
    server = ClassicServer()
    server.feed(lines)
    return server


# lines ---------------------------------------------------------------------------------------------------------------


@given(commands)
def test_a_command_survives_its_line(command: Command) -> None:
    assert parse_command(format_command(command).removesuffix(b"\n")) == command


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"UPLOAD photo.jpg 118601", Upload(parse_name("photo.jpg"), 118601)),
        (b"UPLOAD my  file.txt 0", Upload(parse_name("my  file.txt"), 0)),
        (b"UPLOAD a/b/c 7", Upload(parse_name("a/b/c"), 7)),
        (b"UPLOAD %2e%2e%2fx 1", Upload(parse_name("%2e%2e%2fx"), 1)),
        (b"UPLOAD 3 3", Upload(parse_name("3"), 3)),
        (b"UPLOAD -rf 3", Upload(parse_name("-rf"), 3)),
        (b"UPLOAD QUIT 3", Upload(parse_name("QUIT"), 3)),
        (b"UPLOAD x 9223372036854775807", Upload(parse_name("x"), MAX_SIZE)),
        (b"DOWNLOAD my file 12", Download(parse_name("my file 12"))),
        (b"DOWNLOAD DONE", Download(parse_name("DONE"))),
        (b"LIST", List()),
        (b"READY", Ready()),
        (b"QUIT", Quit()),
    ],
)
def test_what_is_a_command(line: bytes, command: Command) -> None:
    assert parse_command(line) == command


@pytest.mark.parametrize(
    "size",
    ["-1", "+5", "5.0", "1e3", "0x10", "1_0", "٣", "１２", "", "007", "00", str(MAX_SIZE + 1), "1" * 20, "1" * 3000],
)
def test_a_size_has_one_spelling(size: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_command(f"UPLOAD a {size}".encode())
    assert caught.value.code is ErrorCode.INVALID_SIZE


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"UPLOAD", ErrorCode.BAD_REQUEST),
        (b"UPLOAD x", ErrorCode.BAD_REQUEST),
        (b"DOWNLOAD", ErrorCode.BAD_REQUEST),
        (b"LIST x", ErrorCode.BAD_REQUEST),
        (b"LIST ", ErrorCode.BAD_REQUEST),
        (b"QUIT now", ErrorCode.BAD_REQUEST),
        (b"list", ErrorCode.BAD_REQUEST),
        (b" LIST", ErrorCode.BAD_REQUEST),
        (b"UPLOAD\ta\t3", ErrorCode.BAD_REQUEST),
        ("UPLOAÐ a 3".encode(), ErrorCode.BAD_REQUEST),
        (b"\0", ErrorCode.BAD_REQUEST),
        (b"UPLOAD a\rb 3", ErrorCode.BAD_REQUEST),
        (b"\rLIST", ErrorCode.BAD_REQUEST),
        (b"\xff" * 1000, ErrorCode.INVALID_ENCODING),
        (b"UPLOAD \xc0\xae\xc0\xae\xc0\xaf 3", ErrorCode.INVALID_ENCODING),
        (b"DOWNLOAD \xed\xa0\x80", ErrorCode.INVALID_ENCODING),
        (b"UPLOAD  3", ErrorCode.INVALID_NAME),
        (b"UPLOAD a  3", ErrorCode.INVALID_NAME),
        (b"UPLOAD  a 3", ErrorCode.INVALID_NAME),
        (b"DOWNLOAD ", ErrorCode.INVALID_NAME),
        (b"DOWNLOAD ../x", ErrorCode.INVALID_NAME),
        (b"DOWNLOAD /etc/passwd", ErrorCode.INVALID_NAME),
        (b"UPLOAD a\0.txt 3", ErrorCode.INVALID_NAME),
        (b"UPLOAD " + b"x" * 256 + b" 3", ErrorCode.INVALID_NAME),
        (b"UPLOAD .twinport/x 3", ErrorCode.INVALID_NAME),
    ],
)
def test_what_is_no_command(line: bytes, code: ErrorCode) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_command(line)
    assert caught.value.code is code


@given(st.binary(max_size=300))
def test_garbage_raises_the_protocols_own_error_only(line: bytes) -> None:
    for parse in (parse_command, parse_reply):
        with contextlib.suppress(RemoteProtocolError):
            parse(line)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_is_one_printable_line(code: ErrorCode) -> None:
    line = format_error(code)
    assert len(line) <= MAX_REPLY_BYTES
    assert line.endswith(b"\n")
    assert line[:-1].decode("ascii").isprintable()
    assert parse_reply(line[:-1]) == Reply(ReplyKind.ERROR, code=code)


@pytest.mark.parametrize("text", ["two\nlines", "ümlaut", "x" * 600])
def test_an_error_text_that_is_no_line_never_leaves(text: str) -> None:
    with pytest.raises(LocalProtocolError):
        format_error(ErrorCode.BUSY, text)


def test_replies_read_back() -> None:
    assert parse_reply(b"DONE") == Reply(ReplyKind.DONE)
    assert parse_reply(b"OK 5002") == Reply(ReplyKind.OK, (5002,))
    assert parse_reply(b"OK 118601 5002") == Reply(ReplyKind.OK, (118601, 5002))
    assert parse_reply(listing_head(0)[:-1]) == Reply(ReplyKind.OK, (0,))
    assert parse_reply(b"ERROR FromTheFuture why") == Reply(ReplyKind.ERROR, code=ErrorCode.INTERNAL)


@pytest.mark.parametrize(
    "line", [b"", b"OK", b"OK 1 2 3", b"OK x", b"DONE 1", b"ERROR", b"ok 1", b"ERROR " + b"x" * 600]
)
def test_what_is_no_reply(line: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_reply(line)


def test_a_command_that_fits_no_line_is_our_own_fault() -> None:
    long = RemoteName("x" * MAX_LINE_BYTES)  # past the door of names on purpose: the line has its own bound
    with pytest.raises(LocalProtocolError):
        format_command(Download(long))


# the session ---------------------------------------------------------------------------------------------------------


def test_an_upload_from_word_to_done() -> None:
    server = fed(b"UPLOAD a 3\n")
    assert drain(server) == [Upload(parse_name("a"), 3)]
    assert server.accept_upload(PORT) == b"OK 5002\n"
    assert server.state is SessionState.TRANSFERRING
    assert server.finish_transfer() == b"DONE\n"
    assert server.is_settled


def test_a_download_waits_for_ready() -> None:
    server = fed(b"DOWNLOAD a\n")
    assert drain(server) == [Download(parse_name("a"))]
    assert server.accept_download(3, PORT) == b"OK 3 5002\n"
    with pytest.raises(LocalProtocolError):
        server.finish_transfer()
    server.feed(b"READY\n")
    assert drain(server) == [Ready()]
    assert server.finish_transfer() == b"DONE\n"


def test_ready_may_be_sent_ahead_of_the_ok() -> None:
    server = fed(b"DOWNLOAD a\nREADY\n")
    assert drain(server) == [Download(parse_name("a"))]
    server.accept_download(3, PORT)
    assert drain(server) == [Ready()]


def test_a_ready_that_crossed_with_the_error_needs_no_answer() -> None:
    server = fed(b"DOWNLOAD a\n")
    drain(server)
    server.accept_download(3, PORT)
    assert server.fail_transfer(ErrorCode.TIMEOUT).startswith(b"ERROR Timeout")
    server.feed(b"READY\nLIST\n")
    assert drain(server) == [List()]
    server.end_listing()
    server.feed(b"READY\n")
    assert drain(server) == [BadLine(format_error(ErrorCode.BAD_STATE))]


def test_replies_keep_the_order_of_the_commands() -> None:
    server = fed(b"UPLOAD a 3\nLIST\nNONSENSE\nLIST\n")
    assert drain(server) == [Upload(parse_name("a"), 3)]
    server.accept_upload(PORT)
    assert drain(server) == [List()]
    server.end_listing()
    assert drain(server) == [BadLine(format_error(ErrorCode.BAD_REQUEST)), List()]


def test_list_and_quit_are_served_while_a_transfer_runs() -> None:
    server = fed(b"UPLOAD a 3\n")
    drain(server)
    server.accept_upload(PORT)
    server.feed(b"LIST\n")
    assert drain(server) == [List()]
    server.end_listing()
    server.feed(b"QUIT\n")
    assert drain(server) == [Quit()]


def test_nothing_comes_between_the_lines_of_a_listing() -> None:
    server = fed(b"UPLOAD a 3\n")
    drain(server)
    server.accept_upload(PORT)
    server.feed(b"LIST\n")
    drain(server)
    assert server.finish_transfer() == b""
    assert not server.is_settled
    assert server.end_listing() == [b"DONE\n"]
    assert server.is_settled


def test_a_second_transfer_waits_its_turn_and_what_follows_waits_with_it() -> None:
    server = fed(b"UPLOAD a 3\nUPLOAD b 4\nLIST\n")
    assert drain(server) == [Upload(parse_name("a"), 3)]
    server.accept_upload(PORT)
    assert drain(server) == []
    server.finish_transfer()
    assert drain(server) == [Upload(parse_name("b"), 4)]
    assert drain(server) == []
    server.fail_transfer(ErrorCode.DISK_FULL)
    assert drain(server) == [List()]


def test_the_queue_is_bounded_and_says_so() -> None:
    server = fed(b"UPLOAD a 3\n" + b"LIST\n" * 100)
    assert drain(server) == [Upload(parse_name("a"), 3)]
    assert drain(server) == []
    assert server.paused
    assert server.lines_taken == 1 + MAX_QUEUE_LINES
    server.accept_upload(PORT)
    for _ in range(100):
        assert drain(server) == [List()]
        server.end_listing()
    assert drain(server) == []
    assert not server.paused


@pytest.mark.parametrize("length", [MAX_LINE_BYTES + 1, MAX_LINE_BYTES * 3])
def test_a_line_too_long_ends_the_session_after_what_came_before(length: int) -> None:
    server = fed(b"LIST\n" + b"x" * (length + 1))
    assert drain(server) == [List()]
    assert drain(server) == []
    server.end_listing()
    assert drain(server) == [ErrorCode.LINE_TOO_LONG]


def test_an_endless_line_is_not_kept() -> None:
    server = fed(b"UPLOAD a 3\n")
    drain(server)
    for _ in range(1000):
        server.feed(b"x" * 65536)
        assert drain(server) == []
    assert len(server._lines) <= 65536 + MAX_LINE_BYTES + 2


def test_the_longest_line_is_still_a_line() -> None:
    server = fed(b"x" * MAX_LINE_BYTES + b"\r\n")
    assert drain(server) == [BadLine(format_error(ErrorCode.BAD_REQUEST))]


def test_empty_lines_are_let_pass_but_not_for_ever() -> None:
    server = fed(b"\n\r\n" * (MAX_EMPTY_LINES // 2) + b"LIST\r\n")
    assert drain(server) == [List()]
    server.end_listing()
    server.feed(b"\n" * (MAX_EMPTY_LINES + 1))
    assert drain(server) == [ErrorCode.BAD_REQUEST]


def test_bad_lines_are_answered_but_not_for_ever() -> None:
    server = fed(b"nonsense\n" * (MAX_BAD_LINES + 1))
    assert drain(server) == [BadLine(format_error(ErrorCode.BAD_REQUEST))] * MAX_BAD_LINES + [ErrorCode.BAD_REQUEST]


def test_a_good_line_makes_up_for_the_bad_ones_before_it() -> None:
    bad = BadLine(format_error(ErrorCode.BAD_REQUEST))
    server = fed(b"nonsense\n" * MAX_BAD_LINES + b"LIST\n")
    assert drain(server) == [bad] * MAX_BAD_LINES + [List()]
    server.end_listing()
    server.feed(b"nonsense\n" * MAX_BAD_LINES)
    assert drain(server) == [bad] * MAX_BAD_LINES


def test_after_the_end_nothing_is_taken() -> None:
    server = fed(b"LIST\nLIST\n")
    server.close()
    server.feed(b"LIST\n")
    assert drain(server) == []
    assert server.is_settled


def test_the_table_is_whole() -> None:
    reached = {SessionState.IDLE} | set(TRANSITIONS.values())
    assert reached == set(SessionState)
    assert {event for _, event in TRANSITIONS} == set(SessionEvent)
    assert all((state, SessionEvent.CLOSE) in TRANSITIONS for state in SessionState)


@pytest.mark.parametrize("reply", ["accept_upload", "finish_transfer", "fail_transfer", "end_listing"])
def test_a_reply_to_nothing_is_our_own_fault(reply: str) -> None:
    arguments = {"accept_upload": (PORT,), "fail_transfer": (ErrorCode.BUSY,)}.get(reply, ())
    with pytest.raises(LocalProtocolError):
        getattr(ClassicServer(), reply)(*arguments)


def play(server: ClassicServer, transcript: list[object]) -> None:
    """Answer everything at once, as a server does that never waits; ends at the error that ends the session."""
    try:
        while (event := server.next_event()) is not None:
            transcript.append(event)
            if isinstance(event, Upload):
                transcript += [server.accept_upload(PORT), server.finish_transfer()]
            elif isinstance(event, Download):
                transcript.append(server.accept_download(1, PORT))
            elif isinstance(event, Ready):
                transcript.append(server.finish_transfer())
            elif isinstance(event, List):
                transcript += server.end_listing()
            elif isinstance(event, Quit):
                server.close()
    except RemoteProtocolError as error:
        transcript.append(error.code)
        server.close()


@given(st.lists(commands, max_size=8), st.lists(st.integers(1, 40), min_size=1), st.binary(max_size=40))
def test_any_split_of_the_bytes_gives_the_same_session(said: list[Command], cuts: list[int], garbage: bytes) -> None:
    stream = b"".join(map(format_command, said)) + garbage + b"\n"
    whole: list[object] = []
    server = fed(stream)
    play(server, whole)
    pieces: list[object] = []
    split = ClassicServer()
    at = turn = 0
    while at < len(stream):
        width = cuts[turn % len(cuts)]
        split.feed(stream[at : at + width])
        play(split, pieces)
        at += width
        turn += 1
    assert pieces == whole


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_ends_in_replies_or_in_the_end(chunks: list[bytes]) -> None:
    server = ClassicServer()
    transcript: list[object] = []
    for chunk in chunks:
        server.feed(chunk)
        try:
            play(server, transcript)
        except ProtocolError as error:  # pragma: no cover - the assertion below says it
            pytest.fail(f"raised {error!r}")
    for event in transcript:
        if isinstance(event, BadLine):
            assert event.reply.endswith(b"\n")
            assert len(event.reply) <= MAX_REPLY_BYTES

"""Control connections that break the rules of lines, greeting and reading: one clear answer, bounded memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus
from twinport_protocol.messages import MAX_LINE_BYTES, ReplyKind, Verb

from tests.service.conftest import StartServer, in_a_hurry
from tests.service.oracle import Oracle
from tests.service.raw_client import ANSWER_SECONDS, ClosedError, RawChannel, RawControl, await_true, many, send_file
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
MIB = 1024 * 1024
pytestmark = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # the storage has no part in these


def resident_bytes() -> int:
    """The memory of this process, in which the server runs too."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


# the greeting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "reply"),
    [
        (b"HELLO 3 agent=x\n", b"0 ERROR Unsupported"),
        (b"HELLO\n", b"0 ERROR Unsupported"),
        (b"HELLO 2 agent\xff=x\n", b"0 ERROR InvalidEncoding"),
        (b"HELLO 2 a=1 a=2\n", b"0 ERROR BadRequest"),
        (b"HELLO 2 \x01=2\n", b"0 ERROR BadRequest"),
        (b"hello 2\n", b"0 ERROR BadRequest"),
        (b"1 PING\n", b"0 ERROR BadRequest"),
        (b"LIST\n", b"0 ERROR BadRequest"),
        (b"\n", b"0 ERROR BadRequest"),
        (b"\x00\n", b"0 ERROR BadRequest"),
        (b"\xff" * 1000 + b"\n", b"0 ERROR"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"0 ERROR BadRequest"),
        (b"HELLO 2 pad=" + b"x" * MAX_LINE_BYTES + b"\n", b"0 ERROR LineTooLong"),
        (b"x" * (MAX_LINE_BYTES + 2), b"0 ERROR LineTooLong"),
    ],
)
def test_anything_but_the_greeting_is_answered_and_closed(
    server: RunningServer, oracle: Oracle, first: bytes, reply: bytes
) -> None:
    with RawControl(server.control_address, greet=False) as client:
        client.send(first)
        assert client.line().startswith(reply)
        assert client.is_closed()
    oracle.check()


@pytest.mark.parametrize(
    "first", [b"", b"H", b"HELLO", b"HELLO 2 agent=", b"\x89TP", b"\x16\x03\x01\x02\x00\x01", b"x"]
)
@in_a_hurry
def test_a_greeting_that_does_not_come_ends_in_timeout(server: RunningServer, oracle: Oracle, first: bytes) -> None:
    with RawControl(server.control_address, greet=False) as client:
        client.send(first)
        assert b"ERROR Timeout" in client.line()
        assert client.is_closed()
    oracle.check()


@pytest.mark.parametrize("first", [b"", b"H", b"HELLO 2 agent=x", b"\x89TP"])
def test_a_greeting_that_ends_in_the_middle_is_forgotten(server: RunningServer, oracle: Oracle, first: bytes) -> None:
    with RawControl(server.control_address, greet=False) as client:
        client.send(first)
        client.sock.shutdown(1)
        assert client.is_closed()
    oracle.check()


@in_a_hurry
def test_a_drip_does_not_prolong_the_greeting(server: RunningServer, oracle: Oracle) -> None:
    with RawControl(server.control_address, greet=False) as client, suppress(OSError):
        for byte in b"HELLO 2 agent=" + b"x" * 1000:
            client.send(bytes((byte,)))
            if client.is_closed(within_seconds=0.02):
                break
        else:
            pytest.fail("the whole drip was listened to")
    oracle.check()


def test_a_greeting_in_single_bytes_is_a_greeting(start_server: StartServer) -> None:
    running = start_server(greeting_seconds=60.0)
    with RawControl(running.control_address, greet=False) as client:
        for byte in b"HELLO 2 agent=slow\r\n":
            client.send(bytes((byte,)))
            time.sleep(0.002)  # so that the bytes come one by one: nothing can be awaited here
        assert client.line().startswith(b"OK 2 ")
        assert client.raw(b"1 PING").kind is ReplyKind.OK


@in_a_hurry
def test_a_greeted_session_may_be_silent_longer_than_a_greeting(server: RunningServer, control: RawControl) -> None:
    assert not control.is_closed(within_seconds=2 * server.settings.greeting_seconds)
    control.sock.settimeout(ANSWER_SECONDS)
    assert control.ask(Verb.PING).kind is ReplyKind.OK


def test_an_idle_session_is_told_and_closed(start_server: StartServer) -> None:
    running = start_server(idle_seconds=0.3)
    with RawControl(running.control_address) as client:
        assert client.reply().code is ErrorCode.TIMEOUT
        assert client.is_closed()


def test_half_a_line_now_and_then_keeps_no_session_alive(start_server: StartServer) -> None:
    running = start_server(idle_seconds=0.3)
    with RawControl(running.control_address) as client, suppress(OSError):
        for _ in range(1000):
            client.send(b"x")
            if client.is_closed(within_seconds=0.02):
                break
        else:
            pytest.fail("it was kept alive")


# lines ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "number", "code"),
    [
        (b"PING", 0, ErrorCode.BAD_REQUEST),
        (b"1", 1, ErrorCode.BAD_REQUEST),
        (b"1 ", 1, ErrorCode.BAD_REQUEST),
        (b"0 PING", 0, ErrorCode.BAD_REQUEST),
        (b"-1 PING", 0, ErrorCode.BAD_REQUEST),
        (b"01 PING", 0, ErrorCode.BAD_REQUEST),
        (b"99999999999999999999 PING", 0, ErrorCode.BAD_REQUEST),
        ("١ PING".encode(), 0, ErrorCode.BAD_REQUEST),
        (b" 1 PING", 0, ErrorCode.BAD_REQUEST),
        (b"1  PING", 1, ErrorCode.BAD_REQUEST),
        (b"1 ping", 1, ErrorCode.BAD_REQUEST),
        (b"1 PING ", 1, ErrorCode.BAD_REQUEST),
        (b"1 PING\t", 1, ErrorCode.BAD_REQUEST),
        (b"1 PING\x00", 1, ErrorCode.BAD_REQUEST),
        (b"\x00", 0, ErrorCode.BAD_REQUEST),
        (b"\xff" * 100, 0, ErrorCode.BAD_REQUEST),
        (b"1 \xff\xfe", 1, ErrorCode.BAD_REQUEST),
        (b"1 P\xc4\xb0NG", 1, ErrorCode.BAD_REQUEST),
        (b"1 LOGIN root root", 1, ErrorCode.BAD_REQUEST),
        (b"1 HELLO 2", 1, ErrorCode.BAD_REQUEST),
        (b"HELLO 2 agent=x", 0, ErrorCode.BAD_REQUEST),
        (b"1 STAT \xff", 1, ErrorCode.INVALID_ENCODING),
        (b"1 PI\rNG", 1, ErrorCode.BAD_REQUEST),
        (b"1 STAT a\rb", 1, ErrorCode.BAD_REQUEST),
        (b"1 PING\r\r", 1, ErrorCode.BAD_REQUEST),
        (b"1 OK", 1, ErrorCode.BAD_REQUEST),
        (b"1 STAT " + b"x" * (MAX_LINE_BYTES - 7), 1, ErrorCode.INVALID_NAME),
        (b"GET / HTTP/1.1", 0, ErrorCode.BAD_REQUEST),
    ],
)
def test_a_line_that_is_no_command_gets_one_error_and_the_session_goes_on(
    control: RawControl, oracle: Oracle, line: bytes, number: int, code: ErrorCode
) -> None:
    reply = control.raw(line)
    assert (reply.kind, reply.id, reply.code) == (ReplyKind.ERROR, number, code)
    assert control.raw(b"7 PING").id == 7
    oracle.check(is_idle=False)


def test_line_ends_are_lf_with_or_without_cr(control: RawControl) -> None:
    control.send(b"1 PING\r\n2 PING\n\n\r\n3 PING\r\n")
    assert [control.reply().id for _ in range(3)] == [1, 2, 3]


def test_empty_lines_are_ignored_up_to_ten_in_a_row(server: RunningServer, control: RawControl) -> None:
    for number in range(1, 4):
        control.send(b"\n" * 10)
        assert control.raw(f"{number} PING".encode()).id == number
    control.send(b"\n" * 11)
    assert control.reply().code is ErrorCode.BAD_REQUEST
    assert control.is_closed()


def test_bad_lines_are_borne_up_to_ten_in_a_row(control: RawControl) -> None:
    for number in range(1, 4):
        for _ in range(10):
            assert control.raw(b"what?").code is ErrorCode.BAD_REQUEST
        if number < 3:
            assert control.raw(b"%d PING" % number).id == number
    assert control.raw(b"what?").code is ErrorCode.BAD_REQUEST
    assert control.is_closed()


def test_a_number_that_is_outstanding_ends_the_session(start_server: StartServer) -> None:
    running = start_server()
    with RawControl(running.control_address) as client:
        client.send(b"5 LIST\n5 LIST\n")
        replies = []
        with suppress(ClosedError):
            while True:
                replies.append(client.reply())
        assert any(reply.id == 0 and reply.code is ErrorCode.BAD_STATE for reply in replies)


def test_a_line_of_50_mib_is_refused_and_not_kept(server: RunningServer, control: RawControl, oracle: Oracle) -> None:
    control.ask(Verb.PING)
    before = resident_bytes()
    with suppress(OSError):
        for _ in range(50):
            control.send(b"x" * MIB)
    assert resident_bytes() - before < 8 * MIB
    reply = control.reply()
    assert reply.code is ErrorCode.LINE_TOO_LONG
    assert control.is_closed()
    control.close()
    oracle.check()


@pytest.mark.parametrize("length", [MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_the_bound_of_a_line_is_exact(control: RawControl, length: int) -> None:
    line = b"1 PING " + b"k=v"
    line += b"x" * (length - len(line))
    reply = control.raw(line)
    assert reply.code is (None if length == MAX_LINE_BYTES else ErrorCode.LINE_TOO_LONG)


# the end of a session -------------------------------------------------------------------------------------------------


def test_a_half_closed_session_gets_all_its_answers(server: RunningServer, oracle: Oracle) -> None:
    with RawControl(server.control_address) as client:
        client.send(b"".join(f"{number} STAT x{number}\n".encode() for number in range(1, 3001)) + b"3001 PI")
        client.sock.shutdown(1)
        numbers = []
        with suppress(ClosedError):
            while True:
                numbers.append(client.reply().id)
        assert sorted(numbers) == list(range(1, 3001))
    oracle.check()


def test_quit_is_answered_and_what_came_before_it_too(server: RunningServer, oracle: Oracle) -> None:
    with RawControl(server.control_address) as client:
        client.send(b"1 LIST\n2 STAT x\n3 QUIT\n4 PING\n")
        kinds = {}
        with suppress(ClosedError):
            while True:
                reply = client.reply()
                kinds[reply.id] = reply.kind
        assert kinds == {1: ReplyKind.DONE, 2: ReplyKind.ERROR, 3: ReplyKind.DONE}
    oracle.check()


def test_quit_in_mid_upload_leaves_the_upload_open_and_nothing_visible(
    server: RunningServer, channel: RawChannel, oracle: Oracle, upload_id: MakeId
) -> None:
    data = os.urandom(300_000)
    with RawControl(server.control_address) as client:
        upload = client.upload("x", len(data), upload_id())
        channel.attach(upload.ticket)
        channel.put(1, 0, 0, data[:1000])
        assert channel.acknowledged() is AckStatus.RECEIVED
        assert client.ask(Verb.QUIT).kind is ReplyKind.DONE
        assert client.is_closed()
    oracle.check(is_idle=False)
    assert channel.put_segment(1, 0, data, commit=True, start=1000) is AckStatus.COMMITTED
    oracle.sent("x", data)
    oracle.check(is_idle=False)


def test_commands_work_while_a_transfer_runs(control: RawControl, channel: RawChannel, upload_id: MakeId) -> None:
    channel.attach(control.upload("x", 300_000, upload_id()).ticket)
    channel.put(1, 0, 0, b"x" * 1000)
    for verb in (Verb.PING, Verb.LIST):
        assert control.ask(verb).code is None
    assert control.refused(Verb.STAT, "x") is ErrorCode.FILE_NOT_FOUND


# clients that do not read ---------------------------------------------------------------------------------------------


def fill(control: RawControl, channel: RawChannel, count: int, upload_id: MakeId) -> None:
    """Make ``count`` files with long names."""
    for number in range(count):
        name = "/".join([f"{number:04}", *(["directory with a long name " * 5] * 4)])
        assert send_file(control, channel, name, b"x", upload_id()) is AckStatus.COMMITTED


def test_100_000_commands_are_answered_in_bounded_memory(server: RunningServer, control: RawControl) -> None:
    control.sock.settimeout(30)
    before = resident_bytes()
    count, batch = 100_000, 1000
    numbers: set[int] = set()
    for start in range(1, count + 1, batch):
        control.send(b"".join(b"%d STAT nothing\n" % number for number in range(start, start + batch)))
        numbers.update(control.reply().id for _ in range(batch))
    assert numbers == set(range(1, count + 1))
    assert resident_bytes() - before < 32 * MIB


@pytest.mark.parametrize("line", [b"%d PING\n", b"%d LIST\n", b"%d STAT nothing\n"])
def test_a_client_that_pipelines_without_reading_is_not_read_and_then_closed(
    start_server: StartServer, upload_id: MakeId, line: bytes
) -> None:
    running = start_server(stall_seconds=0.5)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        fill(control, channel, 300, upload_id)
    await_true(lambda: running.session_count == 0)
    before = resident_bytes()
    with RawControl(running.control_address, receive_buffer=4096) as deaf:
        deaf.sock.settimeout(1.0)
        sent = 0
        with suppress(OSError):
            for start in range(1, 2_000_000, 1000):
                deaf.send(b"".join(line % number for number in range(start, start + 1000)))
                sent += 1000
        assert sent < 1_999_000, "nothing held the flood back"
        assert resident_bytes() - before < 32 * MIB
        await_true(lambda: running.session_count == 0, what="the end of the deaf session")
    with RawControl(running.control_address) as control:
        assert control.ask(Verb.PING).kind is ReplyKind.OK


def test_deaf_sessions_do_not_slow_down_others(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(stall_seconds=600.0)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        fill(control, channel, 300, upload_id)
        deaf = [RawControl(running.control_address) for _ in range(20)]
        with many(deaf):
            for client in deaf:
                client.sock.settimeout(0.05)
                with suppress(OSError):
                    for start in range(1, 100_000, 1000):
                        client.send(b"".join(b"%d LIST\n" % number for number in range(start, start + 1000)))
            assert control.ask(Verb.PING).kind is ReplyKind.OK
            assert control.ask(Verb.STAT, "nothing").code is ErrorCode.FILE_NOT_FOUND
            assert running.session_count == 21, "the deaf are still there"

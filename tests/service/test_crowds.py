"""Crowds against a real server: who is turned away at a limit, how it is told, and that others are served meanwhile."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.tickets import Action, Ticket

from tests.service.conftest import KEYS, StartServer
from tests.service.raw_client import Address, RawChannel, RawControl, await_true
from tests.service.running_server import RunningServer

HELLO = b"HELLO 2 agent=crowd\n"


@pytest.fixture
def storage_kind() -> str:
    """Nothing here is about storages."""
    return "memory"


def connect(stack: ExitStack, address: Address, source: str, said: bytes = HELLO) -> socket.socket:
    """A connection from that address of this machine."""
    sock = stack.enter_context(closing(socket.create_connection(address, 60, (source, 0))))
    sock.sendall(said)
    return sock


def line_of(sock: socket.socket) -> bytes:
    """Its first line."""
    data = b""
    while not data.endswith(b"\n"):
        more = sock.recv(4096)
        if not more:
            break
        data += more
    return data


def assert_serves_others(server: RunningServer) -> None:
    """A new client of another address is served, long before anybody's time is up."""
    with RawControl(server.control_address) as control:
        assert control.ask(Verb.PING).kind is ReplyKind.OK


def test_the_513th_session_of_one_address_is_told_when_to_come_again(start_server: StartServer) -> None:
    server = start_server(limit_loopback=True)
    with ExitStack() as stack:
        lines = [line_of(connect(stack, server.control_address, "127.0.0.2")) for _ in range(600)]
        assert all(line.startswith(b"OK 2 ") for line in lines[:512])
        refused = b"ERROR Busy retry=5 the server is at its limit; try again a little later\n"
        assert lines[512:] == [refused] * 88
        assert_serves_others(server)
    await_true(lambda: server.session_count == 0, what="the end of all sessions")
    with ExitStack() as stack:
        assert line_of(connect(stack, server.control_address, "127.0.0.2")).startswith(b"OK 2 ")
    log = server.log.getvalue()
    assert "Refused a session: too many of one address" in log
    assert log.count("Refused a session") < 20, "not a line for each"
    server.assert_no_traceback()


def test_loopback_has_no_bound_of_its_own(start_server: StartServer) -> None:
    server = start_server(max_sessions_per_address=2, max_channels_per_address=2)
    with ExitStack() as stack:
        lines = [line_of(connect(stack, server.control_address, "127.0.0.2")) for _ in range(10)]
    assert all(line.startswith(b"OK 2 ") for line in lines)


def test_classic_sessions_count_with_the_others(start_server: StartServer) -> None:
    server = start_server(limit_loopback=True, max_sessions_per_address=2, classic=True)
    with ExitStack() as stack:
        assert line_of(connect(stack, server.control_address, "127.0.0.2", b"LIST\n")).startswith(b"OK ")
        assert line_of(connect(stack, server.control_address, "127.0.0.2")).startswith(b"OK 2 ")
        assert line_of(connect(stack, server.control_address, "127.0.0.2", b"LIST\n")).startswith(
            b"ERROR Busy retry=5 "
        )
        assert line_of(connect(stack, server.control_address, "127.0.0.3", b"LIST\n")).startswith(b"OK ")
    await_true(lambda: server.server._guards.sessions.count == 0, what="the end of all sessions")


def test_slow_ones_keep_nobody_out(start_server: StartServer) -> None:
    """1,000 connections that say one byte and then another."""
    server = start_server(greeting_seconds=600.0)
    with ExitStack() as stack:
        slow = [connect(stack, server.control_address, "127.0.0.2", b"H") for _ in range(1000)]
        for letter in (b"E", b"L"):
            for sock in slow:
                sock.sendall(letter)
            assert_serves_others(server)
    server.assert_no_traceback()


def test_channels_of_one_address_are_bounded(start_server: StartServer) -> None:
    server = start_server(limit_loopback=True, max_channels_per_address=3)
    with ExitStack() as stack:
        channels = [stack.enter_context(RawChannel(server.data_address)) for _ in range(3)]
        await_true(lambda: server.channel_count == 3, what="three channels")
        with RawChannel(server.data_address) as one_more:
            assert one_more.is_closed()
        channels[0].close()
        await_true(lambda: server.channel_count == 2, what="room")
        with RawChannel(server.data_address):
            await_true(lambda: server.channel_count == 3, what="three channels again")
    assert "[CHANNEL] Refused: too many" in server.log.getvalue()


def test_a_user_has_a_number_of_channels(start_server: StartServer) -> None:
    """The ticket is refused, and in words: the channel itself cannot know whose it will be."""
    server = start_server(max_channels_per_user=2)
    ticket = KEYS.sign(Ticket(Action.DOWNLOAD, "alice", b"x", 1, 2**40))
    with ExitStack() as stack:
        channels = [stack.enter_context(RawChannel(server.data_address)) for _ in range(3)]
        for channel in channels[:2]:
            channel.attach(ticket)
            channel.get(1, 0, 0, 1)
            assert channel.answer().code is ErrorCode.VERSION_GONE, "the ticket is good"
        channels[2].attach(ticket)
        refused = channels[2].answer()
        assert (refused.type, refused.code) == (FrameType.FAIL, ErrorCode.BUSY)
        channels[0].close()
        await_true(lambda: server.channel_count == 2, what="room")
        channels[2].attach_next(ticket)
        channels[2].get(0x7001, 0, 0, 1)
        assert channels[2].answer().code is ErrorCode.VERSION_GONE
    server.assert_no_traceback()


def test_nobody_moves_bytes_over_a_channel_that_counts_for_somebody_else(start_server: StartServer) -> None:
    server = start_server(max_channels_per_user=1)
    alices, bobs = (KEYS.sign(Ticket(Action.DOWNLOAD, user, b"x", 1, 2**40)) for user in ("alice", "bob"))
    with RawChannel(server.data_address) as channel, RawChannel(server.data_address) as second:
        channel.attach(alices)
        channel.attach(bobs, 2)
        refused = channel.answer()
        assert (refused.type, refused.attachment, refused.code) == (FrameType.FAIL, 2, ErrorCode.DENIED)
        channel.get(1, 0, 0, 1)
        assert channel.answer().code is ErrorCode.VERSION_GONE, "alice's is as good as before"
        second.attach(alices)
        assert second.answer().code is ErrorCode.BUSY, "the channel is still alice's"
    server.assert_no_traceback()


def test_anonymous_sessions_from_a_few_addresses_keep_nobody_out(start_server: StartServer) -> None:
    server = start_server(max_sessions=40, limit_loopback=True)
    with ExitStack() as stack:
        crowd = [connect(stack, server.control_address, f"127.0.0.{2 + number % 4}") for number in range(60)]
        lines = [line_of(sock) for sock in crowd]
        assert len([line for line in lines if line.startswith(b"OK 2 ")]) >= 36
        for number in range(5):
            late = connect(stack, server.control_address, f"127.0.1.{number + 1}", HELLO)
            assert line_of(late).startswith(b"OK 2 ")
            late.sendall(b"1 PING\n")
            assert line_of(late).startswith(b"1 OK")
        assert server.session_count <= 40
    await_true(lambda: server.session_count == 0)
    server.assert_no_traceback()

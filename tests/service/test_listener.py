"""The two ports: what a connection is, told from its first bytes however they come, and what becomes of it."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import CHANNEL_MAGIC, AckStatus
from twinport_protocol.messages import ReplyKind, Verb
from twinport_service import listener
from twinport_service.listener import Acceptor, Receptionist, Routes, bind, turn_away
from twinport_service.log import configure_logging

from tests.service.conftest import StartServer, in_a_hurry
from tests.service.oracle import Oracle
from tests.service.raw_client import RawChannel, RawControl, await_true, fetch_file, send_file
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
pytestmark = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # the storage has no part in these


def client_hello(*alpn: str) -> bytes:
    """The first bytes of a real TLS client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname="twinport.example")
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("port", ["control", "data"])
@pytest.mark.parametrize("alpn", [(), ("twinport/2",), ("h2", "http/1.1")])
@pytest.mark.parametrize("split", [False, True])
def test_a_tls_client_on_a_plain_port_is_closed_at_once(
    server: RunningServer, oracle: Oracle, port: str, alpn: tuple[str, ...], split: bool
) -> None:
    address = server.control_address if port == "control" else server.data_address
    hello = client_hello(*alpn)
    with RawControl(address, greet=False) as client:
        if split:
            for at in range(0, len(hello), 100):
                client.send(hello[at : at + 100])
        else:
            client.send(hello)
        with suppress(ConnectionResetError):  # its hello was not read, so the end may be a reset
            assert client.sock.recv(1) == b""
    oracle.check()
    assert server.log.getvalue().count("TLS is not set up here") == 1


@pytest.mark.parametrize("port", ["control", "data"])
def test_what_begins_like_tls_and_is_none_is_a_bad_request(server: RunningServer, oracle: Oracle, port: str) -> None:
    address = server.control_address if port == "control" else server.data_address
    with RawControl(address, greet=False) as client:
        client.send(b"\x16\x03\x01\xff\xff" + bytes(100))
        assert client.line().startswith(b"ERROR BadRequest ")
        assert client.is_closed()
    oracle.check()


def test_text_on_the_data_port_is_told(server: RunningServer, oracle: Oracle) -> None:
    for text in (b"HELLO 2 agent=lost\n", b"LIST\n", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100):
        with RawControl(server.data_address, greet=False) as client:
            client.send(text)
            assert client.line().startswith(b"ERROR BadRequest ")
            assert client.is_closed()
    oracle.check()


def test_a_refusal_arrives_though_the_client_went_on_sending(server: RunningServer) -> None:
    with RawControl(server.data_address, greet=False) as client:
        client.send(b"x" * 50_000)
        assert client.line().startswith(b"ERROR BadRequest ")


@pytest.mark.parametrize("port", ["control", "data"])
def test_a_channel_whose_first_bytes_come_one_by_one(
    server: RunningServer, control: RawControl, upload_id: MakeId, port: str
) -> None:
    address = server.control_address if port == "control" else server.data_address
    with RawChannel(address, magic=False) as channel:
        for byte in CHANNEL_MAGIC:
            channel.send(bytes((byte,)))
            time.sleep(0.002)  # so that they come one by one: nothing can be awaited here
        assert send_file(control, channel, "x", b"abc", upload_id()) is AckStatus.COMMITTED
        assert fetch_file(control, channel, "x") == b"abc"


def test_magic_and_frames_in_one_write_lose_nothing(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    upload = control.upload("x", 3, upload_id())
    with RawChannel(server.data_address, magic=False) as channel:
        channel.send(
            CHANNEL_MAGIC + b"\x01" + bytes(3) + b"\0\0\0\1" + bytes(12) + len(upload.ticket).to_bytes(4, "big")
        )
        channel.send(upload.ticket)
        assert channel.put_segment(1, 0, b"abc", commit=True) is AckStatus.COMMITTED


@in_a_hurry
def test_silence_is_timed_from_the_connection_and_hesitation_from_the_first_byte(server: RunningServer) -> None:
    began = time.monotonic()
    with RawControl(server.control_address, greet=False) as silent:
        assert silent.line().startswith(b"ERROR Timeout ")
    assert time.monotonic() - began > 0.9
    began = time.monotonic()
    with RawControl(server.control_address, greet=False) as hesitant:
        hesitant.send(b"HEL")
        assert hesitant.line().startswith(b"ERROR Timeout ")
    assert time.monotonic() - began > 0.9


def test_with_classic_the_control_port_serves_channels_and_the_greeting_says_so(
    start_server: StartServer, upload_id: MakeId
) -> None:
    running = start_server(classic=True)
    with RawControl(running.control_address) as control:
        assert control.greeting["data-port"] == str(running.control_address[1])
        with RawChannel(running.control_address) as channel:
            assert send_file(control, channel, "x", b"abc", upload_id()) is AckStatus.COMMITTED
        with RawChannel(running.server.data_address) as stranger:  # nobody is expected there
            assert stranger.is_closed()
        assert control.ask(Verb.PING).kind is ReplyKind.OK


def test_binding_where_somebody_listens_fails_and_leaves_nothing(storage_kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OSError, match="Address already in use"):
        bind("127.0.0.1", other.getsockname()[1])


def test_without_descriptors_the_queue_waits_and_is_served_later(
    storage_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging("human", "error")
    failures = [OSError(errno.EMFILE, "Too many open files")]

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if failures:
                raise failures.pop()
            return super().accept()

    async def scenario() -> None:
        accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
        with Listener() as listening, socket.socket() as client:
            listening.setblocking(False)
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            acceptor = Acceptor(listening, lambda sock, peer: accepted.put_nowait(sock))
            client.connect(listening.getsockname())
            began = time.monotonic()
            (await asyncio.wait_for(accepted.get(), 30)).close()
            assert time.monotonic() - began > 0.2, "it must not spin meanwhile"
            acceptor.close()
            acceptor.close()

    asyncio.run(scenario())
    assert not failures


def test_whoever_waits_is_turned_away_at_the_end(storage_kind: str) -> None:
    async def scenario() -> None:
        routes = Routes(control=lambda sock, peer: sock.close(), channel=lambda sock, peer: sock.close())
        reception = Receptionist(routes, first_byte_seconds=60, decide_seconds=60, capacity=2)
        pairs = [socket.socketpair() for _ in range(3)]
        for ours, _ in pairs:
            ours.setblocking(False)
            reception.receive(ours, "peer")
        assert reception.count == 2
        assert pairs[0][1].recv(1000).startswith(b"ERROR Busy ")
        reception.close()
        assert reception.count == 0
        for _, theirs in pairs[1:]:
            assert theirs.recv(1000).startswith(b"ERROR ShuttingDown ")
            assert theirs.recv(1000) == b""
        for _, theirs in pairs:
            theirs.close()

    asyncio.run(scenario())


def test_turning_away_one_who_is_gone_is_no_error(storage_kind: str) -> None:
    configure_logging("human", "error")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    turn_away(ours, ErrorCode.BUSY)
    assert ours.fileno() == -1


def test_the_queue_of_the_system_is_deep_enough_for_a_crowd(storage_kind: str) -> None:
    assert listener._BACKLOG >= 512


def test_connections_wait_in_no_ones_way(server: RunningServer) -> None:
    waiting = [RawControl(server.control_address, greet=False) for _ in range(100)]
    try:
        await_true(lambda: server.call(lambda: server.server._receptions[0].count) == 100)
        with RawControl(server.control_address) as control:
            assert control.ask(Verb.PING).kind is ReplyKind.OK
    finally:
        for client in waiting:
            client.close()
    await_true(lambda: server.call(lambda: server.server._receptions[0].count) == 0)

"""Crowds of connections: whoever has a transfer or a session keeps it, and a new client is served at once."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import CHANNEL_MAGIC, AckStatus, FrameType, Header
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.service.conftest import StartServer
from tests.service.oracle import Oracle
from tests.service.raw_client import (
    Address,
    RawChannel,
    RawControl,
    await_true,
    fetch_file,
    many,
    root_of_data,
    run_all,
    send_file,
)
from tests.service.running_server import RunningServer
from tests.service.test_control_lines import resident_bytes

MakeId = Callable[[], bytes]
MIB = 1024 * 1024
pytestmark = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # the storage has no part in these


@pytest.mark.parametrize("port", ["control", "data"])
@pytest.mark.parametrize("first", [b"", b"HELLO 2 a=b\n", b"HELL", CHANNEL_MAGIC, b"\x16\x03\x01"])
def test_thousands_that_connect_and_reset_leave_nothing(
    server: RunningServer, oracle: Oracle, port: str, first: bytes
) -> None:
    address = server.control_address if port == "control" else server.data_address
    for _ in range(300 if first == CHANNEL_MAGIC else 1000):  # those cost a thread each
        client = RawControl(address, greet=False)
        with suppress(OSError):
            client.send(first)
        client.reset()
    await_true(lambda: server.call(lambda: sum(desk.count for desk in server.server._receptions)) == 0)
    oracle.check()


def test_a_crowd_on_both_ports_does_not_disturb_a_transfer(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server()
    data = os.urandom(4 * MIN_SEGMENT_BYTES)
    enough = threading.Event()
    is_a_crowd = threading.Event()
    connected = itertools.count(1)

    def flood(address: Address) -> None:
        crowd: list[RawControl] = []
        with many(crowd):
            while not enough.is_set():
                with suppress(OSError):
                    crowd.append(RawControl(address, greet=False))
                    if next(connected) > 200:
                        is_a_crowd.set()
                if len(crowd) > 200:
                    crowd.pop(0).close()
            for client in crowd:
                client.close()

    def transfer() -> None:
        try:
            with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
                for turn in itertools.count():
                    if turn >= 4 and is_a_crowd.is_set():
                        return
                    reply = send_file(control, channel, f"x{turn}", data, upload_id())
                    assert not isinstance(reply, int | ErrorCode)
                    assert reply.kind is ReplyKind.DONE
                    assert fetch_file(control, channel, f"x{turn}") == data
        finally:
            enough.set()

    run_all([transfer, lambda: flood(running.control_address), lambda: flood(running.data_address)])
    running.assert_no_traceback()


def half_a_second_costs() -> float:
    """The processor time of this process, in which the server runs too, in half a second of waiting."""
    before = time.process_time()
    time.sleep(0.5)  # this is what is measured
    return time.process_time() - before


def test_a_slow_crowd_costs_no_processor_time_and_new_clients_are_served(start_server: StartServer) -> None:
    running = start_server(greeting_seconds=600.0)
    crowd = [RawControl(running.control_address, greet=False) for _ in range(1000)]
    with many(crowd):
        for client in crowd:
            client.send(b"HEL")
        reception = running.server._receptions[0]
        await_true(lambda: running.call(lambda: reception.count) >= 1000)
        # The last of the crowd may still be under way, and something else of this process at work: once is enough.
        assert any(half_a_second_costs() < 0.2 for _ in range(10))
        with RawControl(running.control_address) as control:
            assert control.ask(Verb.PING).kind is ReplyKind.OK
        assert running.call(lambda: reception.count) >= 1000, "the crowd is still there"


def test_of_too_many_silent_connections_the_oldest_gives_way(start_server: StartServer) -> None:
    running = start_server(max_unattached=8, attach_seconds=600.0)
    crowd = [RawChannel(running.data_address, magic=False) for _ in range(20)]
    with many(crowd):
        await_true(lambda: running.call(lambda: running.server._receptions[1].count) == 8)
        assert b"ERROR Busy" in crowd[0].sock.recv(1000)


def test_sessions_past_their_cap_are_told(start_server: StartServer) -> None:
    running = start_server(max_sessions=3)
    sessions = [RawControl(running.control_address) for _ in range(3)]
    with many(sessions):
        with RawControl(running.control_address, greet=False) as late:
            late.send(b"HELLO 2 agent=late\n")
            assert late.line().startswith(b"ERROR Busy ")
            assert late.is_closed()
        assert sessions[0].ask(Verb.PING).kind is ReplyKind.OK
        sessions.pop().close()
        await_true(lambda: running.session_count == 2)
        with RawControl(running.control_address) as control:
            assert control.ask(Verb.PING).kind is ReplyKind.OK


def test_channels_past_their_cap_are_closed_and_others_go_on(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(max_channels=3)
    with RawControl(running.control_address) as control:
        channels = [RawChannel(running.data_address) for _ in range(3)]
        with many(channels):
            for number, channel in enumerate(channels):
                channel.attach(control.upload(f"x{number}", 3, upload_id()).ticket)
                assert channel.have() == []
            with RawChannel(running.data_address) as late:
                assert late.is_closed()
            for channel in channels:
                assert channel.put_segment(1, 0, b"abc", commit=True) is AckStatus.COMMITTED


def test_a_client_that_sends_pieces_without_reading_answers_is_held_back(
    start_server: StartServer, upload_id: MakeId
) -> None:
    running = start_server(stall_seconds=1.0)
    with RawControl(running.control_address) as control:
        upload = control.upload("x", 100, upload_id())
        with RawChannel(running.data_address, receive_buffer=4096) as deaf:
            deaf.attach(upload.ticket)
            deaf.sock.settimeout(1.0)
            before = resident_bytes()
            nothing = Header(FrameType.PUT, 0, 0, 1, 0, 0, 0).encode() * 500  # pieces of no bytes
            with suppress(OSError):
                for _ in range(1000):
                    deaf.send(nothing)
            assert resident_bytes() - before < 32 * MIB
            await_true(lambda: running.channel_count == 0, what="the end of the deaf channel")
        assert control.ask(Verb.PING).kind is ReplyKind.OK


@pytest.mark.parametrize("kind", [FrameType.MANIFEST, FrameType.HAVE])
def test_large_answers_that_nobody_reads_are_not_made(
    start_server: StartServer, upload_id: MakeId, kind: FrameType
) -> None:
    running = start_server(stall_seconds=600.0)
    size = 2000 * MIN_SEGMENT_BYTES
    with RawControl(running.control_address) as control:
        upload = control.upload("x", size, upload_id())
        ledger = running.foundation.ledger
        for segment in range(2000):
            ledger.seal(upload.upload_id, 1, segment, bytes(32))
        with RawChannel(running.data_address, receive_buffer=4096) as deaf:
            deaf.attach(upload.ticket)
            before = resident_bytes()
            for _ in range(1000):
                deaf.frame(kind, 1)
            await_true(lambda: running.channel_count == 1)
            deaf.answer()
            assert resident_bytes() - before < 32 * MIB
        await_true(lambda: running.channel_count == 0)


def test_200_downloaders_that_do_not_read_cost_little_memory(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(stall_seconds=600.0)
    data = os.urandom(MIN_SEGMENT_BYTES)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        send_file(control, channel, "x", data, upload_id())
        ticket = control.download("x").ticket
        before = resident_bytes()
        crowd = [RawChannel(running.data_address, receive_buffer=4096) for _ in range(100)]
        with many(crowd):
            for client in crowd:
                client.attach(ticket)
                for _ in range(4):
                    client.get(1, 0, 0, len(data))
            await_true(lambda: running.channel_count == 101)
            assert fetch_file(control, channel, "x") == data
            # A piece each that waits for its socket, and the thread.
            assert resident_bytes() - before < 100 * 3 * MIB
            assert control.ask(Verb.PING).kind is ReplyKind.OK
        await_true(lambda: running.channel_count == 1)


def test_a_stalled_channel_does_not_hold_up_the_others(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server(stall_seconds=600.0)
    data = os.urandom(4 * MIN_SEGMENT_BYTES)
    channels = [RawChannel(running.data_address) for _ in range(4)]
    with many(channels), RawControl(running.control_address) as control:
        upload = control.upload("x", len(data), upload_id())
        for channel in channels:
            channel.attach(upload.ticket)
        stalled, *going = channels
        stalled.frame(FrameType.PUT, 1, 3, 0, MIB, 0, data[-100:])
        for segment, channel in enumerate(going):
            part = data[segment * MIN_SEGMENT_BYTES :][:MIN_SEGMENT_BYTES]
            assert channel.put_segment(1, segment, part) is AckStatus.SEALED
        # The stalled one's segment is given to another.
        assert going[0].put_segment(1, 3, data[-MIN_SEGMENT_BYTES:]) is AckStatus.SEALED
        assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
        assert running.channel_count == 4, "the stalled one is still there"

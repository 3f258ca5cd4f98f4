"""The owner of one data connection, on a socket pair: what it holds is bounded, whoever does not read."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import (
    CHANNEL_MAGIC,
    HEADER,
    HEADER_BYTES,
    WHOLE_CHANNEL,
    FrameDecoder,
    FrameType,
    Header,
    Message,
)
from twinport_protocol.names import parse_name
from twinport_protocol.tickets import Action, Ticket
from twinport_service.buffers import BufferPool
from twinport_service.channel_session import ChannelSession
from twinport_service.channel_times import ChannelTimes
from twinport_service.channel_transport import PlainTransport
from twinport_service.channel_worker import ChannelWorker
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import UploadSpec
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk

from tests.service.conftest import KEYS
from tests.service.raw_client import await_true

LATER = 2**40
UPLOAD = b"u" * 16
GUARD_SECONDS = 30.0


class Pair:
    """A worker in a thread, and the other end of its connection."""

    def __init__(self, times: ChannelTimes, clock: Callable[[], float]) -> None:
        self.desk = UploadDesk(MemoryStorage(), MemoryLedger())
        self.desk.open_small(UploadSpec(UPLOAD, "anonymous", parse_name("x"), 100))
        self.client, server = socket.socketpair()
        server.setblocking(False)
        self.client.settimeout(GUARD_SECONDS)
        self.pool = BufferPool(64 * 1024, 2)
        self.worker = ChannelWorker(
            PlainTransport(server),
            "peer",
            lambda wake: ChannelSession(self.desk, KEYS, Limits(), wake),
            self.pool,
            times,
            clock,
        )
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        ticket = KEYS.sign(Ticket(Action.UPLOAD, "anonymous", UPLOAD, 100, LATER, 1))
        self.client.sendall(CHANNEL_MAGIC + Header(FrameType.ATTACH, 0, 0, 1, 0, 0, len(ticket)).encode() + ticket)

    @property
    def unread_bytes(self) -> int:
        """What the client sent and the worker has not taken yet."""
        count = array.array("i", [0])
        fcntl.ioctl(self.client.fileno(), termios.TIOCOUTQ, count)
        return count[0]

    def frame(self) -> Header:
        """The next frame; it carries no payload."""
        data = b""
        while len(data) < HEADER_BYTES:
            data += self.client.recv(HEADER_BYTES - len(data))
        return Header._make(HEADER.unpack(data))

    def frames(self) -> list[Message]:
        """All frames until the worker closes; they carry no payload."""
        decoder = FrameDecoder(from_client=False)
        found: list[Message] = []
        while data := self.client.recv(65536):
            for event in decoder.feed(memoryview(data)):
                assert isinstance(event, Message)
                found.append(event)
        return found


@contextmanager
def pair(
    times: ChannelTimes = ChannelTimes(),  # noqa: B008 (frozen, so one default serves all)
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Pair]:
    """A running pair."""
    running = Pair(times, clock)
    try:
        yield running
    finally:
        running.client.close()
        running.thread.join(GUARD_SECONDS)
        assert not running.thread.is_alive()


def test_more_answers_than_are_read_stop_the_reading_and_none_is_lost() -> None:
    with pair() as running:
        burst = Header(FrameType.PUT, 0, 0, 1, 0, 0, 0).encode() * 500  # pieces of no bytes, each with its ACK
        running.client.sendall(burst)
        bursts = 1
        while bursts < 1000:
            deadline = time.monotonic() + 0.5
            while running.unread_bytes and time.monotonic() < deadline:
                time.sleep(0.0002)
            if running.unread_bytes:
                break
            running.client.sendall(burst)
            bursts += 1
        assert bursts < 1000, "it takes frames for ever"
        assert len(running.worker.session.outgoing) < 8192
        for _ in range(bursts * 500):
            assert running.frame().type == FrameType.ACK
        running.client.sendall(burst)
        for _ in range(500):
            assert running.frame().type == FrameType.ACK


def test_what_was_said_before_a_farewell_arrives_though_the_client_goes_on_sending() -> None:
    with pair(ChannelTimes(drain_seconds=GUARD_SECONDS)) as running:
        running.client.sendall(Header(FrameType.PUT, 0, 0, 1, 0, 0, 0).encode() * 100)
        await_true(lambda: running.worker.session.tally.bytes_in == 0 and not running.unread_bytes)
        running.client.sendall(bytes(24) + bytes(100_000))  # no frame of this protocol, and more of it
        frames = running.frames()
        assert [frame.header.type for frame in frames] == [FrameType.ACK] * 100 + [FrameType.FAIL]
        assert frames[-1].header.attachment == WHOLE_CHANNEL
        assert frames[-1].header.status == ErrorCode.BAD_REQUEST.number


def test_draining_waits_for_the_end_of_the_frame_under_way() -> None:
    with pair(ChannelTimes(drain_seconds=60.0)) as running:
        running.client.sendall(Header(FrameType.PUT, 0, 0, 1, 0, 0, 50).encode() + bytes(20))
        await_true(lambda: not running.unread_bytes and not running.worker.session.at_boundary)
        running.worker.drain()
        running.client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            running.client.recv(1)
        running.client.settimeout(GUARD_SECONDS)
        running.client.sendall(bytes(30))
        frames = [running.frame(), running.frame()]
        assert [frame.type for frame in frames] == [FrameType.ACK, FrameType.GOODBYE]
        running.client.close()
        running.thread.join(GUARD_SECONDS)
        assert not running.thread.is_alive()


def test_draining_cuts_a_frame_that_does_not_end() -> None:
    with pair(ChannelTimes(drain_seconds=0.2)) as running:
        running.client.sendall(Header(FrameType.PUT, 0, 0, 1, 0, 0, 50).encode() + bytes(20))
        await_true(lambda: not running.unread_bytes and not running.worker.session.at_boundary)
        running.worker.drain()
        running.thread.join(GUARD_SECONDS)
        assert not running.thread.is_alive()
        assert running.frames() == []


def test_buffers_are_borrowed_only_while_bytes_flow() -> None:
    with pair() as running:
        running.client.sendall(Header(FrameType.PUT, 0, 0, 1, 0, 0, 50).encode() + bytes(20))
        await_true(lambda: len(running.pool._idle) == 1, what="the return of the buffer")


def test_a_worker_that_is_aborted_ends_and_can_be_woken_all_the_same() -> None:
    with pair() as running:
        before = set(os.listdir("/proc/self/fd"))
        running.worker.abort()
        running.thread.join(GUARD_SECONDS)
        assert not running.thread.is_alive()
        assert running.worker.aborted
        running.worker.wake()
        running.worker.drain()
        running.worker.abort()
        assert len(set(os.listdir("/proc/self/fd"))) < len(before)


def test_an_idle_channel_that_goes_to_work_again_has_its_whole_time_for_the_first_piece() -> None:
    moment = [0.0]
    with pair(ChannelTimes(stall_seconds=30, idle_seconds=300), clock=lambda: moment[0]) as running:
        await_true(lambda: running.worker.attached and running.worker._buffer is None)  # and at rest
        moment[0] = 200.0
        running.client.sendall(Header(FrameType.PUT, 0, 0, 1, 0, 0, 100).encode() + b"less than a frame")
        await_true(lambda: not running.worker.session.at_boundary)
        await_true(lambda: running.worker._buffer is None)  # it has looked at its clock since
        moment[0] = 229.0
        running.client.sendall(bytes(100 - len(b"less than a frame")))
        assert running.frame().type == FrameType.ACK
        running.client.sendall(Header(FrameType.PUT, 0, 0, 1, 0, 0, 100).encode())
        await_true(lambda: not running.worker.session.at_boundary)
        await_true(lambda: running.worker._buffer is None)
        moment[0] = 300.0
        running.worker.wake()
        assert running.client.recv(1) == b"", "in mid work it has that time and no more"

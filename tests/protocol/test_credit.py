"""Two ends that are joined by pipes of 4 KiB never block each other, and what they hold stays bounded.

The pipes stand for socket buffers: a write takes what fits, a read gives what is there. Each end loops like the real
ones: it reads whatever has come, and writes what fits. Which end runs, and how much it moves, is chosen at random.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twinport_protocol.bundle_credit import BundleAnswer
from twinport_protocol.channel import ChannelClient, ChannelServer
from twinport_protocol.control import ControlClient, ControlServer, Greeting, Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import COMMIT, DETACH_AFTER, LAST, AckStatus, Chunk, FrameType, Header, Message
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.segments import digest_of

from tests.protocol.helpers import GREETING_OPTIONS, some_bytes

PIPE_BYTES = 4096
OUT_BYTES = 8192
"""A server takes nothing new while more than this of its answers is unsent."""
LIMITS = Limits(frames=6, credit=40_000, piece=10_000, attachments=3, window_commands=20, window_bytes=2000)
MANIFEST_BYTES = 30 * 32


class Pipe:
    """One direction of a connection."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.carried = 0

    def write(self, out: bytearray, at_most: int) -> None:
        """Move from the front of ``out`` what fits."""
        count = min(len(out), PIPE_BYTES - len(self._data), at_most)
        self._data += out[:count]
        del out[:count]
        self.carried += count

    def read(self, at_most: int) -> bytes:
        """Take what is there."""
        taken = bytes(self._data[:at_most])
        del self._data[:at_most]
        self.carried += len(taken)
        return taken


@dataclass(frozen=True)
class Job:
    """One file: to be sent or fetched in so many bytes at a time, or a manifest to be fetched."""

    kind: str
    size: int
    step: int

    @property
    def content(self) -> bytes:
        return some_bytes(self.size, self.size)


class ClientEnd:
    """Does its jobs one after the other, several at once, as far as credit and attachments allow."""

    def __init__(self, jobs: list[Job], inward: Pipe, outward: Pipe, *, reads_while_writing: bool = True) -> None:
        self._wire = ChannelClient(LIMITS)
        self._inward, self._outward = inward, outward
        self._out = bytearray(self._wire.open())
        self._waiting = deque(jobs)
        self._running: deque[tuple[Job, int, int]] = deque()
        self._got: dict[int, bytearray] = {}
        self._jobs: dict[int, Job] = {}
        self._reads_while_writing = reads_while_writing
        self.done = 0
        self.most_held = 0

    def run(self, at_most: int) -> None:
        if self._reads_while_writing or not self._out:
            for event in self._wire.feed(memoryview(self._inward.read(at_most))):
                assert not isinstance(event, BundleAnswer)
                self._take(event)
        if not self._out:
            self._send_next()
        self.most_held = max(self.most_held, len(self._out))
        self._outward.write(self._out, at_most)

    def _send_next(self) -> None:
        if self._waiting and self._wire.can_attach:
            job = self._waiting.popleft()
            number, frame = self._wire.attach(f"{job.kind} {job.size}".encode())
            self._out += frame
            self._jobs[number] = job
            self._got[number] = bytearray()
            self._running.append((job, number, 0))
        elif self._running:
            self._advance(*self._running.popleft())

    def _advance(self, job: Job, number: int, at: int) -> None:
        length = min(job.step, job.size - at)
        if not self._wire.has_credit(length):
            self._running.appendleft((job, number, at))
            return
        ends = at + length == job.size
        if job.kind == "put":
            part = job.content[at : at + length]
            self._out += self._wire.put(number, 0, at, length, LAST | COMMIT if ends else 0) + part
            self._out += digest_of(job.content) if ends else b""
        elif job.kind == "manifest":
            self._out += self._wire.request(FrameType.MANIFEST, number)
        else:
            self._out += self._wire.get(number, 0, at, length, DETACH_AFTER if ends else 0)
        if not ends:
            self._running.append((job, number, at + length))

    def _take(self, event: Chunk | Message) -> None:
        header = event.header
        number = header.attachment
        if isinstance(event, Chunk):
            assert header.status == 0
            got = self._got[number]
            assert event.at == len(got)
            got += event.data
            if event.ends and header.flags & LAST and len(got) == self._jobs[number].size:
                assert got == self._jobs[number].content
                self.done += 1
        elif header.type == FrameType.MANIFEST_IS:
            assert len(event.body) == MANIFEST_BYTES
            self._out += self._wire.detach(number)
            self.done += 1
        else:
            assert header.type == FrameType.ACK
            assert header.status in (AckStatus.RECEIVED, AckStatus.COMMITTED)
            self.done += header.status == AckStatus.COMMITTED


class ServerEnd:
    """Keeps what it is sent until it is complete, serves what is asked for, in order, when there is room to say it."""

    def __init__(self, inward: Pipe, outward: Pipe, chance: random.Random) -> None:
        self._wire = ChannelServer(LIMITS)
        self._inward, self._outward = inward, outward
        self._chance = chance
        self._out = bytearray()
        self._jobs: dict[int, Job] = {}
        self._held: dict[int, bytearray] = {}
        self._commits: list[Header] = []
        self._gets: deque[tuple[Header, int]] = deque()
        self.most_held = 0

    def run(self, at_most: int) -> None:
        if len(self._out) <= OUT_BYTES:
            for event in self._wire.feed(memoryview(self._inward.read(at_most))):
                assert not isinstance(event, BundleAnswer)
                self._take(event)
        # Commits end when they end, in any order: not in the order of their PUTs.
        if self._commits and self._chance.random() < 0.3:
            put = self._commits.pop(self._chance.randrange(len(self._commits)))
            self._out += self._wire.acknowledge(put, AckStatus.COMMITTED)
        if self._gets and len(self._out) <= OUT_BYTES:
            self._serve(*self._gets.popleft())
        self.most_held = max(self.most_held, len(self._out))
        self._outward.write(self._out, at_most)

    def _take(self, event: Chunk | Message) -> None:
        header = event.header
        if isinstance(event, Chunk):
            held = self._held.setdefault(header.attachment, bytearray())
            assert event.at == len(held)
            held += event.data
            if not event.ends:
                return
            if header.flags & COMMIT:
                assert digest_of(self._held.pop(header.attachment)) == event.digest
                self._commits.append(header)
            else:
                self._out += self._wire.acknowledge(header, AckStatus.RECEIVED)
        elif header.type == FrameType.ATTACH:
            kind, size = event.body.decode().split()
            self._jobs[header.attachment] = Job(kind, int(size), 1)
        elif header.type == FrameType.GET:
            self._gets.append((header, 0))
        elif header.type == FrameType.MANIFEST:
            self._out += self._wire.answer(header, FrameType.MANIFEST_IS, bytes(MANIFEST_BYTES))

    def _serve(self, get: Header, done: int) -> None:
        content = self._jobs[get.attachment].content
        length = min(LIMITS.piece, get.length - done, self._chance.randrange(1, LIMITS.piece))
        last = done + length == get.length
        at = get.offset + done
        self._out += self._wire.segment_header(get, at, length, last=last) + content[at : at + length]
        if not last:
            self._gets.appendleft((get, done + length))


def run_channel(jobs: list[Job], seed: int, *, reads_while_writing: bool = True) -> tuple[ClientEnd, ServerEnd]:
    """Both ends until all is done; ``AssertionError`` when neither moves any more."""
    chance = random.Random(seed)
    up, down = Pipe(), Pipe()
    client = ClientEnd(jobs, down, up, reads_while_writing=reads_while_writing)
    server = ServerEnd(up, down, chance)
    still = 0
    while client.done < len(jobs):
        before = up.carried + down.carried
        at_most = chance.choice([1, 100, PIPE_BYTES, PIPE_BYTES])
        chance.choice([client.run, server.run])(at_most)
        still = still + 1 if up.carried + down.carried == before else 0
        assert still < 500, f"deadlock: {client.done} of {len(jobs)} jobs done"
    return client, server


jobs = st.builds(
    Job, st.sampled_from(["put", "get", "manifest"]), st.integers(0, 60_000), st.integers(1000, LIMITS.piece)
).map(lambda job: Job(job.kind, 0, 1) if job.kind == "manifest" else job)


@settings(max_examples=60)
@given(st.lists(jobs, min_size=1, max_size=12), st.integers(0, 2**32))
def test_a_channel_never_deadlocks_and_holds_little(work: list[Job], seed: int) -> None:
    client, server = run_channel(work, seed)
    assert client.most_held <= LIMITS.piece + 32 + 24 * (2 + len(work))
    assert server.most_held <= OUT_BYTES + LIMITS.piece + LIMITS.frames * (24 + MANIFEST_BYTES)


def test_the_pipes_do_block_a_client_that_does_not_read_while_it_writes() -> None:
    """The simulation can tell: without the rule, uploads and downloads at once come to a stand."""
    work = [Job("get", 40_000, 10_000), Job("put", 40_000, 10_000)] * 3
    with pytest.raises(AssertionError, match="deadlock"):
        run_channel(work, 1, reads_while_writing=False)
    run_channel(work, 1)


class ControlPair:
    """A client that asks for listings as fast as the window allows, a server that answers each with many lines."""

    def __init__(self, commands: int, entries: int, chance: random.Random) -> None:
        self.up, self.down = Pipe(), Pipe()
        self._client, self._server = ControlClient(), ControlServer(LIMITS)
        self._client_out = bytearray(self._client.hello(GREETING_OPTIONS))
        self._server_out = bytearray()
        self._left = commands
        self._entries = entries
        self._pending: list[Command] = []
        self._chance = chance
        self.answered = 0

    def run_client(self, at_most: int) -> None:
        self._client.feed(self.down.read(at_most))
        for event in self._client.events():
            if isinstance(event, Reply) and event.kind.ends_command:
                self.answered += 1
        while self._left and len(self._client_out) < OUT_BYTES and self._client.has_room(200):
            self._client_out += self._client.command(Verb.LIST, ("p" * self._chance.randrange(1, 150),))[1]
            self._left -= 1
        self.up.write(self._client_out, at_most)

    def run_server(self, at_most: int) -> None:
        if len(self._server_out) <= OUT_BYTES and not self._server.paused:
            self._server.feed(self.up.read(at_most))
        if len(self._server_out) <= OUT_BYTES:
            for event in self._server.events():
                if isinstance(event, Greeting):
                    self._server_out += self._server.greet({})
                elif isinstance(event, Command):
                    self._pending.append(event)
            assert self._server.buffered_bytes <= PIPE_BYTES + LIMITS.line
            assert self._server.outstanding <= LIMITS.window_commands
            self._answer_one()
        self.down.write(self._server_out, at_most)

    def _answer_one(self) -> None:
        if not self._pending:
            return
        command = self._pending.pop(self._chance.randrange(len(self._pending)))
        if self._chance.random() < 0.2:
            self._server_out += self._server.reply(Reply(command.id, ReplyKind.ERROR, code=ErrorCode.FILE_NOT_FOUND))
            return
        for number in range(self._entries):
            self._server_out += self._server.reply(Reply(command.id, ReplyKind.ENTRY, (f"file {number}",)))
        self._server_out += self._server.reply(Reply(command.id, ReplyKind.DONE))


@settings(max_examples=30)
@given(st.integers(1, 120), st.integers(0, 400), st.integers(0, 2**32))
def test_a_control_connection_never_deadlocks_and_holds_little(commands: int, entries: int, seed: int) -> None:
    chance = random.Random(seed)
    pair = ControlPair(commands, entries, chance)
    still = 0
    while pair.answered < commands:
        before = pair.up.carried + pair.down.carried
        chance.choice([pair.run_client, pair.run_server])(chance.choice([1, 300, PIPE_BYTES, PIPE_BYTES, PIPE_BYTES]))
        still = still + 1 if pair.up.carried + pair.down.carried == before else 0
        assert still < 500, f"deadlock: {pair.answered} of {commands} answered"
    assert pair.answered == commands

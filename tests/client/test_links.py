"""The control link, the wake-up and the choice of ports, over real sockets on loopback."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from twinport import errors
from twinport.addresses import Address
from twinport.client import Client
from twinport.control_link import ControlLink
from twinport.data_channel import DataChannel
from twinport.engine import Request
from twinport.streams import stream_of
from twinport.wake import Waker
from twinport_protocol.control import ControlClient, ControlServer, Greeting, Limits
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb

from tests.client.conftest import Connect
from tests.client.servers import Passage, Proxy, ServerProcess

AWAIT_SECONDS = 30.0


def test_wakes_that_nobody_saw_are_one_and_none_is_lost() -> None:
    waker = Waker()
    for _ in range(100_000):
        waker.wake()
    assert select.select([waker.fileno()], [], [], 0)[0]
    waker.clear()
    assert not select.select([waker.fileno()], [], [], 0)[0]
    waker.wake()
    assert select.select([waker.fileno()], [], [], 0)[0]
    waker.close()
    waker.wake()


class ScriptedPeer:
    """The server's side of one control connection, answered by the test."""

    def __init__(self, limits: Limits) -> None:
        self.mine, self.theirs = socket.socketpair()
        self.wire = ControlServer(limits)
        self.client = ControlClient()
        self.wire.feed(self.client.hello({}))
        assert isinstance(next(iter(self.wire.events())), Greeting)
        self.client.feed(self.wire.greet({}))
        assert isinstance(next(iter(self.client.events())), Greeting)
        self.theirs.setblocking(False)
        self.mine.settimeout(AWAIT_SECONDS)

    def receive(self) -> list[Command]:
        """The next commands, at least one."""
        while True:
            data = self.mine.recv(65536)
            assert data, "the link closed the connection"
            self.wire.feed(data)
            commands = [event for event in self.wire.events() if isinstance(event, Command)]
            if commands:
                return commands

    def send(self, reply: Reply) -> None:
        """Answer."""
        self.mine.sendall(self.wire.reply(reply))


@pytest.fixture
def peer() -> Iterator[ScriptedPeer]:
    """A peer with the usual limits."""
    made = ScriptedPeer(Limits())
    yield made
    made.mine.close()


def test_replies_may_come_in_any_order_and_entries_before_the_end(peer: ScriptedPeer) -> None:
    link = ControlLink(stream_of(peer.theirs), peer.client, time.monotonic)
    calls = [link.call(Verb.LIST, (str(number),), {"limit": "1"}) for number in range(3)]
    commands: list[Command] = []
    while len(commands) < 3:
        commands += peer.receive()
    for command in reversed(commands):
        peer.send(Reply(command.id, ReplyKind.ENTRY, ("entry",)))
        peer.send(Reply(command.id, ReplyKind.OK, command.words))
    assert [call.result()[-1].words for call in calls] == [("0",), ("1",), ("2",)]
    assert all(len(call.replies) == 2 for call in calls)
    link.close()
    assert [command.verb for command in peer.receive()] == [Verb.QUIT]


@pytest.mark.parametrize(("verb", "limit"), [(Verb.LIST, 3), (Verb.STAT, 0)])
def test_more_entries_than_were_asked_for_end_the_link(peer: ScriptedPeer, verb: Verb, limit: int) -> None:
    link = ControlLink(stream_of(peer.theirs), peer.client, time.monotonic)
    options = {"limit": str(limit)} if limit else {}
    call = link.call(verb, ("x",), options)
    (command,) = peer.receive()
    for _ in range(limit + 1):
        peer.send(Reply(command.id, ReplyKind.ENTRY, ("entry",)))
    with pytest.raises(errors.ServerProtocolError, match="more entries than were asked for"):
        call.result()
    assert len(call.replies) == limit
    link.close()


def test_an_idle_line_is_kept_alive_and_a_silent_one_given_up(peer: ScriptedPeer) -> None:
    now = [0.0]
    link = ControlLink(stream_of(peer.theirs), peer.client, lambda: now[0], ping_seconds=30)
    for minute in range(1, 4):
        now[0] = minute * 31.0
        link.wake()
        (command,) = peer.receive()
        assert command.verb is Verb.PING
        peer.send(Reply(command.id, ReplyKind.OK))
        await_that(lambda minute=minute: link._heard == minute * 31.0)  # type: ignore[misc]
    call = link.call(Verb.STAT, ("x",))
    peer.receive()
    now[0] += 31
    link.wake()
    peer.receive()
    now[0] += 31
    link.wake()
    with pytest.raises(errors.NetworkError, match="silent for 62 s"):
        call.result()
    link.close()


def test_a_channel_that_was_interrupted_before_it_ran_can_be_joined() -> None:
    lane = cast("Any", None)  # never asked
    channel = DataChannel((Address("127.0.0.1", 1),), lane, lambda channel: None, time.monotonic)
    channel.stop()
    channel.join()


class Source:
    """A transfer with one command to ask."""

    def __init__(self, name: str) -> None:
        self.replies: list[tuple[Request, Reply]] = []
        self._requests = [Request(Verb.STAT, (name,), {}, "stat", None)]

    def next_requests(self, room: int) -> list[Request]:
        requests, self._requests = self._requests, []
        return requests

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        self.replies += pairs

    def link_lost(self, error: errors.TwinportError) -> None:
        """Not in this test."""


def test_what_an_ended_transfer_has_asked_is_not_answered_to_the_next(peer: ScriptedPeer) -> None:
    link = ControlLink(stream_of(peer.theirs), peer.client, time.monotonic)
    ended, running = Source("ended"), Source("running")
    link.set_source(ended)
    (first,) = peer.receive()
    link.set_source(None)
    link.set_source(running)
    (second,) = peer.receive()
    for command in (first, second):
        peer.send(Reply(command.id, ReplyKind.OK, command.words))
    await_that(lambda: bool(running.replies))
    assert [reply.words for _, reply in running.replies] == [("running",)]
    assert ended.replies == []
    link.close()


def await_that(holds: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + AWAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_window_that_is_full_makes_commands_wait_their_turn() -> None:
    peer = ScriptedPeer(Limits(window_commands=2))
    link = ControlLink(stream_of(peer.theirs), peer.client, time.monotonic)
    calls = [link.call(Verb.STAT, (str(number),)) for number in range(50)]
    answered = 0
    while answered < 50:
        commands = peer.receive()
        assert len(commands) <= 2
        for command in commands:
            peer.send(Reply(command.id, ReplyKind.OK, command.words))
            answered += 1
    assert [call.result()[-1].words for call in calls] == [(str(number),) for number in range(50)]
    link.close()
    peer.mine.close()


@pytest.mark.parametrize("garbage", [b"x\n", b"77 OK\n", b"\xff\n", b"1 WHAT\n"])
def test_garbage_ends_the_link_and_fails_what_waits(peer: ScriptedPeer, garbage: bytes) -> None:
    link = ControlLink(stream_of(peer.theirs), peer.client, time.monotonic)
    call = link.call(Verb.STAT, ("x",))
    peer.receive()
    peer.mine.sendall(garbage)
    with pytest.raises(errors.ServerProtocolError, match="makes no sense"):
        call.result()
    with pytest.raises(errors.ServerProtocolError):
        link.call(Verb.STAT, ("x",)).result()
    link.close()


def test_an_error_without_an_id_ends_the_link_with_its_reason(peer: ScriptedPeer) -> None:
    link = ControlLink(stream_of(peer.theirs), peer.client, time.monotonic)
    call = link.call(Verb.STAT, ("x",))
    peer.receive()
    peer.mine.sendall(b"0 ERROR Timeout nothing happened for too long; try again\n")
    with pytest.raises(errors.NetworkError, match="nothing happened for too long") as caught:
        call.result()
    assert caught.value.code == "Timeout"
    link.close()


def test_many_threads_may_call_at_once(client: Client) -> None:
    session = client._connected()
    results: list[list[Reply]] = []

    def call() -> None:
        for _ in range(50):
            results.append(session.link.call(Verb.PING).result())

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 400


def test_channels_fall_back_to_the_control_port(
    shared_server: ServerProcess,
    make_proxy: Callable[..., Proxy],
    connect: Connect,
    make_file: Callable[..., Path],
    prefix: str,
) -> None:
    proxy = make_proxy(shared_server)
    client = connect(proxy)
    session = client._connected()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed_port = taken.getsockname()[1]
    session.channel_addresses = (Address("127.0.0.1", closed_port), Address("127.0.0.1", proxy.port))
    path = make_file("file", 9 * 1024 * 1024)
    client.put(path, prefix)
    assert client.verify(f"{prefix}/file", path)
    assert client.manifest(f"{prefix}/file").file_bytes == 9 * 1024 * 1024
    assert any(passage.kind == "channel" for passage in proxy.passages)


def test_a_lost_connection_between_calls_is_regained_silently(
    shared_server: ServerProcess, make_proxy: Callable[..., Proxy], connect: Connect, prefix: str
) -> None:
    proxy = make_proxy(shared_server)
    client = connect(proxy)
    client.mkdir(prefix)
    proxy.cut_all()
    assert client.stat(prefix).is_directory
    cut_once: list[Passage] = []

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if going == "down" and b" DONE" in data and not cut_once:
            cut_once.append(passage)
            passage.cut()
            return None
        return data

    proxy.rule = rule
    assert client.delete(prefix) == 1  # the answer was lost; asked again, the work is found done
    assert cut_once
    with pytest.raises(errors.NotFoundError):
        client.stat(prefix)

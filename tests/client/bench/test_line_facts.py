"""What the kernel tells of a connection, and what is made of it."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

import pytest
from twinport.bench.line_facts import ChannelFacts, LineFacts, add_up, parse_facts, read_channel


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection over loopback."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        yield client, server


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_connection_tells_what_went_over_it(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    client.sendall(b"x" * 100_000)
    got = 0
    while got < 100_000:
        got += len(server.recv(65536))
    sender, receiver = read_channel(client), read_channel(server)
    assert sender.sent_segments
    assert sender.resent_segments == 0
    assert sender.congestion
    assert receiver.received_segments
    assert receiver.last_data_ms is not None
    assert receiver.last_data_ms < 5000
    client.sendall(b"x")
    later = read_channel(client)
    assert later.since(sender).sent_segments == 1
    assert later.since(sender).rtt_us == later.rtt_us
    assert later.since(ChannelFacts()).sent_segments is None


def test_what_cannot_be_told_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = socket.socket()
    gone.close()
    assert read_channel(gone) == ChannelFacts()
    assert add_up([]) is None
    assert add_up([ChannelFacts(), ChannelFacts()]) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    with socket.socket() as connection:
        assert read_channel(connection) == ChannelFacts()


def test_an_older_kernel_tells_less() -> None:
    whole = bytearray(232)
    struct.pack_into("=I", whole, 68, 20_000)
    struct.pack_into("=I", whole, 100, 7)
    struct.pack_into("=I", whole, 148, 0xFFFFFFFF)
    struct.pack_into("=I", whole, 224, 9)
    struct.pack_into("=Q", whole, 168, 3_000_000)
    facts = parse_facts(bytes(whole), "cubic")
    assert (facts.rtt_us, facts.resent_segments, facts.disordered_segments) == (20_000, 7, 9)
    assert (facts.least_rtt_us, facts.receive_rtt_us, facts.busy_us) == (None, None, 3_000_000)
    old = parse_facts(bytes(whole[:104]))
    assert (old.rtt_us, old.resent_segments, old.disordered_segments, old.busy_us) == (20_000, 7, None, None)
    assert parse_facts(b"") == ChannelFacts()


def test_connections_add_up() -> None:
    first = ChannelFacts("bbr", rtt_us=10_000, sent_segments=100, resent_segments=1, last_data_ms=50)
    second = ChannelFacts("bbr", rtt_us=30_000, sent_segments=300, resent_segments=3, last_data_ms=8)
    both = add_up([first, ChannelFacts(), second])
    assert both is not None
    assert (both.connections, both.congestion, both.rtt_seconds) == (2, "bbr", 0.02)
    assert both.sent_again == 0.01
    assert both.last_data_seconds == 0.008
    assert both.busy_seconds is None
    assert LineFacts().sent_again is None


def test_the_loss_on_the_way_here_is_estimated_from_the_order() -> None:
    # 10,000 segments in 2 s, 50 in each round trip of 10 ms; a loss leaves 50 out of order.
    line = LineFacts(1, receive_rtt_seconds=0.01, received_segments=10_000, disordered_segments=500)
    found = line.estimated_loss(2.0)
    assert found is not None
    assert 0.0009 < found < 0.0012  # 10 losses in 10,000
    assert LineFacts(1, received_segments=100, disordered_segments=0, rtt_seconds=0.01).estimated_loss(1.0) == 0
    assert LineFacts(1, received_segments=100, disordered_segments=99, rtt_seconds=0.01).estimated_loss(1.0) is None
    assert LineFacts(1, received_segments=100, rtt_seconds=0.01).estimated_loss(1.0) is None

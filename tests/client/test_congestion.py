"""Congestion control on real sockets, as far as this kernel and this user's rights go."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from twinport import congestion
from twinport.congestion import LineFacts, is_local, look_at, suit

pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="Linux chooses it by socket")

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    yield client, server
    client.close()
    server.close()


def algorithm_of(connection: socket.socket) -> str:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def may_use(name: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


def test_on_loopback_nothing_is_paced(pair: tuple[socket.socket, socket.socket]) -> None:
    client, _ = pair
    if may_use("bbr"):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    suit(client)
    assert algorithm_of(client) != "bbr" or not (may_use("cubic") or may_use("reno"))


@pytest.mark.parametrize(("rtt_seconds", "expected"), [(0.0001, "reno"), (0.05, "bbr")])
def test_a_long_line_is_paced_where_the_kernel_lets_us(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, rtt_seconds: float, expected: str
) -> None:
    if not may_use("bbr") or not may_use("reno"):
        pytest.skip("this kernel, or this user, has no bbr")
    client, _ = pair
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    monkeypatch.setattr(congestion, "is_local", lambda connection: False)
    monkeypatch.setattr(congestion, "look_at", lambda connection: LineFacts(rtt_seconds))
    suit(client)
    assert algorithm_of(client) == expected


def test_what_is_not_allowed_or_not_there_changes_nothing(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = pair
    before = algorithm_of(client)
    monkeypatch.setattr(congestion, "_PACED", b"no-such-one")
    monkeypatch.setattr(congestion, "is_local", lambda connection: False)
    monkeypatch.setattr(congestion, "look_at", lambda connection: LineFacts(0.05))
    suit(client)
    assert algorithm_of(client) == before


@pytest.mark.skipif(sys.platform != "linux", reason="the layout is Linux's")
def test_the_line_is_as_the_kernel_tells(pair: tuple[socket.socket, socket.socket]) -> None:
    client, server = pair
    for _ in range(50):
        client.sendall(b"x" * 1000)
        server.recv(1000)
    facts = look_at(client)
    assert facts.is_local
    assert 0 < facts.rtt_seconds < 1.0
    assert 50 <= facts.packets < 1000
    assert facts.disturbed_packets == 0
    assert facts.is_paced == (algorithm_of(client) == "bbr")


def test_sockets_that_are_none_of_tcp_or_gone_are_no_matter() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        assert is_local(mine)
        suit(mine)
        assert look_at(mine).packets == 0
    suit(mine)
    assert look_at(mine) == LineFacts()

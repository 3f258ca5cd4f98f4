"""Congestion control of accepted connections, as far as this kernel and this user's rights go."""

from __future__ import annotations

import asyncio
import socket

import pytest
from twinport_service import congestion
from twinport_service.congestion import suit
from twinport_service.listener import Acceptor, bind


def algorithm_of(connection: socket.socket) -> str:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def may_use(name: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


async def _accept(*, suits_lines: bool) -> tuple[socket.socket, socket.socket]:
    """A connection over loopback whose listener would give it bbr, as accepted, and its client's end."""
    listener = bind("127.0.0.1", 0)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    accepted: asyncio.Queue[socket.socket] = asyncio.Queue()
    acceptor = Acceptor(listener, lambda sock, peer: accepted.put_nowait(sock), suits_lines=suits_lines)
    client = socket.create_connection(listener.getsockname())
    try:
        return await asyncio.wait_for(accepted.get(), 10), client
    finally:
        acceptor.close()


@pytest.mark.parametrize("suits_lines", [True, False])
def test_loopback_is_not_paced_unless_the_setting_leaves_it_to_the_system(suits_lines: bool) -> None:
    if not may_use("bbr") or not may_use("reno"):
        pytest.skip("this kernel, or this user, has no bbr")
    server, client = asyncio.run(_accept(suits_lines=suits_lines))
    with server, client:
        assert (algorithm_of(server) == "bbr") is not suits_lines


@pytest.mark.parametrize(("rtt_seconds", "expected"), [(0.0001, "reno"), (0.05, "bbr")])
def test_a_long_line_is_paced(monkeypatch: pytest.MonkeyPatch, rtt_seconds: float, expected: str) -> None:
    if not may_use("bbr") or not may_use("reno"):
        pytest.skip("this kernel, or this user, has no bbr")
    server, client = asyncio.run(_accept(suits_lines=False))
    with server, client:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        monkeypatch.setattr(congestion, "is_local", lambda sock: False)
        monkeypatch.setattr(congestion, "_rtt_seconds", lambda sock: rtt_seconds)
        suit(server)
        assert algorithm_of(server) == expected


def test_what_is_not_tcp_or_not_allowed_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        suit(mine)
    suit(mine)
    server, client = asyncio.run(_accept(suits_lines=False)) if may_use("bbr") else socket.socketpair()
    with server, client:
        monkeypatch.setattr(congestion, "UNPACED", (b"no-such-one",))
        suit(server)
        if may_use("bbr"):
            assert algorithm_of(server) == "bbr"

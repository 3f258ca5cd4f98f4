"""What the kernel still holds of a loopback connection (proc(5), ``/proc/net/tcp``)."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.counting_proxy import Passage


def queues() -> dict[tuple[int, int], tuple[int, int]]:
    """By local and remote port of every IPv4 TCP socket: bytes not yet taken by the peer, bytes not yet read."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        local, remote = (int(word.rpartition(":")[2], 16) for word in words[1:3])
        unsent, unread = (int(word, 16) for word in words[4].split(":"))
        found[local, remote] = (unsent, unread)
    return found


def read_by_client(passage: Passage, proxy_port: int) -> int:
    """How many bytes of a connection its client had read, at least. Exact while the client is stopped; what both ends
    count (taken, not confirmed yet) is taken for unread."""
    while True:
        before = passage.down_bytes
        now = queues()
        if passage.down_bytes == before:
            break
    unsent = now.get((proxy_port, passage.client_port), (0, 0))[0]
    unread = now.get((passage.client_port, proxy_port), (0, 0))[1]
    return max(0, before - unsent - unread)

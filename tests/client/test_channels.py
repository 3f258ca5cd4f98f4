"""Channels that come and go in mid transfer: tried and given back, overtaken at the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from twinport import client as client_module
from twinport import congestion
from twinport import transfer as transfer_module
from twinport.channel_count import ChannelCount
from twinport.client import Client
from twinport.engine import Request
from twinport.transfer import Transfer
from twinport.upload_feed import Kept, UploadFeed
from twinport.walk import Found
from twinport_protocol.messages import Reply
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.client.conftest import Connect
from tests.client.servers import Passage, Proxy, ServerProcess

MEBI = 1024 * 1024
GUARD_SECONDS = 15.0
LARGE = 8 * MIN_SEGMENT_BYTES + 1000
MakeFile = Callable[..., Path]
MakeProxy = Callable[..., Proxy]


class Swinging(ChannelCount):
    """Now three channels, now one, whatever the line is like."""

    def note(self, moved_bytes: int, open_count: int, **more: object) -> None:
        """Every 4 MiB the other number."""
        self.wanted = 1 if (moved_bytes // (4 * MEBI)) % 2 else 3


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_channel_that_retires_ends_what_it_has_begun_and_nothing_travels_twice(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    direction: str,
) -> None:
    monkeypatch.setattr(client_module, "ChannelCount", Swinging)

    def slow(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and going == direction:
            time.sleep(0.001)  # so that the ticks of the transfer see it change
        return data

    path = make_file("file", LARGE)
    if direction == "down":
        client.put(path, prefix)
    proxy = make_proxy(shared_server, slow)
    through = connect(proxy)
    if direction == "up":
        report = through.put(path, prefix)
        assert client.verify(f"{prefix}/file", path)
    else:
        report = through.get(f"{prefix}/file", tmp_path / "back")
        assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    assert report.bytes_moved == LARGE
    assert proxy.moved_bytes(direction) < LARGE + 100_000
    assert sum(passage.kind == "channel" for passage in proxy.passages) > 3


@pytest.mark.usefixtures("several_channels")
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_channel_that_stalls_at_the_end_is_overtaken_long_before_its_silence_counts(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    direction: str,
) -> None:
    path = make_file("file", LARGE)
    if direction == "down":
        client.put(path, prefix)
    turn = threading.Event()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind != "channel" or going != direction:
            return data
        proxy.lock.release()
        turn.wait(0.01)  # some seconds in all, so that every channel shows how fast it is
        proxy.lock.acquire()
        moved = passage.up_bytes if direction == "up" else passage.down_bytes
        return None if passage.number == 0 and moved > 6 * MEBI else data

    proxy = make_proxy(shared_server, rule)
    through = connect(proxy, silent_seconds=60.0)
    began = time.monotonic()
    if direction == "up":
        report = through.put(path, prefix)
        assert client.verify(f"{prefix}/file", path)
    else:
        report = through.get(f"{prefix}/file", tmp_path / "back")
        assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    assert time.monotonic() - began < 40.0
    assert report.files_done == 1
    assert any(passage.stalled for passage in proxy.passages)


def test_pieces_follow_each_other_without_waiting_for_answers(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transfer_module, "TICK_SECONDS", 4 * GUARD_SECONDS)  # which would set a channel going again
    answered_after_bytes: list[int] = []
    ahead_bytes = 2 * MIN_SEGMENT_BYTES  # far beyond what the sockets on the way hold without anybody reading

    def hold_answers(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind != "channel":
            return data
        if going == "up" and (passage.up_bytes + len(data)) // MEBI > passage.up_bytes // MEBI:
            time.sleep(0.03)  # now sending has to wait, and now there is more room than is used
        if going == "down" and not answered_after_bytes:
            give_up_at = time.monotonic() + GUARD_SECONDS
            while passage.up_bytes < ahead_bytes and time.monotonic() < give_up_at:
                proxy.lock.release()
                time.sleep(0.001)
                proxy.lock.acquire()
            answered_after_bytes.append(passage.up_bytes)
        return data

    proxy = make_proxy(shared_server, hold_answers)
    path = make_file("file", LARGE)
    assert connect(proxy, silent_seconds=4 * GUARD_SECONDS).put(path, prefix).files_done == 1
    assert answered_after_bytes[0] >= ahead_bytes


def test_files_that_are_found_after_their_ticket_came_are_sent_at_once(
    client: Client, make_file: MakeFile, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer_module, "IDLE_TICK_SECONDS", 4 * GUARD_SECONDS)  # not by looking now and then
    has_ticket = threading.Event()
    take_replies, items = Transfer.take_replies, UploadFeed.items

    def take_and_tell(self: Transfer, pairs: Sequence[tuple[Request, Reply]]) -> None:
        take_replies(self, pairs)
        has_ticket.set()

    def items_after_the_ticket(self: UploadFeed) -> Iterator[Found | Kept]:
        assert has_ticket.wait(GUARD_SECONDS)
        yield from items(self)

    monkeypatch.setattr(Transfer, "take_replies", take_and_tell)
    monkeypatch.setattr(UploadFeed, "items", items_after_the_ticket)
    path = make_file("file", 3)
    began = time.monotonic()
    assert client.put(path, prefix).files_done == 1
    assert time.monotonic() - began < 2 * GUARD_SECONDS


def test_a_file_that_changes_between_hashing_and_sending_is_sent_as_it_is_then(
    shared_server: ServerProcess,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its bytes go from the page cache, after they were hashed: whoever gets in between is noticed by the digest."""
    path = make_file("file", LARGE)
    # As if the server were on another machine: on this one nothing goes straight from its file.
    monkeypatch.setattr(congestion, "is_local", lambda connection: False)
    send, changed = os.sendfile, threading.Event()

    def change_first(out: int, source: int, offset: int, count: int) -> int:
        if not changed.is_set():
            changed.set()
            with path.open("r+b") as file:
                file.seek(offset)
                file.write(b"changed")
        return send(out, source, offset, count)

    monkeypatch.setattr(os, "sendfile", change_first)
    client = connect(shared_server)
    assert client.put(path, prefix).files_done == 1
    assert changed.is_set()
    assert client.verify(f"{prefix}/file", path)

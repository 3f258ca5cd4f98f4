"""The flows of the classic dialect as its clients use them: one, many at once, and while the server stops."""

from __future__ import annotations

import random
import re
import secrets
import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from twinport_protocol.frames import AckStatus
from twinport_protocol.names import parse_name
from twinport_service.classic.transfer import open_upload
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import UploadSpec
from twinport_service.storage.local import LocalStorage
from twinport_service.uploads import UploadDesk

from tests.service.raw_client import RawChannel, RawControl, fetch_file, send_file

from .harness import PATIENT, RunningPlane, running_plane
from .oracle import ClassicOracle, assert_reply, wait_until
from .reference_client import ReferenceClient, ServerError

SIZES = [0, 1, 10, 4095, 4096, 118_601, 256 * 1024, 256 * 1024 + 1, 3_000_000, 8 * 1024 * 1024 + 5]


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


def read_all(sock: socket.socket) -> int:
    """Read to the orderly end; how many bytes came."""
    total = 0
    while chunk := sock.recv(1 << 20):
        total += len(chunk)
    return total


def together(*actions: Callable[[], None]) -> None:
    """Run all at once, each in a thread; the first failure is raised when all have ended."""
    failures: list[BaseException] = []

    def run(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("size", SIZES)
def test_what_goes_up_comes_down(server: RunningPlane, oracle: ClassicOracle, size: int) -> None:
    content = content_of(size)
    with server.client() as client:
        client.upload("a/photo.jpg", content)
        assert client.download("a/photo.jpg") == content
        client.quit()
    oracle.check([content])


def test_one_session_moves_many_files_and_lists_them_in_order(server: RunningPlane, oracle: ClassicOracle) -> None:
    names = ["b.txt", "a.txt", "dir/c  c.txt", "dir/b", "ü.txt"]
    with server.client() as client:
        assert client.list_names() == ["probe of the oracle"]
        for name in names:
            client.upload(name, name.encode())
        for name in names:
            assert client.download(name) == name.encode()
        assert client.list_names() == sorted([*names, "probe of the oracle"], key=str.encode)
        client.quit()
    oracle.check([name.encode() for name in names])


def test_a_file_is_replaced_as_a_whole(server: RunningPlane, oracle: ClassicOracle, root: Path) -> None:
    with server.client() as client:
        client.upload("a", b"old")
        (root / "link").hardlink_to(root / "a")
        client.upload("a", b"newer")
        assert client.download("a") == b"newer"
    assert (root / "link").read_bytes() == b"old"
    oracle.check([b"old", b"newer"])


def test_replies_are_the_reports_bytes(server: RunningPlane) -> None:
    with server.client() as client:
        control = client.control
        control.sendall(b"UPLOAD photo.jpg 3\n")
        assert control.recv(1024) == b"OK %d\n" % server.data_port
        with client.connect_data(server.data_port) as data:
            data.sendall(b"abc")
            assert control.recv(1024) == b"DONE\n"
        control.sendall(b"DOWNLOAD photo.jpg\n")
        assert control.recv(1024) == b"OK 3 %d\n" % server.data_port
        control.sendall(b"READY\n")
        with client.connect_data(server.data_port) as data:
            assert data.recv(4096) == b"abc"
            assert data.recv(4096) == b""
            assert control.recv(1024) == b"DONE\n"
        control.sendall(b"LIST\n")
        assert control.recv(1024) == b"OK 1\nphoto.jpg\n"
        control.sendall(b"DOWNLOAD missing\n")
        reply = control.recv(1024)
        assert reply.startswith(b"ERROR FileNotFound ")
        assert_reply(reply)
        control.sendall(b"QUIT\n")
        assert control.recv(1024) == b""


def test_the_log_speaks_the_reports_words(server: RunningPlane) -> None:
    with server.client() as client:
        client.upload("photo.jpg", bytes(118_601))
        client.download("photo.jpg")
        client.list_names()
        port = client.control.getsockname()[1]
        client.quit()
    wait_until(lambda: "[ACTIVE CONNECTIONS] 0" in server.log.getvalue(), "the last line")
    peer = f"('127.0.0.1', {port})"
    lines = [line.split(" ", 1)[1] for line in server.log.getvalue().splitlines()]
    assert lines == [
        f"[NEW CONNECTION] {peer} connected",
        "[ACTIVE CONNECTIONS] 1",
        f"[UPLOAD] Receiving photo.jpg (118601 bytes) from {peer}",
        "[UPLOAD] Complete: photo.jpg saved (118601 bytes)",
        f"[DOWNLOAD] Sending photo.jpg (118601 bytes) to {peer}",
        "[DOWNLOAD] Complete: photo.jpg sent (118601 bytes)",
        f"[LIST] Sending file list to {peer}",
        "[LIST] Complete: Sent 1 filenames",
        f"[DISCONNECTED] {peer}",
        "[ACTIVE CONNECTIONS] 0",
    ]


def test_fifty_at_once_from_one_address(root: Path, outside: Path) -> None:
    """Mixed directions, distinct contents, and clients of the other dialect between: nobody may get another's bytes."""
    clients, others = 50, 10
    stored = {f"shared/{number}": content_of(20_000 + number * 3001, 1) for number in range(clients)}
    foreign = {f"other/{number}": content_of(5000 + number * 70_001, 3) for number in range(others)}
    own = {f"own/{number}": content_of(1000 + number * 9001, 2) for number in range(clients)}
    with running_plane(LocalStorage(root), PATIENT) as server:
        oracle = ClassicOracle(server, root, outside)
        with server.client() as client:
            for name, content in stored.items():
                client.upload(name, content)
        barrier = threading.Barrier(clients + others)

        def work(number: int) -> None:
            with server.client(timeout=60) as client:
                barrier.wait(30)
                steps = [
                    partial(client.upload, f"own/{number}", own[f"own/{number}"]),
                    partial(check, client, f"shared/{number}"),
                    partial(check, client, f"shared/{(number * 7) % clients}"),
                ]
                for step in steps[number % 3 :] + steps[: number % 3]:
                    step()
                assert len(client.list_names()) > clients
                client.quit()

        def check(client: ReferenceClient, name: str) -> None:
            assert client.download(name) == stored[name]

        def work_otherwise(number: int) -> None:
            address = (server.host, server.control_port)  # where channels go while the data port is classic
            with RawControl(address, timeout_seconds=60) as control, RawChannel(address) as channel:
                barrier.wait(30)
                name = f"other/{number}"
                assert send_file(control, channel, name, foreign[name], secrets.token_bytes(16)) is AckStatus.COMMITTED
                assert fetch_file(control, channel, f"shared/{number}") == stored[f"shared/{number}"]
                assert fetch_file(control, channel, name) == foreign[name]

        together(
            *(partial(work, number) for number in range(clients)),
            *(partial(work_otherwise, number) for number in range(others)),
        )
        with server.client() as client:
            for name, content in (own | foreign).items():
                assert client.download(name) == content
        oracle.check([*stored.values(), *own.values(), *foreign.values()])


def test_transfers_run_side_by_side(server: RunningPlane) -> None:
    with server.client() as one, server.client() as two:
        first = one.begin_upload("one", 6)
        first.sendall(b"one")
        two.upload("two", b"two")
        first.sendall(b"ONE")
        assert one.reply() == "DONE"
        first.close()
        assert one.download("two") == b"two"
        assert two.download("one") == b"oneONE"


def test_a_list_is_served_while_a_transfer_runs(server: RunningPlane) -> None:
    with server.client() as client:
        client.upload("before", b"x")
        with client.begin_upload("during", 2) as data:
            data.sendall(b"1")
            assert client.list_names() == ["before"]
            data.sendall(b"2")
            assert client.reply() == "DONE"
        assert client.list_names() == ["before", "during"]


def test_a_second_transfer_of_a_session_waits_for_the_first(server: RunningPlane) -> None:
    with server.client() as client:
        with client.begin_upload("one", 3) as data:
            data.sendall(b"11")
            client.send("UPLOAD two 3")
            client.send("LIST")
            wait_until(lambda: server.plane.transfers == 1, "the transfer")
            data.sendall(b"1")
            assert client.control.recv(5) == b"DONE\n"
        # The LIST was behind the second UPLOAD and is served as soon as that has its OK.
        replies = b""
        while replies.count(b"\n") < 3:
            replies += client.control.recv(1024)
        assert replies == b"OK %d\nOK 1\none\n" % server.data_port
        with client.connect_data(server.data_port) as data:
            data.sendall(b"222")
            assert client.reply() == "DONE"


def test_a_reader_sees_the_old_version_until_done(server: RunningPlane) -> None:
    with server.client() as writer, server.client() as reader:
        writer.upload("a", b"old")
        with writer.begin_upload("a", 3) as data:
            data.sendall(b"ne")
            assert reader.download("a") == b"old"
            data.sendall(b"w")
            assert writer.reply() == "DONE"
        assert reader.download("a") == b"new"


def test_a_download_that_runs_keeps_its_version(server: RunningPlane, oracle: ClassicOracle, root: Path) -> None:
    old, new = content_of(12_000_000, 1), content_of(500_000, 2)
    with server.client() as reader, server.client() as writer:
        writer.upload("a", old)
        size, data = reader.begin_download("a")
        with data:
            received = bytearray(data.recv(4096))
            writer.upload("a", new)
            (root / "a").unlink()
            while len(received) < size:
                received += data.recv(1 << 20)
        assert reader.reply() == "DONE"
    assert bytes(received) == old
    oracle.check()


def test_a_long_listing_is_complete_and_framed_by_its_count(root: Path) -> None:
    names = [f"directory-{number % 7}/a rather long file name, number {number:06}" for number in range(30_000)]
    for folder in {name.split("/")[0] for name in names}:
        (root / folder).mkdir()
    for name in names:
        (root / name).touch()
    (root / "empty directory").mkdir()
    with running_plane(LocalStorage(root), PATIENT) as server, server.client() as client:
        assert client.list_names() == sorted(names)
        client.upload("zz", b"still in step")
        assert client.download("zz") == b"still in step"


# stopping ------------------------------------------------------------------------------------------------------------


def test_a_stopping_server_lets_a_transfer_end(server: RunningPlane) -> None:
    with server.client() as idle, server.client() as client, client.begin_upload("a", 3) as data:
        idle.list_names()
        stop = threading.Thread(target=server.drain, args=(20.0,))
        stop.start()
        with pytest.raises(ServerError, match="ShuttingDown"):
            idle.reply()
        data.sendall(b"abc")
        assert client.reply() == "DONE"
        assert client.control.recv(1024) == b""
        stop.join()
    assert server.plane.sessions == 0


def test_a_stopping_server_cuts_what_does_not_end(server: RunningPlane, root: Path) -> None:
    with server.client() as client, client.begin_upload("a", 3) as data:
        data.sendall(b"ab")
        server.drain(0.05)
        with pytest.raises(ServerError, match="ShuttingDown"):
            client.reply()
    assert not (root / "a").exists()
    assert not server.desk.ledger.open_uploads()


def test_a_stopping_server_begins_no_transfer(server: RunningPlane) -> None:
    with server.client() as client, client.begin_upload("a", 3) as data:
        client.send("UPLOAD b 3")
        stop = threading.Thread(target=server.drain, args=(20.0,))
        stop.start()
        wait_until(lambda: server.plane._draining, "the drain")
        data.sendall(b"abc")
        replies = b""
        while chunk := client.control.recv(1024):
            replies += chunk
        assert re.fullmatch(rb"DONE\nERROR ShuttingDown [^\n]+\n", replies)
        stop.join()


def test_a_downloader_that_does_not_read_is_cut_too(server: RunningPlane) -> None:
    with server.client() as client:
        client.upload("a", content_of(12_000_000))
        _, data = client.begin_download("a")
        with data:
            wait_until(lambda: server.plane.transfers == 1, "the transfer")
            server.drain(0.05)
            with pytest.raises(ServerError, match="ShuttingDown"):
                client.reply()
            with pytest.raises(ConnectionResetError):
                read_all(data)


def test_uploads_of_an_earlier_run_are_forgotten(root: Path) -> None:
    ledger = MemoryLedger()
    storage = LocalStorage(root)
    storage.start({})
    desk = UploadDesk(storage, ledger)
    classic = open_upload(desk, parse_name("a"), 1_000_000)
    other = UploadSpec(bytes(16), "anonymous", parse_name("b"), 1_000_000)
    desk.open(other)
    storage.close()
    with running_plane(LocalStorage(root), ledger=ledger):
        assert [record.spec for record in ledger.open_uploads()] == [other]
        assert ledger.load(classic.spec.upload_id) is None


def test_a_client_that_vanished_leaves_nothing(server: RunningPlane, oracle: ClassicOracle) -> None:
    client = server.client()
    data = client.begin_upload("a", 1_000_000)
    data.sendall(bytes(300_000))
    for sock in (client.control, data):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    oracle.check()

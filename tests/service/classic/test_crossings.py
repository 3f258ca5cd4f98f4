"""Connections that do not belong, that break, that stall, and many at once; after each the oracle is asked."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import RemoteName
from twinport_service.access import Act
from twinport_service.classic.pairing import PairingTimes
from twinport_service.storage.contract import Page, VersionInfo
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.storage.memory_parts import MemoryReader

from .conftest import in_a_hurry
from .harness import PATIENT, SHORT, RunningPlane, running_plane
from .oracle import ClassicOracle, assert_reply, wait_until
from .reference_client import ReferenceClient, ServerError
from .test_faults import resident_bytes
from .test_flows import content_of, together

# Who is paired must be in time on a busy machine too.
CONTENDED = replace(PATIENT, pairing=PairingTimes(alone_seconds=2.0, contended_seconds=2.0, settle_seconds=0.05))
# Nobody reads, nor has to be in time for anything else.
UNREAD = replace(PATIENT, transfer=SHORT.transfer)
RESET = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def is_closed_without_a_byte(sock: socket.socket) -> bool:
    """Whether the server closes the connection and sends nothing before."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# pairing -------------------------------------------------------------------------------------------------------------


@in_a_hurry
def test_a_data_connection_that_never_comes(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        port = int(client.ask("UPLOAD a 3").split(" ")[1])
        with pytest.raises(ServerError, match="Timeout"):
            client.reply()
        client.upload("a", b"abc")  # the session lives
        with client.connect_data(port) as late:
            assert is_closed_without_a_byte(late)
    oracle.check([b"abc"])


@in_a_hurry
def test_a_ready_that_never_comes(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.upload("a", b"abc")
        port = int(client.ask("DOWNLOAD a").split(" ")[2])
        with client.connect_data(port) as data:
            with pytest.raises(ServerError, match="Timeout"):
                client.reply()
            assert is_closed_without_a_byte(data)
        assert client.download("a") == b"abc"
    oracle.check([b"abc"])


def test_a_late_connection_never_becomes_the_next_ones(root: Path, outside: Path) -> None:
    """The one that was too late comes while the next one of its address waits: refused, and the next one is served."""
    with running_plane(LocalStorage(root), CONTENDED) as server:
        oracle = ClassicOracle(server, root, outside)
        with server.client() as slow, server.client() as next_one:
            port = int(slow.ask("UPLOAD slow 3").split(" ")[1])
            next_one.send("UPLOAD next 3")
            with pytest.raises(ServerError, match="Timeout"):
                slow.reply()
            with slow.connect_data(port) as late:
                with contextlib.suppress(ConnectionError):
                    late.sendall(b"BAD")
                assert is_closed_without_a_byte(late)
            assert next_one.reply() == f"OK {port}"
            with next_one.connect_data(port) as data:
                data.sendall(b"yes")
                assert next_one.reply() == "DONE"
        oracle.check([b"yes"])


def test_an_early_connection_is_closed(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client, client.connect_data(server.data_port) as early:
        assert is_closed_without_a_byte(early)
        client.upload("a", b"abc")
    oracle.check([b"abc"])


def test_an_early_connection_is_not_kept_for_somebody_else(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        with client.connect_data(server.data_port) as early:
            with contextlib.suppress(ConnectionError):
                early.sendall(b"BAD")
            with client.begin_upload("a", 3) as data:
                data.sendall(b"yes")
                assert client.reply() == "DONE"
        assert client.download("a") == b"yes"
    oracle.check([b"yes"])


def test_two_connections_for_one_download_are_both_refused(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.upload("a", b"abc")
        port = int(client.ask("DOWNLOAD a").split(" ")[2])
        with client.connect_data(port) as one, client.connect_data(port) as two:
            with pytest.raises(ServerError, match="Busy two data connections"):
                client.reply()
            client.send("READY")  # crossed with the error: no answer
            assert is_closed_without_a_byte(one)
            assert is_closed_without_a_byte(two)
        assert client.download("a") == b"abc"
    oracle.check([b"abc"])


def test_an_intruder_in_mid_transfer_changes_nothing(root: Path, outside: Path) -> None:
    content = content_of(2_000_000)
    with running_plane(LocalStorage(root), PATIENT) as server:
        oracle = ClassicOracle(server, root, outside)
        with server.client() as victim, victim.begin_upload("a", len(content)) as data:
            data.sendall(content[:1_000_000])
            wait_until(lambda: server.plane.transfers == 1, "the transfer")
            for _ in range(1000):
                with socket.create_connection((server.host, server.data_port), 30) as intruder:
                    with contextlib.suppress(ConnectionError):
                        intruder.sendall(b"evil")
                    assert is_closed_without_a_byte(intruder)
            data.sendall(content[1_000_000:])
            assert victim.reply() == "DONE"
            assert victim.download("a") == content
        oracle.check([content])


def test_a_connection_from_another_address_is_never_paired(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        port = int(client.ask("UPLOAD a 3").split(" ")[1])
        with socket.create_connection((server.host, port), 30, ("127.0.0.2", 0)) as foreign:
            assert is_closed_without_a_byte(foreign)
        with client.connect_data(port) as data:
            data.sendall(b"abc")
            assert client.reply() == "DONE"
    oracle.check([b"abc"])


def test_another_address_does_not_wait(root: Path) -> None:
    with (
        running_plane(LocalStorage(root), PATIENT) as server,
        server.client() as slow,
        server.client(source="127.0.0.2") as other,
    ):
        slow.ask("UPLOAD slow 3")
        other.upload("other", b"abc")
        assert other.download("other") == b"abc"


def test_the_queue_of_an_address_is_bounded(root: Path, outside: Path) -> None:
    limits = replace(CONTENDED, waiting_per_address=2)
    with running_plane(LocalStorage(root), limits) as server:
        oracle = ClassicOracle(server, root, outside)
        clients = [server.client() for _ in range(4)]
        clients[0].ask("UPLOAD 0 3")
        for number in (1, 2):
            clients[number].send(f"UPLOAD {number} 3")
            wait_until(lambda number=number: server.plane.waiting == number + 1, "the queue")  # type: ignore[misc]
        with pytest.raises(ServerError, match="Busy"):
            clients[3].ask("UPLOAD 3 3")
        with pytest.raises(ServerError, match="Timeout"):
            clients[0].reply()
        for client in clients:
            client.control.close()
        oracle.check()


def test_the_number_of_transfers_is_bounded(root: Path, outside: Path) -> None:
    limits = replace(PATIENT, transfers=3)
    with running_plane(LocalStorage(root), limits) as server:
        oracle = ClassicOracle(server, root, outside)
        with contextlib.ExitStack() as stack:
            for number in range(3):
                client = stack.enter_context(server.client())
                stack.enter_context(client.begin_upload(f"{number}", 3))
                wait_until(lambda number=number: server.plane.transfers == number + 1, "the transfer")  # type: ignore[misc]
            last = stack.enter_context(server.client())
            with pytest.raises(ServerError, match="Busy"):
                last.ask("UPLOAD 3 3")
        wait_until(lambda: server.plane.transfers == 0, "the end of the transfers")
        oracle.check()


def test_one_that_leaves_the_queue_holds_nobody_up(root: Path, outside: Path) -> None:
    with running_plane(LocalStorage(root), PATIENT) as server:
        oracle = ClassicOracle(server, root, outside)
        with server.client() as first, server.client() as last:
            port = int(first.ask("UPLOAD first 3").split(" ")[1])
            leaving = [server.client() for _ in range(5)]
            for number, client in enumerate(leaving):
                client.send(f"UPLOAD leaving-{number} 3")
            wait_until(lambda: server.plane.waiting == 6, "the queue")
            last.send("UPLOAD last 3")
            wait_until(lambda: server.plane.waiting == 7, "the queue")
            for client in leaving:
                client.control.close()
            wait_until(lambda: server.plane.waiting == 2, "their leaving")
            with first.connect_data(port) as data:
                data.sendall(b"abc")
                assert first.reply() == "DONE"
            assert last.reply() == f"OK {port}"
        oracle.check([b"abc"])


# stalls and resets ---------------------------------------------------------------------------------------------------


@in_a_hurry
def test_an_upload_that_drips_runs_out_of_time(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client, client.begin_upload("a", 1000) as data:
        client.control.setblocking(False)
        with contextlib.suppress(ConnectionError):
            while not select.select([client.control], [], [], 0.05)[0]:
                data.sendall(b"x")
        client.control.settimeout(30)
        with pytest.raises(ServerError, match="Timeout"):
            client.reply()
    oracle.check()


def test_clients_that_never_read_their_download(root: Path, outside: Path) -> None:
    content = content_of(24_000_000)  # far more than the system takes on the way
    with running_plane(LocalStorage(root), UNREAD) as server:
        oracle = ClassicOracle(server, root, outside)
        with server.client() as client:
            client.upload("a", content)
        with contextlib.ExitStack() as stack:
            before = resident_bytes()
            clients = [stack.enter_context(server.client()) for _ in range(20)]
            for client in clients:
                _, data = client.begin_download("a")
                stack.enter_context(data)
                data.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for client in clients:
                with pytest.raises(ServerError, match="Timeout"):
                    client.reply()
            assert resident_bytes() - before < 16 * 1024 * 1024
        oracle.check([content])


@pytest.mark.parametrize("end", [reset, socket.socket.close], ids=["reset", "close"])
def test_a_download_that_its_client_breaks_off(
    server: RunningPlane, oracle: ClassicOracle, end: Callable[[socket.socket], None]
) -> None:
    content = content_of(8_000_000)
    with server.client() as client:
        client.upload("a", content)
        _, data = client.begin_download("a")
        data.recv(4096)
        end(data)
        with pytest.raises(ServerError, match="Incomplete the data connection closed"):
            client.reply()
        assert client.download("a") == content
    oracle.check([content])


def test_a_download_never_looks_whole_when_it_is_not() -> None:
    """A read that fails in mid download: a reset and an error, never an end of stream and never DONE."""

    class FailingReader(MemoryReader):
        def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
            if offset > 1_000_000:
                raise Refusal(ErrorCode.STORAGE_FAULT, "the disk is broken")
            return super().read_into(offset, buffer)

    class FailingStorage(MemoryStorage):
        def open_reader(self, token: bytes) -> MemoryReader:
            return FailingReader(super().open_reader(token)._data)

    with running_plane(FailingStorage(), PATIENT) as server, server.client() as client:
        client.upload("a", content_of(3_000_000))
        size, data = client.begin_download("a")
        received = 0
        with data:
            try:
                while chunk := data.recv(65536):
                    received += len(chunk)
            except ConnectionResetError:
                received = -received
        assert -size < received < 0, "the client saw an orderly end"
        with pytest.raises(ServerError, match="StorageFault"):
            client.reply()


@pytest.mark.parametrize("port", ["control", "data"])
def test_connect_and_reset_at_once(server: RunningPlane, oracle: ClassicOracle, port: str) -> None:
    address = (server.host, server.control_port if port == "control" else server.data_port)
    for number in range(1000):
        sock = socket.create_connection(address, 30)
        (reset if number % 2 else socket.socket.close)(sock)
    oracle.check()


def test_a_flood_on_the_data_port_leaves_running_transfers_alone(root: Path, outside: Path) -> None:
    content = content_of(30_000_000)
    with running_plane(LocalStorage(root), PATIENT) as server:
        oracle = ClassicOracle(server, root, outside)
        with server.client() as client, client.begin_upload("a", len(content)) as data:
            wait_until(lambda: server.plane.transfers == 1, "the transfer")
            done = threading.Event()

            def flood() -> None:
                while not done.is_set():
                    with contextlib.suppress(OSError):
                        socket.create_connection((server.host, server.data_port), 1).close()

            floods = [threading.Thread(target=flood) for _ in range(3)]
            for thread in floods:
                thread.start()
            try:
                data.sendall(content)
                assert client.reply() == "DONE"
            finally:
                done.set()
                for thread in floods:
                    thread.join()
            wait_until(lambda: server.plane.transfers == 0, "the end")
        oracle.check([content])


# many at once --------------------------------------------------------------------------------------------------------


def test_lists_during_many_writes_show_whole_files_only(root: Path, outside: Path) -> None:
    with running_plane(LocalStorage(root), PATIENT) as server:
        oracle = ClassicOracle(server, root, outside)
        sent = [content_of(30_000 + number, number) for number in range(80)]
        writing = threading.Event()

        def write(writer: int) -> None:
            with server.client(timeout=60) as client:
                for number in range(writer, len(sent), 8):
                    client.upload(f"{number % 20}", sent[number])

        def watch() -> None:
            with server.client(timeout=60) as client:
                while not writing.is_set():
                    names = client.list_names()
                    assert names == sorted(set(names), key=str.encode)
                    for name in names[:1]:
                        assert client.download(name)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            together(*(partial(write, writer) for writer in range(8)))
        finally:
            writing.set()
            watcher.join()
        oracle.check(sent)


def test_a_session_may_end_at_any_moment(root: Path, outside: Path) -> None:
    """Control connections cut at random moments of an upload: published whole or not at all, nothing left behind."""
    chance = random.Random(7)
    contents = [content_of(chance.choice([10, 5000, 300_000]), number) for number in range(200)]
    with running_plane(LocalStorage(root), PATIENT) as server:
        oracle = ClassicOracle(server, root, outside)

        def cut(worker: int) -> None:
            for number in range(worker, len(contents), 4):
                moment = chance.random() * 0.003
                client = ReferenceClient(server.host, server.control_port)
                # shutdown wakes the client's own thread too; a mere close would wait for its recv.
                timer = threading.Timer(moment, client.control.shutdown, [socket.SHUT_RDWR])
                timer.start()
                with contextlib.suppress(OSError, ServerError, AssertionError):
                    client.upload(f"{number % 10}", contents[number])
                timer.join()
                (reset if number % 2 else socket.socket.close)(client.control)

        together(*(partial(cut, worker) for worker in range(4)))
        # An upload whose client is gone may leave its address settling; all of it is over soon.
        wait_until(lambda: server.plane.sessions == 0 and server.plane.waiting == 0, "the end of it all")
        oracle.check(contents)


# what else may fail --------------------------------------------------------------------------------------------------


def test_what_is_not_allowed_is_denied() -> None:
    asked: list[tuple[str, Act, str]] = []

    def decide(user: str, act: Act, path: str) -> bool:
        asked.append((user, act, path))
        return path == "allowed"

    with running_plane(decide=decide) as server, server.client() as client:
        client.upload("allowed", b"abc")
        assert client.download("allowed") == b"abc"
        for line in ("UPLOAD secret 3", "DOWNLOAD secret", "LIST"):
            with pytest.raises(ServerError, match="Denied"):
                client.ask(line)
    assert asked == [
        ("anonymous", Act.WRITE, "allowed"),
        ("anonymous", Act.READ, "allowed"),
        ("anonymous", Act.WRITE, "secret"),
        ("anonymous", Act.READ, "secret"),
        ("anonymous", Act.LIST, ""),
    ]


def test_an_error_of_our_own_ends_in_a_reply_and_in_the_log() -> None:
    class Broken(MemoryStorage):
        def list(self, prefix: str, after: str, limit: int, recursive: bool) -> Page:
            raise ZeroDivisionError("a bug")

        def open_version(self, name: RemoteName, may_hash: bool = True) -> VersionInfo:
            raise ZeroDivisionError("another bug")

    with running_plane(Broken()) as server:
        with server.client() as client:
            with pytest.raises(ServerError, match="Internal") as caught:
                client.download("a")
            assert_reply(caught.value.line.encode() + b"\n")
            client.upload("a", b"the session lives")
            with pytest.raises(ServerError, match="Internal"):
                client.list_names()
        with server.client() as other:
            other.upload("b", b"and others too")
        wait_until(lambda: server.plane.sessions == 0, "the end")
        assert server.log.getvalue().count("ZeroDivisionError") >= 2
        assert not server.complaints

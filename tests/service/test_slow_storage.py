"""A storage that takes its time: the client hears that the server lives, others go on, and nobody slips in between."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import COMMIT, LAST, AckStatus
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.names import RemoteName
from twinport_protocol.segments import Manifest, digest_of
from twinport_service import commit_watch
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import Entry, OnDone, OnProgress, UploadSpec
from twinport_service.storage.memory import MemoryStorage

from tests.service.conftest import KEYS, StartServer
from tests.service.raw_client import ANSWER_SECONDS, RawChannel, RawControl, await_true, fetch_file, send_file
from tests.service.running_server import RunningServer
from tests.service.tls_parts import tls_control, with_tls

MakeId = Callable[[], bytes]
pytestmark = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # the one that can be held up
DATA = os.urandom(1_000_000)


class HeldStorage(MemoryStorage):
    """Commits and lookups wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self._threads: list[threading.Thread] = []

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """See the contract."""

        def publish() -> None:
            if on_progress is not None:
                on_progress(spec.size // 2)
            self.go.wait()
            super(HeldStorage, self).commit(spec, manifest, on_done, on_progress)

        self._threads.append(threading.Thread(target=publish))
        self._threads[-1].start()

    def stat(self, name: RemoteName) -> Entry:
        """See the contract."""
        if name == "x":
            self.go.wait()
        return super().stat(name)

    def close(self) -> None:
        """See the contract."""
        self.go.set()
        for thread in self._threads:
            thread.join()
        super().close()


@pytest.fixture
def storage() -> HeldStorage:
    """The storage."""
    return HeldStorage()


@pytest.fixture
def idle_seconds() -> float:
    """How long a session may be silent."""
    return 600.0


@pytest.fixture
def server(start_server: StartServer, storage: HeldStorage, idle_seconds: float) -> Iterator[RunningServer]:
    """A server on it."""
    running = start_server(Foundation(storage, MemoryLedger(), KEYS), idle_seconds=idle_seconds)
    yield running
    storage.go.set()


def test_while_a_commit_runs(
    server: RunningServer,
    storage: HeldStorage,
    control: RawControl,
    channel: RawChannel,
    upload_id: MakeId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commit_watch, "PROGRESS_SECONDS", 0.05)
    upload = control.upload("x", len(DATA), upload_id())
    channel.attach(upload.ticket)
    assert channel.put_segment(1, 0, DATA) is AckStatus.SEALED
    options = {"generation": "1", "root": digest_of(DATA).hex()}
    number = control.start(Verb.COMMIT, upload.upload_id.hex(), options=options)
    half_way = (str(len(DATA) // 2),)
    heard = [control.reply()]
    while [reply.words for reply in heard].count(half_way) < 3:
        heard.append(control.reply())
    assert {(reply.id, reply.kind) for reply in heard} == {(number, ReplyKind.PROGRESS)}
    assert {reply.words for reply in heard} <= {("0",), half_way}
    # Nothing slips in between, and the same question has the same answer.
    abort = {"generation": "1"}
    assert control.refused(Verb.ABORT, upload.upload_id.hex(), options=abort) is ErrorCode.UPLOAD_CLOSED
    resume = {"resume": upload.upload_id.hex()}
    assert control.refused(Verb.UPLOAD, "x", str(len(DATA)), options=resume) is ErrorCode.UPLOAD_CLOSED
    channel.put(1, 0, 0, DATA, LAST | COMMIT, digest_of(DATA))
    assert channel.acknowledged() is ErrorCode.UPLOAD_CLOSED
    assert control.names() == []
    with RawControl(server.control_address) as other:
        again = other.start(Verb.COMMIT, upload.upload_id.hex(), options=options)
        await_true(lambda: server.live_uploads() == {upload.upload_id})
        fenced = {**options, "generation": "9"}
        assert other.refused(Verb.COMMIT, upload.upload_id.hex(), options=fenced) is ErrorCode.FENCED
        storage.go.set()
        first, second = control.finish(number)[-1], other.finish(again)[-1]
        assert first.kind is second.kind is ReplyKind.DONE
        assert first.options == second.options
        with RawChannel(server.data_address) as fresh:
            assert fetch_file(control, fresh, "x") == DATA


@pytest.mark.parametrize("idle_seconds", [1.0])
def test_a_session_that_waits_for_the_storage_is_not_idle(
    storage: HeldStorage, control: RawControl, channel: RawChannel, upload_id: MakeId
) -> None:
    number = control.start(Verb.STAT, "x")
    assert not control.is_closed(within_seconds=2.0)
    control.sock.settimeout(ANSWER_SECONDS)
    storage.go.set()
    assert control.finish(number)[-1].code is ErrorCode.FILE_NOT_FOUND


def test_what_comes_behind_a_close_notify_is_not_kept_while_a_command_runs(
    start_server: StartServer, storage: HeldStorage, tmp_path: Path
) -> None:
    running = start_server(with_tls(Foundation(storage, MemoryLedger(), KEYS), tmp_path))
    with tls_control(running.control_address) as client:
        number = client.start(Verb.STAT, "x")
        client.sock.settimeout(0)
        assert isinstance(client.sock, ssl.SSLSocket)
        with suppress(ssl.SSLWantReadError):  # the server answers first
            client.sock.unwrap()
        before = _resident_bytes()
        with socket.socket(fileno=os.dup(client.sock.fileno())) as beneath:
            beneath.settimeout(30)
            for _ in range(64):
                beneath.sendall(bytes(1024 * 1024))
        assert _resident_bytes() - before < 32 * 1024 * 1024
        storage.go.set()
        client.sock.settimeout(30)
        assert client.finish(number)[-1].code is ErrorCode.FILE_NOT_FOUND
    await_true(lambda: running.session_count == 0)
    running.assert_no_traceback()


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_client_that_leaves_in_mid_commit_finds_its_file(
    server: RunningServer, storage: HeldStorage, channel: RawChannel, upload_id: MakeId
) -> None:
    with RawControl(server.control_address) as control:
        upload = control.upload("x", len(DATA), upload_id())
        channel.attach(upload.ticket)
        channel.put(1, 0, 0, DATA, LAST | COMMIT, digest_of(DATA))
        await_true(lambda: bool(storage._threads))
        control.reset()
        channel.reset()
    await_true(lambda: server.channel_count == 0 and server.session_count == 0)
    storage.go.set()
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as later:
        await_true(lambda: not server.live_uploads())
        assert control.commit(upload, digest_of(DATA)).kind is ReplyKind.DONE
        assert fetch_file(control, later, "x") == DATA
    server.assert_no_traceback()


def test_lookups_that_wait_hold_up_neither_small_uploads_nor_listings(
    server: RunningServer, storage: HeldStorage, upload_id: MakeId
) -> None:
    with RawControl(server.control_address) as stuck, RawControl(server.control_address) as control:
        stuck.send(b"".join(b"%d STAT x\n" % number for number in range(1, 500)))
        with RawChannel(server.data_address) as channel:
            assert send_file(control, channel, "small", b"abc", upload_id()) is AckStatus.COMMITTED
        assert control.names() == ["small"]
        assert control.ask(Verb.PING).kind is ReplyKind.OK
        storage.go.set()
        assert {stuck.reply().code for _ in range(499)} == {ErrorCode.FILE_NOT_FOUND}


def test_commits_that_wait_hold_up_nothing_else_in_their_session(
    server: RunningServer, storage: HeldStorage, control: RawControl, upload_id: MakeId
) -> None:
    uploads = []
    with RawChannel(server.data_address) as channel:
        for number in range(40):
            data = DATA + bytes([number])
            uploads.append((upload := control.upload(f"f{number}", len(data), upload_id()), digest_of(data)))
            channel.attach(upload.ticket, number + 1)
            assert channel.put_segment(number + 1, 0, data) is AckStatus.SEALED
    numbers = [
        control.start(Verb.COMMIT, upload.upload_id.hex(), options={"generation": "1", "root": root.hex()})
        for upload, root in uploads
    ]
    await_true(lambda: bool(storage._threads))
    assert control.refused(Verb.STAT, "other") is ErrorCode.FILE_NOT_FOUND
    assert control.ask(Verb.ABORT, upload_id().hex()).kind is ReplyKind.DONE
    assert len(storage._threads) <= 16, "as many at once as one session may have"
    storage.go.set()
    assert {control.finish(number)[-1].kind for number in numbers} == {ReplyKind.DONE}
    assert len(control.names()) == 40

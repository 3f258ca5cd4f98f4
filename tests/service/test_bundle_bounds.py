"""What bounds bundles: quotas and floors to the byte, credit, a client that does not read, a rate, the end of a
server; and what the audit log says of each file."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twinport_protocol.bundles import decode_statuses, encode_names
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import COMMIT, LAST, WHOLE_CHANNEL, AckStatus, FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import digest_of
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader
from twinport_service.embedded import OWN_DIRECTORY
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.ledger_sqlite import SqliteLedger
from twinport_service.quota import UNLIMITED, Quota
from twinport_service.storage.contract import SMALL_BYTES
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.usage import UsageBook

from tests.service.conftest import KEYS, MakeFoundation, StartServer
from tests.service.daemon import running_daemon
from tests.service.oracle import Oracle
from tests.service.raw_client import ClosedError, RawChannel, RawControl, Small, await_true, run_all
from tests.service.running_server import RunningServer
from tests.service.test_bundles import HeldStorage
from tests.service.tls_parts import tls_channel, tls_control, with_tls

COMMITTED = AckStatus.COMMITTED
MIB = 1024 * 1024
in_memory = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)
Rows = Callable[[], list[Mapping[str, Any]]]


class Office:
    """Where quotas are set."""

    def __init__(self) -> None:
        self.quota = UNLIMITED

    def __call__(self, user: str) -> Quota:
        return self.quota


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.fixture
def audit(shm_path: Path) -> AuditLog:
    return AuditLog(shm_path / "audit")


@pytest.fixture
def foundation(storage_kind: str, root: Path, office: Office, audit: AuditLog) -> Foundation:
    usage = UsageBook(office)
    if storage_kind == "memory":
        return Foundation(MemoryStorage(usage=usage), MemoryLedger(usage=usage), KEYS, audit=audit)
    storage = LocalStorage(root, usage=usage)
    return Foundation(storage, SqliteLedger(root / OWN_DIRECTORY / "ledger.db", usage=usage), KEYS, audit=audit)


@pytest.fixture
def server(start_server: StartServer, foundation: Foundation) -> RunningServer:
    return start_server(foundation)


@pytest.fixture
def rows(audit: AuditLog, shm_path: Path) -> Rows:
    """What is written by now, but for what the server says of itself."""

    def read() -> list[Mapping[str, Any]]:
        assert audit.flush()
        ours = ("start", "stop", "exposure")
        return [row for row in AuditReader(shm_path / "audit").rows() if row["event"] not in ours]

    return read


@pytest.fixture
def putting(control: RawControl, channel: RawChannel) -> int:
    """An attachment for uploads in bundles."""
    return channel.attach_next(control.bundle("UPLOAD"))


@pytest.fixture
def getting(control: RawControl, channel: RawChannel) -> int:
    """An attachment for downloads in bundles."""
    return channel.attach_next(control.bundle("DOWNLOAD"))


def held(control: RawControl) -> tuple[int, ...]:
    """Bytes, files, reserved bytes, open uploads."""
    options = control.ask(Verb.QUOTA).options
    return tuple(int(options[key]) for key in ("bytes", "files", "reserved-bytes", "open-uploads"))


# quotas and floors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quota", [Quota(50, None), Quota(None, 5)], ids=["bytes", "files"])
def test_of_a_bundle_exactly_as_many_succeed_as_the_quota_has_room_for(
    control: RawControl, channel: RawChannel, putting: int, office: Office, quota: Quota, oracle: Oracle
) -> None:
    office.quota = quota
    files = [Small(f"f{number}", b"0123456789") for number in range(8)]
    assert channel.put_many(putting, files) == [COMMITTED] * 5 + [ErrorCode.QUOTA_EXCEEDED] * 3
    assert held(control) == (50, 5, 0, 0)
    # Said again, as after a lost answer: what was published is so still, though there is no room for it once more.
    assert channel.put_many(putting, files) == [COMMITTED] * 5 + [ErrorCode.QUOTA_EXCEEDED] * 3
    assert held(control) == (50, 5, 0, 0)
    for file, kind in ((files[4], ReplyKind.DONE), (files[5], ReplyKind.ERROR)):
        options = {"upload": file.upload_id.hex(), "mtime": str(file.mtime_ns)}
        assert control.ask(Verb.UPLOAD, file.name, "10", options=options).kind is kind
    assert control.refused(Verb.DELETE, "f0") is None
    assert channel.put_many(putting, files[5:]) == [COMMITTED, *[ErrorCode.QUOTA_EXCEEDED] * 2]
    office.quota = UNLIMITED
    for file in files[1:6]:
        oracle.sent(file.name, file.data)
    oracle.check(is_idle=False)


class Filling(MemoryStorage):
    """Its disk has as much room as is said."""

    free = 10_000_000

    def free_bytes(self) -> int | None:
        """See the contract."""
        return self.free


@in_memory
def test_the_floor_of_the_disk_refuses_what_does_not_fit_and_nothing_else(start_server: StartServer) -> None:
    usage = UsageBook()
    storage = Filling(usage=usage)
    foundation = Foundation(storage, MemoryLedger(usage=usage), KEYS)
    server = start_server(replace(foundation, min_free_bytes=1_000_000))
    storage.free = 1_000_100
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        attachment = channel.attach_next(control.bundle("UPLOAD"))
        files = [Small("a", bytes(60)), Small("b", bytes(60)), Small("c", bytes(40)), Small("d", bytes(1))]
        full = ErrorCode.DISK_FULL
        assert channel.put_many(attachment, files) == [COMMITTED, full, COMMITTED, full]
        assert held(control) == (100, 2, 0, 0)


# the audit log --------------------------------------------------------------------------------------------------------


def test_each_file_has_its_line(
    control: RawControl, channel: RawChannel, putting: int, getting: int, office: Office, rows: Rows
) -> None:
    office.quota = Quota(None, 2)
    good = [Small("a", b"one"), Small("d/b", b"")]
    assert channel.put_many(putting, [*good, Small("c", b"")]) == [COMMITTED, COMMITTED, ErrorCode.QUOTA_EXCEEDED]
    office.quota = UNLIMITED
    channel.put_many(putting, good)
    channel.get_many(getting, ["a", "nothing", "d/b"])
    lines = [{key: row.get(key) for key in ("event", "file", "size", "outcome", "what")} for row in rows()]
    assert lines == [
        {"event": "upload", "file": "a", "size": 3, "outcome": "ok", "what": None},
        {"event": "upload", "file": "d/b", "size": 0, "outcome": "ok", "what": None},
        {"event": "refusal", "file": "c", "size": None, "outcome": "QuotaExceeded", "what": "PUT_MANY"},
        {"event": "download", "file": "a", "size": 3, "outcome": "ok", "what": None},
        {"event": "download", "file": "d/b", "size": 0, "outcome": "ok", "what": None},
    ]


@in_memory
@pytest.mark.parametrize("way", ["alone", "bundle"])
def test_a_file_has_its_line_though_its_channel_went_before_it_was_published(
    start_server: StartServer, audit: AuditLog, rows: Rows, way: str
) -> None:
    storage = HeldStorage()
    server = start_server(Foundation(storage, MemoryLedger(), KEYS, audit=audit))
    with RawControl(server.control_address) as control:
        with RawChannel(server.data_address) as channel:
            if way == "bundle":
                attachment = channel.attach_next(control.bundle("UPLOAD"))
                channel.start_put_many(attachment, [Small("a", b"x"), Small("b", b"y")])
            else:
                for name, data in (("a", b"x"), ("b", b"y")):
                    attachment = channel.attach_next(control.upload(name, 1, os.urandom(16)).ticket)
                    channel.put(attachment, 0, 0, data, LAST | COMMIT, digest_of(data))
            await_true(lambda: storage.count == 2)
        await_true(lambda: server.channel_count == 0)
        storage.go.set()
        await_true(lambda: not server.live_uploads())
        assert control.names() == ["a", "b"]
    assert sorted(row["file"] for row in rows() if row["event"] == "upload") == ["a", "b"]


# bounds ---------------------------------------------------------------------------------------------------------------


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@in_memory
def test_names_that_wait_behind_a_client_that_does_not_read_fill_no_memory(
    server: RunningServer, control: RawControl, channel: RawChannel, putting: int
) -> None:
    files = [Small(f"f{number}", bytes(SMALL_BYTES - 100)) for number in range(3)]
    assert channel.put_many(putting, files) == [COMMITTED] * 3
    names = [f"{number:062}" for number in range(1024)]
    body = encode_names(name.encode() for name in names)
    with RawChannel(server.data_address, receive_buffer=4096) as deaf:
        getting = deaf.attach_next(control.bundle("DOWNLOAD"))
        for serial in range(8):
            deaf.start_get_many(getting, [file.name for file in files], MIB, serial)
        before = _resident_bytes()
        deaf.sock.settimeout(0.4)
        sent = 8
        with suppress(TimeoutError):
            while sent < 1024:
                deaf.frame(FrameType.GET_MANY, getting, sent, 0, len(body), 0, body)
                sent += 1
        assert sent < 500, "the server takes no more"
        assert _resident_bytes() - before < 32 * MIB
        # Whoever reads gets all answers all the same.
    with RawChannel(server.data_address) as slow:
        getting = slow.attach_next(control.bundle("DOWNLOAD"))

        def ask() -> None:
            for serial in range(100):
                slow.frame(FrameType.GET_MANY, getting, serial, 0, len(body), 0, body)

        def read() -> None:
            for serial in range(100):
                assert {file.status for file in slow.all_files(serial)} == {ErrorCode.FILE_NOT_FOUND.number}

        run_all([ask, read])
    server.assert_no_traceback()


@in_memory
def test_more_bundles_than_the_storage_takes_wait_and_hold_nobody_else_up(start_server: StartServer) -> None:
    usage = UsageBook()
    storage = HeldStorage(usage=usage)
    server = start_server(Foundation(storage, MemoryLedger(usage=usage), KEYS))
    bundle = [Small(f"f{number}", os.urandom(250_000)) for number in range(4)]
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        putting = channel.attach_next(control.bundle("UPLOAD"))
        for serial in range(32):  # all of the credit, and no more
            files = [replace(file, upload_id=os.urandom(16), name=f"{serial}/{file.name}") for file in bundle]
            channel.start_put_many(putting, files, serial)
        await_true(lambda: storage.count == 128)
        assert held(control) == (0, 0, 32_000_000, 128)
        with RawChannel(server.data_address) as other:  # the desk goes on, for others too
            getting = other.attach_next(control.bundle("DOWNLOAD"))
            assert other.get_many(getting, ["nothing"]) == [ErrorCode.FILE_NOT_FOUND]
        assert control.ask(Verb.PING).kind is ReplyKind.OK
        storage.go.set()
        answers = [channel.answer() for _ in range(32)]  # in any order
        assert {answer.segment for answer in answers} == set(range(32))
        assert {tuple(decode_statuses(answer.body)) for answer in answers} == {(COMMITTED,) * 4}
        assert held(control) == (32_000_000, 128, 0, 0)
        # One byte more than the credit ends the channel.
        storage.go.clear()
        for serial in range(34):
            files = [replace(file, upload_id=os.urandom(16), name=f"{serial}/{file.name}") for file in bundle]
            channel.start_put_many(putting, files, serial)
        while (answer := channel.answer()).type is FrameType.ACKS:
            continue
        assert (answer.attachment, answer.code) == (WHOLE_CHANNEL, ErrorCode.CREDIT_EXCEEDED)


def test_a_ping_is_answered_while_bundles_run(server: RunningServer, control: RawControl) -> None:
    over = threading.Event()

    def upload(mark: int) -> None:
        with RawControl(server.control_address) as own, RawChannel(server.data_address) as channel:
            putting = channel.attach_next(own.bundle("UPLOAD"))
            getting = channel.attach_next(own.bundle("DOWNLOAD"))
            for turn in range(4):
                files = [Small(f"{mark}/{turn}/{number}", b"x" * 200) for number in range(500)]
                assert channel.put_many(putting, files) == [COMMITTED] * 500
                assert channel.get_many(getting, [file.name for file in files]) == [b"x" * 200] * 500

    def ping() -> float:
        worst = 0.0
        while not over.is_set():
            began = time.monotonic()
            assert control.ask(Verb.PING).kind is ReplyKind.OK
            worst = max(worst, time.monotonic() - began)
        return worst

    with ThreadPoolExecutor(1) as pool:
        worst = pool.submit(ping)
        try:
            run_all([lambda: upload(0), lambda: upload(1)])
        finally:
            over.set()
        assert worst.result() < 1.0  # tens of milliseconds on an idle machine
    assert held(control) == (2 * 4 * 500 * 200, 2 * 4 * 500, 0, 0)


@in_memory
def test_bundles_keep_to_the_rate(start_server: StartServer, foundation: Foundation) -> None:
    server = start_server(foundation, max_bytes_per_second=MIB)
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        putting, getting = (
            channel.attach_next(control.bundle("UPLOAD")),
            channel.attach_next(control.bundle("DOWNLOAD")),
        )
        files = [Small(f"f{number}", os.urandom(100_000)) for number in range(8)]
        began = time.monotonic()
        assert channel.put_many(putting, files) == [COMMITTED] * 8
        up = time.monotonic()
        assert channel.get_many(getting, [file.name for file in files]) == [file.data for file in files]
        down = time.monotonic()
        # 800,000 bytes at 1 MiB a second, less what may be saved up.
        assert up - began > 0.3
        assert down - up > 0.3


@pytest.mark.parametrize("what", ["half a bundle", "names", "nothing is read"])
def test_who_does_not_go_on_in_mid_bundle_is_given_up(
    start_server: StartServer, foundation: Foundation, what: str
) -> None:
    server = start_server(foundation, stall_seconds=0.5)
    with RawControl(server.control_address) as control:
        with RawChannel(server.data_address) as channel:
            files = [Small(f"f{number}", os.urandom(200_000)) for number in range(5)]
            assert channel.put_many(channel.attach_next(control.bundle("UPLOAD")), files) == [COMMITTED] * 5
        with RawChannel(server.data_address, receive_buffer=4096) as silent:
            attachment = silent.attach_next(control.bundle("UPLOAD" if what == "half a bundle" else "DOWNLOAD"))
            if what == "half a bundle":
                silent.frame(FrameType.PUT_MANY, attachment, 0, 0, 1000, 0, b"x" * 500)
            elif what == "names":
                silent.frame(FrameType.GET_MANY, attachment, 0, 1000, 1000, 0, b"x" * 500)
            else:
                for serial in range(20):
                    silent.start_get_many(attachment, [file.name for file in files], MIB, serial)
            await_true(lambda: server.channel_count == 0)
        assert held(control)[2:] == (0, 0)
    server.assert_no_traceback()


# the end of a server --------------------------------------------------------------------------------------------------


def test_a_stop_in_mid_bundle_answers_or_says_goodbye_and_loses_nothing(root: Path) -> None:
    acknowledged: dict[str, bytes] = {}
    sent = [[Small(f"{serial}/{n}", os.urandom(500)) for n in range(200)] for serial in range(12)]
    with running_daemon(root) as daemon:
        with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
            putting = channel.attach_next(control.bundle("UPLOAD"))
            for serial, files in enumerate(sent):
                channel.start_put_many(putting, files, serial)
            first = channel.answer()
            daemon.process.send_signal(signal.SIGTERM)
            said_goodbye = False
            answer = first
            with suppress(ClosedError):
                while True:
                    if answer.type is FrameType.GOODBYE:
                        said_goodbye = True
                    else:
                        assert answer.type is FrameType.ACKS
                        assert set(decode_statuses(answer.body)) == {COMMITTED}
                        acknowledged.update({file.name: file.data for file in sent[answer.segment]})
                    answer = channel.answer()
            assert said_goodbye or len(acknowledged) == 2400
        assert daemon.process.wait(60) == 0
        assert "Traceback" not in daemon.log()
    assert acknowledged
    for name, data in acknowledged.items():
        assert (root / name).read_bytes() == data
    # What was not answered is said again under the same ids, to the next server, with the same ticket's right.
    with running_daemon(root) as daemon:
        with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
            putting = channel.attach_next(control.bundle("UPLOAD"))
            for files in sent:
                assert channel.put_many(putting, files) == [COMMITTED] * 200
            assert held(control) == (2400 * 500, 2400, 0, 0)
        for files in sent:
            assert all((root / file.name).read_bytes() == file.data for file in files)
        assert "Traceback" not in daemon.log()


# TLS ------------------------------------------------------------------------------------------------------------------


@in_memory
def test_a_ticket_given_over_tls_is_of_no_use_without(
    start_server: StartServer, make_foundation: MakeFoundation, shm_path: Path
) -> None:
    server = start_server(with_tls(make_foundation(), shm_path / "tls"))
    with tls_control(server.control_address) as secure, RawControl(server.control_address) as plain:
        with RawChannel(server.data_address) as bare:
            number = bare.attach_next(secure.bundle("UPLOAD"))
            refused = ErrorCode.TLS_REQUIRED
            assert bare.answer().code is refused
            assert bare.put_many(number, [Small("a", b"a"), Small("b", b"b")]) == [refused] * 2
            assert bare.put_many(bare.attach_next(plain.bundle("UPLOAD")), [Small("c", b"c")]) == [COMMITTED]
        with tls_channel(server.data_address) as covered:
            files = [Small(f"f{number}", os.urandom(100_000)) for number in range(8)]
            assert covered.put_many(covered.attach_next(secure.bundle("UPLOAD")), files) == [COMMITTED] * 8
            getting = covered.attach_next(secure.bundle("DOWNLOAD"))
            assert covered.get_many(getting, [file.name for file in files]) == [file.data for file in files]
        assert plain.names() == ["c", *(file.name for file in files)]


def test_a_channel_says_in_its_log_line_what_it_moved(
    server: RunningServer, control: RawControl, channel: RawChannel, putting: int, getting: int
) -> None:
    assert channel.put_many(putting, [Small("a", b"12345"), Small("b", b""), Small("../c", b"")])[:2] == [COMMITTED] * 2
    assert channel.get_many(getting, ["a", "b", "c"])[:2] == [b"12345", b""]
    channel.close()
    await_true(lambda: server.channel_count == 0)
    await_true(lambda: " 5 bytes out, 2 files committed" in server.log.getvalue())
    server.assert_no_traceback()

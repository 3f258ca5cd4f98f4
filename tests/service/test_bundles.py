"""Bundles over sockets: each file of one is judged by itself, and nothing of a single file's promises is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import WHOLE_CHANNEL, AckStatus, FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import digest_of
from twinport_protocol.tickets import Action, Ticket, TicketKeys, encode_ticket
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import SMALL_BYTES, OnDone, UploadSpec, WholeFile
from twinport_service.storage.memory import MemoryStorage
from twinport_service.usage import UsageBook

from tests.service.conftest import KEYS, StartServer
from tests.service.oracle import Oracle
from tests.service.raw_client import RawChannel, RawControl, Small, await_true, run_all, send_file
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
COMMITTED = AckStatus.COMMITTED
LATER = 2**40
in_memory = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)


def make_ticket(action: Action, *, keys: TicketKeys = KEYS, **changes: object) -> bytes:
    """A ticket for bundles of this server, unless ``keys`` are another's."""
    values: dict[str, object] = {"user": "anonymous", "size": 0, "expires_at": LATER, **changes}
    return keys.sign(Ticket(action, scope=b"", **values))  # type: ignore[arg-type]


@pytest.fixture
def putting(control: RawControl, channel: RawChannel) -> int:
    """An attachment for uploads in bundles."""
    return channel.attach_next(control.bundle("UPLOAD"))


@pytest.fixture
def getting(control: RawControl, channel: RawChannel) -> int:
    """An attachment for downloads in bundles."""
    return channel.attach_next(control.bundle("DOWNLOAD"))


class HeldStorage(MemoryStorage):
    """Small files wait until they are let go. ``count`` are those that came."""

    def __init__(self, *, usage: UsageBook | None = None) -> None:
        super().__init__(usage=usage)
        self.go = threading.Event()
        self.count = 0
        self._threads: list[threading.Thread] = []

    def commit_small(self, spec: UploadSpec, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """See the contract."""
        self.commit_small_files([WholeFile(spec, data, digest, on_done)])

    def commit_small_files(self, files: Sequence[WholeFile]) -> None:
        """See the contract."""

        def publish() -> None:
            self.go.wait()
            for file in files:
                super(HeldStorage, self).commit_small(file.spec, bytes(file.data), file.digest, file.on_done)

        self._threads.append(threading.Thread(target=publish))
        self._threads[-1].start()
        self.count += len(files)

    def close(self) -> None:
        """See the contract."""
        self.go.set()
        for thread in self._threads:
            thread.join()
        super().close()


@pytest.fixture
def held(start_server: StartServer) -> tuple[RunningServer, HeldStorage]:
    """A server whose storage holds bundles up."""
    storage = HeldStorage()
    return start_server(Foundation(storage, MemoryLedger(), KEYS)), storage


@in_memory
def test_a_file_is_asked_for_by_its_id_while_its_bundle_is_still_under_way(
    held: tuple[RunningServer, HeldStorage],
) -> None:
    server, storage = held
    file = Small("a", b"bytes")
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as lost:
        lost.start_put_many(lost.attach_next(control.bundle("UPLOAD")), [file])
        await_true(lambda: storage.count == 1)
        lost.close()
        with RawChannel(server.data_address) as channel:
            options = {"mtime": str(file.mtime_ns)}
            again = control.upload("a", 5, file.upload_id, options)
            attachment = channel.attach_next(again.ticket)
            assert channel.put_segment(attachment, 0, b"bytes", commit=True) is ErrorCode.UPLOAD_CLOSED
            storage.go.set()
            await_true(lambda: not server.live_uploads())
            again = control.upload("a", 5, file.upload_id, options)
            assert channel.put_segment(channel.attach_next(again.ticket), 0, b"bytes", commit=True) is COMMITTED
        assert control.names() == ["a"]


@in_memory
def test_who_asks_about_a_file_of_a_bundle_leaves_nothing_of_it_behind(held: tuple[RunningServer, HeldStorage]) -> None:
    server, storage = held
    file = Small("a", b"bytes")
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        channel.start_put_many(channel.attach_next(control.bundle("UPLOAD")), [file])
        await_true(lambda: storage.count == 1)
        word = file.upload_id.hex()
        options = {"generation": "1", "root": digest_of(file.data).hex()}
        assert control.refused(Verb.COMMIT, word, options=options) is ErrorCode.BUSY
        assert control.refused(Verb.ABORT, word) is ErrorCode.UPLOAD_CLOSED
        with RawChannel(server.data_address) as other:
            other.attach(control.upload("a", 5, file.upload_id, {"mtime": str(file.mtime_ns)}).ticket)
            assert other.answer().code is ErrorCode.UPLOAD_CLOSED
        storage.go.set()
        assert channel.all_acknowledged() == [COMMITTED]
        assert not server.server._desk.table._uploads
        assert control.ask(Verb.COMMIT, word, options=options).kind is ReplyKind.DONE
        # Nothing is taken for what it was.
        attachment = channel.attach_next(control.upload("b", 5, file.upload_id).ticket)
        assert channel.put_segment(attachment, 0, b"bytes", commit=True) is ErrorCode.DENIED
        assert control.names() == ["a"]


# uploads --------------------------------------------------------------------------------------------------------------


def test_bundles_bring_files_of_every_kind_and_back(
    control: RawControl, channel: RawChannel, oracle: Oracle, putting: int, getting: int
) -> None:
    files = [
        Small("empty", b""),
        Small("d/e/program", b"#!/bin/sh\n", executable=True, mtime_ns=7),
        Small("old", os.urandom(SMALL_BYTES), mtime_ns=-5_000_000_000),
        Small("ünïcode name", b"x" * 4096),
    ]
    assert control.limits.bundle == 1024 * 1024
    assert channel.put_many(putting, files, 77) == [COMMITTED] * 4
    names = [file.name for file in files]
    assert channel.get_many(getting, names, serial=2**32 - 1) == [file.data for file in files]
    channel.start_get_many(getting, names, 1024 * 1024)
    for file, found in zip(files, channel.all_files(), strict=True):
        assert (found.mtime_ns, found.executable) == (file.mtime_ns, file.executable)
        oracle.sent(file.name, file.data)
    oracle.check(is_idle=False)


def test_what_is_refused_of_a_bundle_does_not_concern_its_neighbours(
    control: RawControl, channel: RawChannel, oracle: Oracle, putting: int
) -> None:
    assert channel.put_many(putting, [Small("there", b"first"), Small("dir/file", b"deep")]) == [COMMITTED] * 2
    wrong: list[tuple[Small, ErrorCode]] = [
        (Small("../up", b"1"), ErrorCode.INVALID_NAME),
        (Small("/top", b"2"), ErrorCode.INVALID_NAME),
        (Small("", b"3"), ErrorCode.INVALID_NAME),
        (Small("a\0b", b"4"), ErrorCode.INVALID_NAME),
        (Small("", b"5", raw_name=b"\xff\xfe"), ErrorCode.INVALID_ENCODING),
        (Small("x" * 60_000, b"6"), ErrorCode.INVALID_NAME),
        (Small(".twinport/lock", b"7"), ErrorCode.INVALID_NAME),
        (Small("liar", b"8", digest=bytes(32)), ErrorCode.DIGEST_MISMATCH),
        (Small("large", bytes(SMALL_BYTES + 1)), ErrorCode.TOO_LARGE),
        (Small("there/below", b"9"), ErrorCode.NAME_CONFLICT),
        (Small("dir", b"10"), ErrorCode.NAME_CONFLICT),
        (Small("there", b"11", if_absent=True), ErrorCode.EXISTS),
    ]
    files: list[Small] = []
    expected: list[AckStatus | ErrorCode] = []
    for number, (file, code) in enumerate(wrong):
        files += (file, Small(f"good{number}", b"good"))
        expected += (code, COMMITTED)
    assert channel.put_many(putting, files) == expected
    oracle.sent("there", b"first")
    oracle.sent("dir/file", b"deep")
    for number in range(len(wrong)):
        oracle.sent(f"good{number}", b"good")
    oracle.check(is_idle=False)  # which finds no other names


def test_a_bundle_said_again_is_answered_again_and_publishes_nothing(
    control: RawControl, channel: RawChannel, putting: int, getting: int
) -> None:
    first = [Small(f"f{number}", b"one", if_absent=number % 2 == 0) for number in range(6)]
    assert channel.put_many(putting, first) == [COMMITTED] * 6
    assert channel.put_many(putting, [Small("f0", b"newer"), Small("f1", b"newer")]) == [COMMITTED] * 2
    before = control.ask(Verb.QUOTA).options
    assert channel.put_many(putting, first) == [COMMITTED] * 6
    assert control.ask(Verb.QUOTA).options == before
    assert (before["files"], before["bytes"], before["reserved-bytes"]) == ("6", str(2 * 5 + 4 * 3), "0")
    assert channel.get_many(getting, ["f0", "f2"]) == [b"newer", b"one"]
    # The same id for another file is nobody's proof of anything.
    other = [replace(first[0], data=b"two"), replace(first[1], name="g"), Small("fine", b"")]
    assert channel.put_many(putting, other) == [ErrorCode.DENIED, ErrorCode.DENIED, COMMITTED]


def test_one_name_or_one_id_twice_in_a_bundle(
    control: RawControl, channel: RawChannel, putting: int, getting: int
) -> None:
    twice = Small("b", b"once")
    files = [Small("a", b"older"), Small("a", b"newer"), twice, twice, replace(twice, name="c")]
    files += [Small("d", b"first", if_absent=True), Small("d", b"second", if_absent=True)]
    closed = ErrorCode.UPLOAD_CLOSED
    assert channel.put_many(putting, files) == [COMMITTED] * 3 + [closed] * 2 + [COMMITTED, ErrorCode.EXISTS]
    assert channel.get_many(getting, ["a", "b", "c", "d"]) == [b"newer", b"once", ErrorCode.FILE_NOT_FOUND, b"first"]
    assert control.ask(Verb.QUOTA).options["files"] == "3"


def test_the_id_of_an_open_upload_is_taken(
    control: RawControl, channel: RawChannel, putting: int, upload_id: MakeId
) -> None:
    upload = control.upload("open", 4, upload_id())
    files = [Small("open", b"four", upload.upload_id), Small("free", b"")]
    assert channel.put_many(putting, files) == [ErrorCode.UPLOAD_CLOSED, COMMITTED]
    assert channel.put_segment(channel.attach_next(upload.ticket), 0, b"four", commit=True) is COMMITTED


def test_many_channels_write_the_same_names_at_once(server: RunningServer, oracle: Oracle) -> None:
    names = [f"n{number}" for number in range(20)]

    def send(mark: int) -> list[AckStatus | ErrorCode]:
        with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
            attachment = channel.attach_next(control.bundle("UPLOAD"))
            return [
                status
                for turn in range(5)
                for status in channel.put_many(attachment, [Small(name, b"%d %d" % (mark, turn)) for name in names])
            ]

    for statuses in run_all([lambda mark=mark: send(mark) for mark in range(4)]):  # type: ignore[misc]
        assert statuses == [COMMITTED] * 100
    for name in names:
        for mark in range(4):
            oracle.sent(name, b"%d 4" % mark)  # somebody's last
    oracle.check()
    with RawControl(server.control_address) as control:
        usage = control.ask(Verb.QUOTA).options
        assert (usage["files"], usage["open-uploads"], usage["reserved-bytes"]) == ("21", "0", "0")  # and the canary


# downloads ------------------------------------------------------------------------------------------------------------


def test_what_is_refused_of_a_fetched_bundle_does_not_concern_its_neighbours(
    control: RawControl, channel: RawChannel, putting: int, getting: int, upload_id: MakeId
) -> None:
    assert channel.put_many(putting, [Small("a", b"aa"), Small("d/b", b"bbb")]) == [COMMITTED] * 2
    send_file(control, channel, "large", bytes(SMALL_BYTES + 1), upload_id())
    wrong: list[tuple[str | bytes, ErrorCode]] = [
        ("nothing", ErrorCode.FILE_NOT_FOUND),
        ("a/below", ErrorCode.FILE_NOT_FOUND),
        ("d", ErrorCode.DENIED),
        ("large", ErrorCode.TOO_LARGE),
        ("../a", ErrorCode.INVALID_NAME),
        ("", ErrorCode.INVALID_NAME),
        (".twinport/mark", ErrorCode.INVALID_NAME),
        (b"\xff", ErrorCode.INVALID_ENCODING),
    ]
    names = [name for each, _ in wrong for name in (each, "d/b")]
    expected = [found for _, code in wrong for found in (code, b"bbb")]
    assert channel.get_many(getting, names) == expected
    # What does not fit any more is left out, what comes behind it and fits is not.
    assert channel.get_many(getting, ["a", "d/b", "a", "a"], 6) == [
        b"aa",
        b"bbb",
        ErrorCode.TOO_LARGE,
        ErrorCode.TOO_LARGE,
    ]
    assert channel.get_many(getting, ["d/b", "a"], 2) == [ErrorCode.TOO_LARGE, b"aa"]
    assert channel.get_many(getting, ["a"], 0) == [ErrorCode.TOO_LARGE]


@pytest.mark.parametrize("storage_kind", ["local"], indirect=True)
def test_what_lies_in_the_root_by_other_means_is_left_to_download(
    server: RunningServer, control: RawControl, channel: RawChannel, putting: int, getting: int
) -> None:
    root = server.settings.root
    assert channel.put_many(putting, [Small("kept", b"kept"), Small("touched", b"mine")]) == [COMMITTED] * 2
    (root / "placed").write_bytes(b"placed")
    (root / "touched").write_bytes(b"else")
    (root / "link").symlink_to(root / "kept")
    (root / "away").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")
    names = ["placed", "touched", "link", "away", "pipe", "kept"]
    unsupported, denied = ErrorCode.UNSUPPORTED, ErrorCode.DENIED
    assert channel.get_many(getting, names) == [unsupported, unsupported, denied, denied, denied, b"kept"]


@pytest.mark.parametrize("storage_kind", ["local"], indirect=True)
@pytest.mark.parametrize("mtime_ns", [2**63, 13 * 10**18, -(2**40) * 10**9])
def test_a_time_that_no_record_can_hold_is_left_to_the_commands(
    server: RunningServer, control: RawControl, channel: RawChannel, putting: int, getting: int, mtime_ns: int
) -> None:
    assert channel.put_many(putting, [Small("good", b"good")]) == [COMMITTED]
    path = server.settings.root / "strange"
    path.write_bytes(b"strange")
    os.utime(path, ns=(mtime_ns, mtime_ns))
    control.ask(Verb.STAT, "strange")
    assert channel.get_many(getting, ["strange", "good"]) == [ErrorCode.UNSUPPORTED, b"good"]
    server.assert_no_traceback()


# tickets --------------------------------------------------------------------------------------------------------------


def test_a_ticket_for_bundles_is_good_for_its_direction_and_for_nothing_else(
    control: RawControl, channel: RawChannel, putting: int, getting: int, upload_id: MakeId
) -> None:
    send_file(control, channel, "there", b"bytes", upload_id())
    single = channel.attach_next(control.upload("x", 5, upload_id()).ticket)
    fetched = channel.attach_next(control.download("there").ticket)
    for attachment in (getting, single, fetched, 4711):
        assert channel.put_many(attachment, [Small("x", b"1"), Small("y", b"2")]) == [ErrorCode.NOT_ATTACHED] * 2
    for attachment in (putting, single, fetched, 4711):
        assert channel.get_many(attachment, ["there", "x"]) == [ErrorCode.NOT_ATTACHED] * 2
    for attachment in (putting, getting):
        assert channel.put_segment(attachment, 0, b"bytes", commit=True) is ErrorCode.NOT_ATTACHED
        assert channel.have(attachment) is ErrorCode.NOT_ATTACHED
        channel.get(attachment, 0, 0, 1)
        assert channel.answer().code is ErrorCode.NOT_ATTACHED
        channel.frame(FrameType.MANIFEST, attachment)
        assert channel.answer().code is ErrorCode.NOT_ATTACHED
    # And all of them go on.
    assert channel.put_segment(single, 0, b"bytes", commit=True) is COMMITTED
    assert channel.put_many(putting, [Small("y", b"2")]) == [COMMITTED]
    assert channel.get_many(getting, ["y"]) == [b"2"]


@pytest.mark.parametrize("action", [Action.UPLOAD_MANY, Action.DOWNLOAD_MANY])
def test_a_bad_ticket_for_bundles_is_answered_in_kind(control: RawControl, channel: RawChannel, action: Action) -> None:
    good = make_ticket(action)
    stolen = TicketKeys(bytes(range(16)), {7: bytes(32)}, 7)
    bad = [
        (good[:-1] + bytes((good[-1] ^ 1,)), ErrorCode.TICKET_INVALID),
        (make_ticket(action, keys=stolen), ErrorCode.TICKET_INVALID),
        (make_ticket(action, expires_at=1), ErrorCode.TICKET_EXPIRED),
        (make_ticket(action, secure=True), ErrorCode.TLS_REQUIRED),
    ]
    for ticket, code in bad:
        number = channel.attach_next(ticket)
        failed = channel.answer()
        assert (failed.type, failed.attachment, failed.code) == (FrameType.FAIL, number, code)
        assert channel.put_many(number, [Small("a", b""), Small("b", b"")]) == [code] * 2
        assert channel.get_many(number, ["a", "b"]) == [code] * 2
        channel.detach(number)
    assert control.names() == []
    channel.attach(good, 1)
    # All of a channel is one user's.
    channel.attach(make_ticket(action, user="mallory"), 2)
    assert channel.answer().code is ErrorCode.DENIED
    assert control.refused(Verb.RENEW, encode_ticket(good)) is ErrorCode.TICKET_INVALID


def test_a_bundle_goes_in_one_of_two_directions(control: RawControl) -> None:
    for direction in ("SIDEWAYS", "upload", ""):
        assert control.refused(Verb.BUNDLE, direction or "%20") is ErrorCode.BAD_REQUEST
    assert control.raw(b"100 BUNDLE").code is ErrorCode.BAD_REQUEST
    assert control.raw(b"101 BUNDLE UPLOAD DOWNLOAD").code is ErrorCode.BAD_REQUEST


# frames ---------------------------------------------------------------------------------------------------------------


def _in_bundle(body: bytes) -> Callable[[RawChannel, int, int], None]:
    return lambda c, putting, getting: c.frame(FrameType.PUT_MANY, putting, 0, 0, len(body), 0, body)


def _of_names(body: bytes, most_bytes: int = 10) -> Callable[[RawChannel, int, int], None]:
    return lambda c, putting, getting: c.frame(FrameType.GET_MANY, getting, 0, most_bytes, len(body), 0, body)


_RECORD = Small("a", b"b").record()


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (_in_bundle(b""), ErrorCode.BAD_REQUEST),
        (_in_bundle(_RECORD[:-1]), ErrorCode.BAD_REQUEST),
        (_in_bundle(_RECORD + b"x"), ErrorCode.BAD_REQUEST),
        (_in_bundle(_RECORD[:16] + b"\x04" + _RECORD[17:]), ErrorCode.BAD_REQUEST),
        (_in_bundle(Small("a", b"").record() * 1025), ErrorCode.BAD_REQUEST),
        (lambda c, p, g: c.frame(FrameType.PUT_MANY, p, 0, 0, 1024 * 1024 + 1), ErrorCode.BAD_REQUEST),
        (lambda c, p, g: c.frame(FrameType.PUT_MANY, 4711, 0, 0, 1, 0, b"x"), ErrorCode.BAD_REQUEST),
        (_of_names(b""), ErrorCode.BAD_REQUEST),
        (_of_names(b"\0\2a"), ErrorCode.BAD_REQUEST),
        (_of_names(b"\0\1a\0"), ErrorCode.BAD_REQUEST),
        (_of_names(b"\0\1a" * 1025), ErrorCode.BAD_REQUEST),
        (_of_names(b"\0\1a", 32 * 1024 * 1024 + 1), ErrorCode.CREDIT_EXCEEDED),
        (lambda c, p, g: c.frame(FrameType.GET_MANY, g, 0, 0, 64 * 1024 + 1), ErrorCode.BAD_REQUEST),
        (lambda c, p, g: c.frame(FrameType.ACKS, p), ErrorCode.BAD_REQUEST),
        (lambda c, p, g: c.frame(FrameType.FILES, g), ErrorCode.BAD_REQUEST),
    ],
)
def test_a_broken_bundle_ends_the_channel_with_its_reason(
    channel: RawChannel,
    oracle: Oracle,
    putting: int,
    getting: int,
    attack: Callable[[RawChannel, int, int], None],
    code: ErrorCode,
) -> None:
    attack(channel, putting, getting)
    answer = channel.answer()
    assert (answer.type, answer.attachment, answer.code) == (FrameType.FAIL, WHOLE_CHANNEL, code)
    assert channel.is_closed()
    oracle.check(is_idle=False)


def test_what_is_unanswered_at_a_detach_is_answered_all_the_same(
    channel: RawChannel, putting: int, getting: int
) -> None:
    assert channel.put_many(putting, [Small("a", b"a")]) == [COMMITTED]
    channel.start_put_many(putting, [Small(f"f{number}", b"x" * 1000) for number in range(100)], 1)
    channel.detach(putting)
    assert channel.all_acknowledged(1) == [COMMITTED] * 100
    channel.start_get_many(getting, ["a"], 10, 2)
    channel.detach(getting)
    (file,) = channel.all_files(2)
    assert file.status in (0, ErrorCode.NOT_ATTACHED.number)
    for number in (putting, getting):
        assert channel.put_many(number, [Small("b", b"b")]) == [ErrorCode.NOT_ATTACHED]

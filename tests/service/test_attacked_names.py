"""Names and sizes from hostile clients: one clear refusal, the session goes on, nothing outside is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus
from twinport_protocol.messages import Reply, ReplyKind, Verb

from tests.service.conftest import StartServer
from tests.service.oracle import Oracle
from tests.service.raw_client import RawChannel, RawControl, fetch_file, send_file
from tests.service.running_server import RunningServer

REFUSED_WAYS = {ErrorCode.DENIED, ErrorCode.FILE_NOT_FOUND, ErrorCode.NAME_CONFLICT}
MakeId = Callable[[], bytes]
IN_MEMORY = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)  # judged before a storage is asked
BAD_NAMES = [
    (b"../x", ErrorCode.INVALID_NAME),
    (b"a/../../x", ErrorCode.INVALID_NAME),
    (b"a/../b", ErrorCode.INVALID_NAME),
    (b"/etc/passwd", ErrorCode.INVALID_NAME),
    (b"//x", ErrorCode.INVALID_NAME),
    (b"a//b", ErrorCode.INVALID_NAME),
    (b"a/", ErrorCode.INVALID_NAME),
    (b".", ErrorCode.INVALID_NAME),
    (b"..", ErrorCode.INVALID_NAME),
    (b"./x", ErrorCode.INVALID_NAME),
    (b"a/.", ErrorCode.INVALID_NAME),
    (b"%20", ErrorCode.INVALID_NAME),
    (b"a/%20%20/b", ErrorCode.INVALID_NAME),
    (b"%2e%2e%2fx", ErrorCode.INVALID_NAME),
    (b"%2fetc%2fpasswd", ErrorCode.INVALID_NAME),
    (b"a%00.txt", ErrorCode.INVALID_NAME),
    (b"a%0aOK%201", ErrorCode.INVALID_NAME),
    (b"a%0d", ErrorCode.INVALID_NAME),
    (b"a%7f", ErrorCode.INVALID_NAME),
    (b"a%c2%85b", ErrorCode.INVALID_NAME),
    (b".twinport", ErrorCode.INVALID_NAME),
    (b".twinport/identity.json", ErrorCode.INVALID_NAME),
    (b".TwinPort/identity.json", ErrorCode.INVALID_NAME),
    (b"n" * 256, ErrorCode.INVALID_NAME),
    (b"d/" + b"n" * 256, ErrorCode.INVALID_NAME),
    ("é".encode() * 128, ErrorCode.INVALID_NAME),
    (b"/".join([b"d" * 200] * 5), ErrorCode.INVALID_NAME),
    (b"a\x00.txt", ErrorCode.BAD_REQUEST),
    (b"a\rb", ErrorCode.BAD_REQUEST),
    (b"a\x7fb", ErrorCode.BAD_REQUEST),
    (b"a%", ErrorCode.BAD_REQUEST),
    (b"a%2", ErrorCode.BAD_REQUEST),
    (b"a%zz", ErrorCode.BAD_REQUEST),
    (b"", ErrorCode.BAD_REQUEST),
    (b"%c0%ae%c0%ae%c0%af", ErrorCode.INVALID_ENCODING),
    (b"\xc0\xae\xc0\xae\xc0\xaf", ErrorCode.INVALID_ENCODING),
    (b"%ed%a0%80", ErrorCode.INVALID_ENCODING),
    (b"\xed\xa0\x80", ErrorCode.INVALID_ENCODING),
    (b"\xff", ErrorCode.INVALID_ENCODING),
]

# What looks like mischief and is a plain name.
GOOD_NAMES = [
    "~", "~root/x", "-rf", "QUIT", "DONE", "OK 1", "my  file.txt", "a=b", "a%2e%2e%2fx", "%252e", "．．／x",
    "∕etc∕passwd",
    "..x", "x..", "...", "a b/ c ", " lead", "trail ", "CON", "nul.txt", "a:b", "back\\slash", "n" * 255, "é" * 127,
    "d/.twinport", "retry=5", "0", "\u202egpj.exe", "é", "e\u0301",
    "/".join("d" * 200 for _ in range(4)), "'; rm -rf /;'", "$(id)", "*",
]  # fmt: skip

LINES: dict[str, Callable[[bytes], bytes]] = {
    "UPLOAD": lambda name: b"9 UPLOAD " + name + b" 3 upload=" + b"ab" * 16,
    "UPLOAD large": lambda name: b"9 UPLOAD " + name + b" 30000000 upload=" + b"ab" * 16,
    "resume": lambda name: b"9 UPLOAD " + name + b" 3 resume=" + b"ab" * 16,
    "DOWNLOAD": lambda name: b"9 DOWNLOAD " + name,
    "STAT": lambda name: b"9 STAT " + name,
    "DELETE": lambda name: b"9 DELETE " + name,
    "MKDIR": lambda name: b"9 MKDIR " + name,
    "MOVE from": lambda name: b"9 MOVE " + name + b" target",
    "MOVE to": lambda name: b"9 MOVE present " + name,
}


@pytest.mark.parametrize("verb", LINES)
def test_a_bad_name_is_refused_by_every_verb(
    start_server: StartServer, root: Path, verb: str, upload_id: Callable[[], bytes]
) -> None:
    running = start_server()
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "canary").write_bytes(os.urandom(32))
    oracle = Oracle(running, outside)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        assert send_file(control, channel, "present", b"x", upload_id()) is AckStatus.COMMITTED
        oracle.sent("present", b"x")
    for at in range(0, len(BAD_NAMES), 8):  # a session survives ten lines that are no commands
        with RawControl(running.control_address) as control:
            for name, code in BAD_NAMES[at : at + 8]:
                reply = control.raw(LINES[verb](name))
                assert (reply.kind, reply.code, reply.id) == (ReplyKind.ERROR, code, 9), name
            assert control.ask(Verb.PING).kind is ReplyKind.OK
    oracle.check()
    assert set(control_names(running.control_address)) == {"present", "oracle canary"}


def control_names(address: tuple[str, int]) -> list[str]:
    """All names of a server."""
    with RawControl(address) as control:
        return control.names()


def test_every_spelling_of_a_good_name_is_that_file_and_no_other(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: Callable[[], bytes]
) -> None:
    for name in GOOD_NAMES:
        content = os.urandom(10)
        oracle.sent(name, content)
        assert send_file(control, channel, name, content, upload_id()) is AckStatus.COMMITTED, name
        assert fetch_file(control, channel, name) == content, name
    assert control.names() == sorted(GOOD_NAMES, key=str.encode)
    oracle.check(is_idle=False)


def test_a_name_cannot_be_a_file_and_a_directory(
    control: RawControl, channel: RawChannel, oracle: Oracle, upload_id: Callable[[], bytes]
) -> None:
    assert send_file(control, channel, "a/b", b"1", upload_id()) is AckStatus.COMMITTED
    for name, size in (("a", 3), ("a/b/c", 3), ("a", 30_000_000), ("a/b/c/d", 30_000_000)):
        reply = control.ask(Verb.UPLOAD, name, str(size), options={"upload": upload_id().hex()})
        if reply.kind is ReplyKind.OK:  # of a small file this is decided with its bytes
            assert size == 3
            status = send_file(control, channel, name, b"new", upload_id())
            assert status is ErrorCode.NAME_CONFLICT, name
        else:
            assert reply.code is ErrorCode.NAME_CONFLICT, name
    assert control.refused(Verb.MKDIR, "a/b") is ErrorCode.NAME_CONFLICT
    assert control.refused(Verb.MOVE, "a", "a/b/c") is ErrorCode.NAME_CONFLICT
    assert control.refused(Verb.DELETE, "a") is ErrorCode.NOT_EMPTY
    assert control.refused(Verb.DOWNLOAD, "a") is ErrorCode.DENIED
    oracle.sent("a/b", b"1")
    oracle.check(is_idle=False)


BAD_SIZES = [
    b"-1",
    b"+5",
    b"5.0",
    b"1e3",
    b"0x10",
    b"1_0",
    "٣".encode(),
    "１２".encode(),
    b"007",
    b"00",
    b"%205",
    b"5%20",
]
BAD_SIZES += [str(2**63).encode(), str(2**64).encode(), b"9" * 20, b"1" + b"0" * 5000, b"", b"5%0a", b"abc", b"%31%"]


@IN_MEMORY
@pytest.mark.parametrize("size", BAD_SIZES)
def test_a_bad_size_is_refused(control: RawControl, oracle: Oracle, size: bytes) -> None:
    reply = control.raw(b"5 UPLOAD name " + size + b" upload=" + b"00" * 16)
    expected = ErrorCode.INVALID_SIZE if size not in (b"", b"%31%") else ErrorCode.BAD_REQUEST
    assert (reply.id, reply.code) == (5, expected)
    assert control.ask(Verb.PING).kind is ReplyKind.OK
    oracle.check(is_idle=False)


@IN_MEMORY
@pytest.mark.parametrize(
    ("size", "accepted"),
    [
        (0, True),
        (999, True),
        (1000, True),
        (1001, False),
        (2**31, False),
        (2**32, False),
        (2**53 + 1, False),
        (2**63 - 1, False),
    ],
)
def test_the_largest_file_is_a_setting(
    start_server: StartServer, upload_id: Callable[[], bytes], size: int, accepted: bool
) -> None:
    running = start_server(max_file_bytes=1000)
    with RawControl(running.control_address) as control:
        assert control.limits.max_file == 1000
        reply: Reply = control.ask(Verb.UPLOAD, "x", str(size), options={"upload": upload_id().hex()})
        assert reply.code is (None if accepted else ErrorCode.TOO_LARGE)
        assert control.ask(Verb.PING).kind is ReplyKind.OK


def test_a_size_at_the_limit_of_the_protocol_costs_no_memory(
    control: RawControl, upload_id: Callable[[], bytes]
) -> None:
    for size in (2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1):
        reply = control.ask(Verb.UPLOAD, f"huge {size}", str(size), options={"upload": upload_id().hex()})
        assert reply.code in (None, ErrorCode.DISK_FULL)


@IN_MEMORY
@pytest.mark.parametrize(
    "line",
    [
        b"4 UPLOAD x 3",
        b"4 UPLOAD x 3 upload=",
        b"4 UPLOAD x 3 upload=" + b"0" * 31,
        b"4 UPLOAD x 3 upload=" + b"0" * 33,
        b"4 UPLOAD x 3 upload=" + b"zz" * 16,
        b"4 UPLOAD x 3 upload=" + b"%20" * 32,
        b"4 UPLOAD x 3 upload=" + b"00" * 16 + b" if-match=00",
        b"4 UPLOAD x 3 upload=" + b"00" * 16 + b" upload=" + b"00" * 16,
        b"4 UPLOAD x 3 upload=" + b"00" * 16 + b" =x",
        b"4 UPLOAD x 3 upload=" + b"00" * 16 + b" a=b=c",
        b"4 UPLOAD x 3 resume=00",
        b"4 UPLOAD x  3 upload=" + b"00" * 16,
        b"4 UPLOAD x",
        b"4 UPLOAD x 3 4",
        b"4 COMMIT 00 generation=1 root=" + b"00" * 32,
        b"4 COMMIT " + b"00" * 16 + b" generation=1",
        b"4 ABORT xyz",
        b"4 LIST a b",
        b"4 LIST limit=0",
        b"4 MOVE a",
        b"4 PING x",
        b"4 STAT",
    ],
)
def test_malformed_words_and_options_are_a_bad_request(control: RawControl, line: bytes) -> None:
    reply = control.raw(line)
    assert (reply.id, reply.code) == (4, ErrorCode.BAD_REQUEST)
    assert control.ask(Verb.PING).kind is ReplyKind.OK


@pytest.mark.parametrize("storage_kind", ["local"], indirect=True)
def test_what_others_plant_in_the_root_leads_nowhere(
    server: RunningServer, control: RawControl, channel: RawChannel, oracle: Oracle, root: Path, upload_id: MakeId
) -> None:
    outside = root.parent / "outside"
    (root / "link").symlink_to(outside / "passwd")
    (root / "way out").symlink_to(outside)
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    os.link(outside / "passwd", root / "hard")
    for name in ("link", "way out", "pipe", "way out/passwd", "up/outside/passwd"):
        assert control.refused(Verb.DOWNLOAD, name) in REFUSED_WAYS, name
        assert control.refused(Verb.MKDIR, f"{name}/x") in REFUSED_WAYS, name
        outcome = send_file(control, channel, f"{name}/new", b"new", upload_id())
        assert outcome in REFUSED_WAYS, name
    assert control.names() == ["hard"]
    # A second name of a foreign file is replaced, never written to.
    assert send_file(control, channel, "hard", b"new", upload_id()) is AckStatus.COMMITTED
    oracle.sent("hard", b"new")
    oracle.check(is_idle=False)
    assert sorted(path.name for path in outside.iterdir()) == ["deep", "passwd"]

"""Names, sizes and lines that a server must refuse, and those that only look so; after each the oracle is asked."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage

from .conftest import in_a_hurry
from .harness import PATIENT, RunningPlane, limits_with, running_plane
from .oracle import ClassicOracle, assert_reply, wait_until
from .reference_client import ReferenceClient, ServerError

REPLY_SIZE = 1024


def ask_raw(client: ReferenceClient, line: bytes) -> bytes:
    """One reply to raw bytes."""
    client.control.sendall(line)
    return client.control.recv(REPLY_SIZE)


def assert_refused(reply: bytes, code: str) -> None:
    assert_reply(reply)
    assert reply.startswith(f"ERROR {code} ".encode())


def send_for_ever(sock: socket.socket, block: bytes) -> NoReturn:
    """Send until it fails."""
    while True:
        sock.sendall(block)


def resident_bytes() -> int:
    """The memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# names ---------------------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "parent": b"../x",
    "parent inside": b"a/../../x",
    "parent at the end": b"a/..",
    "two dots": b"..",
    "one dot": b".",
    "dot inside": b"a/./b",
    "absolute": b"/etc/passwd",
    "two slashes": b"//x",
    "empty inside": b"a//b",
    "slash at the end": b"a/",
    "NUL": b"a\0.txt",
    "tab": b"a\tb",
    "escape": b"a\x1b[31m",
    "C1": "a\x85b".encode(),
    "256 bytes": b"x" * 256,
    "256 bytes of two": "é".encode() * 128,
    "901 bytes": b"/".join([b"x" * 90] * 10),
    "reserved": b".twinport",
    "in the reserved place": b".twinport/staging/00/x",
}


@pytest.mark.parametrize("verb", ["UPLOAD", "DOWNLOAD"])
@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_bad_name_is_refused(server: RunningPlane, oracle: ClassicOracle, verb: str, name: bytes) -> None:
    line = verb.encode() + b" " + name + (b" 3\n" if verb == "UPLOAD" else b"\n")
    with server.client() as client:
        assert_refused(ask_raw(client, line), "InvalidName")
        assert client.list_names()  # the session lives
    oracle.check()


@pytest.mark.parametrize("name", [b"\xc0\xae\xc0\xae\xc0\xaf", b"\xed\xa0\x80", b"\xff", b"a\xc3"])
def test_a_name_that_is_not_utf8_is_refused(server: RunningPlane, oracle: ClassicOracle, name: bytes) -> None:
    with server.client() as client:
        assert_refused(ask_raw(client, b"UPLOAD " + name + b" 3\n"), "InvalidEncoding")
        assert_refused(ask_raw(client, b"DOWNLOAD " + name + b"\n"), "InvalidEncoding")
        assert client.list_names()
    oracle.check()


ODD_NAMES = [
    "%2e%2e%2fx",
    "%252e",
    "．．／x",
    "a∕b",
    "~",
    "~root/x",
    "-rf",
    "my  file.txt",
    "QUIT",
    "DONE",
    "OK 5002",
    "3 3",
    "...",
    "$(reboot)",
    "a\\b",
    "x" * 255,
    "é" * 127,
    "deep/.twinport/x",
    "e\u0301",
    "\u00e9",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_is_taken_literally(server: RunningPlane, oracle: ClassicOracle, root: Path, name: str) -> None:
    content = name.encode()
    with server.client() as client:
        client.upload(name, content)
        assert name in client.list_names()
        assert client.download(name) == content
    assert (root / name).read_bytes() == content
    oracle.check([content])


@pytest.mark.parametrize("planted", ["file", "directory", "nowhere"])
def test_a_planted_symlink_is_not_followed(
    server: RunningPlane, oracle: ClassicOracle, root: Path, outside: Path, planted: str
) -> None:
    target = {"file": outside / "passwd", "directory": outside, "nowhere": outside / "new"}[planted]
    (root / "link").symlink_to(target)
    name = "link/passwd" if planted == "directory" else "link"
    with server.client() as client:
        with pytest.raises(ServerError):
            client.download(name)
        with pytest.raises(ServerError):
            client.upload(name, b"evil")
        assert not [listed for listed in client.list_names() if listed.startswith("link")]
    oracle.check()


@pytest.mark.parametrize("kind", ["pipe", "directory", "socket"])
def test_what_is_no_file_is_refused_at_once(server: RunningPlane, oracle: ClassicOracle, root: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(root / "odd")
    elif kind == "directory":
        (root / "odd").mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(root / "odd"))
    with server.client() as client:
        with pytest.raises(ServerError):
            client.download("odd")
        with pytest.raises(ServerError):
            client.upload("odd", b"evil")
        assert "odd" not in client.list_names()
    oracle.check()


def test_a_file_cannot_be_a_directory_too(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.upload("a", b"file")
        with pytest.raises(ServerError, match="NameConflict"):
            client.upload("a/b", b"below")
        client.upload("c/d", b"below")
        with pytest.raises(ServerError):
            client.upload("c", b"file")
    oracle.check([b"file", b"below"])


def test_no_name_can_forge_a_line_of_the_log(server: RunningPlane, oracle: ClassicOracle) -> None:
    name = "a\u2028[UPLOAD] Complete: forged saved (1 bytes)\u202e"
    with server.client() as client:
        client.upload(name, b"x")
        with pytest.raises(ServerError, match="FileNotFound"):
            client.download("\u2029gone")
    assert "\u2028" not in server.log.getvalue()
    assert "\u202e" not in server.log.getvalue()
    oracle.check([b"x"])


# sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    ["-1", "+5", "5.0", "1e3", "0x10", "1_0", "٣", "１２", "", "007", str(2**63), str(2**64), "1" * 20, "9" * 4000],
)
def test_a_size_has_one_spelling(server: RunningPlane, oracle: ClassicOracle, size: str) -> None:
    with server.client() as client:
        assert_refused(ask_raw(client, f"UPLOAD a {size}\n".encode()), "InvalidSize")
        assert client.list_names()
    oracle.check()


def test_a_doubled_space_before_the_size_is_refused(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        assert_refused(ask_raw(client, b"UPLOAD a  5\n"), "InvalidName")
    oracle.check()


@pytest.mark.parametrize("size", [5001, 2**31, 2**32, 2**53 + 1, 2**63 - 1])
def test_more_than_the_bound_is_refused_before_ok(root: Path, outside: Path, size: int) -> None:
    with running_plane(LocalStorage(root), max_file_bytes=5000) as server:
        oracle = ClassicOracle(server, root, outside)
        before = resident_bytes()
        with server.client() as client:
            client.upload("a", bytes(5000))
            assert_refused(ask_raw(client, f"UPLOAD b {size}\n".encode()), "TooLarge")
        assert resident_bytes() - before < 8 * 1024 * 1024
        oracle.check([bytes(5000)])


@pytest.mark.parametrize("size", [3, 300_000, 9_000_000])
def test_fewer_bytes_than_announced(server: RunningPlane, oracle: ClassicOracle, size: int) -> None:
    with server.client() as client:
        client.upload("a", b"old version")
        with client.begin_upload("a", size) as data:
            data.sendall(bytes(size - 1))
        with pytest.raises(ServerError, match="ShortUpload"):
            client.reply()
        assert client.download("a") == b"old version"
    oracle.check([b"old version"])


@pytest.mark.parametrize("size", [3, 300_000])
@in_a_hurry
def test_fewer_bytes_and_then_silence(server: RunningPlane, oracle: ClassicOracle, size: int) -> None:
    with server.client() as client:
        with client.begin_upload("a", size) as data:
            data.sendall(bytes(size - 1))
            with pytest.raises(ServerError, match="Timeout"):
                client.reply()
        assert client.list_names() == ["probe of the oracle"]
    oracle.check()


@pytest.mark.parametrize("size", [3, 300_000, 9_000_000])
@pytest.mark.parametrize("extra", [1, 1024 * 1024])
def test_more_bytes_than_announced(server: RunningPlane, oracle: ClassicOracle, size: int, extra: int) -> None:
    with server.client() as client:
        with client.begin_upload("a", size) as data:
            try:
                data.sendall(bytes(size + extra))
            except ConnectionError:
                assert extra > 1  # the server does not read what was not announced
            with pytest.raises(ServerError, match="SizeMismatch"):
                client.reply()
        assert "a" not in client.list_names()
    oracle.check()


def test_a_reset_in_mid_upload(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        data = client.begin_upload("a", 1_000_000)
        data.sendall(bytes(500_000))
        data.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        data.close()
        with pytest.raises(ServerError, match="ShortUpload"):
            client.reply()
        client.upload("a", b"again")
    oracle.check([b"again"])


def test_more_than_the_room_is_refused_before_ok() -> None:
    room, size = 5_000_000, 1_000_000
    with running_plane(MemoryStorage(capacity_bytes=room), PATIENT) as server:
        clients = [server.client() for _ in range(10)]
        opened: list[tuple[ReferenceClient, socket.socket]] = []
        refused = 0
        for client in clients:
            try:
                opened.append((client, client.begin_upload("f", size)))
            except ServerError as error:
                refused += error.code == "DiskFull"
        assert len(opened) == room // size
        assert refused == len(clients) - len(opened)
        for client, data in opened:
            data.close()
            with pytest.raises(ServerError, match="ShortUpload"):
                client.reply()
        clients[0].upload("f", bytes(size))  # what was reserved is free again
        for client in clients:
            client.control.close()


# lines ---------------------------------------------------------------------------------------------------------------


def test_an_endless_line_costs_no_memory(server: RunningPlane, oracle: ClassicOracle) -> None:
    block = b"x" * 65536
    with server.client() as client:
        before = resident_bytes()
        try:
            for _ in range(50 * 1024 * 1024 // len(block)):
                client.control.sendall(block)
        except ConnectionError:
            pass  # the server has had enough; it may also have dropped all of it in time
        assert resident_bytes() - before < 4 * 1024 * 1024
    oracle.check()


def test_a_line_too_long_is_told_and_closed(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        assert_refused(ask_raw(client, b"UPLOAD " + b"x" * 4096), "LineTooLong")
        assert client.control.recv(REPLY_SIZE) == b""
    with server.client() as client:
        assert_refused(ask_raw(client, b"x" * 4096 + b"\n"), "BadRequest")
    oracle.check()


@in_a_hurry
def test_a_line_that_drips_runs_out_of_time(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.control.settimeout(0.05)
        reply = b""
        for byte in b"LIST" * 100:
            try:
                client.control.sendall(bytes((byte,)))
                reply = client.control.recv(REPLY_SIZE)
                break
            except TimeoutError:
                continue
        assert_refused(reply, "Timeout")
        client.control.settimeout(30)
        assert client.control.recv(REPLY_SIZE) == b""
    oracle.check()


def test_a_silent_session_is_closed_at_last(root: Path) -> None:
    with running_plane(LocalStorage(root), limits_with(idle_seconds=0.2)) as server, server.client() as client:
        assert_refused(client.control.recv(REPLY_SIZE), "Timeout")
        assert client.control.recv(REPLY_SIZE) == b""


def test_a_transfer_keeps_its_silent_session_alive(root: Path) -> None:
    with (
        running_plane(LocalStorage(root), limits_with(idle_seconds=1.0)) as server,
        server.client() as client,
        client.begin_upload("a", 15) as data,
    ):
        data.settimeout(0.15)
        for _ in range(14):
            data.sendall(b"x")
            with pytest.raises(TimeoutError):
                data.recv(1)
        data.sendall(b"x")
        assert client.reply() == "DONE"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"\0\n", "BadRequest"),
        (b"\xff" * 1000 + b"\n", "InvalidEncoding"),
        (b"list\n", "BadRequest"),
        (b"L\xc4\xb1ST\n", "BadRequest"),
        (b"HELP\n", "BadRequest"),
        (b"LIST all\n", "BadRequest"),
        (b"UPLOAD\n", "BadRequest"),
        (b"UPLOAD a\n", "BadRequest"),
        (b"DOWNLOAD\n", "BadRequest"),
        (b"LI\rST\n", "BadRequest"),
        (b"LIST\r\r\n", "BadRequest"),
        (b"READY\n", "BadState"),
        (b"STARTTLS\n", "BadRequest"),
        (b"\n\nHELP\n", "BadRequest"),
    ],
)
def test_a_bad_line_is_answered_and_the_session_goes_on(
    server: RunningPlane, oracle: ClassicOracle, line: bytes, code: str
) -> None:
    with server.client() as client:
        assert_refused(ask_raw(client, line), code)
        assert ask_raw(client, b"\n\r\n\nLIST\r\n").startswith(b"OK 1\n")
    oracle.check()


@pytest.mark.parametrize("flood", [b"HELP\n" * 11, b"\n" * 11])
def test_a_client_that_only_talks_nonsense_is_closed(server: RunningPlane, oracle: ClassicOracle, flood: bytes) -> None:
    with server.client() as client:
        client.control.sendall(flood)
        replies = b""
        while chunk := client.control.recv(REPLY_SIZE):
            replies += chunk
        for reply in replies.splitlines(keepends=True):
            assert_refused(reply, "BadRequest")
    oracle.check()


def test_pipelined_commands_are_answered_in_order(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.control.sendall(b"LIST\nDOWNLOAD missing\nLIST\nHELP\nQUIT\nLIST\n")
        client.control.settimeout(30)
        replies = b""
        while chunk := client.control.recv(REPLY_SIZE):
            replies += chunk
    words = [line.split(b" ")[:2] for line in replies.splitlines() if not line.startswith(b"probe")]
    assert words == [[b"OK", b"1"], [b"ERROR", b"FileNotFound"], [b"OK", b"1"], [b"ERROR", b"BadRequest"]]
    oracle.check()


def test_thousands_of_pipelined_lists_cost_no_memory(server: RunningPlane, oracle: ClassicOracle) -> None:
    count = 3000
    with server.client() as client:
        before = resident_bytes()
        sender = threading.Thread(target=client.control.sendall, args=(b"LIST\n" * count,))
        sender.start()
        replies = b""
        while replies.count(b"OK 1\n") < count:
            replies += client.control.recv(65536)
        sender.join()
        assert replies == b"OK 1\nprobe of the oracle\n" * count
        assert resident_bytes() - before < 8 * 1024 * 1024
    oracle.check()


@pytest.mark.parametrize("limits", [limits_with(unread_seconds=1.0)])
def test_a_client_that_never_reads_its_replies_is_dropped(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        for number in range(100):
            client.upload(f"a rather long name to fill the listing with, number {number}", b"x")
        before = resident_bytes()
        with pytest.raises(ConnectionError):
            send_for_ever(client.control, b"LIST\n" * 1000)
        assert resident_bytes() - before < 8 * 1024 * 1024
    oracle.check([b"x"])


def test_a_half_closed_session_is_answered_to_the_end(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.control.sendall(b"LIST\nDOWNLOAD missing\nLI")
        client.control.shutdown(socket.SHUT_WR)
        replies = b""
        while chunk := client.control.recv(REPLY_SIZE):
            replies += chunk
        assert replies.startswith(b"OK 1\nprobe of the oracle\nERROR FileNotFound ")
        assert replies.count(b"\n") == 3
    oracle.check()


def test_a_half_closed_session_may_still_end_its_transfer(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client, client.begin_upload("a", 3) as data:
        wait_until(lambda: server.plane.transfers == 1, "the transfer")
        client.control.shutdown(socket.SHUT_WR)
        data.sendall(b"abc")
        assert client.reply() == "DONE"
        assert client.control.recv(REPLY_SIZE) == b""
    oracle.check([b"abc"])


def test_a_half_closed_session_begins_no_transfer(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client:
        client.control.sendall(b"UPLOAD a 3\nLIST\n")
        client.control.shutdown(socket.SHUT_WR)
        replies = b""
        while chunk := client.control.recv(REPLY_SIZE):
            replies += chunk
    lines = [line for line in replies.splitlines() if not line.startswith(b"OK %d" % server.data_port)]
    # A listing that had begun before the end of the connection was seen goes out whole; the refusal follows it.
    listing = [b"OK 1", b"probe of the oracle"]
    refusals = [line for line in lines if line not in listing]
    assert lines in (refusals + listing, listing + refusals)
    assert [line.startswith(b"ERROR BadState the control connection was closed") for line in refusals] == [True]
    oracle.check()


def test_quit_in_mid_transfer_frees_everything(server: RunningPlane, oracle: ClassicOracle) -> None:
    with server.client() as client, client.begin_upload("a", 1_000_000) as data:
        data.sendall(bytes(500_000))
        client.quit()
        wait_until(lambda: server.plane.transfers == 0, "the end of the transfer")
        with pytest.raises(ConnectionError):
            send_for_ever(data, bytes(65536))
    oracle.check()

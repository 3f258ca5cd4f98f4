"""TLS on a running server: who gets in, who is told why not, and that nobody stands in anybody's way."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import ssl
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import CHANNEL_MAGIC, AckStatus, FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import Layout
from twinport_protocol.sniff import ALPN_CHANNEL, ALPN_CONTROL
from twinport_protocol.tickets import decode_ticket, encode_ticket
from twinport_service.certificates import CURRENT_FILE, make_next, switch_over

from tests.service.conftest import MakeFoundation, StartServer, in_a_hurry
from tests.service.daemon import run_daemon, running_daemon
from tests.service.raw_client import (
    Address,
    ClosedError,
    RawChannel,
    RawControl,
    await_true,
    fetch_file,
    many,
    parts_of,
    root_of_data,
    run_all,
    send_file,
)
from tests.service.running_server import RunningServer
from tests.service.tls_parts import client_context, s_client, tls_channel, tls_control, with_tls

MakeId = Callable[[], bytes]
MIB = 1024 * 1024
pytestmark = pytest.mark.parametrize("storage_kind", ["local"], indirect=True)


@pytest.fixture
def server(
    start_server: StartServer, make_foundation: MakeFoundation, tmp_path: Path, deadline_seconds: float
) -> RunningServer:
    """One server with TLS and plaintext."""
    return start_server(
        with_tls(make_foundation(), tmp_path), greeting_seconds=deadline_seconds, attach_seconds=deadline_seconds
    )


@pytest.fixture
def strict(start_server: StartServer, make_foundation: MakeFoundation, tmp_path: Path) -> RunningServer:
    """One server with TLS alone."""
    return start_server(with_tls(make_foundation(), tmp_path), tls="on")


@pytest.fixture
def control(server: RunningServer) -> Iterator[RawControl]:
    """A greeted control connection under TLS."""
    with tls_control(server.control_address) as client:
        yield client


def certificate_of(address: Address, alpn: str = ALPN_CONTROL) -> bytes:
    """The SHA-256 of the certificate that a server shows."""
    with socket.create_connection(address) as plain, client_context(alpn).wrap_socket(plain) as client:
        found = client.getpeercert(binary_form=True)
        assert found is not None
        return sha256(found).digest()


# transfers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["control", "data"])
def test_a_large_file_goes_up_and_down_over_several_channels(
    server: RunningServer, control: RawControl, upload_id: MakeId, port: str
) -> None:
    address = server.control_address if port == "control" else server.data_address
    data = secrets.token_bytes(50 * MIB + 12_345)
    upload = control.upload("large", len(data), upload_id())
    parts = list(enumerate(parts_of(data)))

    def send(mine: list[tuple[int, memoryview]]) -> None:
        with tls_channel(address) as channel:
            channel.attach(upload.ticket)
            for segment, part in mine:
                assert channel.put_segment(1, segment, part) is AckStatus.SEALED

    run_all([lambda mine=parts[lane::3]: send(mine) for lane in range(3)])  # type: ignore[misc]
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE

    version = control.download("large")
    layout = Layout.of(version.size)

    def fetch(segments: range) -> list[bytes]:
        with tls_channel(address) as channel:
            channel.attach(version.ticket)
            return [channel.get_all(1, segment, 0, layout.length(segment)) for segment in segments]

    half = layout.count // 2
    first, second = run_all([lambda: fetch(range(half)), lambda: fetch(range(half, layout.count))])
    assert b"".join(first + second) == data
    server.assert_no_traceback()


def test_small_files_share_a_channel_and_a_reader_that_is_slow_gets_every_byte(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    with tls_channel(server.data_address) as channel:
        for number in range(50):
            assert send_file(control, channel, f"small/{number}", bytes(number), upload_id()) is AckStatus.COMMITTED
        large = secrets.token_bytes(8 * MIB)
        assert send_file(control, channel, "slow", large, upload_id()) is AckStatus.COMMITTED
        version = control.download("slow")
        channel.attach(version.ticket, 9)
        for at in range(0, len(large), MIB):  # all asked for at once: the server meets a full socket many times
            channel.get(9, 0, at, MIB)
        received = b""
        while len(received) < len(large):
            answer = channel.answer()
            assert answer.type is FrameType.SEG
            assert answer.code is None
            received += answer.body
        assert received == large
        for number in range(50):
            assert fetch_file(control, channel, f"small/{number}") == bytes(number)


def test_answers_and_payloads_that_wait_for_a_slow_reader_come_whole_and_in_order(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    large = secrets.token_bytes(8 * MIB)
    with tls_channel(server.data_address) as channel:
        assert send_file(control, channel, "slow", large, upload_id()) is AckStatus.COMMITTED
        channel.attach(control.download("slow").ticket, 1)
        channel.attach(control.upload("x", 100, upload_id()).ticket, 2)
        for at in range(0, len(large), MIB):
            channel.get(1, 0, at, MIB)
            for _ in range(60):  # their answers are put between the payloads while the socket is full
                channel.put(2, 0, 0, b"")
        received = bytearray()
        acknowledged = 0
        while len(received) < len(large) or acknowledged < 8 * 60:
            answer = channel.answer()
            if answer.type is FrameType.ACK:
                acknowledged += 1
            else:
                assert (answer.type, answer.offset) == (FrameType.SEG, len(received))
                received += answer.body
        assert received == large


# who may do what -----------------------------------------------------------------------------------------------------


def test_a_ticket_given_over_tls_is_of_no_use_without(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    upload = control.upload("x", 3, upload_id())
    with RawChannel(server.data_address) as channel:
        channel.attach(upload.ticket)
        failed = channel.answer()
        assert (failed.type, failed.code) == (FrameType.FAIL, ErrorCode.TLS_REQUIRED)
        assert channel.put_segment(1, 0, b"abc", commit=True) is ErrorCode.TLS_REQUIRED
    with RawControl(server.control_address) as plain:
        renewed = plain.ask(Verb.RENEW, encode_ticket(upload.ticket))
        assert renewed.kind is ReplyKind.OK
        with RawChannel(server.data_address) as channel:  # renewing washes nothing off
            channel.attach(decode_ticket(renewed.options["ticket"]))
            assert channel.answer().code is ErrorCode.TLS_REQUIRED
        open_to_all = plain.upload("y", 3, upload_id())
    with tls_channel(server.data_address) as channel:
        channel.attach(upload.ticket)
        assert channel.put_segment(1, 0, b"abc", commit=True) is AckStatus.COMMITTED
        channel.attach(open_to_all.ticket, 2)
        assert channel.put_segment(2, 0, b"abc", commit=True) is AckStatus.COMMITTED


def test_an_open_server_stays_open_when_there_are_accounts(root: Path, storage_kind: str) -> None:
    added = run_daemon("user", "add", "anna", "--root", str(root), "--no-password")
    assert added.returncode == 0, added.stderr
    with running_daemon(root) as daemon, RawControl(daemon.control_address) as client:
        assert client.greeting["login"] == "required"
        assert client.refused(Verb.STAT, "x") is ErrorCode.LOGIN_REQUIRED
    with running_daemon(root, "--open") as daemon, RawControl(daemon.control_address) as client:
        assert client.greeting["login"] == "offered"
        assert client.refused(Verb.STAT, "x") is ErrorCode.FILE_NOT_FOUND


def test_plaintext_where_only_tls_is_served(strict: RunningServer) -> None:
    for address in (strict.control_address, strict.data_address):
        for text in (b"HELLO 2 agent=lost\n", b"UPLOAD x 3\n", b"GET / HTTP/1.1\r\n\r\n"):
            with RawControl(address, greet=False) as client:
                client.send(text)
                assert client.line().startswith(b"ERROR TlsRequired ")
                assert client.is_closed()
        with RawChannel(address) as channel:
            assert channel.is_closed()
    with tls_control(strict.control_address) as client:
        assert client.ask(Verb.PING).kind is ReplyKind.OK
    strict.assert_no_traceback()


@pytest.mark.parametrize(
    ("options", "told", "logged"),
    [
        (["-tls1_2", "-alpn", ALPN_CONTROL], "alert protocol version", "TLS older than 1.3"),
        (["-no_tls1_3", "-alpn", ALPN_CHANNEL], "alert protocol version", "TLS older than 1.3"),
        (["-alpn", "h2,http/1.1"], "alert no application protocol", "TLS without a known ALPN"),
        ([], "alert no application protocol", "TLS without a known ALPN"),
    ],
)
def test_a_foreign_client_is_told_by_an_alert(
    server: RunningServer, options: list[str], told: str, logged: str
) -> None:
    for address in (server.control_address, server.data_address):
        found = s_client(address, *options)
        assert told in found.stdout
        assert found.returncode != 0
    assert server.log.getvalue().count(logged) == 2
    server.assert_no_traceback()


def test_control_is_no_matter_of_the_data_port(server: RunningServer) -> None:
    found = s_client(server.data_address, "-alpn", ALPN_CONTROL)
    assert "alert no application protocol" in found.stdout


def test_a_foreign_client_that_trusts_the_certificate_gets_in(server: RunningServer, tmp_path: Path) -> None:
    trust = ["-CAfile", str(tmp_path / CURRENT_FILE), "-verify_return_error"]
    found = s_client(server.control_address, "-alpn", ALPN_CONTROL, "-verify_ip", "127.0.0.1", *trust)
    assert "Verify return code: 0 (ok)" in found.stdout
    assert "ALPN protocol: twinport/2" in found.stdout
    assert re.search(r"TLSv1\.3", found.stdout)
    assert "OK 2 agent=twinportd" in found.stdout
    assert "1 DONE" in found.stdout
    assert "New Session Ticket" not in found.stdout
    assert (
        s_client(server.control_address, "-alpn", ALPN_CONTROL, "-verify_hostname", "x.example", *trust).returncode != 0
    )


def test_what_is_offered_first_counts_when_both_are_offered(server: RunningServer) -> None:
    with RawControl(server.control_address, tls=client_context("other", ALPN_CONTROL, ALPN_CHANNEL)) as client:
        assert client.ask(Verb.PING).kind is ReplyKind.OK
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == ALPN_CONTROL


@pytest.mark.parametrize("alpn", [ALPN_CONTROL, ALPN_CHANNEL])
def test_garbage_after_a_real_hello_is_one_line_in_the_log(server: RunningServer, alpn: str) -> None:
    with RawControl(server.control_address, greet=False) as client:
        client.send(_hello(alpn))
        client.sock.recv(1)
        client.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert client.is_closed()
    server.assert_no_traceback()
    await_true(lambda: server.channel_count == 0)


def _hello(alpn: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        client_context(alpn).wrap_bio(incoming, outgoing).do_handshake()
    return outgoing.read()


def test_damage_within_an_established_connection_ends_it(server: RunningServer, upload_id: MakeId) -> None:
    with tls_control(server.control_address) as control, tls_channel(server.data_address) as channel:
        channel.attach(control.upload("x", 3, upload_id()).ticket)
        await_true(lambda: server.channel_count == 1)
        for client in (control, channel):
            beneath = socket.socket(fileno=os.dup(client.sock.fileno()))
            with beneath:
                beneath.settimeout(30)
                beneath.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with suppress(ssl.SSLError):
                assert client.is_closed()
    await_true(lambda: server.channel_count == server.session_count == 0)
    server.assert_no_traceback()


# endings -------------------------------------------------------------------------------------------------------------


def test_an_end_without_close_notify_is_as_good_as_one_with(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    upload = control.upload("x", 3, upload_id())
    with tls_channel(server.data_address) as channel:
        channel.attach(upload.ticket)
        channel.put(1, 0, 0, b"abc", 0x3, bytes(32))  # its digest is wrong: nothing is stored, whatever comes
        assert channel.acknowledged() is ErrorCode.DIGEST_MISMATCH
        channel.put(1, 0, 0, b"a")
        socket.socket.shutdown(channel.sock, socket.SHUT_WR)
    await_true(lambda: server.channel_count == 0)
    assert control.refused(Verb.DOWNLOAD, "x") is ErrorCode.FILE_NOT_FOUND
    with tls_control(server.control_address) as other:
        number = other.start(Verb.STAT, "x")
        socket.socket.shutdown(other.sock, socket.SHUT_WR)
        assert other.finish(number)[-1].code is ErrorCode.FILE_NOT_FOUND, "what was asked is answered"
        with suppress(ssl.SSLError):
            assert other.is_closed()
    await_true(lambda: server.session_count == 1)
    server.assert_no_traceback()


def test_a_farewell_arrives_complete_and_with_close_notify(
    server: RunningServer, control: RawControl, upload_id: MakeId
) -> None:
    upload = control.upload("x", 3, upload_id())
    with RawChannel(server.data_address, magic=False) as channel:
        context = client_context(ALPN_CHANNEL)
        channel.sock = context.wrap_socket(channel.sock, suppress_ragged_eofs=False)
        channel.send(CHANNEL_MAGIC)
        channel.attach(upload.ticket)
        channel.send(bytes(24) + bytes(200_000))  # no frame of this protocol, and more of it
        assert channel.answer().type is FrameType.FAIL
        with pytest.raises(ClosedError):  # an end without close_notify would be an error here
            channel.answer()


def test_connections_that_are_reset_leave_nothing(server: RunningServer) -> None:
    for alpn in (ALPN_CONTROL, ALPN_CHANNEL):
        for _ in range(50):
            with socket.create_connection(server.control_address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(_hello(alpn))
    await_true(lambda: server.channel_count == server.session_count == 0)
    await_true(lambda: all(stile.inside == stile.waiting == 0 for stile in server.server._tls._turnstiles))  # type: ignore[union-attr]
    server.assert_no_traceback()


def test_stopping_says_goodbye_under_tls_too(server: RunningServer, upload_id: MakeId) -> None:
    with tls_control(server.control_address) as control, tls_channel(server.data_address) as channel:
        channel.attach(control.upload("x", 3, upload_id()).ticket)
        half = RawControl(server.control_address, greet=False)
        with half:
            half.send(_hello(ALPN_CHANNEL))
            half.sock.recv(1)
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < server.settings.greeting_seconds / 2, "nobody waits for a handshake"
            assert channel.answer().type is FrameType.GOODBYE
            assert channel.is_closed()
            assert control.reply().words == ("draining",)
            assert control.is_closed()
    server.assert_no_traceback()


# crowds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpn", [ALPN_CONTROL, ALPN_CHANNEL])
def test_two_hundred_half_handshakes_do_not_stop_a_real_client(
    server: RunningServer, upload_id: MakeId, alpn: str
) -> None:
    hello = _hello(alpn)
    halves = [RawControl(server.control_address, greet=False) for _ in range(200)]
    with many(halves):
        for half in halves:
            half.send(hello)
        began = time.monotonic()
        with tls_control(server.control_address) as control, tls_channel(server.data_address) as channel:
            assert send_file(control, channel, "x", b"abc", upload_id()) is AckStatus.COMMITTED
        assert time.monotonic() - began < server.settings.greeting_seconds / 2, "it did not wait until they timed out"
        assert max(stile.inside for stile in server.server._tls._turnstiles) <= 64  # type: ignore[union-attr]
    server.assert_no_traceback()


def test_a_crowd_that_comes_at_once_is_served_to_the_last(server: RunningServer) -> None:
    for stile in server.server._tls._turnstiles:  # type: ignore[union-attr]
        stile._hold_seconds = 600  # on a busy machine nobody of it is quick; who gives way is tried elsewhere
    with ExitStack() as stack:

        def come() -> None:
            client = RawControl(server.control_address, timeout_seconds=60, tls=client_context(ALPN_CONTROL))
            stack.push(client)
            assert client.ask(Verb.PING).kind is ReplyKind.OK

        run_all([come] * 150)


def crowds(server: RunningServer) -> list[tuple[int, int]]:
    """How many handshakes are under way, and how many wait, on each port."""
    return [(stile.inside, stile.waiting) for stile in server.server._tls._turnstiles]  # type: ignore[union-attr]


@pytest.mark.parametrize("alpn", [ALPN_CONTROL, ALPN_CHANNEL])
def test_who_finds_too_many_handshakes_is_told_by_an_alert(server: RunningServer, alpn: str) -> None:
    for stile in server.server._tls._turnstiles:  # type: ignore[union-attr]
        stile._at_once, stile._waiting, stile._hold_seconds = 1, 1, 600
    halves = [RawControl(server.control_address, greet=False) for _ in range(3)]
    with many(halves):
        for half, there in zip(halves, ((1, 0), (1, 1), (1, 1)), strict=True):
            half.send(_hello(alpn))  # the next once this one is there, for they are taken in any order
            await_true(lambda there=there: there in server.call(lambda: crowds(server)))  # type: ignore[misc]
        waited = halves[1].sock.recv(100)
        assert waited == b"\x15\x03\x03\x00\x02\x02\x50"
        assert halves[1].is_closed()
    await_true(lambda: all(stile.inside == stile.waiting == 0 for stile in server.server._tls._turnstiles))  # type: ignore[union-attr]
    server.assert_no_traceback()


@in_a_hurry
def test_a_handshake_has_a_deadline(server: RunningServer) -> None:
    for alpn in (ALPN_CONTROL, ALPN_CHANNEL):
        with RawControl(server.control_address, greet=False) as half:
            half.send(_hello(alpn))
            assert half.is_closed()
    with tls_channel(server.data_address) as channel:  # nor is a handshake a ticket
        assert channel.is_closed()
    with tls_control(server.control_address, greet=False) as silent:
        assert silent.is_closed()
    server.assert_no_traceback()


def test_where_too_many_sessions_are_it_is_said_under_tls(
    start_server: StartServer, make_foundation: MakeFoundation, tmp_path: Path
) -> None:
    running = start_server(with_tls(make_foundation(), tmp_path), max_sessions=1)
    with tls_control(running.control_address), tls_control(running.control_address, greet=False) as second:
        assert second.line().startswith(b"ERROR Busy ")
        assert second.is_closed()


def test_an_idle_connection_holds_little(server: RunningServer) -> None:
    context = client_context(ALPN_CONTROL)
    with RawControl(server.control_address, tls=context):
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            with many([RawControl(server.control_address, tls=context) for _ in range(50)]):
                after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (after - before) / 50 < 32 * 1024, "both ends together, but for what OpenSSL holds"


# the certificate changes ---------------------------------------------------------------------------------------------


def test_both_ports_show_the_same_certificate_and_the_next_one_is_announced(
    server: RunningServer, tmp_path: Path
) -> None:
    shown = certificate_of(server.control_address)
    assert shown == certificate_of(server.data_address, ALPN_CHANNEL)
    following = make_next(tmp_path, ("localhost",), time.time())
    with tls_control(server.control_address) as before:
        assert "next-certificate" not in before.greeting
        server.call(server.server.reload)
        await_true(lambda: "Next certificate" in server.log.getvalue())
        with tls_control(server.control_address) as client:
            assert client.greeting["next-certificate"] == following.sha256.hex()
        assert certificate_of(server.control_address) == shown
        switch_over(tmp_path)
        server.call(server.server.reload)
        await_true(lambda: certificate_of(server.control_address) == following.sha256)
        assert certificate_of(server.data_address, ALPN_CHANNEL) == following.sha256
        assert before.ask(Verb.PING).kind is ReplyKind.OK
    with tls_control(server.control_address) as client:
        assert "next-certificate" not in client.greeting


def test_a_broken_file_changes_nothing_but_the_log(server: RunningServer, tmp_path: Path) -> None:
    shown = certificate_of(server.control_address)
    (tmp_path / CURRENT_FILE).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    server.call(server.server.reload)
    await_true(lambda: "Kept the certificate in force" in server.log.getvalue())
    assert certificate_of(server.control_address) == shown
    server.assert_no_traceback()


def test_sighup_reloads_and_a_server_keeps_its_certificate_over_a_restart(root: Path, storage_kind: str) -> None:
    with running_daemon(root) as daemon:
        first = certificate_of(daemon.control_address)
        assert first.hex() in daemon.log()
        os.remove(root / ".twinport" / CURRENT_FILE)
        os.kill(daemon.process.pid, signal.SIGHUP)
        await_true(lambda: "Kept the certificate in force" in daemon.log())
        make_next(root / ".twinport", ("localhost",), time.time())
        switch_over(root / ".twinport")
        os.kill(daemon.process.pid, signal.SIGHUP)
        await_true(lambda: f"it was sha256:{first.hex()}" in daemon.log())
        second = certificate_of(daemon.control_address)
        assert second != first
        assert daemon.stop() == 0
    with running_daemon(root) as daemon:
        assert certificate_of(daemon.control_address) == second
        assert daemon.stop() == 0

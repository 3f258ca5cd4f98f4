"""The life of the real command: ready, signals in mid transfer, kills, two on one root, ports that are taken."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import LAST, AckStatus, FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_service.config import Settings
from twinport_service.embedded import OWN_DIRECTORY

from tests.service.conftest import StartServer
from tests.service.daemon import RUN_SECONDS, Daemon, run_daemon, running_daemon
from tests.service.raw_client import (
    ClosedError,
    RawChannel,
    RawControl,
    fetch_file,
    parts_of,
    root_of_data,
    send_file,
)

MakeId = Callable[[], bytes]
SIZE = 3 * MIN_SEGMENT_BYTES
LEISURE = ("--drain-seconds", "600")  # so that what ends sooner ends because it is at a boundary
PATIENCE = [f"--{what}-seconds=600" for what in ("greeting", "attach", "stall", "idle")]


@pytest.fixture
def daemon(root: Path) -> Iterator[Daemon]:
    """A server in a process of its own."""
    with running_daemon(root) as running:
        yield running


def visible(root: Path) -> set[str]:
    """The files that a user of the machine sees beneath the root."""
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if OWN_DIRECTORY not in path.parts and path.is_file()
    }


def test_the_ready_line_names_both_ports_and_both_serve(daemon: Daemon, root: Path, upload_id: MakeId) -> None:
    with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
        assert control.greeting["data-port"] == str(daemon.data_address[1])
        assert send_file(control, channel, "d/x", b"abc", upload_id()) is AckStatus.COMMITTED
        # The control port takes channels too: for clients that do not get through to the other.
        with RawChannel(daemon.control_address) as fallback:
            assert fetch_file(control, fallback, "d/x") == b"abc"
    assert (root / "d" / "x").read_bytes() == b"abc"
    assert daemon.stop() == 0
    assert "[NEW CONNECTION]" in daemon.log()
    assert "[ACTIVE CONNECTIONS] 1" in daemon.log()


def test_a_key_and_its_directory_are_the_owners_alone(daemon: Daemon, root: Path) -> None:
    identity = root / OWN_DIRECTORY / "identity.json"
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    assert stat.S_IMODE(identity.parent.stat().st_mode) & 0o077 == 0
    assert set(json.loads(identity.read_text())) == {"audience", "signing", "keys"}


def test_its_memory_is_not_written_to_a_core_dump(daemon: Daemon) -> None:
    limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_mid_upload_says_goodbye_at_a_frame_boundary_and_loses_nothing(
    root: Path, upload_id: MakeId, number: signal.Signals
) -> None:
    data = os.urandom(SIZE)
    with running_daemon(root, *LEISURE) as daemon:
        with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
            upload = control.upload("x", SIZE, upload_id())
            channel.attach(upload.ticket)
            assert channel.put_segment(1, 0, parts_of(data)[0]) is AckStatus.SEALED
            channel.frame(FrameType.PUT, 1, 1, 0, 1000, 0, data[:500])  # half a frame
            while not isinstance(held := channel_have(daemon, upload.ticket), list) or len(held) < 2:
                continue
            daemon.process.send_signal(number)
            assert control.reply().words == ("draining",)
            channel.send(data[500:1000])
            assert channel.acknowledged() is AckStatus.RECEIVED
            assert channel.answer().type is FrameType.GOODBYE
            assert channel.is_closed()
            channel.close()
            assert control.is_closed()
        assert daemon.process.wait(RUN_SECONDS) == 0
    assert visible(root) == set()
    with (
        running_daemon(root) as daemon,
        RawControl(daemon.control_address) as control,
        RawChannel(daemon.data_address) as channel,
    ):
        # The ticket of before is good, the id is the same: the client goes on as if nothing had happened.
        channel.attach(upload.ticket)
        held = channel.have()
        assert isinstance(held, list)
        assert held == [(0, MIN_SEGMENT_BYTES, digest_of(parts_of(data)[0]))]
        for segment in (1, 2):
            assert channel.put_segment(1, segment, parts_of(data)[segment]) is AckStatus.SEALED
        assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
        assert fetch_file(control, channel, "x") == data


def channel_have(daemon: Daemon, ticket: bytes) -> object:
    """HAVE on a channel of its own."""
    with RawChannel(daemon.data_address) as channel:
        channel.attach(ticket)
        return channel.have()


def test_a_stop_in_mid_download_ends_between_two_frames(root: Path, upload_id: MakeId) -> None:
    data = os.urandom(SIZE)
    with running_daemon(root, *LEISURE) as daemon:
        with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
            send_file(control, channel, "x", data, upload_id())
            with RawChannel(daemon.data_address, receive_buffer=65536) as slow:
                ticket = control.download("x").ticket
                slow.attach(ticket)
                for segment in range(3):
                    slow.get(1, segment, 0, MIN_SEGMENT_BYTES)
                first = slow.answer()
                assert first.body == data[: len(first.body)]
                # Channels are told in the order in which they came: when a later one was, so was the slow one.
                with RawChannel(daemon.data_address) as witness:
                    assert fetch_file(control, witness, "x") == data
                    daemon.process.send_signal(signal.SIGTERM)
                    assert witness.answer().type is FrameType.GOODBYE
                position = len(first.body)
                while (answer := slow.answer()).type is not FrameType.GOODBYE:
                    assert answer.code is None
                    start = answer.segment * MIN_SEGMENT_BYTES + answer.offset
                    assert start == position
                    assert answer.body == data[start : start + len(answer.body)]
                    position += len(answer.body)
                assert position < SIZE, "there was something to interrupt"
        assert daemon.process.wait(RUN_SECONDS) == 0


def test_a_client_that_does_not_go_cannot_hold_up_the_stop(root: Path, upload_id: MakeId) -> None:
    data = os.urandom(SIZE)
    with (
        running_daemon(root, *PATIENCE) as daemon,
        RawControl(daemon.control_address) as control,
        RawControl(daemon.control_address, greet=False),
        RawChannel(daemon.data_address, receive_buffer=4096) as deaf,
        RawChannel(daemon.data_address) as stuck,
        RawChannel(daemon.data_address) as sender,
        RawChannel(daemon.data_address, magic=False),
    ):
        send_file(control, sender, "x", data, upload_id())
        deaf.attach(control.download("x").ticket)
        deaf.get(1, 0, 0, MIN_SEGMENT_BYTES)
        stuck.attach(control.upload("y", SIZE, upload_id()).ticket)
        stuck.frame(FrameType.PUT, 1, 0, 0, 1000, 0, b"half")
        assert daemon.stop() == 0
    assert visible(root) == {"x"}


def test_a_second_signal_ends_at_once(root: Path, upload_id: MakeId) -> None:
    with (
        running_daemon(root, *LEISURE) as daemon,
        RawControl(daemon.control_address) as control,
        RawChannel(daemon.data_address) as stuck,
    ):
        stuck.attach(control.upload("y", SIZE, upload_id()).ticket)
        stuck.put(1, 0, 0, b"whole")
        assert stuck.acknowledged() is AckStatus.RECEIVED
        stuck.frame(FrameType.PUT, 1, 0, 5, 1000, 0, b"half")
        daemon.process.send_signal(signal.SIGTERM)
        assert control.reply().words == ("draining",)
        assert daemon.stop(signal.SIGINT) == 0
    assert visible(root) == set()


def test_a_kill_loses_nothing_that_was_committed_and_shows_nothing_that_was_not(root: Path, upload_id: MakeId) -> None:
    data = os.urandom(SIZE)
    with running_daemon(root) as daemon:
        with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
            send_file(control, channel, "large", data, upload_id())
            assert send_file(control, channel, "small", b"abc", upload_id()) is AckStatus.COMMITTED
            upload = control.upload("late", SIZE, upload_id())
            channel.attach(upload.ticket)
            assert channel.put_segment(1, 1, parts_of(data)[1]) is AckStatus.SEALED
            channel.put(1, 0, 0, data[:1000])
        assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    assert visible(root) == {"large", "small"}
    with (
        running_daemon(root) as daemon,
        RawControl(daemon.control_address) as control,
        RawChannel(daemon.data_address) as channel,
    ):
        assert fetch_file(control, channel, "large") == data
        assert fetch_file(control, channel, "small") == b"abc"
        assert control.names() == ["large", "small"]
        again = control.ask(Verb.UPLOAD, "late", str(SIZE), options={"upload": upload_id().hex()})
        assert again.options["resumable"] == upload.upload_id.hex()
        resumed = control.resume("late", SIZE, upload.upload_id)
        channel.attach(resumed.ticket)
        held = channel.have()
        assert held in ([], [(1, MIN_SEGMENT_BYTES, digest_of(parts_of(data)[1]))])
        for segment, part in enumerate(parts_of(data)):
            assert channel.put_segment(1, segment, part) in (AckStatus.SEALED, AckStatus.DUPLICATE)
        assert control.commit(resumed, root_of_data(data)).kind is ReplyKind.DONE
        assert fetch_file(control, channel, "late") == data


def test_two_servers_on_one_root(daemon: Daemon, root: Path) -> None:
    second = run_daemon("serve", "--root", str(root), "--control-port", "0", "--data-port", "0")
    assert second.returncode == 1
    assert second.stdout == ""
    assert str(root) in second.stderr
    assert "Traceback" not in second.stderr
    with RawControl(daemon.control_address) as control:
        assert control.ask(Verb.PING).kind is ReplyKind.OK


@pytest.mark.parametrize("flag", ["--control-port", "--data-port"])
def test_a_port_that_is_taken(root: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = {"--control-port": "0", "--data-port": "0", flag: str(other.getsockname()[1])}
        flags = [word for pair in ports.items() for word in pair]
        failed = run_daemon("serve", "--root", str(root), *flags)
    assert failed.returncode == 1
    assert "Address already in use. Stop the program that has them" in failed.stderr
    assert "--data-port" in failed.stderr
    assert "Traceback" not in failed.stderr
    # It left the root as if it had never been there: the next one takes it.
    with running_daemon(root) as daemon:
        assert daemon.stop() == 0


@pytest.mark.parametrize(("host", "what"), [("192.0.2.1", "Cannot assign"), ("no such host", "leads to none")])
def test_an_address_that_is_not_there(root: Path, host: str, what: str) -> None:
    assert run_daemon("user", "add", "alice", "--no-password", "--root", str(root)).returncode == 0
    ports = ["--control-port", "0", "--data-port", "0"]
    failed = run_daemon("serve", "--root", str(root), "--host", host, *ports)
    assert failed.returncode == 1
    assert what in failed.stderr
    assert "Give --host an address of this machine" in failed.stderr
    assert "Stop the program" not in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.org", ""])  # noqa: S104 (to be refused)
def test_an_address_that_others_can_reach_is_refused_without_an_account(root: Path, host: str) -> None:
    failed = run_daemon("serve", "--root", str(root), "--host", host)
    assert failed.returncode == 2
    assert f"twinportd user add NAME --root {root}" in failed.stderr
    assert "--open" in failed.stderr
    assert not (root / OWN_DIRECTORY).exists()


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6; containers often have none."""
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_a_server_over_ipv6(root: Path) -> None:
    with running_daemon(root, "--host", "::1") as daemon:
        host = daemon.control_address[0]
        assert host == "[::1]"
        with socket.create_connection(("::1", daemon.control_address[1])) as client:
            client.sendall(b"HELLO 2 agent=x\n")
            assert client.recv(1000).startswith(b"OK 2 ")
        assert daemon.stop() == 0


@pytest.mark.parametrize("arguments", [["serve", "--no-such-flag"], ["no-such-command"], ["serve", "--workers", "0"]])
def test_usage_mistakes_exit_with_2(arguments: list[str]) -> None:
    failed = run_daemon(*arguments)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr


def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_bytes(b"")
    failed = run_daemon("serve", "--root", str(taken), "--control-port", "0", "--data-port", "0")
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert str(taken) in failed.stderr


def test_a_damaged_identity_stops_the_start(root: Path) -> None:
    with running_daemon(root) as daemon:
        assert daemon.stop() == 0
    identity = root / OWN_DIRECTORY / "identity.json"
    identity.write_text("{")
    failed = run_daemon("serve", "--root", str(root), "--control-port", "0", "--data-port", "0")
    assert failed.returncode == 1
    assert "identity.json is damaged" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_a_stop_is_harmless_when_repeated_and_turns_away_whoever_waits(start_server: StartServer) -> None:
    running = start_server()
    with RawControl(running.control_address, greet=False) as waiting, RawControl(running.control_address) as control:
        assert control.ask(Verb.PING).kind is ReplyKind.OK
        running.stop()
        assert waiting.line().startswith(b"ERROR ShuttingDown")
        assert control.reply().words == ("draining",)
        with pytest.raises(ClosedError):
            control.reply()
        running.stop()
    with pytest.raises(ConnectionRefusedError):
        RawControl(running.control_address)


def test_a_stop_lets_a_commit_end(start_server: StartServer, upload_id: MakeId) -> None:
    running = start_server()
    data = os.urandom(SIZE)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        upload = control.upload("x", SIZE, upload_id())
        channel.attach(upload.ticket)
        for segment, part in enumerate(parts_of(data)):
            assert channel.put_segment(1, segment, part) is AckStatus.SEALED
        options = {"generation": "1", "root": root_of_data(data).hex()}
        number = control.start(Verb.COMMIT, upload.upload_id.hex(), options=options)
        control.ask(Verb.PING)  # so that the COMMIT was taken
        running.stop()
        final = control.finish(number)[-1]
        assert final.kind is ReplyKind.DONE


def test_the_settings_have_bounds() -> None:
    assert Settings().drain_seconds <= 1.0
    assert Settings().attach_seconds <= 5.0
    assert Settings().host == "127.0.0.1"


def test_a_commit_flag_on_a_stopping_server_is_answered_or_repeatable(root: Path, upload_id: MakeId) -> None:
    with running_daemon(root, *LEISURE) as daemon:
        with RawControl(daemon.control_address) as control, RawChannel(daemon.data_address) as channel:
            sent = {}
            for number in range(200):
                upload = control.upload(f"n{number}", 5, upload_id())
                attachment = channel.attach_next(upload.ticket)
                channel.put(attachment, 0, 0, b"12345", LAST | 2, digest_of(b"12345"))
                sent[attachment] = f"n{number}"
            daemon.process.send_signal(signal.SIGTERM)
            committed = set()
            while (answer := channel.answer()).type is not FrameType.GOODBYE:
                assert answer.code in (None, ErrorCode.SHUTTING_DOWN)
                assert answer.status == AckStatus.COMMITTED
                committed.add(sent[answer.attachment])
        assert daemon.process.wait(RUN_SECONDS) == 0
    assert committed <= visible(root), "what was acknowledged is there"
    assert visible(root) <= set(sent.values())

"""The command as a whole: Twinport and the limits always take part, and every peer that is installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import CASES, SHORT_CASES
from benchmarks.compare import main
from benchmarks.line import LineKind, LineUnavailableError, check_line, open_line
from benchmarks.peers import OURS, PEERS, PeerError
from benchmarks.report import SMOKE

PROJECT = Path(__file__).resolve().parents[2]


def is_installed(name: str) -> bool:
    try:
        PEERS[name].check()
    except PeerError:
        return False
    return True


def lines_are_possible() -> bool:
    try:
        check_line("cubic")
    except LineUnavailableError:
        return False
    return True


@pytest.mark.timeout(400)
def test_the_smoke_run_starts_and_checks_everybody_who_is_there(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_bytes((PROJECT / "docs" / "performance.md").read_bytes())
    kept = tmp_path / "rounds.json"
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.compare", "--short", "--json", kept, "--page", page]
    done = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(kept.read_text())["cases"]
    assert set(found) == set(SHORT_CASES)
    for case in CASES:
        if case.name not in SHORT_CASES:
            continue
        ran = {(run["contender"], run["direction"]) for run in found[case.name]["runs"]}
        there = {name for name in case.contenders if PEERS[name] in OURS or is_installed(name)}
        if case.line is not None and not lines_are_possible():
            there = set()
        wanted = {(name, direction) for name in there for direction in case.directions}
        assert ran == wanted, found[case.name]["notes"]
        left_out = " ".join(found[case.name]["notes"])
        assert all(name in left_out for name in set(case.contenders) - there) or not there
    assert page.read_text().count(SMOKE) == len(SHORT_CASES)
    assert len(list((tmp_path / "performance").glob("*.svg"))) == sum(bool(case["runs"]) for case in found.values())


def test_what_was_measured_before_stays_in_the_file(tmp_path: Path) -> None:
    kept = tmp_path / "rounds.json"
    words = ["--short", "--peers", "limit", "--json", str(kept)]
    assert main([*words, "--cases", "large"]) == 0
    assert main([*words, "--cases", "start"]) == 0
    assert {name: len(case["runs"]) for name, case in json.loads(kept.read_text())["cases"].items()} == {
        "large": 2, "start": 2,
    }  # fmt: skip


def test_a_file_that_is_no_record_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "rounds.json"
    kept.write_text("nothing of ours")
    assert main(["--short", "--cases", "start", "--peers", "limit", "--json", str(kept)]) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert kept.read_text() == "nothing of ours"


def test_a_page_can_be_drawn_again_from_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, page = tmp_path / "new" / "rounds.json", tmp_path / "page.md"
    page.write_text("no markers")
    words = ["--json", str(kept), "--page", str(page)]
    assert main(["--short", "--cases", "start", "--peers", "limit", *words]) == 2
    assert "markers" in capsys.readouterr().err
    assert not kept.exists()
    page.write_bytes((PROJECT / "docs" / "performance.md").read_bytes())
    assert main(["--short", "--cases", "start", "--peers", "limit", *words]) == 0
    written = page.read_text()
    page.write_bytes((PROJECT / "docs" / "performance.md").read_bytes())
    assert main(["--redraw", *words]) == 0
    assert page.read_text() == written
    assert "page/start.svg" in written


def test_a_run_that_is_ended_ends_its_servers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.compare",
        "--short",
        "--cases",
        "large",
        "--peers",
        "limit",
        "twinport",
    ]
    places = ["--tmpfs", str(tmp_path), "--disk", str(tmp_path)]
    with subprocess.Popen([*command, *places], cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as run:
        assert run.stderr is not None
        assert b"large 1/1 limit up" in run.stderr.readline()
        run.send_signal(signal.SIGTERM)
        run.send_signal(signal.SIGTERM)
        run.stderr.read()
    assert run.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    running = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
    assert f"{tmp_path}/" not in running


@pytest.mark.skipif(os.geteuid() == 0, reason="root may make a line; CI runs as root and tests that")
def test_without_root_a_line_says_what_it_needs() -> None:
    with pytest.raises(LineUnavailableError, match="root"), open_line(LineKind(10, 100)):
        pass


@pytest.mark.skipif(not lines_are_possible(), reason="needs root, iproute2, a C compiler and /dev/net/tun")
def test_a_line_is_as_long_and_as_slow_as_asked_and_leaves_nothing_behind() -> None:
    before = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True).stdout
    server = "import socket, time\nl = socket.create_server(('10.90.0.1', 4000))\nprint(flush=True)\n"
    server += "s, _ = l.accept()\nn = 0\nb = time.monotonic()\n"
    congestion = "print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(bytes(1)).decode())\n"
    server += "while d := s.recv(65536): n += len(d)\nprint(n / (time.monotonic() - b))\n" + congestion
    client = (
        "import socket; s = socket.create_connection(('10.90.0.1', 4000)); s.sendall(bytes(1500000))\n" + congestion
    )
    with open_line(LineKind(20, 8, congestion="reno")) as line:
        assert 19.6 <= line.measured_rtt_ms <= 25
        command = [*line.server_prefix, sys.executable, "-I", "-S", "-c", server]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout is not None
            receiver.stdout.readline()
            sender = [*line.client_prefix, sys.executable, "-I", "-S", "-c", client]
            sent = subprocess.run(sender, check=True, capture_output=True, text=True).stdout
            bytes_per_second = float(receiver.stdout.readline())
            assert (sent, receiver.stdout.readline()) == ("reno\n", "reno\n")
    assert 300_000 < bytes_per_second < 1_010_000  # 8 Mbit/s, less what headers and slow start take
    assert subprocess.run(["ip", "netns", "list"], check=True, capture_output=True).stdout == before

"""A real server with a bound on bytes per second: real transfers keep to it, each way, with and without TLS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import twinport

from tests.e2e.processes import Daemon, are_same, make_file

MIB = 1024 * 1024
RATE = 8 * MIB
FILE_BYTES = 16 * MIB
SERVER = [sys.executable, "-c", "from twinport_service.cli import main; main()"]


@pytest.fixture(params=["plain", "tls"])
def client_options(request: pytest.FixtureRequest, shm_path: Path) -> Iterator[tuple[Daemon, dict[str, object]]]:
    """A server that lets 8 MiB a second pass, and how to connect to it."""
    is_tls = request.param == "tls"
    flags = ["--max-bytes-per-second", str(RATE), "--tls", "on" if is_tls else "off", "--no-classic"]
    with Daemon(shm_path / "root", shm_path / "server.log", *flags) as daemon:
        options: dict[str, object] = {}
        if is_tls:
            show = [*SERVER, "cert", "show", "--json", "--root", str(daemon.root)]
            shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            options = {"tls": True, "fingerprint": json.loads(shown)["sha256"]}
        yield daemon, options
        daemon.assert_no_traceback()


@pytest.mark.parametrize("channels", [1, 4])
def test_a_rate_holds_each_way(client_options: tuple[Daemon, dict[str, object]], shm_path: Path, channels: int) -> None:
    daemon, options = client_options
    source = shm_path / "file"
    make_file(source, FILE_BYTES, 1)
    with twinport.connect("127.0.0.1", daemon.control_port, channels=channels, **options) as client:  # type: ignore[arg-type]
        began = time.perf_counter()
        client.put(source)
        up_seconds = time.perf_counter() - began
        began = time.perf_counter()
        client.get("file", shm_path / "back")
        down_seconds = time.perf_counter() - began
    assert are_same(source, shm_path / "back" / "file")
    expected = FILE_BYTES / RATE
    for seconds in (up_seconds, down_seconds):
        assert seconds >= 0.85 * expected, (up_seconds, down_seconds)


def test_a_transfer_that_waits_for_its_rate_is_not_given_up(shm_path: Path) -> None:
    """With a rate so low that a portion is due less often than a silent client would be cut."""
    flags = ["--max-bytes-per-second-per-user", "16384", "--stall-seconds", "0.8", "--no-classic"]
    source = shm_path / "file"
    make_file(source, 64 * 1024, 1)
    with Daemon(shm_path / "root", shm_path / "server.log", *flags) as daemon:
        with twinport.connect("127.0.0.1", daemon.control_port, channels=2) as client:
            began = time.perf_counter()
            client.put(source)
            client.get("file", shm_path / "back")
            seconds = time.perf_counter() - began
        daemon.assert_no_traceback()
        assert "Lost" not in daemon.log.read_text()
    assert are_same(source, shm_path / "back" / "file")
    assert seconds >= 0.8 * 2 * 64 * 1024 / 16384

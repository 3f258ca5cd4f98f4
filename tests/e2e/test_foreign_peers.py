"""Programs that are not ours agree: ``b3sum`` about roots, ``nc`` about the classic dialect."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import Daemon

needs_b3sum = pytest.mark.skipif(shutil.which("b3sum") is None, reason="no b3sum here: apt-get install b3sum")
needs_nc = pytest.mark.skipif(shutil.which("nc") is None, reason="no nc here: apt-get install netcat-openbsd")


def twinport(daemon: Daemon, *words: str) -> str:
    """What a ``twinport`` command prints."""
    command = [sys.executable, "-c", "from twinport.cli import main; main()", "--host", daemon.host, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@needs_b3sum
@pytest.mark.parametrize("size", [0, 1, 5 * 1024 * 1024])
def test_the_root_of_a_one_segment_file_is_what_b3sum_prints(tmp_path: Path, size: int) -> None:
    """Sender, server and b3sum, each of its own bytes."""
    source = tmp_path / "file.bin"
    source.write_bytes(os.urandom(size))
    with Daemon(tmp_path / "root", tmp_path / "log") as daemon:
        twinport(daemon, "-q", "put", str(source))
        root = json.loads(twinport(daemon, "stat", "file.bin", "--json"))["root"]
        for path in (source, tmp_path / "root" / "file.bin"):
            printed = subprocess.run(["b3sum", "--no-names", str(path)], check=True, capture_output=True, text=True)
            assert printed.stdout.strip() == root


@needs_nc
def test_a_file_travels_by_two_nc(tmp_path: Path) -> None:
    """Typed by hand, as in the protocol's document: upload, list, download."""
    text = b"typed into a terminal\n"
    with Daemon(tmp_path / "root", tmp_path / "log") as daemon:
        control = subprocess.Popen(
            ["nc", "127.0.0.1", str(daemon.control_port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert control.stdin is not None
        assert control.stdout is not None

        def say(line: bytes) -> None:
            assert control.stdin is not None
            control.stdin.write(line + b"\n")
            control.stdin.flush()

        def hear() -> bytes:
            assert control.stdout is not None
            return control.stdout.readline().rstrip(b"\n")

        data_port = str(daemon.data_port)
        say(b"UPLOAD two words.txt %d" % len(text))
        assert hear() == b"OK " + data_port.encode()
        subprocess.run(["nc", "-N", "127.0.0.1", data_port], input=text, check=True, timeout=60)
        assert hear() == b"DONE"
        say(b"LIST")
        assert [hear(), hear()] == [b"OK 1", b"two words.txt"]
        say(b"DOWNLOAD two words.txt")
        assert hear() == b"OK %d %s" % (len(text), data_port.encode())
        say(b"READY")
        received = subprocess.run(
            ["nc", "127.0.0.1", data_port], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60
        )
        assert received.stdout == text
        assert hear() == b"DONE"
        say(b"QUIT")
        control.stdin.close()
        assert hear() == b""
        control.wait(60)
        control.stdout.close()

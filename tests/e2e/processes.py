"""Real processes for tests of the whole: a ``twinportd`` that can be killed and started again, ``twinport`` runs."""

from __future__ import annotations

import hashlib
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

START_SECONDS = 60.0
RUN_SECONDS = 600.0
_BLOCK_BYTES = 4 * 1024 * 1024
_TURN_BYTES = 1_234_577
_READY = re.compile(r"ready: control [^ ]*:(\d+) data [^ ]*:(\d+)")


class Daemon:
    """``twinportd serve`` on loopback. The ports of the first start are kept over later ones; stderr goes to a file."""

    def __init__(self, root: Path, log: Path, *options: str) -> None:
        self.root = root
        self.log = log
        self.control_port = 0
        self.data_port = 0
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._reserved: list[socket.socket] = []

    def __enter__(self) -> Daemon:
        self.reserve()
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reserve(self) -> None:
        """Choose the ports now, so that nobody else gets one while the server is down between two starts."""
        self._reserved = [reserve_port() for _ in range(2)]
        self.control_port, self.data_port = (sock.getsockname()[1] for sock in self._reserved)

    def close(self) -> None:
        """End it if it runs, and give the ports back."""
        self.end(signal.SIGTERM)
        for sock in self._reserved:
            sock.close()

    def start(self) -> Daemon:
        """Start, and wait for the ready line."""
        program = [sys.executable, "-c", "from twinport_service.cli import main; main()", "serve"]
        ports = ["--control-port", str(self.control_port), "--data-port", str(self.data_port)]
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [*program, "--root", str(self.root), *ports, *self._options],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline() if readable else ""
        match = _READY.search(line)
        if match is None:
            self.end(signal.SIGKILL)
            raise AssertionError(f"the server said {line!r}: {self.log.read_text()[-2000:]}")
        self.control_port, self.data_port = int(match[1]), int(match[2])
        return self

    def end(self, number: signal.Signals) -> None:
        """Send it a signal and wait until it is gone; harmless when it is."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.wait(START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()

    @property
    def host(self) -> str:
        """What ``--host`` takes."""
        return f"127.0.0.1:{self.control_port}"

    @property
    def peak_rss_mib(self) -> float:
        """The high-water mark of its resident memory."""
        assert self._process is not None
        return peak_rss_mib(self._process.pid)

    def assert_no_traceback(self) -> None:
        """Nothing went wrong that the server did not expect."""
        text = self.log.read_text()
        assert "Traceback" not in text, text[-4000:]


class Run:
    """One ``twinport`` command in a process of its own, with a home directory of its own."""

    def __init__(self, host: str, arguments: Sequence[str], directory: Path) -> None:
        home = directory / "home"
        home.mkdir(parents=True, exist_ok=True)
        program = [sys.executable, "-c", "from twinport.cli import main; main()", "--host", host]
        self._output = directory / "client.out"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, "HOME": str(home)},
            )

    @property
    def output(self) -> str:
        """What it has said so far, on stdout and stderr."""
        return self._output.read_text()

    @property
    def peak_rss_mib(self) -> float:
        """The high-water mark of its resident memory, while it runs."""
        return peak_rss_mib(self.process.pid)

    def wait(self, seconds: float = RUN_SECONDS) -> int:
        """Its exit code. A traceback is a failure whatever the code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the client did not end in {seconds} s: {self.output}") from None
        assert "Traceback" not in self.output, self.output
        return code

    def succeed(self) -> str:
        """Wait for exit code 0; the output."""
        code = self.wait()
        assert code == 0, f"exit code {code}: {self.output}"
        return self.output

    def kill(self) -> None:
        """SIGKILL, and wait; harmless when it has ended."""
        self.process.kill()
        self.process.wait()


def reserve_port() -> socket.socket:
    """A free port of loopback, the system's choice. While the socket is open only a server that asks for this very
    port gets it: it is bound with ``SO_REUSEADDR``, as servers are, and does not listen."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


def peak_rss_mib(pid: int) -> float:
    """VmHWM of a process in MiB, 0 when it is gone."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(match[1]) / 1024 if match else 0.0


def make_file(path: Path, size_bytes: int, seed: int) -> None:
    """A file of pseudo-random bytes that follow from the seed. Quick: one random block, turned otherwise each time."""
    block = random.Random(seed).randbytes(_BLOCK_BYTES)
    with path.open("wb") as file:
        for number in range(-(-size_bytes // _BLOCK_BYTES)):
            turn = number * _TURN_BYTES % _BLOCK_BYTES
            turned = memoryview(block[turn:] + block[:turn])
            file.write(turned[: size_bytes - number * _BLOCK_BYTES])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file: not the digest that the project itself uses, so that the two cannot share a mistake."""
    digest = hashlib.sha256()
    buffer = bytearray(_BLOCK_BYTES)
    with path.open("rb") as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def are_same(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes, compared byte for byte."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_BLOCK_BYTES):
            if block != second.read(_BLOCK_BYTES):
                return False
    return True

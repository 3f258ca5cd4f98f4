"""The real command ``twinportd serve`` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

READY = re.compile(r"twinportd ready: control (\S+):(\d+) data (\S+):(\d+)\n")
RUN_SECONDS = 60.0
_QUIET = {name: value for name, value in os.environ.items() if not name.startswith("TWINPORT")}
_COMMAND = [sys.executable, "-c", "from twinport_service.cli import main; main()"]


@dataclass
class Daemon:
    """A server that is ready."""

    process: subprocess.Popen[str]
    control_address: tuple[str, int]
    data_address: tuple[str, int]
    log_file: IO[bytes]

    def log(self) -> str:
        """What it wrote so far."""
        return _contents(self.log_file)

    def stop(self, *signals: signal.Signals) -> int:
        """Send signals (SIGTERM if none is named) and wait; the exit code."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        return self.process.wait(RUN_SECONDS)


def _contents(file: IO[bytes]) -> str:
    """All of a file that another process appends to; the position, which both share, is left alone."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def command(*arguments: str) -> list[str]:
    """The command line of ``twinportd`` with these arguments."""
    return [*_COMMAND, *arguments]


def run_daemon(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that is expected to end by itself."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
        env={**_QUIET, **(environment or {})},
    )


@contextmanager
def running_daemon(root: Path, *flags: str, environment: dict[str, str] | None = None) -> Iterator[Daemon]:
    """A server on ``root`` with free ports and no classic dialect; killed at the end if it still runs."""
    line = command("serve", "--root", str(root), "--control-port", "0", "--data-port", "0", "--no-classic", *flags)
    with tempfile.TemporaryFile("ab+") as log_file:
        with subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=log_file, text=True, env={**_QUIET, **(environment or {})}
        ) as process:
            try:
                assert process.stdout is not None
                ready = READY.fullmatch(process.stdout.readline())
                assert ready, _contents(log_file)
                control, data = (ready[1], int(ready[2])), (ready[3], int(ready[4]))
                yield Daemon(process, control, data, log_file)
            finally:
                process.kill()
        assert "Traceback" not in (log := _contents(log_file)), log

"""A ``twinportd`` of a benchmark's own, with flags of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

_READY = re.compile(r"ready: control ([^ ]+):(\d+) data ([^ ]+):(\d+)")


@dataclass(frozen=True)
class Daemon:
    """A server that is ready; its log is in ``log``."""

    pid: int
    control_address: tuple[str, int]
    data_address: tuple[str, int]
    log: Path


def module(name: str) -> list[str]:
    """The command line of an entry point of this project."""
    return [sys.executable, "-c", f"from {name} import main; main()"]


def start_daemon(stack: ExitStack, root: Path, *flags: str) -> Daemon:
    """``twinportd serve`` on free ports of loopback, without the classic dialect; stopped with the stack."""
    log = root.with_name(root.name + ".log")
    ports = ["--control-port", "0", "--data-port", "0"]
    command = [*module("twinport_service.cli"), "serve", "--root", str(root), *ports, "--no-classic", *flags]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def stop() -> None:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    stack.callback(stop)
    assert process.stdout is not None
    ready = _READY.search(process.stdout.readline())
    if ready is None:
        raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
    return Daemon(process.pid, (ready[1], int(ready[2])), (ready[3], int(ready[4])), log)

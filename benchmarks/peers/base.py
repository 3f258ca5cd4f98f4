"""What every peer is: a server that we start on a place of its own, and the commands of its client."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks.accounting import Group, make_group
from benchmarks.measure import Job

START_SECONDS = 20.0
STOP_SECONDS = 10.0
FOLDER = "up"
"""The folder on every server that uploads go to."""


class PeerError(Exception):
    """A peer cannot take part; says why in one line."""


@dataclass(frozen=True)
class Site:
    """Where a peer runs: a directory of its own, an address, and what puts a command at either end of a line."""

    directory: Path
    address: str = "127.0.0.1"
    server_prefix: tuple[str, ...] = ()
    client_prefix: tuple[str, ...] = ()
    flush: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    def client_environment(self) -> dict[str, str]:
        """The environment of clients: none of the caller's settings, keys or agents. Python keeps its compiled modules,
        as where Twinport is installed: a caller who forbids that would time the compiler."""
        foreign = ("TWINPORT_", "SSH_", "RSYNC", "PYTHON")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**own, "HOME": str(self.directory), **self.environment}


class Peer(ABC):
    """One contender. ``programs`` must be installed; ``packages`` are Debian's that bring them."""

    name: ClassVar[str]
    tls: ClassVar[bool] = False
    programs: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, site: Site) -> None:
        self.site = site
        self.group: Group = make_group()
        self.stored = site.directory / "files" / FOLDER

    @classmethod
    def check(cls) -> None:
        """Whether it is installed. Raises :class:`PeerError`."""
        for program in cls.programs:
            find_program(program)

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """What takes part, with its versions."""

    @abstractmethod
    def start(self, stack: ExitStack) -> None:
        """Start the server; it is stopped with the stack. Raises :class:`PeerError`."""

    @abstractmethod
    def upload(self, source: Path) -> Job:
        """Put a file or the files of a directory to ``stored``, beneath the name of the source."""

    @abstractmethod
    def download(self, name: str, target: Path, tree: bool) -> Job:
        """Fetch what ``upload`` stored to ``target``, which does not exist yet."""

    def uploads(self, sources: Sequence[Path]) -> Job:
        """Put several files, each by a client of its own, all at once."""
        return Job(tuple(self.upload(source).commands[0] for source in sources))

    def downloads(self, names: Sequence[str], target: Path) -> Job:
        """Fetch several files into the directory ``target``, each by a client of its own."""
        return Job(tuple(self.download(name, target / name, False).commands[0] for name in names))

    def prepare(self) -> None:
        """Make the places for uploads, empty."""
        shutil.rmtree(self.stored, ignore_errors=True)
        self.stored.mkdir(parents=True)

    def stored_path(self, name: str) -> Path:
        """Where the server has put what ``upload`` sent."""
        return self.stored / name

    def job(self, *words: str | Path) -> Job:
        """One command at the client's end."""
        return Job(((*self.site.client_prefix, *(str(word) for word in words)),))

    def serve(self, stack: ExitStack, *words: str | Path, port: int = 0) -> subprocess.Popen[str]:
        """Start a server process in the peer's group; wait until it listens on ``port`` if one is given."""
        command = self.group.wrap([*self.site.server_prefix, *(str(word) for word in words)])
        log = stack.enter_context((self.site.directory / "server.log").open("ab"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=self.site.client_environment(),
        )
        self.group.adopt(process.pid)
        stack.callback(self._stop, process)
        if port:
            self._await_port(process, port)
        return process

    def _await_port(self, process: subprocess.Popen[str], port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerError(f"the server did not start: {self.log_end()}")
            time.sleep(0.02)

    def _listens(self, port: int) -> bool:
        """Whether a socket of the server's network listens there; it is not connected to."""
        pids = self.group.pids()
        wanted = f":{port:04X}"
        for pid in pids:
            try:
                lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
            except OSError:
                continue
            return any(words[1].endswith(wanted) and words[3] == "0A" for words in map(str.split, lines))
        return False

    def log_end(self) -> str:
        """The last line of what the server said."""
        lines = (self.site.directory / "server.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _stop(self, process: subprocess.Popen[str]) -> None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def find_program(name: str) -> str:
    """Where a program is, the directories of administrators included. Raises :class:`PeerError`."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise PeerError(f"{name} is not installed (--install does that on Debian)")
    return path


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def first_line(*command: str) -> str:
    """The first line that a program prints about its version, on either stream."""
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return (done.stdout.strip().splitlines() or ["?"])[0]

"""Twinport itself, run as a user runs it: whole processes, verification and durability on."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from twinport_protocol.version import VERSION

from benchmarks.daemon import module
from benchmarks.measure import Job

from .base import FOLDER, START_SECONDS, Peer, PeerError, Site

_READY = re.compile(r"ready: control ([^ ]+:\d+)")
_CROWD = Path(__file__).parents[1] / "crowd.py"
_USER = "bench"


class Twinport(Peer):
    """Without TLS and login, as it is on loopback."""

    name = "twinport"
    folder = FOLDER

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return VERSION

    @property
    def root(self) -> Path:
        """The directory it serves."""
        return self.site.directory / "files"

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        self._serve(stack, "--tls", "off")

    def _serve(self, stack: ExitStack, *flags: str) -> None:
        ports = ["--host", self.site.address, "--control-port", "0", "--data-port", "0"]
        words: list[str | Path] = [
            *module("twinport_service.cli"),
            "serve",
            "--root",
            self.root,
            *ports,
            "--no-classic",
            *flags,
        ]
        server = self.serve(stack, *words, "--log-level", "warning")
        assert server.stdout is not None
        readable, _, _ = select.select([server.stdout], [], [], START_SECONDS)
        ready = _READY.search(server.stdout.readline()) if readable else None
        if ready is None:
            raise PeerError(f"the server did not start: {self.log_end()}")
        self.address = ready[1]

    def _flags(self) -> list[str]:
        return ["--host", self.address, "--no-tls"]

    def _client(self, *words: str | Path) -> Job:
        return self.job(*module("twinport.cli"), *self._flags(), "-q", *words)

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        return self._client("put", source, "--to", self.folder, *(["-r"] if source.is_dir() else []))

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        return self._client("get", f"{self.folder}/{name}", "-o", target, *(["-r"] if tree else []))

    def uploads(self, sources: Sequence[Path]) -> Job:
        """See :class:`Peer`; its clients are one program that has been started once and forks."""
        return self._crowd("put", self.folder, *sources)

    def downloads(self, names: Sequence[str], target: Path) -> Job:
        """See :class:`Peer`."""
        return self._crowd("get", target, *(f"{self.folder}/{name}" for name in names))

    def _crowd(self, *words: str | Path) -> Job:
        job = self.job(sys.executable, _CROWD, *self._crowd_flags(), *words)
        return Job(job.commands, tells_seconds=True)

    def _crowd_flags(self) -> list[str]:
        return ["--host", self.address]


class TwinportTls(Twinport):
    """With TLS and login by an SSH key, the certificate pinned."""

    name = "twinport-tls"
    folder = f"{_USER}/{FOLDER}"
    tls = True
    programs = ("ssh-keygen",)
    packages = ("openssh-client",)

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.stored = self.root / self.folder

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        self._key = self.site.directory / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        self._manage("user", "add", _USER, "--key", str(self._key.with_suffix(".pub")))
        # One user stands for many here.
        self._serve(stack, "--tls", "on", "--max-sessions-per-user", "1000", "--max-channels-per-user", "1000")
        self._fingerprint = self._manage("cert", "show").split()[1]

    def _manage(self, *words: str) -> str:
        command = [*module("twinport_service.cli"), *words, "--root", str(self.root)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TWINPORT_")}
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
        if done.returncode:
            raise PeerError(f"twinportd {' '.join(words[:2])}: {done.stderr.strip()}")
        return done.stdout

    def _flags(self) -> list[str]:
        return ["--host", self.address, "--user", _USER, "--key", str(self._key), "--fingerprint", self._fingerprint]

    def _crowd_flags(self) -> list[str]:
        return self._flags()

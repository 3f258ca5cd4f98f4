"""The rsync daemon: rsync's own protocol, in the clear, without login."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import Job

from .base import FOLDER, Peer, find_program, first_line, free_port

_CONFIG = """address = {address}
port = {port}
use chroot = no
log file = /dev/stderr
pid file = {directory}/rsyncd.pid
{user}
[files]
path = {directory}/files
read only = no
"""


class RsyncDaemon(Peer):
    """Whole files; flushed where the case says so and rsync knows how."""

    name = "rsyncd"
    programs = ("rsync",)
    packages = ("rsync",)

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return first_line("rsync", "--version").split()[2]

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        self._port = free_port()
        config = self.site.directory / "rsyncd.conf"
        # A daemon that is root changes to nobody, who may not write here.
        user = "uid = root\ngid = root" if os.geteuid() == 0 else ""
        config.write_text(
            _CONFIG.format(address=self.site.address, port=self._port, directory=self.site.directory, user=user)
        )
        self.serve(stack, find_program("rsync"), "--daemon", "--no-detach", f"--config={config}", port=self._port)

    def _rsync(self, *words: str | Path) -> Job:
        return self.job("rsync", "-r", "--times", "--whole-file", *(["--fsync"] if self.site.flush else []), *words)

    def _place(self, name: str) -> str:
        return f"rsync://{self.site.address}:{self._port}/files/{FOLDER}/{name}"

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        return self._rsync(source, self._place(""))

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        return self._rsync(self._place(name) + ("/" if tree else ""), target)

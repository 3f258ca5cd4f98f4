"""OpenSSH: scp, sftp and rsync over ssh, each with a key login and AES-128-GCM."""

from __future__ import annotations

import getpass
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from benchmarks.measure import Job

from .base import Peer, find_program, first_line, free_port

_CIPHER = "aes128-gcm@openssh.com"
_RUN = Path("/run/sshd")
_CONFIG = """Port {port}
ListenAddress {address}
HostKey {directory}/host_key
PidFile {directory}/sshd.pid
AuthorizedKeysFile {directory}/user_key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
PrintLastLog no
UseDNS no
MaxStartups 1000
MaxSessions 1000
LogLevel ERROR
Subsystem sftp internal-sftp
"""


class Scp(Peer):
    """scp, which speaks the protocol of sftp since OpenSSH 9."""

    name = "scp"
    tls = True
    programs: ClassVar[tuple[str, ...]] = ("sshd", "scp", "ssh-keygen")
    packages: ClassVar[tuple[str, ...]] = ("openssh-server", "openssh-client")

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return first_line("ssh", "-V").split(",")[0].removeprefix("OpenSSH_")

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        directory = self.site.directory
        self._port = free_port()
        for key in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key], check=True)
        known = (directory / "host_key.pub").read_text()
        (directory / "known_hosts").write_text(f"[{self.site.address}]:{self._port} {known}")
        config = directory / "sshd_config"
        config.write_text(_CONFIG.format(port=self._port, address=self.site.address, directory=directory))
        if os.geteuid() == 0 and not _RUN.exists():
            _RUN.mkdir(mode=0o755)  # sshd gives its privileges up in there
            stack.callback(_RUN.rmdir)
        self.serve(stack, find_program("sshd"), "-D", "-e", "-f", config, port=self._port)

    def _options(self) -> list[str]:
        directory = self.site.directory
        options = [
            f"Ciphers={_CIPHER}",
            f"UserKnownHostsFile={directory}/known_hosts",
            f"IdentityFile={directory}/user_key",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            f"User={getpass.getuser()}",
        ]
        return ["-F", "/dev/null", *(word for option in options for word in ("-o", option))]

    def _place(self, name: str = "") -> str:
        return f"{self.site.address}:{self.stored}/{name}"

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        tree = ["-r"] if source.is_dir() else []
        return self.job("scp", "-q", "-P", str(self._port), *self._options(), *tree, source, self._place())

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        flags = ["-r"] if tree else []
        return self.job("scp", "-q", "-P", str(self._port), *self._options(), *flags, self._place(name), target)


class Sftp(Scp):
    """The sftp program with a batch of one command."""

    name = "sftp"
    programs = ("sshd", "sftp", "ssh-keygen")

    def _sftp(self, command: str) -> Job:
        batch = self.site.directory / "batch"
        batch.write_text(command + "\n")
        return self.job("sftp", "-q", "-P", str(self._port), *self._options(), "-b", batch, self.site.address)

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        return self._sftp(f"put {'-R ' * source.is_dir()}{source} {self.stored}/")

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        return self._sftp(f"get {'-R ' * tree}{self.stored}/{name} {target}")


class RsyncSsh(Scp):
    """rsync over ssh."""

    name = "rsync-ssh"
    programs = ("sshd", "ssh", "rsync", "ssh-keygen")
    packages = ("openssh-server", "openssh-client", "rsync")

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return f"{first_line('rsync', '--version').split()[2]}, OpenSSH {super().version()}"

    def _rsync(self, *words: str | Path) -> Job:
        shell = " ".join(["ssh", "-p", str(self._port), *self._options()])
        flush = ["--fsync"] if self.site.flush else []
        return self.job("rsync", "-r", "--times", "--whole-file", *flush, "-e", shell, *words)

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        return self._rsync(source, self._place())

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        return self._rsync(self._place(name) + ("/" if tree else ""), target)

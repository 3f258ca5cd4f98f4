"""vsftpd: one large file by curl, many files by eight sessions of lftp (curl stalls between files of FTP)."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import Job

from .base import FOLDER, Peer, find_program, first_line, free_port
from .certificate import make_certificate

_SESSIONS = "8"
_CONFIG = """listen=YES
listen_address={address}
listen_port={port}
background=NO
run_as_launching_user=YES
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
anon_root={directory}/files
anon_world_readable_only=NO
anon_upload_enable=YES
anon_mkdir_write_enable=YES
anon_other_write_enable=YES
anon_umask=022
write_enable=YES
pasv_enable=YES
pasv_address={address}
xferlog_enable=NO
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
max_clients=0
max_per_ip=0
use_sendfile=YES
"""
_TLS = """ssl_enable=YES
allow_anon_ssl=YES
force_anon_data_ssl=YES
force_anon_logins_ssl=YES
require_ssl_reuse=NO
strict_ssl_read_eof=NO
strict_ssl_write_shutdown=NO
ssl_tlsv1=YES
ssl_ciphers=ECDHE-ECDSA-AES128-GCM-SHA256
rsa_cert_file={both}
rsa_private_key_file={both}
"""


class Vsftpd(Peer):
    """Without TLS, anonymous."""

    name = "vsftpd"
    programs = ("vsftpd", "curl", "lftp")
    packages = ("vsftpd", "curl", "lftp")

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        with tempfile.TemporaryFile("w+") as shown:  # it tells its version on its standard input
            subprocess.run([find_program("vsftpd"), "-v"], check=False, stdin=shown)
            shown.seek(0)
            server = (shown.read().split() or ["?"])[-1]
        lftp = first_line("lftp", "--version").partition("Version ")[2].partition(" ")[0]
        return f"{server}, curl {first_line('curl', '--version').split()[1]}, lftp {lftp}"

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        self._port = free_port()
        text = _CONFIG.format(address=self.site.address, port=self._port, directory=self.site.directory)
        if self.tls:
            self._pair = make_certificate(self.site.directory, self.site.address)
            text += _TLS.format(both=self._pair.both)
        config = self.site.directory / "vsftpd.conf"
        config.touch(mode=0o600)
        config.write_text(text)
        self.serve(stack, find_program("vsftpd"), config, port=self._port)

    def _curl(self, *words: str | Path) -> Job:
        tls: list[str | Path] = (
            ["--ssl-reqd", "--tls-max", "1.2", "--cacert", self._pair.certificate] if self.tls else []
        )
        return self.job("curl", "-q", "-sS", "-f", *tls, *words)

    def _url(self, name: str) -> str:
        return f"ftp://{self.site.address}:{self._port}/{FOLDER}/{name}"

    def _lftp(self, act: str) -> Job:
        tls = [f"set ssl:ca-file {self._pair.certificate}"] if self.tls else ["set ftp:ssl-allow no"]
        settings = ["set cmd:fail-exit yes", "set net:max-retries 2", "set ftp:sync-mode off", *tls]
        address = f"open ftp://anonymous:x@{self.site.address}:{self._port}"
        return self.job("lftp", "--norc", "-c", "; ".join([*settings, address, act]))

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        if not source.is_dir():
            return self._curl("-T", source, self._url(source.name))
        return self._lftp(f"mirror -R --no-perms --parallel={_SESSIONS} {source} {FOLDER}/{source.name}")

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        if not tree:
            return self._curl("--create-dirs", "-o", target, self._url(name))
        return self._lftp(f"mirror --no-perms --parallel={_SESSIONS} {FOLDER}/{name} {target}")


class VsftpdTls(Vsftpd):
    """With TLS on both connections; this vsftpd knows TLS 1.2."""

    name = "vsftpd-tls"
    tls = True


class VsftpdSegments(Vsftpd):
    """A large file is fetched in eight parts at once (FTP has no such thing for what is sent)."""

    name = "vsftpd-pget"

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        if tree:
            return super().download(name, target, tree)
        return self._lftp(f"pget -n {_SESSIONS} {FOLDER}/{name} -o {target}")

"""nginx with its WebDAV module, and curl: HTTP PUT and GET. Many files over eight connections that are kept."""

from __future__ import annotations

import os
import ssl
import subprocess
from contextlib import ExitStack
from pathlib import Path

from benchmarks.measure import Job

from .base import FOLDER, Peer, PeerError, find_program, first_line, free_port
from .certificate import make_certificate

_AT_ONCE = "8"
_CONFIG = """
daemon off;
master_process on;
worker_processes auto;
pid {directory}/nginx.pid;
error_log stderr warn;
{user}
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    aio threads;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    client_body_temp_path {directory}/temp;
    proxy_temp_path {directory}/temp-proxy;
    fastcgi_temp_path {directory}/temp-fastcgi;
    uwsgi_temp_path {directory}/temp-uwsgi;
    scgi_temp_path {directory}/temp-scgi;
    keepalive_requests 100000;
    server {{
        listen {address}:{port}{listen};
        root {directory}/files;
        {tls}
        location / {{ dav_methods PUT; create_full_put_path on; }}
    }}
}}
"""
_TLS = """
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
"""


class Nginx(Peer):
    """Without TLS."""

    name = "nginx"
    programs = ("nginx", "curl")
    packages = ("nginx-light", "curl")

    @classmethod
    def check(cls) -> None:
        """See :class:`Peer`."""
        super().check()
        shown = subprocess.run([find_program("nginx"), "-V"], check=False, capture_output=True, text=True).stderr
        if "http_dav_module" not in shown:
            raise PeerError("this nginx has no http_dav_module (nginx-light of Debian has it)")

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        server = first_line(find_program("nginx"), "-v").rpartition("/")[2]
        return f"{server}, curl {first_line('curl', '--version').split()[1]}"

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        self._port = free_port()
        config = self.site.directory / "nginx.conf"
        config.write_text(self._config())
        words: list[str | Path] = [find_program("nginx"), "-p", self.site.directory, "-c", config, "-e", "stderr"]
        self.serve(stack, *words, port=self._port)

    def _config(self) -> str:
        tls = ""
        if self.tls:
            self._pair = make_certificate(self.site.directory, self.site.address)
            tls = _TLS.format(certificate=self._pair.certificate, key=self._pair.key)
        return _CONFIG.format(
            directory=self.site.directory,
            address=self.site.address,
            port=self._port,
            listen=" ssl" if self.tls else "",
            tls=tls,
            # Workers of a master that is root would change to a user who may not write here.
            user="user root;" if os.geteuid() == 0 else "",
        )

    def _curl(self, *words: str | Path) -> Job:
        tls: list[str | Path] = (
            ["--cacert", self._pair.certificate, "--tls13-ciphers", "TLS_AES_128_GCM_SHA256"] if self.tls else []
        )
        # Without the Expect header, curl would wait for an answer before each body.
        return self.job("curl", "-q", "-sS", "-f", "-H", "Expect:", *tls, *words)

    def _url(self, name: str) -> str:
        return f"{'https' if self.tls else 'http'}://{self.site.address}:{self._port}/{FOLDER}/{name}"

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        if not source.is_dir():
            return self._curl("-T", source, self._url(source.name))
        self._names = sorted(path.name for path in source.iterdir())
        lines = [f'upload-file = "{source / name}"\nurl = "{self._url(source.name)}/{name}"' for name in self._names]
        return self._many(lines, "put.curl")

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        if not tree:
            return self._curl("--create-dirs", "-o", target, self._url(name))
        target.mkdir()
        return self._many(
            [f'output = "{target / each}"\nurl = "{self._url(name)}/{each}"' for each in self._names], "get.curl"
        )

    def _many(self, lines: list[str], file: str) -> Job:
        config = self.site.directory / file
        config.write_text("\n".join(lines) + "\n")
        return self._curl("--parallel", "--parallel-max", _AT_ONCE, "-K", config)


class NginxTls(Nginx):
    """With TLS 1.3, AES-128-GCM."""

    name = "nginx-tls"
    tls = True

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return f"{super().version()}, {ssl.OPENSSL_VERSION}"

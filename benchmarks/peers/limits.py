"""What everybody is measured against: bare copies without names, verification or login."""

from __future__ import annotations

import platform
import ssl
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from benchmarks.measure import Job

from .base import Peer, PeerError
from .certificate import make_certificate

_HERE = Path(__file__).parents[1]
_PYTHON = (sys.executable, "-I", "-S")


class Limit(Peer):
    """sendfile and splice over one connection; many files as one stream of records."""

    name = "limit"
    congestion: str | None = None
    _port = ""

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return f"sendfile and splice, Python {platform.python_version()}"

    def _flags(self) -> list[str]:
        return ["--host", self.site.address, *(["--congestion", self.congestion] if self.congestion else [])]

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        fsync = ["--fsync"] if self.site.flush else []
        words: list[str | Path] = [*_PYTHON, _HERE / "limit.py", "serve", self.stored, *fsync, *self._flags()]
        self._port = read_port(self, self.serve(stack, *words).stdout)

    def stored_path(self, name: str) -> Path:
        """See :class:`Peer`."""
        return self.stored / "target"

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        records = ["--records"] if source.is_dir() else []
        return self.job(*_PYTHON, _HERE / "limit.py", "put", self._port, source, *records, *self._flags())

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        flags = [*(["--records"] if tree else []), *(["--fsync"] if self.site.flush else [])]
        return self.job(*_PYTHON, _HERE / "limit.py", "get", self._port, target, *flags, *self._flags())


class LimitBbr(Limit):
    """The same with bbr at both ends, whatever the line's own congestion control is."""

    name = "limit-bbr"
    congestion = "bbr"

    @classmethod
    def check(cls) -> None:
        """See :class:`Peer`."""
        if "bbr" not in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split():
            raise PeerError("this kernel has no bbr")


class LimitTls(Peer):
    """One TLS 1.3 AES-128-GCM stream."""

    name = "limit-tls"
    tls = True
    _port = ""

    @classmethod
    def check(cls) -> None:
        """See :class:`Peer`."""
        try:
            from benchmarks import limit_tls  # noqa: F401, PLC0415  # whether OpenSSL 3 can be loaded is the question
        except OSError:
            raise PeerError("there is no libssl.so.3") from None

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return f"{ssl.OPENSSL_VERSION}, called from Python {platform.python_version()}"

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`."""
        pair = make_certificate(self.site.directory, self.site.address)
        words: list[str | Path] = [*_PYTHON, _HERE / "limit_tls.py", "serve", self.stored, pair.certificate, pair.key]
        self._port = read_port(self, self.serve(stack, *words, "--host", self.site.address).stdout)

    def stored_path(self, name: str) -> Path:
        """See :class:`Peer`."""
        return self.stored / "target"

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        return self.job(*_PYTHON, _HERE / "limit_tls.py", "put", self._port, source, "--host", self.site.address)

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        return self.job(*_PYTHON, _HERE / "limit_tls.py", "get", self._port, target, "--host", self.site.address)


class FlushLoop(Peer):
    """No transfer at all: what the disk alone needs for so many files that outlive a power cut."""

    name = "flush-loop"
    threads = 1

    @classmethod
    def version(cls) -> str:
        """See :class:`Peer`."""
        return f"create, write, fsync, rename by {cls.threads} thread{'s' * (cls.threads > 1)}, no network"

    def start(self, stack: ExitStack) -> None:
        """See :class:`Peer`; there is none."""

    def upload(self, source: Path) -> Job:
        """See :class:`Peer`."""
        words: list[str | Path] = [*_PYTHON, _HERE / "flush_loop.py", source, self.stored / source.name]
        return self.job(*words, "--threads", str(self.threads))

    def download(self, name: str, target: Path, tree: bool) -> Job:
        """See :class:`Peer`."""
        words: list[str | Path] = [*_PYTHON, _HERE / "flush_loop.py", self.stored / name, target]
        return self.job(*words, "--threads", str(self.threads))


class FlushLoop16(FlushLoop):
    """The same by 16 threads."""

    name = "flush-loop-16"
    threads = 16


def read_port(peer: Peer, stdout: IO[str] | None) -> str:
    """The port that a limit prints when it is ready. Raises :class:`PeerError`."""
    assert stdout is not None
    line = stdout.readline().strip()
    if not line.isdigit():
        raise PeerError(f"it did not start: {peer.log_end()}")
    return line

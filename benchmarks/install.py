"""Installing the peers from Debian, without starting any of their servers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers import PEERS, Peer, PeerError

_POLICY = Path("/usr/sbin/policy-rc.d")
_DO_NOT_START = "#!/bin/sh\nexit 101\n"
_LINE_PACKAGES = ("iproute2", "util-linux", "gcc", "libc6-dev")


class InstallError(Exception):
    """The peers could not be installed; says why."""


def packages_of(peers: Iterable[type[Peer]]) -> list[str]:
    """Debian's packages for peers that lack a program."""
    needed: dict[str, None] = {}
    for peer in peers:
        try:
            peer.check()
        except PeerError:
            needed.update(dict.fromkeys(peer.packages))
    return list(needed)


def install_peers() -> list[str]:
    """Install what is missing, and what lines need; the packages. Raises :class:`InstallError`."""
    packages = packages_of(PEERS.values())
    if any(shutil.which(program) is None for program in ("ip", "nsenter", "cc")):
        packages += _LINE_PACKAGES
    if not packages:
        return []
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise InstallError(f"this needs root and apt-get; install by hand: {' '.join(packages)}")
    with _no_servers_started():
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(["apt-get", *command], check=False, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise InstallError(f"apt-get {command[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return packages


@contextmanager
def _no_servers_started() -> Iterator[None]:
    """Debian starts the servers that it installs, unless a policy forbids it; one that is there is left alone."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text(_DO_NOT_START)
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()

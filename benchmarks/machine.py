"""What a comparison ran on."""

from __future__ import annotations

import os
import platform
import re
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """The machine, in words. ``versions`` are those of who took part."""

    cpu: str
    cores: int
    memory_gib: float
    system: str
    kernel: str
    disk: str
    python: str
    openssl: str
    congestion: str
    versions: dict[str, str]


def describe_machine(disk: Path, versions: dict[str, str]) -> Machine:
    """This machine; ``disk`` is a directory on the disk that was measured."""
    return Machine(
        cpu=_find(r"^model name\s*:\s*(.+)$", "/proc/cpuinfo") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3, 1),
        system=_find(r'^PRETTY_NAME="?([^"\n]+)', "/etc/os-release") or platform.system(),
        kernel=platform.release(),
        disk=_describe_disk(disk),
        python=platform.python_version(),
        openssl=ssl.OPENSSL_VERSION,
        congestion=_find(r"^(\w+)", "/proc/sys/net/ipv4/tcp_congestion_control") or "unknown",
        versions=versions,
    )


def _find(pattern: str, file: str) -> str | None:
    try:
        match = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None


def _describe_disk(directory: Path) -> str:
    """The file system and device that hold a directory: the longest mount point above it."""
    best = ("", "unknown", "")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mount, kind, *_ = line.split()
        above = directory.resolve().is_relative_to(mount)
        if above and len(mount) >= len(best[0]):
            best = (mount, kind, device)
    return f"{best[1]} on {best[2]}"


def rows_of(machine: Machine) -> list[tuple[str, str]]:
    """What is shown of a machine, line by line."""
    return [
        ("processor", f"{machine.cpu}, {machine.cores} cores"),
        ("memory", f"{machine.memory_gib:g} GiB"),
        ("system", f"{machine.system}, kernel {machine.kernel}"),
        ("disk", machine.disk),
        ("congestion control on loopback", machine.congestion),
        ("Python, OpenSSL", f"{machine.python}, {machine.openssl}"),
        *machine.versions.items(),
    ]

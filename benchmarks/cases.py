"""What is compared: the workloads, who takes part in each, and how often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from benchmarks.line import LineKind

KIB, MIB, GIB = 1024, 1024**2, 1024**3
_SMALL_BYTES = 4 * KIB
_NEAR = LineKind(50, 100)
_LOSSY = LineKind(50, 100, 0.5)
_FAR = LineKind(200, 100, 1)


class Place(Enum):
    """Where the files are that are written; those that are read are in the page cache."""

    TMPFS = "tmpfs"
    DISK = "disk"


@dataclass(frozen=True)
class Case:
    """One workload. Who is ``slow`` runs in the first round only; who needs more than ``most_seconds`` is cut off."""

    name: str
    title: str
    contenders: tuple[str, ...]
    rounds: int
    files: int = 1
    file_bytes: int = _SMALL_BYTES
    place: Place = Place.TMPFS
    line: LineKind | None = None
    clients: int = 1
    slow: tuple[str, ...] = ()
    most_seconds: float = 60.0
    directions: tuple[str, ...] = ("up", "down")

    @property
    def tree(self) -> bool:
        """Whether it is a directory that is moved."""
        return self.files > 1 and self.clients == 1

    @property
    def total_bytes(self) -> int:
        """All that one run moves."""
        return self.files * self.file_bytes

    @property
    def counts_files(self) -> bool:
        """Whether its rate is one of files rather than of bytes."""
        return self.tree


CASES: tuple[Case, ...] = (
    Case(
        "large",
        "One file of 2 GiB on tmpfs",
        (
            "limit",
            "twinport",
            "vsftpd",
            "rsyncd",
            "nginx",
            "limit-tls",
            "twinport-tls",
            "nginx-tls",
            "scp",
            "vsftpd-tls",
        ),
        rounds=5,
        file_bytes=2 * GIB,
        slow=("vsftpd-tls",),
    ),
    Case(
        "large-disk",
        "One file of 1 GiB on the disk, flushed",
        ("limit", "twinport", "twinport-tls", "rsyncd"),
        rounds=3,
        file_bytes=GIB,
        place=Place.DISK,
    ),
    Case(
        "small",
        "2,000 files of 4 KiB on tmpfs",
        ("limit", "twinport", "twinport-tls", "rsyncd", "rsync-ssh", "nginx", "nginx-tls", "vsftpd", "scp", "sftp"),
        rounds=5,
        files=2000,
        slow=("scp", "sftp"),
    ),
    Case(
        "small-disk",
        "2,000 files of 4 KiB on the disk, flushed",
        ("flush-loop", "flush-loop-16", "twinport", "twinport-tls", "rsyncd"),
        rounds=5,
        files=2000,
        place=Place.DISK,
    ),
    Case(
        "start",
        "One file of 4 KiB by a new client process",
        ("limit", "twinport", "twinport-tls", "rsyncd", "rsync-ssh", "nginx", "nginx-tls", "vsftpd", "scp", "sftp"),
        rounds=10,
    ),
    Case(
        "crowd",
        "64 clients at once, 16 MiB each",
        ("twinport-tls", "nginx-tls", "vsftpd-tls"),
        rounds=3,
        files=64,
        file_bytes=16 * MIB,
        clients=64,
        slow=("vsftpd-tls",),
    ),
    Case(
        "line-200",
        "200 files of 4 KiB over a line",
        ("limit", "twinport-tls", "rsyncd", "rsync-ssh", "nginx-tls", "vsftpd"),
        rounds=3,
        files=200,
        line=_NEAR,
        slow=("vsftpd", "nginx-tls"),
    ),
    Case(
        "line-2000",
        "2,000 files of 4 KiB over a line",
        ("limit", "twinport-tls", "rsyncd", "rsync-ssh", "nginx-tls"),
        rounds=3,
        files=2000,
        line=_NEAR,
        slow=("nginx-tls",),
    ),
    Case(
        "line-20000",
        "20,000 files of 4 KiB over a line",
        ("twinport-tls", "rsyncd"),
        rounds=1,
        files=20_000,
        line=_NEAR,
    ),
    Case(
        "line-large",
        "One file of 64 MiB over a line",
        ("limit", "limit-tls", "twinport-tls", "nginx-tls", "scp"),
        rounds=2,
        file_bytes=64 * MIB,
        line=_NEAR,
        slow=("scp",),
    ),
    Case(
        "loss-2000",
        "2,000 files of 4 KiB over a line that loses packets",
        ("limit", "twinport-tls", "rsyncd"),
        rounds=3,
        files=2000,
        line=_LOSSY,
        slow=("limit", "rsyncd"),
    ),
    Case(
        "loss-large",
        "One file of 64 MiB over a line that loses packets",
        ("limit-bbr", "twinport-tls", "vsftpd-pget"),
        rounds=2,
        file_bytes=64 * MIB,
        line=_LOSSY,
        slow=("vsftpd-pget",),
    ),
    Case(
        "far-large",
        "One file of 64 MiB over a long line that loses packets",
        ("limit-bbr", "twinport-tls"),
        rounds=2,
        file_bytes=64 * MIB,
        line=_FAR,
        slow=("limit-bbr",),
    ),
)


def shorten(case: Case) -> Case:
    """The same as a smoke run: everybody starts, moves something and is checked; the times say nothing."""
    files = 20 if case.tree else min(case.files, 4)
    file_bytes = min(case.file_bytes, MIB)
    return replace(
        case,
        title=f"{case.title}, cut down to {files} × {file_bytes // KIB} KiB",
        rounds=1,
        files=files,
        file_bytes=file_bytes,
        clients=min(case.clients, 4),
        line=case.line and replace(case.line, rtt_ms=10),
        most_seconds=30.0,
    )


SHORT_CASES = ("large", "small-disk", "crowd", "line-200")
"""Enough of them that every peer and every kind of place takes part once."""

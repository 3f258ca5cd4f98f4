"""Measuring whole processes side by side: wall seconds, CPU seconds of both ends, peak memory of both ends.

Rounds are interleaved (A B A B …) and judged as ratios within a round, because the machines this runs on are shared
and noisy.
"""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Figures:
    """One run of one contender. RSS in MiB."""

    wall_seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    server_rss_mib: float
    client_rss_mib: float


def cpu_seconds(pid: int) -> float:
    """User and system time a process has used so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def peak_rss_mib(pid: int) -> float:
    """The high-water mark of a process's resident memory, 0 when it is gone."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(match[1]) / 1024 if match else 0.0


def reset_peak_rss(pid: int) -> None:
    """Begin a new high-water mark (proc(5), clear_refs 5)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def warm_memory(size_bytes: int) -> None:
    """Fault in so much memory and free it at once, so that no contender pays the host for pages it had taken back."""
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def run_client(arguments: Sequence[str], server_pid: int) -> Figures:
    """Run a client process to its end beside a server. Raises ``CalledProcessError`` when it fails."""
    reset_peak_rss(server_pid)
    server_before = cpu_seconds(server_pid)
    peak = [0.0]
    begin = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], peak_rss_mib(process.pid))

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    ended.set()
    sampler.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    with process.stderr or open(os.devnull) as stderr:
        text = stderr.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(arguments), stderr=text)
    return Figures(
        wall,
        cpu_seconds(server_pid) - server_before,
        usage.ru_utime + usage.ru_stime,
        peak_rss_mib(server_pid),
        peak[0],
    )

"""Measuring whole processes side by side: wall seconds, CPU seconds of both ends, peak memory of both ends.

Rounds are interleaved (A B A B …) and judged as ratios within a round, because the machines this runs on are shared
and noisy.
"""

from __future__ import annotations

import json
import mmap
import os
import selectors
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.accounting import Group, PeakSampler, make_group

_TICK = os.sysconf("SC_CLK_TCK")
_SHOWN_LINES = 2


class ClientError(Exception):
    """A client failed or took too long; says which and what it wrote."""


class TooSlowError(ClientError):
    """It took longer than it was given."""


@dataclass(frozen=True)
class Figures:
    """One run of one contender. RSS in MiB. ``slowest_over_median`` is that of clients that ran at once."""

    wall_seconds: float
    server_cpu_seconds: float
    client_cpu_seconds: float
    server_rss_mib: float
    client_rss_mib: float
    slowest_over_median: float = 1.0


@dataclass(frozen=True)
class Job:
    """Commands that run at once. With ``tells_seconds`` the only one prints its clients' seconds as a JSON list."""

    commands: tuple[tuple[str, ...], ...]
    tells_seconds: bool = False


def cpu_seconds(pid: int) -> float:
    """User and system time a process has used so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def warm_memory(size_bytes: int) -> None:
    """Fault in so much memory and free it at once, so that no contender pays the host for pages it had taken back."""
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def run_job(job: Job, server: Group, environment: Mapping[str, str], most_seconds: float) -> Figures:
    """Run a job to its end beside a server. Raises :class:`ClientError` when one of its commands fails."""
    with ExitStack() as stack:
        output = stack.enter_context(tempfile.TemporaryFile())
        errors = stack.enter_context(tempfile.TemporaryFile())
        group = make_group()
        stack.callback(group.remove)
        commands = [group.wrap(command) for command in job.commands]
        server_before = server.cpu_seconds()
        with PeakSampler(server, group) as sampler:
            began = time.perf_counter()
            processes = [_start(command, environment, output, errors) for command in commands]
            group.adopt(processes[0].pid)
            used = time.perf_counter()
            seconds, client_cpu = _await_all(processes, began, most_seconds)
            wall = max(seconds, default=time.perf_counter() - used)
        failed = [process for process in processes if process.returncode]
        if len(seconds) < len(processes):
            raise TooSlowError(f"took longer than {most_seconds:g} s")
        if failed:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()[-_SHOWN_LINES:]
            raise ClientError(f"the client ended with code {failed[0].returncode}: {'; '.join(said)}")
        if job.tells_seconds:
            output.seek(0)
            seconds = json.load(output)
        server_rss, client_rss = sampler.peaks_mib
        slowest = max(seconds) / statistics.median(seconds)
        return Figures(wall, server.cpu_seconds() - server_before, client_cpu, server_rss, client_rss, slowest)


def _start(
    command: list[str], environment: Mapping[str, str], output: IO[bytes], errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
    )


def _await_all(
    processes: Sequence[subprocess.Popen[bytes]], began: float, most_seconds: float
) -> tuple[list[float], float]:
    """How long each that ended in time took, and the CPU seconds of all with the children they waited for."""
    seconds: list[float] = []
    cpu = 0.0
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(os.pidfd_open(process.pid), selectors.EVENT_READ, process)
        while selector.get_map():
            ready = selector.select(max(0.0, began + most_seconds - time.perf_counter()))
            now = time.perf_counter()
            late = [] if ready else list(selector.get_map().values())
            for key in [key for key, _ in ready] + late:
                selector.unregister(key.fd)
                os.close(key.fd)
                if late:
                    os.killpg(key.data.pid, signal.SIGKILL)
                else:
                    seconds.append(now - began)
                _, status, usage = os.wait4(key.data.pid, 0)
                key.data.returncode = os.waitstatus_to_exitcode(status)
                cpu += usage.ru_utime + usage.ru_stime
    return seconds, cpu

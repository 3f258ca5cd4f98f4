"""A long line on one machine: two network namespaces with delay, a rate and loss between them.

Needs root, iproute2, nsenter, ``/dev/net/tun`` and a C compiler; :class:`LineUnavailableError` says which is missing.
The packets go through a small program of ours (``line_router.c``) instead of netem, which many kernels of rented
machines lack. The congestion control is always set, and set for both ends: where packets are lost it decides the
outcome, and a host's default differs from machine to machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROUTER = Path(__file__).with_name("line_router.c")
_DEVICE = "line0"
_SERVER, _CLIENT = "10.90.0.1", "10.90.0.2"
_MIN_QUEUE_BYTES = 64 * 1024
_TRIES = 10
# A closed port answers at once, so this takes one round trip and needs nobody at the other end.
_PROBE = """
import socket, sys, time
sock = socket.socket()
sock.settimeout(5)
began = time.perf_counter()
try:
    sock.connect((sys.argv[1], 9))
except ConnectionRefusedError:
    print((time.perf_counter() - began) * 1000)
except OSError:
    print("inf")
"""


class LineUnavailableError(Exception):
    """No line can be made here; says why."""


@dataclass(frozen=True)
class LineKind:
    """What a line is like. Loss is drawn for each direction by itself."""

    rtt_ms: float
    rate_mbit: float
    loss_percent: float = 0.0
    congestion: str = "cubic"

    @property
    def queue_bytes(self) -> int:
        """The router's queue: bandwidth times delay."""
        return max(_MIN_QUEUE_BYTES, int(self.rtt_ms * self.rate_mbit * 125))

    def seconds_for(self, size_bytes: int) -> float:
        """The least time for so many bytes: the rate, and one round trip to be asked and answered."""
        return size_bytes * 8 / (self.rate_mbit * 1e6) + self.rtt_ms / 1000

    def __str__(self) -> str:
        loss = f", {self.loss_percent:g} % loss" if self.loss_percent else ""
        return f"{self.rtt_ms:g} ms, {self.rate_mbit:g} Mbit/s{loss}, {self.congestion}"


@dataclass(frozen=True)
class Line:
    """A line that is up: where the server listens, and what to put before a command to run it at either end."""

    address: str
    server_prefix: tuple[str, ...]
    client_prefix: tuple[str, ...]
    measured_rtt_ms: float


@contextmanager
def open_line(kind: LineKind) -> Iterator[Line]:
    """A line, its round trip checked; gone afterwards."""
    check_line(kind.congestion)
    names = [f"twinport-line-{os.getpid()}-{end}" for end in "ab"]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="twinport-line-")))
        for name in names:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "delete", name)
            _run("ip", "-n", name, "link", "set", "lo", "up")
            # What one run learned of the line must not help the next.
            _run("ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")
        _start_router(stack, kind, names, directory)
        for name, address in zip(names, (_SERVER, _CLIENT), strict=True):
            _run("ip", "-n", name, "link", "set", _DEVICE, "txqueuelen", "10000", "mtu", "1500", "up")
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", _DEVICE, "noprefixroute")
            # By route: a namespace refuses the sysctl for what its host does not list as allowed to everybody.
            route = ["10.90.0.0/24", "dev", _DEVICE, "src", address, "congctl", kind.congestion]
            _run("ip", "-n", name, "route", "add", *route)
        server, client = ((_found("nsenter"), f"--net=/run/netns/{name}", "--") for name in names)
        rtt_ms = _measure_rtt(client)
        if not kind.rtt_ms * 0.98 <= rtt_ms <= kind.rtt_ms + 5:
            raise LineUnavailableError(f"the line's round trip takes {rtt_ms:.1f} ms instead of {kind.rtt_ms:g}")
        yield Line(_SERVER, server, client, rtt_ms)


def check_line(congestion: str) -> None:
    """Whether lines can be made here at all. Raises :class:`LineUnavailableError`."""
    if os.geteuid() != 0:
        raise LineUnavailableError("lines need root: they are network namespaces of their own")
    for program in ("ip", "nsenter", "cc"):
        _found(program)
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise LineUnavailableError("lines need /dev/net/tun, which this kernel does not offer")
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if congestion not in available:
        raise LineUnavailableError(f"this kernel has no {congestion}, only {', '.join(available)}")


def _start_router(stack: ExitStack, kind: LineKind, names: list[str], directory: Path) -> None:
    program = directory / "line_router"
    _run(_found("cc"), "-O2", "-o", str(program), str(_ROUTER))
    numbers = [kind.rtt_ms / 2, kind.rate_mbit, kind.loss_percent, kind.queue_bytes, 1]
    words = [str(program), *(f"{number:g}" if isinstance(number, float) else str(number) for number in numbers)]
    router = subprocess.Popen([*words, _DEVICE, *names], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stop() -> None:
        router.terminate()
        router.communicate()

    stack.callback(stop)
    assert router.stdout is not None
    if router.stdout.readline() != "ready\n":
        reason = router.communicate()[1].strip()
        raise LineUnavailableError(f"the line's router did not start: {reason}")


def _measure_rtt(prefix: tuple[str, ...]) -> float:
    command = [*prefix, sys.executable, "-I", "-S", "-c", _PROBE, _SERVER]
    tries = (subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(_TRIES))
    return min(float(shown) for shown in tries)


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise LineUnavailableError(f"{' '.join(command)}: {done.stderr.strip()}")


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise LineUnavailableError(f"lines need {program}, which is not installed")
    return path

"""Twinport beside a bare copy, in the same rounds: one large file and many small ones, both ways, on tmpfs and on a
disk.

    python -m benchmarks.core [--rounds 5] [--large-mib 1024] [--small 2000] [--disk DIR] [--tmpfs /dev/shm] [--json
    FILE]

Twinport is run as a user runs it: the installed commands, whole processes, verification and durability on. The bare
copy (``limit.py``) neither verifies nor, on tmpfs, flushes; on the disk it flushes as Twinport does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import Figures, run_client, warm_memory

HERE = Path(__file__).parent
SMALL_BYTES = 4096
MIB = 1024 * 1024


@dataclass
class Contender:
    """One server process and how its clients are called."""

    name: str
    pid: int
    put: Callable[[Path, bool], list[str]]
    get: Callable[[Path, bool], list[str]]
    stored: Path
    address: tuple[str, int] = ("127.0.0.1", 0)


def start_twinport(stack: ExitStack, directory: Path) -> Contender:
    """``twinportd serve`` on free ports."""
    root = directory / "twinport-root"
    command = ["twinportd", "serve", "--root", str(root), "--control-port", "0", "--data-port", "0"]
    server = _start(stack, [*_module("twinport_service.cli"), *command[1:], "--log-level", "warning"])
    assert server.stdout is not None
    address = server.stdout.readline().split()[3]
    client = [*_module("twinport.cli"), "--host", address, "-q"]

    def put(path: Path, tree: bool) -> list[str]:
        return [*client, "put", str(path), "--to", "up", *(["-r"] if tree else [])]

    def get(path: Path, tree: bool) -> list[str]:
        return [*client, "get", "up/" + ("small" if tree else "large"), "-o", str(path), *(["-r"] if tree else [])]

    host, _, port = address.rpartition(":")
    return Contender("twinport", server.pid, put, get, root / "up", (host, int(port)))


def start_limit(stack: ExitStack, directory: Path, fsync: bool) -> Contender:
    """``limit.py serve``."""
    root = directory / "limit-root"
    root.mkdir()
    flags = ["--fsync"] if fsync else []
    base = [sys.executable, "-I", "-S", str(HERE / "limit.py")]
    server = _start(stack, [*base, "serve", str(root), *flags])
    assert server.stdout is not None
    port = server.stdout.readline().strip()

    def put(path: Path, tree: bool) -> list[str]:
        return [*base, "put", port, str(path), *(["--records"] if tree else [])]

    def get(path: Path, tree: bool) -> list[str]:
        return [*base, "get", port, str(path), *(["--records"] if tree else []), *flags]

    return Contender("limit", server.pid, put, get, root / "target")


def _module(name: str) -> list[str]:
    return [sys.executable, "-c", f"from {name} import main; main()"]


def _start(stack: ExitStack, command: list[str]) -> subprocess.Popen[str]:
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def stop() -> None:
        server.terminate()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()

    stack.callback(stop)
    return server


def make_input(directory: Path, large_mib: int, small: int) -> tuple[Path, Path]:
    """The large file and the directory of small ones, in the page cache."""
    large = directory / "large"
    with large.open("wb") as file:
        for _ in range(large_mib):
            file.write(os.urandom(MIB))
    tree = directory / "small"
    tree.mkdir()
    for number in range(small):
        (tree / f"{number:06}").write_bytes(os.urandom(SMALL_BYTES))
    return large, tree


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def measure_place(place: Path, source: tuple[Path, Path], rounds: int, fsync: bool) -> dict[str, list[Figures]]:
    """All rounds at one place; keys are ``contender workload direction``."""
    results: dict[str, list[Figures]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place, prefix="twinport-bench-")))
        contenders = [start_limit(stack, directory, fsync), start_twinport(stack, directory)]
        back = directory / "back"
        for workload, path in (("large", source[0]), ("small", source[1])):
            for number in range(rounds + 1):
                for contender in contenders[:: 1 if number % 2 else -1]:
                    tree = workload == "small"
                    for direction in ("up", "down"):
                        warm_memory(path.stat().st_size + 64 * MIB if not tree else 64 * MIB)
                        command = contender.put(path, tree) if direction == "up" else contender.get(back, tree)
                        figures = run_client(command, contender.pid)
                        if number:  # the first round is the warm-up
                            results.setdefault(f"{contender.name} {workload} {direction}", []).append(figures)
                    _compare(path, back if not tree or contender.name == "limit" else _inside(back, "small"))
                    _discard(back)
                    _discard(contender.stored)
    return results


def _inside(back: Path, name: str) -> Path:
    return back / name if (back / name).is_dir() else back


def _compare(first: Path, second: Path) -> None:
    command = ["diff", "-r", "-q"] if first.is_dir() else ["cmp"]
    subprocess.run([*command, str(first), str(second)], check=True)


def report(place: str, results: dict[str, list[Figures]], large_mib: int, small: int) -> list[str]:
    """A Markdown table of medians and of ratios to the limit of the same round."""
    lines = [
        f"**{place}**",
        "",
        "| workload | × limit (min–max) | wall s | rate | CPU s (server + client) | RSS MiB (server / client) |",
        "|---|---|---|---|---|---|",
    ]
    for key, runs in results.items():
        name, workload, direction = key.split()
        limits = results[f"limit {workload} {direction}"]
        ratios = [run.wall_seconds / limit.wall_seconds for run, limit in zip(runs, limits, strict=True)]
        wall = statistics.median(run.wall_seconds for run in runs)
        rate = f"{large_mib / wall:.0f} MiB/s" if workload == "large" else f"{small / wall:.0f} files/s"
        cpu = [
            statistics.median(getattr(run, field) for run in runs)
            for field in ("server_cpu_seconds", "client_cpu_seconds")
        ]
        rss = [max(getattr(run, field) for run in runs) for field in ("server_rss_mib", "client_rss_mib")]
        lines.append(
            f"| {name}, {workload} {direction} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) "
            f"| {wall:.2f} | {rate} | {cpu[0]:.2f} + {cpu[1]:.2f} | {rss[0]:.0f} / {rss[1]:.0f} |"
        )
    return [*lines, ""]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="also write every figure there")
    options = parser.parse_args()
    everything: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(dir=options.disk, prefix="twinport-bench-source-") as directory:
        source = make_input(Path(directory), options.large_mib, options.small)
        for label, place, fsync in (("tmpfs", options.tmpfs, False), ("disk", options.disk, True)):
            results = measure_place(place, source, options.rounds, fsync)
            print("\n".join(report(label, results, options.large_mib, options.small)), flush=True)
            everything[label] = {key: [asdict(run) for run in runs] for key, runs in results.items()}
    if options.json is not None:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()

"""Strangers on the victim's own address: they connect to the data port all the time while transfers run.

    python -m benchmarks.strangers [--connections 100000] [--transfers 500] [--size-kib 256] [--strangers 2] [--place
    /dev/shm]

Every transfer is a client of its own with data connections of its own; half of them upload, half download. A stranger
says nothing, or shows no ticket, a forged one and asks for bytes, a forged one and sends bytes, or noise. Bytes are
stolen when a stranger receives any of the victim's, injected when anything is stored or received that the victim did
not send; both must be 0, and no transfer may fail. Ends with code 1 otherwise. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import twinport
from twinport_protocol.frames import CHANNEL_MAGIC, COMMIT, LAST, FrameType, Header
from twinport_protocol.segments import digest_of

from benchmarks.daemon import Daemon, start_daemon
from benchmarks.measure import cpu_seconds

SECRET = b"the victim's bytes, nobody else's"
EVIL = b"a stranger's bytes, nobody wants them"
_OPEN_AT_ONCE = 40
_VICTIMS = 2
_TICKET_BYTES = 120


def make_content(number: int, size: int) -> bytes:
    """A victim's file: no 64 bytes of it without the secret."""
    line = SECRET + hashlib.sha256(str(number).encode()).digest()
    return (line * (size // len(line) + 1))[:size]


def payload_of(kind: int, chance: random.Random) -> bytes:
    """What a stranger says."""
    ticket = chance.randbytes(_TICKET_BYTES)
    attach = Header(FrameType.ATTACH, 0, 0, 1, 0, 0, len(ticket)).encode() + ticket
    if kind == 0:
        return b""
    if kind == 1:
        return CHANNEL_MAGIC
    if kind == 2:
        return CHANNEL_MAGIC + attach + Header(FrameType.GET, 0, 0, 1, 0, 0, 65536).encode()
    if kind == 3:
        put = Header(FrameType.PUT, LAST | COMMIT, 0, 1, 0, 0, len(EVIL)).encode()
        return CHANNEL_MAGIC + attach + put + EVIL + digest_of(EVIL)
    return chance.randbytes(64)


def be_strange(
    address: tuple[str, int],
    count: int,
    seed: int,
    done: Synchronized[int],
    stolen: Synchronized[int],
    refused: Synchronized[int],
) -> None:
    """One stranger's process: so many connections, some of them open at a time."""
    chance = random.Random(seed)
    kept: deque[socket.socket] = deque()

    def leave(sock: socket.socket) -> None:
        with sock:
            found = bytearray()
            try:
                while data := sock.recv(65536):
                    found += data
            except OSError:
                pass  # nothing more is there, or the server has cut it off
            if SECRET[:8] in found:
                stolen.value += len(found)

    for number in range(count):
        try:
            sock = socket.create_connection(address, timeout=5)
        except OSError:
            refused.value += 1
            continue
        sock.setblocking(False)
        try:
            sock.send(payload_of(number % 5, chance))
        except OSError:
            refused.value += 1
        kept.append(sock)
        if len(kept) >= _OPEN_AT_ONCE:
            leave(kept.popleft())
        done.value += 1
    while kept:
        leave(kept.popleft())


class Victim:
    """The transfers, spread over the time of the attack."""

    def __init__(self, daemon: Daemon, directory: Path, options: argparse.Namespace) -> None:
        self.daemon = daemon
        self.directory = directory
        self.options = options
        self.failures: list[str] = []
        self.injected = 0
        self.seconds: list[float] = []
        self._lock = threading.Lock()

    def transfer(self, number: int) -> None:
        """Upload a file, or download the one that was uploaded before."""
        content = make_content(number // 2, self.options.size_kib * 1024)
        name = f"file-{number // 2:05}"
        began = time.perf_counter()
        try:
            with twinport.connect(*self.daemon.control_address, channels=2) as client:
                if number % 2 == 0:
                    path = self.directory / name
                    path.write_bytes(content)
                    report = client.put(path)
                    path.unlink()
                else:
                    path = self.directory / "back" / name
                    report = client.get(name, path.parent)
                    if path.read_bytes() != content:
                        self.injected += 1
                    path.unlink()
            if report.failures:
                raise twinport.TwinportError(str(report.failures[0]))
        except (twinport.TwinportError, OSError) as error:
            with self._lock:
                self.failures.append(f"{number}: {error}")
        self.seconds.append(time.perf_counter() - began)

    def check_stored(self, root: Path) -> None:
        """Whether exactly the victim's files are there, byte for byte."""
        stored = {path.name for path in root.iterdir() if path.name != ".twinport"}
        wanted = {f"file-{number:05}" for number in range((self.options.transfers + 1) // 2)}
        self.injected += len(stored - wanted)
        for name in stored & wanted:
            if (root / name).read_bytes() != make_content(int(name[5:]), self.options.size_kib * 1024):
                self.injected += 1


def run(options: argparse.Namespace) -> dict[str, object]:
    """The whole experiment; its figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.place, prefix="twinport-bench-")))
        root = directory / "root"
        daemon = start_daemon(stack, root, "--log-level", "warning")
        victim = Victim(daemon, directory, options)
        context = multiprocessing.get_context("spawn")
        counters = [[context.Value("q", 0) for _ in range(3)] for _ in range(options.strangers)]
        each = options.connections // options.strangers
        processes = [
            context.Process(target=be_strange, args=(daemon.data_address, each, seed, *counters[seed]), daemon=True)
            for seed in range(options.strangers)
        ]
        began, cpu_before = time.perf_counter(), cpu_seconds(daemon.pid)
        for process in processes:
            process.start()
            stack.callback(process.kill)

        def pair(number: int) -> None:
            # Begun when so much of the attack is over: the transfers last as long as the strangers do.
            share = number / options.transfers
            while sum(done.value + refused.value for done, _, refused in counters) < share * each * len(processes):
                if not any(process.is_alive() for process in processes):
                    break
                time.sleep(0.01)
            victim.transfer(number)
            if number + 1 < options.transfers:
                victim.transfer(number + 1)

        with ThreadPoolExecutor(_VICTIMS) as threads:
            list(threads.map(pair, range(0, options.transfers, 2)))
        for process in processes:
            process.join()
        seconds = time.perf_counter() - began
        used = cpu_seconds(daemon.pid) - cpu_before
        victim.check_stored(root)
        assert EVIL[:8] not in b"".join(path.read_bytes() for path in root.glob("file-0000*"))
        victim.seconds.sort()
        return {
            "connections": sum(done.value for done, _, _ in counters),
            "refused_at_connect": sum(refused.value for _, _, refused in counters),
            "transfers": len(victim.seconds),
            "failed_transfers": len(victim.failures),
            "failures": victim.failures[:5],
            "stolen_bytes": sum(stolen.value for _, stolen, _ in counters),
            "injected_files": victim.injected,
            "seconds": round(seconds, 1),
            "transfer_seconds_median": round(victim.seconds[len(victim.seconds) // 2], 3),
            "transfer_seconds_most": round(victim.seconds[-1], 3),
            "server_cpu_seconds": round(used, 1),
            "load_average": os.getloadavg()[0],
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--transfers", type=int, default=500)
    parser.add_argument("--size-kib", type=int, default=256)
    parser.add_argument("--strangers", type=int, default=2)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"))
    figures = run(parser.parse_args())
    print(json.dumps(figures, indent=1))
    if figures["failed_transfers"] or figures["stolen_bytes"] or figures["injected_files"]:
        sys.exit(1)


if __name__ == "__main__":
    main()

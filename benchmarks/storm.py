"""A storm of bad logins: what it does to a good one, to a running transfer and to the event loop.

    python -m benchmarks.storm [--rate 1000] [--sessions 64] [--seconds 20] [--place /dev/shm]

PING is asked from a process of its own: in one with the downloads it would wait for their interpreter.

Over at most so many sessions, bad passwords for one account and for names that no account has are offered at that
rate; sessions that are ended after their tries are opened anew. Meanwhile a key logs in again and again, another
session asks for PING, and a client downloads a large file over and over; the rate of that is compared with the same
without a storm. Prints one JSON object. Ends with code 1 when a good login took 1 s, the transfer kept less than 70 %
or a PING took more than 50 ms; the generator takes processor time from the server, so judge a busy machine mildly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import twinport
from twinport_protocol.messages import Verb

from benchmarks.daemon import module, start_daemon
from benchmarks.ping import Control

MIB = 1024 * 1024
FILE_BYTES = 64 * MIB
_PING_SECONDS = 0.005


class Crowd:
    """The storm: sessions that try bad passwords, all together at a rate. For one event loop."""

    def __init__(self, address: tuple[str, int], rate: float, sessions: int, answers: dict[str, int]) -> None:
        self._address = address
        self._interval = sessions / rate
        self._sessions = sessions
        self._answers = answers
        self.offered = 0

    async def run(self, stop_at: float) -> None:
        """Until that moment (of ``time.time``)."""
        await asyncio.gather(*(self._session(number, stop_at) for number in range(self._sessions)))

    async def _session(self, number: int, stop_at: float) -> None:
        due = time.monotonic() + self._interval * number / self._sessions
        while time.time() < stop_at:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError:
                self._count("unreachable")
                await asyncio.sleep(self._interval)
                continue
            try:
                writer.write(b"HELLO 2 agent=storm nonce=" + b"5b" * 16 + b"\n")
                await reader.readline()
                for tried in range(1, 100):
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    due = max(due + self._interval, time.monotonic() - 1)
                    if time.time() >= stop_at:
                        return
                    user = "victim" if self.offered % 2 else f"nobody{self.offered % 1000}"
                    self.offered += 1
                    writer.write(f"{tried} LOGIN password user={user} password=wrong{self.offered}\n".encode())
                    line = await reader.readline()
                    if not line:
                        break
                    self._count(line.split()[2].decode() if line.count(b" ") > 1 else "?")
            except OSError:
                self._count("cut")
            finally:
                writer.close()

    def _count(self, answer: str) -> None:
        self._answers[answer] = self._answers.get(answer, 0) + 1


def be_a_storm(
    address: tuple[str, int], rate: float, sessions: int, stop_at: float, offered: Synchronized[int]
) -> None:
    """The generator's process; prints what was answered."""
    answers: dict[str, int] = {}
    crowd = Crowd(address, rate, sessions, answers)
    asyncio.run(crowd.run(stop_at))
    offered.value = crowd.offered
    print(json.dumps({"answers": answers}), file=sys.stderr)


def ask_pings(address: tuple[str, int], seconds: float, results: Connection) -> None:
    """The process that asks for PING; sends how long each took, in seconds."""
    control = Control(address)
    taken = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        control.ask(Verb.PING)
        taken.append(time.perf_counter() - began)
        time.sleep(_PING_SECONDS)
    control.sock.close()
    results.send(taken)


class Measurement:
    """What is measured with and without a storm, for some seconds; three threads."""

    def __init__(self, address: tuple[str, int], key: Path, directory: Path, admin: Path) -> None:
        self._address = address
        self._key = key
        self._admin = admin
        self._directory = directory
        self.logins: list[float] = []
        self.pings: list[float] = []
        self.downloaded_bytes = 0
        self.errors: list[str] = []

    def run(self, seconds: float) -> None:
        """Measure."""
        end = time.perf_counter() + seconds
        threads = [
            threading.Thread(target=self._guard, args=(work, end)) for work in (self._log_in, self._ping, self._load)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guard(self, work: Callable[[float], None], end: float) -> None:
        try:
            work(end)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def _log_in(self, end: float) -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            twinport.connect(*self._address, user="victim", key=self._key, tls=False).close()
            self.logins.append(time.perf_counter() - began)
            time.sleep(0.1)

    def _ping(self, end: float) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe(duplex=False)
        seconds = end - time.perf_counter()
        process = context.Process(target=ask_pings, args=(self._address, seconds, there), daemon=True)
        process.start()
        there.close()
        self.pings += here.recv()
        process.join()

    def _load(self, end: float) -> None:
        with twinport.connect(*self._address, user="keeper", key=self._admin, tls=False) as client:
            while time.perf_counter() < end:
                client.get("large", self._directory)
                self.downloaded_bytes += FILE_BYTES
                (self._directory / "large").unlink()


def prepare(stack: ExitStack, directory: Path) -> tuple[Path, Path, Path]:
    """A root with two accounts and a large file; the root and the keys of both."""
    root = directory / "root"
    keys = []
    for user, words in (("victim", ()), ("keeper", ("--admin",))):
        key = directory / f"key-{user}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        add = [*module("twinport_service.cli"), "user", "add", user, "--key", f"{key}.pub", *words]
        subprocess.run([*add, "--root", str(root)], check=True, stdout=subprocess.DEVNULL)
        keys.append(key)
    password = [*module("twinport_service.cli"), "user", "passwd", "victim", "--password-stdin", "--root", str(root)]
    subprocess.run(password, input=secrets.token_urlsafe(16) + "\n", text=True, check=True, stdout=subprocess.DEVNULL)
    (root / "large").write_bytes(os.urandom(FILE_BYTES))
    return root, keys[0], keys[1]


def run(options: argparse.Namespace) -> dict[str, object]:
    """The whole experiment; its figures."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.place, prefix="twinport-bench-")))
        root, key, admin = prepare(stack, directory)
        daemon = start_daemon(stack, root, "--log-level", "error")
        calm = Measurement(daemon.control_address, key, directory / "calm", admin)
        calm.run(options.seconds / 2)
        context = multiprocessing.get_context("spawn")
        offered = context.Value("q", 0)
        stop_at = time.time() + options.seconds + 2
        process = context.Process(
            target=be_a_storm,
            args=(daemon.control_address, options.rate, options.sessions, stop_at, offered),
            daemon=True,
        )
        process.start()
        stack.callback(process.kill)
        time.sleep(1)
        storm = Measurement(daemon.control_address, key, directory / "storm", admin)
        storm.run(options.seconds)
        process.join()
        calm_rate = calm.downloaded_bytes / (options.seconds / 2)
        storm_rate = storm.downloaded_bytes / options.seconds
        return {
            "offered_logins": offered.value,
            "good_logins": len(storm.logins),
            "good_login_seconds_median": round(statistics.median(storm.logins), 3),
            "good_login_seconds_most": round(max(storm.logins), 3),
            "good_login_seconds_most_in_calm": round(max(calm.logins), 3),
            "ping_ms_median": round(statistics.median(storm.pings) * 1000, 2),
            "ping_ms_p99": round(sorted(storm.pings)[int(len(storm.pings) * 0.99)] * 1000, 2),
            "ping_ms_most": round(max(storm.pings) * 1000, 1),
            "ping_ms_most_in_calm": round(max(calm.pings) * 1000, 1),
            "transfer_mib_per_second": round(storm_rate / MIB, 1),
            "transfer_mib_per_second_in_calm": round(calm_rate / MIB, 1),
            "transfer_share": round(storm_rate / calm_rate, 2),
            "errors": [*calm.errors, *storm.errors],
            "load_average": os.getloadavg()[0],
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--place", type=Path, default=Path("/dev/shm"))
    figures = run(parser.parse_args())
    print(json.dumps(figures, indent=1))
    good = figures["good_login_seconds_most"], figures["transfer_share"], figures["ping_ms_most"]
    if figures["errors"] or good[0] >= 1 or good[1] < 0.7 or good[2] > 50:  # type: ignore[operator]
        sys.exit(1)


if __name__ == "__main__":
    main()

"""kill -9 of the server at random moments of everything that changes usage: after the start each figure is the sum of
what is there."""

from __future__ import annotations

import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from twinport_protocol.messages import Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.e2e.processes import Daemon
from tests.e2e.scale import KILL_MOMENTS, SEED, work_directory
from tests.service.raw_client import ClosedError, RawChannel, RawControl, await_true, parts_of, send_file

SIZES = [0, 1, 5000, 300_000, MIN_SEGMENT_BYTES + 7]
NAMES = [f"d{number % 3}/f{number}" for number in range(12)]
OWN = ".twinport"
WAIT_SECONDS = 60.0


class Mischief:
    """A client that uploads, replaces, moves, deletes, aborts and leaves uploads open until the server is gone."""

    def __init__(self, port: int, seed: str) -> None:
        self._port = port
        self._chance = random.Random(seed)
        self._thread = threading.Thread(target=self._run)
        self.steps = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self) -> None:
        """Until it has noticed that the server is gone."""
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with suppress(ClosedError, OSError):
            address = ("127.0.0.1", self._port)
            with RawControl(address) as control, RawChannel(address) as channel:
                while True:
                    self._step(control, channel)
                    self.steps += 1

    def _step(self, control: RawControl, channel: RawChannel) -> None:
        chance = self._chance
        name, size = chance.choice(NAMES), chance.choice(SIZES)
        what = chance.choice(["put", "put", "put", "put", "half", "half and abort", "delete", "move"])
        upload_id = secrets.token_bytes(16)
        if what == "put":
            send_file(control, channel, name, bytes(size), upload_id)
        elif what.startswith("half"):
            upload = control.upload(name, size, upload_id)
            if size > MIN_SEGMENT_BYTES:
                attachment = channel.attach_next(upload.ticket)
                channel.put_segment(attachment, 0, parts_of(bytes(size))[0])
                channel.detach(attachment)
            if what == "half and abort":
                control.ask(Verb.ABORT, upload_id.hex())
        elif what == "delete":
            control.ask(Verb.DELETE, name)
        else:
            control.ask(Verb.MOVE, name, chance.choice(NAMES))


def visible(root: Path) -> tuple[int, int]:
    """Bytes and number of all files but the server's own."""
    paths: list[Path] = []
    for directory, directories, files in os.walk(root):
        if OWN in directories:
            directories.remove(OWN)
        paths += [Path(directory) / name for name in files]
    return total(paths)


def staged(root: Path) -> tuple[int, int]:
    """The same of the unfinished uploads."""
    return total((root / OWN / "staging").glob("*/*"))


def total(paths: Iterable[Path]) -> tuple[int, int]:
    """Bytes and number of those that are still there: a server that has just started tidies up."""
    sizes = []
    for path in paths:
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(sizes), len(sizes)


def accounted(control: RawControl) -> tuple[tuple[int, int], tuple[int, int]]:
    """What QUOTA says of stored files and of unfinished uploads."""
    options = control.ask(Verb.QUOTA).options
    stored = int(options["bytes"]), int(options["files"])
    return stored, (int(options["reserved-bytes"]), int(options["open-uploads"]))


def test_usage_is_the_sum_of_what_is_there_after_any_kill() -> None:
    chance = random.Random(f"{SEED} quota")
    with work_directory() as directory:
        root = directory / "root"
        with Daemon(root, directory / "server.log", "--min-free-bytes", "0") as daemon:
            for moment in range(max(6, KILL_MOMENTS)):
                clients = [Mischief(daemon.control_port, f"{SEED} {moment} {number}") for number in range(3)]
                for client in clients:
                    client.start()
                # The moment itself is what is drawn: after how many steps, and where in the next one.
                wanted = chance.randint(1, 60)
                await_true(lambda: sum(client.steps for client in clients) >= wanted, WAIT_SECONDS, "the steps")  # noqa: B023  # used at once
                time.sleep(chance.uniform(0, 0.02))
                daemon.end(signal.SIGKILL)
                for client in clients:
                    client.wait()
                if moment % 3 == 2:  # and what nobody told the server
                    for path in [path for path in root.glob("d*/f*") if path.is_file()][:2]:
                        path.unlink()
                daemon.start()
                with RawControl(("127.0.0.1", daemon.control_port)) as control:
                    await_true(
                        lambda control=control: accounted(control) == (visible(root), staged(root)),  # type: ignore[misc]
                        WAIT_SECONDS,
                        f"usage after kill {moment}: {accounted(control)} for {visible(root)}, {staged(root)}",
                    )
        daemon.assert_no_traceback()

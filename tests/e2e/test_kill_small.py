"""kill -9 at random moments while 2,000 small files travel in bundles, then the same command again: all are there,
whole, and nothing is counted twice."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from twinport_protocol.messages import Verb

from tests.e2e.processes import Daemon, Run
from tests.e2e.scale import IS_FULL, KILL_MOMENTS, SEED, work_directory
from tests.service.raw_client import RawControl, await_true

FILES = 2000
VICTIMS = ["client", "server", *(["server-and-client"] if IS_FULL else [])]
WAIT_SECONDS = 60.0


@dataclass
class Stage:
    """A server and the tree that travels."""

    directory: Path
    daemon: Daemon
    files: dict[str, bytes]

    @property
    def source(self) -> Path:
        """Where the tree is."""
        return self.directory / "tree"

    def run(self, *arguments: str) -> Run:
        """A client."""
        return Run(self.daemon.host, ["-q", *arguments], self.directory)

    def kill(self, victim: str, first: Run) -> None:
        """Kill, and start the server again."""
        if victim != "client":
            self.daemon.end(signal.SIGKILL)
        if victim != "server":
            first.kill()
        if victim != "client":
            self.daemon.start()

    def assert_usage(self, bytes_stored: int, files: int) -> None:
        """What the server says is stored is that, and nothing is left open."""
        with RawControl(("127.0.0.1", self.daemon.control_port)) as control:

            def figures() -> tuple[int, ...]:
                options = control.ask(Verb.QUOTA).options
                return tuple(int(options[key]) for key in ("bytes", "files", "reserved-bytes", "open-uploads"))

            await_true(lambda: figures() == (bytes_stored, files, 0, 0), WAIT_SECONDS, "an exact usage")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One for all moments."""
    numbers = random.Random(SEED)
    files = {f"d{n % 7}/f{n:04}": numbers.randbytes(numbers.choice([0, 1, 100, 4096, 20_000])) for n in range(FILES)}
    with work_directory() as directory:
        for name, data in files.items():
            path = directory / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        with Daemon(directory / "root", directory / "server.log", "--no-classic", "--unsent-seconds", "0.05") as daemon:
            yield Stage(directory, daemon, files)
        daemon.assert_no_traceback()


def count(directory: Path) -> int:
    """How many files are visible."""
    return sum(not name.startswith(".") for folder in directory.glob("d*") for name in os.listdir(folder))


def wait_for(directory: Path, files: int, run: Run) -> None:
    """Until so many files are visible, or the client has ended."""
    await_true(lambda: count(directory) >= files or run.process.poll() is not None, WAIT_SECONDS, "that moment")


def whole(directory: Path, files: dict[str, bytes]) -> int:
    """How many of the files are visible, each of them whole."""
    visible = 0
    for name, data in files.items():
        path = directory / name
        if path.exists():
            assert path.read_bytes() == data, f"{name} is not whole"
            visible += 1
    return visible


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", VICTIMS)
def test_small_files_go_on_after_a_kill(stage: Stage, victim: str) -> None:
    numbers = random.Random(f"{SEED} small {victim}")
    size = sum(map(len, stage.files.values()))
    for number in range(max(1, KILL_MOMENTS // 3)):
        remote = f"{victim}-{number}"
        stored = stage.daemon.root / remote / "tree"
        arguments = ("put", "-r", str(stage.source), "--to", remote)
        first = stage.run(*arguments)
        wait_for(stored, numbers.randrange(FILES), first)
        stage.kill(victim, first)
        whole(stored, stage.files)
        second = first if victim == "server" else stage.run(*arguments)
        second.succeed()
        assert whole(stored, stage.files) == count(stored) == FILES
        stage.assert_usage(size, FILES)

        target = stage.directory / f"target-{remote}"
        target.mkdir()
        arguments = ("get", "-r", f"{remote}/tree", "-o", str(target))
        first = stage.run(*arguments)
        wait_for(target, numbers.randrange(FILES), first)
        stage.kill(victim, first)
        whole(target, stage.files)
        second = first if victim == "server" else stage.run(*arguments)
        second.succeed()
        assert whole(target, stage.files) == FILES
        left = sorted(path.name for path in target.rglob("*") if path.is_file())
        assert left == sorted(name.rpartition("/")[2] for name in stage.files), "a partial is left"
        shutil.rmtree(target)

        stage.run("rm", "-r", f"{remote}/tree").succeed()
        stage.assert_usage(0, 0)

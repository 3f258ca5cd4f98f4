"""kill -9 at random moments of a large upload and download, then the same command again.

The whole must then be there, byte for byte, and the second run may send at most what was not acknowledged when the kill
came, and 1 % more. A proxy counts both. The same again where the second run is killed too: the third sends at most what
neither got acknowledged. ``scripts/torture`` runs the full form.
"""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from twinport.data_channel import READ_BYTES
from twinport_protocol.segments import Layout

from tests.e2e.counting_proxy import CountingProxy, Passage, Tally
from tests.e2e.processes import Daemon, Run, are_same, make_file
from tests.e2e.scale import KILL_BYTES, KILL_MOMENTS, SEED, work_directory
from tests.e2e.socket_queues import read_by_client

VICTIMS = ["client", "client-and-its-state", "server", "server-and-client"]
CLIENT_VICTIMS = {"client", "client-and-its-state", "server-and-client"}
SERVER_VICTIMS = {"server", "server-and-client"}
TWICE_VICTIMS = ["client", "server", "server-and-client"]
TWICE_MOMENTS = max(3, KILL_MOMENTS)
# Not quite the whole: what is killed near the end is the business of the moments in the commit.
LATEST = 0.99
COMMIT_MOMENTS = 1 + KILL_MOMENTS // 10


@dataclass
class Stage:
    """A server, the proxy before it and the file that travels."""

    directory: Path
    daemon: Daemon
    proxy: CountingProxy
    source: Path

    def run(self, *arguments: str) -> Run:
        """A client, by way of the proxy."""
        return Run(self.proxy.host, ["-q", *arguments], self.directory)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One for all moments; each uses a name of its own."""
    with work_directory() as directory:
        make_file(directory / "source", KILL_BYTES, SEED)
        daemon = Daemon(directory / "root", directory / "server.log", "--no-classic")
        with daemon, CountingProxy(daemon.control_port, daemon.data_port) as proxy:
            yield Stage(directory, daemon, proxy, directory / "source")
        daemon.assert_no_traceback()


def upload_reached(tally: Tally, share: float | None) -> Callable[[], bool]:
    """Whether an upload has come to that moment."""
    if share is None:
        return lambda: any(b" COMMIT " in line for line in tally.control_lines)
    return lambda: tally.put_bytes >= share * KILL_BYTES


def download_reached(tally: Tally, share: float | None) -> Callable[[], bool]:
    """Whether a download has come to that moment."""
    return lambda: tally.seg_bytes >= (1 if share is None else share) * KILL_BYTES


def moments(seed: str) -> list[float | None]:
    """At which shares of the bytes to kill; None is the moment of COMMIT."""
    numbers = random.Random(f"{SEED} {seed}")
    return [*(numbers.uniform(0, LATEST) for _ in range(KILL_MOMENTS)), *[None] * COMMIT_MOMENTS]


def kill(stage: Stage, victim: str, first: Run, tally: Tally) -> Tally:
    """Kill, wait until all that was on its way is counted, start the server again. The tally of what comes after."""
    if victim in SERVER_VICTIMS:
        stage.daemon.end(signal.SIGKILL)
    if victim in CLIENT_VICTIMS:
        first.kill()
    after = stage.proxy.begin()
    stage.proxy.wait_until_quiet(tally)
    if victim in SERVER_VICTIMS:
        stage.daemon.start()
    return after


def kill_download(stage: Stage, victim: str, run: Run, tally: Tally) -> tuple[Tally, set[int]]:
    """As :func:`kill`; also the segments of which the client had every byte."""
    received: dict[Passage, int] = {}
    if victim in CLIENT_VICTIMS and run.process.poll() is None:
        # Stopped, it reads no more: what it has read so far can be told from the kernel's queues. The last it has
        # read it may not have looked at yet.
        run.process.send_signal(signal.SIGSTOP)
        received = {passage: read_by_client(passage, stage.proxy.port) - READ_BYTES for passage in tally.passages}
    after = kill(stage, victim, run, tally)
    return after, tally.delivered_segments(KILL_BYTES, received)


def has_said(tally: Tally, run: Run, word: bytes) -> Callable[[], bool]:
    """Whether the client has sent a command with that in it, or is past it."""
    return lambda: (
        any(word in line or b" COMMIT " in line for line in tally.control_lines) or run.process.poll() is not None
    )


def has_moved(tally: Tally, run: Run, segments: int) -> Callable[[], bool]:
    """Whether so many segments were acknowledged or delivered, or fewer were left to be."""
    is_through = has_said(tally, run, b" COMMIT ")
    return lambda: len(tally.sealed) + len(tally.delivered_segments(KILL_BYTES, {})) >= segments or is_through()


def draw_segments(numbers: random.Random) -> int:
    """After how many segments to kill, so that there is something to lose and something left for two more runs."""
    return round(numbers.uniform(0.1, 0.4) * Layout.of(KILL_BYTES).count)


def report(capsys: pytest.CaptureFixture[str], direction: str, victim: str, lines: list[str]) -> None:
    """One line per moment, for whoever runs the full form."""
    with capsys.disabled():
        for line in lines:
            print(f"\n{direction} {victim}: {line}", end="")  # noqa: T201  # the measurement is the result


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", VICTIMS)
def test_an_upload_goes_on_after_a_kill(stage: Stage, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    for number, share in enumerate(moments(f"upload {victim}")):
        # A directory of its own: the name is the same in both runs, as that of the file is.
        remote = f"{victim}-{number}"
        arguments = ("put", str(stage.source), "--to", remote)
        stored = stage.daemon.root / remote / stage.source.name
        tally = stage.proxy.begin()
        first = stage.run(*arguments)
        assert stage.proxy.wait_until(upload_reached(tally, share)), first.output
        second_tally = kill(stage, victim, first, tally)
        missing_bytes = KILL_BYTES - tally.acknowledged_bytes(KILL_BYTES)
        assert not stored.exists() or are_same(stored, stage.source), "a file that is not whole is visible"
        if victim == "client-and-its-state":
            shutil.rmtree(stage.directory / "home")

        second = first if victim == "server" else stage.run(*arguments)
        second.succeed()
        stage.proxy.wait_until_quiet(second_tally)
        sent_bytes = second_tally.put_bytes
        lines.append(f"killed at {tally.put_bytes}, not acknowledged {missing_bytes}, sent again {sent_bytes}")
        assert are_same(stored, stage.source)
        assert sent_bytes <= missing_bytes * 1.01, lines[-1]
        stored.unlink()
    report(capsys, "upload", victim, lines)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_download_goes_on_after_a_kill(stage: Stage, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"down-{victim}"
    Run(stage.daemon.host, ["-q", "put", str(stage.source), "--to", name], stage.directory).succeed()
    layout = Layout.of(KILL_BYTES)
    lines: list[str] = []
    for number, share in enumerate(moments(f"download {victim}")):
        target = stage.directory / "targets" / f"{victim}-{number}"
        target.mkdir(parents=True)
        arguments = ("get", f"{name}/{stage.source.name}", "-o", str(target))
        copy = target / stage.source.name
        tally = stage.proxy.begin()
        first = stage.run(*arguments)
        assert stage.proxy.wait_until(download_reached(tally, share)), first.output
        second_tally, whole = kill_download(stage, victim, first, tally)
        missing_bytes = KILL_BYTES - sum(layout.length(segment) for segment in whole)
        assert not copy.exists() or are_same(copy, stage.source), "a file that is not whole is visible"
        if victim == "client-and-its-state":
            for found in target.iterdir():
                if found != copy:
                    found.unlink()
            shutil.rmtree(stage.directory / "home")
            missing_bytes = KILL_BYTES

        second = first if victim == "server" else stage.run(*arguments)
        second.succeed()
        stage.proxy.wait_until_quiet(second_tally)
        sent_bytes = second_tally.seg_bytes
        lines.append(f"killed at {tally.seg_bytes}, not received {missing_bytes}, fetched again {sent_bytes}")
        assert are_same(copy, stage.source)
        assert [path.name for path in target.iterdir()] == [copy.name], "a partial is left"
        assert sent_bytes <= missing_bytes * 1.01, lines[-1]
        shutil.rmtree(target)
    report(capsys, "download", victim, lines)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", TWICE_VICTIMS)
def test_an_upload_goes_on_after_two_kills(stage: Stage, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = random.Random(f"{SEED} upload twice {victim}")
    layout = Layout.of(KILL_BYTES)
    lines: list[str] = []
    for number in range(TWICE_MOMENTS):
        remote = f"twice-{victim}-{number}"
        arguments = ("put", str(stage.source), "--to", remote)
        stored = stage.daemon.root / remote / stage.source.name
        tally = stage.proxy.begin()
        run = stage.run(*arguments)
        assert stage.proxy.wait_until(has_moved(tally, run, draw_segments(numbers))), run.output
        second_tally = kill(stage, victim, run, tally)
        sealed = set(tally.sealed)
        assert sealed

        run = run if victim == "server" else stage.run(*arguments)
        # A run that is killed before it sent anything must not hide what the one before it has sent.
        moments_of_second = [
            has_said(second_tally, run, b" UPLOAD "),
            has_said(second_tally, run, b" resume="),
            has_moved(second_tally, run, draw_segments(numbers)),
        ]
        assert stage.proxy.wait_until(moments_of_second[number % 3]), run.output
        third_tally = kill(stage, victim, run, second_tally)
        sealed |= second_tally.sealed
        missing_bytes = KILL_BYTES - sum(map(layout.length, sealed))
        assert not stored.exists() or are_same(stored, stage.source), "a file that is not whole is visible"

        run = run if victim == "server" else stage.run(*arguments)
        run.succeed()
        stage.proxy.wait_until_quiet(third_tally)
        sent_bytes = third_tally.put_bytes
        killed = f"killed at {tally.put_bytes} and {second_tally.put_bytes}"
        lines.append(f"{killed}, not acknowledged {missing_bytes}, sent again {sent_bytes}")
        assert are_same(stored, stage.source)
        assert sent_bytes <= missing_bytes * 1.01, lines[-1]
        stored.unlink()
    report(capsys, "upload twice", victim, lines)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("victim", TWICE_VICTIMS)
def test_a_download_goes_on_after_two_kills(stage: Stage, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"down-twice-{victim}"
    Run(stage.daemon.host, ["-q", "put", str(stage.source), "--to", name], stage.directory).succeed()
    numbers = random.Random(f"{SEED} download twice {victim}")
    layout = Layout.of(KILL_BYTES)
    lines: list[str] = []
    for number in range(TWICE_MOMENTS):
        target = stage.directory / "targets" / f"twice-{victim}-{number}"
        target.mkdir(parents=True)
        arguments = ("get", f"{name}/{stage.source.name}", "-o", str(target))
        copy = target / stage.source.name
        tally = stage.proxy.begin()
        run = stage.run(*arguments)
        assert stage.proxy.wait_until(has_moved(tally, run, draw_segments(numbers))), run.output
        second_tally, whole = kill_download(stage, victim, run, tally)

        run = run if victim == "server" else stage.run(*arguments)
        moments_of_second = [
            has_said(second_tally, run, b" DOWNLOAD "),
            has_moved(second_tally, run, draw_segments(numbers)),
        ]
        assert stage.proxy.wait_until(moments_of_second[number % 2]), run.output
        third_tally, more = kill_download(stage, victim, run, second_tally)
        missing_bytes = KILL_BYTES - sum(map(layout.length, whole | more))
        assert not copy.exists() or are_same(copy, stage.source), "a file that is not whole is visible"

        run = run if victim == "server" else stage.run(*arguments)
        run.succeed()
        stage.proxy.wait_until_quiet(third_tally)
        sent_bytes = third_tally.seg_bytes
        killed = f"killed at {tally.seg_bytes} and {second_tally.seg_bytes}"
        lines.append(f"{killed}, not received {missing_bytes}, fetched again {sent_bytes}")
        assert are_same(copy, stage.source)
        assert [path.name for path in target.iterdir()] == [copy.name], "a partial is left"
        assert sent_bytes <= missing_bytes * 1.01, lines[-1]
        shutil.rmtree(target)
    report(capsys, "download twice", victim, lines)

"""Death at any moment: what was acknowledged is there and whole, and nothing under a name is torn."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .committer import judge, read_serials

CHILD = Path(__file__).with_name("committer.py")
EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = (2).to_bytes(4, "little")


class Committer:
    """The child process and what it has acknowledged."""

    def __init__(self, root: Path, first: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), "commit", str(root), str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        assert self._stdout.readline() == b"ready\n"

    def read_acknowledged(self, count: int) -> set[int]:
        """The next acknowledged serials."""
        return read_serials(itertools.islice(self._stdout, count))

    def kill(self) -> set[int]:
        """Kill it; what it acknowledged until then."""
        self.process.kill()
        with self._stdout:
            rest = read_serials(self._stdout)
        self.process.wait()
        return rest


def test_kill_at_random_moments(tmp_path: Path) -> None:
    random_numbers = random.Random(20)
    first = 0
    acknowledged: set[int] = set()
    for _ in range(6):
        child = Committer(tmp_path / "root", first)
        acknowledged |= child.read_acknowledged(random_numbers.randrange(5, 120))
        threading.Event().wait(
            random_numbers.random() * 0.01
        )  # so that the kill hits any moment, not only one after an answer
        acknowledged |= child.kill()
        first = judge(tmp_path / "root", acknowledged)
    assert len(acknowledged) > 40


def test_kill_at_every_call_of_the_way(shm_path: Path) -> None:
    """The first dozen commits make some 120 calls, of every kind that there is on the way."""
    swept = subprocess.run(
        [sys.executable, str(CHILD), "sweep", str(shm_path / "root"), "130"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert swept.returncode == 0, swept.stderr[-3000:]
    assert int(swept.stdout.splitlines()[-1]) > 60


def test_kill_at_every_call_of_a_move_leaves_each_file_to_its_owner(shm_path: Path) -> None:
    swept = subprocess.run(
        [sys.executable, str(CHILD), "moves", str(shm_path / "root"), "0"], capture_output=True, text=True, check=False
    )
    assert swept.returncode == 0, swept.stderr[-3000:]
    assert int(swept.stdout.splitlines()[-1]) == 2 * 5, "each of the five was cut off before and after it was done"


@pytest.fixture
def power(tmp_path: Path) -> Iterator[PowerSwitch]:
    """An ext4 file system of its own whose power can be cut."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; CI runs as root")
    switch = PowerSwitch(tmp_path)
    switch.on()
    yield switch
    switch.off()


class PowerSwitch:
    """ext4 on a loop device. ``cut`` loses all that was not flushed, as a power cut does."""

    def __init__(self, directory: Path) -> None:
        self._image = directory / "image"
        self.mount = directory / "mount"
        self.mount.mkdir()
        with self._image.open("wb") as image:
            image.truncate(256 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(self._image)], check=True)

    def on(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.mount)], check=True)

    def off(self) -> None:
        subprocess.run(["umount", str(self.mount)], check=True)

    def cut(self) -> None:
        descriptor = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH)
        finally:
            os.close(descriptor)


def test_power_cuts(power: PowerSwitch) -> None:
    random_numbers = random.Random(7)
    first = 0
    acknowledged: set[int] = set()
    for _ in range(6):
        child = Committer(power.mount / "root", first)
        acknowledged |= child.read_acknowledged(random_numbers.randrange(5, 150))
        threading.Event().wait(random_numbers.random() * 0.01)
        power.cut()
        # After the cut nothing can become durable: what is acknowledged from here would be a lie.
        acknowledged |= child.kill()
        power.off()
        power.on()
        first = judge(power.mount / "root", acknowledged)
    assert len(acknowledged) > 40

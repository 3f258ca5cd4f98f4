"""Power cuts under the whole server: whatever a real client was told is there, whole, after the next start."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import twinport
from twinport.errors import TwinportError
from twinport.report import SilentObserver
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.e2e.processes import Daemon
from tests.e2e.scale import IS_FULL, SEED
from tests.service.storage.test_crashes import PowerSwitch

ROUNDS = 40 if IS_FULL else 4
SMALL_FILES = 240
LARGE_FILES = 3
WAIT_SECONDS = 60.0


@pytest.fixture
def power(tmp_path: Path) -> Iterator[PowerSwitch]:
    """An ext4 file system of its own whose power can be cut."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; CI runs as root")
    switch = PowerSwitch(tmp_path)
    try:
        switch.on()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine mounts no loop device: {error}")
    yield switch
    switch.off()


class Acknowledgements(SilentObserver):
    """What a client was told to be stored, as it was told."""

    def __init__(self, told: threading.Condition) -> None:
        self.names: set[str] = set()
        self._told = told

    def file_done(self, name: str, size_bytes: int) -> None:
        """See :class:`twinport.report.Observer`."""
        with self._told:
            self.names.add(name)
            self._told.notify_all()


def make_files(directory: Path, number: int) -> dict[str, str]:
    """The files of one round, below ``small`` and ``large``: the SHA-256 of each by its name.

    Some names are new in every round, the others replaced in every round.
    """
    sums: dict[str, str] = {}
    source = random.Random(f"{SEED} {number}")
    sizes = {f"small/{number}/{index % 7}/{index}": source.randrange(40_000) for index in range(SMALL_FILES // 2)}
    sizes |= {f"small/hot/{index}": source.randrange(300_000) for index in range(SMALL_FILES // 2)}
    sizes |= {f"large/{index}": source.randrange(1, 2 * MIN_SEGMENT_BYTES) for index in range(LARGE_FILES)}
    for name, size in sizes.items():
        data = source.randbytes(size)
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
    return sums


def put_until_the_end(port: int, path: Path, observer: Acknowledgements) -> None:
    """Send a tree for as long as there is a server."""
    try:
        with twinport.connect("127.0.0.1", port, patience_seconds=0.1) as client:
            client.put(path, recursive=True, check=False, progress=observer)
    except TwinportError:
        pass  # the power was cut


def stored_sums(root: Path) -> dict[str, str]:
    """The SHA-256 of everything that is visible below a root, by its name."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and ".twinport" not in path.parts
    }


@pytest.mark.timeout(1800)
def test_what_was_acknowledged_survives_power_cuts(
    power: PowerSwitch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = random.Random(f"{SEED} cuts")
    root = power.mount / "root"
    daemon = Daemon(root, tmp_path / "server.log")
    daemon.reserve()
    daemon.start()
    sent: defaultdict[str, list[str]] = defaultdict(list)
    last_acknowledged: dict[str, int] = {}
    told = 0
    try:
        for number in range(ROUNDS):
            directory = tmp_path / f"round{number}"
            for name, digest in make_files(directory, number).items():
                sent[name].append(digest)
            condition = threading.Condition()
            observer = Acknowledgements(condition)
            clients = [
                threading.Thread(target=put_until_the_end, args=(daemon.control_port, directory / part, observer))
                for part in ("small", "large")
            ]
            for client in clients:
                client.start()
            wanted = moments.randrange(1, SMALL_FILES)
            with condition:
                assert condition.wait_for(lambda: len(observer.names) >= wanted, WAIT_SECONDS)  # noqa: B023  # used at once
            threading.Event().wait(moments.random() * 0.05)  # so that the cut hits any moment, not one after an answer
            power.cut()
            # What is acknowledged from here on was on the disk before; the clients hear nothing more when it is dead.
            daemon.end(signal.SIGKILL)
            for client in clients:
                client.join()
            power.off()
            power.on()
            daemon.start()

            told += len(observer.names)
            for name in observer.names:
                last_acknowledged[name] = len(sent[name]) - 1
            stored = stored_sums(root)
            for name, index in last_acknowledged.items():
                assert stored.get(name) in sent[name][index:], f"{name}: acknowledged, and lost or old"
            for name, digest in stored.items():
                assert digest in sent[name], f"{name}: bytes that nobody sent"
        # As clients see it: every file is served, and verified on its way.
        with twinport.connect("127.0.0.1", daemon.control_port) as reader:
            report = reader.get("", tmp_path / "copy", recursive=True)
        assert report.files_done == len(stored)
        assert stored_sums(tmp_path / "copy") == stored
    finally:
        daemon.end(signal.SIGKILL)
        daemon.close()
    daemon.assert_no_traceback()
    with capsys.disabled():
        print(f"\n{ROUNDS} power cuts, {told} files acknowledged before them, none lost or torn", end="")  # noqa: T201

"""What every test runs under: no leaked thread, no leaked descriptor, and directories with a known file system."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

GRACE_SECONDS = 30.0  # what ends in time costs none of it
POLL_SECONDS = 0.005
SHARED_MEMORY = Path("/dev/shm")
DESCRIPTORS = Path("/proc/self/fd")

# A loaded machine makes examples slow, not wrong; without a deadline there is nothing to flake on.
hypothesis.settings.register_profile("twinport", deadline=None, print_blob=True)
hypothesis.settings.load_profile("twinport")

# Started in the background of a script, we ignore Ctrl-C, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_descriptors() -> dict[int, str]:
    """The open descriptors of this process and what each refers to; empty where there is no /proc."""
    found: dict[int, str] = {}
    if not DESCRIPTORS.is_dir():
        return found
    for entry in os.listdir(DESCRIPTORS):
        try:
            found[int(entry)] = os.readlink(DESCRIPTORS / entry)
        except FileNotFoundError:  # the descriptor of the listing itself, or one closed by another thread meanwhile
            continue
    return found


class Baseline:
    """The threads and descriptors at one moment, to compare a later moment with."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.descriptors = open_descriptors()

    def leaks(self) -> list[str]:
        """One line for each thread and descriptor that has come since and is still there."""
        lines = [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self.threads]
        now = open_descriptors()
        # A wider fixture may close one and open another; only a growing number is a leak.
        if len(now) > len(self.descriptors):
            new = sorted(now.items() - self.descriptors.items())
            lines += [f"descriptor {number}: {target}" for number, target in new]
        return lines

    def await_no_leaks(self, grace_seconds: float = GRACE_SECONDS) -> list[str]:
        """The leaks that are left when ``grace_seconds`` have passed, or none as soon as there are none."""
        leaks = self.leaks()
        if not leaks:
            return leaks
        # What only a reference cycle keeps open is closed here, and its ResourceWarning then fails the test.
        gc.collect()
        deadline = time.monotonic() + grace_seconds
        while (leaks := self.leaks()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return leaks


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread or a descriptor behind, unless it is marked ``may_leak(reason=...)``."""
    marker = request.node.get_closest_marker("may_leak")
    if marker is not None:
        if not marker.kwargs.get("reason"):
            raise pytest.UsageError(f"{request.node.nodeid}: may_leak needs a reason")
        yield
        return
    baseline = Baseline()
    yield
    leaks = baseline.await_no_leaks()
    if leaks:
        pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture
def shm_path(tmp_path: Path) -> Iterator[Path]:
    """An empty directory on tmpfs (``/dev/shm``), removed afterwards; on the disk where there is no tmpfs."""
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="twinport-test-", dir=SHARED_MEMORY) as name:
        yield Path(name)

"""What a group of processes uses: CPU time and resident memory, those included that have left their parent.

With the right to make a control group (root on Linux with cgroup v2) a group is one, and nothing escapes it. Without,
it is the tree below one process, and what a process did that left the tree is not seen.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ENTER = 'echo $$ > "$0"; exec "$@"'
_SAMPLE_SECONDS = 0.02
_END_SECONDS = 10.0


class Group(Protocol):
    """Processes whose use is counted together."""

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command line that runs a command inside the group."""

    def adopt(self, pid: int) -> None:
        """The process that ``wrap`` became."""

    def pids(self) -> list[int]:
        """Who is in it now."""

    def cpu_seconds(self) -> float:
        """User and system time of all that are or were in it."""

    def remove(self) -> None:
        """Give it up, and end what is left in it."""


class ControlGroup:
    """A cgroup of our own."""

    def __init__(self, parent: Path) -> None:
        self._path = parent / f"twinport-bench-{uuid.uuid4().hex[:12]}"
        self._path.mkdir()

    def wrap(self, command: Sequence[str]) -> list[str]:
        """See :class:`Group`."""
        return ["sh", "-c", _ENTER, str(self._path / "cgroup.procs"), *command]

    def adopt(self, pid: int) -> None:
        """See :class:`Group`; it has entered by itself."""

    def pids(self) -> list[int]:
        """See :class:`Group`."""
        return [int(word) for word in (self._path / "cgroup.procs").read_text().split()]

    def cpu_seconds(self) -> float:
        """See :class:`Group`."""
        values = dict(line.split() for line in (self._path / "cpu.stat").read_text().splitlines())
        return int(values["usage_usec"]) / 1e6

    def remove(self) -> None:
        """See :class:`Group`."""
        deadline = time.monotonic() + _END_SECONDS
        while True:
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self._path.rmdir()
                return
            except OSError:  # who was killed has not gone yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(_SAMPLE_SECONDS)


class ProcessTree:
    """One process and its descendants."""

    def __init__(self) -> None:
        self._root: int | None = None

    def wrap(self, command: Sequence[str]) -> list[str]:
        """See :class:`Group`."""
        return list(command)

    def adopt(self, pid: int) -> None:
        """See :class:`Group`."""
        self._root = pid

    def pids(self) -> list[int]:
        """See :class:`Group`."""
        found, at = ([] if self._root is None else [self._root]), 0
        while at < len(found):
            for children in Path(f"/proc/{found[at]}/task").glob("*/children"):
                try:
                    found += [int(word) for word in children.read_text().split()]
                except OSError:  # it has just ended
                    continue
            at += 1
        return found

    def cpu_seconds(self) -> float:
        """See :class:`Group`; children that ended count once their parent has waited for them."""
        return sum(_cpu_of(pid) for pid in self.pids())

    def remove(self) -> None:
        """See :class:`Group`."""


def _cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICK


def make_group() -> Group:
    """A control group where that is allowed, else a tree."""
    parent = _control_group_directory()
    try:
        return ControlGroup(parent) if parent is not None else ProcessTree()
    except OSError:
        return ProcessTree()


def _control_group_directory() -> Path | None:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    roots = [Path(words[1]) for words in mounts if words[2] == "cgroup2"]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not roots or not own or os.geteuid() != 0:
        return None
    return roots[0] / own[0].lstrip("/")


def rss_mib(pids: Sequence[int]) -> float:
    """The resident memory of processes together; what they share counts for each."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):  # it has ended
            continue
    return total * _PAGE_BYTES / (1024 * 1024)


class PeakSampler:
    """The largest resident memory of groups while a ``with`` block runs."""

    def __init__(self, *groups: Group) -> None:
        self.peaks_mib = [0.0 for _ in groups]
        self._groups = groups
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> PeakSampler:
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        for number, group in enumerate(self._groups):
            self.peaks_mib[number] = max(self.peaks_mib[number], rss_mib(group.pids()))

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self._look()

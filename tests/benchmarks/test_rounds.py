"""A run goes on without who is missing, fails or is wrong; and what is measured is what processes did."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.accounting import Group, ProcessTree, make_group, rss_mib
from benchmarks.cases import Case, Place
from benchmarks.measure import ClientError, Job, TooSlowError, run_job
from benchmarks.peers import PEERS, Peer
from benchmarks.rounds import CaseResult, run_case

PYTHON = (sys.executable, "-I", "-S", "-c")


class Copier(Peer):
    """Moves files without a server."""

    name = "copier"

    @classmethod
    def version(cls) -> str:
        return "1"

    def start(self, stack: ExitStack) -> None:
        """There is nothing to start."""

    def upload(self, source: Path) -> Job:
        return self.job("cp", "-r", source, self.stored)

    def download(self, name: str, target: Path, tree: bool) -> Job:
        return self.job("cp", "-r", self.stored / name, target)


class Missing(Copier):
    name = "missing"
    programs = ("no-such-program-anywhere",)


class Failing(Copier):
    name = "failing"

    def upload(self, source: Path) -> Job:
        return self.job(*PYTHON, "import sys; sys.exit('no space here')")


class Wrong(Copier):
    name = "wrong"

    def download(self, name: str, target: Path, tree: bool) -> Job:
        return self.job("sh", "-c", 'cp -r "$0" "$1"; echo >> "$1"', self.stored / name, target)


class Losing(Copier):
    name = "losing"

    def upload(self, source: Path) -> Job:
        return self.job("sh", "-c", 'cp -r "$0" "$1" && rm "$1"/tree/000002', source, self.stored)


class SlowUp(Copier):
    name = "slow-up"

    def upload(self, source: Path) -> Job:
        return self.job("sleep", "60")


class Slow(Copier):
    name = "slow"

    def download(self, name: str, target: Path, tree: bool) -> Job:
        return self.job("sleep", "60")


def run(
    monkeypatch: pytest.MonkeyPatch, directory: Path, case: Case, *peers: type[Peer], ours: tuple[type[Peer], ...] = ()
) -> CaseResult:
    monkeypatch.setattr(rounds, "PEERS", {peer.name: peer for peer in peers})
    monkeypatch.setattr(rounds, "OURS", ours)
    places = {Place.TMPFS: directory, Place.DISK: directory}
    return run_case(case, case.contenders, places, directory, lambda _: None, judged=False)


def test_nobody_ends_the_run_for_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case("x", "X", ("missing", "failing", "wrong", "copier"), rounds=2)
    result = run(monkeypatch, tmp_path, case, Missing, Failing, Wrong, Copier)
    assert {key: set(runs) for key, runs in result.runs.items()} == {
        ("wrong", "up"): {0}, ("copier", "up"): {0, 1}, ("copier", "down"): {0, 1},
    }  # fmt: skip
    assert result.failures == []
    assert result.notes == [
        "missing: no-such-program-anywhere is not installed (--install does that on Debian)",
        "failing: up failed: the client ended with code 1: no space here",
        "wrong: down failed: file arrived, but is not what was sent",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_a_wrong_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case("x", "X", ("losing", "copier"), rounds=1, files=5)
    result = run(monkeypatch, tmp_path, case, Losing, Copier)
    assert result.notes == ["losing: up failed: 5 files were sent, 4 arrived"]
    assert set(result.runs) == {("copier", "up"), ("copier", "down")}


def test_a_failure_of_ours_fails_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case("x", "X", ("missing", "wrong"), rounds=1)
    result = run(monkeypatch, tmp_path, case, Missing, Wrong, ours=(Missing, Wrong))
    assert [failure.split(":")[1].strip() for failure in result.failures] == ["missing", "wrong"]


def test_who_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case("x", "X", ("slow", "copier"), rounds=2, most_seconds=2.0)
    result = run(monkeypatch, tmp_path, case, Slow, Copier)
    assert result.notes == ["slow: down took longer than 2 s"]
    assert set(result.runs["copier", "down"]) == {0, 1}


def test_who_is_too_slow_up_is_measured_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for files in (1, 3):
        case = Case("x", "X", ("slow-up",), rounds=2, files=files, most_seconds=2.0)
        result = run(monkeypatch, tmp_path, case, SlowUp)
        assert result.notes == ["slow-up: up took longer than 2 s"]
        assert {key: set(runs) for key, runs in result.runs.items()} == {("slow-up", "down"): {0}}


def test_who_is_slow_runs_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = Case("x", "X", ("copier",), rounds=3, slow=("copier",))
    assert set(run(monkeypatch, tmp_path, case, Copier).runs["copier", "up"]) == {0}


def test_the_limit_moves_files_and_trees(tmp_path: Path) -> None:
    for case in (
        Case("x", "X", ("limit", "limit-tls"), rounds=1, file_bytes=3_000_001),
        Case("x", "X", ("limit",), rounds=1, files=7, place=Place.DISK),
        Case("x", "X", ("flush-loop", "flush-loop-16"), rounds=1, files=7, place=Place.DISK),
    ):
        result = run_case(case, case.contenders, dict.fromkeys(Place, tmp_path), tmp_path, lambda _: None, judged=False)
        assert (result.notes, result.failures) == ([], [])
        assert len(result.runs) == 2 * len(case.contenders)


def wait_until_empty(group: Group) -> None:
    deadline = time.monotonic() + 60
    while group.pids():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(isinstance(make_group(), ProcessTree), reason="needs the right to make control groups, as root has")
def test_processes_that_leave_their_parent_are_counted_and_ended() -> None:
    group = make_group()
    work = "import os, time\nif os.fork() == 0:\n os.setsid()\n end = time.process_time() + 0.3\n"
    work += " while time.process_time() < end: pass"
    subprocess.run(group.wrap([*PYTHON, work]), check=True)
    wait_until_empty(group)
    assert group.cpu_seconds() >= 0.3
    subprocess.run(group.wrap(["sh", "-c", "setsid sleep 1000 &"]), check=True)
    assert len(group.pids()) == 1
    group.remove()
    with pytest.raises(FileNotFoundError):
        group.pids()


def test_without_control_groups_a_tree_is_counted() -> None:
    tree = ProcessTree()
    work = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen(tree.wrap([*PYTHON, work]), stdin=subprocess.PIPE) as process:
        tree.adopt(process.pid)
        deadline = time.monotonic() + 60
        while len(tree.pids()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert rss_mib(tree.pids()) > rss_mib([process.pid]) > 0
        assert tree.cpu_seconds() >= 0
        process.communicate(b"\n")


def test_clients_that_run_at_once_are_timed_one_by_one() -> None:
    server = make_group()
    naps = tuple((*PYTHON, f"import time; time.sleep({seconds})") for seconds in (0.5, 0.5, 2.5))
    figures = run_job(Job(naps), server, os.environ, 60)
    assert figures.wall_seconds >= 2.5
    assert 1 < figures.slowest_over_median <= 5.5
    assert figures.client_rss_mib > 1
    told = run_job(Job(((*PYTHON, "print([1.0, 1.0, 3.0])"),), tells_seconds=True), server, os.environ, 60)
    assert told.slowest_over_median == 3.0
    server.remove()


def test_a_failed_client_says_why_and_a_late_one_is_ended() -> None:
    server = make_group()
    with pytest.raises(ClientError, match=r"ended with code 3: .*too bad"):
        run_job(Job(((*PYTHON, "import os; os.write(2, b'too bad'); os._exit(3)"),)), server, os.environ, 60)
    with pytest.raises(TooSlowError, match=r"longer than 0\.5 s"):
        run_job(Job((("sleep", "100"),)), server, os.environ, 0.5)
    server.remove()


def test_every_peer_says_what_it_needs() -> None:
    for peer in PEERS.values():
        assert bool(peer.programs) == bool(peer.packages), peer.name

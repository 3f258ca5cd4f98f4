"""``twinport bench`` with whole processes: over TLS with a login, in one's own folder, within the quota; ended by a
signal half way."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Daemon, Run
from tests.e2e.test_login import CLIENT, Place

QUICK = ["bench", "--seconds", "6", "--size", "8M"]


@pytest.fixture
def place(shm_path: Path) -> Iterator[Place]:
    """With no account yet, not started."""
    made = Place(shm_path)
    made.daemon.reserve()
    yield made
    made.daemon.close()
    made.daemon.assert_no_traceback()


def stored_in(root: Path) -> list[str]:
    """All that the server has of its users' files and folders."""
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if ".twinport" not in path.relative_to(root).parts
    )


def test_a_user_measures_in_their_own_folder(place: Place) -> None:
    key = place.add_user("alice", "--max-bytes", "20M")
    place.daemon.start()
    host = f"alice@{place.daemon.host}"
    place.succeed("login", host, "--key", str(key), "--fingerprint", place.fingerprint())
    before = stored_in(place.root)
    found = json.loads(place.succeed(*QUICK, host, "--json"))
    assert (found["user"], found["tls"]) == ("alice", "TLSv1.3")
    assert found["large"]["up_many"]["bytes_per_second"] > 0
    assert found["small"]["down"]["files"] >= 32
    assert stored_in(place.root) == before
    assert json.loads(place.succeed("quota", "--json"))["bytes"] == 0

    denied = place.run(*QUICK, "--to", "bob")
    assert denied.returncode == 8
    assert denied.stderr == (
        "twinport: no test directory in bob/: you may not write there; name one where you may with --to; "
        "your folder is alice/\n"
    )
    (place.directory / "most").write_bytes(bytes(20_500_000))
    place.succeed("put", "most", "--to", "alice")
    full = place.run(*QUICK)
    assert full.returncode == 6
    assert "cannot measure: your quota leaves" in full.stderr
    assert [name for name in stored_in(place.root) if "bench" in name] == []


def test_who_may_only_read_is_told_where_it_fails(place: Place) -> None:
    key = place.add_user("alice")
    place.manage("user", "grant", "alice", "shared/**", "list,read")
    place.daemon.start()
    words = ["--host", f"alice@{place.daemon.host}", "--key", str(key), "--fingerprint", place.fingerprint()]
    denied = place.run(*words, *QUICK, "--to", "shared")
    assert denied.returncode == 8
    assert "no test directory in shared/: you may not write there" in denied.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_half_way_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with Daemon(tmp_path / "root", tmp_path / "server.log", "--max-bytes-per-second", "2000000") as daemon:
        run = Run(daemon.host, ["bench", "--seconds", "20", "--size", "100M"], tmp_path)
        scratch = tmp_path / "root"
        staging = scratch / ".twinport" / "staging"
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 1_000_000 for path in staging.rglob("*") if path.is_file()):
            assert time.monotonic() < deadline, run.output
            time.sleep(0.01)
        run.process.send_signal(number)
        assert run.wait(60) == 130
        assert run.output == "twinport: the measurement was interrupted; nothing was left behind\n"
        quota = json.loads(
            subprocess.check_output([*CLIENT, "--host", daemon.host, "quota", "--json"], cwd=tmp_path, text=True)
        )
        assert (quota["bytes"], quota["reserved_bytes"], quota["open_uploads"]) == (0, 0, 0)
        assert stored_in(scratch) == []
    daemon.assert_no_traceback()

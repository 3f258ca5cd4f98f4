"""Everybody at once on one server: fifty classic clients from one address and clients of twinport/2, both directions.

Every file has bytes of its own, so whoever receives another's shows it.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.e2e.processes import Daemon, Run
from tests.e2e.scale import IS_FULL, SEED, work_directory
from tests.service.classic.reference_client import ReferenceClient

CLASSIC_CLIENTS = 50
OTHER_CLIENTS = 4
ROUNDS = 8 if IS_FULL else 1
# How long a classic client waits for its turn: fifty OKs, one after the other.
PATIENCE_SECONDS = 200.0


def content_of(name: str, size_bytes: int) -> bytes:
    """Bytes that no other name has."""
    return random.Random(f"{SEED} {name}").randbytes(size_bytes)


def make_tree(root: Path, owner: str) -> dict[str, bytes]:
    """Small files, one of the largest single segment and one of three segments; by their paths."""
    sizes = {f"small/{number}": number * 37 for number in range(200)}
    sizes |= {"one": MIN_SEGMENT_BYTES, "three": 2 * MIN_SEGMENT_BYTES + 4321, "none": 0}
    files = {name: content_of(f"{owner}/{name}", size) for name, size in sizes.items()}
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return files


def read_tree(root: Path) -> dict[str, bytes]:
    """The files of a tree by their paths."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def work_classic(daemon: Daemon, number: int, barrier: threading.Barrier) -> None:
    """One classic client: first up then down, or the reverse, and what it sent itself last."""
    shared = f"shared/{number % 10}"
    own, sent = f"classic/{number}", content_of(f"classic/{number}", 50_000 + number * 12_007)
    with ReferenceClient("127.0.0.1", daemon.control_port, timeout=PATIENCE_SECONDS) as client:
        barrier.wait(PATIENCE_SECONDS)
        for step in ("up", "down") if number % 2 else ("down", "up"):
            if step == "up":
                client.upload(own, sent)
            else:
                assert client.download(shared) == content_of(shared, 400_000), shared
        assert client.download(own) == sent, own
        client.quit()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_fifty_classic_clients_and_others_at_once(number: int) -> None:
    with work_directory() as directory:
        trees = {
            f"other{index}": make_tree(directory / f"other{index}", f"{number} {index}")
            for index in range(OTHER_CLIENTS)
        }
        waiting = make_tree(directory / "waiting", f"{number} waiting")
        shared = {f"shared/{index}": content_of(f"shared/{index}", 400_000) for index in range(10)}
        with Daemon(directory / "root", directory / "server.log", "--classic-pair-busy-seconds", "60") as daemon:
            (directory / "first").mkdir()
            Run(daemon.host, ["-q", "put", "-r", str(directory / "waiting")], directory / "first").succeed()
            with ReferenceClient("127.0.0.1", daemon.control_port) as client:
                for name, data in shared.items():
                    client.upload(name, data)

            barrier = threading.Barrier(CLASSIC_CLIENTS + 1)
            with ThreadPoolExecutor(CLASSIC_CLIENTS) as pool:
                works = [pool.submit(work_classic, daemon, index, barrier) for index in range(CLASSIC_CLIENTS)]
                runs = []
                for index in range(OTHER_CLIENTS):
                    for words in (["put", "-r", str(directory / f"other{index}")], ["get", "-r", "waiting"]):
                        place = directory / f"place-{words[0]}{index}"
                        place.mkdir()
                        runs.append(Run(daemon.host, ["-q", *words], place))
                barrier.wait(PATIENCE_SECONDS)
                for work in works:
                    work.result()
                for run in runs:
                    run.succeed()

            for index in range(OTHER_CLIENTS):
                assert read_tree(directory / f"place-get{index}" / "waiting") == waiting
                assert read_tree(directory / "root" / f"other{index}") == trees[f"other{index}"]
            stored = read_tree(directory / "root" / "classic")
            assert stored == {
                str(index): content_of(f"classic/{index}", 50_000 + index * 12_007) for index in range(CLASSIC_CLIENTS)
            }
            with ReferenceClient("127.0.0.1", daemon.control_port) as client:
                names = [name for name in client.list_names() if not name.startswith(("other", "waiting"))]
            assert sorted(names) == sorted([*shared, *(f"classic/{index}" for index in range(CLASSIC_CLIENTS))])
        daemon.assert_no_traceback()

"""A child process that commits files for ever and says so, to be killed or to lose its power; and the judge afterwards.

``committer.py commit ROOT SERIAL`` prints ``ready``, then ``+ SERIAL`` as each commit is acknowledged. Each file's
bytes follow from its serial, so that a torn or mixed file shows.

``committer.py moves ROOT 0`` lets one process after the other die before the first, second… call of a move, and judges
whose the files are that are left.

``committer.py sweep ROOT CALLS`` lets one process after the other die before the first, second… call of the disk
door, and judges what each has left. Forked from this one, which has no threads then: that is much quicker than
starting Python anew.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import queue
import shutil
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blake3 import blake3
from twinport_protocol.names import parse_name
from twinport_protocol.segments import Layout, Manifest, digest_of
from twinport_service.storage.contract import Published, UploadSpec
from twinport_service.storage.local import Limits, LocalStorage
from twinport_service.usage import UsageBook

LIMITS = Limits(staging_directories=3)
WINDOW = 12
"""Commits under way at once."""


def name_of(serial: int) -> str:
    """New names, a few that are replaced again and again, and some in new directories."""
    return {0: f"new{serial}", 1: f"hot/{serial // 4 % 3}", 2: f"d{serial}/e/f"}.get(serial % 4, "staged/file")


def is_staged(serial: int) -> bool:
    """Which of them go the way of large files."""
    return serial % 4 == 3


def content_of(serial: int) -> bytes:
    """The bytes of a serial: it can be read from the first eight."""
    size = 300_000 if is_staged(serial) else 8 + serial * 37 % 9000
    return serial.to_bytes(8, "big") + blake3(serial.to_bytes(8, "big")).digest(length=size - 8)


def upload_id_of(serial: int) -> bytes:
    """The upload id of a serial."""
    return blake3(b"id%d" % serial).digest(length=16)


def spec_of(serial: int) -> UploadSpec:
    """The upload of a serial."""
    return UploadSpec(
        upload_id_of(serial), "alice", parse_name(name_of(serial)), len(content_of(serial)), 10**18 + serial
    )


def commit_for_ever(storage: LocalStorage, serial: int) -> None:
    """Commit serial after serial, a few at once, but those of one name one after the other."""
    room = threading.Semaphore(WINDOW)
    turns = {name: threading.Lock() for name in {name_of(number) for number in range(serial, serial + 12)}}
    while True:
        spec, data = spec_of(serial), content_of(serial)
        room.acquire()
        turn = turns.setdefault(name_of(serial), threading.Lock())
        turn.acquire()

        def on_done(outcome: object, number: int = serial, turn: threading.Lock = turn) -> None:
            assert isinstance(outcome, Published), outcome
            os.write(1, b"+ %d\n" % number)
            turn.release()
            room.release()

        if is_staged(serial):
            storage.begin(spec)
            layout = Layout.of(len(data))
            assert layout.count == 1
            storage.put_piece(spec.upload_id, 1, 0, 0, data)
            storage.commit(spec, Manifest(len(data), digest_of(data)), on_done)
        else:
            storage.commit_small(spec, data, digest_of(data), on_done)
        serial += 1


def judge(root: Path, acknowledged: set[int]) -> int:
    """Start a storage on what is left, compare it with what was acknowledged; the first serial never used."""
    storage = LocalStorage(root, limits=LIMITS)
    storage.start({})
    try:
        newest = max(acknowledged, default=0)
        latest: dict[str, int] = {}
        for serial in acknowledged:
            latest[name_of(serial)] = max(serial, latest.get(name_of(serial), 0))
        present: dict[str, int] = {}
        after = ""
        while True:
            page = storage.list("", after, 500, True)
            for entry in page.entries:
                if entry.kind == "d":
                    continue
                data = (root / entry.name).read_bytes()
                serial = int.from_bytes(data[:8], "big")
                assert data == content_of(serial), f"{entry.name} is torn"
                assert entry.name == name_of(serial), f"{entry.name} is another file's"
                assert entry.root in (None, digest_of(data))
                present[entry.name] = serial
                newest = max(newest, serial)
            if not page.more:
                break
            after = page.entries[-1].key
        for name, serial in latest.items():
            assert present.get(name, -1) >= serial, f"{name}: acknowledged {serial}, found {present.get(name)}"
        for serial in range(max(0, newest - 40), newest + WINDOW):
            finished = storage.finished(upload_id_of(serial))
            if serial in acknowledged:
                assert finished is not None, f"acknowledged {serial} is not known as finished"
            if finished is not None:
                assert finished.root == digest_of(content_of(serial))
                assert present.get(name_of(serial), -1) >= serial, f"{serial} finished, but not there"
        assert not [path for path in (root / ".twinport/staging").rglob("*") if path.is_file()]
        return newest + WINDOW + 1
    finally:
        storage.close()


def open_with_faulty_door(root: Path) -> tuple[LocalStorage, Any]:
    """A storage whose process can be killed in a call."""
    found = importlib.util.spec_from_file_location("faulty_door", Path(__file__).with_name("faulty_door.py"))
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    door = module.FaultyDoor()
    return LocalStorage(root, door, limits=LIMITS), door


def commit(root: Path, first: int, kill_at: int | None = None) -> None:
    """Start and commit until death."""
    storage, door = open_with_faulty_door(root)
    storage.start({})
    os.write(1, b"ready\n")
    if kill_at is not None:
        door.kill_at(kill_at)
    commit_for_ever(storage, first)


def read_serials(lines: Iterable[bytes]) -> set[int]:
    """The serials in whole lines that acknowledge."""
    return {int(line[2:]) for line in lines if line.startswith(b"+ ") and line.endswith(b"\n")}


def sweep(root: Path, calls: int) -> None:
    """One death before each call."""
    acknowledged: set[int] = set()
    first = 0
    for call in range(1, calls + 1):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(writing, 1)
            os.close(reading)
            try:
                commit(root, first, call)
            finally:
                os._exit(1)
        os.close(writing)
        with os.fdopen(reading, "rb") as lines:
            acknowledged |= read_serials(lines)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL, f"call {call}: ended with {status}"
        first = judge(root, acknowledged)
    sys.stdout.write(f"{len(acknowledged)}\n")


SMALL, LARGE = 5, 60_000
BEFORE = {"a": ("alice", SMALL), "b/c": ("bob", LARGE), "d/e": ("alice", LARGE), "d/f/g": ("bob", SMALL)}
"""What stands there before a move: name, whose, and size."""
MOVES = [("a", "b/c"), ("b/c", "a"), ("a", "new/name"), ("d", "new/d"), ("d", "b/d")]


def put_all(storage: LocalStorage) -> None:
    """Publish :data:`BEFORE`."""
    told: queue.Queue[object] = queue.Queue()
    for serial, (name, (user, size)) in enumerate(BEFORE.items()):
        data = bytes(size)
        spec = UploadSpec(upload_id_of(serial), user, parse_name(name), size)
        storage.commit_small(spec, data, digest_of(data), told.put)
        assert isinstance(told.get(timeout=30), Published)


def moved(source: str, target: str) -> dict[str, tuple[str, int]]:
    """:data:`BEFORE` after a move."""
    kept = {name: file for name, file in BEFORE.items() if name != target}
    return {
        target + name[len(source) :] if f"{name}/".startswith(f"{source}/") else name: file
        for name, file in kept.items()
    }


def judge_move(root: Path, source: str, target: str) -> bool:
    """Compare what is there, and what is counted for whom; whether the move was done."""
    book = UsageBook()
    storage = LocalStorage(root, limits=LIMITS, usage=book)
    storage.start({})
    try:
        done = not (root / source).exists()
        expected = moved(source, target) if done else BEFORE
        for user in ("alice", "bob"):
            sizes = [size for owner, size in expected.values() if owner == user]
            # At once: nobody has looked yet which files are missing.
            assert book.usage_of(user).stored == (sum(sizes), len(sizes)), (user, done)
        entries = storage.list("", "", 100, True).entries
        found = {str(entry.name): entry.root for entry in entries if entry.kind == "f"}
        assert found == {name: digest_of(bytes(size)) for name, (_, size) in expected.items()}, done
        return done
    finally:
        storage.close()


def sweep_moves(root: Path) -> None:
    """One death before each call of each move."""
    outcomes: set[tuple[str, str, bool]] = set()
    for source, target in MOVES:
        for call in itertools.count(1):
            shutil.rmtree(root, ignore_errors=True)
            child = os.fork()
            if child == 0:
                try:
                    storage, door = open_with_faulty_door(root)
                    storage.start({})
                    put_all(storage)
                    door.kill_at(call)
                    storage.move(parse_name(source), parse_name(target))
                    os._exit(0)
                finally:
                    os._exit(1)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert status in (0, -signal.SIGKILL), f"call {call}: ended with {status}"
            outcomes.add((source, target, judge_move(root, source, target)))
            if status == 0:
                break
    sys.stdout.write(f"{len(outcomes)}\n")


if __name__ == "__main__":
    mode, under, number = sys.argv[1:]
    if mode == "sweep":
        sweep(Path(under), int(number))
    elif mode == "moves":
        sweep_moves(Path(under))
    else:
        commit(Path(under), int(number))

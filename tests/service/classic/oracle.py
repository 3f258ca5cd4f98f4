"""What must hold after every attack on the classic dialect, whatever the attack was."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.conftest import open_descriptors

from .harness import RunningPlane
from .reference_client import ServerError

FRESH_CLIENT_SECONDS = 1.0
BUSY_MACHINE_SECONDS = 30.0
SETTLE_SECONDS = 30.0
POLL_SECONDS = 0.005
MAX_REPLY_BYTES = 512
PROBE_NAME = "probe of the oracle"
OWN_DIRECTORY = ".twinport"
# Pools keep their threads; everything else that was started for a client must be gone with it.
POOLS = ("ThreadPoolExecutor", "worker", "asyncio", "storage-")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+Z .*")


def wait_until(holds: Callable[[], bool], what: str, seconds: float = SETTLE_SECONDS) -> None:
    """Await a condition; fails with ``what`` when it does not come about in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(POLL_SECONDS)


def fingerprint(directory: Path) -> dict[str, tuple[int, int, int, str]]:
    """Path, inode, size, mtime and digest of every file below a directory."""
    found: dict[str, tuple[int, int, int, str]] = {}
    for folder, _, files in os.walk(directory):
        for file in files:
            path = Path(folder, file)
            status = path.lstat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, digest)
    return found


def visible_files(root: Path) -> dict[str, bytes]:
    """What stands under the root, by name; the server's own directory left out."""
    found: dict[str, bytes] = {}
    for folder, directories, files in os.walk(root):
        if Path(folder) == root and OWN_DIRECTORY in directories:
            directories.remove(OWN_DIRECTORY)
        for file in files:
            path = Path(folder, file)
            if path.is_file() and not path.is_symlink():
                found[str(path.relative_to(root))] = path.read_bytes()
    return found


def assert_reply(line: bytes) -> None:
    """A reply is one line of printable UTF-8 of at most 512 bytes."""
    assert len(line) <= MAX_REPLY_BYTES
    assert line.endswith(b"\n")
    assert line[:-1].decode().isprintable()


class ClassicOracle:
    """Takes the baseline when made. ``root`` is served from a disk; nothing of ``outside`` may ever change."""

    def __init__(self, server: RunningPlane, root: Path, outside: Path) -> None:
        self._server = server
        self._root = root
        self._outside = outside
        self._probes: set[bytes] = set()
        self._probe()  # whatever is made once and kept is made now
        self._tree = fingerprint(outside)
        self._descriptors = self._working_descriptors()
        self._threads = self._working_threads()

    def check(self, sent: Collection[bytes] = ()) -> None:
        """Run all checks. Every visible file must be one of ``sent``; the test's own clients must be gone."""
        self._probe()
        plane, ledger = self._server.plane, self._server.desk.ledger
        wait_until(lambda: plane.sessions == 0, "the end of all sessions")
        wait_until(lambda: plane.transfers == 0, "the end of all transfers")
        wait_until(lambda: plane.waiting == 0, "the end of all turns")
        wait_until(lambda: not ledger.open_uploads(), "the end of all uploads")
        wait_until(lambda: not self._staged(), "an empty staging")
        wait_until(lambda: self._working_threads() <= self._threads, "the threads of the baseline")
        wait_until(lambda: self._working_descriptors() <= self._descriptors, "the descriptors of the baseline")
        assert fingerprint(self._outside) == self._tree, "something outside the root was touched"
        allowed = {*sent, *self._probes}
        strange = [name for name, content in visible_files(self._root).items() if content not in allowed]
        assert not strange, f"files that nobody sent completely: {strange}"
        self._check_log()

    def _probe(self) -> None:
        # On a busy machine some tries may be unlucky; a server that keeps people waiting does so every time.
        give_up_at = time.monotonic() + BUSY_MACHINE_SECONDS
        while not self._serves_a_new_client_at_once():
            assert time.monotonic() < give_up_at, "a new client waited too long"
        wait_until(lambda: self._server.plane.sessions == 0, "the end of the probe")

    def _serves_a_new_client_at_once(self) -> bool:
        content = secrets.token_bytes(5000)
        self._probes.add(content)
        began = time.monotonic()
        with self._server.client() as client:
            try:
                client.upload(PROBE_NAME, content)
                assert client.download(PROBE_NAME) == content
            except ServerError as error:
                if error.code != "Timeout":  # that is what those are told who are late
                    raise
                return False
            assert PROBE_NAME in client.list_names()
        return time.monotonic() - began < FRESH_CLIENT_SECONDS

    def _staged(self) -> list[str]:
        staging = self._root / OWN_DIRECTORY / "staging"
        return [file for _, _, files in os.walk(staging) for file in files]

    def _check_log(self) -> None:
        log = self._server.log.getvalue()
        assert "Traceback" not in log, log
        assert not self._server.complaints, self._server.complaints
        forged = [line for line in log.split("\n")[:-1] if not LOG_LINE.fullmatch(line)]
        assert not forged, f"log lines that nobody wrote: {forged}"

    def _working_descriptors(self) -> int:
        """Those that a client can cause. The storage keeps some versions open, a number that it bounds by itself."""
        return sum(not target.startswith(str(self._root)) for target in open_descriptors().values())

    @staticmethod
    def _working_threads() -> int:
        return sum(not thread.name.startswith(POOLS) for thread in threading.enumerate())

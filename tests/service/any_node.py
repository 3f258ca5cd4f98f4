"""Several server processes over one store: the store is a process of its own, which the nodes call for everything.

``python -m tests.service.any_node store`` hosts storage and ledger in memory; ``… node ADDRESS`` is a server that
stands on them. Both print where they listen. Refusals do not survive pickling, so they cross as values; callbacks do
not cross at all: a node waits for the outcome on a thread and calls back from there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.segments import Manifest
from twinport_protocol.tickets import TicketKeys
from twinport_service.config import Settings
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.server import Server
from twinport_service.storage.contract import OnDone, OnProgress, Published, UploadSpec, WholeFile
from twinport_service.storage.memory import MemoryStorage

PROJECT = Path(__file__).parents[2]
AUTHENTICATION = b"one store for all nodes of a test"
KEYS = TicketKeys(bytes(16), {1: bytes(range(32))}, 1)
_COMMITS = frozenset({"commit", "commit_small"})


@dataclass(frozen=True)
class _Refused:
    code: ErrorCode
    detail: str
    retry_seconds: int | None

    @classmethod
    def of(cls, refusal: Refusal) -> _Refused:
        return cls(refusal.code, refusal.detail, refusal.retry_seconds)

    def refusal(self) -> Refusal:
        return Refusal(self.code, self.detail, self.retry_seconds)


class Store:
    """What the store process offers: one method, for each of the two contracts."""

    def __init__(self) -> None:
        self._parts: dict[str, object] = {"storage": MemoryStorage(), "ledger": MemoryLedger()}

    def call(self, part: str, method: str, arguments: tuple[Any, ...]) -> Any:
        """The result, or the refusal as a value."""
        try:
            if method == "read":
                token, offset, count = arguments
                return self._read(token, offset, count)
            if method == "read_staged":
                buffer = bytearray(arguments[-1])
                count = self._bound(part, method)(*arguments[:-1], buffer)
                return bytes(buffer[:count])
            if method in _COMMITS:
                return self._commit(method, arguments)
            if method == "admit":
                return [refused and _Refused.of(refused) for refused in self._bound(part, method)(*arguments)]
            return self._bound(part, method)(*arguments)
        except Refusal as refusal:
            return _Refused.of(refusal)

    def _bound(self, part: str, method: str) -> Callable[..., Any]:
        bound: Callable[..., Any] = getattr(self._parts[part], method)
        return bound

    def _read(self, token: bytes, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        reader = self._bound("storage", "open_reader")(token)
        return bytes(buffer[: reader.read_into(offset, buffer)])

    def _commit(self, method: str, arguments: tuple[Any, ...]) -> Any:
        done = threading.Event()
        outcomes: list[Published | Refusal] = []

        def on_done(outcome: Published | Refusal) -> None:
            outcomes.append(outcome)
            done.set()

        self._bound("storage", method)(*arguments, on_done)
        done.wait()
        outcome = outcomes[0]
        if isinstance(outcome, Refusal):
            raise outcome
        return outcome


class _StoreManager(BaseManager):
    pass


class _Remote:
    """One of the two contracts, by calls to the store. Methods that need nothing special come from ``__getattr__``."""

    def __init__(self, store: Any, part: str) -> None:
        self._store = store
        self._part = part

    def ask(self, method: str, *arguments: object) -> Any:
        """Call the store; raises its refusals."""
        plain = tuple(bytes(item) if isinstance(item, memoryview | bytearray) else item for item in arguments)
        result = self._store.call(self._part, method, plain)
        if isinstance(result, _Refused):
            raise result.refusal()
        return result

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments: self.ask(method, *arguments)

    def close(self) -> None:
        """The store outlives its nodes."""


class RemoteReader:
    """The bytes of a version, by calls to the store."""

    def __init__(self, remote: _Remote, token: bytes) -> None:
        self._remote = remote
        self._token = token

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        data = self._remote.ask("read", self._token, offset, len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Nothing is held."""


class RemoteStorage(_Remote):
    """The storage."""

    def __init__(self, store: Any) -> None:
        super().__init__(store, "storage")
        self._waiters = ThreadPoolExecutor(8, thread_name_prefix="remote-commit")

    def start(self, live_uploads: Mapping[bytes, int]) -> Collection[bytes]:
        """The store knows what it holds; a node that starts has nothing to recover."""
        return set(live_uploads)

    def read_staged(self, upload_id: bytes, segment: int, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        data = self.ask("read_staged", upload_id, segment, offset, len(buffer))
        memoryview(buffer)[: len(data)] = data
        return len(data)

    def open_reader(self, token: bytes) -> RemoteReader:
        """See the contract."""
        self.ask("manifest", token)  # refuses a version that is gone
        return RemoteReader(self, token)

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """See the contract."""
        del on_progress
        self._waiters.submit(self._wait, on_done, "commit", spec, manifest)

    def commit_small(self, spec: UploadSpec, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """See the contract."""
        self._waiters.submit(self._wait, on_done, "commit_small", spec, data, digest)

    def commit_small_files(self, files: Sequence[WholeFile]) -> None:
        """See the contract."""
        for file in files:
            self.commit_small(file.spec, bytes(file.data), file.digest, file.on_done)

    def _wait(self, on_done: OnDone, method: str, *arguments: object) -> None:
        try:
            outcome: Published | Refusal = self.ask(method, *arguments)
        except Refusal as refusal:
            outcome = refusal
        on_done(outcome)

    def close(self) -> None:
        """See the contract."""
        self._waiters.shutdown()


class RemoteLedger(_Remote):
    """The ledger."""

    def __init__(self, store: Any) -> None:
        super().__init__(store, "ledger")

    def admit(self, specs: Sequence[UploadSpec]) -> Sequence[Refusal | None]:
        """See the contract."""
        return [refused and refused.refusal() for refused in self.ask("admit", specs)]


# processes ------------------------------------------------------------------------------------------------------------


def _run_store() -> None:
    store = Store()
    _StoreManager.register("store", callable=lambda: store)
    server = _StoreManager(("127.0.0.1", 0), AUTHENTICATION).get_server()
    print(json.dumps(server.address), flush=True)  # noqa: T201 (this is how a process says where it listens)
    _end_with_the_test()
    server.serve_forever()


def _end_with_the_test() -> None:
    """No process outlives the test that started it, however that ends: its standard input ends with it."""

    def wait() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


async def _run_node(address: str) -> None:
    _StoreManager.register("store")
    host, port = json.loads(address)
    manager = _StoreManager((host, port), AUTHENTICATION)
    manager.connect()
    store = manager.store()  # type: ignore[attr-defined]
    storage: Any = RemoteStorage(store)
    ledger: Any = RemoteLedger(store)
    settings = Settings(control_port=0, data_port=0, classic=False, drain_seconds=0.5, unsent_seconds=0.01)
    server = Server(settings, Foundation(storage, ledger, KEYS))
    await server.start()
    server.catch_signals()
    _end_with_the_test()
    print(json.dumps([server.control_address, server.data_address]), flush=True)  # noqa: T201 (as above)
    await server.run_until_stopped()


@dataclass(frozen=True)
class Node:
    """One server process."""

    process: subprocess.Popen[str]
    control_address: tuple[str, int]
    data_address: tuple[str, int]


@contextmanager
def _started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    command = [sys.executable, "-m", "tests.service.any_node", *arguments]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            yield process, json.loads(line) if line else None
        finally:
            if arguments[0] == "store":
                process.kill()
            else:
                process.terminate()
            process.wait(60)
            log = process.stderr.read()
    assert "Traceback" not in log, log


@contextmanager
def started_nodes() -> Iterator[tuple[Node, Node]]:
    """A store and two nodes on it; all of them are ended."""
    with _started("store") as (_, address):
        where = json.dumps(address)
        with _started("node", where) as (first, at), _started("node", where) as (second, also_at):
            yield (
                Node(first, tuple(at[0]), tuple(at[1])),
                Node(second, tuple(also_at[0]), tuple(also_at[1])),
            )


if __name__ == "__main__":
    if sys.argv[1] == "store":
        _run_store()
    else:
        asyncio.run(_run_node(sys.argv[2]))

"""Fixtures of the service room: a real server on loopback, with short deadlines, and the oracle that judges it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from twinport_protocol.tickets import TicketKeys
from twinport_service.config import Settings
from twinport_service.embedded import OWN_DIRECTORY
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.ledger_sqlite import SqliteLedger
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.usage import UsageBook

from tests.service.oracle import Oracle
from tests.service.raw_client import RawChannel, RawControl
from tests.service.running_server import RunningServer

SHORT_SECONDS = 0.3
HURRY_SECONDS = 1.0  # those that are in time must be so on a busy machine too
in_a_hurry = pytest.mark.parametrize("deadline_seconds", [HURRY_SECONDS], ids=["hurry"])
"""For tests of deadlines: the server of the test gives its clients one second to greet and to attach."""
KEYS = TicketKeys(bytes(range(16)), {7: bytes(range(32))}, 7)

StartServer = Callable[..., RunningServer]
MakeFoundation = Callable[[], Foundation]


def settings_for(root: Path, **changes: object) -> Settings:
    """Settings for tests: free ports, a short time to stop, no classic dialect."""
    values: dict[str, object] = {
        "root": root,
        "control_port": 0,
        "data_port": 0,
        "classic": False,
        "drain_seconds": SHORT_SECONDS,
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "local"])
def storage_kind(request: pytest.FixtureRequest) -> str:
    """What servers stand on: storage and ledger in memory, or the local disk (a tmpfs) and SQLite."""
    return str(request.param)


@pytest.fixture
def root(shm_path: Path) -> Path:
    """The directory that servers serve, made beneath one that has room for what must not be touched."""
    directory = shm_path / "root"
    directory.mkdir()
    return directory


@pytest.fixture
def make_foundation(storage_kind: str, root: Path) -> MakeFoundation:
    """Makes what a server stands on; of the local kind, one at a time."""

    def make() -> Foundation:
        usage = UsageBook()
        if storage_kind == "memory":
            return Foundation(MemoryStorage(usage=usage), MemoryLedger(usage=usage), KEYS)
        storage = LocalStorage(root, usage=usage)
        return Foundation(storage, SqliteLedger(root / OWN_DIRECTORY / "ledger.db", usage=usage), KEYS)

    return make


@pytest.fixture
def upload_id() -> Callable[[], bytes]:
    """Makes upload ids."""
    return lambda: secrets.token_bytes(16)


@pytest.fixture
def start_server(root: Path, make_foundation: MakeFoundation) -> Iterator[StartServer]:
    """Starts servers; ``changes`` are settings. All are stopped at the end."""
    with ExitStack() as stack:

        def start(foundation: Foundation | None = None, **changes: object) -> RunningServer:
            settings = settings_for(root, **changes)
            return stack.enter_context(RunningServer(settings, foundation or make_foundation()))

        yield start


@pytest.fixture
def deadline_seconds() -> float:
    """How long a client may take to greet and to attach; see ``in_a_hurry``."""
    return 60.0


@pytest.fixture
def unsent_seconds() -> float:
    """How long uploads of which nothing was sent outlive their session."""
    return 60.0


@pytest.fixture
def server(start_server: StartServer, deadline_seconds: float, unsent_seconds: float) -> RunningServer:
    """One server."""
    return start_server(
        greeting_seconds=deadline_seconds, attach_seconds=deadline_seconds, unsent_seconds=unsent_seconds
    )


@pytest.fixture
def control(server: RunningServer) -> Iterator[RawControl]:
    """A greeted control connection."""
    with RawControl(server.control_address) as client:
        yield client


@pytest.fixture
def channel(server: RunningServer) -> Iterator[RawChannel]:
    """A data connection."""
    with RawChannel(server.data_address) as client:
        yield client


@pytest.fixture
def oracle(server: RunningServer, root: Path) -> Oracle:
    """The oracle of ``server``, with a canary tree beside its root."""
    outside = root.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("passwd", "deep/.ssh"):
        (outside / name).write_bytes(os.urandom(64))
    return Oracle(server, outside)

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
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.server import Foundation
from twinport_service.storage.memory import MemoryStorage

from tests.service.oracle import Oracle
from tests.service.raw_client import RawChannel, RawControl
from tests.service.running_server import RunningServer

SHORT_SECONDS = 0.3
KEYS = TicketKeys(bytes(range(16)), {7: bytes(range(32))}, 7)

StartServer = Callable[..., RunningServer]


def short_settings(root: Path, **changes: object) -> Settings:
    """Settings for tests: free ports, deadlines of 0.3 s, no classic dialect."""
    values: dict[str, object] = {
        "root": root,
        "control_port": 0,
        "data_port": 0,
        "classic": False,
        "greeting_seconds": SHORT_SECONDS,
        "attach_seconds": SHORT_SECONDS,
        "drain_seconds": SHORT_SECONDS,
        **changes,
    }
    return Settings(**values)  # type: ignore[arg-type]


def memory_foundation() -> Foundation:
    """Storage and ledger in memory."""
    return Foundation(MemoryStorage(), MemoryLedger(), KEYS)


@pytest.fixture
def upload_id() -> Callable[[], bytes]:
    """Makes upload ids."""
    return lambda: secrets.token_bytes(16)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers with short deadlines; ``changes`` are settings. All are stopped at the end."""
    with ExitStack() as stack:

        def start(foundation: Foundation | None = None, **changes: object) -> RunningServer:
            root = tmp_path / "root"
            root.mkdir(exist_ok=True)
            settings = short_settings(root, **changes)
            return stack.enter_context(RunningServer(settings, foundation or memory_foundation()))

        yield start


@pytest.fixture
def server(start_server: StartServer) -> RunningServer:
    """One server with short deadlines."""
    return start_server()


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
def oracle(server: RunningServer, tmp_path: Path) -> Oracle:
    """The oracle of ``server``, with a canary tree beside its root."""
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for name in ("passwd", "deep/.ssh"):
        (outside / name).write_bytes(os.urandom(64))
    return Oracle(server, outside)

"""The classic dialect under the bounds of the whole server: its rate, and what the audit log learns of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader
from twinport_service.config import Settings
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import Storage
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage

from tests.service.conftest import KEYS, settings_for
from tests.service.running_server import RunningServer

from .reference_client import ReferenceClient

RATE = 256 * 1024
SIZE = 640 * 1024


def settings(root: Path, **changes: object) -> Settings:
    """A server with the classic dialect."""
    return settings_for(root, classic=True, **changes)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_a_rate_holds_and_its_wait_is_no_silence(root: Path, kind: str) -> None:
    """Both ways, with and without zero-copy, with a deadline for silence shorter than a portion's wait may be."""
    storage: Storage = MemoryStorage() if kind == "memory" else LocalStorage(root)
    content = os.urandom(SIZE)
    foundation = Foundation(storage, MemoryLedger(), KEYS)
    bounds = {"max_bytes_per_second": RATE, "stall_seconds": 0.9}
    with RunningServer(settings(root, **bounds), foundation) as server:
        with ReferenceClient(*server.control_address) as client:
            began = time.perf_counter()
            client.upload("file", content)
            up_seconds = time.perf_counter() - began
            began = time.perf_counter()
            assert client.download("file") == content
            down_seconds = time.perf_counter() - began
        server.assert_no_traceback()
    for seconds in (up_seconds, down_seconds):
        assert seconds >= 0.8 * SIZE / RATE, (up_seconds, down_seconds)


def test_a_transfer_that_waits_for_its_rate_ends_with_the_server(root: Path) -> None:
    """Nothing waits for a rate when it is to end."""
    foundation = Foundation(MemoryStorage(), MemoryLedger(), KEYS)
    with RunningServer(settings(root, max_bytes_per_second=1000), foundation) as server:
        client = ReferenceClient(*server.control_address)
        data = client.begin_upload("file", SIZE)
        data.setblocking(False)
        data.send(bytes(64 * 1024))
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive(), "it waits for the rate: ten minutes"
        data.close()
        client.control.close()


def test_transfers_are_in_the_audit_log(root: Path) -> None:
    audit = AuditLog(root.parent / "audit")
    foundation = Foundation(MemoryStorage(), MemoryLedger(), KEYS, audit=audit)
    server = RunningServer(settings(root), foundation)
    with server, ReferenceClient(*server.control_address) as client:
        client.upload("a b", b"content")
        assert client.download("a b") == b"content"
    rows = list(AuditReader(root.parent / "audit").rows())
    found = [(row["event"], row["user"], row["file"], row["size"]) for row in rows if "file" in row]
    assert found == [("upload", "anonymous", "a b", 7), ("download", "anonymous", "a b", 7)]
    assert [row["event"] for row in rows if "file" not in row] == ["start", "exposure", "stop"]
    assert all(row["session"] == 1 for row in rows if "file" in row)

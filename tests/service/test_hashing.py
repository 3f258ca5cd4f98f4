"""Files that got there by other means are hashed first: that holds up no other command, and ends with the server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import digest_of
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.disk_door import DiskDoor
from twinport_service.storage.local import LocalStorage

from tests.service.conftest import KEYS, StartServer
from tests.service.raw_client import RawControl, await_true
from tests.service.running_server import RunningServer

pytestmark = pytest.mark.parametrize("storage_kind", ["local"], indirect=True)
SESSIONS = 12
"""More than there are threads for commands."""
SIZE = 300_000


class SlowReads(DiskDoor):
    """Reads wait until they are let go, and yield a little each."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.reads = 0

    def read_into(self, descriptor: int, buffer: bytearray | memoryview, offset: int) -> int:
        """As ever."""
        self.reads += 1
        self.go.wait(20)
        return super().read_into(descriptor, memoryview(buffer)[:4096], offset)


@pytest.fixture
def door() -> SlowReads:
    """The door."""
    return SlowReads()


@pytest.fixture
def server(start_server: StartServer, root: Path, door: SlowReads) -> Iterator[RunningServer]:
    """A server on it, with a file for each session that it has not hashed."""
    storage = LocalStorage(root, door)
    for number in range(SESSIONS):
        (root / f"foreign{number}").write_bytes(os.urandom(SIZE))
    yield start_server(Foundation(storage, MemoryLedger(), KEYS))
    door.go.set()


def test_it_holds_up_no_other_command(server: RunningServer, root: Path, door: SlowReads) -> None:
    with ExitStack() as stack:
        asking = [stack.enter_context(RawControl(server.control_address)) for _ in range(SESSIONS)]
        numbers = [control.start(Verb.DOWNLOAD, f"foreign{place}") for place, control in enumerate(asking)]
        await_true(lambda: door.reads > 0)
        options = {"if-match": digest_of(b"").hex()}
        deletes = [control.start(Verb.DELETE, "foreign0", options=options) for control in asking]
        for control in asking:  # in the same session as in any other
            assert control.refused(Verb.STAT, "nothing") is ErrorCode.FILE_NOT_FOUND
        assert 1 <= door.reads <= 2, "a few at once"
        door.go.set()
        for place, (control, number, delete) in enumerate(zip(asking, numbers, deletes, strict=True)):
            answer = control.finish(number)[-1]
            assert answer.kind is ReplyKind.OK, answer
            assert answer.options["root"] == digest_of((root / f"foreign{place}").read_bytes()).hex()
            assert control.finish(delete)[-1].code is ErrorCode.CHANGED


def test_it_ends_with_the_server(server: RunningServer, door: SlowReads) -> None:
    with RawControl(server.control_address) as control:
        number = control.start(Verb.DOWNLOAD, "foreign0")
        control.start(Verb.DOWNLOAD, "foreign1")
        await_true(lambda: door.reads == 1)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        await_true(server.foundation.storage._manifests._is_stopped.is_set)  # type: ignore[attr-defined]
        door.go.set()
        replies = control.finish(number)
        assert replies[-1].code is ErrorCode.SHUTTING_DOWN
        stopping.join(60)
        assert not stopping.is_alive()
        assert door.reads == 1
    server.assert_no_traceback()

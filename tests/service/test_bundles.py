"""Bundles over sockets: each file of one is judged by itself, and nothing of a single file's promises is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import WholeFile
from twinport_service.storage.memory import MemoryStorage

from tests.service.conftest import KEYS, StartServer
from tests.service.raw_client import RawChannel, RawControl, Small, await_true
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
COMMITTED = AckStatus.COMMITTED
in_memory = pytest.mark.parametrize("storage_kind", ["memory"], indirect=True)


@pytest.fixture
def putting(control: RawControl, channel: RawChannel) -> int:
    """An attachment for uploads in bundles."""
    return channel.attach_next(control.bundle("UPLOAD"))


@pytest.fixture
def getting(control: RawControl, channel: RawChannel) -> int:
    """An attachment for downloads in bundles."""
    return channel.attach_next(control.bundle("DOWNLOAD"))


class HeldStorage(MemoryStorage):
    """Bundles wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.came = threading.Event()
        self._threads: list[threading.Thread] = []

    def commit_small_files(self, files: Sequence[WholeFile]) -> None:
        """See the contract."""

        def publish() -> None:
            self.go.wait()
            super(HeldStorage, self).commit_small_files(files)

        self._threads.append(threading.Thread(target=publish))
        self._threads[-1].start()
        self.came.set()

    def close(self) -> None:
        """See the contract."""
        self.go.set()
        for thread in self._threads:
            thread.join()
        super().close()


@pytest.fixture
def held(start_server: StartServer) -> tuple[RunningServer, HeldStorage]:
    """A server whose storage holds bundles up."""
    storage = HeldStorage()
    return start_server(Foundation(storage, MemoryLedger(), KEYS)), storage


@in_memory
def test_a_file_is_asked_for_by_its_id_while_its_bundle_is_still_under_way(
    held: tuple[RunningServer, HeldStorage],
) -> None:
    server, storage = held
    file = Small("a", b"bytes")
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as lost:
        lost.start_put_many(lost.attach_next(control.bundle("UPLOAD")), [file])
        assert storage.came.wait(30)
        lost.close()
        with RawChannel(server.data_address) as channel:
            options = {"mtime": str(file.mtime_ns)}
            again = control.upload("a", 5, file.upload_id, options)
            attachment = channel.attach_next(again.ticket)
            assert channel.put_segment(attachment, 0, b"bytes", commit=True) is ErrorCode.UPLOAD_CLOSED
            storage.go.set()
            await_true(lambda: not server.live_uploads())
            again = control.upload("a", 5, file.upload_id, options)
            assert channel.put_segment(channel.attach_next(again.ticket), 0, b"bytes", commit=True) is COMMITTED
        assert control.names() == ["a"]

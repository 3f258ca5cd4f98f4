"""A client that dies while the server commits its file: the next run waits for the outcome, and sends nothing again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from twinport_protocol.segments import MIN_SEGMENT_BYTES, Manifest
from twinport_protocol.tickets import TicketKeys
from twinport_service.config import Settings
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.contract import OnDone, OnProgress, UploadSpec
from twinport_service.storage.memory import MemoryStorage

from tests.e2e.counting_proxy import CountingProxy
from tests.e2e.processes import Run, make_file
from tests.service.running_server import RunningServer

KEYS = TicketKeys(bytes(16), {1: bytes(32)}, 1)
WAIT_SECONDS = 60.0
SIZE_BYTES = 2 * MIN_SEGMENT_BYTES + 1


class SlowStorage(MemoryStorage):
    """Publishes large files only once it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.allowed = threading.Event()
        self.commits: list[threading.Thread] = []

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """See the contract."""

        def publish() -> None:
            assert self.allowed.wait(WAIT_SECONDS)
            MemoryStorage.commit(self, spec, manifest, on_done, on_progress)

        thread = threading.Thread(target=publish)
        self.commits.append(thread)
        thread.start()
        self.asked.set()


@pytest.mark.parametrize("is_same", [True, False])
def test_a_run_during_the_commit_of_the_one_before(tmp_path: Path, is_same: bool) -> None:
    storage = SlowStorage()
    settings = Settings(root=tmp_path / "root", control_port=0, data_port=0, classic=False)
    source = tmp_path / "source"
    make_file(source, SIZE_BYTES, 1)
    with RunningServer(settings, Foundation(storage, MemoryLedger(), KEYS)) as server:
        ports = server.control_address[1], server.data_address[1]
        with CountingProxy(*ports) as proxy:
            first_tally = proxy.begin()
            first = Run(proxy.host, ["-q", "put", str(source)], tmp_path)
            assert storage.asked.wait(WAIT_SECONDS), first.output
            first.kill()
            proxy.wait_until_quiet(first_tally)
            assert first_tally.put_bytes == SIZE_BYTES
            if not is_same:
                make_file(source, SIZE_BYTES, 2)

            tally = proxy.begin()
            second = Run(proxy.host, ["-q", "put", str(source)], tmp_path)
            assert proxy.wait_until(lambda: any(b" resume=" in line for line in tally.control_lines)), second.output
            storage.allowed.set()
            second.succeed()
            proxy.wait_until_quiet(tally)
            assert tally.put_bytes == (0 if is_same else SIZE_BYTES)
            Run(proxy.host, ["-q", "get", "source", "-o", "copy"], tmp_path).succeed()
        for commit in storage.commits:
            commit.join(WAIT_SECONDS)
        assert not server.live_uploads()
        assert not server.staged_uploads()
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    server.assert_no_traceback()

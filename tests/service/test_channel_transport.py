"""How payloads reach the socket: from the file by the kernel for other machines, through a buffer on this one."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from twinport_protocol.segments import MIN_SEGMENT_BYTES
from twinport_service import channel_transport
from twinport_service.buffers import LARGE_AT_ONCE

from tests.service.conftest import StartServer
from tests.service.raw_client import RawChannel, RawControl, await_true, fetch_file, send_file

TWO_SEGMENTS = MIN_SEGMENT_BYTES + 1000


@pytest.mark.parametrize("is_near", [True, False], ids=["near", "far"])
@pytest.mark.parametrize("rate", [0, 50_000_000])
def test_large_files_come_back_whole(
    start_server: StartServer,
    storage_kind: str,
    upload_id: Callable[[], bytes],
    monkeypatch: pytest.MonkeyPatch,
    is_near: bool,
    rate: int,
) -> None:
    by_kernel: list[int] = []
    sendfile = os.sendfile

    def watched(sock: int, file: int, offset: int, count: int) -> int:
        by_kernel.append(count)
        return sendfile(sock, file, offset, count)

    monkeypatch.setattr(os, "sendfile", watched)
    monkeypatch.setattr(channel_transport, "is_local", lambda sock: is_near)
    running = start_server(max_bytes_per_second=rate)
    data = os.urandom(TWO_SEGMENTS)
    with RawControl(running.control_address) as control, RawChannel(running.data_address) as channel:
        send_file(control, channel, "x", data, upload_id())
        assert fetch_file(control, channel, "x") == data
        assert fetch_file(control, channel, "x") == data, "once more over the same connection"
        if storage_kind == "local":
            assert bool(by_kernel) is not is_near
        pool = running.server._channels._pool
        await_true(lambda: pool._left == LARGE_AT_ONCE, what="the return of all borrowed buffers")

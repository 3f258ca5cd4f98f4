"""What a server has written into its audit log after raw clients have done what they did."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader

from tests.service.conftest import MakeFoundation, StartServer
from tests.service.raw_client import RawChannel, RawControl, send_file
from tests.service.running_server import RunningServer

MakeId = Callable[[], bytes]
Rows = Callable[[], list[Mapping[str, Any]]]


@pytest.fixture
def audit(shm_path: Path) -> AuditLog:
    """The log."""
    return AuditLog(shm_path / "audit")


@pytest.fixture
def server(start_server: StartServer, make_foundation: MakeFoundation, audit: AuditLog) -> RunningServer:
    """One server that writes it."""
    return start_server(replace(make_foundation(), audit=audit))


@pytest.fixture
def rows(audit: AuditLog, shm_path: Path) -> Rows:
    """What is written by now, but for what the server says of itself."""

    def read() -> list[Mapping[str, Any]]:
        assert audit.flush()
        ours = ("start", "stop", "exposure")
        return [row for row in AuditReader(shm_path / "audit").rows() if row["event"] not in ours]

    return read


def test_what_changes_nothing_has_no_line(
    control: RawControl, channel: RawChannel, upload_id: MakeId, rows: Rows
) -> None:
    send_file(control, channel, "a", b"x", upload_id())
    for _ in range(3):
        assert control.refused(Verb.MKDIR, "d/e") is None
        assert control.refused(Verb.MKDIR, "d") is None
        assert control.refused(Verb.MOVE, "a", "a") is None
    assert [(row["event"], row["file"]) for row in rows()] == [("upload", "a"), ("mkdir", "d/e")]


@pytest.mark.parametrize("size", [10, MIN_SEGMENT_BYTES + 1])
def test_an_upload_committed_again_and_again_has_one_line(
    control: RawControl, channel: RawChannel, upload_id: MakeId, rows: Rows, size: int
) -> None:
    mine, data = upload_id(), os.urandom(size)
    send_file(control, channel, "a", data, mine)
    (line,) = rows()
    assert (line["event"], line["file"], line["size"]) == ("upload", "a", size)
    for _ in range(5):
        options = {"generation": "1", "root": line["root"]}
        assert control.ask(Verb.COMMIT, mine.hex(), options=options).kind is ReplyKind.DONE
    assert rows() == [line]


def test_a_small_file_sent_again_under_its_id_has_one_line(
    control: RawControl, channel: RawChannel, upload_id: MakeId, rows: Rows
) -> None:
    mine = upload_id()
    for _ in range(3):
        send_file(control, channel, "a", b"the same", mine)
    assert [row["event"] for row in rows()] == ["upload"]

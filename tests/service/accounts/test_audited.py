"""What is written into the audit log of logins, and of those who may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import ReplyKind, Verb
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader

from tests.service.accounts.conftest import PASSWORD, StartWithAccounts
from tests.service.raw_client import RawControl

Add = Callable[..., None]
RIGHT = {"user": "alice", "password": PASSWORD}


Rows = Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture
def audit(shm_path: Path) -> AuditLog:
    """The log."""
    return AuditLog(shm_path / "audit")


@pytest.fixture
def rows(audit: AuditLog, shm_path: Path) -> Rows:
    """User, outcome, what and session of each line of an event."""

    def read(event: str) -> list[tuple[Any, ...]]:
        assert audit.flush()
        found = (row for row in AuditReader(shm_path / "audit").rows() if row["event"] == event)
        return [(row.get("user"), row["outcome"], row.get("what"), row.get("session")) for row in found]

    return read


def test_a_login_that_finds_no_place_is_no_login(
    start_with_accounts: StartWithAccounts, add: Add, audit: AuditLog, rows: Rows
) -> None:
    add("alice")
    server = start_with_accounts(audit=audit, max_sessions_per_user=1)
    with RawControl(server.control_address) as first, RawControl(server.control_address) as second:
        assert first.ask(Verb.LOGIN, "password", options=RIGHT).kind is ReplyKind.OK
        assert second.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.BUSY
        assert rows("login") == [("alice", "ok", None, 1), ("alice", "Busy", None, 2)]
    server.assert_no_traceback()

"""What is written into the audit log of logins, and of those who may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import COMMIT, LAST, FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import digest_of
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.grants import parse_grant
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader

from tests.service.accounts.conftest import PASSWORD, StartWithAccounts
from tests.service.conftest import MakeFoundation, StartServer
from tests.service.raw_client import RawChannel, RawControl, await_true, send_file

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


def test_who_is_refused_before_a_login_is_there(
    start_with_accounts: StartWithAccounts, add: Add, audit: AuditLog, rows: Rows
) -> None:
    add("alice")
    server = start_with_accounts(audit=audit)
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.LIST) is ErrorCode.LOGIN_REQUIRED
    assert rows("refusal") == [("anonymous", "LoginRequired", "LIST", 1)]


def test_a_login_in_plaintext_from_elsewhere_is_there(
    start_with_accounts: StartWithAccounts,
    add: Add,
    audit: AuditLog,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add("alice")
    monkeypatch.setattr("twinport_service.login_gate.is_loopback", lambda peer: False)
    server = start_with_accounts(audit=audit)
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.TLS_REQUIRED
    assert rows("refusal") == [("anonymous", "TlsRequired", "LOGIN", 1)]
    assert not rows("login")


def test_what_a_channel_is_refused_is_there(
    start_with_accounts: StartWithAccounts,
    add: Add,
    database: AccountDatabase,
    audit: AuditLog,
    rows: Rows,
) -> None:
    add("alice", home=None, grants=(parse_grant("drop/**", ["write"]),))
    server = start_with_accounts(audit=audit)
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        assert control.ask(Verb.LOGIN, "password", options=RIGHT).kind is ReplyKind.OK
        opened = control.upload("drop/a", 4, bytes(16))
        forged = opened.ticket[:-1] + bytes([opened.ticket[-1] ^ 1])
        channel.attach(forged, 1)
        assert channel.answer().code is ErrorCode.TICKET_INVALID
        channel.attach(opened.ticket, 2)
        database.remove_grant("alice", "drop/**")
        await_true(lambda: control.refused(Verb.MKDIR, "drop/d") is ErrorCode.DENIED, what="the change")
        seen = len(rows("refusal"))
        channel.put(2, 0, 0, b"data", LAST | COMMIT, digest_of(b"data"))
        channel.answer()
        channel.attach(opened.ticket, 3)
        assert channel.answer().code is ErrorCode.DENIED
    found = [row[:3] for row in rows("refusal")]
    assert found[0] == (None, "TicketInvalid", "ATTACH")
    assert found[seen:] == [("alice", "Denied", "PUT"), ("alice", "Denied", "ATTACH")]
    server.assert_no_traceback()


@pytest.mark.parametrize("frame", [FrameType.GET, FrameType.MANIFEST])
def test_what_may_not_be_read_any_more_is_there(
    start_with_accounts: StartWithAccounts,
    add: Add,
    database: AccountDatabase,
    audit: AuditLog,
    rows: Rows,
    frame: FrameType,
) -> None:
    add("alice", grants=(parse_grant("box/**", ["read", "write"]),))
    server = start_with_accounts(audit=audit)
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        assert control.ask(Verb.LOGIN, "password", options=RIGHT).kind is ReplyKind.OK
        send_file(control, channel, "box/a", b"data", bytes(16))
        version = control.download("box/a")
        database.remove_grant("alice", "box/**")
        await_true(lambda: control.refused(Verb.DOWNLOAD, "box/a") is ErrorCode.DENIED, what="the change")
        seen = len(rows("refusal"))
        channel.attach(version.ticket, 9)
        if frame is FrameType.GET:
            channel.get(9, 0, 0, 4)
        else:
            channel.frame(frame, 9)
        assert channel.answer().code is ErrorCode.DENIED
    assert [row[:3] for row in rows("refusal")[seen:]] == [("alice", "Denied", frame.name)]
    server.assert_no_traceback()


def test_a_login_where_there_are_no_accounts_is_there(
    start_server: StartServer, make_foundation: MakeFoundation, audit: AuditLog, rows: Rows
) -> None:
    server = start_server(replace(make_foundation(), audit=audit))
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.LOGIN_FAILED
    assert rows("refusal") == [("anonymous", "LoginFailed", "LOGIN", 1)]

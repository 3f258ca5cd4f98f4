"""Sessions of those who have logged in, and of those who have not: how many there may be, and who leaves first."""

from __future__ import annotations

import select
from collections.abc import Callable
from contextlib import ExitStack

from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import ReplyKind, Verb

from tests.service.accounts.conftest import PASSWORD, StartWithAccounts
from tests.service.raw_client import RawControl, await_true

Add = Callable[..., None]
RIGHT = {"user": "alice", "password": PASSWORD}


def test_who_keeps_sessions_open_without_logging_in_loses_them_to_who_does(
    start_with_accounts: StartWithAccounts, add: Add
) -> None:
    add("alice")
    server = start_with_accounts(max_unauthenticated=20, login_delays=False, login_seconds=600.0)
    guards = server.server._guards
    with ExitStack() as stack:
        idle = [stack.enter_context(RawControl(server.control_address)) for _ in range(100)]
        assert guards.sessions.unproved_count <= 20
        client = stack.enter_context(RawControl(server.control_address))
        assert client.ask(Verb.LOGIN, "password", options=RIGHT).kind is ReplyKind.OK
        more = [stack.enter_context(RawControl(server.control_address)) for _ in range(100)]
        assert client.ask(Verb.PING).kind is ReplyKind.OK, "who has logged in stays"
        readable, _, _ = select.select([each.sock for each in idle], [], [], 30)
        gone = next(each for each in idle if each.sock in readable)
        told = gone.reply()
        assert (told.id, told.code, told.retry_seconds) == (0, ErrorCode.BUSY, 1)
        assert gone.is_closed()
        assert len(more) == 100
    await_true(lambda: guards.sessions.count == 0, what="the end of all sessions")
    assert guards.sessions.table_size == 0
    server.assert_no_traceback()


def test_a_user_has_a_number_of_sessions(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    add("bob")
    server = start_with_accounts(max_sessions_per_user=2)
    with ExitStack() as stack:
        clients = [stack.enter_context(RawControl(server.control_address)) for _ in range(3)]
        for client in clients[:2]:
            assert client.ask(Verb.LOGIN, "password", options=RIGHT).kind is ReplyKind.OK
        refused = clients[2].ask(Verb.LOGIN, "password", options=RIGHT)
        assert (refused.code, refused.retry_seconds) == (ErrorCode.BUSY, 5)
        assert clients[2].refused(Verb.LIST) is ErrorCode.LOGIN_REQUIRED, "it is not half logged in"
        assert clients[2].ask(Verb.LOGIN, "password", options={**RIGHT, "user": "bob"}).kind is ReplyKind.OK
        clients[0].close()
        await_true(lambda: server.session_count == 2, what="a place")
        with RawControl(server.control_address) as again:
            assert again.ask(Verb.LOGIN, "password", options=RIGHT).kind is ReplyKind.OK
    assert "too many of one user" in server.log.getvalue()
    server.assert_no_traceback()

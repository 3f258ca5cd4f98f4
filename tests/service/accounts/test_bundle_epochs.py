"""What a ticket for bundles allows, and how it ends with what its user may do."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from twinport_protocol.bundles import FetchedFile, decode_fetched
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus, FrameType
from twinport_protocol.messages import Verb
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.grants import parse_grant
from twinport_service.accounts.records import Key
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader

from tests.service.accounts.conftest import PASSWORD, StartWithAccounts
from tests.service.accounts.test_ticket_epochs import ENDINGS, HARMLESS, Change, log_in
from tests.service.raw_client import ClosedError, RawChannel, RawControl, Small, await_true
from tests.service.running_server import RunningServer

Add = Callable[..., None]
Rows = Callable[[], list[Mapping[str, Any]]]
COMMITTED = AckStatus.COMMITTED
FILE_BYTES = 64 * 1024


@pytest.fixture
def audit(shm_path: Path) -> AuditLog:
    return AuditLog(shm_path / "audit")


@pytest.fixture
def server(start_with_accounts: StartWithAccounts, add: Add, audit: AuditLog) -> RunningServer:
    """With alice, who may also read what is shared, bob, who may write there, and carol, who may nothing."""
    add("alice", keys=(Key(b"a key"),), grants=(parse_grant("shared/**", ["read", "list"]),))
    add("bob", grants=(parse_grant("shared/**", ["write"]),))
    add("carol", home=None)
    return start_with_accounts(login_delays=False, audit=audit)


@pytest.fixture
def rows(audit: AuditLog, shm_path: Path) -> Rows:
    """The refusals that are written by now."""

    def read() -> list[Mapping[str, Any]]:
        assert audit.flush()
        return [row for row in AuditReader(shm_path / "audit").rows() if row["event"] == "refusal"]

    return read


def attach_both(control: RawControl, channel: RawChannel) -> tuple[int, int]:
    """Attachments for uploads and downloads in bundles."""
    return channel.attach_next(control.bundle("UPLOAD")), channel.attach_next(control.bundle("DOWNLOAD"))


def is_back(server: RunningServer) -> bool:
    """Whether alice may log in, again or still."""
    with RawControl(server.control_address) as control:
        return control.ask(Verb.LOGIN, "password", options={"user": "alice", "password": PASSWORD}).code is None


def test_each_name_is_judged_by_the_users_grants(server: RunningServer, rows: Rows) -> None:
    denied = ErrorCode.DENIED
    with log_in(server) as alice, log_in(server, "bob") as bob, RawChannel(server.data_address) as channel:
        with RawChannel(server.data_address) as his:
            files = [Small("shared/x", b"x"), Small("bob/y", b"y")]
            assert his.put_many(his.attach_next(bob.bundle("UPLOAD")), files) == [COMMITTED] * 2
            assert his.get_many(his.attach_next(bob.bundle("DOWNLOAD")), ["shared/x", "bob/y"]) == [denied, b"y"]
            # A ticket of hers on his channel.
            number = his.attach_next(alice.bundle("UPLOAD"))
            assert his.put_many(number, [Small("alice/z", b"z")]) == [denied]
        putting, getting = attach_both(alice, channel)
        files = [Small("alice/a", b"a"), Small("shared/a", b"a"), Small("bob/\u202ea", b"a"), Small("alice/b", b"b")]
        assert channel.put_many(putting, files) == [COMMITTED, denied, denied, COMMITTED]
        names = ["bob/y", "shared/x", "alice/a", "bob/nothing", "alice/nothing"]
        assert channel.get_many(getting, names) == [denied, b"x", b"a", denied, ErrorCode.FILE_NOT_FOUND]
        # An id that has published somebody else's file is of no use.
        assert channel.put_many(putting, [Small("alice/y", b"y", files[0].upload_id)]) == [denied]
    refusals = [(row["user"], row.get("file"), row["what"]) for row in rows() if row["outcome"] == "Denied"]
    assert ("alice", "shared/a", "PUT_MANY") in refusals
    assert ("alice", "bob/y", "GET_MANY") in refusals
    assert any(what == "PUT_MANY" and file and "a" in file and "\u202e" not in repr(file) for _, file, what in refusals)
    server.assert_no_traceback()


@pytest.mark.parametrize("change", ENDINGS.values(), ids=ENDINGS)
def test_a_ticket_ends_with_its_users_logins_between_two_bundles(
    server: RunningServer, database: AccountDatabase, rows: Rows, change: Change
) -> None:
    revoked = ErrorCode.TICKET_REVOKED
    with log_in(server) as alice, log_in(server, "bob") as bob, RawChannel(server.data_address) as channel:
        putting, getting = attach_both(alice, channel)
        assert channel.put_many(putting, [Small("alice/a", b"a")]) == [COMMITTED]
        ticket = alice.bundle("UPLOAD")
        with RawChannel(server.data_address) as his:
            bobs = his.attach_next(bob.bundle("UPLOAD"))
            change(database)
            failed = [channel.answer(), channel.answer()]
            assert {(answer.type, answer.attachment) for answer in failed} == {
                (FrameType.FAIL, putting),
                (FrameType.FAIL, getting),
            }
            # Denied where the server looked in between, when she was disabled or gone for a moment.
            codes = {answer.code for answer in failed}
            assert codes in ({revoked}, {ErrorCode.DENIED})
            assert set(channel.put_many(putting, [Small("alice/b", b"b"), Small("../c", b"c")])) == codes
            assert set(channel.get_many(getting, ["alice/a", "alice/b"])) == codes
            await_true(lambda: is_back(server))
            channel.attach(ticket, 1)
            assert channel.answer().code is revoked
            assert his.put_many(bobs, [Small("bob/b", b"b")]) == [COMMITTED]
        with log_in(server) as again:
            assert again.names("alice") == ["alice/a"]
            assert channel.put_many(channel.attach_next(again.bundle("UPLOAD")), [Small("alice/b", b"")]) == [COMMITTED]
    refusals = [row["what"] for row in rows() if row["outcome"] in ("TicketRevoked", "Denied")]
    assert refusals.count("PUT") == refusals.count("GET") == 1
    assert "ATTACH" in refusals


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_nothing_else_ends_it(server: RunningServer, database: AccountDatabase, change: Change) -> None:
    with log_in(server) as alice, RawChannel(server.data_address) as channel:
        putting, getting = attach_both(alice, channel)
        change(database)
        accounts = server.foundation.accounts
        assert accounts is not None
        await_true(lambda: accounts.revision > 0)
        assert channel.put_many(putting, [Small("alice/a", b"a")]) == [COMMITTED]
        assert channel.get_many(getting, ["alice/a"]) == [b"a"]


@pytest.mark.parametrize("ending", ["disabled", "removed"])
def test_it_ends_with_the_account(server: RunningServer, database: AccountDatabase, ending: str) -> None:
    with log_in(server) as alice, RawChannel(server.data_address) as channel:
        putting, getting = attach_both(alice, channel)
        if ending == "disabled":
            database.set_disabled("alice", True)
        else:
            database.remove("alice")
        assert {channel.answer().code, channel.answer().code} == {ErrorCode.DENIED}
        assert channel.put_many(putting, [Small("alice/a", b"a")]) == [ErrorCode.DENIED]
        assert channel.get_many(getting, ["alice/a"]) == [ErrorCode.DENIED]


def test_a_grant_that_is_taken_away_ends_what_is_done_by_it_alone(
    server: RunningServer, database: AccountDatabase
) -> None:
    with log_in(server) as alice, log_in(server, "bob") as bob, RawChannel(server.data_address) as channel:
        with RawChannel(server.data_address) as his:
            assert his.put_many(his.attach_next(bob.bundle("UPLOAD")), [Small("shared/x", b"x")]) == [COMMITTED]
        putting, getting = attach_both(alice, channel)
        assert channel.put_many(putting, [Small("alice/a", b"a")]) == [COMMITTED]
        assert channel.get_many(getting, ["shared/x", "alice/a"]) == [b"x", b"a"]
        database.remove_grant("alice", "shared/**")
        await_true(lambda: alice.refused(Verb.STAT, "shared/x") is ErrorCode.DENIED)
        assert channel.get_many(getting, ["shared/x", "alice/a"]) == [ErrorCode.DENIED, b"a"]


def fill_home(server: RunningServer, alice: RawControl, names: list[str]) -> dict[str, bytes]:
    """Files of hers, more than any socket holds."""
    data = {name: os.urandom(FILE_BYTES) for name in names}
    with RawChannel(server.data_address) as channel:
        putting = channel.attach_next(alice.bundle("UPLOAD"))
        for start in range(0, len(names), 10):
            files = [Small(name, data[name]) for name in names[start : start + 10]]
            assert channel.put_many(putting, files) == [COMMITTED] * 10
    await_true(lambda: server.channel_count == 0)
    return data


@pytest.mark.parametrize("ending", ["password", "disabled"])
def test_it_ends_in_the_middle_of_an_answer(server: RunningServer, database: AccountDatabase, ending: str) -> None:
    names = [f"alice/{number}" for number in range(100)]
    found: list[FetchedFile] = []
    with log_in(server) as alice:
        data = fill_home(server, alice, names)
        with RawChannel(server.data_address, receive_buffer=4096) as slow:
            getting = slow.attach_next(alice.bundle("DOWNLOAD"))
            slow.start_get_many(getting, names, 100 * FILE_BYTES)
            slow.sock.recv(1, socket.MSG_PEEK)  # it is served; nobody takes more
            if ending == "password":
                database.set_password("alice", None)
            else:
                database.set_disabled("alice", True)
            accounts = server.foundation.accounts
            assert accounts is not None
            await_true(lambda: accounts.revision > 0)
            with suppress(ClosedError):  # where this machine is too busy to read on within a second
                while len(found) < 100:
                    answer = slow.answer()
                    found += decode_fetched(answer.body) if answer.type is FrameType.FILES else ()
    code = ErrorCode.TICKET_REVOKED if ending == "password" else ErrorCode.DENIED
    sent = [file for file in found if not file.status]
    assert [bytes(file.data) for file in sent] == [data[name] for name in names[: len(sent)]]
    assert len(sent) < 100
    assert {file.status for file in found[len(sent) :]} <= {code.number}


def test_who_takes_nothing_of_an_answer_is_cut(server: RunningServer, database: AccountDatabase) -> None:
    names = [f"alice/{number}" for number in range(100)]
    with log_in(server) as alice:
        fill_home(server, alice, names)
        with RawChannel(server.data_address, receive_buffer=4096) as deaf:
            getting = deaf.attach_next(alice.bundle("DOWNLOAD"))
            for serial in range(4):
                deaf.start_get_many(getting, names, 100 * FILE_BYTES, serial)
            deaf.sock.recv(1)  # it is served
            time.sleep(0.5)  # until nothing moves any more
            assert server.channel_count == 1
            database.set_disabled("alice", True)
            await_true(lambda: server.channel_count == 0, within_seconds=20.0, what="the cut")
    assert "[CHANNEL] Cut" in server.log.getvalue()


def test_whoever_may_do_nothing_gets_no_ticket(server: RunningServer) -> None:
    with RawControl(server.control_address) as nobody:
        assert nobody.refused(Verb.BUNDLE, "UPLOAD") is ErrorCode.LOGIN_REQUIRED
    with log_in(server, "carol") as carol:
        assert carol.refused(Verb.BUNDLE, "DOWNLOAD") is ErrorCode.DENIED

"""A ticket, and what was attached with it, ends with what ends the logins of its user; and with nothing else."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import LAST, AckStatus, FrameType
from twinport_protocol.messages import ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES, digest_of
from twinport_protocol.tickets import decode_ticket, encode_ticket
from twinport_service.access import ANONYMOUS
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.grants import parse_grant
from twinport_service.accounts.records import Account, Key, mark_of
from twinport_service.accounts.store import FILE_NAME, AccountStore
from twinport_service.accounts.tokens import make_token
from twinport_service.audit import AuditLog
from twinport_service.audit_reader import AuditReader
from twinport_service.embedded import OWN_DIRECTORY, open_foundation
from twinport_service.quota import Quota
from twinport_service.storage.contract import SMALL_BYTES

from tests.service.accounts.conftest import PASSWORD, StartWithAccounts
from tests.service.conftest import KEYS, settings_for
from tests.service.raw_client import RawChannel, RawControl, await_true, send_file
from tests.service.running_server import RunningServer

Add = Callable[..., None]
MakeId = Callable[[], bytes]
Change = Callable[[AccountDatabase], None]
SIZE = SMALL_BYTES + 1000
DATA = os.urandom(SIZE)
HALF = SIZE // 2


def log_in(server: RunningServer, user: str = "alice", password: str = PASSWORD) -> RawControl:
    control = RawControl(server.control_address)
    reply = control.ask(Verb.LOGIN, "password", options={"user": user, "password": password})
    if reply.kind is not ReplyKind.OK:
        control.close()
        raise AssertionError(reply)
    return control


def disable_and_enable(database: AccountDatabase) -> None:
    database.set_disabled("alice", True)
    database.set_disabled("alice", False)


def make_anew(database: AccountDatabase) -> None:
    password_hash = database.load().accounts["alice"].password_hash
    database.remove("alice")
    database.add(Account("alice", time.time(), password_hash, home="alice"))


ENDINGS: dict[str, Change] = {
    "another password": lambda database: database.set_password(
        "alice", database.load().accounts["alice"].password_hash
    ),
    "disabled and enabled": disable_and_enable,
    "a key taken away": lambda database: database.remove_key("alice", b"a key"),
    "made anew": make_anew,
}
HARMLESS: dict[str, Change] = {
    "a key": lambda database: database.add_key("alice", Key(b"another key")),
    "a token": lambda database: database.add_token(make_token("alice", "", 1.0)[1]),
    "a grant": lambda database: database.put_grant("alice", parse_grant("shared/**", ["list"])),
    "bounds": lambda database: database.set_bounds("alice", Quota(10**9, 1000), 10**9),
    "another user's password": lambda database: database.set_password("bob", None),
    "another user": lambda database: database.remove("bob"),
}


@pytest.fixture
def server(start_with_accounts: StartWithAccounts, add: Add) -> RunningServer:
    """With alice and bob."""
    add("alice", keys=(Key(b"a key"),))
    add("bob")
    return start_with_accounts(login_delays=False)


@pytest.mark.parametrize("change", ENDINGS.values(), ids=ENDINGS)
def test_a_ticket_ends_with_its_users_logins_and_a_new_login_renews_it(
    server: RunningServer, database: AccountDatabase, upload_id: MakeId, change: Change
) -> None:
    with log_in(server) as control, log_in(server, "bob") as bob:
        upload, bobs = control.upload("alice/x", SIZE, upload_id()), bob.upload("bob/x", SIZE, upload_id())
        change(database)
        # Said to a session that asks for nothing, and at once.
        told = control.reply()
        assert (told.id, told.code) == (0, ErrorCode.LOGIN_REQUIRED)
        assert control.is_closed()
        with RawChannel(server.data_address) as channel, log_in(server) as again:
            channel.attach(upload.ticket, 1)
            answer = channel.answer()
            assert (answer.type, answer.attachment, answer.code) == (FrameType.FAIL, 1, ErrorCode.TICKET_REVOKED)
            assert channel.put_segment(1, 0, DATA, commit=True) is ErrorCode.TICKET_REVOKED
            with RawChannel(server.data_address) as his:
                his.attach(bobs.ticket, 1)
                assert his.put_segment(1, 0, DATA, commit=True) is AckStatus.COMMITTED
            renewed = again.ask(Verb.RENEW, encode_ticket(upload.ticket))
            assert renewed.kind is ReplyKind.OK, renewed
            channel.attach(decode_ticket(renewed.options["ticket"]), 3)
            assert channel.put_segment(3, 0, DATA, commit=True) is AckStatus.COMMITTED
        assert bob.ask(Verb.PING).kind is ReplyKind.OK
    server.assert_no_traceback()


def test_a_ticket_is_of_the_login_that_asked_for_it(
    server: RunningServer, database: AccountDatabase, upload_id: MakeId, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = database.load().accounts["alice"]
    with log_in(server) as control:
        ticket = KEYS.verify(control.upload("alice/x", 1, upload_id()).ticket, time.time())
        assert ticket.epoch == mark_of(account.epoch) != 0
        # As if the session was let through a moment before the change was seen: it gets no ticket of the new epoch.
        monkeypatch.setattr("twinport_service.login_gate.LoginGate.is_stale", False)
        database.set_password("alice", account.password_hash)
        await_true(lambda: server.foundation.accounts is not None and server.foundation.accounts.revision > 0)
        late = control.upload("alice/y", 1, upload_id())
        assert KEYS.verify(late.ticket, time.time()).epoch == ticket.epoch
        with RawChannel(server.data_address) as channel:
            channel.attach(late.ticket)
            assert channel.answer().code is ErrorCode.TICKET_REVOKED


@pytest.mark.parametrize("change", ENDINGS.values(), ids=ENDINGS)
def test_what_was_attached_ends_within_a_second_in_the_middle_of_a_piece_too(
    server: RunningServer, database: AccountDatabase, upload_id: MakeId, change: Change
) -> None:
    with log_in(server) as control, RawChannel(server.data_address) as channel:
        upload = control.upload("alice/x", SIZE, upload_id())
        channel.attach(upload.ticket, 1)
        channel.put(1, 0, 0, DATA[:HALF])
        assert channel.acknowledged() is AckStatus.RECEIVED
        channel.frame(FrameType.PUT, 1, 0, HALF, SIZE - HALF, LAST, DATA[HALF:-100])
        began = time.monotonic()
        change(database)
        answer = channel.answer()  # nothing was sent meanwhile
        took_seconds = time.monotonic() - began
        assert (answer.type, answer.attachment, answer.code) == (FrameType.FAIL, 1, ErrorCode.TICKET_REVOKED)
        assert took_seconds < 30.0, "a second, on a machine that has nothing else to do"
        channel.send(DATA[-100:], digest_of(DATA))
        assert channel.acknowledged() is ErrorCode.TICKET_REVOKED
        assert channel.have(1) is ErrorCode.TICKET_REVOKED
        with log_in(server) as again:
            channel.detach(1)
            channel.attach(again.resume("alice/x", SIZE, upload.upload_id).ticket, 1)
            known = channel.have(1)
            assert isinstance(known, list), known
            (held,) = known
            assert HALF <= held.length < SIZE
            assert held.digest == digest_of(DATA[: held.length])
            assert channel.put_segment(1, 0, DATA, start=held.length, commit=True) is AckStatus.COMMITTED
    server.assert_no_traceback()


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_nothing_else_ends_anything(
    server: RunningServer, database: AccountDatabase, upload_id: MakeId, change: Change
) -> None:
    accounts = server.foundation.accounts
    assert accounts is not None
    with log_in(server) as control, RawChannel(server.data_address) as channel:
        first, second = (control.upload(name, SIZE, upload_id()) for name in ("alice/x", "alice/y"))
        channel.attach(first.ticket, 1)
        channel.put(1, 0, 0, DATA[:HALF])
        assert channel.acknowledged() is AckStatus.RECEIVED
        change(database)
        await_true(lambda: accounts.revision > 0, what="the change")
        channel.attach(second.ticket, 2)
        assert channel.put_segment(2, 0, DATA, commit=True) is AckStatus.COMMITTED
        channel.put(1, 0, HALF, DATA[HALF:], LAST, digest_of(DATA))
        answer = channel.answer()
        assert (answer.type, answer.code, answer.status) == (FrameType.ACK, None, AckStatus.SEALED)
        assert control.ask(Verb.PING).kind is ReplyKind.OK


@pytest.mark.parametrize("change", ["disabled", "removed"])
def test_what_a_disabled_or_removed_user_attached_ends(
    server: RunningServer, database: AccountDatabase, upload_id: MakeId, change: str
) -> None:
    with (
        log_in(server) as control,
        log_in(server, "bob") as bob,
        RawChannel(server.data_address) as channel,
        RawChannel(server.data_address) as his,
    ):
        send_file(control, channel, "alice/x", DATA, upload_id())
        channel.attach(control.upload("alice/y", SIZE, upload_id()).ticket, 1)
        channel.attach(control.download("alice/x").ticket, 2)
        channel.attach(control.download("alice/x").ticket, 3)
        his.attach(bob.upload("bob/y", SIZE, upload_id()).ticket, 1)
        his.put(1, 0, 0, DATA[:HALF])
        assert his.acknowledged() is AckStatus.RECEIVED
        assert channel.get_all(3, 0, 0, 10) == DATA[:10]
        if change == "disabled":
            database.set_disabled("alice", True)
        else:
            database.remove("alice")
        ended = [channel.answer() for _ in range(3)]
        assert {answer.type for answer in ended} == {FrameType.FAIL}
        assert {answer.code for answer in ended} == {ErrorCode.DENIED}
        assert {answer.attachment for answer in ended} == {1, 2, 3}
        assert channel.put_segment(1, 0, DATA) is ErrorCode.DENIED
        channel.get(3, 0, 0, 10)
        assert channel.answer().code is ErrorCode.DENIED
        his.put(1, 0, HALF, DATA[HALF:], LAST, digest_of(DATA))
        assert his.acknowledged() is AckStatus.SEALED, "others go on"
    server.assert_no_traceback()


def test_an_upload_ends_with_the_grant_of_its_name(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId, shm_path: Path
) -> None:
    add("alice", grants=(parse_grant("shared/**", ["write"]),))
    with AuditLogOf(shm_path / "audit") as audit:
        server = start_with_accounts(audit=audit.log)
        with log_in(server) as control, RawChannel(server.data_address) as channel:
            for number, name in enumerate(("shared/x", "alice/x"), 1):
                channel.attach(control.upload(name, SIZE, upload_id()).ticket, number)
                channel.put(number, 0, 0, DATA[:HALF])
                assert channel.acknowledged() is AckStatus.RECEIVED
            database.remove_grant("alice", "shared/**")
            answer = channel.answer()
            assert (answer.type, answer.attachment, answer.code) == (FrameType.FAIL, 1, ErrorCode.DENIED)
            channel.put(1, 0, HALF, DATA[HALF:], LAST, digest_of(DATA))
            assert channel.acknowledged() is ErrorCode.DENIED
            channel.put(2, 0, HALF, DATA[HALF:], LAST, digest_of(DATA))
            assert channel.acknowledged() is AckStatus.SEALED
            assert control.ask(Verb.PING).kind is ReplyKind.OK, "a grant ends no login"
        assert audit.refusals() == [("alice", "shared/x", "Denied", "PUT")]


def test_a_revoked_ticket_is_in_the_audit_log(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId, shm_path: Path
) -> None:
    add("alice")
    with AuditLogOf(shm_path / "audit") as audit:
        server = start_with_accounts(audit=audit.log)
        with log_in(server) as control, RawChannel(server.data_address) as channel:
            tickets = [control.upload(name, SIZE, upload_id()).ticket for name in ("alice/x", "alice/y")]
            channel.attach(tickets[0], 1)
            assert channel.have(1) == []
            database.set_password("alice", None)
            assert channel.answer().code is ErrorCode.TICKET_REVOKED
            channel.attach(tickets[1], 2)
            assert channel.answer().code is ErrorCode.TICKET_REVOKED
        assert audit.refusals() == [
            ("alice", "alice/x", "TicketRevoked", "PUT"),
            ("alice", None, "TicketRevoked", "ATTACH"),
        ]


class AuditLogOf:
    """An audit log and what it says of refusals."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.log = AuditLog(directory)

    def __enter__(self) -> AuditLogOf:
        return self

    def __exit__(self, *exc: object) -> None:
        self.log.close()

    def refusals(self) -> list[tuple[object, object, object, object]]:
        assert self.log.flush()
        rows = [row for row in AuditReader(self._directory).rows() if row["event"] == "refusal"]
        return [(row.get("user"), row.get("file"), row["outcome"], row.get("what")) for row in rows]


def test_a_frame_that_is_not_taken_is_cut_in_its_middle(
    shm_path: Path, hasher: PasswordHasher, upload_id: MakeId
) -> None:
    """A download that its client takes slowly, or not at all, is over a second later, the frame on its way too."""
    settings = settings_for(shm_path / "root")
    foundation = open_foundation(settings)
    with closing(AccountDatabase(shm_path / "root" / OWN_DIRECTORY / FILE_NAME)) as database:
        database.add(Account("alice", 1.0, hasher.hash(PASSWORD), home="alice"))
        assert foundation.accounts is not None
        foundation.accounts.refresh(force=True)
        with RunningServer(settings, foundation) as server:
            data = os.urandom(MIN_SEGMENT_BYTES)
            with log_in(server) as control:
                with RawChannel(server.data_address) as channel:
                    send_file(control, channel, "alice/x", data, upload_id())
                await_true(lambda: server.channel_count == 0)
                with RawChannel(server.data_address, receive_buffer=4096) as deaf:
                    deaf.attach(control.download("alice/x").ticket, 1)
                    for _ in range(4):
                        deaf.get(1, 0, 0, len(data))
                    deaf.sock.recv(1)  # it is served
                    time.sleep(0.5)  # until nothing moves any more; the test holds before too
                    assert server.channel_count == 1
                    database.set_disabled("alice", True)
                    await_true(lambda: server.channel_count == 0, within_seconds=20.0, what="the cut")
        assert "[CHANNEL] Cut" in server.log.getvalue()
        server.assert_no_traceback()


# who does not log in --------------------------------------------------------------------------------------------------


def test_a_ticket_of_anonymous_lives_as_long_as_its_grants(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId
) -> None:
    database.add(Account(ANONYMOUS, 1.0, grants=(parse_grant("public/**", ["write"]),)))
    add("alice")
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        upload = control.upload("public/x", SIZE, upload_id())
        assert KEYS.verify(upload.ticket, time.time()).epoch == 0
        channel.attach(upload.ticket, 1)
        channel.put(1, 0, 0, DATA[:HALF])
        assert channel.acknowledged() is AckStatus.RECEIVED
        database.set_password("alice", None)
        accounts = server.foundation.accounts
        assert accounts is not None
        await_true(lambda: accounts.revision > 0)
        channel.attach(upload.ticket, 2)
        assert channel.have(2) != []
        database.set_disabled(ANONYMOUS, True)
        assert {channel.answer().code, channel.answer().code} == {ErrorCode.DENIED}


def test_the_first_account_ends_what_was_open_to_all(
    start_with_accounts: StartWithAccounts, add: Add, upload_id: MakeId
) -> None:
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        channel.attach(control.upload("x", SIZE, upload_id()).ticket, 1)
        assert channel.have(1) == []
        add("alice")
        answer = channel.answer()
        assert (answer.type, answer.code) == (FrameType.FAIL, ErrorCode.DENIED)


def test_an_open_server_goes_on_for_those_who_do_not_log_in(
    start_with_accounts: StartWithAccounts, upload_id: MakeId
) -> None:
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        send_file(control, channel, "x", DATA, upload_id())
        ticket = KEYS.verify(control.download("x").ticket, time.time())
        assert (ticket.user, ticket.epoch) == (ANONYMOUS, 0)


# the store ------------------------------------------------------------------------------------------------------------


def test_every_node_comes_to_the_same_mark(database: AccountDatabase, store: AccountStore, add: Add) -> None:
    add("alice")
    with closing(AccountStore(database.path)) as other:
        store.refresh(force=True)
        other.refresh(force=True)
        account = database.load().accounts["alice"]
        for node in (store, other):
            node.require_ticket("alice", mark_of(account.epoch))
            for epoch in (0, 1, mark_of(account.epoch) ^ 1):
                with pytest.raises(Refusal) as caught:
                    node.require_ticket("alice", epoch)
                assert caught.value.code is ErrorCode.TICKET_REVOKED
            with pytest.raises(Refusal) as caught:
                node.require_ticket("eve", mark_of(account.epoch))
            assert caught.value.code is ErrorCode.DENIED
    assert mark_of(None) == 0
    assert len({mark_of((created, changes)) for created in (0.0, 1.0, 1.5) for changes in range(100)}) == 300


def test_a_mark_is_what_the_document_says() -> None:
    """So that what is written down there can be built elsewhere."""
    expected = hashlib.sha256(struct.pack(">d", 1700000000.25) + (3).to_bytes(8, "big")).digest()[:8]
    assert mark_of((1700000000.25, 3)) == int.from_bytes(expected, "big")


def test_a_revision_grows_with_what_was_seen(database: AccountDatabase, store: AccountStore, add: Add) -> None:
    seen = store.revision
    store.refresh()
    assert store.revision == seen
    add("alice")
    await_true(lambda: store.revision > seen)
    assert store.account("alice") is not None

"""Logins on a real server: what is answered before, what waits, what ends a session, and what each user then sees."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable

import pytest
from twinport_protocol.auth import login_message
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import AckStatus, FrameType
from twinport_protocol.messages import WORDS, Command, Reply, ReplyKind, Verb
from twinport_protocol.tickets import encode_ticket
from twinport_service.accounts.authenticator import LoggedIn
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.grants import parse_grant
from twinport_service.accounts.records import Account, Key
from twinport_service.accounts.tokens import make_token
from twinport_service.login_gate import MAX_TRIES, LoginGate, is_loopback
from twinport_service.storage.contract import SMALL_BYTES

from tests.service.accounts.conftest import NONCE, PASSWORD, SshKey, StartWithAccounts
from tests.service.raw_client import ClosedError, RawChannel, RawControl, RefusedError, opened
from tests.service.running_server import RunningServer

Add = Callable[..., None]
MakeId = Callable[[], bytes]
RIGHT = {"user": "alice", "password": PASSWORD}
WRONG = {"user": "alice", "password": "wrong password"}


def await_true(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def log_in(control: RawControl, user: str = "alice", password: str = PASSWORD) -> None:
    reply = control.ask(Verb.LOGIN, "password", options={"user": user, "password": password})
    assert reply.kind is ReplyKind.OK, reply
    assert reply.options["user"] == user


def hold_throttle(server: RunningServer) -> None:
    """Stop its clock, so that the wait of a second after a wrong password is not over on a busy machine."""
    assert server.server._authenticator is not None
    server.server._authenticator._throttle._now = lambda: 1000.0


def ping(control: RawControl) -> Reply:
    """The next reply of whatever kind, after a PING."""
    control.start(Verb.PING)
    return control.reply()


def put(server: RunningServer, control: RawControl, name: str, upload_id: bytes) -> ErrorCode | None:
    """Upload a file of one byte; the code when it is refused."""
    data = b"x"
    reply = control.ask(Verb.UPLOAD, name, str(len(data)), options={"upload": upload_id.hex()})
    if reply.kind is ReplyKind.ERROR:
        return reply.code
    with RawChannel(server.data_address) as channel:
        channel.attach(opened(reply, len(data)).ticket)
        channel.put_segment(1, 0, data, commit=True)
    return None


# before ---------------------------------------------------------------------------------------------------------------


def test_without_accounts_nothing_changes(start_with_accounts: StartWithAccounts) -> None:
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        assert "login" not in control.greeting
        assert control.ask(Verb.LIST).kind is ReplyKind.DONE
        assert control.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.LOGIN_FAILED
        assert control.ask(Verb.LIST).kind is ReplyKind.DONE


def test_a_server_without_a_store_knows_no_login(server: RunningServer) -> None:
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.LOGIN_FAILED
        assert control.ask(Verb.LIST).kind is ReplyKind.DONE


def test_before_a_login_every_verb_but_three_is_refused(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        assert control.greeting["login"] == "required"
        assert re.fullmatch("[0-9a-f]{32}", control.greeting["nonce"])
        for verb in Verb:
            if verb in (Verb.LOGIN, Verb.PING, Verb.QUIT):
                continue
            words = ["anything"] * WORDS[verb][0]
            for options in ({}, {"upload": "00" * 16}, {"user": "alice"}):
                assert control.refused(verb, *words, options=options) is ErrorCode.LOGIN_REQUIRED, verb
        assert control.ask(Verb.PING).kind is ReplyKind.OK
        log_in(control)
        assert control.ask(Verb.LIST).kind is ReplyKind.DONE
        assert control.ask(Verb.QUIT).kind is ReplyKind.DONE


def test_a_session_logs_in_once(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    add("bob")
    server = start_with_accounts(login_delays=False)
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.LOGIN, "password", options=WRONG) is ErrorCode.LOGIN_FAILED
        assert control.refused(Verb.LOGIN, "magic", options=RIGHT) is ErrorCode.BAD_REQUEST
        assert control.refused(Verb.LIST) is ErrorCode.LOGIN_REQUIRED
        reply = control.ask(Verb.LOGIN, "password", options=RIGHT)
        assert reply.options == {"user": "alice", "home": "alice"}
        for user in ("alice", "bob"):
            options = {"user": user, "password": PASSWORD}
            assert control.refused(Verb.LOGIN, "password", options=options) is ErrorCode.BAD_STATE
        assert control.refused(Verb.LIST, "bob") is ErrorCode.DENIED


def test_what_was_sent_behind_a_login_waits_for_it(
    start_with_accounts: StartWithAccounts, add: Add, upload_id: MakeId
) -> None:
    add("alice")
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        number = control.start(Verb.LOGIN, "password", options=RIGHT)
        upload = control.start(Verb.UPLOAD, "alice/x", "1", options={"upload": upload_id().hex()})
        names = [control.start(Verb.STAT, "alice/none") for _ in range(500)]
        quit_number = control.start(Verb.QUIT)
        assert control.reply().id == number, "nothing overtakes the login"
        assert control.finish(upload)[-1].kind is ReplyKind.OK
        codes = {control.finish(one)[-1].code for one in names[:100]}
        assert codes == {ErrorCode.FILE_NOT_FOUND}
        assert control.finish(quit_number)[-1].kind is ReplyKind.DONE
        assert control.is_closed()
    server.assert_no_traceback()


def test_behind_a_refused_login_everything_is_refused(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        number = control.start(Verb.LOGIN, "password", options=WRONG)
        others = [control.start(Verb.LIST) for _ in range(10)]
        assert control.finish(number)[-1].code is ErrorCode.LOGIN_FAILED
        assert {control.finish(one)[-1].code for one in others} == {ErrorCode.LOGIN_REQUIRED}


def test_a_client_that_ends_behind_its_login_gets_its_answers(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        number = control.start(Verb.LOGIN, "password", options=RIGHT)
        listing = control.start(Verb.LIST)
        control.sock.shutdown(1)
        assert control.finish(number)[-1].kind is ReplyKind.OK
        assert control.finish(listing)[-1].kind is ReplyKind.DONE
        assert control.is_closed()


def test_a_client_that_is_gone_before_its_login_was_checked_harms_nobody(
    start_with_accounts: StartWithAccounts, add: Add
) -> None:
    add("alice")
    server = start_with_accounts(login_delays=False)
    for _ in range(20):
        control = RawControl(server.control_address)
        control.start(Verb.LOGIN, "password", options=RIGHT)
        control.reset()
    await_true(lambda: server.session_count == 0)
    with RawControl(server.control_address) as control:
        log_in(control)
    server.assert_no_traceback()


def test_ten_refusals_end_the_session(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    server = start_with_accounts()
    hold_throttle(server)
    with RawControl(server.control_address) as control:
        for number in range(MAX_TRIES):
            reply = control.ask(Verb.LOGIN, "password", options=WRONG)
            assert reply.code is (ErrorCode.LOGIN_FAILED if number == 0 else ErrorCode.LOCKED)
            assert (reply.retry_seconds is not None) is (number > 0)
        last = control.reply()
        assert (last.id, last.code) == (0, ErrorCode.LOGIN_FAILED)
        with pytest.raises(ClosedError):
            control.reply()


def test_a_login_that_does_not_come_is_not_waited_for(start_with_accounts: StartWithAccounts, add: Add) -> None:
    add("alice")
    server = start_with_accounts(login_seconds=2.0, login_delays=False)
    with RawControl(server.control_address) as control, RawControl(server.control_address) as other:
        log_in(other)
        began = time.monotonic()
        while (reply := ping(control)).id:
            assert reply.kind is ReplyKind.OK
            assert time.monotonic() - began < 60, "whoever speaks is waited for"
        assert reply.code is ErrorCode.TIMEOUT
        assert control.is_closed()
        assert other.ask(Verb.PING).kind is ReplyKind.OK, "who logged in stays"


# where it comes from --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (("127.0.0.1", 1), True),
        (("127.9.9.9", 1), True),
        (("::1", 1, 0, 0), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),
        (("192.0.2.1", 1), False),
        (("::ffff:192.0.2.1", 1, 0, 0), False),
        (("fe80::1%lo", 1, 0, 0), False),
        (("localhost", 1), False),
        ((), False),
        ("", False),
        (None, False),
    ],
)
def test_a_secret_is_taken_without_tls_from_this_machine_alone(peer: object, expected: bool) -> None:
    assert is_loopback(peer) is expected
    outcomes: list[LoggedIn | Refusal] = []
    for method in ("password", "key", "token"):
        gate = LoginGate(None, None, peer)
        refusal = gate.begin(Command(1, Verb.LOGIN, (method,), RIGHT), outcomes.append)
        assert refusal is not None
        assert refusal.code is (ErrorCode.LOGIN_FAILED if expected else ErrorCode.TLS_REQUIRED)
        under_tls = LoginGate(None, bytes(32), peer).begin(Command(1, Verb.LOGIN, (method,), RIGHT), outcomes.append)
        assert under_tls is not None
        assert under_tls.code is ErrorCode.LOGIN_FAILED
    assert not outcomes


def test_a_key_logs_in_with_the_nonces_of_its_own_session_alone(
    start_with_accounts: StartWithAccounts, add: Add, ssh_keys: Callable[[str], SshKey]
) -> None:
    key = ssh_keys("ed25519")
    add("alice", keys=(key.public,))
    server = start_with_accounts()
    with (
        RawControl(server.control_address, nonce=NONCE) as control,
        RawControl(server.control_address, nonce=NONCE) as other,
        RawControl(server.control_address) as without,
    ):
        word = key.word(login_message("alice", control.greeting["nonce"], NONCE, None))
        options = {"user": "alice", "signature": word}
        assert other.refused(Verb.LOGIN, "key", options=options) is ErrorCode.LOGIN_FAILED
        assert without.refused(Verb.LOGIN, "key", options=options) is ErrorCode.LOGIN_FAILED
        assert control.ask(Verb.LOGIN, "key", options=options).options["user"] == "alice"
        assert control.refused(Verb.LOGIN, "key", options=options) is ErrorCode.BAD_STATE


def test_a_key_and_a_token_get_in_while_the_address_is_locked(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, ssh_keys: Callable[[str], SshKey]
) -> None:
    key = ssh_keys("ed25519")
    add("alice", keys=(key.public,))
    text, token = make_token("alice", "", 0.0)
    database.add_token(token)
    server = start_with_accounts()
    hold_throttle(server)
    with RawControl(server.control_address, nonce=NONCE) as control:
        assert control.refused(Verb.LOGIN, "password", options=WRONG) is ErrorCode.LOGIN_FAILED
        assert control.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.LOCKED
        word = key.word(login_message("alice", control.greeting["nonce"], NONCE, None))
        assert control.refused(Verb.LOGIN, "key", options={"user": "alice", "signature": word}) is None
    with RawControl(server.control_address) as control:
        assert control.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.LOCKED
        assert control.refused(Verb.LOGIN, "token", options={"token": text}) is None


# after ----------------------------------------------------------------------------------------------------------------


def test_two_users_with_separate_folders_and_a_shared_one(
    start_with_accounts: StartWithAccounts, add: Add, upload_id: MakeId
) -> None:
    add("alice")
    add("bob", grants=(parse_grant("alice/public/**", ["list", "read"]), parse_grant("inbox/**", ["write"])))
    add("root", home=None, grants=(parse_grant("**", ["list", "read", "write", "delete"]),))
    server = start_with_accounts()
    with (
        RawControl(server.control_address) as alice,
        RawControl(server.control_address) as bob,
        RawControl(server.control_address) as admin,
    ):
        log_in(alice)
        log_in(bob, "bob")
        log_in(admin, "root")
        for name in ("alice/private", "alice/public/a", "alice/public/deep/b", "alice/zzz/c"):
            assert put(server, alice, name, upload_id()) is None
        assert put(server, alice, "x", upload_id()) is ErrorCode.DENIED
        assert put(server, alice, "bob/x", upload_id()) is ErrorCode.DENIED
        assert put(server, bob, "bob/mine", upload_id()) is None
        assert put(server, bob, "inbox/for root", upload_id()) is None
        assert put(server, bob, "alice/public/c", upload_id()) is ErrorCode.DENIED

        assert admin.names() == sorted(
            ["alice/private", "alice/public/a", "alice/public/deep/b", "alice/zzz/c", "bob/mine", "inbox/for root"]
        )
        assert alice.names() == ["alice/private", "alice/public/a", "alice/public/deep/b", "alice/zzz/c"]
        assert bob.names() == ["alice/public/a", "alice/public/deep/b", "bob/mine"]
        assert bob.names("alice") == ["alice/public/a", "alice/public/deep/b"]
        assert bob.refused(Verb.LIST, "alice/zzz") is ErrorCode.DENIED
        assert bob.refused(Verb.LIST, "nobody") is ErrorCode.DENIED, "whether it is there or not"
        *entries, done = bob.finish(bob.start(Verb.LIST, options={"depth": "1"}))
        assert [entry.words[0] for entry in entries] == ["alice", "bob", "inbox"]
        assert done.options == {"count": "3", "more": "0"}
        assert bob.names("inbox") == []

        assert bob.refused(Verb.STAT, "alice/public/a") is None
        assert bob.refused(Verb.STAT, "alice") is None, "a directory on the way"
        assert bob.refused(Verb.STAT, "alice/private") is ErrorCode.DENIED
        assert bob.refused(Verb.STAT, "inbox/for root") is ErrorCode.DENIED
        assert bob.refused(Verb.DOWNLOAD, "alice/public/a") is None
        assert bob.refused(Verb.DOWNLOAD, "alice/private") is ErrorCode.DENIED
        assert bob.refused(Verb.DOWNLOAD, "inbox/for root") is ErrorCode.DENIED
        assert bob.refused(Verb.DELETE, "alice/public/a") is ErrorCode.DENIED
        assert bob.refused(Verb.MKDIR, "alice/public/d") is ErrorCode.DENIED
        assert bob.refused(Verb.MOVE, "alice/public/a", "bob/a") is ErrorCode.DENIED
        assert bob.refused(Verb.MOVE, "bob/mine", "alice/mine") is ErrorCode.DENIED
        assert bob.refused(Verb.MOVE, "bob/mine", "inbox/mine") is None
        assert bob.refused(Verb.QUOTA) is None
    server.assert_no_traceback()


def test_a_directory_is_not_moved_out_of_its_grants(
    start_with_accounts: StartWithAccounts, add: Add, upload_id: MakeId
) -> None:
    add("alice")
    add("bob", grants=(parse_grant("alice/*", ["list", "read", "delete"]), parse_grant("flat/*", ["write"])))
    server = start_with_accounts()
    with RawControl(server.control_address) as alice, RawControl(server.control_address) as bob:
        log_in(alice)
        log_in(bob, "bob")
        assert put(server, alice, "alice/secret/x", upload_id()) is None
        assert put(server, alice, "alice/file", upload_id()) is None
        assert put(server, bob, "bob/dir/x", upload_id()) is None
        assert bob.refused(Verb.MOVE, "alice/secret", "bob/secret") is ErrorCode.DENIED
        assert bob.refused(Verb.MOVE, "bob/dir", "flat/dir") is ErrorCode.DENIED
        assert bob.refused(Verb.MOVE, "alice/file", "bob/file") is None
        assert bob.refused(Verb.MOVE, "bob/dir", "bob/other") is None


def test_what_is_granted_to_anonymous_is_open_to_everybody(
    start_with_accounts: StartWithAccounts, add: Add, upload_id: MakeId
) -> None:
    add("alice")
    add("anonymous", home=None, password_hash=None, grants=(parse_grant("alice/public/**", ["list", "read"]),))
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawControl(server.control_address) as alice:
        assert control.greeting["login"] == "offered"
        log_in(alice)
        for name in ("alice/public/x", "alice/y"):
            assert put(server, alice, name, upload_id()) is None
        assert control.names() == ["alice/public/x"]
        assert control.refused(Verb.DOWNLOAD, "alice/public/x") is None
        assert control.refused(Verb.DOWNLOAD, "alice/y") is ErrorCode.DENIED
        assert put(server, control, "alice/public/z", upload_id()) is ErrorCode.DENIED
        log_in(control)
        assert control.names() == ["alice/public/x", "alice/y"]


def test_a_disabled_user_loses_everything_at_once(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId
) -> None:
    add("alice")
    add("bob")
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        log_in(control)
        upload = control.upload("alice/x", 10_000_000, upload_id())
        database.set_disabled("alice", True)
        await_true(lambda: control.refused(Verb.LIST) is ErrorCode.DENIED)
        assert control.commit(upload, bytes(32)).code is ErrorCode.DENIED
        assert control.refused(Verb.QUOTA) is ErrorCode.DENIED
        assert control.refused(Verb.ABORT, upload.upload_id.hex()) is ErrorCode.DENIED
        assert control.ask(Verb.PING).kind is ReplyKind.OK
        with RawControl(server.control_address) as again:
            assert again.refused(Verb.LOGIN, "password", options=RIGHT) is ErrorCode.LOGIN_FAILED
        with RawControl(server.control_address) as bob:
            log_in(bob, "bob")
            database.remove("bob")
            await_true(lambda: bob.refused(Verb.LIST) is ErrorCode.DENIED)


def disable_and_enable(database: AccountDatabase, token_id: str) -> None:
    del token_id
    database.set_disabled("alice", True)
    database.set_disabled("alice", False)


def make_anew(database: AccountDatabase, token_id: str) -> None:
    del token_id
    database.remove("alice")
    database.add(Account("alice", time.time(), home="alice"))


Change = Callable[[AccountDatabase, str], None]
ENDINGS: dict[str, Change] = {
    "disabled and enabled": disable_and_enable,
    "another password": lambda database, _: database.set_password("alice", "another hash"),
    "no password": lambda database, _: database.set_password("alice", None),
    "a key taken away": lambda database, _: database.remove_key("alice", b"a key"),
    "a token revoked": lambda database, token_id: database.revoke_token("alice", token_id),
    "another of that name": make_anew,
}


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not look at its sessions by itself: what is tested is what a command is answered."""
    monkeypatch.setattr("twinport_service.server._CLOCK_SECONDS", 3600.0)


@pytest.mark.parametrize("change", ENDINGS.values(), ids=ENDINGS)
def test_a_session_ends_once_a_way_to_log_in_was_taken_away(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, change: Change, no_clock: None
) -> None:
    add("alice", keys=(Key(b"a key"),))
    add("bob")
    text, token = make_token("alice", "", 1.0)
    database.add_token(token)
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawControl(server.control_address) as bob:
        assert control.ask(Verb.LOGIN, "token", options={"token": text}).kind is ReplyKind.OK
        log_in(bob, "bob")
        database.put_grant("alice", parse_grant("shared/**", ["list"]))
        database.add_key("alice", Key(b"one more key"))
        await_true(lambda: control.refused(Verb.STAT, "shared") is ErrorCode.FILE_NOT_FOUND)
        change(database, token.id)
        await_true(lambda: control.refused(Verb.MKDIR, "alice/x") not in (None, ErrorCode.DENIED))
        assert control.is_closed()
        assert bob.refused(Verb.LIST) is None


def test_what_ends_a_session_is_said_and_what_came_behind_is_not_done(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, no_clock: None
) -> None:
    add("alice")
    add("bob")
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawControl(server.control_address) as bob:
        log_in(control)
        log_in(bob, "bob")
        database.set_password("alice", None)
        database.put_grant("bob", parse_grant("shared/**", ["list"]))  # seen together with it, or later
        await_true(lambda: bob.refused(Verb.STAT, "shared") is ErrorCode.FILE_NOT_FOUND)
        first, second = control.start(Verb.LIST), control.start(Verb.MKDIR, "alice/x")
        assert control.finish(first)[-1].code is ErrorCode.LOGIN_REQUIRED
        with pytest.raises(ClosedError):
            control.finish(second)


def test_a_grant_that_was_taken_away_stops_a_commit(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId
) -> None:
    add("alice", grants=(parse_grant("shared/**", ["write"]),))
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        log_in(control)
        upload = control.upload("shared/x", 10_000_000, upload_id())
        database.remove_grant("alice", "shared/**")
        await_true(lambda: control.refused(Verb.MKDIR, "shared/y") is ErrorCode.DENIED)
        assert control.commit(upload, bytes(32)).code is ErrorCode.DENIED
        ticket = control.ask(Verb.RENEW, "AAAA")
        assert ticket.code is ErrorCode.TICKET_INVALID
        assert control.ask(Verb.ABORT, upload.upload_id.hex()).kind is ReplyKind.DONE


def test_no_ticket_is_renewed_for_what_was_taken_away(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId
) -> None:
    add("alice")
    add("bob", grants=(parse_grant("alice/**", ["list", "read", "write"]),))
    server = start_with_accounts()
    with RawControl(server.control_address) as alice, RawControl(server.control_address) as bob:
        log_in(alice)
        log_in(bob, "bob")
        assert put(server, alice, "alice/x", upload_id()) is None
        version, upload = bob.download("alice/x"), bob.upload("alice/y", 10_000_000, upload_id())
        words = [encode_ticket(ticket) for ticket in (version.ticket, upload.ticket)]
        assert [bob.refused(Verb.RENEW, word) for word in words] == [None, None]
        assert bob.refused(Verb.MOVE, "alice/x", "bob/x") is ErrorCode.DENIED
        database.remove_grant("bob", "alice/**")
        await_true(lambda: bob.refused(Verb.STAT, "alice/x") is ErrorCode.DENIED)
        assert [bob.refused(Verb.RENEW, word) for word in words] == [ErrorCode.DENIED, ErrorCode.DENIED]
        assert alice.refused(Verb.RENEW, words[0]) is ErrorCode.TICKET_INVALID


def test_a_ticket_is_worth_nothing_once_its_user_may_not_any_more(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId
) -> None:
    add("alice", grants=(parse_grant("shared/**", ["write"]),))
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        log_in(control)
        assert put(server, control, "alice/x", upload_id()) is None
        mine, shared = (control.upload(name, 1, upload_id()) for name in ("alice/y", "shared/y"))
        version = control.download("alice/x")
        with RawChannel(server.data_address) as channel:
            database.remove_grant("alice", "shared/**")
            await_true(lambda: control.refused(Verb.MKDIR, "shared/z") is ErrorCode.DENIED)
            channel.attach(shared.ticket, 1)
            channel.attach(mine.ticket, 2)
            assert channel.answer().code is ErrorCode.DENIED
            assert channel.put_segment(2, 0, b"y", commit=True) is AckStatus.COMMITTED
            database.set_disabled("alice", True)
            await_true(lambda: control.refused(Verb.LIST) is ErrorCode.DENIED)
            for number, ticket in enumerate((shared.ticket, version.ticket), 3):
                channel.attach(ticket, number)
                assert channel.answer().code is ErrorCode.DENIED


def test_an_attached_channel_does_no_more_than_its_user_may_now(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, upload_id: MakeId
) -> None:
    add("alice", home=None, grants=(parse_grant("shared/**", ["list", "read", "write"]),))
    server = start_with_accounts()
    with RawControl(server.control_address) as control, RawChannel(server.data_address) as channel:
        log_in(control)
        assert put(server, control, "shared/x", upload_id()) is None
        channel.attach(control.upload("shared/whole", 1, upload_id()).ticket, 1)
        large = control.upload("shared/large", SMALL_BYTES + 1, upload_id())
        channel.attach(large.ticket, 2)
        channel.attach(control.download("shared/x").ticket, 3)
        assert channel.get_all(3, 0, 0, 1) == b"x"
        database.put_grant("alice", parse_grant("shared/**", ["list"]))
        await_true(lambda: control.refused(Verb.MKDIR, "shared/y") is ErrorCode.DENIED)
        for number, data in ((1, b"y"), (2, bytes(SMALL_BYTES + 1))):
            assert channel.put_segment(number, 0, data, commit=True) is ErrorCode.DENIED
        with pytest.raises(RefusedError) as refused:
            channel.get_all(3, 0, 0, 1)
        assert refused.value.code is ErrorCode.DENIED
        channel.frame(FrameType.MANIFEST, 3)
        assert channel.answer().code is ErrorCode.DENIED
        assert control.names("shared") == ["shared/x"]
        database.put_grant("alice", parse_grant("shared/**", ["list", "write"]))
        await_true(lambda: control.refused(Verb.MKDIR, "shared/y") is None)
        assert channel.put_segment(2, 0, bytes(SMALL_BYTES + 1), commit=True) is ErrorCode.DENIED, "it has ended"
        channel.detach(2)
        channel.attach(large.ticket, 2)
        assert channel.put_segment(2, 0, bytes(SMALL_BYTES + 1), commit=True) is AckStatus.COMMITTED


def test_the_first_account_closes_a_server_that_runs(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase
) -> None:
    server = start_with_accounts()
    with RawControl(server.control_address) as control:
        assert control.ask(Verb.LIST).kind is ReplyKind.DONE
        add("alice")
        await_true(lambda: control.refused(Verb.LIST) is ErrorCode.LOGIN_REQUIRED)
        log_in(control)
        database.remove("alice")
        await_true(lambda: control.refused(Verb.LIST) is ErrorCode.DENIED)
        with RawControl(server.control_address) as other:
            assert other.greeting["login"] == "required"
            assert other.refused(Verb.LIST) is ErrorCode.LOGIN_REQUIRED


# secrets --------------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_the_log(
    start_with_accounts: StartWithAccounts, add: Add, database: AccountDatabase, ssh_keys: Callable[[str], SshKey]
) -> None:
    key = ssh_keys("ed25519")
    add("alice", keys=(key.public,))
    text, token = make_token("alice", "", 0.0)
    database.add_token(token)
    server = start_with_accounts(login_delays=False)
    marker = "marker-7f3a9c-of-a-secret"
    signature = key.word(login_message("alice", "00" * 16, NONCE, None))
    with RawControl(server.control_address, nonce=NONCE) as control:
        control.ask(Verb.LOGIN, "password", options={"user": "alice", "password": marker})
        control.ask(Verb.LOGIN, "password", options={"user": marker, "password": marker})
        control.ask(Verb.LOGIN, "password", options={"user": f"{marker} !", "password": marker})
        control.ask(Verb.LOGIN, "token", options={"token": f"tp_{token.id}_{marker}"})
        control.ask(Verb.LOGIN, "key", options={"user": "alice", "signature": signature})
        control.ask(Verb.LOGIN, marker, options={"user": "alice", "password": marker})
        control.raw(f"99 LOGIN password {marker} user=alice password={marker}".encode())
        control.raw(f"LOGIN password user=alice password={marker}".encode())
        assert control.ask(Verb.LOGIN, "token", options={"token": text}).kind is ReplyKind.OK
        control.ask(Verb.LOGIN, "password", options={"user": "alice", "password": PASSWORD})
    server.stop()
    assert isinstance(server.log, io.StringIO)
    written = server.log.getvalue() + "".join(server.complaints)
    assert "[LOGIN] alice by token" in written
    assert written.count("[LOGIN] Refused") == 5
    for secret in (marker, PASSWORD, text, text.rpartition("_")[2], signature, signature[-40:]):
        assert secret not in written
    server.assert_no_traceback()

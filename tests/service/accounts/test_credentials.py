"""Keys and tokens: which are taken, and which signatures log in. The keys and signatures are those of ssh-keygen."""

from __future__ import annotations

import base64
import dataclasses
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.auth import SshSignature, login_message
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.accounts import keys
from twinport_service.accounts.authenticator import Authenticator, LoggedIn, LoginRequest
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.keys import KeyTextError, load_public_key, parse_keys, verify_signature
from twinport_service.accounts.passwords import PasswordDesk
from twinport_service.accounts.records import Key
from twinport_service.accounts.store import AccountStore
from twinport_service.accounts.throttle import Throttle
from twinport_service.accounts.tokens import check_token, make_token

from tests.service.accounts.conftest import NONCE, PASSWORD, SshKey

GOOD_KINDS = ["ed25519", "ecdsa-256", "ecdsa-384", "ecdsa-521", "rsa-3072"]
SERVER_NONCE = "91e0" * 8
CERTIFICATE = bytes(range(32))
HERE = ("192.0.2.1", 5001)
MakeKey = Callable[[str], SshKey]
LogIn = Callable[..., "LoggedIn | Refusal"]


@pytest.fixture
def log_in(store: AccountStore, hasher: PasswordHasher) -> Iterator[LogIn]:
    """Logs in and waits for the outcome; keyword arguments are those of the request, then LOGIN's options."""
    desk = PasswordDesk(store.replace_password_hash, hasher=hasher)
    with closing(Authenticator(store, Throttle(lambda: 0.0), desk)) as authenticator:

        def attempt(
            method: str,
            *,
            server_nonce: str = SERVER_NONCE,
            client_nonce: str = NONCE,
            certificate: bytes | None = CERTIFICATE,
            **options: str,
        ) -> LoggedIn | Refusal:
            store.refresh()
            outcomes: SimpleQueue[LoggedIn | Refusal] = SimpleQueue()
            request = LoginRequest(method, options, server_nonce, client_nonce, certificate, HERE)
            assert not any(value in repr(request) for value in options.values() if len(value) > 8)
            authenticator.authenticate(request, outcomes.put)
            return outcomes.get(timeout=30)

        yield attempt


def message(
    user: str = "alice",
    server_nonce: str = SERVER_NONCE,
    client_nonce: str = NONCE,
    certificate: bytes | None = CERTIFICATE,
) -> bytes:
    return login_message(user, server_nonce, client_nonce, certificate)


def assert_failed(outcome: LoggedIn | Refusal) -> None:
    assert isinstance(outcome, Refusal)
    assert (outcome.code, outcome.retry_seconds) == (ErrorCode.LOGIN_FAILED, None)


# keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hash_name", ["sha512", "sha256"])
@pytest.mark.parametrize("kind", GOOD_KINDS)
def test_what_ssh_keygen_signs_logs_in(
    log_in: LogIn, add: Callable[..., None], ssh_keys: MakeKey, kind: str, hash_name: str
) -> None:
    key = ssh_keys(kind)
    add("alice", keys=(ssh_keys("ed25519/other").public, key.public))
    outcome = log_in("key", user="alice", signature=key.word(message(), hash_name))
    assert outcome == LoggedIn("alice", "alice")


def test_every_signature_that_is_not_of_this_login_is_refused_alike(
    log_in: LogIn, add: Callable[..., None], ssh_keys: MakeKey
) -> None:
    key = ssh_keys("ed25519")
    add("alice", keys=(key.public,))
    add("bob", keys=(key.public,))
    others = {
        "a nonce of another session": message(server_nonce="00" * 16),
        "a client nonce of another session": message(client_nonce="00" * 16),
        "another certificate": message(certificate=bytes(32)),
        "no certificate": message(certificate=None),
        "another user": message("bob"),
        "nothing": b"",
    }
    for signed in others.values():
        assert_failed(log_in("key", user="alice", signature=key.word(signed)))
    word = key.word(message())
    assert_failed(log_in("key", user="bob", signature=word))
    assert_failed(log_in("key", user="nobody", signature=word))
    assert_failed(log_in("key", user="alice", signature=word, server_nonce="00" * 16))
    assert_failed(log_in("key", user="alice", signature=word, client_nonce=""))
    assert_failed(log_in("key", user="alice", signature=word, certificate=bytes(32)))
    assert_failed(log_in("key", user="alice", signature=word, certificate=None))
    assert_failed(log_in("key", user="alice\nuser bob", signature=word))
    assert isinstance(log_in("key", user="alice", signature=word), LoggedIn), "the signature itself is good"


def armored(text: str) -> str:
    """An armor as a ``signature=`` value, whatever is in it."""
    body = "".join(text.split("-----")[2].split())
    return base64.urlsafe_b64encode(base64.b64decode(body)).rstrip(b"=").decode()


def test_weak_foreign_and_malformed_signatures_are_refused_alike(
    log_in: LogIn, database: AccountDatabase, add: Callable[..., None], ssh_keys: MakeKey
) -> None:
    key, weak, unknown = ssh_keys("ed25519"), ssh_keys("rsa-2048"), ssh_keys("ed25519/unknown")
    add("alice", keys=(key.public,))
    weak_blob = base64.b64decode(weak.path.with_suffix(".pub").read_text().split()[1])
    database.add_key("alice", Key(weak_blob))  # past the check that the command makes
    good = SshSignature.from_word(key.word(message()))
    rsa = ssh_keys("rsa-3072")
    database.add_key("alice", rsa.public)
    as_sha1 = dataclasses.replace(SshSignature.from_word(rsa.word(message())), algorithm="ssh-rsa")
    dsa = struct.pack("!I7s", 7, b"ssh-dss") + good.public_key[11:]
    words = [
        armored(weak.sign(message())),
        armored(key.sign(message(), "file")),
        unknown.word(message()),
        as_sha1.to_word(),
        dataclasses.replace(good, public_key=dsa).to_word(),
        dataclasses.replace(good, public_key=unknown.public.blob).to_word(),
        dataclasses.replace(good, algorithm="rsa-sha2-512").to_word(),
        dataclasses.replace(good, signature=bytes(64)).to_word(),
        dataclasses.replace(good, signature=b"").to_word(),
        dataclasses.replace(good, hash_name="sha256").to_word(),
        good.to_word()[:-4],
        "",
        "!",
        "AAAA" * 4000,
    ]
    for word in words:
        assert_failed(log_in("key", user="alice", signature=word))
    assert isinstance(log_in("key", user="alice", signature=good.to_word()), LoggedIn)


@pytest.mark.parametrize("kind", GOOD_KINDS)
def test_a_changed_bit_anywhere_is_no_signature(ssh_keys: MakeKey, kind: str) -> None:
    signature = SshSignature.from_word(ssh_keys(kind).word(message()))
    assert verify_signature(signature, message())
    for index in range(0, len(signature.signature), 7):
        changed = bytearray(signature.signature)
        changed[index] ^= 0x10
        assert not verify_signature(dataclasses.replace(signature, signature=bytes(changed)), message())
    assert not verify_signature(signature, message() + b"\n")


@given(
    st.binary(max_size=200), st.sampled_from(["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"]), st.binary(max_size=200)
)
def test_no_bytes_make_the_verification_fall_over(blob: bytes, kind: str, inner: bytes) -> None:
    name = kind.encode()
    public_key = struct.pack("!I", len(name)) + name + blob
    for algorithm in ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512"):
        assert not verify_signature(SshSignature(public_key, algorithm, inner), message())


def make_rsa_key(exponent: int, modulus_bits: int = 3072) -> bytes:
    """The wire blob of a key that nobody has."""
    numbers = (exponent, (1 << modulus_bits) - 1)
    words = [b"ssh-rsa", *(number.to_bytes(number.bit_length() // 8 + 1, "big") for number in numbers)]
    return b"".join(struct.pack("!I", len(word)) + word for word in words)


@pytest.mark.parametrize("blob", [make_rsa_key(2**33 + 1), make_rsa_key(2**3000 + 1), make_rsa_key(65537, 8200)])
def test_an_rsa_key_that_costs_much_to_check_is_not_tried(monkeypatch: pytest.MonkeyPatch, blob: bytes) -> None:
    load_public_key(make_rsa_key(2**33 - 1))
    with pytest.raises(KeyTextError):
        load_public_key(blob)
    monkeypatch.setattr(keys, "_verify", lambda *checked: pytest.fail("it was tried"))
    assert not verify_signature(SshSignature(blob, "rsa-sha2-512", bytes(384)), message())


def test_an_expired_key_is_refused(
    log_in: LogIn, database: AccountDatabase, add: Callable[..., None], ssh_keys: MakeKey
) -> None:
    key = ssh_keys("ed25519")
    add("alice", keys=(dataclasses.replace(key.public, expires=1.0),))
    assert_failed(log_in("key", user="alice", signature=key.word(message())))
    database.add_key("alice", dataclasses.replace(key.public, expires=1e11))
    assert isinstance(log_in("key", user="alice", signature=key.word(message())), LoggedIn)


@pytest.mark.parametrize("kind", GOOD_KINDS)
def test_a_pub_file_is_read(ssh_keys: MakeKey, kind: str) -> None:
    path = ssh_keys(kind).path.with_suffix(".pub")
    (key,) = parse_keys(f"# mine\n\n{path.read_text()}")
    assert key.comment == kind
    assert key.expires is None
    (dated,) = parse_keys(f'expiry-time="20271231Z" {path.read_text()}')
    assert dated.expires == 1830211200.0
    assert dated.blob == key.blob
    assert len(parse_keys(path.read_text() * 2)) == 2


def test_lines_that_hold_no_key_that_is_taken(ssh_keys: MakeKey) -> None:
    good = ssh_keys("ed25519").path.with_suffix(".pub").read_text().strip()
    kind, encoded, _ = good.split()
    rsa = ssh_keys("rsa-3072").path.with_suffix(".pub").read_text().split()[1]
    for text, why in {
        "": "no key",
        "# nothing\n": "no key",
        ssh_keys("ed25519").path.read_text(): "private key",
        ssh_keys("rsa-2048").path.with_suffix(".pub").read_text(): "2048 bits",
        f"ssh-dss {encoded}": "not an ed25519",
        f"sk-{kind} {encoded}": "not an ed25519",
        f"{kind}-cert-v01@openssh.com {encoded}": "not an ed25519",
        kind: "not an ed25519",
        f"{kind} {encoded[:-4]}": "not an ed25519",
        f"{kind} {encoded}!": "damaged",
        f"{kind} {rsa}": "another type",
        f'from="10.0.0.1" {good}': "option",
        f'command="true",expiry-time="20271231" {good}': "option",
        f'expiry-time="20271231",restrict {good}': "option",
        f'expiry-time="20271331" {good}': "no date",
    }.items():
        with pytest.raises(KeyTextError, match=why):
            parse_keys(text)
    with pytest.raises(KeyTextError, match="line 2"):
        parse_keys(f"{good}\nnonsense\n")


# tokens ---------------------------------------------------------------------------------------------------------------


def test_a_token_logs_in_until_it_is_revoked_or_expired(
    log_in: LogIn, database: AccountDatabase, add: Callable[..., None]
) -> None:
    add("ci", home=None)
    add("alice")
    text, token = make_token("ci", "backup", 1.0)
    late, late_token = make_token("ci", "late", 1.0, 2.0)
    database.add_token(token)
    database.add_token(late_token)
    assert log_in("token", token=text) == LoggedIn("ci", None)
    assert log_in("token", token=text, user="ci") == LoggedIn("ci", None)
    assert_failed(log_in("token", token=text, user="alice"))
    assert_failed(log_in("token", token=late))
    for wrong in (
        "",
        "tp_",
        text[:-1],
        text + "x",
        text[:-1] + ("A" if text[-1] != "A" else "B"),
        text.upper(),
        "\udc80",
    ):
        assert_failed(log_in("token", token=wrong))
    assert_failed(log_in("token", token=f"tp_{token.id}_{late.rpartition('_')[2]}"))
    database.set_disabled("ci", True)
    assert_failed(log_in("token", token=text))
    database.set_disabled("ci", False)
    assert isinstance(log_in("token", token=text), LoggedIn)
    database.revoke_token("ci", token.id)
    assert_failed(log_in("token", token=text))


def test_the_database_does_not_know_the_token(database: AccountDatabase, add: Callable[..., None]) -> None:
    add("ci")
    text, token = make_token("ci", "", 1.0)
    database.add_token(token)
    secret = text.split("_", 2)[2].encode()
    files: list[Path] = list(database.path.parent.glob("accounts.db*"))
    assert files
    assert not any(secret in file.read_bytes() for file in files)
    assert repr(token).count(token.digest.hex()) == 0


@given(st.text(max_size=80))
def test_no_text_makes_a_token(text: str) -> None:
    assert check_token(text, lambda token_id: None, 0.0) is None


# passwords ------------------------------------------------------------------------------------------------------------


def test_a_password_logs_in_and_every_other_try_fails_alike(
    log_in: LogIn, database: AccountDatabase, add: Callable[..., None]
) -> None:
    add("alice")
    add("disabled", is_disabled=True)
    add("keyless", password_hash=None)
    add("damaged", password_hash="")
    assert log_in("password", user="alice", password=PASSWORD) == LoggedIn("alice", "alice")
    for user in ("alice", "disabled", "keyless", "damaged", "nobody", "", "-x", "a b"):
        password = "wrong password" if user == "alice" else PASSWORD
        assert_failed(log_in("password", user=user, password=password))
    assert_failed(log_in("password", user="keyless/", password=PASSWORD))


def test_a_failed_password_is_locked_for_a_moment_but_a_key_gets_in(
    log_in: LogIn, add: Callable[..., None], database: AccountDatabase, ssh_keys: MakeKey
) -> None:
    key = ssh_keys("ed25519")
    add("alice", keys=(key.public,))
    text, token = make_token("alice", "", 1.0)
    database.add_token(token)
    assert_failed(log_in("password", user="alice", password="wrong password"))
    for _ in range(50):
        outcome = log_in("password", user="alice", password=PASSWORD)
        assert isinstance(outcome, Refusal)
        assert (outcome.code, outcome.retry_seconds) == (ErrorCode.LOCKED, 1)
    stranger = ssh_keys("ed25519/other").word(message())
    for _ in range(50):
        assert_failed(log_in("key", user="alice", signature=stranger))
        assert_failed(log_in("token", token=text[:-3] + "AAA"))
    assert isinstance(log_in("key", user="alice", signature=key.word(message())), LoggedIn)
    assert isinstance(log_in("token", token=text), LoggedIn)


def test_an_unknown_method_is_a_bad_request(log_in: LogIn) -> None:
    outcome = log_in("magic", user="alice")
    assert isinstance(outcome, Refusal)
    assert outcome.code is ErrorCode.BAD_REQUEST


def test_a_closed_authenticator_says_so(store: AccountStore, hasher: PasswordHasher) -> None:
    authenticator = Authenticator(store, Throttle(lambda: 0.0), PasswordDesk(lambda *change: None, hasher=hasher))
    authenticator.close()
    for method in ("password", "key"):
        outcomes: SimpleQueue[LoggedIn | Refusal] = SimpleQueue()
        authenticator.authenticate(LoginRequest(method, {"user": "x"}, SERVER_NONCE, NONCE, None, HERE), outcomes.put)
        outcome = outcomes.get(timeout=30)
        assert isinstance(outcome, Refusal)
        assert outcome.code is ErrorCode.SHUTTING_DOWN

"""Which server, who one is there and how it is protected: flag before environment before profile before default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twinport.addresses import Address
from twinport.cli.context import Settings
from twinport.cli.destination import find_destination
from twinport.connector import TlsMode
from twinport.errors import NotFoundError, UsageError
from twinport.known_servers import KnownServers
from twinport.login import Situation, TokenProof
from twinport.profiles import Profile, Profiles
from twinport.secrets_store import find_token, keep_token

from tests.client.conftest import RunCommand
from tests.client.secure_server import SecureServer, accept_as, make_certificate, refuse

ONE, TWO = b"\x01" * 32, b"\x02" * 32
FILES = Address("files.example.org", 5001)


@pytest.fixture
def profiles() -> Profiles:
    """Alice with a key and bob with a token on one server, and somewhere without login; the last is the default."""
    made = Profiles()
    made.save(Profile("files", FILES, "alice", ONE, True, "key", "/keys/alice"))
    made.save(Profile("bob", FILES, "bob", ONE, True, "token", token_in="file"))
    made.save(Profile("open", Address("open.example.org", 6001)))
    keep_token("bob", "tp_bob")
    return Profiles()


def test_nothing_said_is_this_machine() -> None:
    place = find_destination(Settings())
    assert place.address == Address("127.0.0.1", 5001)
    assert place.security.tls is TlsMode.AUTO
    assert place.credentials.user is None
    assert not place.credentials.is_wanted


def test_profiles_fill_in_what_was_not_said(profiles: Profiles, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_destination(Settings()).address == Address("open.example.org", 6001)
    place = find_destination(Settings(profile="files"))
    assert (place.address, place.credentials.user, place.credentials.key) == (FILES, "alice", "/keys/alice")
    assert place.security.profile_fingerprint == ONE
    assert place.credentials.is_wanted
    monkeypatch.setenv("TWINPORT_PROFILE", "bob")
    place = find_destination(Settings())
    assert place.credentials.user == "bob"
    assert place.credentials.key is None
    assert place.credentials.stored_token is not None
    assert place.credentials.stored_token() == "tp_bob"
    assert find_destination(Settings(profile="files")).credentials.user == "alice"
    monkeypatch.setenv("TWINPORT_PROFILE", "nobody")
    with pytest.raises(NotFoundError, match="there are: bob, files, open"):
        find_destination(Settings())


def test_a_host_alone_finds_its_profile_and_no_other_ones_secrets(profiles: Profiles) -> None:
    place = find_destination(Settings(host="files.example.org"))
    assert place.security.profile_fingerprint == ONE
    assert place.credentials.user in ("alice", "bob")
    place = find_destination(Settings(host="bob@files.example.org"))
    assert place.credentials.user == "bob"
    assert place.credentials.stored_token is not None
    place = find_destination(Settings(host="eve@files.example.org"))
    assert (place.credentials.user, place.credentials.key) == ("eve", None)
    assert place.credentials.stored_token is None
    place = find_destination(Settings(host="elsewhere.example.org"))
    assert place.profile is None
    assert place.credentials.key is None
    with pytest.raises(UsageError, match="the profile files is for"):
        find_destination(Settings(host="elsewhere.example.org", profile="files"))


def test_flags_win_over_the_environment_and_that_over_profiles(
    profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "TWINPORT_HOST": "carol@env.example.org:7001",
        "TWINPORT_FINGERPRINT": TWO.hex(),
        "TWINPORT_KEY": "/keys/env",
        "TWINPORT_TLS": "0",
        "TWINPORT_CA_FILE": "/ca/env",
    }.items():
        monkeypatch.setenv(name, value)
    place = find_destination(Settings())
    assert place.address == Address("env.example.org", 7001)
    assert (place.credentials.user, place.credentials.key) == ("carol", "/keys/env")
    assert (place.security.fingerprint, place.security.ca_file) == (TWO, "/ca/env")
    assert place.security.tls is TlsMode.NEVER
    place = find_destination(
        Settings(host="x@files.example.org", user="dave", fingerprint=ONE.hex(), key="/k", tls=True, ca_file="/ca")
    )
    assert (place.address, place.credentials.user, place.credentials.key) == (FILES, "dave", "/k")
    assert (place.security.fingerprint, place.security.ca_file, place.security.tls) == (ONE, "/ca", TlsMode.ALWAYS)
    monkeypatch.setenv("TWINPORT_TOKEN", "tp_env")
    assert find_destination(Settings(key="/k")).credentials.token is None  # a key was named, which is more than found
    monkeypatch.delenv("TWINPORT_KEY")
    assert find_destination(Settings()).credentials.token == "tp_env"


def test_the_secrets_of_the_environment_are_for_the_server_and_the_user_that_it_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TWINPORT_PASSWORD_FILE", "/secret")
    assert find_destination(Settings(host="eve@elsewhere.example.org")).credentials.password_file == "/secret"
    monkeypatch.setenv("TWINPORT_HOST", "bob@files.example.org")
    assert find_destination(Settings()).credentials.password_file == "/secret"
    assert find_destination(Settings(host="bob@files.example.org:5001")).credentials.password_file == "/secret"
    monkeypatch.setenv("TWINPORT_TOKEN", "tp_env")
    assert find_destination(Settings()).credentials.token == "tp_env"
    for settings in (
        Settings(host="bob@elsewhere.example.org"),
        Settings(host="bob@files.example.org:6001"),
        Settings(host="eve@files.example.org"),
        Settings(user="eve"),
    ):
        credentials = find_destination(settings).credentials
        assert (credentials.password_file, credentials.token) == (None, None)


def test_a_token_is_sent_with_the_user_that_was_named_and_no_other(
    profiles: Profiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = find_destination(Settings(host="eve@files.example.org"), token="tp_bob", is_login=True)
    assert named.credentials.user == "eve"
    # Not with that of a profile: the token says itself whose it is.
    unnamed = find_destination(Settings(host="files.example.org"), token="tp_bob", is_login=True)
    assert (unnamed.profile is not None, unnamed.credentials.user) == (True, None)
    monkeypatch.setenv("TWINPORT_TOKEN", "tp_env")
    assert find_destination(Settings(profile="files")).credentials.user is None
    situation = Situation("", "", None)
    assert TokenProof("tp_x", user="eve").words(situation) == ("token", {"user": "eve", "token": "tp_x"})
    assert TokenProof("tp_x").words(situation) == ("token", {"token": "tp_x"})


@pytest.mark.parametrize(
    ("settings", "variables", "text"),
    [
        ({"tls": True, "plaintext": True}, {}, "contradict"),
        ({}, {"TWINPORT_TLS": "yes"}, "TWINPORT_TLS is 1 or 0"),
        ({}, {"TWINPORT_FINGERPRINT": "x"}, "TWINPORT_FINGERPRINT takes the 64"),
        ({"fingerprint": "x"}, {}, "--fingerprint takes the 64"),
        ({"host": "@host"}, {}, "is no address"),
    ],
)
def test_contradictions_are_told(
    settings: dict[str, Any], variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=text):
        find_destination(Settings(**settings))


def test_a_login_starts_anew(profiles: Profiles) -> None:
    place = find_destination(Settings(host="bob@files.example.org", profile="new"), token="tp_new", is_login=True)
    assert place.credentials.token == "tp_new"
    assert place.credentials.stored_token is None
    assert place.security.profile_fingerprint == ONE


def test_a_token_goes_to_its_own_server_only_and_is_forgotten_with_the_profile(
    tmp_path: Path, run_command: RunCommand
) -> None:
    server = SecureServer(make_certificate(tmp_path / "one.pem"), {"file": b""})
    other = SecureServer(make_certificate(tmp_path / "two.pem"), {"file": b""})
    for each in (server, other):
        each.options["login"] = "required"
        each.check = lambda command, nonce: (
            accept_as(command, "ci") if command.options.get("token") == "tp_good" else refuse(command)
        )
    host = f"127.0.0.1:{server.port}"
    try:
        words = ["login", host, "--fingerprint", server.certificate.fingerprint.hex(), "--token-stdin", "--json"]
        code, shown, complaint = run_command(*words, "--profile", "build", given="tp_good\n")
        assert (code, complaint) == (0, "")
        assert '"profile": "build"' in shown
        assert find_token("build", "file") == "tp_good"
        pin = server.certificate.fingerprint
        address = Address("127.0.0.1", server.port)
        assert Profiles().default() == Profile("build", address, "ci", pin, True, "token", token_in="file")
        assert run_command("ls") == (0, "file\n", "")
        assert run_command("quota")[1].startswith("user        alice\nstored      2.0 KiB (of 1.0 MiB)\n")

        # Another server at another port, trusted too: it sees no token of the first.
        KnownServers().add(Address("127.0.0.1", other.port), other.certificate.fingerprint)
        code, _, complaint = run_command("--host", f"127.0.0.1:{other.port}", "ls")
        assert code == 4
        assert "there is nothing to log in with" in complaint
        assert other.commands == []

        code, _, complaint = run_command("login", host, "--token-stdin", given="tp_bad")
        assert code == 4
        assert "tp_bad" not in complaint
        assert run_command("login", host, "--token-stdin", given="")[0] == 2
        assert run_command("login", host, "--token-stdin", "--password-stdin")[0] == 2
        assert run_command("logout")[0] == 0
        assert find_token("build", "file") is None
        assert run_command("logout")[0] == 2
    finally:
        server.close()
        other.close()


def test_what_proves_is_not_what_shows() -> None:
    assert TokenProof("tp_x").label == "the token"

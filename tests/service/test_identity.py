"""The identity file: made once, for the owner's eyes only, and never used when it is not what it should be."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from twinport_protocol.errors import Refusal
from twinport_protocol.tickets import Action, Ticket
from twinport_service.identity import IdentityError, load_identity

TICKET = Ticket(Action.UPLOAD, "u", b"scope", 5, 2**40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the identity is kept, in a directory that is not there yet."""
    return tmp_path / "own" / "identity.json"


def test_it_is_made_once_and_stays(path: Path) -> None:
    raw = load_identity(path).sign(TICKET)
    assert load_identity(path).verify(raw, 0) == TICKET
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.json"]


def test_two_servers_do_not_trust_each_other(tmp_path: Path) -> None:
    raw = load_identity(tmp_path / "a.json").sign(TICKET)
    with pytest.raises(Refusal):
        load_identity(tmp_path / "b.json").verify(raw, 0)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_it_whatever_the_umask(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        load_identity(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o610])
def test_one_that_others_could_read_is_refused(path: Path, mode: int) -> None:
    load_identity(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {path}"):
        load_identity(path)


def test_what_a_crash_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    path.with_name("identity.json.new").write_text("half of")
    load_identity(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.json"]


GOOD = {"audience": "00" * 16, "signing": 1, "keys": {"1": "11" * 32}}


def test_two_keys_overlap_in_a_rotation(path: Path) -> None:
    path.parent.mkdir()

    def write(value: object) -> None:
        path.write_text(json.dumps(value))
        path.chmod(0o600)

    write(GOOD)
    old = load_identity(path).sign(TICKET)
    write({**GOOD, "signing": 2, "keys": {"1": "11" * 32, "2": "22" * 32}})
    both = load_identity(path)
    assert both.verify(old, 0) == TICKET
    new = both.sign(TICKET)
    write({**GOOD, "signing": 2, "keys": {"2": "22" * 32}})
    only_new = load_identity(path)
    assert only_new.verify(new, 0) == TICKET
    with pytest.raises(Refusal):
        only_new.verify(old, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        "{}",
        json.dumps({**GOOD, "audience": "00"}),
        json.dumps({**GOOD, "audience": 5}),
        json.dumps({**GOOD, "signing": 2}),
        json.dumps({**GOOD, "signing": "x"}),
        json.dumps({**GOOD, "keys": {}}),
        json.dumps({**GOOD, "keys": ["11" * 32]}),
        json.dumps({**GOOD, "keys": {"1": "11" * 31}}),
        json.dumps({**GOOD, "keys": {"x": "11" * 32}}),
        json.dumps({**GOOD, "keys": {"1": "zz" * 32}}),
        json.dumps({**GOOD, "keys": {"-1": "11" * 32}, "signing": -1}),
        json.dumps({**GOOD, "keys": {"4294967296": "11" * 32}, "signing": 4294967296}),
        json.dumps(GOOD)[:-10],
    ],
)
def test_a_damaged_one_is_never_used_and_never_replaced(path: Path, text: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=r"is damaged\. Restore it from a backup, or remove it"):
        load_identity(path)
    assert path.read_text() == text


def test_one_that_cannot_be_read_is_told(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(IdentityError, match="cannot read"):
        load_identity(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(IdentityError, match="cannot read"):
        load_identity(path)

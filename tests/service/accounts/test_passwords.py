"""Passwords: what is right, what is wrong, what is damaged, and how many are checked at once."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from argon2 import PasswordHasher, extract_parameters
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.accounts.passwords import (
    MEMORY_KIB,
    TIME_COST,
    PasswordDesk,
    PasswordRejected,
    hash_password,
    make_hasher,
)
from twinport_service.log import configure_logging

from tests.service.accounts.conftest import PASSWORD

REPLACED = list[tuple[str, str, str]]


@pytest.fixture
def replaced() -> REPLACED:
    """What the desk wanted to have kept."""
    return []


@pytest.fixture
def desk(hasher: PasswordHasher, replaced: REPLACED) -> Iterator[PasswordDesk]:
    with closing(PasswordDesk(lambda *change: replaced.append(change), hasher=hasher)) as opened:
        yield opened


@pytest.fixture
def log() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("human", "debug", stream)
    return stream


def test_the_parameters_are_those_of_the_recommendation() -> None:
    parameters = extract_parameters(hash_password(PASSWORD))
    assert parameters.type.name == "ID"
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (19 * 1024, 2, 1)
    assert (MEMORY_KIB, TIME_COST) == (19 * 1024, 2)


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        (PASSWORD, True),
        (PASSWORD + " ", False),
        (PASSWORD[:-1], False),
        (PASSWORD.upper(), False),
        ("", False),
        ("x" * 8000, False),
        ("\udc80", False),
        (PASSWORD + "\0", False),
    ],
)
def test_only_the_password_itself_is_right(
    desk: PasswordDesk, hasher: PasswordHasher, password: str, expected: bool
) -> None:
    assert desk.check("alice", hasher.hash(PASSWORD), password) is expected


@pytest.mark.parametrize("password", ["pässwörd", "密码密码密码密码", "correct=horse %41 \\"])
def test_a_password_may_have_any_letters(desk: PasswordDesk, password: str) -> None:
    assert desk.check("alice", hash_password(password), password)


@pytest.mark.parametrize("password", ["", "short", "seven77", "x" * 1025, "two lines\nof it", "a\0bcdefgh"])
def test_passwords_that_are_not_taken(password: str) -> None:
    with pytest.raises(PasswordRejected):
        hash_password(password)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        " ",
        "x",
        PASSWORD,
        "$argon2id$",
        "$argon2id$v=19$m=19456,t=2,p=1$",
        "$1$abc$def",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$",
    ],
)
def test_a_damaged_hash_lets_nobody_in_and_is_reported(desk: PasswordDesk, log: io.StringIO, damaged: str) -> None:
    for password in ("", PASSWORD, damaged):
        assert not desk.check("alice", damaged, password)
    assert log.getvalue().count("[LOGIN] A stored password hash is damaged") == 3
    assert "user=alice" in log.getvalue()
    assert PASSWORD not in log.getvalue()


def test_without_a_hash_no_password_is_right(desk: PasswordDesk, log: io.StringIO) -> None:
    assert not desk.check("alice", None, "")
    assert not desk.check("alice", None, PASSWORD)
    assert log.getvalue() == ""


def test_a_good_password_is_kept_under_the_parameters_of_today(
    desk: PasswordDesk, hasher: PasswordHasher, replaced: REPLACED
) -> None:
    old = make_hasher(time_cost=2, memory_kib=64).hash(PASSWORD)
    assert not desk.check("alice", old, "another password")
    assert replaced == []
    assert desk.check("alice", old, PASSWORD)
    ((user, before, after),) = replaced
    assert (user, before) == ("alice", old)
    assert hasher.verify(after, PASSWORD)
    assert not hasher.check_needs_rehash(after)


class SlowHasher(PasswordHasher):
    """Every check waits until the test says so."""

    def __init__(self) -> None:
        super().__init__(1, 64, 1)
        self.go_on = threading.Event()
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        self.go_on.wait(30)
        with self._lock:
            self.at_once -= 1
        super().verify(hash, password)
        return True


def test_two_are_checked_at_once_64_wait_and_the_next_is_busy() -> None:
    hasher = SlowHasher()
    outcomes: list[bool] = []
    with closing(PasswordDesk(lambda *change: None, hasher=hasher)) as desk:
        known = hasher.hash(PASSWORD)
        done = threading.Semaphore(0)

        def on_done(is_right: bool) -> None:
            outcomes.append(is_right)
            done.release()

        for number in range(66):
            desk.submit("alice", known, PASSWORD if number % 2 else "wrong", on_done)
        with pytest.raises(Refusal) as refused:
            desk.submit("alice", known, PASSWORD, on_done)
        assert refused.value.code is ErrorCode.BUSY
        assert refused.value.retry_seconds
        hasher.go_on.set()
        for _ in range(66):
            assert done.acquire(timeout=30)
        assert outcomes.count(True) == 33
        assert hasher.most_at_once == 2
        desk.submit("alice", known, PASSWORD, on_done)
        assert done.acquire(timeout=30)


def test_a_closed_desk_says_so(hasher: PasswordHasher) -> None:
    desk = PasswordDesk(lambda *change: None, hasher=hasher)
    desk.close()
    with pytest.raises(Refusal) as refused:
        desk.submit("alice", None, PASSWORD, lambda is_right: None)
    assert refused.value.code is ErrorCode.SHUTTING_DOWN

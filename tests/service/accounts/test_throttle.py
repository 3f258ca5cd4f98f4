"""How often passwords may be tried, with a clock that only the test moves."""

from __future__ import annotations

import itertools
from contextlib import suppress

import pytest
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.accounts.throttle import (
    FORGET_SECONDS,
    MAX_AT_ONCE,
    MAX_DELAY_SECONDS,
    NETWORK_BURST,
    TRUST_SECONDS,
    USER_BURST,
    Throttle,
)

HERE = ("192.0.2.1", 5001)


class Clock:
    """Time stands still but for :meth:`pass_by`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle(clock)


def refused(throttle: Throttle, user: str, peer: object) -> tuple[ErrorCode, int | None] | None:
    """How a try is refused; one that is not counts as failed."""
    try:
        tried = throttle.admit(user, peer)
    except Refusal as refusal:
        return refusal.code, refusal.retry_seconds
    if tried.is_checked:
        throttle.settle(tried, is_good=False)
    return None if tried.refusal is None else (tried.refusal.code, tried.refusal.retry_seconds)


def log_in(throttle: Throttle, user: str, peer: object) -> None:
    tried = throttle.admit(user, peer)
    assert tried.is_checked
    throttle.settle(tried, is_good=True)


def other(number: int) -> tuple[str, int]:
    return (f"198.51.{number // 250}.{number % 250}", 1)


def test_each_failure_doubles_the_wait_up_to_30_seconds(throttle: Throttle, clock: Clock) -> None:
    for seconds in (1, 2, 4, 8, 16, 30, 30, 30):
        assert refused(throttle, "alice", HERE) is None
        assert refused(throttle, "alice", HERE) == (ErrorCode.LOCKED, seconds)
        clock.pass_by(seconds - 0.01)
        assert refused(throttle, "alice", HERE) == (ErrorCode.LOCKED, 1)
        clock.pass_by(0.01)


def test_asking_while_locked_lengthens_nothing(throttle: Throttle, clock: Clock) -> None:
    assert refused(throttle, "alice", HERE) is None
    for _ in range(1000):
        assert refused(throttle, "alice", HERE) == (ErrorCode.LOCKED, 1)
    clock.pass_by(1)
    log_in(throttle, "alice", HERE)


def test_a_login_leaves_no_trace_in_what_failures_are_answered(throttle: Throttle, clock: Clock) -> None:
    for _ in range(3):
        assert refused(throttle, "alice", HERE) is None
        clock.pass_by(30)
    log_in(throttle, "alice", HERE)
    assert refused(throttle, "alice", HERE) is None
    assert refused(throttle, "alice", HERE) == (ErrorCode.LOCKED, 8)


def test_other_users_and_other_networks_are_not_held_up(throttle: Throttle) -> None:
    assert refused(throttle, "alice", HERE) is None
    assert refused(throttle, "bob", HERE) is None
    assert refused(throttle, "alice", ("192.0.2.2", 5001)) is None
    assert refused(throttle, "alice", ("192.0.2.1", 4)) == (ErrorCode.LOCKED, 1), "another port is the same network"


def test_what_was_long_ago_is_forgotten(throttle: Throttle, clock: Clock) -> None:
    for _ in range(4):
        assert refused(throttle, "alice", HERE) is None
        clock.pass_by(30)
    clock.pass_by(FORGET_SECONDS)
    assert refused(throttle, "alice", HERE) is None
    assert refused(throttle, "alice", HERE) == (ErrorCode.LOCKED, 1)


def test_guesses_at_once_gain_a_handful_and_then_one_at_a_time(throttle: Throttle, clock: Clock) -> None:
    under_way = [throttle.admit("alice", HERE) for _ in range(MAX_AT_ONCE)]
    assert refused(throttle, "alice", HERE) == (ErrorCode.BUSY, 1)
    for tried in under_way:
        throttle.settle(tried, is_good=False)
    clock.pass_by(MAX_DELAY_SECONDS)
    alone = throttle.admit("alice", HERE)
    assert refused(throttle, "alice", HERE) == (ErrorCode.BUSY, 1)
    throttle.settle(alone, is_good=True)
    log_in(throttle, "alice", HERE)


def test_many_networks_share_the_users_rate(throttle: Throttle, clock: Clock) -> None:
    outcomes = [refused(throttle, "alice", other(number)) for number in range(100)]
    assert outcomes.count(None) == USER_BURST
    clock.pass_by(10)
    assert [refused(throttle, "alice", other(number)) for number in range(100, 200)].count(None) == 10


def test_many_users_share_the_networks_rate(throttle: Throttle, clock: Clock) -> None:
    outcomes = [refused(throttle, f"user{number}", HERE) for number in range(200)]
    assert outcomes.count(None) == NETWORK_BURST
    clock.pass_by(10)
    assert [refused(throttle, f"other{number}", HERE) for number in range(200)].count(None) == 10


def test_strangers_keep_nobody_out_of_where_they_usually_are(throttle: Throttle, clock: Clock) -> None:
    log_in(throttle, "alice", HERE)
    for number in range(500):
        refused(throttle, "alice", other(number))
        refused(throttle, f"user{number}", HERE)
    log_in(throttle, "alice", HERE)
    clock.pass_by(TRUST_SECONDS + 1)
    for number in range(500, 1000):
        refused(throttle, "alice", other(number))
    assert refused(throttle, "alice", HERE) is not None
    assert not throttle.admit("alice", HERE).is_checked, "that was too long ago"


def test_past_the_rates_guesses_at_somebody_trusted_wait_too_and_look_like_all_others(
    throttle: Throttle, clock: Clock
) -> None:
    log_in(throttle, "alice", HERE)
    for number in range(NETWORK_BURST):
        assert refused(throttle, f"user{number}", HERE) is None
    waits = []
    for _ in range(200):
        looked_at = throttle.admit("alice", HERE)
        assert looked_at.refusal is not None
        if looked_at.is_checked:
            waits.append(clock.now)
            throttle.settle(looked_at, is_good=False)
        unknown = throttle.admit("nobody", HERE)
        assert unknown.refusal is not None
        assert not unknown.is_checked
        assert (unknown.refusal.code, unknown.refusal.retry_seconds) == (ErrorCode.LOCKED, 1)
        assert (looked_at.refusal.code, looked_at.refusal.retry_seconds) == (ErrorCode.LOCKED, 1)
        clock.pass_by(0.5)
        refused(throttle, f"user{clock.now}", HERE)  # so that the rate stays used up
    assert [later - sooner for sooner, later in itertools.pairwise(waits)][:7] == [1, 2, 4, 8, 16, 30, 30]


def test_somebody_trusted_may_log_in_more_than_once_at_a_time_after_a_slip(throttle: Throttle, clock: Clock) -> None:
    log_in(throttle, "alice", HERE)
    assert refused(throttle, "alice", HERE) is None
    clock.pass_by(1)
    tries = [throttle.admit("alice", HERE) for _ in range(MAX_AT_ONCE)]
    assert all(tried.is_checked for tried in tries)
    assert [tried.refusal is None for tried in tries] == [True] + [False] * (MAX_AT_ONCE - 1)
    for tried in tries:
        throttle.settle(tried, is_good=True)
    log_in(throttle, "alice", HERE)


def test_logins_do_not_use_up_the_rates(throttle: Throttle) -> None:
    for number in range(300):
        log_in(throttle, f"user{number}", HERE)
        log_in(throttle, "alice", other(number))


def test_what_was_never_checked_does_not_count(throttle: Throttle) -> None:
    for _ in range(300):
        throttle.withdraw(throttle.admit("alice", HERE))
    log_in(throttle, "alice", HERE)


def test_a_million_addresses_need_no_more_room_than_a_full_table(clock: Clock) -> None:
    throttle = Throttle(clock, entries=1000)
    for number in range(20_000):
        with suppress(Refusal):
            throttle.settle(throttle.admit("alice", (f"2001:db8:{number:x}::1", 1)), is_good=False)
        clock.pass_by(1)
    assert len(throttle) <= 2000, "none of them is trusted"


def test_a_full_table_forgets_in_favour_of_the_one_held_up(clock: Clock) -> None:
    throttle = Throttle(clock, entries=10)
    assert refused(throttle, "alice", HERE) is None
    for number in range(10):
        assert refused(throttle, "bob", other(number)) is None
    assert refused(throttle, "alice", HERE) is None


def test_switched_off_it_holds_nobody_up(clock: Clock) -> None:
    throttle = Throttle(clock, enabled=False)
    for _ in range(1000):
        assert refused(throttle, "alice", HERE) is None
    assert len(throttle) == 0

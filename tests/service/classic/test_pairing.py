"""Whose data connection is it: the state alone, with a clock in the hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_service.classic.pairing import Failed, Granted, Outcome, Paired, Pairing, PairingTimes, Refused

HOME, OTHER = "192.0.2.1", "192.0.2.2"
TIMES = PairingTimes(alone_seconds=10.0, contended_seconds=3.0, settle_seconds=1.0)


def make(**bounds: int) -> Pairing[str, str]:
    return Pairing(TIMES, **bounds)


def take_turn(pairing: Pairing[str, str], claim: str, address: str = HOME, now: float = 0.0) -> None:
    assert pairing.request(claim, address, now) == [Granted(claim)]
    make_ready(pairing, claim, now)


def make_ready(pairing: Pairing[str, str], claim: str, now: float = 0.0) -> None:
    pairing.open(claim, now)
    pairing.mark_ready(claim)


def test_the_first_is_granted_at_once_and_paired_with_what_comes() -> None:
    pairing = make()
    take_turn(pairing, "A")
    assert pairing.arrive("a", HOME, 0.1) == []
    assert pairing.settle(HOME, 0.1) == [Paired("A", "a")]
    assert pairing.size == 0
    assert pairing.deadline is None


def test_the_second_is_held_back_until_the_first_was_paired() -> None:
    pairing = make()
    take_turn(pairing, "A")
    assert pairing.request("B", HOME, 0.0) == []
    pairing.arrive("a", HOME, 0.1)
    assert pairing.settle(HOME, 0.1) == [Paired("A", "a"), Granted("B")]
    make_ready(pairing, "B", 0.1)
    pairing.arrive("b", HOME, 0.2)
    assert pairing.settle(HOME, 0.2) == [Paired("B", "b")]


def test_addresses_do_not_wait_for_each_other() -> None:
    pairing = make()
    take_turn(pairing, "A", HOME)
    take_turn(pairing, "B", OTHER)
    pairing.arrive("b", OTHER, 0.0)
    assert pairing.settle(OTHER, 0.0) == [Paired("B", "b")]
    assert pairing.settle(HOME, 0.0) == []


def test_a_connection_that_nobody_expects_is_refused() -> None:
    pairing = make()
    assert pairing.arrive("early", HOME, 0.0) == [Refused("early")]
    take_turn(pairing, "A")
    assert pairing.arrive("foreign", OTHER, 0.0) == [Refused("foreign")]
    assert pairing.settle(HOME, 0.0) == []


def test_what_came_before_the_ok_is_refused_though_the_turn_is_granted() -> None:
    pairing = make()
    assert pairing.request("A", HOME, 0.0) == [Granted("A")]
    assert pairing.arrive("early", HOME, 0.0) == [Refused("early")]
    make_ready(pairing, "A")
    assert pairing.settle(HOME, 0.0) == []
    assert pairing.withdraw("A", 0.0) == []


def test_one_that_leaves_before_its_ok_leaves_nothing_behind() -> None:
    pairing = make()
    pairing.request("A", HOME, 0.0)
    pairing.request("B", HOME, 0.0)
    assert pairing.withdraw("A", 0.0) == [Granted("B")]


def test_a_connection_during_the_transfer_is_refused() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.arrive("a", HOME, 0.0)
    pairing.settle(HOME, 0.0)
    assert pairing.arrive("intruder", HOME, 0.0) == [Refused("intruder")]


def test_two_for_one_are_nobodys() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.arrive("one", HOME, 0.0)
    assert pairing.arrive("two", HOME, 0.0) == [Refused("one"), Refused("two"), Failed("A", ErrorCode.BUSY)]
    assert pairing.settle(HOME, 0.0) == []
    assert pairing.arrive("three", HOME, 0.5) == [Refused("three")]


def test_a_download_is_paired_when_its_client_said_ready() -> None:
    pairing = make()
    pairing.request("A", HOME, 0.0)
    pairing.open("A", 0.0)
    pairing.arrive("a", HOME, 0.0)
    assert pairing.settle(HOME, 0.0) == []
    pairing.mark_ready("A")
    assert pairing.settle(HOME, 0.0) == [Paired("A", "a")]


def test_ready_of_one_that_waits_means_nothing_yet() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.request("B", HOME, 0.0)
    pairing.mark_ready("B")
    pairing.mark_ready("unknown")
    pairing.arrive("a", HOME, 0.0)
    assert pairing.settle(HOME, 0.0) == [Paired("A", "a"), Granted("B")]
    pairing.open("B", 0.0)
    pairing.arrive("b", HOME, 0.0)
    assert pairing.settle(HOME, 0.0) == []


def test_alone_it_has_ten_seconds() -> None:
    pairing = make()
    take_turn(pairing, "A")
    assert pairing.deadline == 10.0
    assert pairing.expire(9.99) == []
    assert pairing.expire(10.0) == [Failed("A", ErrorCode.TIMEOUT)]


def test_while_others_wait_it_has_three() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.request("B", HOME, 1.0)
    assert pairing.deadline == 3.0
    assert pairing.expire(3.0) == [Failed("A", ErrorCode.TIMEOUT)]


def test_a_late_connection_is_not_the_next_ones() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.request("B", HOME, 1.0)
    pairing.expire(3.0)
    assert pairing.arrive("a, late", HOME, 3.9) == [Refused("a, late")]
    assert pairing.deadline == 4.0
    assert pairing.expire(4.0) == [Granted("B")]


def test_one_that_goes_away_unpaired_leaves_its_address_settling() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.request("B", HOME, 0.0)
    assert pairing.withdraw("A", 0.5) == []
    assert pairing.arrive("a, late", HOME, 0.6) == [Refused("a, late")]
    assert pairing.expire(1.5) == [Granted("B")]


def test_one_whose_connection_came_leaves_nothing_behind() -> None:
    pairing = make()
    pairing.request("A", HOME, 0.0)
    pairing.open("A", 0.0)
    pairing.request("B", HOME, 0.0)
    pairing.arrive("a", HOME, 0.0)
    assert pairing.withdraw("A", 0.5) == [Refused("a"), Granted("B")]


def test_a_download_without_ready_runs_out_with_its_connection() -> None:
    pairing = make()
    pairing.request("A", HOME, 0.0)
    pairing.open("A", 0.0)
    pairing.arrive("a", HOME, 0.0)
    assert pairing.expire(10.0) == [Refused("a"), Failed("A", ErrorCode.TIMEOUT)]


def test_one_that_waits_may_leave() -> None:
    pairing = make()
    take_turn(pairing, "A")
    pairing.request("B", HOME, 0.0)
    pairing.request("C", HOME, 0.0)
    assert pairing.withdraw("B", 0.0) == []
    assert pairing.withdraw("B", 0.0) == []
    pairing.arrive("a", HOME, 0.0)
    assert pairing.settle(HOME, 0.0) == [Paired("A", "a"), Granted("C")]


def test_the_queue_of_an_address_is_bounded() -> None:
    pairing = make(waiting_per_address=2)
    take_turn(pairing, "A")
    pairing.request("B", HOME, 0.0)
    pairing.request("C", HOME, 0.0)
    with pytest.raises(Refusal) as caught:
        pairing.request("D", HOME, 0.0)
    assert caught.value.code is ErrorCode.BUSY
    assert pairing.size == 3
    take_turn(pairing, "E", OTHER)


def test_an_address_that_is_done_is_forgotten() -> None:
    pairing = make()
    for number in range(1000):
        address = f"198.51.100.{number}"
        take_turn(pairing, str(number), address)
        pairing.arrive("x", address, 0.0)
        pairing.settle(address, 0.0)
    take_turn(pairing, "A")
    pairing.expire(10.0)
    pairing.expire(11.0)
    assert not pairing._places
    assert not pairing._addresses


acts = st.lists(
    st.tuples(
        st.sampled_from(["request", "open", "ready", "connect", "settle", "withdraw", "wait"]),
        st.integers(0, 5),
        st.sampled_from([HOME, OTHER]),
    ),
    max_size=60,
)


@given(acts)
def test_whatever_happens_nobody_gets_a_connection_that_came_before_his_ok(
    script: list[tuple[str, int, str]],
) -> None:
    """Each connection is paired or refused once, and only with a transfer of its address whose OK was before it."""
    pairing: Pairing[tuple[int, str], tuple[int, str]] = Pairing(TIMES, waiting_per_address=3)
    now = 0.0
    serial = 0
    claims: list[tuple[int, str]] = []
    granted: set[tuple[int, str]] = set()
    opened: dict[tuple[int, str], int] = {}
    ended: set[object] = set()

    def note(outcomes: list[Outcome[tuple[int, str], tuple[int, str]]]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Granted):
                granted.add(outcome.claim)
            elif isinstance(outcome, Paired):
                assert outcome.claim[1] == outcome.connection[1]
                assert opened[outcome.claim] < outcome.connection[0]
                assert outcome.claim not in ended
                assert outcome.connection not in ended
                ended.update((outcome.claim, outcome.connection))
            elif isinstance(outcome, Failed):
                assert outcome.claim not in ended
                ended.add(outcome.claim)
            else:
                assert outcome.connection not in ended
                ended.add(outcome.connection)
        expecting = [claim[1] for claim in granted if claim not in ended]
        assert len(expecting) == len(set(expecting))

    for serial, (act, number, address) in enumerate(script, 1):
        now += 0.1
        if act == "request":
            claim = (serial, address)
            try:
                note(pairing.request(claim, address, now))
                claims.append(claim)
            except Refusal:
                ended.add(claim)
        elif act == "open" and claims:
            claim = claims[number % len(claims)]
            pairing.open(claim, now)
            if claim in granted:
                opened.setdefault(claim, serial)
        elif act == "ready" and claims:
            pairing.mark_ready(claims[number % len(claims)])
        elif act == "connect":
            note(pairing.arrive((serial, address), address, now))
        elif act == "settle":
            note(pairing.settle(address, now))
        elif act == "withdraw" and claims:
            claim = claims[number % len(claims)]
            outcomes = pairing.withdraw(claim, now)
            ended.add(claim)
            note(outcomes)
        elif act == "wait":
            now += number
            note(pairing.expire(now))
    for _ in range(len(claims) * 2 + 2):
        now += 11.0
        note(pairing.expire(now))
    assert pairing.size == 0
    assert not pairing._places

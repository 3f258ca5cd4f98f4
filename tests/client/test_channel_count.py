"""How many channels: the climb over simulated lines, with a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport.channel_count import LONGEST_REST_SECONDS, REST_SECONDS, ChannelCount
from twinport.congestion import LineFacts

NEAR = LineFacts(rtt_seconds=0.0002)
MIB = 1024 * 1024
TICK_SECONDS = 0.1


class Line:
    """A transfer over a line whose channels together make ``rate(count)`` bytes per second."""

    def __init__(self, rate: Callable[[int], float], facts: LineFacts = NEAR, most: int | None = None) -> None:
        self.now = 100.0
        self.moved = 0.0
        self.rate = rate
        self.facts = facts
        self.count = ChannelCount(most, 8, lambda: self.now)
        self.count.begin(facts, 8)
        self.history: list[int] = []

    def run(self, seconds: float, *, is_busy: bool = True, lost_per_second: float = 0.0) -> None:
        """Let time pass; channels open and retire at once."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            self.moved += self.rate(self.count.wanted) * TICK_SECONDS
            packets = int(self.moved / 1448)
            lost = int(lost_per_second * (self.now - 100.0))
            seen = replace(self.facts, packets=packets, disturbed_packets=lost)
            self.count.note(int(self.moved), self.count.wanted, is_busy=is_busy, lines=[seen])
            self.history.append(self.count.wanted)


def test_a_short_line_begins_with_one_channel_and_a_long_one_with_several() -> None:
    begins = []
    for rtt_seconds in (0.0, 0.001, 0.05, 0.2):
        for is_paced in (False, True):
            count = ChannelCount(None, 8, lambda: 0.0)
            count.begin(LineFacts(rtt_seconds, is_paced=is_paced), 8)
            begins.append((count.wanted, count.opens_early))
    assert begins == [(1, False)] * 4 + [(2, True), (1, True), (4, True), (4, True)]


def test_where_each_channel_adds_its_rate_all_are_opened_within_seconds() -> None:
    line = Line(lambda count: count * 200.0 * MIB)
    line.run(10.0)
    assert line.count.wanted == 8


def test_where_one_channel_is_enough_another_is_tried_and_given_back_and_tried_ever_less_often() -> None:
    line = Line(lambda count: 900.0 * MIB)
    line.run(200.0)
    trials = [number for number, (a, b) in enumerate(pairwise(line.history)) if a < b]
    assert set(line.history) == {1, 2}
    waits = [(b - a) * TICK_SECONDS for a, b in pairwise(trials)]
    assert all(b > a - 1 for a, b in pairwise(waits))
    assert REST_SECONDS < waits[0] < 2 * REST_SECONDS
    assert len(trials) < 2 + 200.0 / (LONGEST_REST_SECONDS / 2)
    assert line.history.count(2) < 0.05 * len(line.history)


def test_a_channel_that_makes_all_slower_goes_at_once() -> None:
    line = Line(lambda count: 900.0 * MIB / count)
    line.run(2.0)
    assert line.history[-1] == 1
    assert 2 in line.history


def test_a_machine_that_holds_both_ends_does_not_try_more_than_its_cores_carry() -> None:
    for cores, most in ((1, 1), (2, 1), (8, 4)):
        now = [0.0]
        count = ChannelCount(None, cores, lambda now=now: now[0])  # type: ignore[misc]
        count.begin(LineFacts(is_local=True), 8)
        for step in range(200):
            now[0] += TICK_SECONDS
            count.note(step * step * MIB, count.wanted, is_busy=True)
        assert count.wanted == most


def test_a_rate_that_is_bounded_by_a_lack_of_work_says_nothing() -> None:
    line = Line(lambda count: count * 200.0 * MIB)
    line.run(10.0, is_busy=False)
    assert set(line.history) == {1}


def test_a_rate_is_not_judged_before_the_channels_are_there() -> None:
    line = Line(lambda count: count * 200.0 * MIB)
    line.run(1.0)
    assert line.count.wanted == 2
    for _ in range(100):
        line.now += TICK_SECONDS
        line.count.note(int(line.moved), 1, is_busy=True)
    assert line.count.wanted == 2


@pytest.mark.parametrize(
    ("is_paced", "rtt_seconds", "expected"), [(False, 0.05, 8), (True, 0.05, 1), (False, 0.0002, 1)]
)
def test_a_long_line_that_goes_on_losing_gets_all_channels_unless_they_are_paced(
    is_paced: bool, rtt_seconds: float, expected: int
) -> None:
    line = Line(lambda count: 1.0 * MIB, LineFacts(rtt_seconds, is_paced=is_paced))
    line.run(2.5, lost_per_second=10.0)
    assert line.count.wanted == expected or (is_paced and line.count.wanted == expected + 1)


def test_one_burst_of_losses_is_a_queue_that_ran_over() -> None:
    line = Line(lambda count: 10.0 * MIB, LineFacts(0.05))
    line.run(0.6, lost_per_second=500.0)
    line.run(1.0)
    assert line.count.wanted <= 3


def test_on_a_long_line_the_first_trial_waits_until_it_may_pay() -> None:
    line = Line(lambda count: count * 2.0 * MIB, LineFacts(0.05, is_paced=True))
    line.run(REST_SECONDS - 0.5)
    assert set(line.history) == {1}
    line.run(120.0)
    assert line.count.wanted == 8


def test_a_line_that_gathers_speed_by_itself_is_not_taken_for_one_that_rewards_channels() -> None:
    line = Line(lambda count: min(100.0 * MIB, MIB * 2.0 ** (line.now - 100.0)), LineFacts(0.05, is_paced=True))
    line.run(6.0)
    assert set(line.history) == {1}
    line.run(60.0)
    assert set(line.history) == {1, 2}
    assert line.history.count(2) < 0.1 * len(line.history)


def test_the_bounds_of_the_user_and_of_the_server_hold() -> None:
    line = Line(lambda count: count * 200.0 * MIB, most=3)
    line.run(20.0)
    assert max(line.history) == 3
    line.count.begin(LineFacts(0.2), 2)
    assert line.count.wanted == 2


@given(
    rates=st.lists(st.floats(0.0, 1e10), min_size=8, max_size=8),
    rtt_seconds=st.floats(0.0, 1.0),
    busy=st.lists(st.booleans(), min_size=1, max_size=20),
)
def test_whatever_the_line_does_the_count_stays_within_its_bounds_and_rests_where_it_does_not_pay(
    rates: list[float], rtt_seconds: float, busy: list[bool]
) -> None:
    line = Line(lambda count: rates[count - 1], LineFacts(rtt_seconds))
    for is_busy in busy:
        line.run(2.0, is_busy=is_busy)
    assert all(1 <= wanted <= 8 for wanted in line.history)
    assert all(abs(a - b) <= 1 for a, b in pairwise(line.history))

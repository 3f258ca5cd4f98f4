"""Rates: kept over time, shared fairly, not to be evaded by connecting anew. The clock is the test's."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pytest
from twinport_service.bandwidth import Bandwidth, Lane

MIB = 1024 * 1024


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(clock: Clock, lanes: Sequence[Lane], seconds: float, late_seconds: float = 0.0) -> list[int]:
    """What each lane moves in that time when all want as much as they can get and wake ``late_seconds`` late."""
    moved = [0] * len(lanes)
    end = clock.now + seconds
    due = [(clock.now, number) for number in range(len(lanes))]
    heapq.heapify(due)
    while due and due[0][0] < end:
        at, number = heapq.heappop(due)
        clock.now = max(clock.now, at)
        allowed, wait_seconds = lanes[number].take(256 * 1024)
        assert (allowed > 0) == (wait_seconds == 0)
        lanes[number].spend(allowed)
        moved[number] += allowed
        heapq.heappush(due, (clock.now + (wait_seconds + late_seconds if wait_seconds else 1e-5), number))
    clock.now = end
    return moved


@pytest.mark.parametrize("rate", [100_000, 8 * MIB, 100 * MIB])
@pytest.mark.parametrize("channels", [1, 4, 16])
@pytest.mark.parametrize("late_seconds", [0.0, 0.004])
def test_a_rate_is_kept_and_shared_equally(rate: int, channels: int, late_seconds: float) -> None:
    clock = Clock()
    bandwidth = Bandwidth(per_user=rate, clock=clock)
    lanes = [bandwidth.lane() for _ in range(channels)]
    for lane in lanes:
        lane.bind("alice")
    moved = run(clock, lanes, 20, late_seconds)
    assert 0.95 * rate * 20 <= sum(moved) <= 1.05 * rate * 20 + channels * MIB
    assert max(moved) - min(moved) <= 2 * MIB


def test_the_whole_server_has_a_rate_too() -> None:
    clock = Clock()
    bandwidth = Bandwidth(total=8 * MIB, per_user=6 * MIB, clock=clock)
    lanes = [bandwidth.lane() for _ in range(3)]
    for lane, user in zip(lanes, ("alice", "alice", "bob"), strict=True):
        lane.bind(user)
    one, two, other = run(clock, lanes, 20)
    assert sum((one, two, other)) == pytest.approx(8 * MIB * 20, rel=0.05)
    assert one + two <= 6.5 * MIB * 20
    alone = run(clock, lanes[2:], 20)
    assert alone[0] == pytest.approx(6 * MIB * 20, rel=0.05)


def test_without_bounds_all_may_move_at_once() -> None:
    lane = Bandwidth().lane()
    lane.bind("alice")
    assert lane.take(10 * MIB) == (10 * MIB, 0.0)


def test_what_is_taken_is_not_spent() -> None:
    clock = Clock()
    lane = Bandwidth(total=MIB, clock=clock).lane()
    first, _ = lane.take(MIB)
    assert lane.take(MIB) == (first, 0.0)
    lane.spend(first - 1)
    assert lane.take(MIB) == (1, 0.0)


def test_time_without_work_saves_up_a_tenth_of_a_second_at_most() -> None:
    clock = Clock()
    lane = Bandwidth(total=10 * MIB, clock=clock).lane()
    run(clock, [lane], 1)
    clock.now += 3600
    assert run(clock, [lane], 0.001)[0] <= 1.3 * MIB


def test_connecting_anew_gains_nothing() -> None:
    clock = Clock()
    bandwidth = Bandwidth(per_user=MIB, clock=clock)
    moved = 0
    for _ in range(1000):
        lane = bandwidth.lane()
        lane.bind("alice")
        while (found := lane.take(MIB))[0]:
            lane.spend(found[0])
            moved += found[0]
        lane.close()
        clock.now += 0.001
    assert moved <= 1.3 * MIB


def test_a_lane_that_leaves_gives_back_what_it_did_not_use() -> None:
    clock = Clock()
    bandwidth = Bandwidth(per_user=MIB, clock=clock)
    stays = bandwidth.lane()
    stays.bind("alice")
    for _ in range(100):
        leaves = bandwidth.lane()
        leaves.bind("alice")
        leaves.take(MIB)
        leaves.close()
        leaves.close()
    assert stays.take(1)[1] == 0.0


def test_users_are_forgotten() -> None:
    clock = Clock()
    bandwidth = Bandwidth(per_user=MIB, clock=clock)
    for number in range(1000):
        lane = bandwidth.lane()
        lane.bind(f"user{number}")
        lane.take(1)
        lane.close()
        clock.now += 1
    assert bandwidth.users <= 1


def test_a_lane_of_another_user_spends_that_users() -> None:
    clock = Clock()
    bandwidth = Bandwidth(per_user=MIB, clock=clock)
    lane = bandwidth.lane()
    lane.bind("alice")
    run(clock, [lane], 1)
    assert lane.take(1)[0] == 0
    clock.now += 1
    lane.bind("bob")
    assert run(clock, [lane], 1)[0] >= 0.9 * MIB


def test_a_user_may_have_a_bound_of_its_own() -> None:
    clock = Clock()
    own = {"alice": MIB, "bob": 4 * MIB}
    bandwidth = Bandwidth(per_user=2 * MIB, clock=clock, rate_of=own.get, has_rates=lambda: bool(own))
    assert bandwidth.is_bounded
    for user, expected in (("alice", MIB), ("bob", 4 * MIB), ("carol", 2 * MIB)):
        lane = bandwidth.lane()
        lane.bind(user)
        assert sum(run(clock, [lane], 4)) == pytest.approx(4 * expected, rel=0.15), user
        lane.close()
    own["alice"] = 8 * MIB
    with_new_bound = bandwidth.lane()
    with_new_bound.bind("alice")
    assert sum(run(clock, [with_new_bound], 4)) == pytest.approx(32 * MIB, rel=0.15)


def test_without_any_bound_nothing_is_counted() -> None:
    own: dict[str, int] = {}
    bandwidth = Bandwidth(rate_of=own.get, has_rates=lambda: bool(own))
    assert not bandwidth.is_bounded
    own["alice"] = MIB
    assert bandwidth.is_bounded
    lane = bandwidth.lane()
    lane.bind("bob")
    assert lane.take(10**9) == (10**9, 0.0)

"""Who is overtaken at the end: simulated channels, with a clock that is turned by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twinport.tail_watch import MOST_OVERTAKEN, Progress, TailWatch

MIB = 1024 * 1024
TICK_SECONDS = 0.1


class Race:
    """Channels with their rates in bytes per second, and what each has left."""

    def __init__(self, rates: list[float], lefts: list[float]) -> None:
        self.now = 10.0
        self.watch = TailWatch(lambda: self.now)
        self.rates = rates
        self.lefts = lefts
        self.moved = [0.0] * len(rates)

    def run(self, seconds: float, *, has_work: bool = False, rtt_seconds: float = 0.05) -> int | None:
        """Until somebody is late, at most so long: who."""
        for _ in range(round(seconds / TICK_SECONDS)):
            self.now += TICK_SECONDS
            for number, rate in enumerate(self.rates):
                step = min(rate * TICK_SECONDS, self.lefts[number])
                self.moved[number] += step
                if not has_work:
                    self.lefts[number] -= step
            now = [
                Progress(number, int(moved), int(left))
                for number, (moved, left) in enumerate(zip(self.moved, self.lefts, strict=True))
            ]
            late = self.watch.find_late(now, has_work=has_work, rtt_seconds=rtt_seconds)
            if late is not None:
                assert isinstance(late, int)
                return late
        return None


def test_a_stalled_channel_is_overtaken_within_seconds_once_the_others_are_free() -> None:
    race = Race([2.0 * MIB, 2.0 * MIB], [8.0 * MIB, 8.0 * MIB])
    assert race.run(5, has_work=True) is None
    race.rates[1] = 0.0
    assert race.run(60) == 1
    assert race.now < 10 + 5 + 4 + 2 + 1


def test_while_there_is_work_or_nobody_is_free_a_slow_channel_is_left_alone() -> None:
    race = Race([2.0 * MIB, 0.0], [8.0 * MIB, 8.0 * MIB])
    assert race.run(30, has_work=True) is None
    race = Race([0.1 * MIB, 0.0], [8.0 * MIB, 8.0 * MIB])
    assert race.run(30) is None


def test_who_is_nearly_done_is_not_overtaken() -> None:
    race = Race([4.0 * MIB, 0.4 * MIB], [16.0 * MIB, 3.0 * MIB])
    assert race.run(30) is None
    assert race.lefts == [0.0, 0.0]


def test_equal_channels_that_end_one_after_the_other_are_not_late() -> None:
    race = Race([1.0 * MIB] * 4, [3.0 * MIB, 5.0 * MIB, 8.0 * MIB, 11.0 * MIB])
    assert race.run(30) is None


def test_a_channel_that_waits_alone_has_nobody_to_be_compared_with() -> None:
    race = Race([0.0], [8.0 * MIB])
    assert race.run(60) is None


def test_there_is_an_end_to_overtaking() -> None:
    race = Race([2.0 * MIB, 0.0], [8.0 * MIB, 8.0 * MIB])
    race.run(5, has_work=True)
    late = 0
    for _ in range(100):
        late += race.run(10) is not None
    assert late == MOST_OVERTAKEN


@given(
    rate=st.floats(1e3, 1e9),
    lefts=st.lists(st.floats(0.0, 64.0 * MIB), min_size=2, max_size=6),
    factors=st.lists(st.floats(0.6, 1.6), min_size=6, max_size=6),
)
def test_nobody_is_overtaken_who_goes_about_as_fast_as_the_others(
    rate: float, lefts: list[float], factors: list[float]
) -> None:
    race = Race([rate * factor for factor in factors[: len(lefts)]], lefts)
    assert race.run(5, has_work=True) is None
    assert race.run(20) is None

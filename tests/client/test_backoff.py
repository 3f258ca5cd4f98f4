"""Waits grow, end growing, and differ between clients."""

from __future__ import annotations

from twinport.backoff import Backoff
from twinport.rate import RateMeter


def test_waits_double_up_to_the_cap_and_start_over() -> None:
    backoff = Backoff(0.1, 1.0, draw=lambda: 1.0)
    assert [round(backoff.next_seconds(), 3) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.failures == 6
    backoff.reset()
    assert backoff.next_seconds() == 0.1


def test_jitter_spreads_waits_but_never_to_nothing() -> None:
    assert Backoff(1.0, 9.0, draw=lambda: 0.0).next_seconds() == 0.25
    assert len({Backoff().next_seconds() for _ in range(50)}) > 40


def test_waits_do_not_overflow_after_many_failures() -> None:
    backoff = Backoff(draw=lambda: 1.0)
    assert max(backoff.next_seconds() for _ in range(5000)) == 10.0


def test_a_rate_is_known_after_a_window_and_follows_slowly() -> None:
    now = [0.0]
    meter = RateMeter(lambda: now[0])
    meter.add(1000)
    assert meter.bytes_per_second is None
    now[0] = 0.5
    meter.add(1000)
    assert meter.bytes_per_second == 4000
    now[0] = 1.0
    meter.add(4000)
    assert meter.bytes_per_second == 6000


def test_a_fast_line_shows_itself_before_the_window_ends() -> None:
    now = [0.0]
    meter = RateMeter(lambda: now[0])
    now[0] = 0.1
    meter.add(10 * 1024 * 1024)
    assert meter.bytes_per_second == 100 * 1024 * 1024

"""What bounds a transfer, as a table; and that no measurement, however odd, is left without an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport.bench.facts import Effort, Flow, Measurements, RoundTrips, SmallFiles
from twinport.bench.verdict import Bound, Finding, Subject, best_of, decide, gain_of
from twinport.bench.wording import explain

from tests.client.bench.examples import IDLE, LINE_RATE, RTT_SECONDS, make_flow, make_found, make_line, measurements

SLOW = LINE_RATE / 10
QUIET = {"rtt_seconds": RTT_SECONDS, "receive_rtt_seconds": RTT_SECONDS}
BBR = {**QUIET, "congestion": "bbr"}
NEAR = RoundTrips(20, 0.0001, 0.00011, 0.0002)


def bounds(found: Measurements) -> dict[Subject, Bound]:
    return {finding.subject: finding.bound for finding in decide(found)}


def up(one: Flow | None, many: Flow | None, **changes: Any) -> Bound:
    return bounds(make_found(up_one=one, up_many=many, **changes))[Subject.LARGE_UP]


def down(one: Flow | None, many: Flow | None, **changes: Any) -> Bound:
    return bounds(make_found(down_one=one, down_many=many, **changes))[Subject.LARGE_DOWN]


def four(rate: float = LINE_RATE, **changes: Any) -> Flow:
    line = {"connections": 4, "busy_seconds": 8.0, **changes.pop("line", {})}
    return make_flow(rate, make_line(**line), channels=4, **changes)


def one(rate: float = LINE_RATE, **changes: Any) -> Flow:
    return make_flow(rate, make_line(**changes.pop("line", {})), **changes)


def lossy(rate: float, channels: int = 1) -> Flow:
    """Down, on a line that is not full and loses one segment in 100, about."""
    return make_flow(rate, make_line(**QUIET), loss=0.01, loss_is_estimate=True, channels=channels)


def test_a_full_line_is_the_bound_of_all() -> None:
    assert set(bounds(make_found()).values()) == {Bound.LINE}


@pytest.mark.parametrize(
    ("single", "several", "bound"),
    [
        (one(), None, Bound.LINE),
        (None, None, Bound.UNKNOWN),
        # Lost by chance: each channel is slow by itself, and several are quicker.
        (one(SLOW, loss=0.005, line=QUIET), four(4 * SLOW, loss=0.005, line=QUIET), Bound.LOSS),
        (one(SLOW, loss=0.005, line=QUIET), None, Bound.LOSS),
        # Lost because the line is full: more channels give no more.
        (one(loss=0.005), four(loss=0.005), Bound.LINE),
        # bbr goes on through losses.
        (one(loss=0.005, line=BBR), four(loss=0.005, line=BBR), Bound.LINE),
        (one(loss=0.005, line=BBR), four(3 * LINE_RATE, loss=0.005, line=BBR), Bound.LATENCY),
        # cubic does not, in the long run, though it is quick as long as nothing was lost yet.
        (one(5 * LINE_RATE, loss=0.005, line=QUIET), four(5 * LINE_RATE, loss=0.005, line=QUIET), Bound.LOSS),
        # The other side does not read: only several channels tell whether that is its window, or itself.
        (one(SLOW), four(SLOW, line={"receiver_bound_seconds": 6.0}), Bound.SERVER),
        (one(SLOW), four(4 * SLOW, line={"receiver_bound_seconds": 6.0}), Bound.LATENCY),
        (one(SLOW), four(SLOW, line={"buffer_bound_seconds": 6.0}), Bound.LATENCY),
        (one(SLOW), four(3 * SLOW, line=QUIET), Bound.LATENCY),
        # Nothing was on its way for most of the time.
        (one(SLOW), four(SLOW, line={"longest_busy_seconds": 0.5}), Bound.SERVER),
        (one(), four(settle_seconds=1.0), Bound.SERVER_DISK),
        (one(), four(settle_seconds=0.05), Bound.LINE),
        (one(), four(seconds=0.15), Bound.LATENCY),
        (one(), four(effort=Effort(1.9, 0.97)), Bound.LOCAL_CPU),
        (one(), four(effort=Effort(0.3, 0.97)), Bound.LOCAL_CPU),
        (one(effort=Effort(0.95, 0.5)), None, Bound.LOCAL_CPU),
        (one(), four(effort=Effort(0.95, 0.5)), Bound.LINE),  # one core of two that four channels could use
        # A processor hides everything else.
        (one(SLOW, loss=0.005), four(settle_seconds=1.0, effort=Effort(1.9)), Bound.LOCAL_CPU),
    ],
)
def test_large_files_up(single: Flow | None, several: Flow | None, bound: Bound) -> None:
    assert up(single, several) is bound


@pytest.mark.parametrize(
    ("single", "several", "bound"),
    [
        (one(), None, Bound.LINE),
        (None, None, Bound.UNKNOWN),
        (lossy(SLOW), lossy(4 * SLOW, channels=4), Bound.LOSS),
        (lossy(SLOW), lossy(SLOW, channels=4), Bound.LOSS),
        (lossy(SLOW), None, Bound.LOSS),
        # At its beginning, or not slowed down by losses: only several channels tell.
        (lossy(4 * SLOW), lossy(12 * SLOW, channels=4), Bound.LOSS),
        (lossy(4 * SLOW), lossy(4 * SLOW, channels=4), Bound.LINE_OR_SERVER),
        (lossy(2 * LINE_RATE), lossy(6 * LINE_RATE, channels=4), Bound.LATENCY),
        (one(loss=0.004, loss_is_estimate=True), four(loss_is_estimate=True), Bound.LINE),
        (one(line=QUIET), four(line=QUIET), Bound.LINE_OR_SERVER),
        (one(), four(settle_seconds=1.0), Bound.LOCAL_DISK),
        (one(), four(seconds=0.15), Bound.LATENCY),
        (one(SLOW), four(3 * SLOW, line=QUIET), Bound.LATENCY),
        (one(1.8e8, line=QUIET), four(6.5e8, line=QUIET), Bound.LATENCY),  # all that is asked for ahead
        (one(), four(effort=Effort(1.9, 0.97)), Bound.LOCAL_CPU),
    ],
)
def test_large_files_down(single: Flow | None, several: Flow | None, bound: Bound) -> None:
    assert down(single, several) is bound


@pytest.mark.parametrize(
    ("changes", "up_bound", "down_bound"),
    [
        ({}, Bound.SERVER, Bound.SERVER),
        ({"flush_seconds": 0.02}, Bound.SERVER_DISK, Bound.SERVER),
        ({"local_flush_seconds": 0.02}, Bound.SERVER, Bound.LOCAL_DISK),
        ({"small_up": None, "small_down": None}, Bound.UNKNOWN, Bound.UNKNOWN),
        ({"small_up": SmallFiles(64, 4096, 0.1, IDLE)}, Bound.LATENCY, Bound.SERVER),
        ({"small_down": SmallFiles(1000, 4096, 1.0, Effort(0.9))}, Bound.SERVER, Bound.LOCAL_CPU),
        ({"small_up": SmallFiles(2500, 4096, 1.0, IDLE)}, Bound.LINE, Bound.SERVER),
    ],
)
def test_small_files(changes: dict[str, Any], up_bound: Bound, down_bound: Bound) -> None:
    slow = SmallFiles(500, 4096, 1.0, IDLE)
    found = bounds(make_found(**{"small_up": slow, "small_down": slow, **changes}))
    assert (found[Subject.SMALL_UP], found[Subject.SMALL_DOWN]) == (up_bound, down_bound)


def test_a_near_server_is_slow_by_itself() -> None:
    quiet = {"rtt_seconds": 0.0002, "receive_rtt_seconds": 0.0002}
    single, several = one(line=quiet), four(line=quiet)
    assert up(single, several, round_trips=NEAR) is Bound.SERVER
    assert down(single, several, round_trips=NEAR) is Bound.SERVER


def test_a_server_on_this_machine_has_no_line() -> None:
    assert up(one(), four(), is_local=True) is Bound.SERVER
    assert down(one(), four(), is_local=True) is Bound.SERVER


def test_where_the_system_tells_nothing_only_rates_and_processors_count() -> None:
    blind = replace(make_flow(), line=None, loss=None)
    several = replace(blind, channels=4)
    assert up(blind, several) is down(blind, several) is Bound.LINE_OR_SERVER
    assert up(replace(blind, flow_bytes_per_second=SLOW), several) is Bound.LATENCY
    assert up(blind, replace(several, effort=Effort(1.9))) is Bound.LOCAL_CPU


def test_the_better_way_counts() -> None:
    assert best_of(one(), four(SLOW)) == one()
    assert best_of(one(), four()) == four()
    assert best_of(None, four()) == four()
    assert gain_of(one(), four(3 * LINE_RATE)) == 3
    assert gain_of(one(0), four()) is None


@given(measurements)
def test_whatever_was_measured_has_one_answer_for_each_subject(found: Measurements) -> None:
    findings = decide(found)
    assert [finding.subject for finding in findings] == list(Subject)
    assert decide(found) == findings
    for finding in findings:
        text, step = explain(finding, found)
        assert text.endswith(".")
        assert step.endswith(".")


@given(measurements, st.sampled_from(Subject), st.sampled_from(Bound))
def test_every_bound_can_be_explained_of_every_subject(found: Measurements, subject: Subject, bound: Bound) -> None:
    assert all(explain(Finding(subject, bound), found))

"""What bounds large files up, large files down and small files: decided from the measurements alone, by fixed rules.

The rules are asked in the order in which a bound hides the ones below it: a busy processor before a disk, a disk before
losses, losses before windows, windows before the rate of the line.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from .facts import Effort, Flow, Measurements, SmallFiles
from .plan import FILE_OVERHEAD_BYTES

BUSY_CORES = 0.85
"""Of the cores that so many channels can use: this process does nothing else any more."""
BUSY_MACHINE = 0.92
OWN_CORES = 0.3
"""Less than this is not why the machine is busy."""
SETTLE_SHARE = 0.35
SETTLE_SECONDS = 0.1
BRIEF_TRIPS = 10
"""A transfer of fewer round trips never got up to speed."""
LEAST_LOSS = 0.001
SLOWED_BY_LOSS = frozenset({"cubic", "reno"})
MODEL = 1.22
SEGMENT_BYTES = 1448
NEAR_MODEL = 3.0
"""cubic is a little above the model."""
ABOVE_MODEL = 8.0
WAITING = 0.3
"""The share of the time that waiting for the other side, or for a buffer, is what counts."""
GAINS = 1.4
"""Several channels are so much quicker than one: one is held back by something that is not shared."""
FULL_RTT = 1.25
FULL_RTT_SECONDS = 0.001
"""Round trips grow so much where a line's queue is filled."""
AHEAD_BYTES = 4 * 1024 * 1024
"""What a download's channel asks for ahead: at most so much in each round trip."""
NEAR_WINDOW = 0.7
NEAR_RTT_SECONDS = 0.0005
IDLE_SHARE = 0.5
NEAR_LINE = 0.6
SLOW_FLUSH_SECONDS = 0.01
SMALL_TRIPS = 12


class Bound(enum.Enum):
    """What bounds a kind of transfer; the values are the words of the JSON output."""

    LINE = "line"
    LATENCY = "latency"
    LOSS = "loss"
    SERVER_DISK = "server-disk"
    SERVER = "server"
    LINE_OR_SERVER = "line-or-server"
    LOCAL_CPU = "local-cpu"
    LOCAL_DISK = "local-disk"
    UNKNOWN = "unknown"


class Subject(enum.Enum):
    """What is bounded."""

    LARGE_UP = "large-up"
    LARGE_DOWN = "large-down"
    SMALL_UP = "small-up"
    SMALL_DOWN = "small-down"


@dataclass(frozen=True)
class Finding:
    """One bound."""

    subject: Subject
    bound: Bound


def decide(found: Measurements) -> tuple[Finding, ...]:
    """One finding for each subject, in their order. Pure."""
    large_up, large_down = _large_up(found), _large_down(found)
    return (
        Finding(Subject.LARGE_UP, large_up),
        Finding(Subject.LARGE_DOWN, large_down),
        Finding(Subject.SMALL_UP, _small(found, found.small_up, large_up, is_up=True)),
        Finding(Subject.SMALL_DOWN, _small(found, found.small_down, large_down, is_up=False)),
    )


def best_of(one: Flow | None, many: Flow | None) -> Flow | None:
    """The quicker of two; several channels where they are alike."""
    if one is None or many is None:
        return one or many
    return one if one.bytes_per_second > GAINS * many.bytes_per_second else many


def gain_of(one: Flow | None, many: Flow | None) -> float | None:
    """How many times as quick several channels are; None where that was not measured."""
    if one is None or many is None or one.flow_bytes_per_second <= 0:
        return None
    return many.flow_bytes_per_second / one.flow_bytes_per_second


def loss_of(one: Flow | None, many: Flow | None) -> float | None:
    """The loss that one channel meets, which seldom fills the line and so causes none itself; else that of several.
    None where nothing is told."""
    return next((flow.loss for flow in (one, many) if flow is not None and flow.loss is not None), None)


def _large_up(found: Measurements) -> Bound:  # noqa: PLR0911  # one return for each rule
    flow = best_of(found.up_one, found.up_many)
    if flow is None or not flow.size_bytes:
        return Bound.UNKNOWN
    if _is_busy(flow.effort, flow.channels, found.cores):
        return Bound.LOCAL_CPU
    if _settles_long(flow):
        return Bound.SERVER_DISK
    if _is_brief(flow, found):
        return Bound.LATENCY
    gain = gain_of(found.up_one, found.up_many)
    is_full = _is_full(found.up_one, found.up_many, found)
    if not is_full and is_lossy(found.round_trips.best_seconds, found.up_one, found.up_many):
        return Bound.LOSS
    line = flow.line
    if line is None or not line.busy_seconds:
        return _unseen(found, found.up_one, found.up_many)
    if (line.receiver_bound_seconds or 0.0) / line.busy_seconds >= WAITING:
        return Bound.LATENCY if gain is not None and gain >= GAINS else Bound.SERVER
    if (line.buffer_bound_seconds or 0.0) / line.busy_seconds >= WAITING:
        return Bound.LATENCY
    if (line.longest_busy_seconds or 0.0) < IDLE_SHARE * (flow.seconds - flow.settle_seconds):
        return Bound.SERVER  # nothing was on its way, because the server's answers were waited for
    if not is_full and gain is not None and gain >= GAINS:
        return Bound.LATENCY  # still more channels would be quicker
    return Bound.SERVER if _is_near(found) and not is_full else Bound.LINE


def _large_down(found: Measurements) -> Bound:
    flow = best_of(found.down_one, found.down_many)
    if flow is None or not flow.size_bytes:
        return Bound.UNKNOWN
    if _is_busy(flow.effort, flow.channels, found.cores):
        return Bound.LOCAL_CPU
    if _settles_long(flow):
        return Bound.LOCAL_DISK
    if _is_brief(flow, found):
        return Bound.LATENCY
    is_full = _is_full(found.down_one, found.down_many, found)
    if not is_full and is_lossy(found.round_trips.best_seconds, found.down_one, found.down_many):
        return Bound.LOSS
    if flow.flow_bytes_per_second >= NEAR_WINDOW * AHEAD_BYTES * flow.channels / found.round_trips.best_seconds:
        return Bound.LATENCY
    return _unseen(found, found.down_one, found.down_many)


def _small(found: Measurements, small: SmallFiles | None, of_large: Bound, *, is_up: bool) -> Bound:
    if small is None:
        return Bound.UNKNOWN
    if _is_busy(small.effort, 1, found.cores):
        return Bound.LOCAL_CPU
    large = best_of(found.up_one, found.up_many) if is_up else best_of(found.down_one, found.down_many)
    rate = small.files_per_second * (small.file_bytes + FILE_OVERHEAD_BYTES)
    if large is not None and rate >= NEAR_LINE * large.bytes_per_second:
        return of_large if of_large in (Bound.LOSS, Bound.SERVER, Bound.LINE_OR_SERVER) else Bound.LINE
    if of_large is Bound.LOSS:
        return Bound.LOSS
    if small.seconds < SMALL_TRIPS * found.round_trips.median_seconds:
        return Bound.LATENCY
    flush = found.flush_seconds if is_up else found.local_flush_seconds
    if flush is not None and flush >= SLOW_FLUSH_SECONDS:
        return Bound.SERVER_DISK if is_up else Bound.LOCAL_DISK
    return Bound.SERVER


def _is_busy(effort: Effort, channels: int, cores: int) -> bool:
    if effort.machine_busy is not None and effort.machine_busy >= BUSY_MACHINE and effort.own_cores >= OWN_CORES:
        return True
    return effort.own_cores >= BUSY_CORES * min(channels, cores)


def _settles_long(flow: Flow) -> bool:
    return flow.settle_seconds >= max(SETTLE_SECONDS, SETTLE_SHARE * flow.seconds)


def _is_brief(flow: Flow, found: Measurements) -> bool:
    return flow.seconds - flow.settle_seconds < BRIEF_TRIPS * found.round_trips.median_seconds


def _is_full(one: Flow | None, many: Flow | None, found: Measurements) -> bool:
    """Whether the line's queue was filled: round trips took clearly longer than on the quiet line. Of two that are as
    quick as each other, either may show it."""
    if found.is_local:
        return False
    gain = gain_of(one, many)
    flows = (many,) if gain is not None and gain >= GAINS else (one, many)
    trips = [
        trip
        for flow in flows
        if flow is not None and flow.line is not None
        for trip in (flow.line.rtt_seconds, flow.line.receive_rtt_seconds)
        if trip is not None
    ]
    quiet = found.round_trips.best_seconds
    return bool(trips) and max(trips) >= max(FULL_RTT * quiet, quiet + FULL_RTT_SECONDS)


def _is_near(found: Measurements) -> bool:
    """Whether the server is so near that the line will not be what takes the time."""
    return found.is_local or found.round_trips.best_seconds < NEAR_RTT_SECONDS


def is_lossy(round_trip_seconds: float, one: Flow | None, many: Flow | None = None) -> bool:
    """Whether losses hold transfers back, where the line is not full: those with one of the usual congestion controls.

    Which one the other side has is not told. With these a connection that meets losses gets to a rate that is known
    (Mathis and others, 1997). Who is far above it goes on through losses, as bbr does; who is a little above it may be
    at its beginning, and then several channels are quicker.
    """
    flow = next((flow for flow in (one, many) if flow is not None and flow.loss is not None), None)
    if flow is None or flow.loss is None or flow.loss < LEAST_LOSS:
        return False
    if not flow.loss_is_estimate and flow.line is not None:
        return flow.line.congestion in SLOWED_BY_LOSS
    model = MODEL * SEGMENT_BYTES / (round_trip_seconds * math.sqrt(flow.loss))
    above = flow.flow_bytes_per_second / flow.channels / model
    gain = gain_of(one, many)
    return above <= NEAR_MODEL or (above <= ABOVE_MODEL and gain is not None and gain >= GAINS)


def _unseen(found: Measurements, one: Flow | None, many: Flow | None) -> Bound:
    """Where the kernel does not say what a transfer waited for."""
    gain = gain_of(one, many)
    if _is_full(one, many, found):
        return Bound.LINE
    if gain is not None and gain >= GAINS:
        return Bound.LATENCY
    return Bound.SERVER if _is_near(found) else Bound.LINE_OR_SERVER

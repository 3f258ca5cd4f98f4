"""How many channels a transfer has open: one where it is enough, more as the line or the machines reward it.

On a short line one channel is a pipeline: this end's thread and the server's, each on a core. On a long one several
begin at once, but only where one could not fill it: where losses or its window bound it. Channels that bbr paces push
each other's packets out of the line's queue, and whoever has the last segment goes on alone at its share of the rate.
From there the count climbs as a hiker in fog does: one more, and it stays only if all of them together became clearly
faster. Pure: time comes from a clock, facts from whoever owns the sockets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from .congestion import LineFacts

MOST = 64
STEPS = ((0.1, 4, 4), (0.02, 2, 1))
"""Round trips in seconds, and with how many channels a line of at least that begins; with how many that bbr paces."""
LONG_RTT_SECONDS = 0.01
"""From this round trip on connecting beforehand is worth more than a connection in vain."""
GAIN = 1.12
"""How much faster all channels must be together for one more to stay."""
MEASURE_SECONDS = 0.3
MEASURE_ROUND_TRIPS = 10
REST_SECONDS = 8.0
LONGEST_REST_SECONDS = 60.0
LOOK_SECONDS = 0.5
LOSSY_LOOKS = 3
"""In so many looks in a row something was lost: not a queue that ran over once, but the line."""
LOSSY_SHARE = 0.0005


class ChannelCount:
    """Decides; ``most`` is the user's bound, None for no other than the server's. ``cores`` are this machine's.
    ``first`` is with how many to begin, whatever the line is; None leaves that to the line."""

    def __init__(self, most: int | None, cores: int, clock: Callable[[], float], *, first: int | None = None) -> None:
        self._first = first
        self._bound = MOST if most is None else most
        self._cores = max(1, cores)
        self._clock = clock
        self.wanted = 1
        self._most = 1
        self.begin(LineFacts(), 1)

    def begin(self, line: LineFacts, announced: int) -> None:
        """A session begins, over such a line to a server that announced so many channels."""
        self._most = max(1, min(self._bound, announced))
        if line.is_local and self._first is None:
            # Each channel is a thread at either end, and both ends share these cores.
            self._most = min(self._most, max(1, self._cores // 2))
        steps = ((paced if line.is_paced else count) for rtt, count, paced in STEPS if line.rtt_seconds >= rtt)
        self.wanted = min(self._first or next(steps, 1), self._most)
        self.opens_early = line.rtt_seconds >= LONG_RTT_SECONDS
        """Whether a channel is opened before there is work for it."""
        self._window_seconds = max(MEASURE_SECONDS, MEASURE_ROUND_TRIPS * line.rtt_seconds)
        self._before: float | None = None  # the rate with one less, while one more is on trial
        self._last_rate: float | None = None
        self._rest_seconds = REST_SECONDS
        # On a long line a trial in vain costs a second or more: only what takes far longer than that may gain by it.
        self._rest_until = self._clock() + REST_SECONDS if self.opens_early else 0.0
        self._settled_at: float | None = None
        self._measured: tuple[float, int] | None = None
        self._look_at = self._clock() + LOOK_SECONDS
        self._seen = (0, 0)
        self._lossy_looks = 0

    def note(self, moved_bytes: int, open_count: int, *, is_busy: bool, lines: Sequence[LineFacts] = ()) -> None:
        """What was moved so far in all. ``is_busy`` says that there is more work than ``open_count`` channels have
        taken; ``lines`` are theirs."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(lines)
        if not is_busy or open_count != self.wanted:
            self._settled_at = self._measured = self._last_rate = None
            return
        if self._settled_at is None:
            self._settled_at = now + self._window_seconds / 2
        if now < self._settled_at:
            return
        if self._measured is None or moved_bytes < self._measured[1]:
            self._measured = now, moved_bytes
            return
        since, before_bytes = self._measured
        if now - since < self._window_seconds:
            return
        self._judge((moved_bytes - before_bytes) / (now - since), now)
        self._measured = now, moved_bytes

    def _judge(self, rate: float, now: float) -> None:
        if self._before is not None:
            if rate < self._before * GAIN:
                self._before = None
                self.wanted -= 1
                self._rest_until = now + self._rest_seconds
                self._rest_seconds = min(2 * self._rest_seconds, LONGEST_REST_SECONDS)
                return
            self._before = None
            self._rest_seconds = REST_SECONDS
            self._rest_until = 0.0
        # On a long line a rate that still grows by itself would praise whatever is tried meanwhile.
        is_steady = not self.opens_early or (self._last_rate is not None and rate < self._last_rate * GAIN)
        self._last_rate = rate
        if is_steady and now >= self._rest_until and self.wanted < self._most and rate > 0:
            self._before = rate
            self.wanted += 1

    def _look(self, lines: Sequence[LineFacts]) -> None:
        """A line that goes on losing packets bounds each connection that is not paced: then as many as there may be."""
        packets, disturbed = sum(line.packets for line in lines), sum(line.disturbed_packets for line in lines)
        new_packets, new_disturbed = packets - self._seen[0], disturbed - self._seen[1]
        self._seen = packets, disturbed
        is_lossy = new_disturbed > max(0.0, new_packets * LOSSY_SHARE)
        self._lossy_looks = self._lossy_looks + 1 if is_lossy and not _is_near(lines) else 0
        if self._lossy_looks >= LOSSY_LOOKS and not all(line.is_paced for line in lines):
            self.wanted = self._most
            self._before = None


def _is_near(lines: Sequence[LineFacts]) -> bool:
    return all(line.rtt_seconds < LONG_RTT_SECONDS for line in lines)


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Which channel is overtaken at the end of a transfer: the one that holds up all the others.

While there is work to hand out, a slow channel only takes less of it. When the last segments are in hand, one channel
that stalls or crawls decides how long everybody waits, until its silence is noticed. Here its bytes are compared with
what the others have shown: if one of them would be done clearly earlier, the late channel is given up, and what it
leaves is gone on with by a free one. Pure: time comes from a clock, progress from whoever owns the channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

WATCH_SECONDS = 2.0
"""For so long a channel's rate is looked at before it is judged."""
TIMES_SLOWER = 3.0
GRACE_SECONDS = 1.0
"""What connecting, asking what is held and reading it again may take besides the round trips."""
ROUND_TRIPS = 6
MOST_OVERTAKEN = 8
"""In one transfer: it is the disk of the other side, not the line, that more would be about."""


class Progress(NamedTuple):
    """One channel at this moment."""

    key: Hashable
    moved_bytes: int
    left_bytes: int
    """Of segments in its hands: sent and not acknowledged, asked for and not here, or not yet begun."""


class TailWatch:
    """Watches one transfer."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: dict[Hashable, deque[tuple[float, int]]] = {}
        self._best: dict[Hashable, float] = {}
        self._overtaken = 0

    def find_late(self, channels: Sequence[Progress], *, has_work: bool, rtt_seconds: float) -> Hashable | None:
        """Take note of how far all channels are; the one to be given up, if any. ``has_work``: something is left to
        hand out."""
        now = self._clock()
        keys = {channel.key for channel in channels}
        for key in [key for key in self._samples if key not in keys]:
            del self._samples[key]  # what it has shown stays a measure for the others
        for channel in channels:
            self._sample(channel, now)
        free = [channel.key for channel in channels if not channel.left_bytes]
        if has_work or not free or self._overtaken >= MOST_OVERTAKEN:
            return None
        for channel in channels:
            rate = self._rate(channel.key)
            if not channel.left_bytes or rate is None:
                continue
            best = max((shown for key, shown in self._best.items() if key != channel.key), default=0.0)
            if not best:
                continue
            anew_seconds = channel.left_bytes / best + ROUND_TRIPS * rtt_seconds + GRACE_SECONDS
            if rate * anew_seconds * TIMES_SLOWER < channel.left_bytes:
                self._overtaken += 1
                return channel.key
        return None

    def _sample(self, channel: Progress, now: float) -> None:
        if not channel.left_bytes:
            self._samples.pop(channel.key, None)
            return
        samples = self._samples.setdefault(channel.key, deque())
        samples.append((now, channel.moved_bytes))
        while len(samples) > 1 and samples[1][0] <= now - WATCH_SECONDS:
            samples.popleft()
        rate = self._rate(channel.key)
        if rate is not None:
            self._best[channel.key] = max(rate, self._best.get(channel.key, 0.0))

    def _rate(self, key: Hashable) -> float | None:
        """Bytes per second over the time it is watched; None while that is too short."""
        samples = self._samples.get(key)
        if not samples or samples[-1][0] - samples[0][0] < WATCH_SECONDS:
            return None
        return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])

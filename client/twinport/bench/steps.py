"""The single steps of a measurement: round trips, flushes, uploads and downloads, each within its share of the time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinport.remote_scratch import RemoteScratch

from .facts import Flow, RoundTrips, SmallFiles
from .plan import (
    DEFAULT_BYTES,
    DEFAULT_SECONDS,
    LEAST_BYTES,
    LEAST_SMALL_FILES,
    SMALL_FILE_BYTES,
    WORTH_GROWING,
    Amounts,
    first_bytes,
    fitting,
    next_bytes,
    small_files,
    split,
    time_for,
)
from .scratch import PREFIX, LocalScratch
from .verdict import is_lossy
from .watch import START_TRIPS, EnoughError, Watch

if TYPE_CHECKING:
    from twinport.client import Client

Tell = Callable[[str, int], None]

PINGS = 20
LEAST_PINGS = 5
PING_SHARE = 0.05
FLUSHES = 8
LEAST_FLUSHES = 2
MOST_GAIN = 4
LEAST_FLOW_SECONDS = 1.0
REMOVAL_SECONDS = 1.5
LEAST_FLUSH_SECONDS = 0.001
CUT = 1.4
"""How much longer than planned a transfer may take."""


@dataclass(frozen=True)
class Wish:
    """What the user wants: about how long it may take, the most bytes to send (as many are fetched), and the directory
    on the server to use, None for the user's own folder."""

    seconds: float = DEFAULT_SECONDS
    size_bytes: int = DEFAULT_BYTES
    to: str | None = None
    channels: int = 4


class Steps:
    """The steps of one measurement. ``usual`` is an open client that has as many channels as its line is worth."""

    def __init__(self, usual: Client, wish: Wish, tell: Tell, clock: Callable[[], float], directory: str) -> None:
        self._usual = usual
        self._wish = wish
        self._tell = tell
        self._clock = clock
        self._local = LocalScratch(directory)
        self._channels = min(wish.channels, usual.limits.channels)
        home = usual.identity.home if wish.to is None else wish.to
        self._remote = RemoteScratch(usual, home, PREFIX)
        self._begun = clock()
        self._sent_bytes = 0
        self._fetched_bytes = 0
        self._rtt_seconds = 0.0

    def _time_for(self, step: str) -> float:
        return time_for(step, self._begun + self._wish.seconds - self._clock())

    @property
    def _start_seconds(self) -> float:
        return START_TRIPS * self._rtt_seconds

    def _ping(self) -> RoundTrips:
        self._tell("round trips", 0)
        until = self._clock() + PING_SHARE * self._wish.seconds
        found: list[float] = []
        while len(found) < PINGS and (len(found) < LEAST_PINGS or self._clock() < until):
            found.append(self._usual.ping())
        return RoundTrips.of(found)

    def _flush(self, one: Client) -> float:
        """What a tiny upload takes beyond its two round trips: the difference between one and several in a row."""
        self._tell("flushes on the server", 0)
        each = 2 * self._rtt_seconds + 0.005
        count = max(LEAST_FLUSHES, min(FLUSHES, int(self._time_for("flush") / each)))
        alone = self._put(one, "flush-1", 1, 1).seconds
        together = self._put(one, "flush-2", 1 + count, 1).seconds
        return max(0.0, (together - alone) / count - 2 * self._rtt_seconds)

    def _up_one(self, one: Client, most: Amounts) -> tuple[Flow, dict[str, int]]:
        """With one channel, larger and larger; what is there of it now, the last one's names and sizes."""
        until = self._clock() + self._time_for("up_one")
        size, left, number = min(first_bytes(self._rtt_seconds), most.one_bytes), most.one_bytes, 0
        there: dict[str, int] = {}
        while True:
            number += 1
            step = "upload, 1 channel"
            watch = self._put(one, f"one-{number}", 1, size, until - self._clock(), step)
            flow = watch.flow(1, size, self._rtt_seconds, is_up=True)
            there = dict.fromkeys(watch.names, size) or there
            left -= size
            more = min(left, most.largest_file_bytes)
            wanted = next_bytes(size, speed_of(flow), self._start_seconds, until - self._clock(), more)
            if watch.is_cut and not there:  # something must be there to be fetched
                size = max(1, min(left, int(flow.flow_bytes_per_second * LEAST_FLOW_SECONDS), LEAST_BYTES))
                there = dict.fromkeys(self._put(one, "one-last", 1, size, step=step).names, size)
            if watch.is_cut or wanted is None:
                return flow, there
            size = wanted

    def _up_many(self, client: Client, up_one: Flow, most: Amounts) -> tuple[Flow | None, dict[str, int]]:
        """With several channels, as much as they may bring: several times what one does where segments are lost."""
        flow: Flow | None = None
        there: dict[str, int] = {}
        until = self._clock() + self._time_for("up_many")
        left, number = most.many_bytes, 0
        gain = (1 + self._channels) / 2 if is_lossy(self._rtt_seconds, up_one) else 1.0
        total: int | None = int(gain * fitting(speed_of(up_one), self._start_seconds, until - self._clock()))
        while self._channels > 1 and total is not None:
            files = split(min(total, left), self._channels, most.largest_file_bytes)
            if files is None:
                break
            number += 1
            step = f"upload, {self._channels} channels"
            watch = self._put(client, f"many-{number}", *files, until - self._clock(), step)
            size = files[0] * files[1]
            flow = watch.flow(self._channels, size, self._rtt_seconds, is_up=True)
            there = dict.fromkeys(watch.names, files[1]) or there
            left -= size
            # Once more only if several channels were so much quicker that this was far too little.
            total = next_bytes(size, flow.flow_bytes_per_second, self._start_seconds, until - self._clock(), left)
            if watch.is_cut:
                break
        return flow, there

    def _small_up(self, rate: float, flush_seconds: float, most: Amounts) -> tuple[SmallFiles | None, list[str]]:
        seconds = self._time_for("small_up")
        # Each will have to be removed again, and that is flushed one by one.
        removable = max(LEAST_SMALL_FILES, int(REMOVAL_SECONDS / max(flush_seconds, LEAST_FLUSH_SECONDS)))
        count = small_files(rate, seconds - self._start_seconds, min(most.small_files, removable))
        if not count:
            return None, []
        watch = self._put(self._usual, "small", count, SMALL_FILE_BYTES, seconds, "small files up")
        return watch.small_files(SMALL_FILE_BYTES) if watch.names else None, watch.names

    def _down(self, client: Client, step: str, words: str, names: list[str]) -> Watch:
        """Fetch what was sent; how it went."""
        self._tell(words, 0)
        place = self._local.place(step)
        watch = Watch(lambda done: self._tell(words, done), CUT * max(self._time_for(step), 1.0))
        with contextlib.suppress(EnoughError):
            client.get(names, place, progress=watch)
        watch.stop()
        self._fetched_bytes += watch.done_bytes
        self._local.remove(step)
        return watch

    def _down_flow(
        self, client: Client, channels: int, step: str, first: dict[str, int], every: dict[str, int]
    ) -> Flow | None:
        """Fetch what was sent that way; and once more with all else that is there, where the line is quicker down."""
        flow: Flow | None = None
        seconds = self._time_for(step)
        until = self._clock() + seconds
        for files in (first or every, every):
            size = sum(files.values())
            if flow is not None:
                has_time = until - self._clock() >= seconds / 2
                may_fetch = self._fetched_bytes + size <= self._wish.size_bytes
                if flow.is_cut or size < WORTH_GROWING * flow.size_bytes or not has_time or not may_fetch:
                    break
            if size:
                words = f"download, {channels} channel{'s' if channels > 1 else ''}"
                watch = self._down(client, step, words, list(files))
                flow = watch.flow(channels, size, self._rtt_seconds, is_up=False)
        return flow

    def _small_down(self, names: list[str]) -> SmallFiles | None:
        if not names:
            return None
        watch = self._down(self._usual, "small_down", "small files down", names)
        return watch.small_files(SMALL_FILE_BYTES) if watch.names else None

    def _put(
        self, client: Client, below: str, count: int, size_bytes: int, left_seconds: float = 0.0, step: str = ""
    ) -> Watch:
        """Send so many files to a directory of their own; how it went."""
        paths = self._local.make_files(below, count, size_bytes)
        if step:
            self._tell(step, 0)
        place = self._remote.begin(below, paths)
        client.new_upload_id = self._remote.new_upload_id
        watch = Watch(lambda done: self._tell(step, done) if step else None, CUT * max(left_seconds, 1.0))
        with contextlib.suppress(EnoughError):
            client.put(paths, place, progress=watch)
        watch.stop()
        self._remote.finish(watch.names)
        self._local.remove(below)
        self._sent_bytes += watch.done_bytes
        return watch


def speed_of(flow: Flow) -> float:
    """Bytes per second at the end of a transfer, when it was quicker than on the whole: it still gathered speed."""
    delivery = flow.line.delivery_bytes_per_second if flow.line else None
    return max(flow.flow_bytes_per_second, min(delivery or 0, MOST_GAIN * flow.flow_bytes_per_second))

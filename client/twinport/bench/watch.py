"""Looks at one transfer: how its bytes went over time, what the kernel knows of its connections, the processors' work.

Ends it when it takes too long: whatever flowed until then tells enough.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable

from twinport.errors import TwinportError

from .facts import Effort, Flow, SmallFiles
from .line_facts import ChannelFacts, LineFacts, add_up, read_channel

START_TRIPS = 4
"""Round trips before anything flows: asking, connecting a channel, TLS, the first bytes."""
START_SHARE = 0.25
END_SHARE = 0.9
LEAST_SECONDS = 0.3
LEAST_TICKS = 20
"""Of all processors, usually a hundredth of a second each; fewer tell nothing."""
_STAT = "/proc/stat"
_IDLE_FIELDS = slice(3, 5)
_COUNTED_FIELDS = 8  # guests are counted as users already


class EnoughError(Exception):
    """The transfer was ended: it took long enough."""


class Watch:
    """Observes one transfer, from its creation to :meth:`stop`. ``tell`` hears of bytes done now and then."""

    def __init__(
        self,
        tell: Callable[[int], None],
        cut_after_seconds: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.names: list[str] = []
        """Of the files that are done, as they are called on the server."""
        self.is_cut = False
        self.done_bytes = 0
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._middle_at = 0.0
        self._middle: dict[int, ChannelFacts] | None = None
        self._channels: list[ChannelFacts] = []
        self._times = os.times()
        self._stat = _read_stat()
        self._begun = clock()
        self._ended = self._begun
        self._cut_at = self._begun + cut_after_seconds
        self._samples: list[tuple[float, int]] = [(self._begun, 0)]
        self._effort = Effort(0.0)

    # the observer -----------------------------------------------------------------------------------------------------

    def file_done(self, name: str, size_bytes: int) -> None:
        """One more."""
        self.names.append(name)

    def file_failed(self, name: str, error: TwinportError) -> None:
        """Whoever asked for the transfer is told by it."""

    def note(self, text: str) -> None:
        """Nothing that counts here."""

    def progress(self, done_bytes: int, known_bytes: int) -> None:
        """Keep it; ``EnoughError`` when it takes too long and is not done."""
        now = self._clock()
        if done_bytes > self.done_bytes:
            self.done_bytes = done_bytes
            self._samples.append((now, done_bytes))
            self._tell(done_bytes)
        if self._middle is None and START_SHARE * known_bytes <= done_bytes < END_SHARE * known_bytes:
            self._middle_at = now
            with self._lock:
                self._middle = {number: read_channel(connection) for number, connection in self._open.items()}
        is_done = 0 < known_bytes <= done_bytes  # before the first answer neither is known
        if now > self._cut_at and not is_done and not self.is_cut:
            self.is_cut = True
            raise EnoughError

    def channel_opens(self, descriptor: int) -> None:
        """Keep a descriptor of our own, to ask the kernel in the middle of the transfer."""
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=os.dup(descriptor))
            with self._lock:
                self._open[descriptor] = connection

    def channel_closes(self, descriptor: int) -> None:
        """Ask the kernel while it still knows. Beginnings are not counted: some congestion controls send far too much
        then, and lose it."""
        with self._lock:
            connection = self._open.pop(descriptor, None)
            began = None if self._middle is None else self._middle.pop(descriptor, None)
        if connection is not None:
            with connection:
                facts = read_channel(connection)
            self._channels.append(facts if began is None else facts.since(began))

    # the end ----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The transfer is over."""
        self._ended = self._clock()
        seconds = max(self.seconds, 1e-6)
        times, stat = os.times(), _read_stat()
        own = (times.user - self._times.user) + (times.system - self._times.system)
        self._effort = Effort(own / seconds, _busy(self._stat, stat))

    @property
    def seconds(self) -> float:
        """From the beginning to the end."""
        return self._ended - self._begun

    @property
    def line(self) -> LineFacts | None:
        """What is known of the connections."""
        return add_up(self._channels)

    def flow(self, channels: int, size_bytes: int, round_trip_seconds: float, *, is_up: bool) -> Flow:
        """The transfer as one of large files; all of ``size_bytes`` unless it was cut."""
        size = self.done_bytes if self.is_cut else size_bytes
        line = self.line
        settle = 0.0
        if line is not None and line.last_data_seconds is not None and not self.is_cut:
            # An upload ends with a command, whose round trip is no flushing.
            settle = max(0.0, min(line.last_data_seconds, self.seconds) - (round_trip_seconds if is_up else 0.0))
        rate = self._rate(size, START_TRIPS * round_trip_seconds, settle)
        counted = self._ended - settle - max(self._begun, self._middle_at)
        loss = None if line is None else line.sent_again if is_up else line.estimated_loss(counted)
        return Flow(
            channels=channels,
            files=len(self.names),
            size_bytes=size,
            seconds=self.seconds,
            bytes_per_second=size / max(size / rate + settle, 1e-9) if rate else 0.0,
            flow_bytes_per_second=rate,
            settle_seconds=settle,
            effort=self._effort,
            loss=loss,
            loss_is_estimate=loss is not None and not is_up,
            line=line,
            is_cut=self.is_cut,
        )

    def _rate(self, size: int, start_seconds: float, settle_seconds: float) -> float:
        """Bytes per second in the middle of the transfer: it begins slowly, and at its end some channels have nothing
        left to do. All but the start where it was too short to have a middle."""
        middle = [(at, done) for at, done in self._samples if START_SHARE * size <= done <= END_SHARE * size]
        if middle and middle[-1][0] - middle[0][0] >= LEAST_SECONDS:
            (first_at, first), (last_at, last) = middle[0], middle[-1]
        else:
            first_at, first = self._begun + min(start_seconds, self.seconds / 2), 0
            last_at, last = self._ended - settle_seconds, size
        return (last - first) / max(last_at - first_at, 1e-6)

    def small_files(self, file_bytes: int) -> SmallFiles:
        """The transfer as one of small files."""
        return SmallFiles(len(self.names), file_bytes, self.seconds, self._effort)


def _read_stat() -> tuple[int, int] | None:
    """Ticks that the machine's processors were idle, and all; None where this system does not tell."""
    try:
        with open(_STAT, "rb") as file:
            words = file.readline().split()
        numbers = [int(word) for word in words[1 : 1 + _COUNTED_FIELDS]]
    except (OSError, ValueError):
        return None
    return (sum(numbers[_IDLE_FIELDS]), sum(numbers)) if words[:1] == [b"cpu"] else None


def _busy(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] - before[1] < LEAST_TICKS:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])

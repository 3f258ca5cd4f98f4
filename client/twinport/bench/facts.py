"""What was measured, as plain numbers: the input of the verdict and of the reports. Seconds, bytes, and shares of 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .line_facts import LineFacts


@dataclass(frozen=True)
class RoundTrips:
    """Of commands that do nothing."""

    count: int
    best_seconds: float
    median_seconds: float
    worst_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> RoundTrips:
        """Of single ones, at least one."""
        ordered = sorted(seconds)
        middle = len(ordered) // 2
        median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        return cls(len(ordered), ordered[0], median, ordered[-1])


@dataclass(frozen=True)
class Effort:
    """What the processors of this machine did during one measurement.

    ``own_cores``: how many this process kept busy, on average. ``machine_busy``: the share of all that was busy,
    with whatever else ran here; None where the system does not tell.
    """

    own_cores: float
    machine_busy: float | None = None


@dataclass(frozen=True)
class Flow:
    """A transfer of large files. ``flow_bytes_per_second`` is the rate in its middle, from a quarter of the bytes to
    nine tenths; ``bytes_per_second`` the same, with the time that making durable took besides.

    ``settle_seconds`` passed between the last byte and the end: flushing, on the server (up) or here (down). ``is_cut``
    says that it was ended before all was there, because it took too long; ``loss`` is that of segments, as this end
    sees it, ``loss_is_estimate`` where that is only by their order.
    """

    channels: int
    files: int
    size_bytes: int
    seconds: float
    bytes_per_second: float
    flow_bytes_per_second: float
    settle_seconds: float
    effort: Effort
    loss: float | None = None
    loss_is_estimate: bool = False
    line: LineFacts | None = None
    is_cut: bool = False


@dataclass(frozen=True)
class SmallFiles:
    """A transfer of many small files."""

    files: int
    file_bytes: int
    seconds: float
    effort: Effort

    @property
    def files_per_second(self) -> float:
        """The rate, the start of the transfer included."""
        return self.files / max(self.seconds, 1e-6)


@dataclass(frozen=True)
class Measurements:
    """Everything. None is what was not measured, because there was no time or no room for it.

    ``is_local``: the server is on this machine, there is no line. ``flush_seconds`` is what a tiny upload takes
    on the server beyond its round trips, ``local_flush_seconds`` what flushing a tiny file takes here. ``bounded_by``
    says what kept the amount of data small: "quota", "size" (the option), "server" (its largest file) or "disk" (the
    one here), None where nothing did.
    """

    address: str
    user: str | None
    tls_version: str | None
    cores: int
    seconds: float
    sent_bytes: int
    fetched_bytes: int
    round_trips: RoundTrips
    connect_seconds: float
    flush_seconds: float | None = None
    local_flush_seconds: float | None = None
    up_one: Flow | None = None
    up_many: Flow | None = None
    down_one: Flow | None = None
    down_many: Flow | None = None
    small_up: SmallFiles | None = None
    small_down: SmallFiles | None = None
    is_local: bool = False
    bounded_by: str | None = None
    left_behind: tuple[str, ...] = ()

"""What this system's TCP tells of a connection: round trips, segments sent again or out of order, what it waited for.

Linux tells, by ``TCP_INFO``, and more the newer it is; whatever is not told is None. The structure only ever grows at
its end, so a field is there if the answer is long enough.
"""

from __future__ import annotations

import math
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

_ASKED_BYTES = 512
_NAME_BYTES = 16
# Offsets in struct tcp_info of linux/tcp.h, which is the same on all machines.
_U32 = {
    "last_data_ms": 52,
    "rtt_us": 68,
    "receive_rtt_us": 92,
    "resent_segments": 100,
    "least_rtt_us": 148,
    "received_segments": 152,
    "sent_segments": 156,
    "disordered_segments": 224,
}
_U64 = {"delivery_rate": 160, "busy_us": 168, "receiver_bound_us": 176, "buffer_bound_us": 184}
MOST_DISORDER = 0.95
"""Of more than this share no loss can be told: everything is out of order."""


@dataclass(frozen=True)
class ChannelFacts:
    """One connection, at its end. The names say the units; ``delivery_rate`` is in bytes per second."""

    congestion: str | None = None
    last_data_ms: int | None = None
    rtt_us: int | None = None
    receive_rtt_us: int | None = None
    least_rtt_us: int | None = None
    sent_segments: int | None = None
    resent_segments: int | None = None
    received_segments: int | None = None
    disordered_segments: int | None = None
    delivery_rate: int | None = None
    busy_us: int | None = None
    receiver_bound_us: int | None = None
    buffer_bound_us: int | None = None

    def since(self, earlier: ChannelFacts) -> ChannelFacts:
        """The same, with only those segments counted that came after ``earlier``."""
        return replace(
            self,
            sent_segments=_minus(self.sent_segments, earlier.sent_segments),
            resent_segments=_minus(self.resent_segments, earlier.resent_segments),
            received_segments=_minus(self.received_segments, earlier.received_segments),
            disordered_segments=_minus(self.disordered_segments, earlier.disordered_segments),
        )


@dataclass(frozen=True)
class LineFacts:
    """The connections of one transfer together: sums, and means of round trips. None: not told by this system.

    Segments are those after the first quarter of the bytes. ``busy_seconds`` is how long there was something to send
    (``longest_busy_seconds``, on the busiest connection), ``receiver_bound_seconds`` of it waited for the other side to
    read, ``buffer_bound_seconds`` for room in the send buffer. ``last_data_seconds`` passed between the last bytes that
    came and the end.
    """

    connections: int = 0
    congestion: str | None = None
    rtt_seconds: float | None = None
    least_rtt_seconds: float | None = None
    receive_rtt_seconds: float | None = None
    sent_segments: int | None = None
    resent_segments: int | None = None
    received_segments: int | None = None
    disordered_segments: int | None = None
    delivery_bytes_per_second: int | None = None
    busy_seconds: float | None = None
    longest_busy_seconds: float | None = None
    receiver_bound_seconds: float | None = None
    buffer_bound_seconds: float | None = None
    last_data_seconds: float | None = None

    @property
    def sent_again(self) -> float | None:
        """The share of segments that were sent once more: the loss on the way there."""
        if self.sent_segments is None or self.resent_segments is None or not self.sent_segments:
            return None
        return self.resent_segments / self.sent_segments

    def estimated_loss(self, seconds: float) -> float | None:
        """The loss on the way here, during ``seconds``: an estimate, None where nothing can be told.

        Who receives sees no loss, only that what follows a gap comes out of order, until the missing segment was sent
        again a round trip later. So the share that is out of order is the share of time with a gap, and gaps are as
        frequent as losses within a round trip.
        """
        received, disordered = self.received_segments, self.disordered_segments
        rtt = self.receive_rtt_seconds or self.rtt_seconds
        if not received or disordered is None or rtt is None or seconds <= 0:
            return None
        share = disordered / received
        if share > MOST_DISORDER:
            return None
        segments_per_trip = received / max(1, self.connections) / seconds * rtt
        return abs(math.log(1 - share)) / max(1.0, segments_per_trip)


def read_channel(connection: socket.socket) -> ChannelFacts:
    """The facts of a connection, or none at all where this system does not tell. Raises nothing."""
    if sys.platform != "linux":
        return ChannelFacts()
    try:
        answer = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ASKED_BYTES)
        name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _NAME_BYTES)
    except OSError:
        return ChannelFacts()
    return parse_facts(answer, name.partition(b"\0")[0].decode("ascii", "replace") or None)


def parse_facts(answer: bytes, congestion: str | None = None) -> ChannelFacts:
    """The facts in what ``TCP_INFO`` answered."""
    found: dict[str, int] = {}
    for fields, form in ((_U32, "=I"), (_U64, "=Q")):
        for field, offset in fields.items():
            if len(answer) >= offset + struct.calcsize(form):
                (found[field],) = struct.unpack_from(form, answer, offset)
    for field in ("rtt_us", "receive_rtt_us", "least_rtt_us"):
        if found.get(field) in (0, 0xFFFFFFFF):  # not measured
            del found[field]
    return ChannelFacts(congestion, **found)


def add_up(channels: Sequence[ChannelFacts]) -> LineFacts | None:
    """All connections of a transfer; None if there were none, or nothing is told of any."""
    told = [facts for facts in channels if facts != ChannelFacts()]
    if not told:
        return None
    names = {facts.congestion for facts in told}
    busy = [facts.busy_us for facts in told if facts.busy_us is not None]
    quiet = [facts.last_data_ms for facts in told if facts.last_data_ms is not None]
    return LineFacts(
        connections=len(told),
        congestion=names.pop() if len(names) == 1 else None,
        rtt_seconds=_mean_seconds([facts.rtt_us for facts in told]),
        least_rtt_seconds=_mean_seconds([facts.least_rtt_us for facts in told]),
        receive_rtt_seconds=_mean_seconds([facts.receive_rtt_us for facts in told]),
        sent_segments=_sum([facts.sent_segments for facts in told]),
        resent_segments=_sum([facts.resent_segments for facts in told]),
        received_segments=_sum([facts.received_segments for facts in told]),
        disordered_segments=_sum([facts.disordered_segments for facts in told]),
        delivery_bytes_per_second=_sum([facts.delivery_rate for facts in told]),
        busy_seconds=_seconds(_sum([facts.busy_us for facts in told])),
        longest_busy_seconds=_seconds(max(busy, default=None)),
        receiver_bound_seconds=_seconds(_sum([facts.receiver_bound_us for facts in told])),
        buffer_bound_seconds=_seconds(_sum([facts.buffer_bound_us for facts in told])),
        last_data_seconds=min(quiet) / 1000 if quiet else None,
    )


def _minus(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


def _sum(numbers: Sequence[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _mean_seconds(microseconds: Sequence[int | None]) -> float | None:
    known = [number for number in microseconds if number is not None]
    return sum(known) / len(known) / 1e6 if known else None

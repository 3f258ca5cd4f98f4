"""Measurements to start from: a line of 100 Mbit/s and 20 ms that nothing but its rate bounds; and any at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from twinport.bench.facts import Effort, Flow, Measurements, RoundTrips, SmallFiles
from twinport.bench.line_facts import LineFacts

LINE_RATE = 12_000_000.0
RTT_SECONDS = 0.02
IDLE = Effort(0.1, 0.1)


def make_line(**changes: Any) -> LineFacts:
    """The connections of a transfer that the line kept busy, with its queue filled."""
    filled = LineFacts(
        connections=1,
        congestion="cubic",
        rtt_seconds=2 * RTT_SECONDS,
        least_rtt_seconds=RTT_SECONDS,
        receive_rtt_seconds=2 * RTT_SECONDS,
        sent_segments=16_000,
        resent_segments=0,
        received_segments=16_000,
        disordered_segments=0,
        delivery_bytes_per_second=int(LINE_RATE),
        busy_seconds=2.0,
        longest_busy_seconds=2.0,
        receiver_bound_seconds=0.0,
        buffer_bound_seconds=0.0,
        last_data_seconds=0.02,
    )
    return replace(filled, **changes)


def make_flow(rate: float = LINE_RATE, line: LineFacts | None = None, **changes: Any) -> Flow:
    """Two seconds at a rate."""
    line = make_line() if line is None else line
    flow = Flow(
        channels=1,
        files=1,
        size_bytes=int(2 * rate),
        seconds=2.0,
        bytes_per_second=rate,
        flow_bytes_per_second=rate,
        settle_seconds=0.0,
        effort=IDLE,
        loss=0.0,
        line=line,
    )
    return replace(flow, **changes)


def make_found(**changes: Any) -> Measurements:
    """All of it."""
    four = make_line(connections=4, busy_seconds=8.0)
    found = Measurements(
        address="files.example.org:5001",
        user="alice",
        tls_version="TLSv1.3",
        cores=2,
        seconds=12.3,
        sent_bytes=60_000_000,
        fetched_bytes=50_000_000,
        round_trips=RoundTrips(20, RTT_SECONDS, RTT_SECONDS * 1.01, RTT_SECONDS * 1.2),
        connect_seconds=0.09,
        flush_seconds=0.002,
        local_flush_seconds=0.002,
        up_one=make_flow(),
        up_many=make_flow(line=four, channels=4),
        down_one=make_flow(loss_is_estimate=True),
        down_many=make_flow(line=four, channels=4, loss_is_estimate=True),
        small_up=SmallFiles(2000, 4096, 1.0, IDLE),
        small_down=SmallFiles(2000, 4096, 1.0, IDLE),
    )
    return replace(found, **changes)


rates = st.floats(0, 1e11)
shares = st.none() | st.floats(0, 1)
times = st.floats(0, 1e4)
efforts = st.builds(Effort, st.floats(0, 256), shares)
counts = st.none() | st.integers(0, 2**32)
lines = st.builds(
    LineFacts,
    connections=st.integers(0, 64),
    congestion=st.sampled_from([None, "bbr", "cubic"]),
    rtt_seconds=st.none() | times,
    receive_rtt_seconds=st.none() | times,
    busy_seconds=st.none() | times,
    longest_busy_seconds=st.none() | times,
    receiver_bound_seconds=st.none() | times,
    buffer_bound_seconds=st.none() | times,
)
flows = st.builds(
    Flow,
    channels=st.integers(1, 64),
    files=st.integers(0, 64),
    size_bytes=st.integers(0, 2**40),
    seconds=times,
    bytes_per_second=rates,
    flow_bytes_per_second=rates,
    settle_seconds=times,
    effort=efforts,
    loss=shares,
    loss_is_estimate=st.booleans(),
    line=st.none() | lines,
)
smalls = st.builds(SmallFiles, st.integers(0, 10**6), st.just(4096), times, efforts)
measurements = st.builds(
    make_found,
    cores=st.integers(1, 256),
    round_trips=st.lists(st.floats(1e-6, 10), min_size=1, max_size=5).map(RoundTrips.of),
    flush_seconds=st.none() | times,
    local_flush_seconds=st.none() | times,
    up_one=st.none() | flows,
    up_many=st.none() | flows,
    down_one=st.none() | flows,
    down_many=st.none() | flows,
    small_up=st.none() | smalls,
    small_down=st.none() | smalls,
)

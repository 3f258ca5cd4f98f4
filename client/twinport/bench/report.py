"""The outcome for people, on one screen of 80x24, and for programs, as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from twinport.walk import show

from .facts import Effort, Flow, Measurements, SmallFiles
from .line_facts import LineFacts
from .verdict import Finding, Subject, decide
from .wording import explain, say_rate, say_seconds, say_share

SCHEMA = 1
"""Goes up when a key changes its meaning or goes away; new keys may come without that."""
COLUMNS = 79
LINES = 23
NOT_TOLD = "not told"
_LABEL = 13
_NAMES = {
    Subject.LARGE_UP: "large up",
    Subject.LARGE_DOWN: "large down",
    Subject.SMALL_UP: "small up",
    Subject.SMALL_DOWN: "small down",
}
_BOUNDS = {
    "quota": "your quota leaves room for no more data: rates may be too low",
    "size": "--size bounds the data: rates may be too low",
    "server": "the server takes no larger file: rates may be too low",
    "disk": "the disk here has no room for more data (TMPDIR): rates may be too low",
}
Style = Callable[[str], str]


def screen(found: Measurements, strong: Style = str) -> str:
    """At most ``LINES`` lines of ``COLUMNS``. ``strong`` marks what to look at first, on terminals that can."""
    lines = [*_head(found, strong), *_table(found, strong), "", strong("What bounds it")]
    for names, text in _verdicts(found):
        lines += textwrap.wrap(
            text,
            COLUMNS,
            initial_indent=f"{names:<{_LABEL}}",
            subsequent_indent=" " * _LABEL,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _head(found: Measurements, strong: Style) -> list[str]:
    trips = found.round_trips
    who = f" as {found.user}" if found.user else ""
    moved = f"{found.seconds:.0f} s, {_mib(found.sent_bytes)} up, {_mib(found.fetched_bytes)} down"
    connection = found.tls_version or "plaintext"
    lines = [
        strong(show(f"{found.address}{who}, {connection}"[: COLUMNS - len(moved) - 2])) + f"  {moved}",
        f"{'round trip':<{_LABEL}}{say_seconds(trips.median_seconds)} (best {say_seconds(trips.best_seconds)}, "
        f"worst {say_seconds(trips.worst_seconds)}); connect and log in {say_seconds(found.connect_seconds)}",
        f"{'server disk':<{_LABEL}}{_disk(found)}",
    ]
    if found.bounded_by is not None:
        lines.append(f"{'note':<{_LABEL}}{_BOUNDS[found.bounded_by]}")
    return lines


def _disk(found: Measurements) -> str:
    flush = "not measured"
    if found.flush_seconds is not None:
        flush = f"{say_seconds(found.flush_seconds)} to flush a small file"
    large = found.up_many or found.up_one
    if large is None or large.is_cut:
        return flush
    return f"{flush}; {say_seconds(large.settle_seconds)} after the last of {_mib(large.size_bytes)}"


def _table(found: Measurements, strong: Style) -> list[str]:
    many = found.up_many or found.down_many
    several = f"{many.channels} channels" if many else ""
    head = f"{'':<{_LABEL}}{'1 channel':>12}{several:>14}{'loss':>14}{'CPU here':>11}  congestion"
    rows = [strong(head)]
    for subject, one, several_flow in (
        (Subject.LARGE_UP, found.up_one, found.up_many),
        (Subject.LARGE_DOWN, found.down_one, found.down_many),
    ):
        flow = several_flow or one
        row = f"{_NAMES[subject]:<{_LABEL}}{_rate(one):>12}{_rate(several_flow):>14}"
        if flow is not None:
            control = NOT_TOLD
            if subject is Subject.LARGE_UP and flow.line is not None and flow.line.congestion:
                control = flow.line.congestion
            row += f"{_loss(one, several_flow):>14}{_cores(flow.effort, found.cores):>11}  {control}"
        rows.append(row)
    for subject, small in ((Subject.SMALL_UP, found.small_up), (Subject.SMALL_DOWN, found.small_down)):
        row = f"{_NAMES[subject]:<{_LABEL}}"
        if small is not None:
            each = f"{small.files_per_second:.0f} files/s of {small.file_bytes >> 10} KiB"
            row += f"{each:>26}{'':>14}{_cores(small.effort, found.cores):>11}"
        else:
            row += f"{'-':>12}"
        rows.append(row.rstrip())
    return rows


def _rate(flow: Flow | None) -> str:
    return "-" if flow is None else say_rate(flow.bytes_per_second)


def _loss(one: Flow | None, many: Flow | None) -> str:
    flow = next((flow for flow in (one, many) if flow is not None and flow.loss is not None), None)
    if flow is None or flow.loss is None:
        return NOT_TOLD
    return ("about " if flow.loss_is_estimate and flow.loss else "") + say_share(flow.loss)


def _cores(effort: Effort, cores: int) -> str:
    return f"{100 * effort.own_cores / cores:.0f} %"


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB" if count >= 10 * 2**20 else f"{count / 2**20:.1f} MiB"


def _verdicts(found: Measurements) -> list[tuple[str, str]]:
    """Names and texts; small files in one where both directions are bounded alike."""
    told: list[tuple[str, str]] = []
    for finding in decide(found):
        text = " ".join(explain(finding, found))
        if finding.subject is Subject.SMALL_DOWN and told[-1][1] == text:
            told[-1] = ("small files", text)
        else:
            told.append((_NAMES[finding.subject], text))
    return told


# JSON -----------------------------------------------------------------------------------------------------------------


def to_json(found: Measurements) -> dict[str, Any]:
    """The outcome for programs; docs/performance.md describes each key. Null is what was not measured or not told."""
    trips = found.round_trips
    return {
        "schema": SCHEMA,
        "address": found.address,
        "user": found.user,
        "tls": found.tls_version,
        "seconds": found.seconds,
        "sent_bytes": found.sent_bytes,
        "fetched_bytes": found.fetched_bytes,
        "bounded_by": found.bounded_by,
        "cores": found.cores,
        "local": found.is_local,
        "round_trip": {
            "count": trips.count,
            "best_seconds": trips.best_seconds,
            "median_seconds": trips.median_seconds,
            "worst_seconds": trips.worst_seconds,
        },
        "connect_seconds": found.connect_seconds,
        "server_flush_seconds": found.flush_seconds,
        "local_flush_seconds": found.local_flush_seconds,
        "large": {
            "up_one": _flow(found.up_one),
            "up_many": _flow(found.up_many),
            "down_one": _flow(found.down_one),
            "down_many": _flow(found.down_many),
        },
        "small": {"up": _small(found.small_up), "down": _small(found.small_down)},
        "verdict": [_verdict(finding, found) for finding in decide(found)],
        "left_behind": list(found.left_behind),
    }


def _verdict(finding: Finding, found: Measurements) -> dict[str, str]:
    text, step = explain(finding, found)
    return {"of": finding.subject.value, "bound": finding.bound.value, "text": text, "next_step": step}


def _effort(effort: Effort) -> dict[str, Any]:
    return {"own_cores": effort.own_cores, "machine_busy": effort.machine_busy}


def _flow(flow: Flow | None) -> dict[str, Any] | None:
    if flow is None:
        return None
    return {
        "channels": flow.channels,
        "files": flow.files,
        "bytes": flow.size_bytes,
        "seconds": flow.seconds,
        "bytes_per_second": flow.bytes_per_second,
        "flow_bytes_per_second": flow.flow_bytes_per_second,
        "settle_seconds": flow.settle_seconds,
        "cut_short": flow.is_cut,
        "loss": flow.loss,
        "loss_is_estimate": flow.loss_is_estimate,
        **_effort(flow.effort),
        "line": _line(flow.line),
    }


def _line(line: LineFacts | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {
        "connections": line.connections,
        "congestion": line.congestion,
        "rtt_seconds": line.rtt_seconds,
        "least_rtt_seconds": line.least_rtt_seconds,
        "receive_rtt_seconds": line.receive_rtt_seconds,
        "sent_segments": line.sent_segments,
        "resent_segments": line.resent_segments,
        "received_segments": line.received_segments,
        "disordered_segments": line.disordered_segments,
        "busy_seconds": line.busy_seconds,
        "longest_busy_seconds": line.longest_busy_seconds,
        "receiver_bound_seconds": line.receiver_bound_seconds,
        "buffer_bound_seconds": line.buffer_bound_seconds,
    }


def _small(small: SmallFiles | None) -> dict[str, Any] | None:
    if small is None:
        return None
    return {
        "files": small.files,
        "file_bytes": small.file_bytes,
        "seconds": small.seconds,
        "files_per_second": small.files_per_second,
        **_effort(small.effort),
    }

"""What a finding means, in plain words, and the next step to take. Each in at most a few lines of a terminal."""

from __future__ import annotations

from .facts import Flow, Measurements
from .verdict import Bound, Finding, Subject, best_of, gain_of, loss_of

_MIBI = 1024 * 1024
_BBR = "sysctl -w net.ipv4.tcp_congestion_control=bbr"
_MUCH = 100


def say_rate(bytes_per_second: float) -> str:
    """A rate for people, as in ``11.2 MiB/s``."""
    rate = bytes_per_second / _MIBI
    return f"{rate:.0f} MiB/s" if rate >= _MUCH else f"{rate:.1f} MiB/s" if rate >= 1 else f"{rate * 1024:.0f} KiB/s"


def say_bits(bytes_per_second: float) -> str:
    """The same as lines are sold, as in ``94 Mbit/s``."""
    bits = bytes_per_second * 8 / 1e6
    return f"{bits:.0f} Mbit/s" if bits >= 10 else f"{bits:.1f} Mbit/s"  # noqa: PLR2004  # two digits


def say_seconds(seconds: float) -> str:
    """A time for people: milliseconds below a second."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    milliseconds = seconds * 1000
    if milliseconds < 0.1:  # noqa: PLR2004  # the last digit that is shown
        return "<0.1 ms"
    return f"{milliseconds:.0f} ms" if milliseconds >= _MUCH else f"{milliseconds:.1f} ms"


def say_share(share: float) -> str:
    """A share of 1 in per cent; small ones with more digits."""
    percent = share * 100
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2f} %"  # noqa: PLR2004  # two digits


def explain(finding: Finding, found: Measurements) -> tuple[str, str]:
    """What bounds it, and what to do about it: two sentences each at most."""
    if finding.subject in (Subject.SMALL_UP, Subject.SMALL_DOWN):
        return _small(finding, found)
    return _large(finding, found)


def _large(finding: Finding, found: Measurements) -> tuple[str, str]:
    is_up = finding.subject is Subject.LARGE_UP
    one, many = (found.up_one, found.up_many) if is_up else (found.down_one, found.down_many)
    flow = best_of(one, many)
    bound = finding.bound
    if flow is None or bound is Bound.UNKNOWN:
        return "Not measured: there was no time or no room.", "Give it more --seconds or a larger --size."
    if bound is Bound.LINE:
        return f"The line: {say_bits(flow.flow_bytes_per_second)}{_no_gain(one, many)}.", "Only a faster line helps."
    if bound is Bound.LOSS:
        return _loss(is_up, one, many, flow)
    if bound is Bound.LATENCY:
        return _latency(one, many, found)
    if bound is Bound.SERVER_DISK:
        return (
            f"The server's disk: {say_seconds(flow.settle_seconds)} of {say_seconds(flow.seconds)} went to flushing.",
            "A faster disk there helps.",
        )
    if bound is Bound.LOCAL_DISK:
        return (
            f"This machine's disk: {say_seconds(flow.settle_seconds)} of {say_seconds(flow.seconds)} went to flushing.",
            "Fetch to a faster disk (for bench: set TMPDIR).",
        )
    if bound is Bound.LOCAL_CPU:
        return _local_cpu(flow.effort.own_cores, found.cores, flow.effort.machine_busy)
    if bound is Bound.SERVER:
        what = "takes it no faster" if is_up else "gives it no faster"
    else:
        return (
            "The line, or what the server gives: one channel or several, this machine waits.",
            "See the server's CPU meanwhile, and whether your account has a rate.",
        )
    return (
        f"The server {what}: its CPU, or a rate of your account.",
        "See its CPU meanwhile (top), and max-bytes-per-second in its settings.",
    )


def _loss(is_up: bool, one: Flow | None, many: Flow | None, flow: Flow) -> tuple[str, str]:
    loss = loss_of(one, many) or 0.0
    name = flow.line.congestion if flow.line is not None and is_up else None
    about = "" if is_up else "about "
    text = f"The line loses {about}{say_share(loss)}"
    text += f", and {name} slows down at each loss." if name and name != "bbr" else "."
    if is_up and name == "bbr":
        return text, "bbr is in use already; more --channels may help, a better line does."
    where = "here" if is_up else "on the server"
    return text, f"bbr helps, {where}: {_BBR}; or more --channels."


def _latency(one: Flow | None, many: Flow | None, found: Measurements) -> tuple[str, str]:
    trip = say_seconds(found.round_trips.median_seconds)
    gain = gain_of(one, many)
    if gain is not None and many is not None and gain > 1.4:  # noqa: PLR2004  # as in the verdict
        return (
            f"Round trips of {trip}: one channel fills its window, {many.channels} give {gain:.1f} times as much.",
            f"More --channels than {many.channels} may give more.",
        )
    flow = best_of(one, many)
    if flow is not None and flow.seconds < 1:
        return f"Round trips of {trip}: so little data never got up to speed.", "A larger --size or quota tells more."
    return (
        f"Round trips of {trip}: each channel waits for its window.",
        "More --channels help, and larger net.ipv4.tcp_wmem and tcp_rmem.",
    )


def _local_cpu(own_cores: float, cores: int, machine_busy: float | None) -> tuple[str, str]:
    if machine_busy is not None and own_cores < cores * 0.5:
        return (
            f"This machine's CPU: all {cores} cores are busy, {own_cores:.1f} of them with this.",
            "End what else runs here, or use a machine with more cores.",
        )
    return (
        f"This machine's CPU: {own_cores:.1f} of {cores} cores are busy with it.",
        "A faster CPU helps; the line and the server could do more.",
    )


def _small(finding: Finding, found: Measurements) -> tuple[str, str]:
    is_up = finding.subject is Subject.SMALL_UP
    small = found.small_up if is_up else found.small_down
    bound = finding.bound
    if small is None or bound is Bound.UNKNOWN:
        return "Not measured: there was no time or no room.", "Give it more --seconds or a larger --size."
    if bound is Bound.LINE:
        return "The line: its bytes, not its round trips.", "Only a faster line helps."
    if bound is Bound.LOCAL_CPU:
        return _local_cpu(small.effort.own_cores, found.cores, small.effort.machine_busy)
    if bound is Bound.LATENCY:
        trip = say_seconds(found.round_trips.median_seconds)
        return f"Round trips of {trip}, at the start: many more files go at a higher rate.", "Send them in one command."
    if bound is Bound.SERVER_DISK:
        return (
            f"The server's disk: a flush takes {say_seconds(found.flush_seconds or 0.0)}.",
            "A faster disk there helps; many files in one command share flushes.",
        )
    if bound is Bound.LOCAL_DISK:
        return (
            f"This machine's disk: a flush takes {say_seconds(found.local_flush_seconds or 0.0)}.",
            "Fetch to a faster disk (for bench: set TMPDIR).",
        )
    if bound is Bound.LOSS:
        return "The losses on the line, as for large files.", "What helps those helps these."
    if bound is Bound.LINE_OR_SERVER:
        return "The line, or what the server gives, as for large files.", "What helps those helps these."
    what = "its CPU, or its disk" if is_up else "its CPU"
    return f"The server: {what}; neither the line nor this machine is full.", "See its CPU meanwhile (top)."


def _no_gain(one: Flow | None, many: Flow | None) -> str:
    gain = gain_of(one, many)
    if gain is None or many is None or gain >= 1.4:  # noqa: PLR2004  # as in the verdict
        return ""
    return f"; {many.channels} channels give no more than one"

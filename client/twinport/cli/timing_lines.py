"""What ``-vv`` shows: where the time of a transfer went, for people."""

from __future__ import annotations

from twinport.timings import STAGES, Timings

_SHOWN_SHARE = 0.005
_SHOWN_SECONDS = 0.0005
_MOSTLY = 0.5


def timing_lines(timings: Timings) -> list[str]:
    """One line for each part that took time, the last one says what held the transfer up."""
    opening = timings.opening
    parts = [
        ("connect", opening.connect_seconds, ""),
        ("TLS", opening.secure_seconds, ""),
        ("greeting, login", opening.login_seconds, ""),
        ("transfer", timings.total_seconds, _channels(timings.channels)),
        ("finding files", timings.finding_seconds, "beside it: local walk, comparing with the listing"),
        ("committing", timings.committing_seconds, "beside it: the server making large files durable"),
        ("flushing", timings.flushing_seconds, "beside it: making downloads durable here"),
    ]
    lines = ["where the time went:"]
    lines += [
        f"  {name:<16}{seconds:9.3f} s  {more}".rstrip() for name, seconds, more in parts if seconds >= _SHOWN_SECONDS
    ]
    for stage, text in STAGES.items():
        share = timings.share(stage)
        if share >= _SHOWN_SHARE:
            lines.append(f"    {stage:<14}{100 * share:9.1f} %  {text}")
    return [*lines, f"  {_verdict(timings)}"]


def _channels(count: int) -> str:
    if not count:
        return "no data connection was needed"
    return f"{count} data connection{'s' if count > 1 else ''} at most"


def _verdict(timings: Timings) -> str:
    """What held it up, in a sentence. ``twinport bench`` tells the line from the server."""
    if not timings.channels:
        return "nothing had to be moved"
    if timings.committing_seconds > _MOSTLY * timings.total_seconds:
        return "most of it was the server's disk: making the files durable"
    if timings.flushing_seconds > _MOSTLY * timings.total_seconds:
        return "most of it was this machine's disk: making the files durable"
    if timings.share("waiting") > _MOSTLY:
        return "this end mostly waited: the line or the server bounds it; twinport bench says which"
    busiest = max(STAGES, key=timings.share)
    return f"this end was busy, mostly {busiest}: this machine bounds it"

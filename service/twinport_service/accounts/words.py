"""What a person writes on the command line about accounts, read strictly: sizes, counts, expiries."""

from __future__ import annotations

import re
from datetime import datetime, timezone

_SIZE = re.compile(r"(\d{1,15})\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_AGE = re.compile(r"(\d{1,6})([hdwy])", re.ASCII)
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOST = 2**63 - 1


class WordError(ValueError):
    """A word cannot be read; the message says what it may be."""


def parse_bytes(word: str) -> int | None:
    """``10G``, ``512 MiB``, ``1000``: bytes, units of 1024. ``none``: None. ``WordError``."""
    if word.lower() == "none":
        return None
    match = _SIZE.fullmatch(word)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else _MOST + 1
    if size > _MOST:
        raise WordError(f"{word!r} is no size; write it as in 500M, 10G (units of 1024) or none.")
    return size


def parse_rate(word: str) -> int | None:
    """As :func:`parse_bytes`, a second, and at least 1K: with less nothing would ever end. ``WordError``."""
    rate = parse_bytes(word)
    if rate is not None and rate < _UNITS["K"]:
        raise WordError(f"{word!r} a second is too little; it must be at least 1K, or none.")
    return rate


def parse_count(word: str) -> int | None:
    """``100000``: a number. ``none``: None. ``WordError``."""
    if word.lower() == "none":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", word):
        raise WordError(f"{word!r} is no number of files; write it as in 100000 or none.")
    return int(word)


def parse_expiry(word: str, now: float) -> float | None:
    """``90d``, ``12h`` from now, ``2027-12-31`` (its end, UTC), ``never``. Seconds since the epoch. ``WordError``."""
    if word.lower() == "never":
        return None
    age = _AGE.fullmatch(word)
    if age:
        return now + int(age[1]) * _SECONDS[age[2]]
    try:
        if not _DATE.fullmatch(word):
            raise ValueError
        return datetime.strptime(word, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp() + _SECONDS["d"]
    except ValueError:
        raise WordError(f"{word!r} is no time; write it as in 90d, 12h, 2027-12-31 or never.") from None


def format_bytes(size: int | None) -> str:
    """``10 GiB``; ``-`` for no bound."""
    if size is None:
        return "-"
    unit = "B"
    value = float(size)
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < _UNITS["K"]:
            break
        value, unit = value / _UNITS["K"], larger
    return f"{value:.4g} {unit}"


def format_moment(seconds: float | None) -> str:
    """A date and time, UTC; ``never`` for None."""
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

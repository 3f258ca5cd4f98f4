"""How much to send, and for how long: pure decisions, so that a measurement takes its time on any line, and no more.

A line's rate is not known before something was sent. So the first upload is tiny, and each next one as large as the
rate seen so far fills the time that is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from twinport.errors import SpaceError

DEFAULT_SECONDS = 12.0
DEFAULT_BYTES = 1024**3
FIRST_BYTES = 128 * 1024
FIRST_AT_MOST_BYTES = 2 * 1024 * 1024
LEAST_BYTES = 1024 * 1024
"""With less than this to send nothing is worth saying."""
LEAST_FILE_BYTES = 320 * 1024
"""Of a file that goes in pieces, as large ones do: those up to 256 KiB go whole."""
FILES_PER_CHANNEL = 4
"""So that channels which are lucky have something to do until the end."""
SEGMENT_BYTES = 8 * 1024 * 1024
SMALL_FILE_BYTES = 4096
FILE_OVERHEAD_BYTES = 300
"""Of a small file, on both connections."""
LEAST_SMALL_FILES = 32
MOST_SMALL_FILES = 2000
GROWTH = 16
WORTH_GROWING = 1.5
# Of the whole time, one after the other; the rest is for removing what was sent.
WEIGHTS = {
    "flush": 0.4,
    "up_one": 3.0,
    "up_many": 2.0,
    "down_one": 2.2,
    "down_many": 2.0,
    "small_up": 1.0,
    "small_down": 1.0,
    "removal": 0.5,
}
LEAST_SECONDS = 0.5
MARGIN = 0.85
"""Of the time that is left, as what is fetched afterwards must fit too."""
_ONE_SHARE = 0.4
_MANY_SHARE = 0.5


@dataclass(frozen=True)
class Room:
    """What there is room for, in bytes and files; None for no bound. ``local_bytes`` is free on the disk here."""

    size_bytes: int
    quota_bytes: int | None
    quota_files: int | None
    largest_file_bytes: int
    local_bytes: int | None


@dataclass(frozen=True)
class Amounts:
    """The most to send with one channel, with several, and as small files."""

    one_bytes: int
    many_bytes: int
    largest_file_bytes: int
    small_files: int
    bounded_by: str | None


def amounts(room: Room, default_bytes: int = DEFAULT_BYTES) -> Amounts:
    """How much may be sent in all. ``SpaceError`` where that is too little to measure anything."""
    bounds: dict[str, int] = {"size": room.size_bytes}
    if room.quota_bytes is not None:
        bounds["quota"] = room.quota_bytes
    if room.local_bytes is not None:
        bounds["disk"] = room.local_bytes // 3  # sent and fetched lie here at once
    by, total = min(bounds.items(), key=lambda item: item[1])
    if room.quota_files is not None and room.quota_files < LEAST_SMALL_FILES:
        raise SpaceError(
            f"cannot measure: your quota leaves room for {room.quota_files} more files, and {LEAST_SMALL_FILES} are "
            "needed; remove some, or ask for a larger quota",
            "QuotaExceeded",
        )
    if total < LEAST_BYTES:
        why = {
            "size": f"--size must be at least {LEAST_BYTES >> 20} MiB",
            "quota": f"your quota leaves {total >> 10} KiB, and {LEAST_BYTES >> 10} KiB are needed; remove something, "
            "or ask for a larger quota",
            "disk": "the disk of the temporary directory is full; free some space, or set TMPDIR to another place",
        }
        raise SpaceError(f"cannot measure: {why[by]}", "QuotaExceeded" if by == "quota" else "DiskFull")
    if room.largest_file_bytes < LEAST_FILE_BYTES:
        raise SpaceError(
            f"cannot measure: the server takes no file of more than {room.largest_file_bytes} bytes, and "
            f"{LEAST_FILE_BYTES} are needed",
            "TooLarge",
        )
    one = min(int(total * _ONE_SHARE), room.largest_file_bytes)
    if room.largest_file_bytes < int(total * _ONE_SHARE):
        by = "server"
    small = int(total * (1 - _ONE_SHARE - _MANY_SHARE)) // SMALL_FILE_BYTES
    if room.quota_files is not None:
        small = min(small, room.quota_files * 3 // 4)
    return Amounts(
        one_bytes=one,
        many_bytes=int(total * _MANY_SHARE),
        largest_file_bytes=room.largest_file_bytes,
        small_files=max(0, min(small, MOST_SMALL_FILES)),
        bounded_by=None if by == "size" and room.size_bytes >= default_bytes else by,
    )


def time_for(step: str, left_seconds: float) -> float:
    """How long a step may take, of what is left for it and all later ones; never less than a moment."""
    steps = list(WEIGHTS)
    later = sum(WEIGHTS[name] for name in steps[steps.index(step) :])
    return max(LEAST_SECONDS, left_seconds * WEIGHTS[step] / later)


def fitting(bytes_per_second: float, start_seconds: float, left_seconds: float) -> int:
    """How many bytes go in the time that is left."""
    return int(bytes_per_second * max(0.0, (left_seconds - start_seconds) * MARGIN))


def next_bytes(
    sent_bytes: int, bytes_per_second: float, start_seconds: float, left_seconds: float, left_bytes: int
) -> int | None:
    """How much to send next, after ``sent_bytes`` that went at a rate; None when that will do.

    ``start_seconds`` pass before anything flows. A next one that is not much larger would tell nothing new.
    """
    wanted = min(sent_bytes * GROWTH, fitting(bytes_per_second, start_seconds, left_seconds), left_bytes)
    return wanted if wanted >= WORTH_GROWING * sent_bytes else None


def split(total_bytes: int, channels: int, largest_file_bytes: int) -> tuple[int, int] | None:
    """How many files of what size keep several channels busy: one, where it has segments enough for all; None where
    there is too little for two channels."""
    if total_bytes >= 2 * channels * SEGMENT_BYTES and total_bytes <= largest_file_bytes:
        return 1, total_bytes
    files = min(FILES_PER_CHANNEL * channels, total_bytes // LEAST_FILE_BYTES)
    if files < 2:  # noqa: PLR2004  # several
        return None
    return files, min(total_bytes // files, largest_file_bytes)


def first_bytes(round_trip_seconds: float) -> int:
    """How much to send first: more where each upload costs much time before anything flows."""
    return min(FIRST_AT_MOST_BYTES, int(FIRST_BYTES * (1 + round_trip_seconds / 0.01)))


def small_files(bytes_per_second: float, left_seconds: float, most: int) -> int:
    """How many small files to send: as many as the line brings in the time, where nothing else slows them down."""
    fitting = int(bytes_per_second * left_seconds / (SMALL_FILE_BYTES + FILE_OVERHEAD_BYTES))
    return min(most, max(LEAST_SMALL_FILES, fitting))

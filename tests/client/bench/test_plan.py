"""How much is sent: within every bound, and in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport.bench.plan import (
    FIRST_BYTES,
    LEAST_BYTES,
    LEAST_FILE_BYTES,
    LEAST_SECONDS,
    LEAST_SMALL_FILES,
    MOST_SMALL_FILES,
    SEGMENT_BYTES,
    SMALL_FILE_BYTES,
    WEIGHTS,
    Room,
    amounts,
    first_bytes,
    fitting,
    next_bytes,
    small_files,
    split,
    time_for,
)
from twinport.errors import SpaceError

GIB = 1024**3
WIDE = Room(GIB, None, None, 2**63 - 1, None)


def test_nothing_bounds_it_but_the_default() -> None:
    found = amounts(WIDE)
    assert found.bounded_by is None
    assert found.one_bytes + found.many_bytes + found.small_files * SMALL_FILE_BYTES <= GIB


@pytest.mark.parametrize(
    ("room", "by"),
    [
        (Room(10**8, None, None, 2**63 - 1, None), "size"),
        (Room(GIB, 10**8, None, 2**63 - 1, 10**12), "quota"),
        (Room(GIB, 10**9, None, 10**7, None), "server"),
        (Room(GIB, None, None, 2**63 - 1, 10**8), "disk"),
    ],
)
def test_what_bounds_it_is_told(room: Room, by: str) -> None:
    assert amounts(room).bounded_by == by


@pytest.mark.parametrize(
    ("room", "text", "code"),
    [
        (Room(1000, None, None, 2**63 - 1, None), "--size must be at least 1 MiB", "DiskFull"),
        (Room(GIB, 500_000, None, 2**63 - 1, None), "your quota leaves 488 KiB, and 1024 KiB are", "QuotaExceeded"),
        (Room(GIB, None, 5, 2**63 - 1, None), "room for 5 more files, and 32 are needed", "QuotaExceeded"),
        (Room(GIB, None, None, 1000, None), "no file of more than 1000 bytes", "TooLarge"),
        (Room(GIB, None, None, 2**63 - 1, 1000), "set TMPDIR", "DiskFull"),
    ],
)
def test_too_little_room_says_what_to_do(room: Room, text: str, code: str) -> None:
    with pytest.raises(SpaceError, match=text) as caught:
        amounts(room)
    assert caught.value.code == code


sizes = st.integers(LEAST_BYTES, 2**50)


@given(st.builds(Room, sizes, st.none() | sizes, st.none() | st.integers(64, 10**6), sizes, st.none() | sizes))
def test_no_bound_is_ever_crossed(room: Room) -> None:
    try:
        found = amounts(room)
    except SpaceError:
        assert room.local_bytes is not None
        assert room.local_bytes // 3 < LEAST_BYTES
        return
    total = found.one_bytes + found.many_bytes + found.small_files * SMALL_FILE_BYTES
    assert total <= min(room.size_bytes, 2**63 if room.quota_bytes is None else room.quota_bytes)
    assert found.one_bytes <= room.largest_file_bytes
    assert found.small_files <= min(MOST_SMALL_FILES, 10**9 if room.quota_files is None else room.quota_files)


@given(st.floats(1e3, 1e10), st.floats(1e-5, 0.6), st.floats(1, 60))
def test_an_upload_grows_to_fill_its_time_on_any_line(rate: float, rtt: float, budget: float) -> None:
    """A line whose rate is seen at once: every upload but the first ends in time, and there are few."""
    size, left, start = FIRST_BYTES, budget, 4 * rtt
    for count in range(1, 12):
        took = start + size / rate
        assert count == 1 or took <= left + 1e-6
        left -= took
        wanted = next_bytes(size, rate, start, left, GIB)
        if wanted is None:
            break
        size = wanted
    else:
        pytest.fail("it never ends")


def test_an_upload_stops_growing_where_there_is_no_more() -> None:
    assert next_bytes(1000, 1e9, 0.1, 5.0, 10**9) == 16_000
    assert next_bytes(1000, 1e9, 0.1, 5.0, 3000) == 3000
    assert next_bytes(1000, 1e9, 0.1, 5.0, 1400) is None
    assert next_bytes(1000, 1e9, 0.1, 0.05, 10**9) is None
    assert fitting(1000.0, 0.5, 2.5) == 1700


@given(st.integers(0, 2**40), st.integers(2, 64), st.integers(LEAST_FILE_BYTES, 2**50))
def test_several_channels_have_something_to_do(total: int, channels: int, largest: int) -> None:
    found = split(total, channels, largest)
    if found is None:
        assert total < 2 * LEAST_FILE_BYTES
        return
    files, size = found
    assert files * size <= total
    assert LEAST_FILE_BYTES <= size <= largest
    assert files >= 2 or size >= channels * SEGMENT_BYTES


def test_the_first_upload_is_larger_on_a_longer_line() -> None:
    assert FIRST_BYTES == first_bytes(0.0) < first_bytes(0.1) < first_bytes(1.0) == first_bytes(2.0)


def test_small_files_are_as_many_as_the_line_brings() -> None:
    assert small_files(4396 * 500, 2.0, 2000) == 1000
    assert small_files(1e9, 2.0, 2000) == 2000
    assert small_files(10.0, 2.0, 2000) == LEAST_SMALL_FILES
    assert small_files(1e9, 2.0, 10) == 10


@given(st.floats(-5, 600))
def test_the_steps_share_the_time(left: float) -> None:
    spent = 0.0
    for step in WEIGHTS:
        spent += time_for(step, left - spent)
    assert spent <= max(left, 0) + LEAST_SECONDS * len(WEIGHTS) + 1e-6

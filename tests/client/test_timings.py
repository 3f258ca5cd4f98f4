"""Where the time of a transfer went: what is measured, what is shown, and that it adds up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport.cli.timing_lines import timing_lines
from twinport.client import Client
from twinport.timings import STAGES, OpeningTimes, Stopwatch, Timings

from tests.client.servers import ServerProcess

MIB = 1024 * 1024


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@given(st.lists(st.tuples(st.sampled_from(list(STAGES)), st.floats(0, 100)), max_size=30))
def test_every_moment_is_of_one_stage(laps: list[tuple[str, float]]) -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.seconds += 50
    watch.start()
    for stage, seconds in laps:
        clock.seconds += seconds
        watch.lap(stage)
    assert sum(watch.seconds.values()) == pytest.approx(sum(seconds for _, seconds in laps))
    timings = Timings()
    timings.add(watch)
    timings.add(watch)
    assert sum(timings.stages.values()) == pytest.approx(2 * sum(watch.seconds.values()))
    if any(watch.seconds.values()):
        assert sum(map(timings.share, STAGES)) == pytest.approx(1)


def timings(
    seconds: float = 10.0, channels: int = 2, committing: float = 0, flushing: float = 0, **more: float
) -> Timings:
    stages = dict.fromkeys(STAGES, 0.0) | more
    return Timings(OpeningTimes(0.1, 0.2, 0.3), seconds, 0.5, committing, flushing, channels, stages)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (timings(channels=0), "nothing had to be moved"),
        (timings(committing=6), "the server's disk"),
        (timings(flushing=6), "this machine's disk"),
        (timings(waiting=6, sending=4), "twinport bench says which"),
        (timings(waiting=4, sending=6), "mostly sending: this machine bounds it"),
        (timings(waiting=3, preparing=5, taking=2), "mostly preparing"),
    ],
    ids=["nothing", "commit", "flush", "wait", "send", "prepare"],
)
def test_the_last_line_says_what_held_it_up(measured: Timings, said: str) -> None:
    assert said in timing_lines(measured)[-1]


def test_what_took_no_time_has_no_line() -> None:
    lines = timing_lines(Timings(total_seconds=1.0, channels=1, stages=dict.fromkeys(STAGES, 0.0) | {"sending": 1.0}))
    assert [line.split()[0] for line in lines[1:-1]] == ["transfer", "sending"]
    assert max(map(len, timing_lines(timings(waiting=1, sending=2, preparing=3, taking=4, receiving=5)))) <= 100


def test_a_large_file_is_timed(client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path) -> None:
    sent = client.put(make_file("large", 20 * MIB), prefix).timings
    assert sent.channels >= 1
    assert sent.total_seconds > sent.committing_seconds > 0
    assert sent.stages["preparing"] > 0 < sent.stages["sending"]
    assert sent.flushing_seconds == 0
    got = client.get(f"{prefix}/large", tmp_path / "back").timings
    assert got.total_seconds > got.flushing_seconds > 0
    assert got.stages["taking"] > 0 < got.stages["receiving"]
    assert got.committing_seconds == 0
    assert 0 < got.opening.login_seconds < 60
    assert sum(got.stages.values()) <= got.total_seconds * got.channels * 1.05 + 0.1
    json.dumps(got.as_dict())


def test_the_command_shows_it(
    run_command: Callable[..., tuple[int, str, str]],
    shared_server: ServerProcess,
    make_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TWINPORT_HOST", shared_server.host)
    path = make_file("shown", 3 * MIB)
    code, out, err = run_command("-vv", "put", os.fspath(path), "--to", "timed")
    assert (code, out) == (0, "")
    assert "timed/shown  3.0 MiB\n" in err
    assert "where the time went:\n" in err
    code, out, err = run_command("-v", "--json", "get", "timed/shown", "-o", os.fspath(path.with_name("back")))
    assert code == 0
    found = json.loads(out)["timings"]
    assert set(found["channel_seconds"]) == set(STAGES)
    assert "where the time went" not in err

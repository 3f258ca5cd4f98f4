"""The screen fits on a terminal, and the JSON has its documented keys."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from twinport.bench import report
from twinport.bench.facts import Measurements
from twinport.bench.report import COLUMNS, LINES, SCHEMA, screen, to_json
from twinport.bench.verdict import Bound, Finding, Subject

from tests.client.bench.examples import make_flow, make_found, make_line, measurements

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "performance.md"


def assert_fits(text: str) -> None:
    lines = text.splitlines()
    assert len(lines) <= LINES, text
    assert max(len(line) for line in lines) <= COLUMNS, text


def test_a_screen() -> None:
    text = screen(make_found())
    assert_fits(text)
    assert text.startswith("files.example.org:5001 as alice, TLSv1.3")
    assert "20.2 ms (best 20.0 ms, worst 24.0 ms); connect and log in 90.0 ms" in text
    assert "11.4 MiB/s" in text
    assert "large up     The line: 96 Mbit/s; 4 channels give no more than one." in text
    assert "small files  " in text  # both directions alike


def test_what_is_to_be_seen_first_is_marked() -> None:
    marked = screen(make_found(), lambda text: f"\x1b[1m{text}\x1b[0m")
    assert re.sub(r"\x1b\[\d+m", "", marked) == screen(make_found())


def test_what_is_not_known_is_said_to_be() -> None:
    blind = replace(make_flow(), line=None, loss=None)
    text = screen(make_found(up_one=blind, up_many=None, down_one=None, down_many=None, small_up=None))
    assert "not told" in text
    assert "Not measured" in text


@given(measurements)
def test_whatever_was_measured_fits_on_the_screen_and_is_json(found: Measurements) -> None:
    assert json.loads(json.dumps(to_json(found)))["schema"] == SCHEMA
    assert screen(found)


@pytest.mark.parametrize("bounds", [*itertools.product(Bound, repeat=2)])
def test_every_verdict_fits_on_the_screen(bounds: tuple[Bound, Bound], monkeypatch: pytest.MonkeyPatch) -> None:
    lossy = make_line(connections=4, busy_seconds=8.0, congestion="cubic")
    one, many = make_flow(loss=0.0123), make_flow(4e7, lossy, loss=0.0123, channels=64, settle_seconds=0.123)
    found = make_found(up_one=one, up_many=many, down_one=one, down_many=many, bounded_by="quota", cores=64)
    findings = tuple(
        Finding(subject, bound) for subject, bound in zip(Subject, (*bounds, *reversed(bounds)), strict=True)
    )
    monkeypatch.setattr(report, "decide", lambda found: findings)
    assert_fits(screen(found))


def keys_of(value: Any) -> set[str]:
    """All keys, however deep."""
    if isinstance(value, dict):
        return set(value).union(*map(keys_of, value.values()))
    return set().union(*map(keys_of, value)) if isinstance(value, list) else set()


def test_every_key_and_every_bound_of_the_json_is_described() -> None:
    described = set(re.findall(r"`([\w-]+)`", DOCUMENT.read_text()))
    assert keys_of(to_json(make_found())) - described == set()
    assert {bound.value for bound in Bound} - described == set()
    assert {subject.value for subject in Subject} - described == set()


def test_the_json_is_as_it_was() -> None:
    """Programs rely on it: a key that goes away needs another ``SCHEMA``."""
    found = to_json(make_found())
    assert list(found) == [
        "schema", "address", "user", "tls", "seconds", "sent_bytes", "fetched_bytes", "bounded_by", "cores", "local",
        "round_trip", "connect_seconds", "server_flush_seconds", "local_flush_seconds", "large", "small", "verdict",
        "left_behind",
    ]  # fmt: skip
    assert list(found["large"]) == ["up_one", "up_many", "down_one", "down_many"]
    assert {"bytes_per_second", "loss", "loss_is_estimate", "line"} <= set(found["large"]["up_one"])
    assert found["verdict"][0] == {
        "of": "large-up",
        "bound": "line",
        "text": "The line: 96 Mbit/s; 4 channels give no more than one.",
        "next_step": "Only a faster line helps.",
    }

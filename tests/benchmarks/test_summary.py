"""Medians and ratios: within a round, and only of rounds that both sides were in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.cases import CASES, GIB, MIB, SHORT_CASES, Case, shorten
from benchmarks.line import LineKind
from benchmarks.measure import Figures
from benchmarks.peers import PEERS
from benchmarks.summary import LINE, Spread, ratios_to, references_of, summarize

CASE = Case("x", "X", ("limit", "twinport"), rounds=3, file_bytes=GIB // 2)


def figures(wall: float, server: float = 1.0, client: float = 2.0, rss: float = 10.0) -> Figures:
    return Figures(wall, server, client, rss, rss + 1)


def test_a_ratio_is_of_one_round() -> None:
    # In the machine's slow second round both are slow; medians of each would give 1.5.
    ours = {0: figures(2.0), 1: figures(30.0), 2: figures(3.0)}
    limit = {0: figures(1.0), 1: figures(20.0), 2: figures(2.0)}
    assert ratios_to(ours, limit) == [2.0, 1.5, 1.5]


def test_a_round_without_its_reference_gives_no_ratio() -> None:
    assert ratios_to({0: figures(2.0), 1: figures(9.0)}, {0: figures(1.0)}) == [2.0]


def test_a_row_has_medians_of_times_and_the_largest_memory() -> None:
    runs = {
        ("limit", "up"): {0: figures(1.0), 1: figures(2.0)},
        ("twinport", "up"): {0: figures(3.0, 1, 2, 50), 1: figures(4.0, 3, 4, 40), 2: figures(8.0, 5, 6, 45)},
    }
    limit, ours = summarize(CASE, runs)
    assert (limit.contender, ours.contender) == ("limit", "twinport")
    assert ours.seconds == Spread(4.0, 3.0, 8.0)
    assert ours.ratios == {"limit": Spread(2.5, 2.0, 3.0)}
    assert limit.ratios == {"limit": Spread(1.0, 1.0, 1.0)}
    assert (ours.server_cpu_seconds_per_gib, ours.client_cpu_seconds_per_gib) == (6.0, 8.0)
    assert (ours.server_rss_mib, ours.client_rss_mib, ours.rounds) == (50.0, 51.0, 3)


def test_who_did_not_run_has_no_row_and_is_no_reference() -> None:
    (row,) = summarize(CASE, {("twinport", "down"): {0: figures(1.0)}})
    assert (row.contender, row.direction, row.ratios) == ("twinport", "down", {})


def test_over_a_line_the_line_itself_is_a_reference() -> None:
    case = replace(CASE, line=LineKind(rtt_ms=1000, rate_mbit=8), file_bytes=MIB)
    assert references_of(case) == ("limit", LINE)
    least = 1 + MIB * 8 / 8e6
    (row,) = summarize(case, {("twinport", "up"): {0: figures(least * 2)}})
    assert row.ratios[LINE].median == pytest.approx(2.0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_names_peers_that_exist(case: Case) -> None:
    assert set(case.contenders) <= set(PEERS)
    assert set(case.slow) <= set(case.contenders)
    assert any(name.startswith("twinport") for name in case.contenders)


def test_the_smoke_run_is_small_and_starts_everybody() -> None:
    chosen = [shorten(case) for case in CASES if case.name in SHORT_CASES]
    assert sum(case.total_bytes for case in chosen) < 8 * MIB
    assert {case.place for case in chosen} == {case.place for case in CASES}
    assert any(case.line for case in chosen)
    assert any(case.clients > 1 for case in chosen)
    # bbr and segments only matter where packets are lost; sftp is the server of scp.
    assert set(PEERS) - {name for case in chosen for name in case.contenders} <= {"limit-bbr", "vsftpd-pget", "sftp"}

"""From raw rounds to what is told of them: medians, and ratios to a reference within the same round."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.cases import GIB, Case
from benchmarks.measure import Figures

REFERENCES = ("limit", "limit-tls", "limit-bbr", "flush-loop", "flush-loop-16")
LINE = "the line"
"""The reference that is computed: what a line of this rate needs for so many bytes."""
Rounds = Mapping[int, Figures]
Runs = Mapping[tuple[str, str], Rounds]


@dataclass(frozen=True)
class Spread:
    """A median and what it lies between."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """That of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """What is told of one contender in one direction. CPU seconds are per GiB."""

    contender: str
    direction: str
    rounds: int
    seconds: Spread
    ratios: dict[str, Spread]
    server_cpu_seconds_per_gib: float
    client_cpu_seconds_per_gib: float
    server_rss_mib: float
    client_rss_mib: float
    slowest_over_median: float


def references_of(case: Case) -> tuple[str, ...]:
    """What the contenders of a case are measured against."""
    found = tuple(name for name in REFERENCES if name in case.contenders)
    return (*found, LINE) if case.line is not None else found


def ratios_to(rounds: Rounds, reference: Rounds) -> list[float]:
    """Wall time over that of the reference, for each round that both were in."""
    return [
        figures.wall_seconds / reference[number].wall_seconds
        for number, figures in rounds.items()
        if number in reference
    ]


def summarize(case: Case, runs: Runs) -> list[Row]:
    """A row for each contender and direction that has run, in the order of the case."""
    rows = []
    for direction in case.directions:
        for contender in case.contenders:
            rounds = runs.get((contender, direction))
            if rounds:
                rows.append(_summarize(case, contender, direction, rounds, runs))
    return rows


def _summarize(case: Case, contender: str, direction: str, rounds: Rounds, runs: Runs) -> Row:
    every = list(rounds.values())
    ratios = {}
    for reference in references_of(case):
        if reference == LINE and case.line is not None:
            least = case.line.seconds_for(case.total_bytes)
            ratios[reference] = Spread.of([figures.wall_seconds / least for figures in every])
        elif values := ratios_to(rounds, runs.get((reference, direction), {})):
            ratios[reference] = Spread.of(values)
    per_gib = GIB / case.total_bytes
    return Row(
        contender,
        direction,
        len(every),
        Spread.of([figures.wall_seconds for figures in every]),
        ratios,
        statistics.median(figures.server_cpu_seconds for figures in every) * per_gib,
        statistics.median(figures.client_cpu_seconds for figures in every) * per_gib,
        max(figures.server_rss_mib for figures in every),
        max(figures.client_rss_mib for figures in every),
        statistics.median(figures.slowest_over_median for figures in every),
    )

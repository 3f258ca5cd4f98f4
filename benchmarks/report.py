"""Tables and charts of what was measured, and the page that they stand in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.cases import CASES, GIB, MIB, Case
from benchmarks.chart import Bar, Group, draw_chart
from benchmarks.machine import rows_of
from benchmarks.records import Record
from benchmarks.summary import Row, Spread, references_of, summarize

BEGIN = "<!-- measured: what follows is written by python -m benchmarks.compare -->"
END = "<!-- measured: end -->"
SMOKE = "**A smoke run: every peer was started and every result checked, but these times say nothing.**"


def show_rate(case: Case, seconds: float) -> str:
    """How much a second, in the unit that fits the case."""
    if case.counts_files:
        return f"{case.files / seconds:,.0f} files/s"
    return f"{case.total_bytes / seconds / MIB:,.0f} MiB/s"


def show_seconds(seconds: float) -> str:
    """A time with three digits."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def show_spread(spread: Spread | None, digits: int = 2) -> str:
    """A median with its range; nothing where there is none."""
    if spread is None:
        return ""
    if spread.least == spread.most:
        return f"{spread.median:.{digits}f}"
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f}–{spread.most:.{digits}f})"


def show_machine(record: Record) -> list[str]:
    """A table of the machine and who took part."""
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows_of(record.machine)), ""]


def tabulate(record: Record) -> list[str]:
    """The tables of one case, one for each direction, with who is missing and why."""
    case, lines = record.case, []
    rows = summarize(case, record.runs)
    references = references_of(case)
    for direction in case.directions:
        head = [
            "",
            "time",
            "rate",
            *(f"× {name}" for name in references),
            "CPU, server + client",
            "RSS, server / client",
        ]
        if case.clients > 1:
            head.append("slowest ÷ median client")
        chosen = [row for row in rows if row.direction == direction]
        if chosen:
            lines += [f"{'Up' if direction == 'up' else 'Down'}:", "", *_table(head)]
            lines += [_tabulate_row(case, row, references) for row in chosen] + [""]
    lines += [f"- {note}" for note in record.notes]
    return [*lines, ""] if record.notes else lines


def _table(head: list[str]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def _tabulate_row(case: Case, row: Row, references: tuple[str, ...]) -> str:
    name = f"**{row.contender}**" if row.contender.startswith("twinport") else row.contender
    once = " (one round)" if row.rounds == 1 and case.rounds > 1 else ""
    cpu = (row.server_cpu_seconds_per_gib, row.client_cpu_seconds_per_gib)
    if case.total_bytes < GIB and case.counts_files:
        each = [seconds * case.file_bytes / GIB * 1000 for seconds in cpu]
        shown = f"{each[0]:.2f} + {each[1]:.2f} ms/file"
    elif case.files == 1 and case.total_bytes < MIB:
        each = [seconds * case.total_bytes / GIB * 1000 for seconds in cpu]
        shown = f"{each[0]:.0f} + {each[1]:.0f} ms"
    else:
        shown = f"{cpu[0]:.2f} + {cpu[1]:.2f} s/GiB"
    cells = [
        name + once,
        show_seconds(row.seconds.median),
        show_rate(case, row.seconds.median) if case.total_bytes >= MIB or case.counts_files else "",
        *(show_spread(row.ratios.get(reference)) for reference in references),
        shown,
        f"{row.server_rss_mib:.0f} / {row.client_rss_mib:.0f} MiB",
    ]
    if case.clients > 1:
        cells.append(f"{row.slowest_over_median:.2f}")
    return "| " + " | ".join(cells) + " |"


def draw_case(record: Record) -> str:
    """The chart of a case: rates on loopback, where longer bars are better, else times, where shorter ones are."""
    case = record.case
    by_time = case.line is not None or case.total_bytes < MIB
    rows = {(row.contender, row.direction): row for row in summarize(case, record.runs)}
    groups = []
    for contender in case.contenders:
        found = [rows.get((contender, direction)) for direction in case.directions]
        if any(found):
            bars = tuple(_bar(case, row, by_time) if row else None for row in found)
            groups.append(Group(contender, bars, contender.startswith("twinport")))
    what = "time, shorter is better" if by_time else "rate, longer is better"
    smoke = " · A SMOKE RUN: THESE TIMES SAY NOTHING" if record.short else ""
    return draw_chart(_title(case), what + smoke, case.directions, groups)


def _bar(case: Case, row: Row, by_time: bool) -> Bar:
    seconds = row.seconds.median
    if by_time:
        return Bar(seconds, show_seconds(seconds))
    return Bar(1 / seconds, show_rate(case, seconds))


def _title(case: Case) -> str:
    return case.title + (f" ({case.line})" if case.line is not None else "")


def write_section(records: Mapping[str, Record], charts: str) -> str:
    """What stands between the markers; ``charts`` is the folder of the charts as the page sees it."""
    ordered = [records[case.name] for case in CASES if case.name in records]
    lines: list[str] = []
    shown = None
    for record in ordered:
        if record.machine != shown:
            shown = record.machine
            lines += ["### Machine", "", *show_machine(record)]
        lines += [f"### {_title(record.case)}", "", *([SMOKE, ""] if record.short else [])]
        lines += [f"{record.date}, {record.case.rounds} rounds, load average {record.load:.2f} before.", ""]
        if any(record.runs.values()):
            lines += [f"![{record.case.title}: a bar chart of the tables below]({charts}/{record.case.name}.svg)", ""]
        lines += tabulate(record)
    return "\n".join(lines).rstrip() + "\n"


def put_section(page: str, section: str) -> str:
    """A page with the part between its markers replaced. Raises ``ValueError`` when it has no such part."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no markers for what is measured")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def has_markers(page: Path) -> bool:
    """Whether a page is there and has a part for what is measured."""
    try:
        put_section(page.read_text(), "")
    except (OSError, ValueError):
        return False
    return True


def write_page(page: Path, records: Mapping[str, Record]) -> list[Path]:
    """Write the tables into the page and the charts beside it; the charts. Raises ``ValueError``."""
    text = put_section(page.read_text(), write_section(records, page.stem))
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    charts = []
    for record in _drawable(records.values()):
        chart = folder / f"{record.case.name}.svg"
        chart.write_text(draw_case(record))
        charts.append(chart)
    page.write_text(text)
    return charts


def _drawable(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if any(record.runs.values())]

"""The page: tables and charts between its markers, and raw rounds that survive a file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cases import CASES, shorten
from benchmarks.machine import Machine, describe_machine
from benchmarks.measure import Figures
from benchmarks.records import Record, decode_records, encode_records, read_records
from benchmarks.report import BEGIN, END, SMOKE, put_section, show_seconds, tabulate, write_page

CASE = {case.name: case for case in CASES}
MACHINE = Machine("a processor", 2, 4.0, "Debian", "6.1", "ext4 on sda", "3.11", "OpenSSL 3", "bbr", {"limit": "1"})
PAGE = f"# P\n\nbefore\n\n{BEGIN}\n\nold figures\n\n{END}\n\nafter\n"


def make_record(name: str, short: bool = False, notes: tuple[str, ...] = ()) -> Record:
    case = shorten(CASE[name]) if short else CASE[name]
    runs = {
        (contender, direction): {0: Figures(1.0 + place, 1.0, 2.0, 10.0, 20.0), 1: Figures(2.0, 1.0, 2.0, 11.0, 20.0)}
        for place, contender in enumerate(case.contenders[:3])
        for direction in case.directions
    }
    return Record(case, short, "2026-01-02", 0.25, MACHINE, runs, notes)


def test_every_row_of_a_table_has_its_columns() -> None:
    for name in CASE:
        lines = tabulate(make_record(name, notes=("scp: not installed",)))
        tables = [line for line in lines if line.startswith("|")]
        assert len({line.count("|") for line in tables}) == 1, name
        assert "- scp: not installed" in lines


def test_a_table_tells_time_rate_ratio_processor_and_memory() -> None:
    (row,) = [line for line in tabulate(make_record("large"))[:8] if line.startswith("| **twinport** ")]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        "2.00 s", "1,024 MiB/s", "1.50 (1.00–2.00)", "", "0.50 + 1.00 s/GiB", "11 / 20 MiB",
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "shown"), [(0.0151, "15 ms"), (1.234, "1.23 s"), (143.21, "143.2 s")])
def test_a_time_has_the_unit_that_fits(seconds: float, shown: str) -> None:
    assert show_seconds(seconds) == shown


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = put_section(PAGE, "new\n")
    assert page.startswith(f"# P\n\nbefore\n\n{BEGIN}\n\nnew\n")
    assert page.endswith(f"{END}\n\nafter\n")
    assert "old" not in page
    assert put_section(page, "new\n") == page


def test_a_page_without_markers_is_not_touched(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# P\n")
    with pytest.raises(ValueError, match="no markers"):
        write_page(page, {"large": make_record("large")})
    assert page.read_text() == "# P\n"
    assert list(tmp_path.iterdir()) == [page]


def test_a_page_links_the_charts_that_are_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    nothing = replace(make_record("line-large"), runs={}, notes=("all: lines need root",))
    charts = write_page(page, {"large": make_record("large"), "small": make_record("small"), "line-large": nothing})
    linked = re.findall(r"\]\((page/[^)]+\.svg)\)", page.read_text())
    assert [tmp_path / name for name in linked] == charts
    assert all(chart.is_file() for chart in charts)
    assert "lines need root" in page.read_text()
    assert "a processor" in page.read_text()
    assert SMOKE not in page.read_text()


def test_a_smoke_run_is_marked_on_the_page_and_in_its_chart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    (chart,) = write_page(page, {"large": make_record("large", short=True)})
    assert SMOKE in page.read_text()
    assert "THESE TIMES SAY NOTHING" in chart.read_text()


def test_rounds_survive_a_file(tmp_path: Path) -> None:
    records = {name: make_record(name, short, ("a note",)) for name, short in (("large", False), ("line-200", True))}
    assert decode_records(encode_records(records)) == records
    assert read_records(tmp_path / "missing") == {}


def test_a_file_of_something_else_is_refused() -> None:
    for text in ("[]", '{"format": 0}', "no json"):
        with pytest.raises(ValueError, match=r"format|Expecting"):
            decode_records(text)


def test_this_machine_can_be_described(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path, {"limit": "1"})
    assert machine.cpu
    assert machine.cores >= 1
    assert machine.memory_gib > 0
    assert " on " in machine.disk

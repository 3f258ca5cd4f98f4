"""The raw rounds in a file, and back, so that cases measured at different times can stand on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case, shorten
from benchmarks.line import LineKind
from benchmarks.machine import Machine
from benchmarks.measure import Figures

FORMAT = 1


@dataclass(frozen=True)
class Record:
    """One case as it was run. ``load`` is the machine's load average before it began."""

    case: Case
    short: bool
    date: str
    load: float
    machine: Machine
    runs: dict[tuple[str, str], dict[int, Figures]]
    notes: tuple[str, ...] = ()


def encode_records(records: Mapping[str, Record]) -> str:
    """The text of the file."""
    return json.dumps({"format": FORMAT, "cases": {name: _encode(each) for name, each in records.items()}}, indent=1)


def _encode(record: Record) -> dict[str, Any]:
    case = record.case
    line = None if case.line is None else asdict(case.line)
    return {
        "short": record.short,
        "date": record.date,
        "load": record.load,
        "machine": asdict(record.machine),
        "rounds": case.rounds,
        "files": case.files,
        "file_bytes": case.file_bytes,
        "clients": case.clients,
        "line": line,
        "notes": list(record.notes),
        "runs": [
            {"contender": contender, "direction": direction, "round": number, **asdict(figures)}
            for (contender, direction), rounds in record.runs.items()
            for number, figures in rounds.items()
        ],
    }


def decode_records(text: str) -> dict[str, Record]:
    """What :func:`encode_records` wrote; cases that are no more are left out. Raises ``ValueError``."""
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"not rounds of format {FORMAT}")
    known = {case.name: case for case in CASES}
    return {name: _decode(known[name], value) for name, value in found["cases"].items() if name in known}


def _decode(known: Case, value: dict[str, Any]) -> Record:
    case = shorten(known) if value["short"] else known
    line = None if value["line"] is None else LineKind(**value["line"])
    sizes = {name: value[name] for name in ("rounds", "files", "file_bytes", "clients")}
    runs: dict[tuple[str, str], dict[int, Figures]] = {}
    for run in value["runs"]:
        words = dict(run)
        key = (words.pop("contender"), words.pop("direction"))
        number = words.pop("round")
        runs.setdefault(key, {})[number] = Figures(**words)
    return Record(
        replace(case, line=line, **sizes),
        value["short"],
        value["date"],
        value["load"],
        Machine(**value["machine"]),
        runs,
        tuple(value["notes"]),
    )


def read_records(path: Path) -> dict[str, Record]:
    """The records of a file, none if it is not there. Raises ``ValueError``."""
    return decode_records(path.read_text()) if path.exists() else {}

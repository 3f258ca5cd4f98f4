"""Twinport beside its peers and beside bare copies, in the same rounds.

    python -m benchmarks.compare                      every case; less than 20 minutes on a machine with two cores
    python -m benchmarks.compare --install            first installs the peers that are missing (Debian, as root)
    python -m benchmarks.compare --cases large small --peers limit twinport --rounds 3
    python -m benchmarks.compare --short              a smoke run: everybody starts and is checked, no time is judged
    python -m benchmarks.compare --json rounds.json --page docs/performance.md

A peer that is not installed or does not start is left out, with a line that says so. Results are compared with what was
sent, after the time was taken. The exit code is 1 when Twinport or a limit failed, or a result of theirs was wrong.
Cases over a line need root.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import CASES, SHORT_CASES, Case, Place, shorten
from benchmarks.install import InstallError, install_peers
from benchmarks.machine import describe_machine
from benchmarks.peers import PEERS, PeerError
from benchmarks.records import Record, encode_records, read_records
from benchmarks.report import has_markers, tabulate, write_page
from benchmarks.rounds import CaseResult, run_case

_BUSY_LOAD = 0.5


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install missing peers from Debian first")
    parser.add_argument("--short", action="store_true", help="a smoke run in less than a minute")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], metavar="CASE")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), metavar="PEER", help="leave the others out")
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--list", action="store_true", help="show the cases and who takes part")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the raw rounds; other cases in it stay")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write tables and charts into this page")
    parser.add_argument("--redraw", action="store_true", help="run nothing; write the page from what --json holds")
    parser.add_argument("--tmpfs", type=Path, default=Path("/dev/shm"), metavar="DIR")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    return parser


def choose_cases(options: argparse.Namespace) -> list[Case]:
    """The cases to run, shortened and thinned out as the command line says."""
    names = options.cases or (SHORT_CASES if options.short else [case.name for case in CASES])
    chosen = [shorten(case) if options.short else case for case in CASES if case.name in names]
    if options.rounds:
        chosen = [replace(case, rounds=options.rounds) for case in chosen]
    if options.peers:
        chosen = [
            replace(case, contenders=tuple(name for name in case.contenders if name in options.peers))
            for case in chosen
        ]
    return [case for case in chosen if case.contenders]


def find_versions(cases: Sequence[Case]) -> dict[str, str]:
    """The versions of all that take part and are installed."""
    versions = {}
    for name in dict.fromkeys(name for case in cases for name in case.contenders):
        try:
            PEERS[name].check()
        except PeerError:
            continue
        versions[name] = PEERS[name].version()
    return versions


def make_record(result: CaseResult, options: argparse.Namespace, load: float, versions: dict[str, str]) -> Record:
    """What is kept of a case."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    machine = describe_machine(options.disk, versions)
    return Record(result.case, options.short, date, load, machine, result.runs, tuple(result.notes))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = make_parser().parse_args(arguments)
    cases = choose_cases(options)
    if options.list:
        for case in cases:
            print(f"{case.name:12} {case.title}: {', '.join(case.contenders)}")
        return 0
    try:
        records = read_records(options.json) if options.json is not None else {}
    except (ValueError, KeyError, TypeError) as error:
        print(f"{options.json} cannot be used: {error}; remove it, or name another file", file=sys.stderr)
        return 2
    if options.page is not None and not has_markers(options.page):
        print(f"{options.page} has no place for figures; it needs the markers of docs/performance.md", file=sys.stderr)
        return 2
    if options.redraw:
        cases = []
    if options.install:
        try:
            print(f"installed: {', '.join(install_peers()) or 'nothing, all is there'}", flush=True)
        except InstallError as error:
            print(f"not installed: {error}", flush=True)
    if cases and not options.short and os.getloadavg()[0] > _BUSY_LOAD:
        print(f"the load average is {os.getloadavg()[0]:.2f}: times of a busy machine are worth little", flush=True)
    versions = find_versions(cases)
    places = {Place.TMPFS: options.tmpfs, Place.DISK: options.disk}
    failures: list[str] = []
    began = time.monotonic()
    for case in cases:
        load = os.getloadavg()[0]
        result = run_case(case, case.contenders, places, options.disk, _say, judged=not options.short)
        failures += result.failures
        records[case.name] = make_record(result, options, load, versions)
        print(f"\n{case.title}\n\n" + "\n".join(tabulate(records[case.name])), flush=True)
        if options.json is not None:  # after each case: an interrupted run has lost nothing
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(encode_records(records))
    if options.page is not None:
        write_page(options.page, records)
    print(f"{time.monotonic() - began:.0f} s")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(number: int, _: object) -> None:
    """Ended from outside, end the servers and take the namespaces away; a second signal must not cut that short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())

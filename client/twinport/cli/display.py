"""What people see: sizes, times, a progress line on a terminal, notes and failures on stderr."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import TextIO

from twinport.errors import TwinportError
from twinport.report import TransferReport
from twinport.walk import show

REDRAW_SECONDS = 0.2
MOST_ALIKE = 20
_KIBI = 1024
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: float) -> str:
    """A size for people, as in ``1.5 MiB``."""
    size = float(count)
    for unit in _UNITS:
        if size < _KIBI or unit == _UNITS[-1]:
            return f"{int(size)} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    raise AssertionError("the last unit takes everything")


def format_time(mtime_ns: int) -> str:
    """A time for people, in the local zone; empty where this system cannot show it."""
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""


class TerminalObserver:
    """Prints notes and failures; on a terminal also one line of progress, redrawn in place."""

    def __init__(
        self,
        quiet: bool,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        names_files: bool = False,
    ) -> None:
        self._quiet = quiet
        self._names_files = names_files
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._draws = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._start = clock()
        self._drawn_at = 0.0
        self._width = 0
        self._files = 0
        self._most_bytes = 0
        self._failures: Counter[str] = Counter()

    def file_done(self, name: str, size_bytes: int) -> None:
        """One more."""
        self._files += 1
        if self._names_files:
            self._print(f"{name}  {format_bytes(size_bytes)}")

    def file_failed(self, name: str, error: TwinportError) -> None:
        """Say so at once; the rest goes on. Of many failures of one kind (a full disk) the first few will do."""
        self._failures[error.code] += 1
        if self._failures[error.code] <= MOST_ALIKE:
            self._print(f"twinport: {error.message}")

    def note(self, text: str) -> None:
        """Say so unless quiet."""
        if not self._quiet:
            self._print(f"twinport: {text}")

    def progress(self, done_bytes: int, known_bytes: int) -> None:
        """Redraw the line, not more often than every 0.2 s."""
        now = self._clock()
        if not self._draws or now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._most_bytes = max(self._most_bytes, done_bytes)
        seconds = max(now - self._start, 1e-3)
        share = f" {100 * self._most_bytes // known_bytes}%" if known_bytes else ""
        text = f"{self._files} files, {format_bytes(self._most_bytes)} of {format_bytes(known_bytes)}{share}"
        text += f", {format_bytes(self._most_bytes / seconds)}/s"
        text = text[: max(1, shutil.get_terminal_size().columns - 1)]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Take the progress line away."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def _print(self, text: str) -> None:
        self.clear()
        self._stream.write(show(text) + "\n")
        self._stream.flush()

    def summary(self, report: TransferReport, verb: str) -> str:
        """One line about the whole."""
        seconds = max(self._clock() - self._start, 1e-3)
        parts = [f"{report.files_done} {'file' if report.files_done == 1 else 'files'} {verb}"]
        parts.append(f"{format_bytes(report.bytes_moved)} in {seconds:.1f} s")
        parts.append(f"{format_bytes(report.bytes_moved / seconds)}/s")
        if report.files_kept or report.bytes_kept:
            kept = f"{report.files_kept} files, " if report.files_kept else ""
            parts.append(f"{kept}{format_bytes(report.bytes_kept)} were there already")
        if report.failures:
            untold = sum(max(0, count - MOST_ALIKE) for count in self._failures.values())
            more = f" ({untold} of them not shown; --json lists all)" if untold else ""
            parts.append(f"{len(report.failures)} failed{more}")
        return ", ".join(parts)

"""Reads an audit log back: all its files in order, filtered, and on as it grows."""

from __future__ import annotations

import fnmatch
import gzip
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, BinaryIO, cast

from .audit_files import CURRENT_NAME, list_rotated, number_of

_MAX_LINE_BYTES = 64 * 1024
_POLL_SECONDS = 0.25
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_AGO = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class AuditFilter:
    """What to show; None shows all. ``file`` is a shell pattern, for the whole name or for where it was moved."""

    user: str | None = None
    file: str | None = None
    event: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def passes(self, row: Row) -> bool:
        """Whether a row is to be shown."""
        if self.user is not None and row.get("user") != self.user:
            return False
        if self.event is not None and row.get("event") != self.event:
            return False
        if self.file is not None:
            names = (row.get("file"), row.get("to"))
            if not any(isinstance(name, str) and fnmatch.fnmatchcase(name, self.file) for name in names):
                return False
        if self.since is None and self.until is None:
            return True
        moment = _moment_of(row)
        if moment is None:
            return False
        return (self.since is None or moment >= self.since) and (self.until is None or moment < self.until)


def parse_moment(text: str, now: datetime) -> datetime:
    """``2h`` (ago; s, m, h, d, w) or an ISO time, in UTC where it names no zone. ``ValueError``."""
    match = _AGO.fullmatch(text)
    if match:
        try:
            return now - timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        except OverflowError:
            return datetime.min.replace(tzinfo=timezone.utc)
    # Before Python 3.11 it knows no Z.
    moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _moment_of(row: Row) -> datetime | None:
    try:
        return parse_moment(str(row.get("time")), datetime.now(timezone.utc))
    except ValueError:
        return None


class AuditReader:
    """Rows of the log in ``directory``, the oldest first. ``damaged`` counts lines that were none; ``pause`` waits."""

    def __init__(self, directory: Path, *, pause: Callable[[], None] = lambda: time.sleep(_POLL_SECONDS)) -> None:
        self._directory = directory
        self._pause = pause
        self.damaged = 0

    def rows(self, *, follow: bool = False) -> Iterator[Row]:
        """All rows; with ``follow`` it never ends but waits for more. ``OSError`` when the log cannot be read."""
        seen = 0
        while True:
            with ExitStack() as stack:
                rotated, current = self._open_all(stack, seen)
                for file in rotated.values():
                    yield from self._rows_of(file)
                seen = max(rotated, default=seen)
                if not follow:
                    yield from self._rows_of(current)
                    return
                yield from self._tail(current)
            if any(number_of(path) > seen for path in list_rotated(self._directory)):
                seen += 1  # what was followed has got this number meanwhile

    def _open_all(self, stack: ExitStack, seen: int) -> tuple[dict[int, BinaryIO], BinaryIO]:
        """The rotated files after number ``seen``, and the current one: all open before the first is read, because what
        is removed meanwhile stays readable so."""
        while True:
            with ExitStack() as trial:
                before = list_rotated(self._directory)
                paths = {number_of(path): path for path in before if number_of(path) > seen}
                try:
                    files = {number: trial.enter_context(_open(path)) for number, path in paths.items()}
                    current = trial.enter_context((self._directory / CURRENT_NAME).open("rb"))
                except FileNotFoundError:
                    if not before and not (self._directory / CURRENT_NAME).exists():
                        raise
                else:
                    if [number_of(path) for path in list_rotated(self._directory)] == [*map(number_of, before)]:
                        stack.push(trial.pop_all())
                        return files, current
            self._pause()  # it is just being rotated or compressed

    def _rows_of(self, file: BinaryIO) -> Iterator[Row]:
        while line := file.readline(_MAX_LINE_BYTES):
            yield from self._parse(line)

    def _tail(self, file: BinaryIO) -> Iterator[Row]:
        """The rows of a file that grows, until it is no longer the current one."""
        inode = os.fstat(file.fileno()).st_ino
        rest = b""
        replaced = False
        while True:
            while line := file.readline(_MAX_LINE_BYTES):
                rest += line
                if rest.endswith(b"\n") or len(rest) >= _MAX_LINE_BYTES:
                    yield from self._parse(rest)
                    rest = b""
            if replaced:
                return
            try:
                replaced = os.stat(self._directory / CURRENT_NAME).st_ino != inode
            except FileNotFoundError:
                replaced = False  # moved away, and nothing new has come yet
            if not replaced:
                self._pause()

    def _parse(self, line: bytes) -> Iterator[Row]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield cast("Row", row)
        elif line.strip():
            self.damaged += 1


def _open(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")

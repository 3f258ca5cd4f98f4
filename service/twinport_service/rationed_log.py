"""Log lines that a stranger can provoke, rationed: one a second of each kind, with the number of those left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .log import get_log


@dataclass
class _Kind:
    written_at: float
    left_out: int = 0


class RationedLog:
    """Writes at most one line of a kind in ``seconds``. A kind is the text of the line, a literal of the program, so
    the table stays as small as the program. Thread-safe; ``clock`` is monotonic, in seconds."""

    def __init__(self, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}

    def info(self, text: str, **fields: object) -> None:
        """A line of somebody's doing; the next one of its kind tells how many there were meanwhile (``left_out``)."""
        found = self._pass(text, fields)
        if found is not None:
            get_log().info(text, **found)

    def error(self, text: str, **fields: object) -> None:
        """A line about a fault of ours, in the same way."""
        found = self._pass(text, fields)
        if found is not None:
            get_log().error(text, **found)

    def _pass(self, text: str, fields: dict[str, object]) -> dict[str, object] | None:
        now = self._clock()
        with self._lock:
            kind = self._kinds.get(text)
            if kind is not None and now < kind.written_at + self._seconds:
                kind.left_out += 1
                return None
            self._kinds[text] = _Kind(now)
        return {**fields, "left_out": kind.left_out} if kind is not None and kind.left_out else fields

"""A disk door that watches every call, and fails or dies in those it is told to."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from twinport_service.storage.disk_door import DiskDoor

NEVER_FAIL = ("drop", "spread_children")


class FaultyDoor(DiskDoor):
    """Counts calls by name. ``fail`` plans errors; ``kill_at`` makes the process die before its N-th call from now."""

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self._guard = threading.Lock()
        self._planned: dict[tuple[str, int], OSError] = {}
        self._left_to_live: int | None = None
        self._left_to_fail: tuple[int, int] | None = None
        self._seen: list[tuple[str, int]] = []
        self._counts: Counter[str] = Counter()

    def fail(self, name: str, number: int, *calls: int) -> None:
        """Fail calls of that name with errno ``number``: those given, the next one being 1, or just the next."""
        with self._guard:
            for call in calls or (1,):
                self._planned[name, self._counts[name] + call] = OSError(number, os.strerror(number))

    def fail_any_at(self, call: int, number: int) -> None:
        """Fail the N-th call of any name from now on."""
        with self._guard:
            self._left_to_fail = (call, number)

    def kill_at(self, call: int) -> None:
        """Die before the N-th call of any name from now on, as by ``kill -9``."""
        with self._guard:
            self._left_to_live = call

    def count(self, *names: str) -> int:
        """How many calls there were, of these names or of any."""
        with self._guard:
            return sum(self._counts[name] for name in names) if names else len(self._seen)

    def calls(self) -> list[tuple[str, int]]:
        """All calls so far: name and first argument, mostly a descriptor."""
        with self._guard:
            return list(self._seen)

    def _enter(self, name: str, first: object) -> None:
        with self._guard:
            self._counts[name] += 1
            self._seen.append((name, first if isinstance(first, int) else -1))
            if self._left_to_live is not None:
                self._left_to_live -= 1
                if self._left_to_live <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            error = self._planned.pop((name, self._counts[name]), None)
            if error is None and self._left_to_fail is not None and name not in NEVER_FAIL:
                left, number = self._left_to_fail
                self._left_to_fail = (left - 1, number) if left > 1 else None
                error = OSError(number, os.strerror(number)) if left == 1 else None
        if error is not None:
            if name == "close" and isinstance(first, int):
                os.close(first)  # as in the kernel, the descriptor is gone all the same
            raise error

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or name not in DiskDoor.__dict__ or not callable(value):
            return value
        enter: Callable[[str, object], None] = super().__getattribute__("_enter")

        def call(*arguments: object, **options: object) -> object:
            enter(name, arguments[0] if arguments else None)
            return value(*arguments, **options)

        return call

"""A side lane of one control session: commands of a kind that takes long, a few at a time, while the others pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SideLane(Generic[T]):
    """Starts what is added by ``start``, ``at_once`` at a time and in order; told by :meth:`end_one` that one ended.
    What waits is bounded by the session's window. Belongs to the event loop."""

    __slots__ = ("_at_once", "_running", "_start", "_waiting")

    def __init__(self, at_once: int, start: Callable[[T], None]) -> None:
        self._at_once = at_once
        self._start = start
        self._running = 0
        self._waiting: list[T] = []  # a deque takes ten times the memory, in each idle session

    @property
    def is_busy(self) -> bool:
        """Whether something runs or waits."""
        return self._running > 0 or bool(self._waiting)

    def add(self, item: T) -> None:
        """Start it, now or when its turn comes."""
        if self._running >= self._at_once:
            self._waiting.append(item)
            return
        self._running += 1
        self._start(item)

    def end_one(self) -> None:
        """One that was started has ended."""
        self._running -= 1
        if self._waiting:
            self.add(self._waiting.pop(0))

    def clear(self) -> None:
        """Nothing of what waits will be started."""
        self._waiting.clear()

"""Lets so many TLS handshakes run at once and no more; the others wait their turn.

Who holds a place without getting on gives it up to who waits: after ``hold_seconds``, the oldest first. So many half
handshakes delay a real client by a moment and cannot stop it, and a crowd that comes back at once is served in order.
Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

Begin = Callable[[Callable[[], None]], Callable[[], None]]
"""Called with ``leave``, to be called on the loop when the handshake is over; returns what makes it give way."""


@dataclass(eq=False)
class _Turn:
    begin: Begin
    refuse: Callable[[], None]
    deadline: float
    since: float = 0.0
    give_way: Callable[[], None] | None = field(default=None)


class Turnstile:
    """At most ``at_once`` inside and ``waiting`` in front of it."""

    def __init__(self, *, at_once: int = 64, waiting: int = 512, hold_seconds: float = 0.5) -> None:
        self._at_once = at_once
        self._waiting = waiting
        self._hold_seconds = hold_seconds
        self._loop = asyncio.get_running_loop()
        self._inside: dict[_Turn, None] = {}
        self._queue: deque[_Turn] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._advancing = False

    @property
    def inside(self) -> int:
        """How many handshakes run."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def enter(self, begin: Begin, refuse: Callable[[], None], deadline: float) -> None:
        """Call ``begin`` now or when its turn comes; ``refuse`` when that is not before ``deadline`` (in the loop's
        time), or when too many wait."""
        if len(self._queue) >= self._waiting:
            refuse()
            return
        self._queue.append(_Turn(begin, refuse, deadline))
        self._advance()

    def close(self) -> None:
        """Refuse whoever waits. Those inside are their owners' business."""
        if self._timer is not None:
            self._timer.cancel()
        while self._queue:
            self._queue.popleft().refuse()

    def _leave(self, turn: _Turn) -> None:
        if self._inside.pop(turn, turn) is None:
            self._advance()

    def _advance(self) -> None:
        if self._advancing:  # one that ends as soon as it begins; the loop below goes on by itself
            return
        self._advancing = True
        try:
            self._admit()
        finally:
            self._advancing = False

    def _admit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._queue:
            turn = self._queue[0]
            if now >= turn.deadline:
                self._queue.popleft().refuse()
            elif len(self._inside) < self._at_once or self._make_room(now):
                self._queue.popleft()
                turn.since = now
                self._inside[turn] = None
                turn.give_way = turn.begin(lambda turn=turn: self._leave(turn))  # type: ignore[misc]
            else:
                oldest = next(iter(self._inside))
                moment = min(oldest.since + self._hold_seconds, turn.deadline)
                self._timer = self._loop.call_at(moment, self._advance)
                return

    def _make_room(self, now: float) -> bool:
        oldest = next(iter(self._inside))
        if oldest.give_way is None or now < oldest.since + self._hold_seconds:
            return False
        del self._inside[oldest]
        oldest.give_way()
        return True

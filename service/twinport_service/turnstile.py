"""Lets so many TLS handshakes run at once and no more; the others wait their turn.

Networks (see :func:`~.networks.network_of`) take turns, whoever comes first within each. Who holds a place without
getting on gives it up to who waits: one of the network that has most places, the oldest first, after a time that is
the shorter the more wait. Where too many wait, the oldest waiter of the network that has most goes, not the newcomer.
So half handshakes, however fast they come, take places from each other, and who needs some milliseconds gets through.
Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

Begin = Callable[[Callable[[], None]], Callable[[], None]]
"""Called with ``leave``, to be called on the loop when the handshake is over; returns what makes it give way."""


@dataclass(eq=False)
class _Turn:
    begin: Begin
    refuse: Callable[[], None]
    deadline: float
    network: str
    since: float = 0.0
    give_way: Callable[[], None] = lambda: None


class Turnstile:
    """At most ``at_once`` inside and ``waiting`` in front of it. A place may be held for ``hold_seconds`` until the
    queue is a quarter full (a crowd of honest clients has slow ones), and for a twentieth of that when it is full."""

    def __init__(self, *, at_once: int = 64, waiting: int = 512, hold_seconds: float = 1.0) -> None:
        self._at_once = at_once
        self._waiting = waiting
        self._hold_seconds = hold_seconds
        self._loop = asyncio.get_running_loop()
        self._inside: dict[_Turn, None] = {}
        self._places: dict[str, dict[_Turn, None]] = {}
        self._queues: dict[str, dict[_Turn, None]] = {}  # in the order in which networks have their turn
        self._queued = 0
        self._timer: asyncio.TimerHandle | None = None
        self._advancing = False

    @property
    def inside(self) -> int:
        """How many handshakes run."""
        return len(self._inside)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._queued

    def enter(self, begin: Begin, refuse: Callable[[], None], deadline: float, network: str = "") -> None:
        """Call ``begin`` now or when its turn comes; ``refuse`` when that is not before ``deadline`` (in the loop's
        time), or when too many wait and most of them are of this ``network``."""
        turn = _Turn(begin, refuse, deadline, network)
        self._queues.setdefault(network, {})[turn] = None
        self._queued += 1
        self._advance()
        if self._queued > self._waiting:
            self._drop(next(iter(self._queues[_fullest(self._queues, network)])))

    def close(self) -> None:
        """Refuse whoever waits. Those inside are their owners' business."""
        if self._timer is not None:
            self._timer.cancel()
        while self._queues:
            self._drop(next(iter(next(iter(self._queues.values())))))

    def _drop(self, turn: _Turn) -> None:
        self._unqueue(turn)
        turn.refuse()

    def _unqueue(self, turn: _Turn) -> None:
        _take(self._queues, turn)
        self._queued -= 1

    def _leave(self, turn: _Turn) -> None:
        if turn in self._inside:
            del self._inside[turn]
            _take(self._places, turn)
            self._advance()

    def _advance(self) -> None:
        if self._advancing:  # one that ends as soon as it begins; the loop below goes on by itself
            return
        self._advancing = True
        try:
            self._admit()
        finally:
            self._advancing = False

    def _patience(self) -> float:
        """What part of its time a place may be held."""
        return min(1.0, max(0.05, (self._waiting - self._queued) / (0.75 * self._waiting)))

    def _admit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._queues:
            network, queue = next(iter(self._queues.items()))
            turn = next(iter(queue))
            if now >= turn.deadline:
                self._drop(turn)
                continue
            if len(self._inside) >= self._at_once:
                oldest = next(iter(self._places[_fullest(self._places, network)]))
                hold_until = oldest.since + self._hold_seconds * self._patience()
                if now < hold_until:
                    self._timer = self._loop.call_at(min(hold_until, turn.deadline), self._advance)
                    return
                del self._inside[oldest]
                _take(self._places, oldest)
                oldest.give_way()
            self._unqueue(turn)
            if network in self._queues:
                self._queues[network] = self._queues.pop(network)  # behind the others
            turn.since = now
            self._inside[turn] = None
            self._places.setdefault(network, {})[turn] = None
            turn.give_way = turn.begin(lambda turn=turn: self._leave(turn))  # type: ignore[misc]


def _fullest(groups: Mapping[str, Collection[_Turn]], newcomer: str) -> str:
    """The network that has most; among equals the newcomer's own, then the one that had its first before the others."""
    return max(groups, key=lambda network: (len(groups[network]), network == newcomer))


def _take(groups: dict[str, dict[_Turn, None]], turn: _Turn) -> None:
    group = groups[turn.network]
    del group[turn]
    if not group:
        del groups[turn.network]

"""How fast bytes may move: per user, and for the server in all.

A rate is kept by handing out *portions*, each due at a moment of its own, in the order in which they were asked for. A
channel has one portion at a time, all portions of a rate are equal, and so are the channels' shares. Nothing here
waits or moves bytes: the owner of a socket asks how many it may move now, moves at most so many with whatever call it
likes (``sendfile`` too), and polls on until the moment that it was told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_PORTION_SECONDS = 0.01
_LEAST_PORTION_BYTES = 16 * 1024
_MOST_PORTION_BYTES = 1024 * 1024
_BURST_SECONDS = 0.1
"""What was not used is saved up for so long: it makes up for threads that wake late, and for nothing more."""


class Rate:
    """A number of bytes per second that several lanes share. Used under the lock of its :class:`Bandwidth`."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        portion = int(bytes_per_second * _PORTION_SECONDS)
        self.portion_bytes = max(_LEAST_PORTION_BYTES, min(portion, _MOST_PORTION_BYTES))
        self.lanes = 0
        self._free_at = float("-inf")

    def reserve(self, count: int, now: float) -> float:
        """When ``count`` bytes may move; they are taken from what others may."""
        due_at = max(self._free_at, now - _BURST_SECONDS)
        self._free_at = due_at + count / self.bytes_per_second
        return due_at

    def give_back(self, count: int) -> None:
        """``count`` reserved bytes will not move."""
        self._free_at -= count / self.bytes_per_second

    def is_fresh(self, now: float) -> bool:
        """Whether a new one would be just the same."""
        return not self.lanes and self._free_at <= now - _BURST_SECONDS


class Lane:
    """One channel's share. For its owner's thread alone; :meth:`close` it at the end."""

    def __init__(self, bandwidth: Bandwidth, total: Rate | None) -> None:
        self._bandwidth = bandwidth
        self._total = total
        self._user: str | None = None
        self._own: Rate | None = None
        self._in_hand = 0
        self._due_at = float("-inf")

    def bind(self, user: str) -> None:
        """From now on the bytes are this user's."""
        if user != self._user:
            self._own = self._bandwidth.join(user, self._user)
            self._user = user

    def take(self, want_bytes: int) -> tuple[int, float]:
        """How many of ``want_bytes`` may move now, and if none, after how many seconds to ask again.

        Nothing is counted yet: tell :meth:`spend` what did move.
        """
        if self._total is None and self._own is None:
            return want_bytes, 0.0
        now = self._bandwidth.clock()
        if not self._in_hand:
            self._in_hand, self._due_at = self._bandwidth.reserve(self._total, self._own, now)
        if now < self._due_at:
            return 0, self._due_at - now
        return min(want_bytes, self._in_hand), 0.0

    def spend(self, count: int) -> None:
        """``count`` bytes moved, at most what :meth:`take` allowed."""
        self._in_hand = max(0, self._in_hand - count)

    def close(self) -> None:
        """The channel has ended; what it did not use is the others'. Harmless when repeated."""
        self._bandwidth.leave(self._user, (self._total, self._own), self._in_hand)
        self._in_hand, self._user, self._own = 0, None, None


RateOf = Callable[[str], "int | None"]
"""A user's own bound in bytes per second, at least 1; None where the server's counts. Cheap, on any thread."""


def no_rates(user: str) -> int | None:
    """No user has a bound of its own."""
    del user
    return None


class Bandwidth:
    """The rates of a server; 0 is no bound. ``per_user`` bounds each user, and what is anonymous as one; ``rate_of``
    knows those who have another bound, and ``has_rates`` whether there are any. A changed bound holds for the lanes
    that are bound afterwards.

    Both directions count together. Remembers those users only who have a lane or had one a moment ago. Thread-safe;
    ``clock`` is monotonic, in seconds.
    """

    def __init__(
        self,
        total: int = 0,
        per_user: int = 0,
        clock: Callable[[], float] = time.monotonic,
        *,
        rate_of: RateOf = no_rates,
        has_rates: Callable[[], bool] = lambda: False,
    ) -> None:
        self.clock = clock
        self._rate_of = rate_of
        self._has_rates = has_rates
        self._total = Rate(total) if total else None
        self._per_user = per_user
        self._lock = threading.Lock()
        self._users: dict[str, Rate] = {}

    @property
    def is_bounded(self) -> bool:
        """Whether there is any bound at all."""
        return bool(self._total or self._per_user or self._has_rates())

    @property
    def users(self) -> int:
        """How many users are remembered."""
        return len(self._users)

    def lane(self) -> Lane:
        """A new channel's share, nobody's until it is bound."""
        return Lane(self, self._total)

    def join(self, user: str, former: str | None) -> Rate | None:
        """The rate of a user, for one more lane that was ``former``'s before."""
        with self._lock:
            self._part(former)
            own = self._rate_of(user)
            wanted = self._per_user if own is None else own
            if not wanted:
                return None
            # Not as soon as the last lane ends: whoever connects anew all the time would get a burst each time.
            now = self.clock()
            for fresh in [name for name, rate in self._users.items() if rate.is_fresh(now)]:
                del self._users[fresh]
            rate = self._users.get(user)
            if rate is None or rate.bytes_per_second != wanted:
                lanes = 0 if rate is None else rate.lanes
                rate = self._users[user] = Rate(wanted)
                rate.lanes = lanes
            rate.lanes += 1
            return rate

    def reserve(self, total: Rate | None, own: Rate | None, now: float) -> tuple[int, float]:
        """The next portion of a lane: its bytes, and when it is due."""
        rates = [rate for rate in (total, own) if rate is not None]
        with self._lock:
            count = min(rate.portion_bytes for rate in rates)
            return count, max(rate.reserve(count, now) for rate in rates)

    def leave(self, user: str | None, rates: tuple[Rate | None, ...], unused: int) -> None:
        """A lane ends with so many bytes in hand."""
        with self._lock:
            for rate in rates:
                if rate is not None:
                    rate.give_back(unused)
            self._part(user)

    def _part(self, user: str | None) -> None:
        rate = self._users.get(user) if user is not None else None
        if rate is not None and rate.lanes:
            rate.lanes -= 1

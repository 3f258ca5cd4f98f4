"""How often passwords may be tried. Pure: no thread, no clock of its own, and no memory that grows with attackers.

- After a failed try the next one for that user from that network waits: 1, 2, 4 … at most 30 s. A network is an IPv4
  address or an IPv6 /64, which one attacker has as a whole.
- Each user and each network has a rate besides: a burst, then a try a second. It bounds guessing from many addresses
  and of many users. Who has logged in from that network within a week is not held to the two, so that strangers
  elsewhere cannot keep somebody out of the place where they usually are. Who goes on guessing that very name from that
  very network can, for as long: keys and tokens get in meanwhile.
- What is under way counts as failed until it is known to be good, so that a hundred guesses at once gain nothing.

Nothing is locked for good, and keys and tokens never come here: there is nothing to guess in them.

The tables have a fixed size; the entry that was not used for the longest time gives way, in favour of who it held up.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.networks import network_of

TABLE_ENTRIES = 65_536
MAX_DELAY_SECONDS = 30.0
FORGET_SECONDS = 900.0
TRUST_SECONDS = 7 * 24 * 3600.0
MAX_AT_ONCE = 8
USER_BURST, NETWORK_BURST = 20, 40
RATE_SECONDS = 1.0
_T = TypeVar("_T")


class _Table(Generic[_T]):
    """At most ``size`` entries, the one used longest ago out first."""

    def __init__(self, make: Callable[[], _T], size: int) -> None:
        self._make = make
        self._size = size
        self._entries: OrderedDict[tuple[str, str], _T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def use(self, key: tuple[str, str]) -> _T:
        entry = self._entries.get(key)
        if entry is None:
            if len(self._entries) >= self._size:
                self._entries.popitem(last=False)
            entry = self._entries[key] = self._make()
        else:
            self._entries.move_to_end(key)
        return entry


@dataclass
class _Lock:
    """One user from one network."""

    failures: int = 0
    failed_at: float = -math.inf
    until: float = -math.inf
    under_way: int = 0
    good_at: float = -math.inf


@dataclass
class _Rate:
    """Tries of one user, or of one network: when the bucket is empty again, were nothing more to come."""

    paid_until: float = -math.inf


@dataclass(frozen=True)
class Try:
    """A try that was admitted; to be settled once its outcome is known."""

    user: str
    network: str
    is_rated: bool
    """Whether it was counted into the rates, and is taken out again when it was good."""


class Throttle:
    """See the module. Thread-safe. ``now`` is a monotonic clock."""

    def __init__(self, now: Callable[[], float], *, entries: int = TABLE_ENTRIES, enabled: bool = True) -> None:
        self._now = now
        self._enabled = enabled
        self._mutex = threading.Lock()
        self._locks = _Table(_Lock, entries)
        self._rates = _Table(_Rate, entries)

    def __len__(self) -> int:
        return len(self._locks) + len(self._rates)

    def admit(self, user: str, peer: object) -> Try:
        """Let a password be tried, before anything is hashed. ``Refusal(Locked)`` with the seconds until it may be,
        ``Refusal(Busy)`` when too many of this user are under way from there."""
        network = network_of(peer)
        if not self._enabled:
            return Try(user, network, is_rated=False)
        with self._mutex:
            now = self._now()
            lock = self._locks.use((user, network))
            if now < lock.until:
                raise _locked(lock.until - now)
            if lock.under_way >= (1 if lock.failures else MAX_AT_ONCE):
                raise Refusal(ErrorCode.BUSY, "tries of this user are under way", 1)
            is_rated = now - lock.good_at > TRUST_SECONDS
            if is_rated:
                self._count(user, network, now)
            lock.under_way += 1
        return Try(user, network, is_rated)

    def _count(self, user: str, network: str, now: float) -> None:
        rates = [(self._rates.use(key), burst) for key, burst in _buckets(user, network)]
        for rate, burst in rates:
            over_seconds = max(rate.paid_until, now) + RATE_SECONDS - (now + burst * RATE_SECONDS)
            if over_seconds > 0:
                raise _locked(over_seconds)
        for rate, _ in rates:
            rate.paid_until = max(rate.paid_until, now) + RATE_SECONDS

    def _uncount(self, tried: Try) -> None:
        if tried.is_rated:
            for key, _ in _buckets(tried.user, tried.network):
                self._rates.use(key).paid_until -= RATE_SECONDS

    def settle(self, tried: Try, *, is_good: bool) -> None:
        """Say how an admitted try ended. A good one clears what its user had gathered from its network."""
        if not self._enabled:
            return
        with self._mutex:
            now = self._now()
            lock = self._locks.use((tried.user, tried.network))
            lock.under_way = max(0, lock.under_way - 1)
            if is_good:
                lock.failures, lock.until, lock.good_at = 0, -math.inf, now
                self._uncount(tried)
                return
            if now - lock.failed_at > FORGET_SECONDS:
                lock.failures = 0
            lock.failures += 1
            lock.failed_at = now
            lock.until = now + min(MAX_DELAY_SECONDS, 2.0 ** min(lock.failures - 1, 16))

    def withdraw(self, tried: Try) -> None:
        """An admitted try never came to be checked: it counts for nothing."""
        if not self._enabled:
            return
        with self._mutex:
            lock = self._locks.use((tried.user, tried.network))
            lock.under_way = max(0, lock.under_way - 1)
            self._uncount(tried)


def _buckets(user: str, network: str) -> tuple[tuple[tuple[str, str], int], ...]:
    return ((("network", network), NETWORK_BURST), (("user", user), USER_BURST))


def _locked(seconds: float) -> Refusal:
    return Refusal(ErrorCode.LOCKED, "tried too often", min(math.ceil(MAX_DELAY_SECONDS), max(1, math.ceil(seconds))))

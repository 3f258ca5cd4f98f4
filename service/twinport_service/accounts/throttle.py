"""How often passwords may be tried. Pure: no thread, no clock of its own, and no memory that grows with attackers.

- After a failed try the next one for that user from that network waits: 1, 2, 4 … at most 30 s. A network is an IPv4
  address or an IPv6 /64, which one attacker has as a whole.
- Each user and each network has a rate besides: a burst, then a try a second. It bounds guessing from many addresses
  and of many users.
- What is under way counts as failed until it is known to be good, so that a hundred guesses at once gain nothing.

Nothing of this depends on whether there is such a user: failed tries move it, and those that succeed leave no trace.
So a wrong password is answered alike for a name that is known and for one that is not, whoever else logs in meanwhile.

Who has logged in from that network within a week is trusted there: past the rates, the password is looked at all the
same, after delays of its own, so that strangers elsewhere cannot keep somebody out of the place where they usually are.
But only a right one is told from the others; see ``Try.refusal``. Who goes on guessing that very name from that very
network can keep its user out, for as long: keys and tokens get in meanwhile.

Nothing is locked for good, and keys and tokens never come here: there is nothing to guess in them.

The tables have a fixed size; the entry that was not used for the longest time gives way, in favour of who it held up.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
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
_BUSY = Refusal(ErrorCode.BUSY, "tries of this user are under way", 1)
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

    def find(self, key: tuple[str, str]) -> _T | None:
        """An entry, if there is one."""
        return self._entries.get(key)


@dataclass
class _Lock:
    """What failures bring upon the tries after them."""

    failures: int = 0
    failed_at: float = -math.inf
    until: float = -math.inf
    under_way: int = 0

    def has_place(self, now: float) -> bool:
        """Whether one more may be under way."""
        self._forget(now)
        return self.under_way < (1 if self.failures else MAX_AT_ONCE)

    def fail(self, now: float) -> None:
        """One more has failed."""
        self._forget(now)
        self.failures += 1
        self.failed_at = now
        self.until = now + min(MAX_DELAY_SECONDS, 2.0 ** min(self.failures - 1, 16))

    def leave(self) -> None:
        """One is no longer under way."""
        self.under_way = max(0, self.under_way - 1)

    def _forget(self, now: float) -> None:
        if now - self.failed_at > FORGET_SECONDS:
            self.failures = 0


@dataclass
class _Trust:
    """A user at a network from where they have logged in."""

    good_at: float = -math.inf
    lock: _Lock = field(default_factory=_Lock)


@dataclass
class _Rate:
    """Tries of one user, or of one network: when the bucket is empty again, were nothing more to come."""

    paid_until: float = -math.inf


@dataclass(frozen=True)
class Try:
    """A try, to be settled once its outcome is known."""

    user: str
    network: str
    refusal: Refusal | None = None
    """What is to be answered unless the password is right, at a time that does not tell whether it was looked at. None:
    what is true."""
    is_checked: bool = True
    """Whether the password is to be looked at. Otherwise there is nothing to settle."""


class Throttle:
    """See the module. Thread-safe. ``now`` is a monotonic clock."""

    def __init__(self, now: Callable[[], float], *, entries: int = TABLE_ENTRIES, enabled: bool = True) -> None:
        self._now = now
        self._enabled = enabled
        self._mutex = threading.Lock()
        self._locks = _Table(_Lock, entries)
        self._rates = _Table(_Rate, entries)
        self._trusted = _Table(_Trust, entries)

    def __len__(self) -> int:
        return len(self._locks) + len(self._rates) + len(self._trusted)

    def admit(self, user: str, peer: object) -> Try:
        """Let a password be tried, before anything is hashed. ``Refusal(Locked)`` with the seconds until it may be.
        Past the rates, or when too many of this user are under way from there, the refusal is in the :class:`Try`."""
        network = network_of(peer)
        if not self._enabled:
            return Try(user, network)
        with self._mutex:
            now = self._now()
            lock = self._locks.use((user, network))
            if now < lock.until:
                raise _locked(lock.until - now)
            refusal = self._count(user, network, now) if lock.has_place(now) else _BUSY
            if refusal is None:
                lock.under_way += 1
                return Try(user, network)
            return Try(user, network, refusal, is_checked=self._enter_trusted(user, network, now))

    def _enter_trusted(self, user: str, network: str, now: float) -> bool:
        trust = self._trusted.find((user, network))
        if trust is None or now - trust.good_at > TRUST_SECONDS:
            return False
        if now < trust.lock.until or not trust.lock.has_place(now):
            return False
        trust.lock.under_way += 1
        return True

    def _count(self, user: str, network: str, now: float) -> Refusal | None:
        rates = [(self._rates.use(key), burst) for key, burst in _buckets(user, network)]
        for rate, burst in rates:
            over_seconds = max(rate.paid_until, now) + RATE_SECONDS - (now + burst * RATE_SECONDS)
            if over_seconds > 0:
                return _locked(over_seconds)
        for rate, _ in rates:
            rate.paid_until = max(rate.paid_until, now) + RATE_SECONDS
        return None

    def _uncount(self, tried: Try) -> None:
        for key, _ in _buckets(tried.user, tried.network):
            self._rates.use(key).paid_until -= RATE_SECONDS

    def settle(self, tried: Try, *, is_good: bool) -> None:
        """Say how a try ended whose password was looked at."""
        if not self._enabled:
            return
        with self._mutex:
            now = self._now()
            lock = self._leave(tried)
            if not is_good:
                lock.fail(now)
                return
            if tried.refusal is None:
                self._uncount(tried)
            trust = self._trusted.use((tried.user, tried.network))
            trust.good_at = now
            trust.lock.failures, trust.lock.until = 0, -math.inf

    def withdraw(self, tried: Try) -> None:
        """A try never came to be looked at: it counts for nothing."""
        if not self._enabled:
            return
        with self._mutex:
            self._leave(tried)
            if tried.refusal is None:
                self._uncount(tried)

    def _leave(self, tried: Try) -> _Lock:
        key = (tried.user, tried.network)
        lock = self._locks.use(key) if tried.refusal is None else self._trusted.use(key).lock
        lock.leave()
        return lock


def _buckets(user: str, network: str) -> tuple[tuple[tuple[str, str], int], ...]:
    return ((("network", network), NETWORK_BURST), (("user", user), USER_BURST))


def _locked(seconds: float) -> Refusal:
    return Refusal(ErrorCode.LOCKED, "tried too often", min(math.ceil(MAX_DELAY_SECONDS), max(1, math.ceil(seconds))))

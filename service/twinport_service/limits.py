"""How many may come at once: connections in all, of one address, of one user, of those who have not said who they
are, and of those who are nobody in particular.

What is counted is what is open now, so no table outgrows the connections, whatever addresses an attacker has. An
address is an IPv4 address, or the /64 of an IPv6 one: that is what one customer gets, and may walk through at will.
Loopback addresses count in all only: behind them stand tunnels and proxies, each for many people.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from twinport_protocol.errors import ErrorCode, Refusal

from .access import ANONYMOUS
from .networks import is_loopback, network_of

BUSY_SECONDS = 5
"""What ``retry=`` says where somebody else has to leave first."""
BUSY_SOON_SECONDS = 1
"""What it says where a second is enough: logins are short."""


@dataclass(frozen=True)
class CrowdBounds:
    """The bounds of one kind of connection; the defaults are those of sessions.

    - ``total`` 10,000: what a 1 GiB machine holds (a session costs 20 KiB, under TLS 70 KiB).
    - ``per_address`` 512: an office behind one address, with 50 people and ten windows each, works.
    - ``per_user`` 256: a build farm under one account works. ``anonymous`` is nobody, and is not counted as one; but
      a tenth of ``total`` is not for the anonymous.
    - ``unproved`` 512, those who have not shown whose they are: more than log in within any second of an honest day.
    - ``early``: they give way at random from half of that bound on; without it the oldest does, once it is reached.
    """

    total: int = 10_000
    per_address: int = 512
    per_user: int = 256
    unproved: int = 512
    early: bool = True
    loopback_exempt: bool = True

    @property
    def anonymous(self) -> int:
        """How many may be anonymous."""
        return self.total - self.total // 10


CHANNEL_BOUNDS = CrowdBounds(total=1024, per_address=256, per_user=128, unproved=64, early=False)
"""Channels cost a thread each. A user may have 16 commands with 8 channels each; an address two such users. An honest
channel shows its ticket with its first bytes, so the oldest without one is the least honest."""


class Admission:
    """One connection's place. :meth:`close` it, whatever happened; harmless when repeated. Thread-safe."""

    __slots__ = ("_crowd", "address", "closed", "give_way", "unproved", "user")

    def __init__(self, crowd: Crowd, address: str, give_way: Callable[[], None]) -> None:
        self._crowd = crowd
        self.address = address
        self.give_way = give_way
        self.unproved = True
        self.user: str | None = None
        self.closed = False

    def prove(self, user: str) -> None:
        """The connection has shown whose it is. ``Busy`` when that user has too many; it is unproved then as before.
        An anonymous one takes the place of another when that evens out what their addresses have.

        Showing the same again changes nothing; another user takes the place of the former.
        """
        self._crowd.prove(self, user)

    def close(self) -> None:
        """The connection is gone."""
        self._crowd.leave(self)


@dataclass
class _Counts:
    total: int = 0
    addresses: Counter[str] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)


class Crowd:
    """All connections of one kind. ``chance`` draws from [0, 1)."""

    def __init__(self, bounds: CrowdBounds, chance: Callable[[], float] = random.random) -> None:
        self.bounds = bounds
        self._chance = chance
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._unproved: dict[str, dict[Admission, None]] = {}
        self._unproved_count = 0
        self._anonymous: dict[str, dict[Admission, None]] = {}
        self._anonymous_count = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return self._counts.total

    @property
    def unproved_count(self) -> int:
        """How many of them have not shown whose they are."""
        return self._unproved_count

    @property
    def anonymous_count(self) -> int:
        """How many of them are anonymous, and have said so."""
        return self._anonymous_count

    @property
    def table_size(self) -> int:
        """How many addresses and users are remembered: never more than there are connections, twice."""
        return len(self._counts.addresses) + len(self._counts.users) + len(self._unproved) + len(self._anonymous)

    def admit(self, peer: object, give_way: Callable[[], None]) -> Admission:
        """A place for a new connection from ``peer`` (a socket's peer name). ``Refusal(Busy, retry)`` when full.

        Where too many have not shown whose they are, one of them gives way: its ``give_way`` is called, on this thread.
        With ``early`` that begins at half of the bound and is the surer the fuller it is (as with sshd's
        ``MaxStartups``). Unlike there it meets not the newcomer but one of the address that has most: so who keeps
        places open without using them loses them, and who logs in gets through. Where there are too many in all, an
        anonymous one gives way, if its address has clearly more of them than the newcomer's.
        """
        address = network_of(peer)
        counted = not (self.bounds.loopback_exempt and is_loopback(address))
        with self._lock:
            counts = self._counts
            if counted and counts.addresses[address] >= self.bounds.per_address:
                raise Refusal(ErrorCode.BUSY, "too many of one address", BUSY_SECONDS)
            if counts.total >= self.bounds.total:
                victim = self._anonymous_victim(address)
                if victim is None:
                    raise Refusal(ErrorCode.BUSY, "too many in all", BUSY_SECONDS)
            else:
                victim = self._victim(address)
            if victim is not None:
                self._forget(victim)
            admission = Admission(self, address, give_way)
            counts.total += 1
            counts.addresses[address] += 1
            self._unproved.setdefault(address, {})[admission] = None
            self._unproved_count += 1
        if victim is not None:
            victim.give_way()
        return admission

    def _victim(self, newcomer: str) -> Admission | None:
        bounds = self.bounds
        start = bounds.unproved // 2 if bounds.early else bounds.unproved - 1
        if self._unproved_count - start <= self._chance() * (bounds.unproved - start):
            return None
        most = max(map(len, self._unproved.values()))
        fullest = [address for address, group in self._unproved.items() if len(group) == most]
        # Among equals it is the newcomer's own address that loses one, not somebody else's.
        address = newcomer if newcomer in fullest else fullest[int(self._chance() * len(fullest))]
        group = self._unproved[address]
        if not bounds.early:
            return next(iter(group))
        return list(group)[int(self._chance() * len(group))]

    def _anonymous_victim(self, newcomer: str) -> Admission | None:
        """One whose leaving evens out what the addresses have; so none is cut for another of the same."""
        address = max(self._anonymous, key=lambda address: len(self._anonymous[address]), default=newcomer)
        group = self._anonymous.get(address, {})
        if len(group) <= len(self._anonymous.get(newcomer, {})) + 1:
            return None
        return list(group)[int(self._chance() * len(group))]

    def prove(self, admission: Admission, user: str) -> None:
        """See :meth:`Admission.prove`."""
        victim = None
        with self._lock:
            if admission.closed or admission.user == user:
                return
            users = self._counts.users
            if user == ANONYMOUS:
                if self._anonymous_count >= self.bounds.anonymous:
                    victim = self._anonymous_victim(admission.address)
                    if victim is None:
                        raise Refusal(ErrorCode.BUSY, "too many anonymous ones", BUSY_SECONDS)
                    self._forget(victim)
            else:
                if users[user] >= self.bounds.per_user:
                    raise Refusal(ErrorCode.BUSY, "too many of one user", BUSY_SECONDS)
                users[user] += 1
            self._release_user(admission)
            admission.user = user
            if user == ANONYMOUS:
                self._anonymous.setdefault(admission.address, {})[admission] = None
                self._anonymous_count += 1
            self._forget_unproved(admission)
        if victim is not None:
            victim.give_way()

    def leave(self, admission: Admission) -> None:
        """See :meth:`Admission.close`."""
        with self._lock:
            self._forget(admission)

    def _forget(self, admission: Admission) -> None:
        if admission.closed:
            return
        admission.closed = True
        self._counts.total -= 1
        _lower(self._counts.addresses, admission.address)
        self._release_user(admission)
        self._forget_unproved(admission)

    def _release_user(self, admission: Admission) -> None:
        if admission.user == ANONYMOUS:
            self._anonymous_count -= 1
            _take(self._anonymous, admission)
        elif admission.user is not None:
            _lower(self._counts.users, admission.user)

    def _forget_unproved(self, admission: Admission) -> None:
        if admission.unproved:
            admission.unproved = False
            self._unproved_count -= 1
            _take(self._unproved, admission)


def _take(groups: dict[str, dict[Admission, None]], admission: Admission) -> None:
    group = groups[admission.address]
    del group[admission]
    if not group:
        del groups[admission.address]


def _lower(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]

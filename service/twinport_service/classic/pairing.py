"""Which data connection belongs to which transfer, for a dialect whose data connections say nothing about themselves.

All that tells them apart is the address they come from. So an address has at most one transfer that *expects* a
connection: the others wait, their OK held back, until that one was paired or its time was up. What is expected nowhere
is refused, and so are two that come for one: nobody can say whose they are. A transfer that ended unpaired leaves its
address *settling* for a while, in which its late connection may still come and must not be taken for the next one's.

Pure state: times are arguments, in seconds of one monotonic clock; what is to be done comes out as a list of outcomes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from twinport_protocol.errors import ErrorCode, Refusal

ClaimT = TypeVar("ClaimT", bound=Hashable)
ConnectionT = TypeVar("ConnectionT")


@dataclass(frozen=True)
class PairingTimes:
    """Seconds that a transfer may expect its connection: alone, and while others wait; and that an address settles."""

    alone_seconds: float = 10.0
    contended_seconds: float = 3.0
    settle_seconds: float = 1.0


@dataclass(frozen=True)
class Granted(Generic[ClaimT]):
    """It is this transfer's turn: :meth:`Pairing.open` it and send its OK."""

    claim: ClaimT


@dataclass(frozen=True)
class Paired(Generic[ClaimT, ConnectionT]):
    """This connection is that transfer's."""

    claim: ClaimT
    connection: ConnectionT


@dataclass(frozen=True)
class Failed(Generic[ClaimT]):
    """This transfer gets no connection: ``Timeout``, or ``Busy`` when two came for it."""

    claim: ClaimT
    code: ErrorCode


@dataclass(frozen=True)
class Refused(Generic[ConnectionT]):
    """Close this connection without a byte."""

    connection: ConnectionT


Outcome = Granted[ClaimT] | Paired[ClaimT, ConnectionT] | Failed[ClaimT] | Refused[ConnectionT]


@dataclass
class _Place(Generic[ClaimT, ConnectionT]):
    """One address."""

    expecting: ClaimT | None = None
    granted_at: float = 0.0
    open: bool = False
    ready: bool = False
    candidate: ConnectionT | None = None
    settled_at: float | None = None
    waiting: deque[ClaimT] = field(default_factory=deque)


class Pairing(Generic[ClaimT, ConnectionT]):
    """See the module. At most ``waiting_per_address`` transfers wait at one address."""

    def __init__(self, times: PairingTimes, *, waiting_per_address: int = 64) -> None:
        self._times = times
        self._waiting_per_address = waiting_per_address
        self._places: dict[str, _Place[ClaimT, ConnectionT]] = {}
        self._addresses: dict[ClaimT, str] = {}

    @property
    def size(self) -> int:
        """How many transfers wait or expect a connection."""
        return len(self._addresses)

    def request(self, claim: ClaimT, address: str, now: float) -> list[Outcome[ClaimT, ConnectionT]]:
        """A transfer wants its turn. ``Refusal(Busy)`` when too many wait at its address."""
        place = self._places.setdefault(address, _Place())
        if len(place.waiting) >= self._waiting_per_address:
            raise Refusal(ErrorCode.BUSY, f"{len(place.waiting)} transfers wait at {address}")
        self._addresses[claim] = address
        place.waiting.append(claim)
        return self._advance(address, place, now)

    def open(self, claim: ClaimT, now: float) -> None:
        """The OK goes out in this moment; what came before was early and is not this transfer's."""
        place = self._place_of(claim)
        if place is not None and place.expecting == claim:
            place.open = True
            place.granted_at = now

    def mark_ready(self, claim: ClaimT) -> None:
        """The connection may be used: at once for an upload, at READY for a download."""
        place = self._place_of(claim)
        if place is not None and place.expecting == claim:
            place.ready = True

    def arrive(self, connection: ConnectionT, address: str, now: float) -> list[Outcome[ClaimT, ConnectionT]]:
        """A data connection came. :meth:`settle` pairs it, once all that came together have been told."""
        place = self._places.get(address)
        if place is None or place.expecting is None or not place.open:
            return [Refused(connection)]
        if place.candidate is None:
            place.candidate = connection
            return []
        outcomes: list[Outcome[ClaimT, ConnectionT]] = [
            Refused(place.candidate),
            Refused(connection),
            self._fail(place, place.expecting, ErrorCode.BUSY, now),
        ]
        return outcomes + self._advance(address, place, now)

    def settle(self, address: str, now: float) -> list[Outcome[ClaimT, ConnectionT]]:
        """Pair what has exactly one candidate and is ready."""
        place = self._places.get(address)
        if place is None or place.expecting is None or place.candidate is None or not place.ready:
            return []
        paired = Paired(place.expecting, place.candidate)
        self._clear(place, place.expecting)
        return [paired, *self._advance(address, place, now)]

    def withdraw(self, claim: ClaimT, now: float) -> list[Outcome[ClaimT, ConnectionT]]:
        """The transfer is over before it was paired (its control connection went). Harmless when it is not here."""
        address = self._addresses.get(claim)
        if address is None:
            return []
        place = self._places[address]
        outcomes: list[Outcome[ClaimT, ConnectionT]] = []
        if place.expecting == claim:
            if place.candidate is not None:
                outcomes.append(Refused(place.candidate))
            elif place.open:
                place.settled_at = now + self._times.settle_seconds
            self._clear(place, claim)
        else:
            place.waiting.remove(claim)
            del self._addresses[claim]
        return outcomes + self._advance(address, place, now)

    def expire(self, now: float) -> list[Outcome[ClaimT, ConnectionT]]:
        """What time alone brings; to be called at :attr:`deadline`."""
        outcomes: list[Outcome[ClaimT, ConnectionT]] = []
        for address, place in list(self._places.items()):
            if self._deadline_of(place) <= now:
                if place.expecting is not None:
                    if place.candidate is not None:
                        outcomes.append(Refused(place.candidate))
                    outcomes.append(self._fail(place, place.expecting, ErrorCode.TIMEOUT, now))
                outcomes += self._advance(address, place, now)
        return outcomes

    @property
    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do next."""
        earliest = min(map(self._deadline_of, self._places.values()), default=_NEVER)
        return None if earliest == _NEVER else earliest

    def _deadline_of(self, place: _Place[ClaimT, ConnectionT]) -> float:
        if place.expecting is not None:
            times = self._times
            return place.granted_at + (times.contended_seconds if place.waiting else times.alone_seconds)
        return _NEVER if place.settled_at is None else place.settled_at

    def _fail(self, place: _Place[ClaimT, ConnectionT], claim: ClaimT, code: ErrorCode, now: float) -> Failed[ClaimT]:
        self._clear(place, claim)
        place.settled_at = now + self._times.settle_seconds
        return Failed(claim, code)

    def _clear(self, place: _Place[ClaimT, ConnectionT], claim: ClaimT) -> None:
        place.expecting = None
        place.candidate = None
        place.open = place.ready = False
        del self._addresses[claim]

    def _advance(
        self, address: str, place: _Place[ClaimT, ConnectionT], now: float
    ) -> list[Outcome[ClaimT, ConnectionT]]:
        """Give the turn to the next that waits, or forget an address where nothing is left."""
        if place.settled_at is not None and place.settled_at <= now:
            place.settled_at = None
        if place.expecting is not None or place.settled_at is not None:
            return []
        if not place.waiting:
            self._places.pop(address, None)
            return []
        place.expecting = place.waiting.popleft()
        place.granted_at = now
        return [Granted(place.expecting)]

    def _place_of(self, claim: ClaimT) -> _Place[ClaimT, ConnectionT] | None:
        address = self._addresses.get(claim)
        return None if address is None else self._places[address]


_NEVER = float("inf")

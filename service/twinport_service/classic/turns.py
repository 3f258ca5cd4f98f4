"""The turns of classic transfers on the event loop: the pairing's state with its timer, its sockets and its waiters."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.log import get_log
from twinport_service.networks import host_of

from .data import TransferRefusal
from .pairing import Failed, Granted, Outcome, Paired, Pairing, PairingTimes

_QUIET_ROUNDS = 64


class Arrival(NamedTuple):
    """A data connection that is not paired yet, and where it comes from."""

    sock: socket.socket
    peer: object


class Turn:
    """One transfer's claim on the next data connection of its address. :meth:`Turns.end` it, whatever happened."""

    def __init__(self, *, ready: bool) -> None:
        loop = asyncio.get_running_loop()
        self.ready = ready
        self.granted: asyncio.Future[None] = loop.create_future()
        self._paired: asyncio.Future[socket.socket] = loop.create_future()

    async def connection(self) -> socket.socket:
        """The transfer's data connection, the caller's from now on. ``Timeout``, ``Busy``, or why it was withdrawn."""
        await asyncio.wait([self._paired])
        sock = self._paired.result()
        self._paired = asyncio.get_running_loop().create_future()
        return sock

    def pair(self, sock: socket.socket) -> None:
        """This is the connection."""
        self._paired.set_result(sock)

    def fail(self, refusal: Refusal) -> None:
        """There will be none."""
        for future in (self.granted, self._paired):
            if not future.done():
                future.set_exception(refusal)

    def release(self) -> None:
        """Nobody waits for it any more: close what was not fetched."""
        for future in (self.granted, self._paired):
            future.cancel()
        with contextlib.suppress(Refusal, asyncio.CancelledError):
            self._paired.result().close()
        with contextlib.suppress(Refusal, asyncio.CancelledError):
            self.granted.result()


class Turns:
    """All turns of a server; used on the event loop only. ``clock`` is monotonic, in seconds."""

    def __init__(
        self, times: PairingTimes, *, waiting_per_address: int, transfers: int, clock: Callable[[], float]
    ) -> None:
        self._pairing: Pairing[Turn, Arrival] = Pairing(times, waiting_per_address=waiting_per_address)
        self._clock = clock
        self._transfers = transfers
        self._timer: asyncio.TimerHandle | None = None
        self._arrivals = 0

    @property
    def count(self) -> int:
        """How many wait, or expect a connection."""
        return self._pairing.size

    def check_room(self, running: int) -> None:
        """``Busy`` when ``running`` transfers and those that wait for their turn are as many as may be."""
        if running + self._pairing.size >= self._transfers:
            raise Refusal(ErrorCode.BUSY, "too many transfers")

    def request(self, address: str, *, ready: bool) -> Turn:
        """Queue up for the address's next connection, to be paired once ``ready`` (or :meth:`mark_ready`). ``Busy``."""
        turn = Turn(ready=ready)
        self._apply(self._pairing.request(turn, address, self._clock()))
        return turn

    async def open(self, turn: Turn) -> None:
        """Wait for the turn; when this returns, its OK must be sent without a further wait. Raises why it failed."""
        await turn.granted
        # What was connected before the OK may still stand in the listener's queue, and would be taken for the one that
        # follows it. The loop accepts in every round, so a round without an arrival says that the queue is empty.
        for _ in range(_QUIET_ROUNDS):
            before = self._arrivals
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if self._arrivals == before:
                break
        self._pairing.open(turn, self._clock())
        if turn.ready:
            self._pairing.mark_ready(turn)
        self._rearm()

    def mark_ready(self, turn: Turn, address: str) -> None:
        """The client said READY."""
        self._pairing.mark_ready(turn)
        self._settle(address)

    def withdraw(self, turn: Turn, refusal: Refusal) -> None:
        """End a turn early: whoever waits for it gets ``refusal``. Harmless when it is over."""
        turn.fail(refusal)
        self._apply(self._pairing.withdraw(turn, self._clock()))

    def end(self, turn: Turn) -> None:
        """The transfer has its connection or goes without."""
        self._apply(self._pairing.withdraw(turn, self._clock()))
        turn.release()

    def accept(self, sock: socket.socket, peer: object) -> None:
        """A data connection came; it is paired, kept for a moment as a candidate, or closed."""
        address = host_of(peer)
        self._arrivals += 1
        self._apply(self._pairing.arrive(Arrival(sock, peer), address, self._clock()))
        # What arrived in the same moment is told first: two candidates are nobody's.
        asyncio.get_running_loop().call_soon(self._settle, address)

    def close(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()

    def _settle(self, address: str) -> None:
        self._apply(self._pairing.settle(address, self._clock()))

    def _expire(self) -> None:
        self._apply(self._pairing.expire(self._clock()))

    def _apply(self, outcomes: Sequence[Outcome[Turn, Arrival]]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Granted):
                if not outcome.claim.granted.done():
                    outcome.claim.granted.set_result(None)
            elif isinstance(outcome, Paired):
                outcome.claim.pair(outcome.connection.sock)
            elif isinstance(outcome, Failed):
                outcome.claim.fail(_explain(outcome.code))
            else:
                get_log().debug(f"[DATA] Refused: no transfer expects it, from {outcome.connection.peer}")
                outcome.connection.sock.close()
        self._rearm()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._pairing.deadline
        if deadline is not None:
            delay = max(0.0, deadline - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._expire)


def _explain(code: ErrorCode) -> Refusal:
    if code is ErrorCode.BUSY:
        return TransferRefusal(code, "two data connections came for one transfer; try again")
    return TransferRefusal(code, "no data connection came in time; try again")

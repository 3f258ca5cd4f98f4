"""What uploads and downloads schedule alike: waits, the queues that channels take from, counts and events."""

from __future__ import annotations

import heapq
import itertools
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any

from twinport_protocol.segments import MIN_SEGMENT_BYTES

from .bundles import BUNDLE_BYTES, Bundles
from .engine import Event, EventKind, Order, OrderKind, Policy, Request
from .errors import TwinportError
from .report import Failure, TransferReport


class EngineBase(ABC):
    """The common half of an engine; the subclasses say what happens to a job. See :mod:`twinport.engine`."""

    def __init__(
        self, policy: Policy, clock: Callable[[], float], bundles: Bundles, draw: Callable[[], float] = random.random
    ) -> None:
        self.policy = policy
        self.bundles = bundles
        self.events: deque[Event] = deque()
        self.done_bytes = 0
        self.known_bytes = 0
        self.spread = 1
        self.input_closed = False
        self._clock = clock
        self._draw = draw
        self._again: deque[Request] = deque()
        self._outstanding = 0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self.report = TransferReport()
        self._fresh_small: deque[Any] = deque()
        """Small jobs, not begun: they may go in bundles. Of a download those whose size and root a listing told."""
        self._ready: deque[Any] = deque()
        self._ready_bytes = 0
        self._orders: deque[Order] = deque()
        self._paused = False
        self._turn = False
        self._bundle_turn = False

    def close_input(self) -> None:
        """Nothing more will be added."""
        self.input_closed = True

    def add_failure(self, name: str, error: TwinportError) -> None:
        """Something that failed before it could be asked for."""
        self._record_failure(name, error)

    # waits ------------------------------------------------------------------------------------------------------------

    def due_seconds(self) -> float | None:
        """How long until :meth:`tick` has something to do."""
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None

    def tick(self) -> None:
        """Put what was waiting and is due back to work."""
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self._clock() + seconds, next(self._sequence), action))

    def _wait_seconds(self, troubles: int, retry_seconds: int | None) -> float:
        """Exponential with jitter, never shorter than what the server asked for."""
        bound = min(self.policy.longest_wait_seconds, self.policy.first_wait_seconds * 2.0 ** min(troubles, 16))
        return (retry_seconds or 0) + bound * (0.25 + 0.75 * self._draw())

    def _go_on(self) -> None:
        self._paused = False

    # what channels take -----------------------------------------------------------------------------------------------

    @property
    def order_count(self) -> int:
        """Orders ready for a channel; bundles count as soon as their ticket is asked for."""
        return len(self._ready) + len(self._orders) + self._bundle_count

    @property
    def order_bytes(self) -> int:
        """An estimate of the bytes behind them."""
        return self._ready_bytes + len(self._orders) * MIN_SEGMENT_BYTES + self._bundle_count * BUNDLE_BYTES

    @property
    def _bundle_count(self) -> int:
        if not self.bundles.are_on or not self._may_open:
            return 0
        return -(-len(self._fresh_small) // self.bundles.size(len(self._fresh_small), self.spread))

    @property
    @abstractmethod
    def _may_open(self) -> bool:
        """Whether one more file may be under way."""

    def _make_ready(self, job: Any) -> None:
        self._ready.append(job)
        self._ready_bytes += job.size

    def take(self, max_files: int, max_bytes: int) -> list[Order]:
        """Work for a channel: several small files (at most so many, of so many bytes in all), or one other order.

        Small files and segments take turns, so that neither waits for the end of the other.
        """
        if self._ready and (self._takes_turn() or not self._orders):
            small = self._take_small(max_files, max_bytes)
            if small:
                return small
        while self._orders:
            order = self._orders.popleft()
            if not order.is_stale:
                self._on_taken(order)
                return [order]
        return self._take_small(max_files, max_bytes)

    def _takes_turn(self) -> bool:
        """True every other time."""
        self._turn = not self._turn
        return self._turn

    def _bundles_rest(self) -> bool:
        """True every other time where there is something else to do. Not the turn of the others, who would never get
        theirs."""
        self._bundle_turn = bool(self._ready or self._orders) and not self._bundle_turn
        return self._bundle_turn

    def _take_small(self, max_files: int, max_bytes: int) -> list[Order]:
        orders: list[Order] = []
        while self._ready and len(orders) < max_files and self._ready[0].size <= max_bytes:
            job = self._ready.popleft()
            self._ready_bytes -= job.size
            max_bytes -= job.size
            if not job.is_over:
                orders.append(Order(OrderKind.WHOLE, job, job.epoch))
        return orders

    @abstractmethod
    def _on_taken(self, order: Order) -> None:
        """An order other than a small file goes into the hands of a channel."""

    def received(self, order: Order, length: int) -> None:
        """``length`` more bytes of an order crossed the line and are held by the other side, or here."""
        if not order.is_stale:
            order.job.moved_bytes += length
            order.job.troubles = 0
            self._count(order, length)

    def resumed(self, order: Order, length: int) -> None:
        """The first ``length`` bytes of an order were there already."""
        if not order.is_stale:
            self._count(order, max(0, length - order.counted_bytes))

    def _count(self, order: Order, length: int) -> None:
        order.counted_bytes += length
        order.job.counted_bytes += length
        self.done_bytes += length

    def _uncount(self, order: Order) -> None:
        """What was counted of an order has to be done again."""
        self.done_bytes -= order.counted_bytes
        order.job.counted_bytes -= order.counted_bytes
        order.counted_bytes = 0

    def _forget_progress(self, job: Any) -> None:
        """A job starts anew."""
        self.done_bytes -= job.counted_bytes
        job.counted_bytes = 0

    def _report_done(self, job: Any) -> None:
        """A file is complete: what crossed the line for it, and what had not to."""
        self.report.files_done += 1
        self.report.bytes_moved += job.moved_bytes
        self.report.bytes_kept += max(0, job.size - job.moved_bytes)

    # what happened ----------------------------------------------------------------------------------------------------

    def _note(self, text: str) -> None:
        self.events.append(Event(EventKind.NOTE, text))

    def _record_failure(self, name: str, error: TwinportError) -> None:
        self.report.failures.append(Failure(name, error))
        self.events.append(Event(EventKind.FAILED, name, 0, error))

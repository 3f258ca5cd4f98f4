"""What a download asks for, and what it does when something goes wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twinport_protocol.bundles import MAX_NAMES_BYTES, RECORD_BYTES
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply, ReplyKind, Verb

from .bundles import BUNDLE_BYTES, BundlePass, Bundles
from .download_job import DownloadJob
from .engine import PASSING, Order, OrderKind, Policy, Request
from .engine_base import EngineBase
from .errors import IntegrityError, TwinportError, UsageError, refusal

if TYPE_CHECKING:
    from .entries import RemoteEntry

MAX_DAMAGES = 3
OPEN_PARTIALS = 64


class DownloadTroubles(EngineBase):
    """The queue of a download, its ends, and for every refusal and loss what is tried again."""

    def __init__(self, limits: Limits, policy: Policy, clock: Callable[[], float]) -> None:
        super().__init__(policy, clock, Bundles(limits, Verb.DOWNLOAD))
        self._small_bytes = min(policy.small_bytes, limits.credit)
        self._fresh: deque[DownloadJob] = deque()
        self._open: set[DownloadJob] = set()
        self._open_limit = min(policy.open_files, 2 * limits.window_commands)
        self._open_partials = 0
        self._publishing = 0
        self._unopened: deque[DownloadJob] = deque()

    @property
    def is_over(self) -> bool:
        """Nothing is left to do."""
        return (
            self.input_closed and not self._open and not self._fresh and not self._fresh_small and not self._outstanding
        )

    @property
    def has_room(self) -> bool:
        """Whether more may be added."""
        return len(self._fresh) + len(self._fresh_small) < self.policy.backlog

    def add(self, name: str, target: str, entry: RemoteEntry | None = None) -> None:
        """One more file to fetch; ``entry`` is what a listing told of it."""
        size = 0 if entry is None else entry.size
        self.known_bytes += size
        is_for_bundle = entry is not None and entry.root is not None and self._fits_bundle(size)
        job = DownloadJob(name, target, size, entry if is_for_bundle else None)
        (self._fresh_small if job.is_listed else self._fresh).append(job)

    @property
    def has_requests(self) -> bool:
        """Whether there may be commands to send."""
        return bool(self._again or self._fresh or self._fresh_small)

    def next_requests(self, room: int) -> list[Request]:
        """At most ``room`` commands to send now."""
        requests: list[Request] = []
        if (self._fresh_small or not self.input_closed) and (asked := self.bundles.next_request()) is not None:
            requests.append(asked)
        while len(requests) < room:
            if self._again:
                request = self._again.popleft()
                if request.epoch == request.job.epoch and not request.job.is_over:
                    requests.append(request)
            elif self._fresh and self._may_open:
                requests.append(self._ask(self._opened(self._fresh)))
            elif self._fresh_small and not self.bundles.are_on and self._may_open:
                requests.append(self._ask(self._opened(self._fresh_small)))
            else:
                break
        self._outstanding += len(requests)
        return requests

    @property
    def _may_open(self) -> bool:
        return not self._paused and len(self._open) < self._open_limit

    def _opened(self, queue: deque[DownloadJob]) -> DownloadJob:
        job = queue.popleft()
        self._open.add(job)
        return job

    # bundles ----------------------------------------------------------------------------------------------------------

    def _fits_bundle(self, size: int) -> bool:
        return size <= min(self._small_bytes, BUNDLE_BYTES)

    def take_bundle(self, most_bytes: int) -> list[Order]:
        """Small files that are asked for with one frame, of at most ``most_bytes`` in all; none every other time where
        there is something else to do as well."""
        orders: list[Order] = []
        if self.bundles.current is None or self._bundles_rest():
            return orders
        left, names = min(most_bytes, BUNDLE_BYTES), MAX_NAMES_BYTES
        most_files = self.bundles.size(len(self._fresh_small), self.spread)
        while self._fresh_small and len(orders) < most_files and self._may_open:
            job = self._fresh_small[0]
            left -= job.size
            names -= len(job.name.encode()) + RECORD_BYTES
            if left < 0 or names < 0:
                break
            orders.append(Order(OrderKind.BUNDLED, self._opened(self._fresh_small), job.epoch))
        return orders

    def not_bundled(self, used: BundlePass, order: Order, code: ErrorCode) -> None:
        """The server does not send a file in a bundle: ask for it by itself, and learn why."""
        if order.is_stale:
            return
        self.bundles.refused(used, code)
        self._ask_again_later(order.job, 0.0)

    @staticmethod
    def _ask(job: DownloadJob) -> Request:
        return Request(Verb.DOWNLOAD, (job.name,), {}, "ask", job, job.epoch)

    def _on_taken(self, order: Order) -> None:
        """Nothing to note: whoever orders a segment has noted the order already."""

    def _open_next(self) -> None:
        """Bound the descriptors and the half-fetched files: the rest waits its turn."""
        while self._unopened and self._open_partials < OPEN_PARTIALS:
            job = self._unopened.popleft()
            if not job.is_over:
                self._open_partials += 1
                job.opened = True
                self._orders.append(Order(OrderKind.LOOK, job, job.epoch))

    # refusals ---------------------------------------------------------------------------------------------------------

    def damaged(self, order: Order) -> None:
        """The bytes do not match the digest: fetch them again, a bounded number of times."""
        if order.is_stale:
            return
        job: DownloadJob = order.job
        self._uncount(order)
        job.damages += 1
        if job.damages > MAX_DAMAGES:
            text = "the bytes do not match their digest; nothing of it was accepted; check the server's disk"
            self._fail(job, IntegrityError(f"cannot fetch {job.name}: {text}"))
        elif order.kind is OrderKind.BUNDLED:
            self._ask_again_later(job, 0.0)
        elif order.kind is OrderKind.WHOLE:
            self._ready.append(job)
            self._ready_bytes += job.size
        else:
            self._fetch_anew(order)

    def refuted(self, order: Order) -> None:
        """What an earlier run had written of a segment was wrong: fetch all of it. Nobody is to blame."""
        if not order.is_stale:
            self._uncount(order)
            self._fetch_anew(order)

    def _fetch_anew(self, order: Order) -> None:
        """All of a segment, whatever is there of it."""
        anew = Order(OrderKind.SEGMENT, order.job, order.job.epoch, order.segment)
        order.job.active[order.segment] = anew
        self._orders.append(anew)

    def lied(self, order: Order, what: str) -> None:
        """The server contradicts itself in a way that no retry mends."""
        if not order.is_stale:
            self._fail(order.job, IntegrityError(f"cannot fetch {order.job.name}: {what}; nothing of it was accepted"))

    def target_failed(self, order: Order, error: TwinportError) -> None:
        """The target cannot be written."""
        if not order.is_stale:
            self._uncount(order)
            self._fail(order.job, error)

    def refused(self, order: Order, code: ErrorCode) -> None:
        """The server did not send the bytes of an order."""
        if order.is_stale:
            return
        self._uncount(order)
        self._trouble(order.job, code, None)

    def _looked(self, job: DownloadJob, reply: Reply) -> None:
        """Why a name was denied: people forget ``-r``."""
        if reply.kind is ReplyKind.OK and reply.options.get("kind") == "d":
            text = f"cannot fetch {job.name}: it is a directory; add -r (recursive=True) to fetch all in it"
            self._fail(job, UsageError(text))
        else:
            self._trouble(job, ErrorCode.DENIED, None)

    def _ask_refused(self, job: DownloadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        if code is ErrorCode.DENIED:
            self._again.append(Request(Verb.STAT, (job.name,), {}, "why", job, job.epoch))
            return
        if code is ErrorCode.BUSY and not job.root and len(self._open) > 1:
            self._open.discard(job)
            self._open_limit = max(1, min(self._open_limit, len(self._open) + 1) // 2)
            self._fresh.appendleft(job)
            if not self._paused:
                self._paused = True
                self._after(self._wait_seconds(1, retry_seconds), self._go_on)
            return
        self._trouble(job, code, retry_seconds)

    def _trouble(self, job: DownloadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        job.troubles += 1
        if code is ErrorCode.VERSION_GONE:
            # The server keeps fewer versions than are asked for at once.
            self._open_limit = max(16, self._open_limit // 2)
        if code not in PASSING or job.troubles > self.policy.troubles:
            self._fail(job, refusal(code, f"cannot fetch {job.name}"))
            return
        self._ask_again_later(job, self._wait_seconds(job.troubles, retry_seconds) if job.troubles > 1 else 0.0)

    def _ask_again_later(self, job: DownloadJob, seconds: float) -> None:
        job.epoch += 1
        epoch = job.epoch
        if seconds:
            self._after(seconds, lambda: self._ask_again(job, epoch))
        else:
            self._ask_again(job, epoch)

    def _ask_again(self, job: DownloadJob, epoch: int) -> None:
        if job.epoch == epoch and not job.is_over:
            self._again.append(self._ask(job))

    # losses -----------------------------------------------------------------------------------------------------------

    def return_orders(self, orders: Sequence[Order]) -> None:
        """These were in the hands of a channel that is lost; a segment goes on where it stood."""
        for order in reversed(orders):
            if order.is_stale:
                continue
            job: DownloadJob = order.job
            if order.kind is OrderKind.WHOLE:
                self._uncount(order)
                self._ready.appendleft(job)
                self._ready_bytes += job.size
            elif order.kind is OrderKind.BUNDLED:
                self._uncount(order)
                self._ask_again_later(job, 0.0)  # not in a bundle: perhaps it was this one that the channel ended for
            else:
                again = order.renewed()
                if order.kind is not OrderKind.LOOK:
                    job.active[order.segment] = again
                self._orders.appendleft(again)

    def session_lost(self) -> None:
        """The control link and all channels are gone: everything open is asked for again."""
        self._again.clear()
        self._orders.clear()
        self._ready.clear()
        self._ready_bytes = 0
        self._unopened.clear()
        self._outstanding = 0
        self.bundles.session_lost()
        self._later.clear()
        self._paused = False
        for job in self._open:
            if job.done and len(job.done) == job.layout.count:
                continue  # in the flusher's hands
            job.epoch += 1
            if job.opened and job.partial is None:
                job.opened = False
                self._open_partials -= 1
            self._again.append(self._ask(job))

    def fail_all(self, error: TwinportError) -> None:
        """Give up everything that is not done."""
        for job in [*self._open, *self._fresh, *self._fresh_small]:
            self._fail(job, error)
        self._fresh.clear()
        self._fresh_small.clear()
        self._again.clear()
        self._outstanding = 0

    # the end of a job -------------------------------------------------------------------------------------------------

    def _close_partial(self, job: DownloadJob) -> None:
        if job.opened:
            job.opened = False
            self._open_partials -= 1
        if job.partial is not None:
            job.partial.close()
            job.partial = None

    def _close(self, job: DownloadJob) -> None:
        self._open.discard(job)
        job.is_over = True
        job.epoch += 1
        self._close_partial(job)
        self._open_next()

    def _fail(self, job: DownloadJob, error: TwinportError) -> None:
        self._close(job)
        self._record_failure(job.name, error)

"""What a download asks for, and what it does when something goes wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply, ReplyKind, Verb

from .download_job import DownloadJob
from .engine import PASSING, Order, OrderKind, Policy, Request
from .engine_base import EngineBase
from .errors import IntegrityError, TwinportError, UsageError, refusal

if TYPE_CHECKING:
    pass

MAX_DAMAGES = 3
OPEN_PARTIALS = 64


class DownloadTroubles(EngineBase):
    """The queue of a download, its ends, and for every refusal and loss what is tried again."""

    def __init__(self, limits: Limits, policy: Policy, clock: Callable[[], float]) -> None:
        super().__init__(policy, clock)
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
        return self.input_closed and not self._open and not self._fresh and not self._outstanding

    @property
    def has_room(self) -> bool:
        """Whether more may be added."""
        return len(self._fresh) < self.policy.backlog

    def add(self, name: str, target: str, size_hint: int = 0) -> None:
        """One more file to fetch."""
        self.known_bytes += size_hint
        job = DownloadJob(name, target)
        job.size = size_hint
        self._fresh.append(job)

    @property
    def has_requests(self) -> bool:
        """Whether there may be commands to send."""
        return bool(self._again or self._fresh)

    def next_requests(self, room: int) -> list[Request]:
        """At most ``room`` commands to send now."""
        requests: list[Request] = []
        while len(requests) < room:
            if self._again:
                request = self._again.popleft()
                if request.epoch == request.job.epoch and not request.job.is_over:
                    requests.append(request)
            elif self._fresh and not self._paused and len(self._open) < self._open_limit:
                job = self._fresh.popleft()
                self._open.add(job)
                requests.append(self._ask(job))
            else:
                break
        self._outstanding += len(requests)
        return requests

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
        for job in [*self._open, *self._fresh]:
            self._fail(job, error)
        self._fresh.clear()
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

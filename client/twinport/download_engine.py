"""Decides what a download fetches next. Pure: see :mod:`twinport.engine`.

    small      DOWNLOAD ─OK▶ ready ─GET▶ verified in memory ▶ written ▶ flushed, renamed
    larger     DOWNLOAD ─OK▶ look: MANIFEST, open the partial ▶ check what is claimed, fetch what is missing ▶ flushed,
    renamed

Whatever interrupts it, DOWNLOAD is asked again: the same root goes on where it stood, another root starts anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.numbers import parse_signed, parse_size
from twinport_protocol.segments import DIGEST_BYTES, MIN_SEGMENT_BYTES, Layout, Manifest
from twinport_protocol.tickets import decode_ticket

from .engine import PASSING, EngineBase, Event, EventKind, Order, OrderKind, Policy, Request
from .errors import IntegrityError, ServerProtocolError, TwinportError, UsageError, refusal
from .report import Failure, TransferReport

if TYPE_CHECKING:
    from .partials import Partial

MAX_DAMAGES = 3
OPEN_PARTIALS = 64


class DownloadJob:
    """One file on its way here: ``name`` on the server, ``target`` below the target tree."""

    __slots__ = (
        "active",
        "damages",
        "done",
        "epoch",
        "executable",
        "is_over",
        "kept_bytes",
        "layout",
        "manifest",
        "mtime_ns",
        "name",
        "opened",
        "partial",
        "root",
        "size",
        "target",
        "ticket",
        "troubles",
    )

    def __init__(self, name: str, target: str) -> None:
        self.name = name
        self.target = target
        self.epoch = 0
        self.is_over = False
        self.troubles = 0
        self.damages = 0
        self.opened = False
        self.partial: Partial | None = None
        self.ticket = b""
        self.root = b""
        self.size = 0
        self.mtime_ns = 0
        self.executable = False
        self.begin()

    def begin(self) -> None:
        """From the beginning, as another version."""
        self.epoch += 1
        self.layout = Layout.of(self.size)
        self.manifest: Manifest | None = None
        self.active: dict[int, Order] = {}
        self.done: set[int] = set()
        self.kept_bytes = 0


class DownloadEngine(EngineBase):
    """Schedules downloads."""

    def __init__(self, limits: Limits, policy: Policy, clock: Callable[[], float]) -> None:
        super().__init__(policy, clock)
        self.report = TransferReport()
        self._small_bytes = min(policy.small_bytes, limits.credit)
        self._fresh: deque[DownloadJob] = deque()
        self._open: set[DownloadJob] = set()
        self._open_limit = min(policy.open_files, 2 * limits.window_commands)
        self._open_partials = 0
        self._publishing = 0
        self._ready: deque[DownloadJob] = deque()
        self._ready_bytes = 0
        self._unopened: deque[DownloadJob] = deque()
        self._orders: deque[Order] = deque()
        self._paused = False
        self._turn = False

    # what is added ---------------------------------------------------------------------------------------------------

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

    def add_failure(self, name: str, error: TwinportError) -> None:
        """Something that failed before it could be fetched."""
        self._record_failure(name, error)

    # commands --------------------------------------------------------------------------------------------------------

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

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """What the server answered."""
        for request, reply in pairs:
            if reply.kind.ends_command:
                self._outstanding -= 1
            job: DownloadJob = request.job
            if job.is_over or request.epoch != job.epoch or not reply.kind.ends_command:
                continue
            if request.step == "why":
                self._looked(job, reply)
                continue
            if reply.kind is ReplyKind.ERROR:
                self._ask_refused(job, reply.code or ErrorCode.INTERNAL, reply.retry_seconds)
                continue
            try:
                self._asked(job, reply)
            except (ProtocolError, Refusal, KeyError, ValueError) as error:
                self._fail(job, ServerProtocolError(f"cannot fetch {job.name}: a senseless answer ({error})"))

    def _asked(self, job: DownloadJob, reply: Reply) -> None:
        options = reply.options
        size = parse_size(options["size"].encode())
        root = bytes.fromhex(options["root"])
        if len(root) != DIGEST_BYTES:
            raise ValueError("a root of another length")
        job.ticket = decode_ticket(options["ticket"])
        is_same = root == job.root and size == job.size
        job.mtime_ns = parse_signed(options.get("mtime", "0").encode())
        job.executable = options.get("exec") == "1"
        if not is_same:
            if job.root:
                self._note(f"{job.name} changed on the server while it was fetched; starting anew")
                self.done_bytes -= self._held_bytes(job)
            self.known_bytes += size - job.size
            if job.partial is not None:
                # A channel that does not know it yet may still write: into a file without a name.
                job.partial.discard()
            self._close_partial(job)
            job.root, job.size = root, size
            job.begin()
        if size <= self._small_bytes:
            self._ready.append(job)
            self._ready_bytes += size
        elif job.partial is not None:
            self._order_missing(job)
        else:
            self._unopened.append(job)
            self._open_next()

    @staticmethod
    def _held_bytes(job: DownloadJob) -> int:
        return sum(job.layout.length(segment) for segment in job.done)

    def _open_next(self) -> None:
        """Bound the descriptors and the half-fetched files: the rest waits its turn."""
        while self._unopened and self._open_partials < OPEN_PARTIALS:
            job = self._unopened.popleft()
            if not job.is_over:
                self._open_partials += 1
                job.opened = True
                self._orders.append(Order(OrderKind.LOOK, job, job.epoch))

    def _order_missing(self, job: DownloadJob) -> None:
        orders = [
            Order(OrderKind.SEGMENT, job, job.epoch, segment, job.active[segment].offset if segment in job.active else
            0) for segment in range(job.layout.count)
            if segment not in job.done
        ]
        job.active.clear()
        self._orders.extendleft(reversed(orders))

    # what a channel does ---------------------------------------------------------------------------------------------

    @property
    def order_count(self) -> int:
        """Orders ready for a channel."""
        return len(self._ready) + len(self._orders)

    @property
    def order_bytes(self) -> int:
        """An estimate of the bytes behind them."""
        return self._ready_bytes + len(self._orders) * MIN_SEGMENT_BYTES

    def take(self, max_files: int, max_bytes: int) -> list[Order]:
        """Work for a channel: several small files (at most so many, of so many bytes in all), or one other order."""
        self._turn = not self._turn
        if self._ready and (self._turn or not self._orders):
            small = self._take_small(max_files, max_bytes)
            if small:
                return small
        while self._orders:
            order = self._orders.popleft()
            if not order.is_stale:
                if order.kind is OrderKind.SEGMENT:
                    order.job.active[order.segment] = order
                return [order]
        return self._take_small(max_files, max_bytes)

    def _take_small(self, max_files: int, max_bytes: int) -> list[Order]:
        orders: list[Order] = []
        while self._ready and len(orders) < max_files and self._ready[0].size <= max_bytes:
            job = self._ready.popleft()
            self._ready_bytes -= job.size
            max_bytes -= job.size
            if not job.is_over:
                orders.append(Order(OrderKind.WHOLE, job, job.epoch))
        return orders

    def received(self, order: Order, length: int) -> None:
        """``length`` more bytes of an order are here."""
        if not order.is_stale:
            order.counted_bytes += length
            self.done_bytes += length
            order.job.troubles = 0

    def opened(self, order: Order, manifest: Manifest, partial: Partial, claims: Sequence[int]) -> bool:
        """The manifest is verified and the partial open. False when nobody wants it any more: close the partial."""
        if order.is_stale:
            return False
        job: DownloadJob = order.job
        job.manifest = manifest
        job.partial = partial
        checks: list[Order] = []
        fetches: list[Order] = []
        for segment, claim in enumerate(claims):
            if claim and claim == job.layout.length(segment):
                checks.append(Order(OrderKind.CHECK, job, job.epoch, segment))
            else:
                fetches.append(Order(OrderKind.SEGMENT, job, job.epoch, segment, claim))
        self._orders.extendleft(reversed(checks + fetches))
        return True

    def checked(self, order: Order, matches: bool) -> Partial | None:
        """A segment of the partial was hashed. The partial, to be published, when the file is complete now."""
        if order.is_stale:
            return None
        job: DownloadJob = order.job
        if not matches:
            self._orders.append(Order(OrderKind.SEGMENT, job, job.epoch, order.segment))
            return None
        length = job.layout.length(order.segment)
        job.kept_bytes += length
        self.done_bytes += length
        return self._segment_done(job, order.segment)

    def fetched(self, order: Order, kept_bytes: int) -> Partial | None:
        """A segment is written and verified. The partial, to be published, when the file is complete now."""
        if order.is_stale:
            return None
        order.job.kept_bytes += kept_bytes
        return self._segment_done(order.job, order.segment)

    def _segment_done(self, job: DownloadJob, segment: int) -> Partial | None:
        job.active.pop(segment, None)
        job.done.add(segment)
        if len(job.done) < job.layout.count:
            return None
        partial, job.partial = job.partial, None  # the flusher's from here on
        return partial

    def verified(self, order: Order) -> bool:
        """The bytes of a small file are right; whether somebody still wants them published."""
        if order.is_stale or order.job.is_over:
            return False
        order.job.done.add(0)
        return True

    def kept(self, order: Order) -> None:
        """The target is the file already, verified."""
        if order.is_stale:
            return
        job: DownloadJob = order.job
        self.done_bytes += job.size
        self._close(job)
        self.report.files_kept += 1
        self.report.bytes_kept += job.size
        self.events.append(Event(EventKind.DONE, job.name, job.size))

    def published(self, job: DownloadJob, error: TwinportError | None) -> None:
        """The flusher is done with a file."""
        if job.is_over:
            return
        if error is not None:
            self._fail(job, error)
            return
        self._close(job)
        self.report.files_done += 1
        self.report.bytes_moved += job.size - job.kept_bytes
        self.report.bytes_kept += job.kept_bytes
        self._open_limit = min(self.policy.open_files, self._open_limit + 1)
        self.events.append(Event(EventKind.DONE, job.name, job.size))

    # what goes wrong -------------------------------------------------------------------------------------------------

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
            job.active.pop(order.segment, None)
            self._orders.append(Order(OrderKind.SEGMENT, job, job.epoch, order.segment))

    def refuted(self, order: Order) -> None:
        """What an earlier run had written of a segment was wrong: fetch all of it. Nobody is to blame."""
        if not order.is_stale:
            self._uncount(order)
            self._orders.append(Order(OrderKind.SEGMENT, order.job, order.job.epoch, order.segment))

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
        job: DownloadJob = order.job
        if order.kind is OrderKind.SEGMENT:
            job.active[order.segment] = order
        self._trouble(job, code, None)

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

    def _go_on(self) -> None:
        self._paused = False

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
                self._orders.appendleft(Order(order.kind, job, job.epoch, order.segment, order.offset))

    def session_lost(self) -> None:
        """The control link and all channels are gone: everything open is asked for again."""
        self._again.clear()
        for order in self._orders:
            if order.kind is OrderKind.SEGMENT and not order.is_stale:
                order.job.active[order.segment] = order
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

    # the end of a job ------------------------------------------------------------------------------------------------

    def _uncount(self, order: Order) -> None:
        self.done_bytes -= order.counted_bytes
        order.counted_bytes = 0

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

    def _record_failure(self, name: str, error: TwinportError) -> None:
        self.report.failures.append(Failure(name, error))
        self.events.append(Event(EventKind.FAILED, name, 0, error))

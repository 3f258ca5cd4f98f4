"""Decides what an upload sends next. Pure: see :mod:`twinport.engine`.

    one segment    UPLOAD ─OK▶ ready ─PUT…LAST|COMMIT▶ COMMITTED
    several        STAT (there already? compare ▶ kept) ▶ UPLOAD ─OK▶ (resumable? UPLOAD resume= ▶ HAVE ▶ check)
                   ▶ segments ▶ COMMIT ─DONE▶

Upload ids are random, so every step can be repeated: after a lost answer the same id is asked for again and says
whether the file was published. A lost channel is followed by HAVE, a lost control session by ``resume=`` of the own id,
which fences whatever half of the old session is still on its way. An earlier run may have been interrupted when only
the answer to its COMMIT was missing: hence STAT first, and again while an older upload of the file is being committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.frames import Held
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.numbers import parse_size
from twinport_protocol.segments import Layout, root_of
from twinport_protocol.tickets import decode_ticket, encode_ticket

from .engine import PASSING, EngineBase, Event, EventKind, Order, OrderKind, Policy, Request
from .errors import ConflictError, IntegrityError, ServerProtocolError, SourceError, TwinportError, refusal
from .report import Failure, TransferReport
from .sources import SourceFile

MAX_RESENDS = 3


class UploadJob:
    """One file on its way to the server."""

    __slots__ = (
        "active",
        "changes",
        "committing",
        "digests",
        "epoch",
        "generation",
        "is_over",
        "kept_bytes",
        "layout",
        "looking",
        "own",
        "resends",
        "resumable",
        "resume_tried",
        "source",
        "started",
        "ticket",
        "troubles",
        "upload_id",
    )

    def __init__(self, source: SourceFile, upload_id: str) -> None:
        self.changes = 0
        self.epoch = 0
        self.is_over = False
        self.begin(source, upload_id)

    def begin(self, source: SourceFile, upload_id: str) -> None:
        """From the beginning, as a new upload."""
        self.source = source
        self.layout = Layout.of(source.size)
        self.upload_id = upload_id
        self.epoch += 1
        self.ticket = b""
        self.generation = 1
        self.own: tuple[str, bytes, int] | None = None
        self.resumable = ""
        self.resume_tried = False
        self.started = False
        self.committing = False
        self.looking = False
        self.digests: dict[int, bytes] = {}
        self.active: set[int] = set()
        self.kept_bytes = 0
        self.resends = 0
        self.troubles = 0

    @property
    def is_large(self) -> bool:
        """Whether the file has several segments and is committed by a command."""
        return self.layout.count > 1


class UploadEngine(EngineBase):
    """Schedules uploads. ``new_id`` gives 32 random hex digits; ``find`` looks at a path again after the file
    changed."""

    def __init__(
        self,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        find: Callable[[SourceFile], SourceFile],
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(policy, clock)
        self.report = TransferReport()
        self._limits = limits
        self._new_id = new_id
        self._find = find
        self._options = dict(options or {})
        self._small_bytes = min(policy.small_bytes, limits.piece, limits.credit)
        self._fresh: deque[UploadJob] = deque()
        self._fresh_large: deque[UploadJob] = deque()
        self._directories: deque[str] = deque()
        self._making: set[str] = set()
        self._open: set[UploadJob] = set()
        self._open_large = 0
        self._open_bytes = 0
        self._open_limit = policy.open_files
        self._paused = False
        self._ready: deque[UploadJob] = deque()
        self._ready_bytes = 0
        self._orders: deque[Order] = deque()
        self._turn = False

    # what is added ---------------------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Nothing is left to do."""
        return (
            self.input_closed
            and not self._open
            and not self._fresh
            and not self._fresh_large
            and not self._directories
            and not self._making
            and not self._again
            and not self._outstanding
        )

    @property
    def has_room(self) -> bool:
        """Whether more may be added."""
        return len(self._fresh) + len(self._fresh_large) + len(self._directories) < self.policy.backlog

    def add(self, source: SourceFile) -> None:
        """One more file to send."""
        self.known_bytes += source.size
        if source.size > self._limits.max_file:
            error = refusal(ErrorCode.TOO_LARGE, f"cannot send {source.name}")
            self._record_failure(source.name, error)
            return
        job = UploadJob(source, self._new_id())
        (self._fresh_large if job.is_large else self._fresh).append(job)

    def add_kept(self, source: SourceFile) -> None:
        """A file that needs no sending: the server has it."""
        self.known_bytes += source.size
        self.done_bytes += source.size
        self.report.files_kept += 1
        self.report.bytes_kept += source.size
        self.events.append(Event(EventKind.DONE, source.name, source.size))

    def add_directory(self, name: str) -> None:
        """One more empty directory to make."""
        self._directories.append(name)

    def add_failure(self, name: str, error: TwinportError) -> None:
        """Something that failed before it could be sent."""
        self._record_failure(name, error)

    # commands --------------------------------------------------------------------------------------------------------

    def next_requests(self, room: int) -> list[Request]:
        """At most ``room`` commands to send now."""
        requests: list[Request] = []
        while len(requests) < room:
            if self._again:
                request = self._again.popleft()
                if request.job is None or request.epoch == request.job.epoch:
                    requests.append(request)
                continue
            job = self._next_job()
            if job is not None:
                self._open.add(job)
                self._open_large += job.is_large
                self._open_bytes += 0 if job.is_large else job.source.size
                requests.append(self._look_for(job) if job.is_large and not self._options else self._ask(job))
            elif self._directories:
                name = self._directories.popleft()
                self._making.add(name)
                requests.append(Request(Verb.MKDIR, (name,), {}, "directory", None))
            else:
                break
        self._outstanding += len(requests)
        return requests

    def _next_job(self) -> UploadJob | None:
        if self._paused or len(self._open) >= self._open_limit:
            return None
        if self._fresh_large and self._open_large < self.policy.open_large:
            return self._fresh_large.popleft()
        if self._fresh and (
            not self._open_bytes or self._open_bytes + self._fresh[0].source.size <= self.policy.open_bytes
        ):
            return self._fresh.popleft()
        return None

    @staticmethod
    def _look_for(job: UploadJob) -> Request:
        return Request(Verb.STAT, (job.source.name,), {}, "stat", job, job.epoch)

    def _ask(self, job: UploadJob, resume: str = "") -> Request:
        source = job.source
        options = {"upload": job.upload_id, "mtime": str(source.mtime_ns)}
        if source.executable:
            options["exec"] = "1"
        if self._options:
            options.update(self._options)
        if resume:
            options["resume"] = resume
        words = (source.name, str(source.size))
        return Request(Verb.UPLOAD, words, options, "resume" if resume else "ask", job, job.epoch)

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """What the server answered."""
        for request, reply in pairs:
            if reply.kind.ends_command:
                self._outstanding -= 1
            job = request.job
            if job is None:
                if request.step == "directory":
                    self._directory_made(request, reply)
            elif request.epoch == job.epoch and not job.is_over:
                try:
                    self._on_reply(request.step, job, reply)
                except (ProtocolError, Refusal, KeyError, ValueError) as error:
                    text = f"cannot send {job.source.name}: the server's answer makes no sense ({error})"
                    self._fail(job, ServerProtocolError(text))

    def _on_reply(self, step: str, job: UploadJob, reply: Reply) -> None:
        if step == "stat":
            self._found(job, reply)
        elif reply.kind is ReplyKind.ERROR:
            code = reply.code or ErrorCode.INTERNAL
            if step == "commit":
                self._commit_refused(job, code, reply.retry_seconds)
            elif step == "resume":
                self._resume_refused(job, code, reply.retry_seconds)
            else:
                self._ask_refused(job, code, reply.retry_seconds)
        elif reply.kind is ReplyKind.DONE:
            # Also the answer to a repeated UPLOAD. If somebody else took the upload over and published it, then perhaps
            # with other bytes than ours.
            if reply.options["root"] == self._known_root(job):
                self._done(job)
            elif step == "resume" and job.own is not None:  # an earlier run's, published after all
                self._again.append(self._look_for(job))
            else:
                self._fail(job, self._failure(job, ErrorCode.FENCED))
        elif reply.kind is ReplyKind.OK:
            ticket = decode_ticket(reply.options["ticket"])
            if step == "renew":
                job.ticket = ticket
                self._look(job)
                return
            job.generation = parse_size(reply.options["generation"].encode())
            job.ticket = ticket
            if step == "resume":
                job.upload_id = reply.options["upload"]
                self._look(job)
            else:
                self._asked(job, reply.options.get("resumable"))

    def _found(self, job: UploadJob, reply: Reply) -> None:
        """What is under the name. A file that seems to be this one is compared, anything else is replaced."""
        source, options = job.source, reply.options
        seems_same = (
            reply.kind is ReplyKind.OK
            and options.get("size") == str(source.size)
            and options.get("mtime") == str(source.mtime_ns)
            and (options.get("exec") == "1") == source.executable
            and "root" in options
        )
        if seems_same:
            self._orders.append(Order(OrderKind.COMPARE, job, job.epoch, digest=bytes.fromhex(options["root"])))
        else:
            self._send(job)

    def compared(self, order: Order, matches: bool) -> None:
        """The file was compared with the one under its name."""
        if order.is_stale:
            return
        job: UploadJob = order.job
        if not matches:
            self._send(job)
            return
        if job.own is not None:
            self._abort(job.own[0], job.own[2])
        self._close(job)
        job.is_over = True
        job.epoch += 1
        self.known_bytes -= job.source.size  # counted again, as any file that is kept
        self.add_kept(job.source)

    def _send(self, job: UploadJob) -> None:
        """It is not there: begin, or try once more to go on with what an earlier run began."""
        self._again.append(self._ask(job) if job.own is None else self._ask(job, resume=job.resumable))

    def _asked(self, job: UploadJob, resumable: str | None) -> None:
        if job.is_large and resumable and not job.resume_tried:
            job.resume_tried = True
            job.own = (job.upload_id, job.ticket, job.generation)
            job.resumable = resumable
            self._again.append(self._ask(job, resume=resumable))
        elif job.source.size <= self._small_bytes:
            self._make_ready(job)
        elif job.started:
            self._look(job)
        else:
            self._start(job)

    def _make_ready(self, job: UploadJob) -> None:
        self._ready.append(job)
        self._ready_bytes += job.source.size

    def _start(self, job: UploadJob) -> None:
        job.started = True
        for segment in range(job.layout.count):
            if segment not in job.digests and segment not in job.active:
                self._orders.append(Order(OrderKind.SEGMENT, job, job.epoch, segment))

    def _look(self, job: UploadJob) -> None:
        """Ask the server what it holds, once at a time."""
        if not job.looking:
            job.looking = True
            job.started = True
            self._orders.appendleft(Order(OrderKind.LOOK, job, job.epoch))

    def _directory_made(self, request: Request, reply: Reply) -> None:
        name = request.words[0]
        if reply.code in (ErrorCode.BUSY, ErrorCode.TIMEOUT):
            self._after(self._wait_seconds(1, reply.retry_seconds), lambda: self._make_again(name))
            return
        self._making.discard(name)
        if reply.kind is not ReplyKind.ERROR:
            self.report.directories_done += 1
        else:
            self._record_failure(name, refusal(reply.code or ErrorCode.INTERNAL, f"cannot make the directory {name}"))

    def _make_again(self, name: str) -> None:
        if name in self._making:
            self._making.discard(name)
            self._directories.append(name)

    # what a channel does ---------------------------------------------------------------------------------------------

    @property
    def order_count(self) -> int:
        """Orders ready for a channel."""
        return len(self._ready) + len(self._orders)

    @property
    def order_bytes(self) -> int:
        """An estimate of the bytes behind them."""
        return self._ready_bytes + len(self._orders) * self._limits.piece

    def take(self, max_files: int, max_bytes: int) -> list[Order]:
        """Work for a channel: several small files (at most so many, of so many bytes in all), or one other order.

        Small files and segments take turns, so that neither waits for the end of the other.
        """
        self._turn = not self._turn
        if self._ready and (self._turn or not self._orders):
            small = self._take_small(max_files, max_bytes)
            if small:
                return small
        while self._orders:
            order = self._orders.popleft()
            if not order.is_stale:
                if order.kind is OrderKind.SEGMENT:
                    order.job.active.add(order.segment)
                elif order.kind is OrderKind.LOOK:
                    order.known = frozenset(order.job.digests)
                return [order]
        return self._take_small(max_files, max_bytes)

    def _take_small(self, max_files: int, max_bytes: int) -> list[Order]:
        orders: list[Order] = []
        while self._ready and len(orders) < max_files and self._ready[0].source.size <= max_bytes:
            job = self._ready.popleft()
            self._ready_bytes -= job.source.size
            max_bytes -= job.source.size
            if not job.is_over:
                orders.append(Order(OrderKind.WHOLE, job, job.epoch))
        return orders

    def received(self, order: Order, length: int) -> None:
        """The server holds ``length`` more bytes of an order."""
        if not order.is_stale:
            order.counted_bytes += length
            self.done_bytes += length
            order.job.troubles = 0

    def read(self, order: Order, digest: bytes) -> None:
        """All of a one-segment file was read: its root is known, though not yet stored."""
        if not order.is_stale:
            order.job.digests[0] = digest

    def committed(self, order: Order) -> None:
        """The file of a WHOLE order, or of the only segment, is durable."""
        if not order.is_stale:
            self._done(order.job)

    def sealed(self, order: Order, digest: bytes) -> None:
        """The server holds a whole segment and verified it."""
        if order.is_stale:
            return
        job: UploadJob = order.job
        job.active.discard(order.segment)
        job.digests[order.segment] = digest
        self._commit_if_complete(job)

    def checked(self, order: Order, matches: bool) -> None:
        """A segment that the server held was compared with the file."""
        if order.is_stale:
            return
        job: UploadJob = order.job
        if order.segment in job.digests:
            return  # checked twice, because the server was asked again meanwhile
        if matches:
            length = job.layout.length(order.segment)
            job.digests[order.segment] = order.digest
            job.kept_bytes += length
            self.done_bytes += length
            self._commit_if_complete(job)
        else:
            self._start_over(job)

    def _start_over(self, job: UploadJob) -> None:
        """What the server holds is of another content: leave that upload and send everything."""
        self.done_bytes -= job.kept_bytes
        own, stale, generation = job.own, job.upload_id, job.generation
        self._abort(stale, generation)
        job.begin(job.source, self._new_id() if own is None else own[0])
        job.resume_tried = True
        if own is None:
            self._again.append(self._ask(job))
        else:
            _, job.ticket, job.generation = own
            self._start(job)

    def held(self, order: Order, records: Sequence[Held]) -> None:
        """What the server holds of an upload."""
        if order.is_stale:
            return
        job: UploadJob = order.job
        job.looking = False
        found: dict[int, Held] = {}
        for record in records:
            if record.segment >= job.layout.count or record.length > job.layout.length(record.segment):
                text = f"cannot send {job.source.name}: the server claims to hold more than there is"
                self._fail(job, ServerProtocolError(text))
                return
            found[record.segment] = record
        checks: list[Order] = []
        sends: list[Order] = []
        for segment in range(job.layout.count):
            held = found.get(segment)
            whole = held is not None and held.length == job.layout.length(segment)
            if segment in job.active:
                continue
            if segment in job.digests:
                if segment not in order.known or (whole and held and held.digest == job.digests[segment]):
                    continue
                del job.digests[segment]  # acknowledged once, but a restarted server no longer has it
            if whole and held:
                checks.append(Order(OrderKind.CHECK, job, job.epoch, segment, digest=held.digest))
            elif held and held.length:
                sends.append(Order(OrderKind.SEGMENT, job, job.epoch, segment, held.length, held.digest))
            else:
                sends.append(Order(OrderKind.SEGMENT, job, job.epoch, segment))
        # What waits of this job was decided before the server was asked.
        self._orders = deque(waiting for waiting in self._orders if waiting.job is not job)
        self._orders.extendleft(reversed(checks + sends))
        self._commit_if_complete(job)

    def _commit_if_complete(self, job: UploadJob) -> None:
        if len(job.digests) == job.layout.count and not job.committing and not job.active:
            job.committing = True
            if job.own is not None and job.own[0] != job.upload_id:
                self._abort(job.own[0], job.own[2])
                job.own = None
            self._commit(job)

    def _commit(self, job: UploadJob) -> None:
        if job.is_over:
            return
        options = {"generation": str(job.generation), "root": self._root(job).hex(), "segments": str(job.layout.count)}
        self._again.append(Request(Verb.COMMIT, (job.upload_id,), options, "commit", job, job.epoch))

    @classmethod
    def _known_root(cls, job: UploadJob) -> str | None:
        """The root of what was sent, once all of it was read."""
        return cls._root(job).hex() if len(job.digests) == job.layout.count else None

    @staticmethod
    def _root(job: UploadJob) -> bytes:
        return root_of(job.source.size, b"".join(job.digests[segment] for segment in range(job.layout.count)))

    # what goes wrong -------------------------------------------------------------------------------------------------

    def refused(self, order: Order, code: ErrorCode) -> None:
        """The server did not take the bytes of an order."""
        if order.is_stale:
            return
        job: UploadJob = order.job
        self._uncount(order)
        job.active.discard(order.segment)
        if code is ErrorCode.DIGEST_MISMATCH:
            job.resends += 1
            if job.resends > MAX_RESENDS:
                text = f"cannot send {job.source.name}: it arrived damaged {job.resends} times; check the network"
                self._fail(job, IntegrityError(text, code.value))
            elif order.kind is OrderKind.WHOLE:
                self._make_ready(job)
            else:
                self._orders.appendleft(Order(OrderKind.SEGMENT, job, job.epoch, order.segment))
            return
        job.looking = job.looking and order.kind is not OrderKind.LOOK
        self._trouble(job, code, None)

    def _trouble(self, job: UploadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        """Something refused a step of a job: try again what may pass, else fail it."""
        job.troubles += 1
        if code not in PASSING or job.troubles > self.policy.troubles:
            self._refuse(job, code)
            return
        epoch = job.epoch
        wait = self._wait_seconds(job.troubles, retry_seconds)
        self._after(wait, lambda: self._try_again(job, epoch, code))

    def _try_again(self, job: UploadJob, epoch: int, code: ErrorCode) -> None:
        if job.is_over or job.epoch != epoch:
            return
        if code in (ErrorCode.TICKET_EXPIRED, ErrorCode.TICKET_INVALID) and job.is_large and job.troubles < MAX_RESENDS:
            word = self._ticket_word(job)
            self._again.append(Request(Verb.RENEW, (word,), {}, "renew", job, job.epoch))
        elif job.is_large and job.started and code not in (ErrorCode.UPLOAD_CLOSED, ErrorCode.UPLOAD_UNKNOWN):
            self._look(job)
        else:
            self._ask_again(job)

    @staticmethod
    def _ticket_word(job: UploadJob) -> str:
        return encode_ticket(job.ticket)

    def _ask_again(self, job: UploadJob) -> None:
        """The same upload id once more: the answer says whether it was published."""
        job.epoch += 1
        job.active.clear()
        job.looking = False
        self._again.append(self._ask(job))

    def _ask_refused(self, job: UploadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        if code is ErrorCode.BUSY and not job.started:
            job.troubles += 1
            if job.troubles > self.policy.troubles and len(self._open) <= 1:
                self._fail(job, self._failure(job, code))
                return
            # The server holds as many open uploads as it wants: ask for fewer at once, and this one later.
            self._close(job)
            self._open_limit = max(1, min(self._open_limit, len(self._open) + 1) // 2)
            (self._fresh_large if job.is_large else self._fresh).appendleft(job)
            if not self._paused:
                self._paused = True
                self._after(self._wait_seconds(job.troubles, retry_seconds), self._go_on)
            return
        if code in (ErrorCode.UPLOAD_CLOSED, ErrorCode.UPLOAD_UNKNOWN) and job.troubles >= MAX_RESENDS:
            self._fail(job, self._failure(job, code))
            return
        self._trouble(job, code, retry_seconds)

    def _go_on(self) -> None:
        self._paused = False

    def _resume_refused(self, job: UploadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        if job.own is not None and code is ErrorCode.UPLOAD_CLOSED and job.troubles < self.policy.troubles:
            # The earlier run's upload is being committed: soon it is there, or open again.
            job.troubles += 1
            request = self._look_for(job)
            self._after(self._wait_seconds(job.troubles, retry_seconds), lambda: self._again.append(request))
        elif job.own is not None:  # the older upload cannot be had: the new one is open already
            job.upload_id, job.ticket, job.generation = job.own
            job.own = None
            self._start(job)
        elif code in (ErrorCode.UPLOAD_UNKNOWN, ErrorCode.UPLOAD_CLOSED):
            self._ask_again(job)  # gone with the old session, or published after all
            job.digests.clear()
        else:
            self._trouble(job, code, retry_seconds)

    def _commit_refused(self, job: UploadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        if code is ErrorCode.INCOMPLETE:
            job.committing = False
            job.troubles += 1
            if job.troubles > self.policy.troubles:
                self._fail(job, self._failure(job, code))
            else:
                self._look(job)
        elif code is ErrorCode.ROOT_MISMATCH:
            self.source_changed_job(job)
        elif code is ErrorCode.UPLOAD_UNKNOWN:
            job.committing = False
            job.digests.clear()
            self._trouble(job, code, retry_seconds)
        elif code in PASSING and job.troubles < self.policy.troubles:
            job.troubles += 1
            self._after(self._wait_seconds(job.troubles, retry_seconds), lambda: self._commit(job))
        else:
            self._refuse(job, code)

    def source_changed(self, order: Order) -> None:
        """The file is not what it was: start it anew, a bounded number of times."""
        if not order.is_stale:
            self._uncount(order)
            self.source_changed_job(order.job)

    def source_changed_job(self, job: UploadJob) -> None:
        """As :meth:`source_changed`."""
        job.changes += 1
        if job.changes >= self.policy.changes:
            text = f"cannot send {job.source.name}: it changed while it was sent, {job.changes} times; try later"
            self._fail(job, SourceError(text, "SourceChanged"))
            return
        self._abort(job.upload_id, job.generation)
        try:
            source = self._find(job.source)
        except TwinportError as error:
            self._fail(job, error)
            return
        self._note(f"{job.source.name} changed while it was sent; starting it anew")
        self._close(job)
        self.known_bytes += source.size - job.source.size
        self.done_bytes -= job.kept_bytes
        job.begin(source, self._new_id())
        (self._fresh_large if job.is_large else self._fresh).appendleft(job)

    def source_failed(self, order: Order, error: TwinportError) -> None:
        """The file cannot be read."""
        if not order.is_stale:
            self._uncount(order)
            self._abort(order.job.upload_id, order.job.generation)
            self._fail(order.job, error)

    def return_orders(self, orders: Sequence[Order]) -> None:
        """These were in the hands of a channel that is lost."""
        for order in orders:
            if order.is_stale:
                continue
            job: UploadJob = order.job
            self._uncount(order)
            if order.kind in (OrderKind.CHECK, OrderKind.COMPARE):
                self._orders.appendleft(order)
            elif not job.is_large and order.kind is not OrderKind.LOOK:
                self._ask_again(job)
            else:
                job.active.discard(order.segment)
                job.looking = job.looking and order.kind is not OrderKind.LOOK
                self._look(job)

    def session_lost(self) -> None:
        """The control link and all channels are gone: everything open is asked for again."""
        self._again.clear()
        self._orders.clear()
        self._ready.clear()
        self._ready_bytes = 0
        self._outstanding = 0
        self._later.clear()
        self._paused = False
        self._directories.extend(self._making)
        self._making.clear()
        for job in self._open:
            job.epoch += 1
            job.active.clear()
            job.looking = False
            job.own = None
            job.resume_tried = job.resume_tried and job.started
            if job.committing:
                self._commit(job)
            elif job.is_large and job.started:
                self._again.append(self._ask(job, resume=job.upload_id))
            else:
                self._again.append(self._ask(job))

    def fail_all(self, error: TwinportError) -> None:
        """Give up everything that is not done."""
        for job in [*self._open, *self._fresh, *self._fresh_large]:
            self._fail(job, error)
        self._fresh.clear()
        self._fresh_large.clear()
        self._directories.clear()
        self._again.clear()
        self._making.clear()
        self._outstanding = 0

    # the end of a job ------------------------------------------------------------------------------------------------

    def _abort(self, upload_id: str, generation: int) -> None:
        self._again.append(Request(Verb.ABORT, (upload_id,), {"generation": str(generation)}, "abort", None))

    def _uncount(self, order: Order) -> None:
        self.done_bytes -= order.counted_bytes
        order.counted_bytes = 0

    def _close(self, job: UploadJob) -> None:
        if job in self._open:
            self._open.remove(job)
            self._open_large -= job.is_large
            self._open_bytes -= 0 if job.is_large else job.source.size

    def _done(self, job: UploadJob) -> None:
        self._close(job)
        job.is_over = True
        job.epoch += 1
        self._open_limit = min(self.policy.open_files, self._open_limit + 1)
        self.report.files_done += 1
        self.report.bytes_moved += job.source.size - job.kept_bytes
        self.report.bytes_kept += job.kept_bytes
        self.events.append(Event(EventKind.DONE, job.source.name, job.source.size))

    def _failure(self, job: UploadJob, code: ErrorCode) -> TwinportError:
        if code is ErrorCode.FENCED:
            text = f"cannot send {job.source.name}: another client took this upload over; let it finish, or send again"
            return ConflictError(f"{text} [{code.value}]", code.value)
        return refusal(code, f"cannot send {job.source.name}")

    def _refuse(self, job: UploadJob, code: ErrorCode) -> None:
        """A final no: free what the server reserved, unless it is another client's by now or its outcome is open."""
        if code not in (ErrorCode.FENCED, ErrorCode.OUTCOME_UNKNOWN) and job.ticket:
            self._abort(job.upload_id, job.generation)
        self._fail(job, self._failure(job, code))

    def _fail(self, job: UploadJob, error: TwinportError) -> None:
        self._close(job)
        job.is_over = True
        job.epoch += 1
        self._record_failure(job.source.name, error)

    def _record_failure(self, name: str, error: TwinportError) -> None:
        self.report.failures.append(Failure(name, error))
        self.events.append(Event(EventKind.FAILED, name, 0, error))

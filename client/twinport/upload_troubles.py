"""What an upload does when something goes wrong."""

from __future__ import annotations

from collections.abc import Sequence

from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Verb
from twinport_protocol.tickets import encode_ticket

from .bundles import TICKET_CODES
from .engine import PASSING, Order, OrderKind, Request
from .errors import IntegrityError, SourceError, TwinportError
from .upload_job import UploadJob
from .upload_steps import UploadSteps

MAX_RESENDS = 3


class UploadTroubles(UploadSteps):
    """Decides for every refusal, change and loss what is tried again, how, and how often."""

    # refusals ---------------------------------------------------------------------------------------------------------

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
        if code in TICKET_CODES and job.is_large and job.troubles < MAX_RESENDS:
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
            (self._fresh_large if job.is_large else self._fresh_small).appendleft(job)
            if not self._paused:
                self._paused = True
                self._after(self._wait_seconds(job.troubles, retry_seconds), self._go_on)
            return
        if code in (ErrorCode.UPLOAD_CLOSED, ErrorCode.UPLOAD_UNKNOWN) and job.troubles >= MAX_RESENDS:
            self._fail(job, self._failure(job, code))
            return
        self._trouble(job, code, retry_seconds)

    def _resume_refused(self, job: UploadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        if job.own is not None and code is ErrorCode.UPLOAD_CLOSED and job.troubles < self.policy.troubles:
            # The earlier run's upload is being committed: soon it is there, or open again.
            job.troubles += 1
            request = self._look_for(job)
            self._after(self._wait_seconds(job.troubles, retry_seconds), lambda: self._again.append(request))
        elif job.own is not None:
            self._start_own(job)
        elif code in (ErrorCode.UPLOAD_UNKNOWN, ErrorCode.UPLOAD_CLOSED):
            self._ask_again(job)  # gone with the old session, or published after all
            job.digests.clear()
        else:
            self._trouble(job, code, retry_seconds)

    def _commit_refused(self, job: UploadJob, code: ErrorCode, retry_seconds: int | None) -> None:
        if code is ErrorCode.INCOMPLETE:
            job.committing = False
            job.troubles += 1
            if job.troubles < MAX_RESENDS:
                self._look(job)
            elif job.changes < self.policy.changes:
                job.changes += 1
                self._start_over(job)  # it claims to hold what it misses: only another upload can mend that
            else:
                self._refuse(job, code)
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

    def _start_over(self, job: UploadJob) -> None:
        """What the server holds cannot be used: leave that upload and send everything."""
        self._forget_progress(job)
        self._abort(job.upload_id, job.generation)
        job.begin(job.source, self._new_id())
        job.resume_tried = True
        self._again.append(self._ask(job))

    # changes ----------------------------------------------------------------------------------------------------------

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
        if job.ticket:  # of what is read for a bundle the server knows nothing yet
            self._abort(job.upload_id, job.generation)
        try:
            source = self._find(job.source)
        except TwinportError as error:
            self._fail(job, error)
            return
        self._note(f"{job.source.name} changed while it was sent; starting it anew")
        self._close(job)
        self.known_bytes += source.size - job.source.size
        self._forget_progress(job)
        job.begin(source, self._new_id())
        (self._fresh_large if job.is_large else self._fresh_small).appendleft(job)

    def source_failed(self, order: Order, error: TwinportError) -> None:
        """The file cannot be read."""
        if not order.is_stale:
            self._uncount(order)
            if order.job.ticket:
                self._abort(order.job.upload_id, order.job.generation)
            self._fail(order.job, error)

    # losses -----------------------------------------------------------------------------------------------------------

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
        self._again.extend(self._aborting.values())
        self._orders.clear()
        self._ready.clear()
        self._ready_bytes = 0
        self._outstanding = 0
        self.bundles.session_lost()
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

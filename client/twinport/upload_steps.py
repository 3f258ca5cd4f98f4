"""The steps of one upload, each of which may be repeated, and its ends."""

from __future__ import annotations

from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Verb
from twinport_protocol.segments import root_of

from .engine import Event, EventKind, Order, OrderKind, Request
from .errors import ConflictError, TwinportError, refusal
from .upload_job import UploadJob
from .upload_queue import UploadQueue


class UploadSteps(UploadQueue):
    """Single steps of a job, and its ends."""

    def _send(self, job: UploadJob) -> None:
        """It is not there: begin, or try once more to go on with what an earlier run began."""
        if job.own is None:
            self._again.append(self._ask(job))
        elif job.resumable:
            self._again.append(self._ask(job, resume=job.resumable))
        else:
            self._start_own(job)

    def _start_own(self, job: UploadJob) -> None:
        """The older upload cannot be had: the new one is open already."""
        if job.own is not None:
            job.upload_id, job.ticket, job.generation = job.own
            job.own = None
        self._start(job)

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

    def _commit_if_complete(self, job: UploadJob) -> None:
        if len(job.digests) == job.layout.count and not job.committing and not job.active:
            job.committing = True
            self._commit(job)

    def _commit(self, job: UploadJob) -> None:
        if job.is_over:
            return
        job.commit_at = self._clock()
        options = {"generation": str(job.generation), "root": self._root(job).hex(), "segments": str(job.layout.count)}
        self._again.append(Request(Verb.COMMIT, (job.upload_id,), options, "commit", job, job.epoch))

    @classmethod
    def _known_root(cls, job: UploadJob) -> str | None:
        """The root of what was sent, once all of it was read."""
        return cls._root(job).hex() if len(job.digests) == job.layout.count else None

    @staticmethod
    def _root(job: UploadJob) -> bytes:
        return root_of(job.source.size, b"".join(job.digests[segment] for segment in range(job.layout.count)))

    # the end of a job -------------------------------------------------------------------------------------------------

    def _abort(self, upload_id: str, generation: int) -> None:
        request = Request(Verb.ABORT, (upload_id,), {"generation": str(generation)}, "abort", None)
        self._aborting[upload_id] = request
        self._again.append(request)

    def _drop_own(self, job: UploadJob) -> None:
        """What an earlier run began is gone on with: the upload opened for this run would only stay for days, empty."""
        if job.own is not None and job.own[0] != job.upload_id:
            self._abort(job.own[0], job.own[2])
        job.own = None

    def _done(self, job: UploadJob) -> None:
        self._close(job)
        job.is_over = True
        job.epoch += 1
        self._open_limit = min(self.policy.open_files, self._open_limit + 1)
        self._report_done(job)
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

    def fail_all(self, error: TwinportError) -> None:
        """Give up everything that is not done."""
        for job in [*self._open, *self._fresh_small, *self._fresh_large]:
            self._fail(job, error)
        self._fresh_small.clear()
        self._fresh_large.clear()
        self._directories.clear()
        self._again.clear()
        self._aborting.clear()
        self._making.clear()
        self._outstanding = 0

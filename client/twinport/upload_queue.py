"""What an upload asks for next, and how much at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twinport_protocol.bundles import RECORD_BYTES, is_recordable
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply, ReplyKind, Verb

from .bundles import BUNDLE_BYTES, Bundles
from .engine import Event, EventKind, Order, OrderKind, Policy, Request
from .engine_base import EngineBase
from .errors import refusal
from .sources import SourceFile
from .upload_job import UploadJob


class UploadQueue(EngineBase):
    """Files and directories waiting to be asked for, within the bounds of the policy and of what the server takes."""

    def __init__(
        self,
        limits: Limits,
        policy: Policy,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        find: Callable[[SourceFile], SourceFile],
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__(policy, clock, Bundles(limits, Verb.UPLOAD))
        self._limits = limits
        self._new_id = new_id
        self._find = find
        self._options = dict(options or {})
        self._small_bytes = min(policy.small_bytes, limits.piece, limits.credit)
        self._fresh_large: deque[UploadJob] = deque()
        self._directories: deque[str] = deque()
        self._making: set[str] = set()
        self._aborting: dict[str, Request] = {}
        """ABORTs without an answer, by upload id: what a lost session leaves of them would stay open for days."""
        self._open: set[UploadJob] = set()
        self._open_large = 0
        self._open_bytes = 0
        self._open_limit = policy.open_files
        self.if_absent = self._options.get("if-absent") == "1"

    @property
    def is_over(self) -> bool:
        """Nothing is left to do."""
        return (
            self.input_closed
            and not self._open
            and not self._fresh_small
            and not self._fresh_large
            and not self._directories
            and not self._making
            and not self._again
            and not self._outstanding
        )

    @property
    def has_room(self) -> bool:
        """Whether more may be added."""
        return len(self._fresh_small) + len(self._fresh_large) + len(self._directories) < self.policy.backlog

    def add(self, source: SourceFile) -> None:
        """One more file to send."""
        self.known_bytes += source.size
        if source.size > self._limits.max_file:
            error = refusal(ErrorCode.TOO_LARGE, f"cannot send {source.name}")
            self._record_failure(source.name, error)
            return
        job = UploadJob(source, self._new_id())
        (self._fresh_large if job.is_large else self._fresh_small).append(job)

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

    # commands ---------------------------------------------------------------------------------------------------------

    @property
    def has_requests(self) -> bool:
        """Whether there may be commands to send."""
        return bool(self._again or self._fresh_small or self._fresh_large or self._directories)

    def next_requests(self, room: int) -> list[Request]:
        """At most ``room`` commands to send now."""
        requests: list[Request] = []
        if (self._fresh_small or not self.input_closed) and (asked := self.bundles.next_request()) is not None:
            requests.append(asked)
        while len(requests) < room:
            if self._again:
                request = self._again.popleft()
                if request.job is None or request.epoch == request.job.epoch:
                    requests.append(request)
                continue
            job = self._next_job()
            if job is not None:
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
        """The next file that is asked for by a command of its own."""
        if self._fresh_large and self._open_large < self.policy.open_large and self._may_open:
            return self._opened(self._fresh_large.popleft())
        if self._fresh_small and not (self.bundles.are_on and self._fits_bundle(self._fresh_small[0])):
            return self._next_small()
        return None

    def _next_small(self) -> UploadJob | None:
        if self._may_open and (
            not self._open_bytes or self._open_bytes + self._fresh_small[0].source.size <= self.policy.open_bytes
        ):
            return self._opened(self._fresh_small.popleft())
        return None

    @property
    def _may_open(self) -> bool:
        return not self._paused and len(self._open) < self._open_limit

    def _opened(self, job: UploadJob) -> UploadJob:
        self._open.add(job)
        self._open_large += job.is_large
        self._open_bytes += 0 if job.is_large else job.source.size
        return job

    # bundles ----------------------------------------------------------------------------------------------------------

    def _fits_bundle(self, job: UploadJob) -> bool:
        # Only what may also be sent whole: that is the way of what a bundle does not get done.
        return (
            job.size <= self._small_bytes
            and _record_bytes(job) <= min(self.bundles.body_bytes, BUNDLE_BYTES)
            and is_recordable(job.source.mtime_ns)
        )

    def take_bundle(self, most_bytes: int) -> list[Order]:
        """Small files that go in one frame with a body of at most ``most_bytes``; none every other time where there is
        something else to do as well."""
        orders: list[Order] = []
        if self.bundles.current is None or self._bundles_rest():
            return orders
        left, most_files = min(most_bytes, BUNDLE_BYTES), self.bundles.size(len(self._fresh_small), self.spread)
        while self._fresh_small and len(orders) < most_files:
            job = self._fresh_small[0]
            left -= _record_bytes(job)
            if left < 0 or not self._fits_bundle(job) or self._next_small() is None:
                break
            orders.append(Order(OrderKind.BUNDLED, job, job.epoch))
        return orders

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

    # bounds -----------------------------------------------------------------------------------------------------------

    def _on_taken(self, order: Order) -> None:
        if order.kind is OrderKind.SEGMENT:
            order.job.active.add(order.segment)
        elif order.kind is OrderKind.LOOK:
            order.known = frozenset(order.job.digests)

    def _close(self, job: UploadJob) -> None:
        if job in self._open:
            self._open.remove(job)
            self._open_large -= job.is_large
            self._open_bytes -= 0 if job.is_large else job.source.size


def _record_bytes(job: UploadJob) -> int:
    """What a file takes of a bundle."""
    return job.size + len(job.source.name.encode()) + RECORD_BYTES

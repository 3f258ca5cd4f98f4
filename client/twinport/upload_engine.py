"""Decides what an upload sends next. Pure: see :mod:`twinport.engine`.

    small          BUNDLE ─OK▶ (a ticket for all) PUT_MANY ▶ COMMITTED each; what is refused, as one segment:
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
from collections.abc import Sequence

from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.frames import AckStatus, Held
from twinport_protocol.messages import Reply, ReplyKind
from twinport_protocol.numbers import parse_size
from twinport_protocol.tickets import decode_ticket

from .bundles import BundlePass
from .engine import Order, OrderKind, Request
from .errors import ServerProtocolError
from .upload_job import UploadJob
from .upload_troubles import UploadTroubles


class UploadEngine(UploadTroubles):
    """Schedules uploads. ``new_id`` gives 32 random hex digits; ``find`` looks at a path again after it changed."""

    # replies ----------------------------------------------------------------------------------------------------------

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """What the server answered."""
        for request, reply in pairs:
            if reply.kind.ends_command:
                self._outstanding -= 1
            job = request.job
            if job is None:
                if request.step == "directory":
                    self._directory_made(request, reply)
                elif request.step == "abort":
                    self._aborting.pop(request.words[0], None)
                elif request.step == "bundle":
                    self.bundles.take_reply(reply)
            elif request.epoch == job.epoch and not job.is_over:
                try:
                    self._on_reply(request.step, job, reply)
                except (ProtocolError, Refusal, KeyError, ValueError) as error:
                    text = f"cannot send {job.source.name}: the server's answer makes no sense ({error})"
                    self._fail(job, ServerProtocolError(text))

    def _on_reply(self, step: str, job: UploadJob, reply: Reply) -> None:
        if step == "commit" and reply.kind.ends_command:
            self.report.timings.committing_seconds += self._clock() - job.commit_at
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
                job.resumable = ""
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
                self._drop_own(job)
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

    # what channels did ------------------------------------------------------------------------------------------------

    def read(self, order: Order, digest: bytes) -> None:
        """All of a one-segment file was read: its root is known, though not yet stored."""
        if not order.is_stale:
            order.job.digests[0] = digest

    def bundle_answered(self, used: BundlePass, outcomes: Sequence[tuple[Order, int, int]]) -> None:
        """The files of a bundle under that pass, their lengths in bytes, and what the server says of each. What is not
        durable is asked for again by itself: under the same id, so that nothing is published twice."""
        for order, length, status in outcomes:
            if order.is_stale:
                continue
            if status == AckStatus.COMMITTED:
                self.received(order, length)
                self._done(order.job)
            else:
                self.bundles.refused(used, ErrorCode.from_number(status))
                self._ask_again(order.job)

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
            self._count(order, length)
            self._commit_if_complete(job)
        else:
            self._start_over(job)

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

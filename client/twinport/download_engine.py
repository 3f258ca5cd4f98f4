"""Decides what a download fetches next. Pure: see :mod:`twinport.engine`.

    listed     BUNDLE ─OK▶ (a ticket for all) GET_MANY ▶ each verified in memory, as small; what is refused, as small:
    small      DOWNLOAD ─OK▶ ready ─GET▶ verified in memory ▶ written ▶ flushed, renamed
    larger     DOWNLOAD ─OK▶ look: MANIFEST, open the partial ▶ check what is claimed, fetch what is missing ▶ flushed,
    renamed

Whatever interrupts it, DOWNLOAD is asked again: the same root goes on where it stood, another root starts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinport_protocol.bundles import FetchedFile
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.messages import Reply, ReplyKind
from twinport_protocol.numbers import parse_signed, parse_size
from twinport_protocol.segments import DIGEST_BYTES, Manifest
from twinport_protocol.tickets import decode_ticket

from .download_job import DownloadJob
from .download_troubles import DownloadTroubles
from .engine import Event, EventKind, Order, OrderKind, Request
from .errors import ServerProtocolError, TwinportError

if TYPE_CHECKING:
    from .partials import Partial


class DownloadEngine(DownloadTroubles):
    """Schedules downloads."""

    # replies ----------------------------------------------------------------------------------------------------------

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """What the server answered."""
        for request, reply in pairs:
            if reply.kind.ends_command:
                self._outstanding -= 1
            if request.step == "bundle":
                self.bundles.take_reply(reply)
                continue
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
        job.mtime_ns = parse_signed(options.get("mtime", "0").encode())
        job.executable = options.get("exec") == "1"
        self._turn_to(job, root, size)
        if size <= self._small_bytes:
            self._ready.append(job)
            self._ready_bytes += size
        elif job.partial is not None:
            self._order_missing(job)
        else:
            self._unopened.append(job)
            self._open_next()

    def _turn_to(self, job: DownloadJob, root: bytes, size: int) -> None:
        """That is what is to be fetched: begin anew if it was something else until now."""
        if root == job.root and size == job.size:
            return
        if job.root and not job.is_listed:
            self._note(f"{job.name} changed on the server while it was fetched; starting anew")
            self._forget_progress(job)
        self.known_bytes += size - job.size
        if job.partial is not None:
            # A channel that does not know it yet may still write: into a file without a name.
            job.partial.discard()
        self._close_partial(job)
        job.root, job.size, job.is_listed = root, size, False
        job.begin()

    def _order_missing(self, job: DownloadJob) -> None:
        """Every segment that is not done, from where the last order for it stood."""
        orders = [job.active[segment].renewed() for segment in range(job.layout.count) if segment not in job.done]
        for order in orders:
            job.active[order.segment] = order
        self._orders.extendleft(reversed(orders))

    # what channels did ------------------------------------------------------------------------------------------------

    def opened(self, order: Order, manifest: Manifest, partial: Partial, claims: Sequence[int]) -> bool:
        """The manifest is verified and the partial open. False when nobody wants it any more: close the partial."""
        if order.is_stale:
            return False
        job: DownloadJob = order.job
        job.manifest = manifest
        job.partial = partial
        for segment, claim in enumerate(claims):
            is_whole = claim > 0 and claim == job.layout.length(segment)
            kind = OrderKind.CHECK if is_whole else OrderKind.SEGMENT
            job.active[segment] = Order(kind, job, job.epoch, segment, 0 if is_whole else claim)
        orders = sorted(job.active.values(), key=lambda order: order.kind is OrderKind.SEGMENT)
        self._orders.extendleft(reversed(orders))  # first what is claimed whole, in order, then what is missing
        return True

    def checked(self, order: Order, matches: bool) -> Partial | None:
        """A segment of the partial was hashed. The partial, to be published, when the file is complete now."""
        if order.is_stale:
            return None
        job: DownloadJob = order.job
        if not matches:
            self._fetch_anew(order)
            return None
        self._count(order, job.layout.length(order.segment))
        return self._segment_done(job, order.segment)

    def fetched(self, order: Order) -> Partial | None:
        """A segment is written and verified. The partial, to be published, when the file is complete now."""
        if order.is_stale:
            return None
        return self._segment_done(order.job, order.segment)

    def _segment_done(self, job: DownloadJob, segment: int) -> Partial | None:
        job.active.pop(segment, None)
        job.done.add(segment)
        if len(job.done) < job.layout.count:
            return None
        partial, job.partial = job.partial, None  # the flusher's from here on
        return partial

    def bundled(self, order: Order, file: FetchedFile) -> bool:
        """A file came in a bundle, perhaps another version than was listed. False when nobody wants it any more."""
        if order.is_stale:
            return False
        job: DownloadJob = order.job
        job.mtime_ns, job.executable = file.mtime_ns, file.executable
        self._turn_to(job, file.digest, len(file.data))
        order.epoch = job.epoch
        return True

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
        self._report_done(job)
        self._open_limit = min(self.policy.open_files, self._open_limit + 1)
        self.events.append(Event(EventKind.DONE, job.name, job.size))

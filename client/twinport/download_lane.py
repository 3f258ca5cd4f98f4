"""One channel of a download, without a socket: asks for bytes ahead of their arrival, verifies, writes.

Segments are hashed while they are written and count only when the digest of the whole segment matched. Of small files
:mod:`small_downloads` has the rest.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from blake3 import blake3
from twinport_protocol.bundles import MAX_NAMES_BYTES
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, ProtocolError, RemoteProtocolError
from twinport_protocol.frames import DETACH_AFTER, LAST, Chunk, FrameType, Message
from twinport_protocol.segments import Manifest

from .copies import hash_prefix, hash_segment, is_target
from .download_engine import DownloadEngine
from .download_job import DownloadJob
from .engine import Order, OrderKind
from .errors import TwinportError
from .flusher import Flusher
from .lane import BATCH_BYTES, BATCH_FILES, Buffer
from .partials import Partial
from .small_downloads import SmallDownloads
from .target_tree import TargetTree, as_failure

# Asked for and not yet here, per channel: what keeps the line full over its delay.
AHEAD_BYTES = 4 * 1024 * 1024
GET_BYTES = 2 * 1024 * 1024
CLAIM_BYTES = 1024 * 1024


class _Fetch:
    """One order in the hands of this lane."""

    __slots__ = ("asked", "at", "body", "claimed", "hasher", "kept", "length", "order")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.length: int = order.job.layout.length(order.segment)
        self.asked = order.offset
        self.at = order.offset
        self.kept = order.offset
        self.claimed = order.offset
        self.hasher = blake3()
        self.body = bytearray()


class DownloadLane(SmallDownloads):
    """Fetches what the engine orders into ``tree``; complete files go to ``flusher``."""

    def __init__(
        self,
        engine: DownloadEngine,
        lock: threading.Lock,
        limits: Limits,
        on_change: Callable[[], None],
        tree: TargetTree,
        flusher: Flusher,
    ) -> None:
        super().__init__(engine, lock, limits, on_change, tree, flusher)
        self._gets: deque[_Fetch] = deque()
        self._looks: dict[int, deque[Order]] = {}
        self._current: _Fetch | None = None

    @property
    def left_bytes(self) -> int:
        """See :class:`Lane`."""
        fetch = self._current
        return self.protocol.unanswered_bytes + (fetch.length - fetch.asked if fetch is not None else 0)

    # sending ---------------------------------------------------------------------------------------------------------

    def fill(self) -> list[Buffer]:
        """What to ask for next; empty when enough is asked for, or there is nothing to do."""
        out: list[Buffer] = []
        if self._attached or self._unanswered:
            self._detach_finished(out)
        ahead = min(AHEAD_BYTES, self._limits.credit)
        sent_bytes = 0
        while sent_bytes < BATCH_BYTES and self.protocol.unanswered_bytes < ahead:
            if self._current is not None:
                if not self._ask_part(self._current, out):
                    break
                continue
            orders = self._take(ahead)
            if not orders:
                break
            if orders[0].kind is OrderKind.BUNDLED:
                sent_bytes += self._get_bundle(orders, out)
                continue
            for order in orders:
                self._begin(order, out)
            sent_bytes += sum(order.job.size for order in orders if order.kind is OrderKind.WHOLE)
        return out

    def _take(self, ahead: int) -> list[Order]:
        frames = self._limits.frames - self.protocol.unanswered_frames
        attachments = self._limits.attachments - self.protocol.attachment_count
        credit = self._limits.credit - self.protocol.unanswered_bytes
        files = min(frames, attachments, BATCH_FILES)
        if self.is_retiring or files < 1 or credit < min(BATCH_BYTES, ahead):
            return []
        with self._lock:
            bundle = self._engine.take_bundle(credit - MAX_NAMES_BYTES) if credit > MAX_NAMES_BYTES else []
            return bundle or self._engine.take(files, min(BATCH_BYTES, credit))

    def _begin(self, order: Order, out: list[Buffer]) -> None:
        job: DownloadJob = order.job
        try:
            if order.kind is OrderKind.CHECK:
                self._check(order)
            elif order.kind is OrderKind.SEGMENT:
                self._current = self._prepare(order)
            elif is_target(self._tree, job, self._buffer):
                with self._lock:
                    self._engine.kept(order)
                self._on_change()
            elif order.kind is OrderKind.WHOLE:
                self._get_whole(order, out)
            elif job.layout.count == 1:
                self._open(order, Manifest(job.size, job.root))
            else:
                number = self._attach(job, job.ticket, out)
                self._unanswered[number] += 1
                self._looks.setdefault(number, deque()).append(order)
                out.append(self.protocol.request(FrameType.MANIFEST, number))
        except (OSError, TwinportError) as error:
            self._target_trouble(order, error)

    def _get_whole(self, order: Order, out: list[Buffer]) -> None:
        job: DownloadJob = order.job
        fetch = _Fetch(order)
        if job.size == 0:
            self._end_whole(fetch.order, b"")
            return
        number, attach = self.protocol.attach(job.ticket)
        self._gets.append(fetch)
        out += (attach, self.protocol.get(number, 0, 0, job.size, DETACH_AFTER))

    def _prepare(self, order: Order) -> _Fetch:
        """Take up a segment where it stands: hash what is there of it."""
        fetch = _Fetch(order)
        at = hash_prefix(order, order.job.partial, fetch.hasher, self._buffer)
        if at:
            with self._lock:
                self._engine.resumed(order, at)
        return fetch

    def _ask_part(self, fetch: _Fetch, out: list[Buffer]) -> bool:
        """Ask for the next part of a segment; False when the credit is used up."""
        order = fetch.order
        job: DownloadJob = order.job
        whole = job.layout.length(order.segment)
        if order.is_stale:
            self._current = None
            return True
        if fetch.asked == whole:  # all of it was there, only unverified
            self._current = None
            if fetch.at == whole:
                self._end_segment(fetch)
            return True
        length = min(GET_BYTES, whole - fetch.asked, self._limits.credit)
        if not self.protocol.has_credit(length) or not (job in self._attached or self.protocol.can_attach):
            return False
        number = self._attach(job, job.ticket, out)
        self._unanswered[number] += 1
        out.append(self.protocol.get(number, order.segment, fetch.asked, length))
        self._gets.append(fetch)
        fetch.asked += length
        if fetch.asked == whole:
            self._current = None
        return True

    def _check(self, order: Order) -> None:
        job: DownloadJob = order.job
        layout = job.layout
        partial, manifest = job.partial, job.manifest
        found = hash_segment(order, partial, layout.start(order.segment), layout.length(order.segment), self._buffer)
        matches = manifest is not None and found == manifest.digest(order.segment)
        with self._lock:
            complete = self._engine.checked(order, matches)
        self._finish(job, complete)
        self._on_change()

    # answers ---------------------------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        header = message.header
        if header.type != FrameType.MANIFEST_IS:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer to nothing")
        order = self._looks[header.attachment].popleft()
        self._answered(header.attachment)
        if header.status:
            with self._lock:
                self._engine.refused(order, ErrorCode.from_number(header.status))
            return
        job: DownloadJob = order.job
        try:
            manifest = Manifest.checked(job.size, message.body, job.root)
        except ProtocolError:
            with self._lock:
                self._engine.lied(order, "the manifest does not add up to the root")
            return
        self._open(order, manifest)

    def _open(self, order: Order, manifest: Manifest) -> None:
        job: DownloadJob = order.job
        try:
            partial = Partial(self._tree, job.target, executable=job.executable)
            try:
                claims = partial.begin(job.size, job.root)
                with self._lock:
                    wanted = self._engine.opened(order, manifest, partial, claims)
            except BaseException:
                if partial.is_fresh:  # nothing in it is worth keeping
                    partial.discard()
                partial.close()
                raise
            if not wanted:
                partial.close()
        except (OSError, TwinportError) as error:
            self._target_trouble(order, error)
        self._on_change()

    def _on_chunk(self, chunk: Chunk) -> bool:
        fetch = self._gets[0]
        header = chunk.header
        self.moved_bytes += len(chunk.data)
        ends = chunk.ends and bool(header.flags & LAST)
        if ends:
            self._gets.popleft()
            self._answered(header.attachment)
        if header.status:
            with self._lock:
                self._engine.refused(fetch.order, ErrorCode.from_number(header.status))
                fetch.order.epoch = -1
            return True
        if fetch.order.kind is OrderKind.WHOLE:
            if ends and not fetch.body:
                self._end_whole(fetch.order, chunk.data)
            else:
                fetch.body += chunk.data
                if ends:
                    self._end_whole(fetch.order, fetch.body)
            return ends
        return self._take_bytes(fetch, chunk.data)

    def _take_bytes(self, fetch: _Fetch, data: memoryview) -> bool:
        order = fetch.order
        job: DownloadJob = order.job
        partial = job.partial
        if order.is_stale or partial is None:
            return False
        try:
            with partial.lock:
                if order.is_stale or partial.descriptor < 0:
                    return False
                partial.write(data, job.layout.start(order.segment) + fetch.at)
                fetch.at += len(data)
                if fetch.at - fetch.claimed >= CLAIM_BYTES or fetch.at == job.layout.length(order.segment):
                    fetch.claimed = fetch.at
                    partial.claim(order.segment, fetch.at)
        except OSError as error:
            self._target_trouble(order, error)
            return True
        fetch.hasher.update(data)
        order.offset = fetch.at
        with self._lock:
            self._engine.received(order, len(data))
        if fetch.at == job.layout.length(order.segment):
            self._end_segment(fetch)
            return True
        return False

    def _end_segment(self, fetch: _Fetch) -> None:
        order = fetch.order
        job: DownloadJob = order.job
        manifest = job.manifest
        complete: Partial | None = None
        with self._lock:
            if order.is_stale or manifest is None:
                return
            if fetch.hasher.digest() == manifest.digest(order.segment):
                complete = self._engine.fetched(order)
            elif fetch.kept:
                self._engine.refuted(order)
            else:
                self._engine.damaged(order)
        self._finish(job, complete)
        self._on_change()

    def _finish(self, job: DownloadJob, partial: Partial | None) -> None:
        if partial is None:
            return
        try:
            partial.seal(job.size, job.mtime_ns, job.executable)
        except OSError as error:
            partial.close()
            with self._lock:
                self._engine.published(job, as_failure(f"cannot write {self._tree.show(job.target)}", error))
            return
        self._flusher.add(job, partial)

    def lost(self) -> None:
        """The channel is gone: hand back everything that was not answered."""
        orders: dict[int, Order] = {id(fetch.order): fetch.order for fetch in self._gets}
        if self._current is not None:
            orders[id(self._current.order)] = self._current.order
        for looks in self._looks.values():
            orders.update({id(order): order for order in looks})
        orders.update({id(order): order for order in self._take_bundled()})
        self._gets.clear()
        self._looks.clear()
        self._current = None
        with self._lock:
            self._engine.return_orders(list(orders.values()))
        self._on_change()

"""The small files of an upload's channel: each is read whole, and many go in one frame."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from twinport_protocol.bundle_credit import BundleAnswer
from twinport_protocol.bundles import uploaded_head
from twinport_protocol.control import Limits
from twinport_protocol.frames import COMMIT, LAST
from twinport_protocol.segments import digest_of

from .bundles import BundlePass
from .engine import Order
from .errors import local_failure
from .lane import Buffer, Lane
from .rate import RateMeter
from .sources import SourceChangedError, SourceFile
from .upload_engine import UploadEngine
from .upload_job import UploadJob


class Sent(NamedTuple):
    """What waits for its acknowledgement: so many bytes of an order, its digest if they end it."""

    order: Order
    length: int
    digest: bytes | None


class SmallUploads(Lane):
    """That half of the lane; the other one adds segments."""

    def __init__(
        self,
        engine: UploadEngine,
        lock: threading.Lock,
        limits: Limits,
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(lock, limits, on_change)
        self._engine = engine
        self._rate = RateMeter(clock)
        self._sent: dict[tuple[int, int], deque[Sent]] = {}
        self._bundles: dict[tuple[int, int], tuple[BundlePass, list[Sent]]] = {}
        self._serial = 0

    def _send_bundle(self, orders: list[Order], out: list[Buffer]) -> None:
        used = self._engine.bundles.current
        if used is None:  # gone since they were taken
            with self._lock:
                self._engine.return_orders(orders)
            return
        body: list[bytes] = []
        sent: list[Sent] = []
        for order in orders:
            source: SourceFile = order.job.source
            try:
                data = source.read_whole()
            except (OSError, SourceChangedError) as error:
                self._source_trouble(order, error)
                continue
            digest = digest_of(data)
            body += (
                uploaded_head(
                    bytes.fromhex(order.job.upload_id),
                    source.name.encode(),
                    source.mtime_ns,
                    len(data),
                    digest,
                    executable=source.executable,
                    if_absent=self._engine.if_absent,
                ),
                data,
            )
            sent.append(Sent(order, len(data), digest))
        if not sent:
            return
        with self._lock:
            for order, _, found in sent:
                self._engine.read(order, found or b"")
        number = self._attach(used, used.ticket, out)
        self._unanswered[number] += 1
        self._serial += 1
        whole = b"".join(body)
        out += (self.protocol.put_many(number, self._serial, len(sent), len(whole)), whole)
        self._bundles[number, self._serial] = used, sent

    def _on_bundle(self, answer: BundleAnswer) -> None:
        number = answer.header.attachment
        used, sent = self._bundles.pop((number, answer.header.segment))
        self._answered(number)
        sent_bytes = sum(length for _, length, _ in sent)
        self._rate.add(sent_bytes)
        self.moved_bytes += sent_bytes
        outcomes = [(order, length, status) for (order, length, _), status in zip(sent, answer.statuses, strict=True)]
        with self._lock:
            self._engine.bundle_answered(used, outcomes)

    def _send_whole(self, order: Order, out: list[Buffer]) -> None:
        job: UploadJob = order.job
        try:
            data = job.source.read_whole()
        except (OSError, SourceChangedError) as error:
            self._source_trouble(order, error)
            return
        digest = digest_of(data)
        with self._lock:
            self._engine.read(order, digest)
        number, attach = self.protocol.attach(job.ticket)
        header = self.protocol.put(number, 0, 0, len(data), LAST | COMMIT)
        self._sent[number, 0] = deque((Sent(order, len(data), digest),))
        out += (attach, header, data, digest)

    def _take_bundled(self) -> list[Order]:
        """What was in bundles and is not answered; it is no more."""
        bundles, self._bundles = self._bundles, {}
        return [sent.order for _, bundle in bundles.values() for sent in bundle]

    def _source_trouble(self, order: Order, error: OSError | SourceChangedError) -> None:
        with self._lock:
            if isinstance(error, SourceChangedError):
                self._engine.source_changed(order)
            else:
                self._engine.source_failed(order, local_failure(f"cannot send {order.job.source.path}", error))
        self._on_change()

"""The small files of a download's channel: many are asked for with one frame, each is verified in memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from twinport_protocol.bundle_credit import BundleAnswer
from twinport_protocol.bundles import encode_names
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.segments import EMPTY_DIGEST, digest_of

from .bundles import BundlePass
from .copies import is_target
from .download_engine import DownloadEngine
from .download_job import DownloadJob
from .engine import Order
from .errors import TwinportError
from .flusher import Flusher
from .lane import Buffer, Lane
from .partials import Partial
from .target_tree import TargetTree, as_failure

_CHECK_BYTES = 1024 * 1024


class SmallDownloads(Lane):
    """That half of the lane; the other one adds segments."""

    def __init__(
        self,
        engine: DownloadEngine,
        lock: threading.Lock,
        limits: Limits,
        on_change: Callable[[], None],
        tree: TargetTree,
        flusher: Flusher,
    ) -> None:
        super().__init__(lock, limits, on_change)
        self._engine = engine
        self._tree = tree
        self._flusher = flusher
        self._bundles: dict[tuple[int, int], tuple[BundlePass, deque[Order]]] = {}
        self._serial = 0
        self._buffer = memoryview(bytearray(_CHECK_BYTES))

    def _get_bundle(self, orders: list[Order], out: list[Buffer]) -> int:
        """Ask for small files with one frame; how many bytes they have."""
        used = self._engine.bundles.current
        if used is None:  # gone since they were taken
            with self._lock:
                self._engine.return_orders(orders)
            return 0
        wanted = [order for order in orders if not self._is_here(order)]
        if not wanted:
            return 0
        size: int = sum(order.job.size for order in wanted)
        number = self._attach(used, used.ticket, out)
        self._unanswered[number] += 1
        self._serial += 1
        names = encode_names(order.job.name.encode() for order in wanted)
        out.append(self.protocol.get_many(number, self._serial, len(wanted), names, size))
        self._bundles[number, self._serial] = used, deque(wanted)
        return size

    def _is_here(self, order: Order) -> bool:
        """Whether the target is the file already, or cannot be looked at: then there is nothing to fetch."""
        try:
            if not is_target(self._tree, order.job, self._buffer):
                return False
            with self._lock:
                self._engine.kept(order)
            self._on_change()
        except (OSError, TwinportError) as error:
            self._target_trouble(order, error)
        return True

    def _on_bundle(self, answer: BundleAnswer) -> None:
        key = answer.header.attachment, answer.header.segment
        used, waiting = self._bundles[key]
        for file in answer.files:
            order = waiting.popleft()
            self.moved_bytes += len(file.data)
            if file.status:
                with self._lock:
                    self._engine.not_bundled(used, order, ErrorCode.from_number(file.status))
                continue
            with self._lock:
                if not self._engine.bundled(order, file):
                    continue
            self._end_whole(order, file.data)
        if answer.ends:
            del self._bundles[key]
            self._answered(answer.header.attachment)

    def _end_whole(self, order: Order, data: bytes | bytearray | memoryview) -> None:
        """A small file is here: verify it in memory, then write it."""
        job: DownloadJob = order.job
        digest = digest_of(data) if data else EMPTY_DIGEST
        with self._lock:
            if digest != job.root or len(data) != job.size:
                self._engine.damaged(order)
                return
            self._engine.received(order, len(data))
            if not self._engine.verified(order):
                return
        try:
            partial = Partial(self._tree, job.target, executable=job.executable)
            try:
                partial.write_whole(data)
                partial.seal(job.size, job.mtime_ns, job.executable)
            except BaseException:
                partial.discard()
                partial.close()
                raise
        except (OSError, TwinportError) as error:
            self._target_trouble(order, error)
            return
        self._flusher.add(job, partial)

    def _take_bundled(self) -> list[Order]:
        """What was asked for in bundles and is not here; it is asked for no more."""
        bundles, self._bundles = self._bundles, {}
        return [order for _, waiting in bundles.values() for order in waiting]

    def _target_trouble(self, order: Order, error: OSError | TwinportError) -> None:
        with self._lock:
            self._engine.target_failed(order, as_failure(f"cannot write {self._tree.show(order.job.target)}", error))
        self._on_change()

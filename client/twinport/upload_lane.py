"""One channel of an upload, without a socket: segments piece by piece, small files as :mod:`small_uploads` has it.

Reading, hashing and sending are one pass over one buffer. A piece is read whole before its header is built, so a file
that became shorter hardly ever leaves a frame half filled. Where the line takes files, only what is hashed passes
through the buffer, in parts that stay in a core's cache; should the file change before it is sent, the digest no longer
fits and the server takes nothing of it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from blake3 import blake3
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.frames import COMMIT, LAST, AckStatus, FrameType, Message, decode_held

from .engine import Order, OrderKind
from .lane import BATCH_BYTES, BATCH_FILES, Buffer, is_live
from .small_uploads import Sent, SmallUploads
from .sources import SourceChangedError, digest_range, hash_file, read_into
from .streams import FileRange
from .upload_engine import UploadEngine
from .upload_job import UploadJob

# A piece is what a lost line loses: small where bytes are slow. Rates in bytes per second.
FIRST_PIECE_BYTES = 256 * 1024
HASH_BYTES = 256 * 1024
SLOW_PIECES = ((256 * 1024, 32 * 1024), (1024 * 1024, 64 * 1024), (8 * 1024 * 1024, 256 * 1024))


class UploadLane(SmallUploads):
    """Sends what the engine orders. ``clock`` measures the rate that chooses the size of pieces."""

    def __init__(
        self,
        engine: UploadEngine,
        lock: threading.Lock,
        limits: Limits,
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(engine, lock, limits, on_change, clock)
        self._buffer = memoryview(bytearray(min(limits.piece, 1024 * 1024)))
        self._looks: dict[int, deque[Order]] = {}
        self._unanswered_bytes = 0
        self._unsent_bytes = 0
        self._current: Order | None = None
        self._descriptor = -1
        self._sent_descriptor = -1
        self._hasher = blake3()
        self._at = 0

    @property
    def left_bytes(self) -> int:
        """See :class:`Lane`. Files of one segment do not count: their last answer waits for the server's disk."""
        return self._unanswered_bytes + self._unsent_bytes

    # sending ---------------------------------------------------------------------------------------------------------

    def fill(self) -> list[Buffer]:
        """What to send next; empty when there is nothing to do, or no credit."""
        out: list[Buffer] = []
        self._close_sent()
        if self._attached or self._unanswered:
            self._detach_finished(out)
        # An order may turn out to need nothing on the wire; then take the next one.
        while not out:
            if self._current is not None:
                out = self._next_piece()
                if self._current is not None:
                    break
                continue
            orders = self._take()
            if not orders:
                break
            if orders[0].kind is OrderKind.BUNDLED:
                self._send_bundle(orders, out)
            elif orders[0].kind is OrderKind.WHOLE:
                for order in orders:
                    self._send_whole(order, out)
            else:
                self._begin(orders[0], out)
        return out

    def _take(self) -> list[Order]:
        frames = self._limits.frames - self.protocol.unanswered_frames
        attachments = self._limits.attachments - self.protocol.attachment_count
        credit = self._limits.credit - self.protocol.unanswered_bytes
        files = min(frames, attachments, BATCH_FILES)
        if self.is_retiring or files < 1 or credit < min(BATCH_BYTES, self._limits.credit):
            return []
        with self._lock:
            bundle = self._engine.take_bundle(min(credit, self._limits.bundle))
            return bundle or self._engine.take(files, min(BATCH_BYTES, credit))

    def _begin(self, order: Order, out: list[Buffer]) -> None:
        job: UploadJob = order.job
        if order.kind is OrderKind.LOOK:
            number = self._attach(job, job.ticket, out)
            self._unanswered[number] += 1
            self._looks.setdefault(number, deque()).append(order)
            out.append(self.protocol.request(FrameType.HAVE, number))
            return
        start = job.layout.start(order.segment)
        try:
            if order.kind is OrderKind.COMPARE:
                matches = hash_file(job.source.path).root == order.digest
                with self._lock:
                    self._engine.compared(order, matches)
                self._on_change()
                return
            descriptor = job.source.open()
            try:
                if order.kind is OrderKind.CHECK:
                    length = job.layout.length(order.segment)
                    matches = digest_range(descriptor, start, length, self._buffer) == order.digest
                    with self._lock:
                        self._engine.checked(order, matches)
                    self._on_change()
                    return
                self._hasher = blake3()
                self._at = self._hash_prefix(descriptor, start, order)
                self._current, self._descriptor, descriptor = order, descriptor, -1
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        except (OSError, SourceChangedError) as error:
            self._source_trouble(order, error)

    def _hash_prefix(self, descriptor: int, start: int, order: Order) -> int:
        """Hash what the server holds of a segment; where to go on: at the beginning if its bytes are not the file's."""
        at = 0
        while at < order.offset:
            piece = self._buffer[: min(len(self._buffer), order.offset - at)]
            read_into(descriptor, piece, start + at)
            self._hasher.update(piece)
            at += len(piece)
        if at and self._hasher.digest() != order.digest:
            self._hasher = blake3()
            return 0
        if at:
            with self._lock:
                if is_live(order):
                    self._engine.resumed(order, at)
        return at

    def _next_piece(self) -> list[Buffer]:
        order = self._current
        if order is None or order.is_stale:
            self._put_down()
            return []
        job: UploadJob = order.job
        whole = job.layout.length(order.segment)
        length = min(self._piece_bytes(), len(self._buffer), self._limits.credit, whole - self._at)
        if not self.protocol.has_credit(length):
            return []
        out: list[Buffer] = []
        ends = self._at + length == whole
        start = job.layout.start(order.segment) + self._at
        part_bytes = HASH_BYTES if self.sends_files else length
        try:
            for at in range(0, length, part_bytes):
                part = self._buffer[: min(part_bytes, length - at)]
                read_into(self._descriptor, part, start + at)
                self._hasher.update(part)
            if ends:
                job.source.check(self._descriptor)
        except (OSError, SourceChangedError) as error:
            self._put_down()
            self._source_trouble(order, error)
            return []
        piece = FileRange(self._descriptor, start, length) if self.sends_files else self._buffer[:length]
        number = self._attach(job, job.ticket, out)
        flags = 0 if not ends else LAST if job.is_large else LAST | COMMIT
        out += (self.protocol.put(number, order.segment, self._at, length, flags), piece)
        digest = self._hasher.digest() if ends else None
        if digest is not None:
            out.append(digest)
            if not job.is_large:
                with self._lock:
                    self._engine.read(order, digest)
        self._sent.setdefault((number, order.segment), deque()).append(Sent(order, length, digest))
        self._unanswered[number] += 1
        self._at += length
        if job.is_large:
            self._unanswered_bytes += length
            self._unsent_bytes = whole - self._at
        if ends:  # open for one more moment: the piece may be sent from it
            self._sent_descriptor, self._descriptor, self._current = self._descriptor, -1, None
        return out

    def _piece_bytes(self) -> int:
        rate = self._rate.bytes_per_second
        if rate is None:
            return FIRST_PIECE_BYTES
        for below, piece_bytes in SLOW_PIECES:
            if rate < below:
                return piece_bytes
        return len(self._buffer)

    def _put_down(self) -> None:
        self._close_sent()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
        self._current = None
        self._unsent_bytes = 0

    def _close_sent(self) -> None:
        if self._sent_descriptor >= 0:
            os.close(self._sent_descriptor)
        self._sent_descriptor = -1

    # answers ---------------------------------------------------------------------------------------------------------

    def _on_message(self, message: Message) -> None:
        header = message.header
        if header.type == FrameType.ACK:
            waiting = self._sent[header.attachment, header.segment]
            sent = waiting.popleft()
            if not waiting:
                del self._sent[header.attachment, header.segment]
            self._answered(header.attachment)
            self._on_ack(sent, header.status, header.attachment)
        elif header.type == FrameType.HAVE_IS:
            order = self._looks[header.attachment].popleft()
            self._answered(header.attachment)
            with self._lock:
                if header.status:
                    self._engine.refused(order, ErrorCode.from_number(header.status))
                else:
                    self._engine.held(order, decode_held(message.body))
        else:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer to nothing")

    def _on_ack(self, sent: Sent, status: int, attachment: int) -> None:
        order, length, digest = sent
        self._rate.add(length)
        self.moved_bytes += length
        if order.kind is OrderKind.SEGMENT and order.job.is_large:
            self._unanswered_bytes -= length
        with self._lock:
            if status == AckStatus.COMMITTED and digest is not None:
                self._engine.received(order, length)
                self._engine.committed(order)
                self._attached.pop(order.job, None)
                self._unanswered.pop(attachment, None)
            elif status in (AckStatus.SEALED, AckStatus.DUPLICATE) and digest is not None and order.job.is_large:
                self._engine.received(order, length)
                self._engine.sealed(order, digest)
            elif status in (AckStatus.RECEIVED, AckStatus.DUPLICATE) and digest is None:
                self._engine.received(order, length)
            elif not order.is_stale:
                code = ErrorCode.from_number(status) if status >= ErrorCode.BAD_REQUEST.number else ErrorCode.BAD_STATE
                self._engine.refused(order, code)
                order.epoch = -1  # its other pieces are refused too; once is enough
        if order.kind is OrderKind.WHOLE and status != AckStatus.COMMITTED:
            self._unanswered[attachment] = 0  # so that the next fill ends the attachment

    def lost(self) -> None:
        """The channel is gone: hand back everything that was not answered."""
        orders: dict[int, Order] = {}
        for waiting in self._sent.values():
            orders.update({id(sent.order): sent.order for sent in waiting})
        for looks in self._looks.values():
            orders.update({id(order): order for order in looks})
        orders.update({id(order): order for order in self._take_bundled()})
        if self._current is not None:
            orders[id(self._current)] = self._current
        self._put_down()
        self._sent.clear()
        self._looks.clear()
        with self._lock:
            self._engine.return_orders(list(orders.values()))
        self._on_change()

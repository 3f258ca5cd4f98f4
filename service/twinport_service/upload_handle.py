"""What a channel that is attached to an upload may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import AckStatus, Held
from twinport_protocol.segments import Layout, digest_of

from .open_upload import STAGING_IS_GONE, OpenUpload, Segment
from .storage.contract import SMALL_BYTES, Buffer, OnDone, UploadSpec

if TYPE_CHECKING:
    from .uploads import UploadDesk


class UploadHandle:
    """One attachment of a channel to an upload, in one generation. Used by the channel's thread."""

    def __init__(self, desk: UploadDesk, upload: OpenUpload, generation: int) -> None:
        self._desk = desk
        self._upload = upload
        self._generation = generation

    @property
    def spec(self) -> UploadSpec:
        """What is being uploaded."""
        return self._upload.spec

    @property
    def layout(self) -> Layout:
        """How it is cut."""
        return self._upload.layout

    def takes_whole(self, length: int) -> bool:
        """Whether one piece of that length may be committed by :meth:`commit_whole`."""
        return length == self._upload.spec.size and length <= SMALL_BYTES

    def begin_piece(self, segment: int, offset: int, length: int, *, last: bool) -> bool:
        """A piece is about to come. True when its bytes are wanted, False when they are to be dropped (sealed already).

        Offset 0 starts the segment anew and takes it over from whoever wrote it; another offset goes on exactly where
        the held bytes end. ``BadRequest``, ``BadState``, ``Fenced``, ``UploadClosed``, ``UploadUnknown``; of the first
        piece of an upload that has no room yet also ``QuotaExceeded``, ``DiskFull``, ``Busy``.
        """
        upload = self._upload
        if segment >= upload.layout.count:
            raise Refusal(ErrorCode.BAD_REQUEST, "no such segment")
        end = offset + length
        whole = upload.layout.length(segment)
        if end > whole or (end == whole) != last:
            raise Refusal(ErrorCode.BAD_REQUEST, "a piece beyond its segment, or a last piece that is not")
        self._desk.ledger.check(upload.spec.upload_id, self._generation)
        state = self._segment(segment)
        with state.lock:
            if state.sealed:
                return False
            self._require_open()
            if not upload.claimed:
                self._desk.claim(upload, self._generation)
            if offset == 0:
                state.restart(self)
            elif offset != state.received:
                raise Refusal(ErrorCode.BAD_STATE, f"offset {offset}, held {state.received}")
            state.owner = self
        return True

    def write(self, segment: int, offset: int, data: Buffer) -> None:
        """Store the next bytes of a piece that was begun; ``BadState`` when the segment was taken over meanwhile."""
        state = self._segment(segment)
        with state.lock:
            self._require_open()
            self._require_owner(state)
            if offset != state.received:
                raise Refusal(ErrorCode.BAD_STATE, f"offset {offset}, held {state.received}")
            try:
                self._desk.storage.put_piece(self.spec.upload_id, state.writer, segment, offset, data)
            except Refusal as refusal:
                if refusal.code not in STAGING_IS_GONE:
                    raise
                lost = refusal
            else:
                state.hasher.update(data)
                state.received += len(data)
                return
        self._desk.table.drop(self._upload)
        raise lost

    def end_piece(self, segment: int, digest: bytes | None) -> AckStatus:
        """The piece is complete: ``RECEIVED``, or with the segment's digest ``SEALED``. ``DigestMismatch`` drops the
        segment's bytes; ``Fenced``, ``UploadClosed``, ``UploadUnknown``, ``BadState``."""
        state = self._segment(segment)
        upload_id = self.spec.upload_id
        with state.lock:
            self._require_owner(state)
            if digest is None:
                return AckStatus.RECEIVED
            if state.hasher.digest() != digest:
                state.restart(None)
                raise Refusal(ErrorCode.DIGEST_MISMATCH)
            self._desk.ledger.check(upload_id, self._generation)
            self._desk.storage.seal_segment(upload_id, state.writer, segment, digest)
            fresh = self._desk.ledger.seal(upload_id, self._generation, segment, digest)
            state.sealed = True
            state.owner = None
        return AckStatus.SEALED if fresh else AckStatus.DUPLICATE

    def commit_whole(self, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """A small file whose bytes are all in hand: verify, fence and publish. Refusals as ``end_piece``."""
        if digest_of(data) != digest:
            raise Refusal(ErrorCode.DIGEST_MISMATCH)
        self._desk.committer.commit_whole(self._upload, self._generation, data, digest, on_done)

    def commit(self, digest: bytes, on_done: OnDone) -> None:
        """Publish a one-segment upload whose only segment was sealed by this channel."""
        self._desk.committer.commit(
            self._upload.spec.user, self._upload.spec.upload_id, self._generation, digest, on_done
        )

    def have(self) -> list[Held]:
        """What need not be sent again."""
        self._desk.ledger.check(self._upload.spec.upload_id, self._generation)
        return self._desk.have(self._upload)

    def detach(self) -> None:
        """The attachment is over."""
        self._desk.detach(self._upload)

    def _segment(self, segment: int) -> Segment:
        upload = self._upload
        state = upload.segments.get(segment)
        if state is None:
            # Sealed before a restart or on another node: immutable here too.
            sealed = segment in self._desk.ledger.sealed(upload.spec.upload_id)
            with upload.lock:
                state = upload.segments.setdefault(segment, Segment(sealed))
        return state

    def _require_open(self) -> None:
        if self._upload.closed:
            raise Refusal(ErrorCode.UPLOAD_CLOSED)
        if self._generation < self._upload.generation:
            raise Refusal(ErrorCode.FENCED)

    def _require_owner(self, state: Segment) -> None:
        if state.owner is not self or state.sealed:
            self._desk.ledger.check(self.spec.upload_id, self._generation)  # says so if it is the upload that is lost
            raise Refusal(ErrorCode.BAD_STATE, "the segment was taken over")

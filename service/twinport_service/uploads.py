"""The upload desk: where control commands and channels of one node meet over an upload.

It decides what the storage does not: who holds the lease, which channel writes a segment, whether bytes match their
digest, when a commit may begin. What nodes must agree on lives in the ledger, the bytes in the storage; what is here
may be lost at any moment (hash states, claims) and costs at most the unsealed part of a segment.

Locks: an upload's ``lock`` guards its tables and is held for moments; a segment's ``lock`` is held while its bytes are
hashed and stored, so that whoever takes the segment over, and a commit, waits for the write that is under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import AckStatus, Held
from twinport_protocol.segments import Layout, Manifest, digest_of
from twinport_protocol.upload import UploadState

from .ledger import Ledger, UploadRecord
from .storage.contract import SMALL_BYTES, Buffer, OnDone, OnProgress, Published, Storage, UploadSpec

_REHASH_BYTES = 1024 * 1024


@dataclass
class _Segment:
    """A segment that is being written on this node."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    owner: object = None
    received: int = 0
    hasher: blake3 = field(default_factory=blake3)
    sealed: bool = False

    def restart(self, owner: object) -> None:
        self.owner = owner
        self.received = 0
        self.hasher = blake3()


class OpenUpload:
    """An upload as this node knows it."""

    def __init__(self, spec: UploadSpec, *, trusted: bool) -> None:
        self.spec = spec
        self.layout = Layout.of(spec.size)
        self.lock = threading.Lock()
        self.segments: dict[int, _Segment] = {}
        self.closed = False
        self.attached = 0
        self.waiting: list[OnDone] = []
        # False after a restart: sealed segments count only once their bytes were hashed again.
        self.trusted = trusted


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
        the held bytes end. ``BadRequest``, ``BadState``, ``Fenced``, ``UploadClosed``, ``UploadUnknown``.
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
            if offset == 0:
                state.restart(self)
            elif offset != state.received:
                raise Refusal(ErrorCode.BAD_STATE, f"offset {offset}, held {state.received}")
            state.owner = self
        return True

    def write(self, segment: int, offset: int, data: Buffer) -> None:
        """Store the next bytes of a piece that was begun; ``BadState`` when the segment was taken over meanwhile."""
        state = self._segment(segment)
        upload = self._upload
        with state.lock:
            if upload.closed:
                raise Refusal(ErrorCode.UPLOAD_CLOSED)
            if state.owner is not self or state.sealed or offset != state.received:
                raise Refusal(ErrorCode.BAD_STATE, "the segment was taken over")
            state.hasher.update(data)
            self._desk.storage.put_piece(upload.spec.upload_id, id(self), segment, offset, data)
            state.received += len(data)

    def end_piece(self, segment: int, digest: bytes | None) -> AckStatus:
        """The piece is complete: ``RECEIVED``, or with the segment's digest ``SEALED``. ``DigestMismatch`` drops the
        segment's bytes; ``Fenced``, ``UploadClosed``, ``UploadUnknown``, ``BadState``."""
        state = self._segment(segment)
        upload = self._upload
        with state.lock:
            if state.owner is not self or state.sealed:
                raise Refusal(ErrorCode.BAD_STATE, "the segment was taken over")
            if digest is None:
                return AckStatus.RECEIVED
            if state.hasher.digest() != digest:
                state.restart(None)
                raise Refusal(ErrorCode.DIGEST_MISMATCH)
            self._desk.storage.seal_segment(upload.spec.upload_id, id(self), segment, digest)
            fresh = self._desk.ledger.seal(upload.spec.upload_id, self._generation, segment, digest)
            state.sealed = True
            state.owner = None
        return AckStatus.SEALED if fresh else AckStatus.DUPLICATE

    def commit_whole(self, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """A small file whose bytes are all in hand: verify, fence and publish. Refusals as ``end_piece``."""
        if digest_of(data) != digest:
            raise Refusal(ErrorCode.DIGEST_MISMATCH)
        self._desk.commit_whole(self._upload, self._generation, data, digest, on_done)

    def commit(self, digest: bytes, on_done: OnDone) -> None:
        """Publish a one-segment upload whose only segment was sealed by this channel."""
        self._desk.commit(self._upload.spec.user, self._upload.spec.upload_id, self._generation, digest, on_done)

    def have(self) -> list[Held]:
        """What need not be sent again."""
        self._desk.ledger.check(self._upload.spec.upload_id, self._generation)
        return self._desk.have(self._upload)

    def detach(self) -> None:
        """The attachment is over."""
        self._desk.detach(self._upload)

    def _segment(self, segment: int) -> _Segment:
        state = self._upload.segments.get(segment)
        if state is None:
            with self._upload.lock:
                state = self._upload.segments.setdefault(segment, _Segment())
        return state


class UploadDesk:
    """All uploads of this node. Methods may block on the storage and are called from worker threads, but for
    :meth:`open_small`, which touches memory alone."""

    def __init__(self, storage: Storage, ledger: Ledger, *, max_file_bytes: int = 2**63 - 1) -> None:
        self.storage = storage
        self.ledger = ledger
        self.max_file_bytes = max_file_bytes
        self._uploads: dict[bytes, OpenUpload] = {}
        self._lock = threading.Lock()

    def recover(self) -> None:
        """After a start: agree with the storage on which uploads are still there."""
        records = {record.spec.upload_id: record for record in self.ledger.open_uploads()}
        kept = set(self.storage.start(records.keys()))
        for upload_id, record in records.items():
            if upload_id not in kept:
                self.ledger.finish(upload_id)
                continue
            if record.state is UploadState.COMMITTING:
                self.ledger.reopen(upload_id)
            self._uploads[upload_id] = OpenUpload(record.spec, trusted=False)

    # opening ---------------------------------------------------------------------------------------------------------

    def open_small(self, spec: UploadSpec) -> UploadRecord:
        """Open an upload that needs nothing of the storage before its bytes are there (at most ``SMALL_BYTES``)."""
        self._check_size(spec)
        return self.ledger.begin(spec)

    def open(self, spec: UploadSpec) -> UploadRecord | Published:
        """Open an upload and reserve its room; what it published, when that id is finished already."""
        self._check_size(spec)
        done = self.storage.finished(spec.upload_id)
        if done is not None:
            return done
        record = self.ledger.begin(spec)
        try:
            self.storage.begin(spec)
        except Refusal:
            self.ledger.finish(spec.upload_id)
            raise
        return record

    def resume(self, user: str, upload_id: bytes) -> UploadRecord | Published:
        """Take an upload over in a new generation. ``UploadUnknown``, ``UploadClosed``, ``Denied``."""
        done = self.storage.finished(upload_id)
        return done if done is not None else self.ledger.lease(upload_id, user)

    def _check_size(self, spec: UploadSpec) -> None:
        if spec.size > self.max_file_bytes:
            raise Refusal(ErrorCode.TOO_LARGE)

    # channels --------------------------------------------------------------------------------------------------------

    def attach(self, upload_id: bytes, generation: int, user: str) -> UploadHandle:
        """A channel joins. The ledger knows uploads of other nodes too. ``UploadUnknown``, ``Fenced``,
        ``UploadClosed``."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is None:
                record = self.ledger.load(upload_id)
                if record is None or record.spec.user != user:
                    raise Refusal(ErrorCode.UPLOAD_UNKNOWN)
                upload = self._uploads[upload_id] = OpenUpload(record.spec, trusted=True)
            upload.attached += 1
        try:
            self.ledger.check(upload_id, generation)
        except Refusal:
            self.detach(upload)
            raise
        return UploadHandle(self, upload, generation)

    def detach(self, upload: OpenUpload) -> None:
        """A channel left. An upload that the ledger has forgotten is forgotten here too."""
        with self._lock:
            upload.attached -= 1
            if upload.attached <= 0 and self.ledger.load(upload.spec.upload_id) is None:
                self._uploads.pop(upload.spec.upload_id, None)

    def have(self, upload: OpenUpload) -> list[Held]:
        """Sealed segments, hashed again first if a restart lies between, and the prefixes of unfinished ones."""
        upload_id = upload.spec.upload_id
        sealed = self.ledger.sealed(upload_id)
        if not upload.trusted:
            lost = [segment for segment, digest in sealed.items() if self._rehash(upload, segment) != digest]
            self.ledger.unseal(upload_id, lost)
            sealed = {segment: digest for segment, digest in sealed.items() if segment not in lost}
            upload.trusted = True
        held = [Held(segment, upload.layout.length(segment), digest) for segment, digest in sorted(sealed.items())]
        with upload.lock:
            unfinished = [(number, state) for number, state in upload.segments.items() if number not in sealed]
        for number, state in unfinished:
            with state.lock:
                if state.received and not state.sealed:
                    held.append(Held(number, state.received, state.hasher.digest()))
        return held

    def _rehash(self, upload: OpenUpload, segment: int) -> bytes:
        hasher = blake3()
        buffer = memoryview(bytearray(_REHASH_BYTES))
        length = upload.layout.length(segment)
        offset = 0
        while offset < length:
            part = buffer[: min(len(buffer), length - offset)]
            count = self.storage.read_staged(upload.spec.upload_id, segment, offset, part)
            if not count:
                break
            hasher.update(part[:count])
            offset += count
        return hasher.digest()

    # ending ----------------------------------------------------------------------------------------------------------

    def commit(
        self,
        user: str,
        upload_id: bytes,
        generation: int,
        root: bytes,
        on_done: OnDone,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Fence, verify, publish. Returns when the publication is under way; ``on_done`` tells its outcome.

        Repeatable: while one is under way its outcome is shared, and a finished upload answers what it published.
        Refusals: ``Incomplete`` and ``RootMismatch`` (open again), ``Fenced``, ``UploadClosed``, ``UploadUnknown``,
        ``Busy``.
        """
        record = self.ledger.load(upload_id)
        if record is None or record.spec.user != user:
            done = self.storage.finished(upload_id)
            if done is None:
                raise Refusal(ErrorCode.UPLOAD_UNKNOWN)
            on_done(done)
            return
        upload = self._known(record)
        if record.state is UploadState.COMMITTING:
            with upload.lock:
                if not upload.waiting:  # under way on another node
                    raise Refusal(ErrorCode.BUSY, "commit under way", retry_seconds=1)
                upload.waiting.append(on_done)
            return
        with upload.lock:
            self.ledger.fence(upload_id, generation)
            upload.closed = True
            upload.waiting.append(on_done)
        try:
            manifest = self._sealed_manifest(upload, root)
        except Refusal:
            self._reopen(upload)
            with upload.lock:
                upload.waiting.remove(on_done)
            raise
        self.storage.commit(upload.spec, manifest, lambda outcome: self._settle(upload, outcome), on_progress)

    def commit_whole(
        self, upload: OpenUpload, generation: int, data: bytes, digest: bytes, on_done: OnDone
    ) -> None:
        """As :meth:`commit`, of a small file that never was staged."""
        upload_id = upload.spec.upload_id
        self.ledger.fence(upload_id, generation)

        def settle(outcome: Published | Refusal) -> None:
            # Whatever the outcome, nothing of it is kept: the client holds all the bytes and sends them again.
            self.ledger.finish(upload_id)
            self._uploads.pop(upload_id, None)
            on_done(outcome)

        self.storage.commit_small(upload.spec, data, digest, settle)

    def _known(self, record: UploadRecord) -> OpenUpload:
        with self._lock:
            return self._uploads.setdefault(record.spec.upload_id, OpenUpload(record.spec, trusted=True))

    def _sealed_manifest(self, upload: OpenUpload, root: bytes) -> Manifest:
        for state in list(upload.segments.values()):
            with state.lock:  # a write that is under way ends before its bytes can become the file
                pass
        if not upload.trusted:
            self.have(upload)
        sealed = self.ledger.sealed(upload.spec.upload_id)
        if len(sealed) < upload.layout.count:
            raise Refusal(ErrorCode.INCOMPLETE, f"{len(sealed)} of {upload.layout.count} segments")
        manifest = Manifest(upload.spec.size, b"".join(sealed[number] for number in range(upload.layout.count)))
        if manifest.root != root:
            raise Refusal(ErrorCode.ROOT_MISMATCH)
        return manifest

    def _reopen(self, upload: OpenUpload) -> None:
        self.ledger.reopen(upload.spec.upload_id)
        upload.closed = False

    def _settle(self, upload: OpenUpload, outcome: Published | Refusal) -> None:
        if isinstance(outcome, Published):
            self.ledger.finish(upload.spec.upload_id)
            self._uploads.pop(upload.spec.upload_id, None)
        else:
            self._reopen(upload)
        with upload.lock:
            waiting, upload.waiting = upload.waiting, []
        for on_done in waiting:
            on_done(outcome)

    def abort(self, user: str, upload_id: bytes, generation: int | None = None) -> None:
        """Forget an upload; writes under way end, later ones get ``UploadClosed`` or ``UploadUnknown``. Harmless when
        unknown.

        ``UploadClosed`` while it is being committed, ``Fenced`` for an older generation."""
        record = self.ledger.load(upload_id)
        if record is None or record.spec.user != user:
            return
        if generation is not None:
            self.ledger.check(upload_id, generation)
        upload = self._known(record)
        with upload.lock:
            if record.state is UploadState.COMMITTING:
                raise Refusal(ErrorCode.UPLOAD_CLOSED, "being committed")
            upload.closed = True
            self.ledger.finish(upload_id)
        for state in list(upload.segments.values()):
            with state.lock:
                pass
        self.storage.abort(upload_id)
        self._uploads.pop(upload_id, None)

    def sweep(self, older_than: float, on_abort: Callable[[UploadRecord], None] | None = None) -> int:
        """Abort open uploads not touched since ``older_than`` (seconds since the epoch) and without a channel; how
        many."""
        count = 0
        for record in self.ledger.open_uploads():
            upload = self._uploads.get(record.spec.upload_id)
            if record.touched_at < older_than and record.state is UploadState.OPEN and not (upload and upload.attached):
                self.abort(record.spec.user, record.spec.upload_id)
                count += 1
                if on_abort is not None:
                    on_abort(record)
        return count

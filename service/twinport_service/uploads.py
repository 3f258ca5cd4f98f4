"""The upload desk: where control commands and channels of one node meet over an upload.

It decides what the storage does not: who holds the lease, which channel writes a segment, whether bytes match their
digest, when a commit may begin. What nodes must agree on lives in the ledger, the bytes in the storage; what is here
may be lost at any moment (hash states, claims) and costs at most the unsealed part of a segment.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import Held
from twinport_protocol.names import RemoteName
from twinport_protocol.upload import UploadState

from .committing import Committer, fence, is_of
from .ledger import Ledger, SessionKey, UploadRecord
from .open_upload import STAGING_IS_GONE, OpenUpload, UploadTable
from .proof import Prover
from .room import Floors, Room
from .storage.contract import SMALL_BYTES, FileMarks, Published, Storage, UploadSpec
from .upload_handle import UploadHandle

_OPENING_LOCKS = 16


class UploadDesk:
    """All uploads of this node. Methods may block on the storage and are called from worker threads, but for
    :meth:`open_small`, which touches memory alone while ``room`` is fresh. ``floors`` of the disk stay free."""

    def __init__(
        self, storage: Storage, ledger: Ledger, *, max_file_bytes: int = 2**63 - 1, floors: Floors | None = None
    ) -> None:
        self.storage = storage
        self.ledger = ledger
        self.max_file_bytes = max_file_bytes
        self.room = Room(storage.free_bytes, storage.free_files, floors or Floors())
        self._prover = Prover(storage, ledger)
        self._node = secrets.token_hex(8)
        self.table = UploadTable(ledger)
        self.committer = Committer(storage, ledger, self._prover, self.table)
        # So that an upload comes and goes in ledger and storage together, however often that is asked for at once.
        self._opening = [threading.Lock() for _ in range(_OPENING_LOCKS)]

    def recover(self) -> None:
        """After a start: agree with the storage on which uploads are still there.

        For a process that has ledger and storage to itself: a commit that the ledger says is under way is taken for
        one that died with the last process. Nodes that share them must leave each other's alone."""
        records = {record.spec.upload_id: record for record in self.ledger.open_uploads()}
        kept = set(self.storage.start({upload_id: record.spec.size for upload_id, record in records.items()}))
        for upload_id, record in records.items():
            if upload_id not in kept:
                self.ledger.finish(upload_id)
                continue
            if record.state is UploadState.COMMITTING:
                self.ledger.reopen(upload_id)
            self.table.known(record, self.ledger.sealed(upload_id))

    def interrupt(self) -> None:
        """The server stops: whatever is being hashed ends with ``ShuttingDown``."""
        self._prover.stop()
        self.storage.interrupt()

    # opening ---------------------------------------------------------------------------------------------------------

    def open_small(self, spec: UploadSpec, session: int | None = None) -> UploadRecord:
        """Open an upload that needs nothing of the storage before its bytes are there (at most ``SMALL_BYTES``).

        ``session`` is the number of the control session that asks. When that has ended, so does the upload if no piece
        has come and no channel of this node is attached."""
        self._check_size(spec)
        self.room.take(spec.size)
        return self.ledger.begin(spec, True, self._key(session))

    @property
    def max_small_bytes(self) -> int:
        """The largest file that may be stored without having been opened."""
        return min(self.max_file_bytes, SMALL_BYTES)

    def open(self, spec: UploadSpec, *, reserve: bool = True, session: int | None = None) -> UploadRecord | Published:
        """Open an upload and reserve its room, in the quota and on the disk, or leave that to its first piece; what it
        published, when that id is finished already. ``session`` as of :meth:`open_small`."""
        self._check_size(spec)
        with self._opening[spec.upload_id[0] % _OPENING_LOCKS]:
            # In this order: what the ledger has forgotten because it is finished, the storage knows.
            is_new = self.ledger.load(spec.upload_id) is None
            done = self.published(spec)
            if done is not None:
                return done
            record = self.ledger.begin(spec, reserve, self._key(session))
            if is_new and reserve:
                try:
                    self._begin(spec)
                except Refusal:
                    self.ledger.finish(spec.upload_id)
                    raise
        return record

    def published(self, spec: UploadSpec) -> Published | None:
        """What the id of that upload has published, if it is finished; ``Denied`` if that is another file."""
        done = self.storage.finished(spec.upload_id)
        if done is not None and (
            not is_of(done, spec.user, spec.name, spec.size) or spec.root not in (None, done.root)
        ):
            raise Refusal(ErrorCode.DENIED, "the upload id has published another file")
        return done

    def _key(self, session: int | None) -> SessionKey | None:
        return None if session is None else (self._node, session)

    def claim(self, upload: OpenUpload, generation: int) -> None:
        """The first piece comes: reserve what was not reserved when the upload was opened. ``QuotaExceeded``, ``Busy``,
        ``DiskFull`` (the upload is dropped), and what ``begin`` of the storage refuses."""
        with upload.beginning:
            if upload.claimed:
                return
            self.ledger.claim(upload.spec.upload_id, generation)
            if not upload.begun:
                try:
                    self._begin(upload.spec)
                except Refusal as refusal:
                    if refusal.code in STAGING_IS_GONE:
                        self.table.forget(upload)
                    raise
            upload.begun = upload.claimed = True

    def _begin(self, spec: UploadSpec) -> None:
        self.room.check(spec.size)
        self.storage.begin(spec)
        try:
            self.room.check(0, 0)  # others may have begun at the same moment
        except Refusal:
            self.storage.abort(spec.upload_id)
            raise

    def resume(
        self,
        user: str,
        upload_id: bytes,
        name: RemoteName,
        size: int,
        *,
        session: int | None = None,
        marks: FileMarks | None = None,
    ) -> UploadRecord | Published:
        """Take an upload over in a new generation, or learn what it has published. ``marks`` are those of the file as
        it is now: only its bytes are compared before they are skipped. ``UploadUnknown`` (also when it is
        another user's, or of another name or size), ``UploadClosed``."""
        done = self.storage.finished(upload_id)
        if done is not None:
            if not is_of(done, user, name, size):
                raise Refusal(ErrorCode.UPLOAD_UNKNOWN, "it has published another file")
            return done
        known = self.ledger.load(upload_id)
        if known is not None and (known.spec.name != name or known.spec.size != size):
            raise Refusal(ErrorCode.UPLOAD_UNKNOWN, "another name or size")
        return self.ledger.lease(upload_id, user, self._key(session), marks)

    def _check_size(self, spec: UploadSpec) -> None:
        if spec.size > self.max_file_bytes:
            raise Refusal(ErrorCode.TOO_LARGE)

    # channels --------------------------------------------------------------------------------------------------------

    def attach(self, upload_id: bytes, generation: int, user: str) -> UploadHandle:
        """A channel joins. The ledger knows uploads of other nodes too. ``UploadUnknown``, ``Fenced``,
        ``UploadClosed``."""
        upload = self.table.join(upload_id, user)
        try:
            self.ledger.check(upload_id, generation)
        except Refusal:
            self.detach(upload)
            raise
        with upload.lock:
            upload.generation = max(upload.generation, generation)
        return UploadHandle(self, upload, generation)

    def detach(self, upload: OpenUpload) -> None:
        """A channel left. An upload that the ledger has forgotten is forgotten here too; one that has neither a session
        nor a piece ends."""
        session = self.table.leave(upload)
        if session is not None:
            self._abandon(upload.spec.upload_id, session)

    def end_session(self, number: int) -> None:
        """A control session is over, and with it the uploads it has opened for which nothing was sent: they would only
        hold room. A client that comes back opens them again, under the same ids.

        What a channel of another node has begun to send the ledger knows; one that is about to is told that the upload
        is unknown, and asks again as well."""
        session = (self._node, number)
        for upload_id in self.ledger.untouched(session):
            if not self.table.orphan(upload_id, session):
                self._abandon(upload_id, session)

    def _abandon(self, upload_id: bytes, session: SessionKey) -> None:
        with self._opening[upload_id[0] % _OPENING_LOCKS]:
            record = self.ledger.abandon(upload_id, session)
            if record is None:
                return
            upload = self.table.known(record)
            upload.closed = True
            upload.await_writes()
            try:
                if record.spec.size > SMALL_BYTES:
                    self.storage.abort(upload_id)
            finally:
                self.table.forget(upload)

    def have(self, upload: OpenUpload) -> list[Held]:
        """Sealed segments, hashed again first if a restart lies between, and the prefixes of unfinished ones."""
        upload_id = upload.spec.upload_id
        self._prover.prove(upload)
        sealed = self.ledger.sealed(upload_id)
        held = [Held(segment, upload.layout.length(segment), digest) for segment, digest in sorted(sealed.items())]
        with upload.lock:
            unfinished = [(number, state) for number, state in upload.segments.items() if number not in sealed]
        for number, state in unfinished:
            with state.lock:
                # A record of the full length says sealed; bytes whose digest never came are sent again.
                if 0 < state.received < upload.layout.length(number) and not state.sealed:
                    held.append(Held(number, state.received, state.hasher.digest()))
        return held

    # ending ----------------------------------------------------------------------------------------------------------

    def abort(self, user: str, upload_id: bytes, generation: int | None = None) -> None:
        """Forget an upload; writes under way end, later ones get ``UploadClosed`` or ``UploadUnknown``. Harmless when
        unknown.

        ``UploadClosed`` while it is being committed, ``Fenced`` for an older generation."""
        with self._opening[upload_id[0] % _OPENING_LOCKS]:
            record = self.ledger.load(upload_id)
            if record is not None and record.spec.user == user:
                self._abort(record, record.generation if generation is None else generation)

    def _abort(self, record: UploadRecord, generation: int) -> None:
        upload_id = record.spec.upload_id
        upload = self.table.known(record)
        with upload.lock:
            # The fence decides between this and a commit, on whichever node that is.
            refused = fence(self.ledger, upload_id, generation)
            if refused is None:
                upload.closed = True
        if refused is not None and refused.code is not ErrorCode.UPLOAD_UNKNOWN:
            raise refused
        upload.await_writes()
        self.storage.abort(upload_id)
        self.table.forget(upload)

    def sweep(self, older_than: float, on_abort: Callable[[UploadRecord], None] | None = None) -> int:
        """Abort open uploads not touched since ``older_than`` (seconds since the epoch) and without a channel; how
        many."""
        count = 0
        for record in self.ledger.open_uploads():
            upload = self.table.find(record.spec.upload_id)
            if record.touched_at < older_than and record.state is UploadState.OPEN and not (upload and upload.attached):
                try:
                    self.abort(record.spec.user, record.spec.upload_id)
                except Refusal:  # it moved at last
                    continue
                count += 1
                if on_abort is not None:
                    on_abort(record)
        return count

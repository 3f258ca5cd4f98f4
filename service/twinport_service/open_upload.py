"""One upload as a node knows it, and all that it knows.

Locks: an upload's ``lock`` guards its tables and is held for moments; a segment's ``lock`` is held while its bytes are
hashed and stored, so that whoever takes the segment over, and a commit, waits for the write that is under way.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from blake3 import blake3
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.segments import Layout

from .ledger import Ledger, SessionKey, UploadRecord
from .storage.contract import SMALL_BYTES, OnDone

STAGING_IS_GONE = frozenset({ErrorCode.DISK_FULL, ErrorCode.UPLOAD_UNKNOWN})
"""Refusals of the storage after which it holds nothing of the upload."""


@dataclass
class Segment:
    """A segment that is being written on this node."""

    sealed: bool
    lock: threading.Lock = field(default_factory=threading.Lock)
    owner: object = None
    # The storage's word for this node's copy. Not the channel's: another channel may go on where one ended.
    writer: int = field(default_factory=lambda: secrets.randbits(63))
    received: int = 0
    hasher: blake3 = field(default_factory=blake3)

    def restart(self, owner: object) -> None:
        self.owner = owner
        self.received = 0
        self.hasher = blake3()


class OpenUpload:
    """An upload as this node knows it."""

    def __init__(self, record: UploadRecord, *, unproved: Mapping[int, bytes] | None = None) -> None:
        self.spec = spec = record.spec
        self.layout = Layout.of(spec.size)
        self.lock = threading.Lock()
        self.segments: dict[int, Segment] = {}
        # Small files are begun in the storage only if their bytes do not come all at once; a file of which there is
        # a partial upload, only if its bytes come here and not there.
        self.begun = spec.size > SMALL_BYTES and record.has_room
        self.beginning = threading.Lock()
        # Whether the ledger knows that its first piece has come.
        self.claimed = False
        # The session that has ended while a channel was attached and nothing had come yet.
        self.orphan_of: SessionKey | None = None
        self.closed = False
        # The newest that this node has seen; what an older holder still has on its way is no more written.
        self.generation = 0
        self.attached = 0
        self.waiting: list[OnDone] = []
        # What was sealed before a restart counts only once its bytes were hashed again, by whoever holds the lock.
        self.unproved = dict(sorted(unproved.items())) if unproved else {}
        self.proving = threading.Lock()

    def await_writes(self) -> None:
        """Let the writes end that are under way; for an upload that is closed, so that no more follow."""
        for state in list(self.segments.values()):
            with state.lock:
                pass


class UploadTable:
    """The uploads of this node. What it knows beyond the ledger may be lost at any moment. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._uploads: dict[bytes, OpenUpload] = {}
        self._lock = threading.Lock()

    def find(self, upload_id: bytes) -> OpenUpload | None:
        """The upload, if this node has met it."""
        return self._uploads.get(upload_id)

    def known(self, record: UploadRecord, unproved: Mapping[int, bytes] | None = None) -> OpenUpload:
        """The upload of that record, from now on known here. ``unproved`` as the storage has it after a restart."""
        with self._lock:
            return self._uploads.setdefault(record.spec.upload_id, OpenUpload(record, unproved=unproved))

    def join(self, upload_id: bytes, user: str) -> OpenUpload:
        """One more channel is attached. The ledger knows uploads of other nodes too. ``UploadUnknown``."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is None:
                record = self._ledger.load(upload_id)
                if record is None or record.spec.user != user:
                    raise Refusal(ErrorCode.UPLOAD_UNKNOWN)
                upload = self._uploads[upload_id] = OpenUpload(record)
            upload.attached += 1
        return upload

    def leave(self, upload: OpenUpload) -> SessionKey | None:
        """A channel left. An upload that the ledger has forgotten is forgotten here too; the session that has ended
        meanwhile without a piece, when that was the last channel."""
        with self._lock:
            upload.attached -= 1
            if upload.attached > 0:
                return None
            if self._ledger.load(upload.spec.upload_id) is None:
                self._uploads.pop(upload.spec.upload_id, None)
            return upload.orphan_of

    def orphan(self, upload_id: bytes, session: SessionKey) -> bool:
        """The session has ended: whether a channel is still attached, which then decides what becomes of the upload."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is None or upload.attached <= 0:
                return False
            upload.orphan_of = session
            return True

    def forget(self, upload: OpenUpload) -> None:
        """An upload is over: published, or its bytes are gone. No handle writes for it any more."""
        upload.closed = True
        self._ledger.finish(upload.spec.upload_id)
        with self._lock:
            self._uploads.pop(upload.spec.upload_id, None)

    def forget_all(self, upload_ids: Sequence[bytes]) -> None:
        """The same for small files that nobody opened; who asks about one by itself makes it known here all the
        same."""
        for upload_id in upload_ids:
            upload = self._uploads.get(upload_id)
            if upload is not None:
                upload.closed = True
        self._ledger.finish_all(upload_ids)
        with self._lock:
            for upload_id in upload_ids:
                self._uploads.pop(upload_id, None)

    def drop(self, upload: OpenUpload) -> None:
        """Its bytes are gone, in mid write. The id is free only when no other write is under way: it may be opened
        anew at once, and must not get what was meant for this one. For a caller that holds no segment."""
        with upload.lock:
            if upload.closed:
                return
            upload.closed = True
        upload.await_writes()
        self.forget(upload)

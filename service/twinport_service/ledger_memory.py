"""The ledger in memory: for tests, for several nodes in one process, and the truth behind the SQLite ledger.

A subclass is told of each change by the ``_on_*`` hooks, under the lock and before the caller is answered.
Bounds: ``max_open_uploads_per_user`` and ``max_untouched_per_session``, then ``Busy``.

An upload and its reservation come and go under one lock, so that neither outlives the other; only a publication parts
them, when the reservation becomes the file.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import RemoteName
from twinport_protocol.segments import Layout
from twinport_protocol.upload import UploadEvent, UploadState, advance, check_generation

from .ledger import SessionKey, UploadRecord
from .storage.contract import FileMarks, UploadSpec
from .usage import Usage, UsageBook, UsageKeeper

MAX_OPEN_UPLOADS_PER_USER = 4096
MAX_UNTOUCHED_PER_SESSION = 4096
"""Four windows of commands: more than a client has use for before it sends the first of them."""


@dataclass
class OpenUpload:
    """An upload as the ledger itself holds it."""

    spec: UploadSpec
    generation: int
    state: UploadState
    touched_at: float
    has_room: bool = True
    sealed: dict[int, bytes] = field(default_factory=dict)
    session: SessionKey | None = None
    """Whose it is while it is untouched."""

    def record(self) -> UploadRecord:
        """What callers get to see."""
        return UploadRecord(self.spec, self.generation, self.state, self.touched_at, self.has_room)


class MemoryLedger:
    """See the module and the contract. ``now`` gives wall-clock seconds; ``usage`` is the storage's too."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        max_open_uploads_per_user: int = MAX_OPEN_UPLOADS_PER_USER,
        max_untouched_per_session: int = MAX_UNTOUCHED_PER_SESSION,
        usage: UsageKeeper | None = None,
    ) -> None:
        self._usage = UsageBook() if usage is None else usage
        self._lock = threading.RLock()
        self._now = now
        self._max_open_uploads_per_user = max_open_uploads_per_user
        self._max_untouched_per_session = max_untouched_per_session
        self._untouched: dict[SessionKey, dict[bytes, None]] = {}
        self._uploads: dict[bytes, OpenUpload] = {}
        self._open_per_user: Counter[str] = Counter()
        self._by_target: dict[tuple[str, str, int], dict[bytes, None]] = {}
        """Ids by user, name and size, oldest first."""

    def begin(self, spec: UploadSpec, reserve: bool = True, session: SessionKey | None = None) -> UploadRecord:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(spec.upload_id)
            if upload is not None:
                if upload.spec != spec:
                    raise Refusal(ErrorCode.DENIED, "the upload id is taken by another upload")
                self._hand_over(upload, session)
                return upload.record()
            if session is not None and len(self._untouched.get(session, ())) >= self._max_untouched_per_session:
                raise Refusal(ErrorCode.BUSY, "the session has too many uploads without bytes", retry_seconds=1)
            upload = self._open(spec, reserve=reserve)
            self._tie(upload, session)
            if reserve:
                self._on_begin(upload)
            return upload.record()

    def admit(self, specs: Sequence[UploadSpec]) -> Sequence[Refusal | None]:
        """See the contract."""
        outcomes: list[Refusal | None] = []
        with self._lock:
            for spec in specs:
                try:
                    if spec.upload_id in self._uploads:
                        raise Refusal(ErrorCode.UPLOAD_CLOSED, "the upload id is in use")
                    upload = self._open(spec, reserve=True)
                    upload.state = advance(upload.state, UploadEvent.COMMIT)
                    self._on_begin(upload)
                except Refusal as refusal:
                    outcomes.append(refusal)
                else:
                    outcomes.append(None)
        return outcomes

    def _open(self, spec: UploadSpec, *, reserve: bool) -> OpenUpload:
        if self._open_per_user[spec.user] >= self._max_open_uploads_per_user:
            raise Refusal(ErrorCode.BUSY, f"{spec.user!r} has too many open uploads", retry_seconds=1)
        if reserve:
            self._usage.reserve(spec.upload_id, spec.user, spec.size)
        upload = OpenUpload(spec, 1, UploadState.OPEN, self._now(), reserve)
        self._insert(upload)
        return upload

    def claim(self, upload_id: bytes, generation: int) -> None:
        """See the contract."""
        with self._lock:
            upload = self._held(upload_id, generation, UploadEvent.PUT)
            if not upload.has_room:
                self._usage.reserve(upload_id, upload.spec.user, upload.spec.size)
                upload.has_room = True
                self._on_begin(upload)
            self._untie(upload)

    def untouched(self, session: SessionKey) -> Collection[bytes]:
        """See the contract."""
        with self._lock:
            return list(self._untouched.get(session, ()))

    def abandon(self, upload_id: bytes, session: SessionKey) -> UploadRecord | None:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is None or upload.session != session or upload.state is not UploadState.OPEN:
                return None
            self._untie(upload)
            upload.state = advance(upload.state, UploadEvent.COMMIT)
            return upload.record()

    def load(self, upload_id: bytes) -> UploadRecord | None:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            return None if upload is None else upload.record()

    def resumable(self, user: str, name: RemoteName, size: int) -> bytes | None:
        """See the contract."""
        with self._lock:
            for upload_id in reversed(self._by_target.get((user, name, size), {})):
                upload = self._uploads[upload_id]
                if upload.has_room and (upload.sealed or Layout.of(size).count > 1):
                    return upload_id
            return None

    def lease(
        self, upload_id: bytes, user: str, session: SessionKey | None = None, marks: FileMarks | None = None
    ) -> UploadRecord:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is None or upload.spec.user != user:
                raise Refusal(ErrorCode.UPLOAD_UNKNOWN)
            upload.state = advance(upload.state, UploadEvent.RESUME)
            self._hand_over(upload, session)
            if marks is not None:
                upload.spec = replace(upload.spec, mtime_ns=marks.mtime_ns, executable=marks.executable)
            upload.generation += 1
            upload.touched_at = self._now()
            self._on_lease(upload)
            return upload.record()

    def seal(self, upload_id: bytes, generation: int, segment: int, digest: bytes) -> bool:
        """See the contract."""
        with self._lock:
            upload = self._held(upload_id, generation, UploadEvent.PUT)
            upload.touched_at = self._now()
            if segment in upload.sealed:
                return False
            upload.sealed[segment] = digest
            self._untie(upload)
            self._on_seal(upload, segment, digest)
            return True

    def sealed(self, upload_id: bytes) -> dict[int, bytes]:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            return {} if upload is None else dict(upload.sealed)

    def unseal(self, upload_id: bytes, segments: Collection[int]) -> None:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is not None:
                for segment in segments:
                    upload.sealed.pop(segment, None)
                self._on_unseal(upload, segments)

    def check(self, upload_id: bytes, generation: int) -> None:
        """See the contract."""
        with self._lock:
            self._held(upload_id, generation, UploadEvent.PUT)

    def fence(self, upload_id: bytes, generation: int) -> None:
        """See the contract."""
        with self._lock:
            upload = self._held(upload_id, generation, UploadEvent.COMMIT)
            upload.state = advance(upload.state, UploadEvent.COMMIT)
            upload.touched_at = self._now()

    def reopen(self, upload_id: bytes) -> None:
        """See the contract."""
        with self._lock:
            upload = self._uploads.get(upload_id)
            if upload is not None and upload.state is UploadState.COMMITTING:
                upload.state = advance(upload.state, UploadEvent.INCOMPLETE)
                upload.touched_at = self._now()

    def finish(self, upload_id: bytes) -> None:
        """See the contract."""
        with self._lock:
            upload = self._uploads.pop(upload_id, None)
            if upload is None:
                return
            self._untie(upload)
            spec = upload.spec
            target = (spec.user, spec.name, spec.size)
            same_target = self._by_target[target]
            del same_target[upload_id]
            if not same_target:
                del self._by_target[target]
            self._open_per_user[spec.user] -= 1
            if not self._open_per_user[spec.user]:
                del self._open_per_user[spec.user]
            self._usage.release(upload_id)
            self._on_finish(upload)

    def finish_all(self, upload_ids: Sequence[bytes]) -> None:
        """See the contract."""
        with self._lock:
            for upload_id in upload_ids:
                self.finish(upload_id)

    def open_uploads(self) -> Collection[UploadRecord]:
        """See the contract."""
        with self._lock:
            return [upload.record() for upload in self._uploads.values()]

    def usage_of(self, user: str) -> Usage:
        """See the contract."""
        return self._usage.usage_of(user)

    def close(self) -> None:
        """See the contract."""

    def _insert(self, upload: OpenUpload) -> None:
        spec = upload.spec
        self._uploads[spec.upload_id] = upload
        self._open_per_user[spec.user] += 1
        self._by_target.setdefault((spec.user, spec.name, spec.size), {})[spec.upload_id] = None

    def _tie(self, upload: OpenUpload, session: SessionKey | None) -> None:
        if session is not None:
            upload.session = session
            self._untouched.setdefault(session, {})[upload.spec.upload_id] = None

    def _untie(self, upload: OpenUpload) -> None:
        session, upload.session = upload.session, None
        if session is not None:
            mine = self._untouched[session]
            del mine[upload.spec.upload_id]
            if not mine:
                del self._untouched[session]

    def _hand_over(self, upload: OpenUpload, session: SessionKey | None) -> None:
        if upload.session is not None:
            self._untie(upload)
            self._tie(upload, session)

    def _held(self, upload_id: bytes, generation: int, event: UploadEvent) -> OpenUpload:
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise Refusal(ErrorCode.UPLOAD_UNKNOWN)
        check_generation(upload.generation, generation)
        advance(upload.state, event)
        return upload

    # hooks -----------------------------------------------------------------------------------------------------------

    def _on_begin(self, upload: OpenUpload) -> None:
        """An upload was opened and has its room."""

    def _on_lease(self, upload: OpenUpload) -> None:
        """It has a new generation."""

    def _on_seal(self, upload: OpenUpload, segment: int, digest: bytes) -> None:
        """A segment was sealed."""

    def _on_unseal(self, upload: OpenUpload, segments: Collection[int]) -> None:
        """Segments were forgotten."""

    def _on_finish(self, upload: OpenUpload) -> None:
        """It was forgotten."""

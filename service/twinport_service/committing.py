"""The end of an upload: fence, verify, publish; each outcome told to all who asked for it.

Thread-safe. A commit is asked for from worker threads and ends on a committer's thread of the storage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.segments import Manifest

from .ledger import Ledger
from .log import get_log
from .open_upload import STAGING_IS_GONE, OpenUpload, UploadTable
from .proof import Prover
from .storage.contract import Buffer, OnDone, OnProgress, Published, Storage, UploadSpec, WholeFile


class OutcomeTally:
    """Gathers the outcomes of so many commits, which come from any thread, and hands them on when all are there."""

    def __init__(self, count: int, on_all: Callable[[list[Published | Refusal]], None]) -> None:
        self._outcomes: list[Published | Refusal] = [Refusal(ErrorCode.INTERNAL)] * count
        self._left = count
        self._lock = threading.Lock()
        self._on_all = on_all

    def ending(self, index: int) -> OnDone:
        """What is to be called with the outcome of one of them."""

        def on_done(outcome: Published | Refusal) -> None:
            self._outcomes[index] = outcome
            with self._lock:
                self._left -= 1
                if self._left:
                    return
            self._on_all(self._outcomes)

        return on_done


class Committer:
    """See the module."""

    def __init__(self, storage: Storage, ledger: Ledger, prover: Prover, table: UploadTable) -> None:
        self._storage = storage
        self._ledger = ledger
        self._prover = prover
        self._table = table

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
        Refusals: ``Incomplete`` and ``RootMismatch`` (open again, or finished with another root), ``Fenced``,
        ``UploadClosed``, ``UploadUnknown``, ``Busy``.
        """

        def tell(outcome: Published | Refusal) -> None:
            on_done(_checked(outcome, user, root))

        def tell_repeated(outcome: Published | Refusal) -> None:
            tell(replace(outcome, is_repeated=True) if isinstance(outcome, Published) else outcome)

        record = self._ledger.load(upload_id)
        if record is None or record.spec.user != user:
            self._answer_finished(upload_id, Refusal(ErrorCode.UPLOAD_UNKNOWN), tell)
            return
        upload = self._table.known(record)
        with upload.lock:
            refused = fence(self._ledger, upload_id, generation)
            if refused is None:
                upload.closed = True
                upload.spec = record.spec  # as of the generation that commits
            shares = refused is None or (refused.code is ErrorCode.UPLOAD_CLOSED and bool(upload.waiting))
            if shares:
                upload.waiting.append(tell if refused is None else tell_repeated)
        if refused is None:
            self._publish(upload, root, on_progress)
        elif not shares:
            self._answer_finished(upload_id, refused, tell)

    def _answer_finished(self, upload_id: bytes, refused: Refusal, on_done: OnDone) -> None:
        """An upload that cannot be committed: perhaps because it is finished, perhaps it soon will be."""
        done = self._storage.finished(upload_id)
        if done is not None:
            on_done(done)
        elif refused.code is ErrorCode.UPLOAD_CLOSED:  # under way on another node
            raise Refusal(ErrorCode.BUSY, "commit under way", retry_seconds=1)
        else:
            raise refused

    def _publish(self, upload: OpenUpload, root: bytes, on_progress: OnProgress | None) -> None:
        try:
            manifest = self._sealed_manifest(upload, root)
            self._storage.commit(upload.spec, manifest, lambda outcome: self._settle(upload, outcome), on_progress)
        except Refusal as refusal:
            self._settle(upload, refusal)
        except Exception:
            get_log().exception("[UPLOAD] Internal error", name=upload.spec.name)
            self._settle(upload, Refusal(ErrorCode.INTERNAL))

    def commit_whole(self, upload: OpenUpload, generation: int, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """As :meth:`commit`, of a small file that never was staged."""
        if upload.spec.root not in (None, digest):
            raise Refusal(ErrorCode.ROOT_MISMATCH)
        self._ledger.fence(upload.spec.upload_id, generation)
        with upload.lock:
            upload.closed = True
        upload.await_writes()

        def settle(outcome: Published | Refusal) -> None:
            # Whatever the outcome, nothing of it is kept: the client holds all the bytes and sends them again.
            self._table.forget(upload)
            if upload.begun:
                self._storage.abort(upload.spec.upload_id)
            on_done(_as_asked(outcome, replace(upload.spec, root=digest)))

        try:
            self._storage.commit_small(upload.spec, data, digest, settle)
        except Refusal as refusal:
            settle(refusal)
        except Exception:
            get_log().exception("[UPLOAD] Internal error", name=upload.spec.name)
            settle(Refusal(ErrorCode.INTERNAL))

    def commit_files(
        self, files: Sequence[tuple[UploadSpec, Buffer, bytes]], on_all: Callable[[list[Published | Refusal]], None]
    ) -> None:
        """Publish small files that were not opened before, each with its bytes and their digest, which were compared.
        Their ids are in use until ``on_all`` is told the outcomes, in their order: from any thread, perhaps before
        this returns."""
        specs = [spec for spec, _, _ in files]
        refusals = [
            self._unless_published(spec, digest, refused)
            for (spec, _, digest), refused in zip(files, self._ledger.admit(specs), strict=True)
        ]
        admitted = [index for index, refused in enumerate(refusals) if refused is None]

        def on_admitted(outcomes: list[Published | Refusal]) -> None:
            self._table.forget_all([specs[index].upload_id for index in admitted])
            asked = [replace(specs[index], root=files[index][2]) for index in admitted]
            told = iter(map(_as_asked, outcomes, asked))
            on_all([next(told) if refused is None else refused for refused in refusals])

        if not admitted:
            on_all([refused for refused in refusals if refused is not None])
            return
        tally = OutcomeTally(len(admitted), on_admitted)
        whole = [WholeFile(*files[index], tally.ending(place)) for place, index in enumerate(admitted)]
        try:
            self._storage.commit_small_files(whole)
        except Refusal as refusal:
            for file in whole:
                file.on_done(refusal)
        except Exception:
            get_log().exception("[UPLOAD] Internal error", files=len(whole))
            for file in whole:
                file.on_done(Refusal(ErrorCode.INTERNAL))

    def _unless_published(self, spec: UploadSpec, digest: bytes, refused: Refusal | None) -> Published | Refusal | None:
        """Why a small file is not admitted; for want of room it cannot be if it was published under its id before."""
        if refused is None or refused.code is not ErrorCode.QUOTA_EXCEEDED:
            return refused
        try:
            done = self._storage.finished(spec.upload_id)
        except Refusal as trouble:
            return trouble
        return refused if done is None else _as_asked(done, replace(spec, root=digest))

    def _sealed_manifest(self, upload: OpenUpload, root: bytes) -> Manifest:
        upload.await_writes()  # before its bytes can become the file
        self._prover.prove(upload)
        sealed = self._ledger.sealed(upload.spec.upload_id)
        if len(sealed) < upload.layout.count:
            raise Refusal(ErrorCode.INCOMPLETE, f"{len(sealed)} of {upload.layout.count} segments")
        manifest = Manifest(upload.spec.size, b"".join(sealed[number] for number in range(upload.layout.count)))
        if manifest.root != root or upload.spec.root not in (None, root):
            raise Refusal(ErrorCode.ROOT_MISMATCH)
        return manifest

    def _settle(self, upload: OpenUpload, outcome: Published | Refusal) -> None:
        with upload.lock:  # first: whoever commits anew from here on waits for an outcome of its own
            waiting, upload.waiting = upload.waiting, []
        if isinstance(outcome, Published) or outcome.code in STAGING_IS_GONE:
            self._table.forget(upload)
        else:
            upload.closed = False
            self._ledger.reopen(upload.spec.upload_id)
        for on_done in waiting:
            on_done(outcome)


def fence(ledger: Ledger, upload_id: bytes, generation: int) -> Refusal | None:
    """From here on no piece of that generation is taken; why not, if that cannot be."""
    try:
        ledger.fence(upload_id, generation)
    except Refusal as refusal:
        return refusal
    return None


def is_of(done: Published, user: str, name: str, size: int) -> bool:
    """Whether what an id has published is what is asked about: ids are drawn by clients, and proof of nothing."""
    return (done.user, done.name, done.size) == (user, name, size)


def _as_asked(outcome: Published | Refusal, spec: UploadSpec) -> Published | Refusal:
    """The outcome of a small file with that root, unless it is of another one that its id has published before."""
    if isinstance(outcome, Published) and (
        not is_of(outcome, spec.user, spec.name, spec.size) or outcome.root != spec.root
    ):
        return Refusal(ErrorCode.DENIED, "the upload id has published another file")
    return outcome


def _checked(outcome: Published | Refusal, user: str, root: bytes) -> Published | Refusal:
    """The outcome as an answer to a COMMIT with that root: perhaps it is that of another one, before or meanwhile."""
    if not isinstance(outcome, Published):
        return outcome
    if outcome.user != user:
        return Refusal(ErrorCode.UPLOAD_UNKNOWN, "it has published another user's file")
    return outcome if outcome.root == root else Refusal(ErrorCode.ROOT_MISMATCH, "it has published other bytes")

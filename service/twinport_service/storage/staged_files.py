"""Staged files become durable before :mod:`publication` gives them their names: in threads of their own.

They are large: an fsync of gigabytes must not hold up the small ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.segments import DIGEST_BYTES, Manifest

from .contract import OnDone, OnProgress, UploadSpec
from .disk_door import DiskDoor
from .publication import Commit, Publisher, tell
from .staging import StagedFile, Staging
from .tree import Identity
from .troubles import Health, is_full, refusal_of

PROGRESS_BYTES = 64 * 1024 * 1024

Verify = Callable[[UploadSpec], "Identity | None"]
"""Whether ``if_match`` holds now, and of which version; ``Changed`` otherwise. May take as long as hashing."""


class StagedFlusher:
    """Staged files, in ``threads`` threads. ``verify`` decides ``if_match`` beforehand, where that may take long."""

    def __init__(
        self,
        door: DiskDoor,
        staging: Staging,
        health: Health,
        publisher: Publisher,
        verify: Verify,
        *,
        threads: int = 2,
    ) -> None:
        self._door = door
        self._staging = staging
        self._health = health
        self._publisher = publisher
        self._verify = verify
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="storage-flush")

    def submit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """Flush and publish a staged upload."""
        digests = manifest.digests if len(manifest.digests) > DIGEST_BYTES else None
        commit = Commit(spec, manifest.root, digests, on_done, is_small=False)
        self._submit(commit, lambda: self._flush(commit, on_progress))

    def verify_first(self, commit: Commit, then: Callable[[], None]) -> None:
        """Decide ``if_match`` of a small file, then go on with it."""
        self._submit(commit, lambda: self._verify_small(commit, then))

    def close(self) -> None:
        """Flush what waits, then stop."""
        self._pool.shutdown(wait=True)

    def _submit(self, commit: Commit, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except OSError as error:
                tell(commit, refusal_of(error))
            except Refusal as refusal:
                tell(commit, refusal)

        try:
            self._pool.submit(guarded)
        except RuntimeError:  # shut down
            raise Refusal(ErrorCode.SHUTTING_DOWN) from None

    def _verify_small(self, commit: Commit, then: Callable[[], None]) -> None:
        commit.verified = self._verify(commit.spec)
        then()

    def _flush(self, commit: Commit, on_progress: OnProgress | None) -> None:
        self._health.check_writable()
        upload_id = commit.spec.upload_id
        staged = self._staging.acquire(upload_id)
        try:
            try:
                commit.verified = self._verify(commit.spec)
                if staged.size != commit.spec.size:
                    raise Refusal(ErrorCode.INCOMPLETE, f"{staged.size} bytes are staged")
                commit.describe(self._door, staged.descriptor.fd)
                self._make_durable(staged, on_progress)
                self._staging.forget(upload_id)
            finally:
                staged.descriptor.release()
        except OSError as error:
            # Removed with its descriptor: what fsync has failed for is not asked again.
            if not is_full(error):
                self._health.fail("flushing an upload", error)
            self._staging.remove(upload_id)
            raise
        commit.directory, commit.staged_name = self._staging.locate(upload_id)
        self._publisher.submit((commit,))

    def _make_durable(self, staged: StagedFile, on_progress: OnProgress | None) -> None:
        if on_progress is not None:
            for start in range(0, staged.size, PROGRESS_BYTES):
                count = min(PROGRESS_BYTES, staged.size - start)
                self._door.await_write_back(staged.descriptor.fd, start, count)
                on_progress(start + count)
        self._door.fsync(staged.descriptor.fd)
        staged.was_written = False

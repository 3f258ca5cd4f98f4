"""Small files become durable, many at a time, before :mod:`publication` gives them their names.

They come whole. One thread takes all that wait and writes each into its own file. Then one ``syncfs`` makes the whole
batch durable, unless large uploads are being written to (``syncfs`` would wait for their bytes), it was slow lately
(for strangers' bytes), the kernel would not report its errors, or the batch is small: then the write-back of all
files is started first, and each is fsynced; the first fsync commits the file system's journal for all, but each still
makes the disk flush its cache. Measured on ext4 for 256 files of 4 KiB on an idle machine, and on one where others
fsync as well: fsync in turn 4,400 and 1,500 files/s, in four threads 11,500 and –, write-back first 13,100 and 6,900,
``syncfs`` 15,700 and 11,900 at half the CPU.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.log import get_log

from .contract import Buffer
from .disk_door import DiskDoor
from .publication import Commit, Publisher, tell
from .staging import Staging, write_all
from .troubles import Health, is_full, refusal_of

TOGETHER_FILES = 8
"""From so many files on, ``syncfs`` instead of an fsync each."""
REST_SECONDS = 2.0
"""Only when no large upload was written to for so long: by then the kernel is writing what it left."""
SLOW_SECONDS = 0.5
AVOID_SECONDS = 30.0
"""After a ``syncfs`` of more than the first, none for the second."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class SmallFlusher:
    """Small files. ``submit`` blocks while ``max_files`` or ``max_bytes`` are under way, the back-pressure of the
    contract."""

    def __init__(
        self,
        door: DiskDoor,
        staging: Staging,
        health: Health,
        publisher: Publisher,
        *,
        batch_files: int = 256,
        max_files: int = 1024,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._door = door
        self._staging = staging
        self._health = health
        self._publisher = publisher
        self._batch_files = batch_files
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[Commit, Buffer]] = deque()
        self._changed = threading.Condition()
        self._files = 0
        self._bytes = 0
        self._is_closing = False
        self._together_again_at = 0.0
        self._thread = threading.Thread(target=self._run, name="storage-small", daemon=True)

    def start(self) -> None:
        """Begin to take files."""
        self._thread.start()

    def submit(self, commit: Commit, data: Buffer) -> None:
        """Hand over one file with its bytes."""
        self.submit_all([(commit, data)])

    def submit_all(self, files: Sequence[tuple[Commit, Buffer]]) -> None:
        """Hand over some files with their bytes, few enough that they may go beyond the bounds together."""
        size_bytes = sum(len(data) for _, data in files)
        with self._changed:
            while self._files >= self._max_files or (self._files and self._bytes + size_bytes > self._max_bytes):
                self._changed.wait()
            if self._is_closing:
                raise Refusal(ErrorCode.SHUTTING_DOWN)
            self._files += len(files)
            self._bytes += size_bytes
            was_empty = not self._waiting
            self._waiting.extend(files)
            if was_empty:
                self._changed.notify_all()

    def close(self) -> None:
        """Flush what waits, then stop."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._is_closing:
                        return
                    self._changed.wait()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch_files))]
            try:
                self._publisher.submit(self.flush(batch))
            except Exception as error:
                # A bug here must not leave commits without an answer.
                get_log().exception("[STORAGE] Flushing failed unexpectedly")
                self._health.fail("flushing small files", error)
                for commit, _ in batch:
                    tell(commit, Refusal(ErrorCode.STORAGE_FAULT, str(error)))
            with self._changed:
                self._files -= len(batch)
                self._bytes -= sum(len(data) for _, data in batch)
                self._changed.notify_all()

    def flush(self, batch: Sequence[tuple[Commit, Buffer]]) -> list[Commit]:
        """Write files and make them durable; those for which that failed are told so and left out."""
        directory = self._staging.next_directory()
        is_together = self._may_flush_together(len(batch))
        written: list[tuple[Commit, int]] = []
        for commit, data in batch:
            try:
                self._health.check_writable()
                fd = self._write(commit, data, directory)
                if is_together:
                    self._close(fd)
                written.append((commit, fd))
            except (OSError, Refusal) as error:
                self._refuse(commit, error)
        if not is_together or not written:
            return self._flush_each(written)
        try:
            self._flush_together(directory)
        except OSError as error:
            self._fail("flushing small files", error)
            for commit, _ in written:
                self._refuse(commit, error)
            return []
        return [commit for commit, _ in written]

    def _may_flush_together(self, files: int) -> bool:
        return (
            files >= TOGETHER_FILES
            and self._staging.rest_seconds >= REST_SECONDS
            and time.monotonic() >= self._together_again_at
            and self._door.syncs_honestly
        )

    def _flush_together(self, directory: int) -> None:
        started = time.monotonic()
        self._door.sync_file_system(directory)
        if time.monotonic() - started > SLOW_SECONDS:
            self._together_again_at = time.monotonic() + AVOID_SECONDS

    def _flush_each(self, written: list[tuple[Commit, int]]) -> list[Commit]:
        """fsync and close each, whatever happens to the others; after a failure none is asked any more."""
        for _, fd in written:
            try:
                self._door.start_write_back(fd, 0, 0)
            except OSError as error:
                self._fail("starting write-back", error)
        flushed: list[Commit] = []
        for commit, fd in written:
            try:
                try:
                    self._health.check_writable()
                    self._door.fsync(fd)
                except OSError as error:
                    self._fail("flushing a file", error)
                    raise
                finally:
                    self._close(fd)
            except (OSError, Refusal) as error:
                self._refuse(commit, error)
            else:
                flushed.append(commit)
        return flushed

    def _write(self, commit: Commit, data: Buffer, directory: int) -> int:
        name = self._staging.next_name()
        fd = self._door.open_at(directory, name, _CREATE, 0o777 if commit.spec.executable else 0o666)
        commit.directory = directory
        commit.staged_name = name
        try:
            if data:
                write_all(self._door, fd, data, 0)
            commit.describe(self._door, fd)
        except OSError as error:
            self._fail("writing a file", error)
            self._door.drop(fd)
            raise
        return fd

    def _refuse(self, commit: Commit, error: OSError | Refusal) -> None:
        if commit.staged_name:
            self._staging.discard(commit.directory, commit.staged_name)
        tell(commit, refusal_of(error) if isinstance(error, OSError) else error)

    def _close(self, fd: int) -> None:
        try:
            self._door.close(fd)
        except OSError as error:
            self._fail("closing a file", error)
            raise

    def _fail(self, what: str, error: OSError) -> None:
        # Delayed allocation may notice only now that there is no room: that is no broken disk.
        if not is_full(error):
            self._health.fail(what, error)

"""Making downloads durable in groups: flush the contents, rename, flush the directories, and only then report success.

A thread takes whatever has gathered while it flushed the group before, so the number of flushes falls with the load, as
in a database's group commit. The number of files in its hands is bounded: past it, who adds waits, and so the network
does.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .errors import TwinportError
from .partials import Partial
from .target_tree import TargetTree, as_failure

GROUP_FILES = 256
"""Files that wait for a flush, each with one descriptor."""
GATHER_FILES = 64
GATHER_SECONDS = 0.002
SYNC_ALL_FROM = 8
"""From so many files on one flush of the file system costs less than one of each file."""


class _Entry(NamedTuple):
    job: Any
    partial: Partial


class Flusher:
    """Publishes sealed partials. ``on_done(job, error)`` is called for each, from the flusher's thread."""

    def __init__(
        self,
        tree: TargetTree,
        on_done: Callable[[list[tuple[Any, TwinportError | None]]], None],
        group_files: int = GROUP_FILES,
    ) -> None:
        self._tree = tree
        self._on_done = on_done
        self._group_files = group_files
        self._changed = threading.Condition()
        self._waiting: list[_Entry] = []
        self._in_hand = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self.seconds = 0.0
        """How long groups were flushed and renamed, in all."""

    def start(self) -> None:
        """Flush in a thread of its own from now on."""
        self._thread = threading.Thread(target=self._run, name="twinport-flusher", daemon=True)
        self._thread.start()

    def add(self, job: Any, partial: Partial) -> None:
        """Take over a sealed partial; waits while too many are in hand."""
        with self._changed:
            while self._in_hand >= self._group_files and self._thread is not None and not self._closing:
                self._changed.wait()
            self._waiting.append(_Entry(job, partial))
            self._in_hand += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Publish all that waits, in the calling thread."""
        with self._changed:
            group, self._waiting = self._waiting, []
        if group:
            began = time.perf_counter()
            try:
                self._publish(group)
            finally:
                self.seconds += time.perf_counter() - began
                with self._changed:
                    self._in_hand -= len(group)
                    self._changed.notify_all()

    def close(self) -> None:
        """Publish what waits and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                # Where flushing costs nothing groups would stay tiny, and each costs a few switches between threads.
                self._changed.wait_for(lambda: self._closing or len(self._waiting) >= GATHER_FILES, GATHER_SECONDS)
            self.flush()

    def _publish(self, group: list[_Entry]) -> None:
        outcomes: list[tuple[Any, TwinportError | None]] = []
        try:
            self._try_publish(group, outcomes)
        except Exception as error:  # whatever it is: a transfer that is told nothing would wait for ever
            told = {id(job) for job, _ in outcomes}
            outcomes += [(entry.job, self._failure(entry, error)) for entry in group if id(entry.job) not in told]
        for entry in group:
            entry.partial.close()
        self._on_done(outcomes)

    def _try_publish(self, group: list[_Entry], outcomes: list[tuple[Any, TwinportError | None]]) -> None:
        durable = self._flush_contents(group, outcomes)
        published: list[_Entry] = []
        for entry in durable:
            try:
                entry.partial.publish()
                published.append(entry)
            except (OSError, TwinportError) as error:
                outcomes.append((entry.job, self._failure(entry, error)))
        try:
            self._tree.sync_made()
            for descriptor in {entry.partial.directory.descriptor for entry in published}:
                os.fsync(descriptor)
            outcomes += [(entry.job, None) for entry in published]
        except (OSError, TwinportError) as error:
            outcomes += [(entry.job, as_failure("cannot flush the target directory", error)) for entry in published]

    def _failure(self, entry: _Entry, error: Exception) -> TwinportError:
        subject = f"cannot write {self._tree.show(entry.partial.name)}"
        if isinstance(error, (OSError, TwinportError)):
            return as_failure(subject, error)
        return TwinportError(f"{subject}: {type(error).__name__}: {error}")

    def _flush_contents(self, group: list[_Entry], outcomes: list[tuple[Any, TwinportError | None]]) -> list[_Entry]:
        if len(group) >= SYNC_ALL_FROM:
            sync_all = _find_syncfs()
            heads = {entry.partial.device: entry.partial.descriptor for entry in group}
            if sync_all is not None and all(sync_all(descriptor) for descriptor in heads.values()):
                return group
        durable: list[_Entry] = []
        for entry in group:
            try:
                os.fsync(entry.partial.descriptor)
                durable.append(entry)
            except OSError as error:
                # The kernel may have dropped the pages: nothing of this file can be trusted on disk.
                entry.partial.discard()
                outcomes.append((entry.job, self._failure(entry, error)))
        return durable


def _find_syncfs() -> Callable[[int], bool] | None:
    """``syncfs(2)``, which Python lacks: whether it flushed the file system of a descriptor without an error."""
    import ctypes  # noqa: PLC0415  # 10 ms that only many files pay

    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        return None
    return lambda descriptor: function(descriptor) == 0

"""What a control session has asked for and worker threads do.

Many commands go to a thread in one job, at most ``_JOBS`` jobs of a session at a time; their replies come back in one
write. COMMITs take as long as the disk does, and what must hash a file first as long as the file is large: each kind
has a lane of its own and holds up nothing else.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from twinport_protocol.messages import Command, Reply, Verb, format_reply

from .commit_watch import CommitWatch
from .control_services import ControlServices
from .name_handlers import Caller
from .side_lane import SideLane
from .storage.contract import HashingNeeded

if TYPE_CHECKING:
    from .control_session import ControlSession

_JOBS = 2
_COMMITS = 16
_BATCH = 64
_ALONE = frozenset({Verb.COMMIT, Verb.LIST})


class SessionJobs:
    """See the module. Belongs to the event loop, but for the methods that begin with ``_run``."""

    __slots__ = ("_commits", "_hashings", "_is_listing", "_queue", "_running", "_services", "_session")

    def __init__(self, services: ControlServices, session: ControlSession) -> None:
        self._services = services
        self._session = session
        self._queue: deque[Command] = deque()
        self._running = 0
        self._is_listing = False
        self._commits = SideLane(_COMMITS, self._start_commit)
        self._hashings = SideLane(1, self._start_hashing)

    @property
    def is_running(self) -> bool:
        """Whether a command is under way."""
        return self._running > 0 or self._commits.is_busy or self._hashings.is_busy

    @property
    def may_open(self) -> bool:
        """Whether a command is under way that may yet open an upload."""
        return self._running > 0

    @property
    def is_waiting(self) -> bool:
        """Whether commands wait to be started."""
        return bool(self._queue)

    def add(self, command: Command) -> None:
        """One more; :meth:`start` starts it when its turn has come. The session's window bounds them."""
        self._queue.append(command)

    def clear(self) -> None:
        """Nothing of what waits will be started."""
        self._queue.clear()
        self._commits.clear()
        self._hashings.clear()

    def start(self, caller: Caller) -> None:
        """Start what may be started now."""
        while self._queue:
            verb = self._queue[0].verb
            if verb is Verb.COMMIT:
                self._commits.add((caller, self._queue.popleft()))
            elif self._running >= _JOBS:
                return
            elif verb is Verb.LIST:
                # A page is large: they are made one at a time, about as fast as they are read.
                if self._is_listing:
                    return
                self._is_listing = True
                self._running += 1
                turns = self._services.handlers.list_in_turns(caller, self._queue.popleft())
                self._services.lister.submit(self._run_list, turns)
            else:
                batch: list[Command] = []
                while self._queue and len(batch) < _BATCH and self._queue[0].verb not in _ALONE:
                    batch.append(self._queue.popleft())
                self._running += 1
                self._services.executor.submit(self._run_batch, caller, batch)

    # batches ---------------------------------------------------------------------------------------------------------

    def _run_batch(self, caller: Caller, batch: list[Command]) -> None:
        replies: list[Reply] = []
        deferred: list[tuple[Caller, Command]] = []
        for command in batch:
            try:
                replies += self._services.handlers.slow(caller, command, may_hash=False)
            except HashingNeeded:
                deferred.append((caller, command))
        self._session.post(self._batch_done, replies, deferred)

    def _batch_done(self, replies: list[Reply], deferred: list[tuple[Caller, Command]]) -> None:
        self._running -= 1
        if self._session.is_open:
            for asked in deferred:
                self._hashings.add(asked)
        self._session.answer(replies)

    def _start_hashing(self, asked: tuple[Caller, Command]) -> None:
        self._services.hasher.submit(self._run_hashing, *asked)

    def _run_hashing(self, caller: Caller, command: Command) -> None:
        self._session.post(self._hashing_done, list(self._services.handlers.slow(caller, command)))

    def _hashing_done(self, replies: list[Reply]) -> None:
        self._hashings.end_one()
        self._session.answer(replies)

    # listings --------------------------------------------------------------------------------------------------------

    def _run_list(self, turns: Iterator[Sequence[Reply] | None]) -> None:
        replies = next(turns)
        if replies is None:  # not done: others have their turn first
            if self._session.is_open:
                with contextlib.suppress(RuntimeError):  # the server has stopped
                    self._services.lister.submit(self._run_list, turns)
            return
        *entries, last = replies
        self._session.post(self._list_done, b"".join(map(format_reply, entries)), last)

    def _list_done(self, entries: bytes, last: Reply) -> None:
        self._is_listing = False
        self._running -= 1
        self._session.tell(entries)
        self._session.answer([last])

    # commits ---------------------------------------------------------------------------------------------------------

    def _start_commit(self, asked: tuple[Caller, Command]) -> None:
        caller, command = asked
        watch = CommitWatch(self._session.loop, command.id, self._session.tell)

        def on_reply(reply: Reply) -> None:  # from the storage's thread
            self._session.post(self._commit_done, watch, reply)

        self._services.executor.submit(self._services.handlers.commit, caller, command, on_reply, watch.on_progress)

    def _commit_done(self, watch: CommitWatch, reply: Reply) -> None:
        watch.end()
        self._commits.end_one()
        self._session.answer([reply])

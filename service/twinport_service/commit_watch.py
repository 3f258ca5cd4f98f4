"""A COMMIT under way: its client hears once a second that it lives, and at last what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from twinport_protocol.messages import Reply, ReplyKind, format_reply

PROGRESS_SECONDS = 1.0


class CommitWatch:
    """One COMMIT under way: tells the client once a second that it lives, by ``tell`` on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, command_id: int, tell: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._id = command_id
        self._tell = tell
        self._durable_bytes = 0
        self._timer = loop.call_later(PROGRESS_SECONDS, self._tick)

    def on_progress(self, durable_bytes: int) -> None:
        """From the storage's thread."""
        self._durable_bytes = durable_bytes

    def _tick(self) -> None:
        self._tell(format_reply(Reply(self._id, ReplyKind.PROGRESS, (str(self._durable_bytes),))))
        self._timer = self._loop.call_later(PROGRESS_SECONDS, self._tick)

    def end(self) -> None:
        """There is an outcome."""
        self._timer.cancel()

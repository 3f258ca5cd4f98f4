"""A COMMIT under way: its client hears once a second that it lives, and at last what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinport_protocol.messages import Reply, ReplyKind

if TYPE_CHECKING:
    from .control_session import ControlSession

PROGRESS_SECONDS = 1.0


class CommitWatch:
    """One COMMIT under way: tells the client once a second that it lives, and brings the outcome back to the loop."""

    def __init__(self, session: ControlSession, command_id: int) -> None:
        self._session = session
        self._id = command_id
        self._durable_bytes = 0
        self._timer = session.loop.call_later(PROGRESS_SECONDS, self._tick)

    def on_progress(self, durable_bytes: int) -> None:
        """From the storage's thread."""
        self._durable_bytes = durable_bytes

    def on_reply(self, reply: Reply) -> None:
        """From the storage's thread."""
        self._session.post(self._finish, reply)

    def _tick(self) -> None:
        self._session.tell_progress(Reply(self._id, ReplyKind.PROGRESS, (str(self._durable_bytes),)))
        self._timer = self._session.loop.call_later(PROGRESS_SECONDS, self._tick)

    def _finish(self, reply: Reply) -> None:
        self._timer.cancel()
        self._session.commit_done(reply)

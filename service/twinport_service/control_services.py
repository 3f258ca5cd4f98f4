"""What the control sessions of a server share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinport_protocol.control import Limits

from .accounts.authenticator import Authenticator
from .handlers import Handlers

if TYPE_CHECKING:
    from .control_session import ControlSession


@dataclass(frozen=True)
class ControlTimes:
    """Seconds: until the greeting; without any traffic; with replies that the client does not read; until a login that
    is required."""

    greeting_seconds: float = 10.0
    idle_seconds: float = 300.0
    unread_seconds: float = 30.0
    login_seconds: float = 20.0
    unsent_seconds: float = 60.0
    """From the end of a session to that of its uploads of which no piece has come."""


@dataclass(frozen=True)
class ControlServices:
    """What every session of a server shares."""

    handlers: Handlers
    executor: ThreadPoolExecutor
    lister: ThreadPoolExecutor
    """For LIST alone: pages cost processor time, and must not keep what waits for the disk from its threads."""
    hasher: ThreadPoolExecutor
    """For what must hash a file first, however large: a thread each for a few of them, and none of the others'."""
    limits: Limits
    times: ControlTimes
    greeting: Callable[[], Mapping[str, str]]
    on_open: Callable[[ControlSession], None]
    on_close: Callable[[ControlSession], None]
    authenticator: Authenticator | None = None

    def end_uploads(self, number: int) -> None:
        """End what a session that is gone has opened and never sent, on a worker thread."""
        with contextlib.suppress(RuntimeError):  # the server has stopped
            self.executor.submit(self.handlers.end_session, number)

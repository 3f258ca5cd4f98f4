"""How long a channel may be silent: to show its first ticket, in mid work, and with nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_PROGRESS_BYTES = 16 * 1024
"""What must move within ``stall_seconds`` in mid work: a byte now and then is no progress."""


@dataclass(frozen=True)
class ChannelTimes:
    """Seconds: until the first good ATTACH; of silence in mid work; of silence with nothing to do; of draining."""

    attach_seconds: float = 5.0
    stall_seconds: float = 30.0
    idle_seconds: float = 300.0
    drain_seconds: float = 1.0


class Patience:
    """The deadline of one channel. ``clock`` is monotonic."""

    def __init__(self, times: ChannelTimes, clock: Callable[[], float]) -> None:
        self.times = times
        self.clock = clock
        self._started_at = self._moved_at = clock()
        self._moved_bytes = 0
        self._was_working = False

    def deadline(self, *, attached: bool, working: bool) -> float:
        """When it is over, if nothing moves until then. To be asked again whenever ``working`` may have changed."""
        if working and not self._was_working:  # its silence until now was that of the idle
            self._moved_at = self.clock()
            self._moved_bytes = 0
        self._was_working = working
        if not attached:
            return self._started_at + self.times.attach_seconds
        return self._moved_at + (self.times.stall_seconds if working else self.times.idle_seconds)

    def pause(self) -> None:
        """What does not move now is held back by ourselves."""
        self._moved_at = self.clock()

    def note_progress(self, count: int, *, working: bool) -> None:
        """``count`` bytes moved."""
        self._moved_bytes += count
        if self._moved_bytes >= _PROGRESS_BYTES or not working:
            self._moved_bytes = 0
            self._moved_at = self.clock()

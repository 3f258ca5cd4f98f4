"""How fast bytes go."""

from __future__ import annotations

from collections.abc import Callable

WINDOW_SECONDS = 0.5
FORGET = 0.5


class RateMeter:
    """A smoothed rate over windows of half a second; ``None`` until the first window has passed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._bytes = 0
        self.bytes_per_second: float | None = None

    def add(self, count: int) -> None:
        """``count`` bytes went just now."""
        now = self._clock()
        elapsed = now - self._since
        self._bytes += count
        if elapsed < WINDOW_SECONDS:
            # A fast line shows itself before the window ends.
            if self.bytes_per_second is None and self._bytes > 8 * 1024 * 1024:
                self.bytes_per_second = self._bytes / max(elapsed, 1e-6)
            return
        rate = self._bytes / elapsed
        old = self.bytes_per_second
        self.bytes_per_second = rate if old is None else old * FORGET + rate * (1 - FORGET)
        self._since, self._bytes = now, 0

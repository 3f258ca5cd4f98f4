"""How long to wait before the next try: exponential, capped, with full jitter.

Full jitter (a uniform draw from zero to the bound) keeps the clients of a server that came back from arriving together.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Waiting times in seconds, doubling from ``first_seconds`` to at most ``cap_seconds``; ``draw`` gives 0…1."""

    def __init__(
        self,
        first_seconds: float = 0.1,
        cap_seconds: float = 10.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._first_seconds = first_seconds
        self._cap_seconds = cap_seconds
        self._draw = draw
        self.failures = 0

    def next_seconds(self) -> float:
        """The wait after one more failure: at least a quarter of the bound, so that a try is never immediate."""
        bound = min(self._cap_seconds, self._first_seconds * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return bound * (0.25 + 0.75 * self._draw())

    def reset(self) -> None:
        """Something worked: start from the shortest wait again."""
        self.failures = 0

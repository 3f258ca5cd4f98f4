"""Answers that are given after a fixed time, so that how long they took tells nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

HELD_SECONDS = 1.0


class HeldAnswers:
    """Calls back, in a thread of its own, ``seconds`` after it was asked to; all after the same time, so that they wait
    in a queue. What is called must neither block nor raise. ``clock`` is monotonic."""

    def __init__(self, seconds: float = HELD_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, Callable[[], object]]] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="login-held", daemon=True)
        self._thread.start()

    def hold(self, answer: Callable[[], object]) -> None:
        """Call ``answer`` once, when the time has passed or at the end, whichever comes first."""
        with self._changed:
            if not self._closing:
                self._waiting.append((self._clock() + self._seconds, answer))
                self._changed.notify()
                return
        answer()

    def close(self) -> None:
        """Give all that wait at once, and end. Harmless when repeated."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and (not self._waiting or self._waiting[0][0] > self._clock()):
                    self._changed.wait(self._waiting[0][0] - self._clock() if self._waiting else None)
                if not self._waiting:
                    return
                _, answer = self._waiting.popleft()
            answer()


class FirstAnswer:
    """Passes on the first of several answers to one question. Thread-safe."""

    def __init__(self, answer: Callable[..., None]) -> None:
        self._answer: Callable[..., None] | None = answer
        self._lock = threading.Lock()

    def give(self, outcome: object) -> bool:
        """Whether it was the first."""
        with self._lock:
            answer, self._answer = self._answer, None
        if answer is None:
            return False
        answer(outcome)
        return True

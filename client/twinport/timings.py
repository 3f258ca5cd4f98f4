"""Where the time of a transfer went: stopwatches that cost nothing to speak of, and what they add up to.

Every moment of a channel's thread is of one stage. Several channels work side by side, so their stages may add up to
more than the transfer took; their shares say what held it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

STAGES = {
    "connecting": "opening data connections, TLS included",
    "preparing": "reading and hashing local files, asking for bytes",
    "sending": "handing bytes to the system; encrypting them, under TLS",
    "receiving": "taking bytes from the system; decrypting them, under TLS",
    "taking": "verifying and writing what came, noting answers",
    "waiting": "nothing to do here: the line, the server or other threads are at work",
}
"""What a channel does, in words."""


class Stopwatch:
    """Of one thread. ``lap`` gives the time since the last lap to a stage."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._clock = clock
        self._at = clock()

    def start(self) -> None:
        """From here on, whatever was before."""
        self._at = self._clock()

    def lap(self, stage: str) -> None:
        """All since the last lap was of that stage."""
        now = self._clock()
        self.seconds[stage] += now - self._at
        self._at = now


class OpeningTimes(NamedTuple):
    """Seconds that a session took to open: the connection, TLS (0 without), the greetings and the login."""

    connect_seconds: float = 0.0
    secure_seconds: float = 0.0
    login_seconds: float = 0.0


@dataclass
class Timings:
    """Of one ``put`` or ``get``, in seconds."""

    opening: OpeningTimes = field(default_factory=OpeningTimes)
    total_seconds: float = 0.0
    """From the first look for files to the last outcome; the opening of the session came before."""
    finding_seconds: float = 0.0
    """Finding files and comparing them with what is there, the listing included."""
    committing_seconds: float = 0.0
    """Between COMMITs and their answers, added up: what the server's disk took for files of several segments."""
    flushing_seconds: float = 0.0
    """Making downloads durable here."""
    channels: int = 0
    """Data connections at once, at most."""
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Of all channels together, by :data:`STAGES`."""

    def add(self, watch: Stopwatch) -> None:
        """A channel has ended."""
        for stage, seconds in watch.seconds.items():
            self.stages[stage] += seconds

    def share(self, stage: str) -> float:
        """What part of the channels' time a stage had, 0…1."""
        whole = sum(self.stages.values())
        return self.stages[stage] / whole if whole else 0.0

    def as_dict(self) -> dict[str, object]:
        """The figures by name, for JSON; rounded to microseconds."""
        return {
            **{name: round(seconds, 6) for name, seconds in self.opening._asdict().items()},
            "total_seconds": round(self.total_seconds, 6),
            "finding_seconds": round(self.finding_seconds, 6),
            "committing_seconds": round(self.committing_seconds, 6),
            "flushing_seconds": round(self.flushing_seconds, 6),
            "channels": self.channels,
            "channel_seconds": {stage: round(seconds, 6) for stage, seconds in self.stages.items()},
        }

"""What uploads and downloads schedule alike: requests for the control link, orders for channels, waits, outcomes.

An engine is pure: no socket, no thread, no file; time is a function that it was given. Everything of it is called under
one lock that its owner holds. The life of anything here:

    add ──▶ fresh ──next_requests──▶ open ──take──▶ in the hands of a channel ──▶ done | failed
                                      ▲                          │
                                      └──── return_orders ───────┘   (a lost channel)      session_lost: all of it again

An order carries the epoch of its job. Whatever comes back from an older epoch (a channel that was given up, an upload
that was started anew) no longer counts.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply, Verb

from .errors import TwinportError
from .report import TransferReport

# What may pass by itself: worth another try after a wait.
PASSING = frozenset(
    {
        ErrorCode.BUSY,
        ErrorCode.TIMEOUT,
        ErrorCode.SHUTTING_DOWN,
        ErrorCode.BAD_STATE,
        ErrorCode.NOT_ATTACHED,
        ErrorCode.TICKET_EXPIRED,
        ErrorCode.TICKET_INVALID,
        ErrorCode.TICKET_REVOKED,
        ErrorCode.UPLOAD_CLOSED,
        ErrorCode.UPLOAD_UNKNOWN,
        ErrorCode.OUTCOME_UNKNOWN,
        ErrorCode.INCOMPLETE,
        ErrorCode.VERSION_GONE,
    }
)


@dataclass(frozen=True)
class Policy:
    """The bounds of a transfer."""

    open_files: int = 2048
    """Files asked for and not finished."""
    open_large: int = 4
    """Files of several segments among them."""
    open_bytes: int = 256 * 1024 * 1024
    """Bytes of the one-segment files among them."""
    backlog: int = 4096
    """Files found and not asked for yet."""
    small_bytes: int = 256 * 1024
    """Files up to this size are read and sent, or received, whole."""
    troubles: int = 10
    """Passing failures of one file in a row, without progress."""
    changes: int = 3
    """How often a file that changes while it is sent is started."""
    first_channels: int | None = None
    """Channels to begin with, where ``channels`` of the client allows; None leaves that to the line."""
    first_wait_seconds: float = 0.1
    longest_wait_seconds: float = 5.0


class Request:
    """One command for the control link and what its replies are for."""

    __slots__ = ("epoch", "job", "options", "step", "verb", "words")

    def __init__(
        self, verb: Verb, words: tuple[str, ...], options: Mapping[str, str], step: str, job: Any, epoch: int = 0
    ) -> None:
        self.verb = verb
        self.words = words
        self.options = options
        self.step = step
        self.job = job
        self.epoch = epoch


class OrderKind(enum.Enum):
    """What a channel is asked to do."""

    WHOLE = "whole"
    """Send or fetch a small file in one frame."""
    BUNDLED = "bundled"
    """Send or fetch a small file together with others."""
    SEGMENT = "segment"
    """Send or fetch one segment, from ``offset`` on."""
    LOOK = "look"
    """Ask what is held (upload), or for the manifest, and open the partial (download)."""
    CHECK = "check"
    """Hash a segment that is held and compare."""
    COMPARE = "compare"
    """Hash a whole file and compare it with the one under its name (upload)."""


class Order:
    """One piece of work for one channel."""

    __slots__ = ("counted_bytes", "digest", "epoch", "job", "kind", "known", "offset", "segment")

    def __init__(
        self, kind: OrderKind, job: Any, epoch: int, segment: int = 0, offset: int = 0, digest: bytes = b""
    ) -> None:
        self.kind = kind
        self.job = job
        self.epoch = epoch
        self.segment = segment
        self.offset = offset
        self.digest = digest
        self.counted_bytes = 0
        self.known: frozenset[int] = frozenset()

    def renewed(self) -> Order:
        """The same order for the job's present epoch, from where this one stands."""
        order = Order(self.kind, self.job, self.job.epoch, self.segment, self.offset, self.digest)
        order.counted_bytes = self.counted_bytes
        return order

    @property
    def is_stale(self) -> bool:
        """Whether the job went on without this order."""
        return bool(self.epoch != self.job.epoch)


class EventKind(enum.Enum):
    """What an observer hears about."""

    DONE = "done"
    FAILED = "failed"
    NOTE = "note"


class Event(NamedTuple):
    """Something for the observer; drained by the owner outside the lock."""

    kind: EventKind
    name: str
    size_bytes: int = 0
    error: TwinportError | None = None


class Engine(Protocol):
    """What a transfer drives; :class:`EngineBase` has most of it."""

    events: deque[Event]
    report: TransferReport
    done_bytes: int
    known_bytes: int
    spread: int
    """Over how many channels small files are to be spread."""

    @property
    def is_over(self) -> bool:
        """Nothing is left to do."""

    @property
    def has_room(self) -> bool:
        """Whether more may be added."""

    @property
    def has_requests(self) -> bool:
        """Whether :meth:`next_requests` may have some; asked often, so cheap and at times too hopeful."""

    @property
    def order_count(self) -> int:
        """Orders ready for a channel, without those being taken."""

    @property
    def order_bytes(self) -> int:
        """An estimate of the bytes behind them."""

    def next_requests(self, room: int) -> list[Request]:
        """At most ``room`` commands to send now."""

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """What the server answered."""

    def return_orders(self, orders: Sequence[Order]) -> None:
        """These were in the hands of a channel that is lost."""

    def session_lost(self) -> None:
        """The control link and all channels are gone: everything open is asked for again."""

    def due_seconds(self) -> float | None:
        """How long until :meth:`tick` has something to do."""

    def tick(self) -> None:
        """Put what was waiting and is due back to work."""

    def fail_all(self, error: TwinportError) -> None:
        """Give up everything that is not done."""

    def close_input(self) -> None:
        """Nothing more will be added."""

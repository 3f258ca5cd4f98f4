"""The upload state machine, in one table: ``open → committing → done``, or ``aborted``.

    open ──COMMIT──▶ committing ──published──▶ done
     │  ▲               │
     │  └──incomplete───┘ (also when publication failed in a way that can be tried again)
     └──ABORT──▶ aborted

``RESUME`` stays in ``open`` and makes a new generation. Everything not in the table is refused: ``UploadClosed``.
"""

from __future__ import annotations

import enum

from .errors import ErrorCode, Refusal


class UploadState(enum.Enum):
    """Where an upload stands."""

    OPEN = "open"
    COMMITTING = "committing"
    DONE = "done"
    ABORTED = "aborted"


class UploadEvent(enum.Enum):
    """What may happen to an upload."""

    PUT = "put"
    RESUME = "resume"
    COMMIT = "commit"
    INCOMPLETE = "incomplete"
    PUBLISHED = "published"
    ABORT = "abort"


TRANSITIONS: dict[tuple[UploadState, UploadEvent], UploadState] = {
    (UploadState.OPEN, UploadEvent.PUT): UploadState.OPEN,
    (UploadState.OPEN, UploadEvent.RESUME): UploadState.OPEN,
    (UploadState.OPEN, UploadEvent.COMMIT): UploadState.COMMITTING,
    (UploadState.OPEN, UploadEvent.ABORT): UploadState.ABORTED,
    (UploadState.COMMITTING, UploadEvent.INCOMPLETE): UploadState.OPEN,
    (UploadState.COMMITTING, UploadEvent.PUBLISHED): UploadState.DONE,
}


def advance(state: UploadState, event: UploadEvent) -> UploadState:
    """The state after ``event``; ``Refusal(UploadClosed)`` where the table has no entry."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise Refusal(ErrorCode.UPLOAD_CLOSED, f"{event.value} in state {state.value}") from None


def check_generation(held: int, presented: int) -> None:
    """``Refusal(Fenced)`` unless the presented generation is the one that holds the lease."""
    if presented != held:
        raise Refusal(ErrorCode.FENCED, f"generation {presented}, held by {held}")

"""What the audit log is told of one channel: uploads that were published, downloads with the bytes that were sent."""

from __future__ import annotations

import time
from collections.abc import Callable

from twinport_protocol.errors import ErrorCode, Refusal

from .audit import AUDITED_REFUSALS, OK, AuditEntry, AuditEvent, Record, discard
from .storage.contract import Published, Storage


class ChannelAudit:
    """For the channel's owner. ``number`` is the channel's, ``clock`` monotonic."""

    def __init__(
        self,
        record: Record = discard,
        peer: object = None,
        number: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._record = record
        self._peer = peer
        self._number = number
        self._clock = clock
        self._since: dict[int, float] = {}

    def attached(self, attachment: int) -> None:
        """A transfer begins."""
        self._since[attachment] = self._clock()

    def detached(self, attachment: int) -> None:
        """It is over."""
        self._since.pop(attachment, None)

    def _seconds(self, attachment: int) -> float | None:
        since = self._since.get(attachment)
        return None if since is None else self._clock() - since

    def committed(self, attachment: int, user: str, outcome: Published | Refusal) -> None:
        """An upload was published by this channel, or not allowed."""
        if isinstance(outcome, Published):
            if outcome.is_repeated:
                return
            self._note(
                AuditEvent.UPLOAD,
                user,
                outcome.name,
                size=outcome.size,
                root=outcome.root,
                seconds=self._seconds(attachment),
            )
        elif outcome.code in AUDITED_REFUSALS:
            self._note(AuditEvent.REFUSAL, user, outcome=outcome.code.value, what="UPLOAD")

    def published(self, user: str, outcome: Published, seconds: float) -> None:
        """A file of a bundle was published."""
        if not outcome.is_repeated:
            self._note(AuditEvent.UPLOAD, user, outcome.name, size=outcome.size, root=outcome.root, seconds=seconds)

    def fetched(self, user: str, name: str, size: int) -> None:
        """A file was sent in a bundle."""
        self._note(AuditEvent.DOWNLOAD, user, name, size=size)

    def sent(self, attachment: int, user: str, storage: Storage, token: bytes, sent_bytes: int) -> None:
        """A download attachment has ended after so many bytes; one of several that a large file may have."""
        if not sent_bytes:
            return
        try:
            name: str | None = storage.name_of(token)
        except Refusal:
            name = None  # it was opened so long ago that nobody remembers it
        self._note(AuditEvent.DOWNLOAD, user, name, size=sent_bytes, seconds=self._seconds(attachment))

    def refused(self, what: str, code: ErrorCode, user: str | None, file: str | None = None) -> None:
        """A frame was refused; nobody's if its ticket was none. It is written down if it was not allowed, or one
        channel too many."""
        if code in AUDITED_REFUSALS or code is ErrorCode.BUSY:
            self._note(AuditEvent.REFUSAL, user, file, outcome=code.value, what=what)

    def _note(
        self,
        event: AuditEvent,
        user: str | None,
        file: str | None = None,
        *,
        size: int | None = None,
        root: bytes | None = None,
        seconds: float | None = None,
        outcome: str = OK,
        what: str | None = None,
    ) -> None:
        self._record(
            AuditEntry(
                event,
                user,
                self._peer,
                file,
                size=size,
                root=root,
                seconds=seconds,
                outcome=outcome,
                channel=self._number,
                what=what,
            )
        )

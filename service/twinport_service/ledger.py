"""The ledger: open uploads, their generations, sealed segments and reservations: what nodes must agree on.

One contract; in memory for tests and several nodes in one test (``ledger_memory``), SQLite for the embedded server
(``ledger_sqlite``), a shared database for a fleet later. Every method is atomic, may be called from any thread, and is
cheap: nothing here waits for a disk.

Times are wall-clock seconds of the ``now`` callable given to an implementation, because they must survive a restart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from twinport_protocol.errors import Refusal
from twinport_protocol.names import RemoteName
from twinport_protocol.upload import UploadState

from .storage.contract import FileMarks, UploadSpec
from .usage import Usage

SessionKey = tuple[str, int]
"""A control session: the node it is on, and its number there."""


@dataclass(frozen=True)
class UploadRecord:
    """An upload as the ledger knows it. ``touched_at`` is the last time it moved, in seconds since the epoch;
    ``has_room`` says whether it holds its reservation."""

    spec: UploadSpec
    generation: int
    state: UploadState
    touched_at: float
    has_room: bool = True


class Ledger(Protocol):
    """The contract."""

    def begin(self, spec: UploadSpec, reserve: bool = True, session: SessionKey | None = None) -> UploadRecord:
        """Open an upload in generation 1 and reserve its room in the user's quota, or leave that to :meth:`claim`. The
        same spec again returns the record as it stands (a repeated request); another spec under a known id is
        ``Denied``. ``Busy`` past the cap of open uploads of the user, or of untouched ones of the session;
        ``QuotaExceeded``.

        Until it is claimed an upload is untouched, and belongs to the session that asked for it last."""

    def admit(self, specs: Sequence[UploadSpec]) -> Sequence[Refusal | None]:
        """Of each whether it may be published at once, its bytes being all in hand: as :meth:`begin` of a new upload
        and :meth:`fence` after it. None where it may; else ``Busy``, ``QuotaExceeded``, ``UploadClosed`` for an id that
        is in use."""

    def claim(self, upload_id: bytes, generation: int) -> None:
        """Its first piece is about to come: from here on the upload outlives its session. Reserves the room of one that
        was begun without. ``QuotaExceeded`` and ``Busy`` (it stays open, without room), ``Fenced``, ``UploadClosed``,
        ``UploadUnknown``."""

    def untouched(self, session: SessionKey) -> Collection[bytes]:
        """The ids of a session's untouched uploads."""

    def abandon(self, upload_id: bytes, session: SessionKey) -> UploadRecord | None:
        """Close an upload, as :meth:`fence` does, if it is open, still untouched and that session's; None if not."""

    def load(self, upload_id: bytes) -> UploadRecord | None:
        """The record, from whichever node made it."""

    def resumable(self, user: str, name: RemoteName, size: int) -> bytes | None:
        """The id of the user's newest unfinished upload of that name and size that has room, and holds a sealed segment
        or is larger than one segment; None when there is none. One that is being committed counts: whoever wants to
        send the file had better wait for its end."""

    def lease(
        self, upload_id: bytes, user: str, session: SessionKey | None = None, marks: FileMarks | None = None
    ) -> UploadRecord:
        """Take the upload over: a new generation; holders of the old one are fenced. If it is untouched, it is that
        session's now. ``marks`` replace those that it was opened with. ``UploadUnknown`` (also when it is another
        user's), ``UploadClosed``."""

    def seal(self, upload_id: bytes, generation: int, segment: int, digest: bytes) -> bool:
        """Record a verified segment; False if it was sealed before. ``Fenced``, ``UploadClosed``, ``UploadUnknown``."""

    def sealed(self, upload_id: bytes) -> dict[int, bytes]:
        """The sealed segments and their digests; empty when unknown."""

    def unseal(self, upload_id: bytes, segments: Collection[int]) -> None:
        """Forget segments whose bytes did not survive."""

    def check(self, upload_id: bytes, generation: int) -> None:
        """``Fenced``, ``UploadClosed`` or ``UploadUnknown`` unless that generation may still write."""

    def fence(self, upload_id: bytes, generation: int) -> None:
        """open → committing: from here no segment can be sealed. ``Fenced``, ``UploadClosed``, ``UploadUnknown``."""

    def reopen(self, upload_id: bytes) -> None:
        """committing → open: segments were missing, or publication failed. Harmless when open or unknown."""

    def finish(self, upload_id: bytes) -> None:
        """committing → done, or anything → aborted: forget the upload and release what it still has reserved. Harmless
        when unknown."""

    def finish_all(self, upload_ids: Sequence[bytes]) -> None:
        """The same for many."""

    def open_uploads(self) -> Collection[UploadRecord]:
        """All uploads that are not finished (``committing`` ones too), for recovery and for the sweep of stale ones."""

    def usage_of(self, user: str) -> Usage:
        """What the user has stored and reserved."""

    def close(self) -> None:
        """Release everything."""

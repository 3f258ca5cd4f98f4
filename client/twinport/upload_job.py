"""One file on its way to the server: everything that an upload engine knows about it."""

from __future__ import annotations

from twinport_protocol.segments import Layout

from .sources import SourceFile


class UploadJob:
    """One file on its way to the server."""

    __slots__ = (
        "active",
        "changes",
        "commit_at",
        "committing",
        "counted_bytes",
        "digests",
        "epoch",
        "generation",
        "is_over",
        "layout",
        "looking",
        "moved_bytes",
        "own",
        "resends",
        "resumable",
        "resume_tried",
        "source",
        "started",
        "ticket",
        "troubles",
        "upload_id",
    )

    def __init__(self, source: SourceFile, upload_id: str) -> None:
        self.changes = 0
        self.epoch = 0
        self.is_over = False
        self.moved_bytes = 0
        self.counted_bytes = 0
        self.begin(source, upload_id)

    def begin(self, source: SourceFile, upload_id: str) -> None:
        """From the beginning, as a new upload."""
        self.source = source
        self.layout = Layout.of(source.size)
        self.upload_id = upload_id
        self.epoch += 1
        self.ticket = b""
        self.generation = 1
        self.own: tuple[str, bytes, int] | None = None
        self.resumable = ""
        self.resume_tried = False
        self.started = False
        self.committing = False
        self.commit_at = 0.0
        self.looking = False
        self.digests: dict[int, bytes] = {}
        self.active: set[int] = set()
        self.resends = 0
        self.troubles = 0

    @property
    def is_large(self) -> bool:
        """Whether the file has several segments and is committed by a command."""
        return self.layout.count > 1

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.source.size

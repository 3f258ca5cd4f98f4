"""One file on its way here: everything that a download engine knows about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinport_protocol.segments import Layout, Manifest

from .engine import Order

if TYPE_CHECKING:
    from .entries import RemoteEntry
    from .partials import Partial


class DownloadJob:
    """One file on its way here: ``name`` on the server, ``target`` below the target tree."""

    __slots__ = (
        "active",
        "counted_bytes",
        "damages",
        "done",
        "epoch",
        "executable",
        "is_listed",
        "is_over",
        "layout",
        "manifest",
        "moved_bytes",
        "mtime_ns",
        "name",
        "opened",
        "partial",
        "root",
        "size",
        "target",
        "ticket",
        "troubles",
    )

    def __init__(self, name: str, target: str, size_hint: int = 0, entry: RemoteEntry | None = None) -> None:
        """``entry`` is what a listing told, where that is to be relied on."""
        self.name = name
        self.target = target
        self.epoch = 0
        self.is_over = False
        self.moved_bytes = 0
        self.counted_bytes = 0
        self.troubles = 0
        self.damages = 0
        self.opened = False
        self.partial: Partial | None = None
        self.ticket = b""
        self.size = size_hint
        self.is_listed = entry is not None
        """Whether a listing told size, root and marks: then it may be fetched in a bundle."""
        self.root = b""
        self.mtime_ns = 0
        self.executable = False
        if entry is not None:
            self.root, self.mtime_ns, self.executable = entry.root or b"", entry.mtime_ns, entry.executable
        self.begin()

    def begin(self) -> None:
        """From the beginning, as another version."""
        self.epoch += 1
        self.layout = Layout.of(self.size)
        self.manifest: Manifest | None = None
        self.active: dict[int, Order] = {}
        self.done: set[int] = set()

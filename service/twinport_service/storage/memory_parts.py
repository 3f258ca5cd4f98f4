"""What the storage in memory is made of: versions, uploads under way, readers."""

from __future__ import annotations

from dataclasses import dataclass, field

from twinport_protocol.segments import Manifest

from twinport_service.usage import Owned

from .contract import UploadSpec


@dataclass(frozen=True)
class MemoryVersion:
    serial: int
    data: bytes
    mtime_ns: int
    executable: bool
    manifest: Manifest
    user: str

    @property
    def owned(self) -> Owned:
        """Whose it is."""
        return Owned(self.user, len(self.data))


@dataclass
class MemoryStaging:
    spec: UploadSpec
    pieces: dict[tuple[int, int], bytearray] = field(default_factory=dict)
    """By (segment, writer): what each writer has stored of a segment."""
    sealed: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """By segment and digest: the writer whose bytes they are. Nodes may seal different bytes; a manifest chooses."""


class MemoryReader:
    """The bytes of one version, as they were."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), len(self._data) - offset))
        view[:count] = self._data[offset : offset + count]
        return count

    def close(self) -> None:
        """See the contract."""

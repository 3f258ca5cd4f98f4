"""The rows of the catalogue as values."""

from __future__ import annotations

from typing import NamedTuple

from twinport_protocol.segments import Manifest

from twinport_service.usage import Owned

from .tree import Identity


class Row(NamedTuple):
    """One publication. ``ctime_ns`` is None until its batch is settled, ``digests`` where the root is the only one."""

    id: int
    path: str
    upload: bytes | None
    size: int
    mtime_ns: int
    ctime_ns: int | None
    inode: int
    root: bytes
    digests: bytes | None

    def matches(self, identity: Identity) -> bool:
        """Whether the row speaks of the file that looks like this."""
        return (
            self.inode == signed(identity.inode)
            and self.size == identity.size
            and self.mtime_ns == identity.mtime_ns
            and (self.ctime_ns is None or identity.ctime_ns <= self.ctime_ns)
        )

    @property
    def manifest(self) -> Manifest:
        """The manifest of the file."""
        return Manifest(self.size, self.root if self.digests is None else self.digests)


class NewRow(NamedTuple):
    """What a publication is recorded with."""

    path: str
    upload: bytes | None
    size: int
    mtime_ns: int
    ctime_ns: int | None
    inode: int
    root: bytes
    digests: bytes | None
    user: str | None


class Move(NamedTuple):
    """A rename of a file or directory, which is known by its inode (as :func:`signed` has it)."""

    source: str
    target: str
    inode: int


class OwnedPath(NamedTuple):
    """A path, and whose file it is."""

    path: str
    owned: Owned


def signed(inode: int) -> int:
    """An inode number as the database takes it: SQLite's integers are signed; some file systems use all 64 bits."""
    return inode - 2**64 if inode >= 2**63 else inode

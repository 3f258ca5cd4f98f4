"""Versions: tokens that name one immutable version of a file, and readers of its bytes.

A token carries name, identity and root. A version of more than ``SMALL_BYTES`` is kept open, so that it stays
readable when its name is replaced or deleted during a download; at most ``capacity`` are, the one not used for
longest is let go. Any other version is found again by its name while that still shows the same identity, else it is
``VersionGone``.
"""

from __future__ import annotations

import errno
import struct
import threading
from typing import NamedTuple

from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.names import RemoteName, parse_name_bytes
from twinport_protocol.segments import DIGEST_BYTES, Layout, Manifest

from .descriptors import LeastRecentlyUsed, SharedDescriptor
from .disk_door import DiskDoor
from .manifests import Manifests
from .staging import read_all
from .tree import Identity, Tree
from .troubles import refusal_of

_TOKEN = struct.Struct(f"!QQQqq{DIGEST_BYTES}s")


class Version(NamedTuple):
    """What a token says."""

    name: RemoteName
    identity: Identity
    root: bytes

    def token(self) -> bytes:
        """The token: at most 972 bytes."""
        return _TOKEN.pack(*self.identity, self.root) + self.name.encode()

    @classmethod
    def parse(cls, token: bytes) -> Version:
        """The version that a token of ours names; ``VersionGone`` for anything else."""
        try:
            *identity, root = _TOKEN.unpack_from(token)
            return cls(parse_name_bytes(token[_TOKEN.size :]), Identity(*identity), root)
        except (struct.error, RemoteProtocolError):
            raise Refusal(ErrorCode.VERSION_GONE, "not a token of this storage") from None


class LocalReader:
    """The bytes of one version, by a descriptor of its own or shared with others."""

    def __init__(self, door: DiskDoor, descriptor: SharedDescriptor, size: int) -> None:
        self._door = door
        self._descriptor: SharedDescriptor | None = descriptor
        self._fd = descriptor.fd
        self._size = size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """See the contract."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - offset))
        try:
            count = read_all(self._door, self._fd, view[:wanted], offset)
        except OSError as error:
            raise refusal_of(error) from None
        if count < wanted:
            raise Refusal(ErrorCode.CORRUPT, "the file was cut short")
        return count

    def send(self, socket_fd: int, offset: int, count: int) -> int:
        """See the contract."""
        wanted = max(0, min(count, self._size - offset))
        try:
            sent = self._door.send(socket_fd, self._fd, offset, wanted)
        except OSError as error:
            if error.errno == errno.EIO:  # sockets have no such error
                raise refusal_of(error) from None
            raise
        if wanted and not sent:
            raise Refusal(ErrorCode.CORRUPT, "the file was cut short")
        return sent

    def close(self) -> None:
        """See the contract."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._fd = -1
            descriptor.release()


class _Held(NamedTuple):
    descriptor: SharedDescriptor
    manifest: Manifest


class Versions:
    """The registry: see the module."""

    def __init__(self, door: DiskDoor, tree: Tree, manifests: Manifests, *, capacity: int = 256) -> None:
        self._door = door
        self._tree = tree
        self._manifests = manifests
        self._lock = threading.Lock()
        self._held: LeastRecentlyUsed[bytes, _Held] = LeastRecentlyUsed(
            capacity, lambda _, held: held.descriptor.release()
        )

    def hold(self, token: bytes, fd: int, manifest: Manifest) -> None:
        """Keep a version open; the descriptor is the registry's from here."""
        with self._lock:
            self._held.put(token, _Held(SharedDescriptor(self._door.drop, fd), manifest))

    def open_reader(self, token: bytes) -> LocalReader:
        """A reader of a version. ``VersionGone``, ``Denied``."""
        version = Version.parse(token)
        size = version.identity.size
        with self._lock:
            held = self._held.get(token)
            if held is not None and held.descriptor.retain():
                return LocalReader(self._door, held.descriptor, size)
        fd = self._reopen(version)
        return LocalReader(self._door, SharedDescriptor(self._door.drop, fd), size)

    def manifest(self, token: bytes) -> Manifest:
        """The manifest of a version. ``VersionGone``."""
        version = Version.parse(token)
        size = version.identity.size
        if Layout.of(size).count == 1:
            return Manifest(size, version.root)
        with self._lock:
            held = self._held.get(token)
        if held is not None:
            return held.manifest
        manifest = self._manifests.recorded(version.name, version.identity)
        if manifest is None:
            known = self._manifests.open(version.name)
            self._door.drop(known.fd)
            manifest = known.manifest
        if manifest.root != version.root or manifest.file_bytes != size:
            raise Refusal(ErrorCode.VERSION_GONE)
        return manifest

    def close(self) -> None:
        """Let all versions go."""
        with self._lock:
            for held in self._held.drain():
                held.descriptor.release()

    def _reopen(self, version: Version) -> int:
        try:
            fd, identity, _ = self._tree.open_file(version.name)
        except Refusal as refusal:
            if refusal.code is ErrorCode.FILE_NOT_FOUND:
                raise Refusal(ErrorCode.VERSION_GONE) from None
            raise
        if identity != version.identity:
            self._door.drop(fd)
            raise Refusal(ErrorCode.VERSION_GONE)
        return fd

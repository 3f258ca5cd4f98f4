"""Staging: one file per upload that is under way, in the storage's own directory, never visible as a file.

A large upload's file carries the upload id as its name, so that it is found again after a restart; its size is set
when it is begun, so the layout of its segments can be read from it. Small files get throw-away names. Files are
spread over ``directories`` subdirectories: see ``DiskDoor.spread_children`` for why. Descriptors are kept for the
``open_files`` uploads written to last.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.segments import Layout, segment_size_for

from .contract import Buffer
from .descriptors import LeastRecentlyUsed, SharedDescriptor
from .disk_door import DiskDoor
from .troubles import Health, is_full, refusal_of

WRITE_BACK_BYTES = 8 * 1024 * 1024
_UPLOAD_NAME = re.compile("[0-9a-f]{2,128}")
_BLOCK_BYTES = 512  # what st_blocks counts in, whatever the file system's blocks are
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL


@dataclass
class StagedFile:
    """An open staging file and how its upload is cut."""

    descriptor: SharedDescriptor
    size: int
    segment_bytes: int
    was_written: bool = False


class Staging:
    """See the module. ``directory_fd`` stays the caller's."""

    def __init__(
        self, door: DiskDoor, directory_fd: int, health: Health, *, open_files: int = 256, directories: int = 64
    ) -> None:
        self._door = door
        self._health = health
        self._lock = threading.Lock()
        self._open: LeastRecentlyUsed[bytes, StagedFile] = LeastRecentlyUsed(open_files, self._let_go)
        self._written_at = -math.inf
        self._promised: dict[bytes, int] = {}
        self._serial = itertools.count()
        self._turn = itertools.count()
        door.spread_children(directory_fd)
        self._directories: list[int] = []
        for number in range(directories):
            name = f"{number:02x}"
            with suppress(FileExistsError):
                door.make_directory(directory_fd, name, 0o700)
            self._directories.append(door.open_at(directory_fd, name, os.O_RDONLY | os.O_DIRECTORY))

    def close(self) -> None:
        """Close all descriptors; the files stay."""
        with self._lock:
            for staged in self._open.drain():
                staged.descriptor.release()
        while self._directories:
            self._door.drop(self._directories.pop())

    def recover(self, live_uploads: Mapping[bytes, int]) -> set[bytes]:
        """Remove what belongs to no live upload; the ids of those whose file is here. One of another size than its
        upload's goes too: a crash came between its making and its allocation. What has no blocks yet is promised again:
        where none could be had beforehand, only the bytes that were written have theirs."""
        live = {upload_id.hex(): upload_id for upload_id in live_uploads}
        kept: set[bytes] = set()
        for directory in self._directories:
            for name, _ in list(self._door.scan(directory)):
                upload_id = live.get(name)
                if upload_id is not None and self.locate(upload_id)[0] == directory:
                    facts = self._door.stat_at(directory, name)
                    if facts.st_size == live_uploads[upload_id]:
                        kept.add(upload_id)
                        missing_bytes = facts.st_size - facts.st_blocks * _BLOCK_BYTES
                        if missing_bytes > 0:
                            self._promised[upload_id] = missing_bytes
                        continue
                self._door.unlink(directory, name)
        return kept

    def begin(self, upload_id: bytes, size: int, *, executable: bool) -> None:
        """Make an upload's file with all its room; nothing to do when it is there. ``DiskFull``, ``StorageFault``."""
        directory, name = self.locate(upload_id)
        try:
            fd = self._door.open_at(directory, name, _CREATE, 0o777 if executable else 0o666)
        except FileExistsError:
            return
        except OSError as error:
            raise refusal_of(error) from None
        descriptor = SharedDescriptor(self._door.close, fd)
        try:
            self._allocate(upload_id, fd, size)
        except OSError as error:
            descriptor.release()
            self.remove(upload_id)
            raise refusal_of(error) from None
        with self._lock:
            self._open.put(upload_id, StagedFile(descriptor, size, segment_size_for(size)))

    def _allocate(self, upload_id: bytes, fd: int, size: int) -> None:
        """Where no blocks can be had beforehand, count what the uploads under way are still going to need."""
        if self._door.allocate(fd, size):
            return
        with self._lock:
            if self._door.free_bytes(fd) - sum(self._promised.values()) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._promised[upload_id] = size

    def write(self, upload_id: bytes, segment: int, offset: int, data: Buffer) -> None:
        """Write bytes of a segment and start their way to the disk. ``DiskFull`` and a failing disk drop the upload."""
        staged = self.acquire(upload_id)
        try:
            staged.was_written = True
            self._written_at = time.monotonic()
            start = segment * staged.segment_bytes + offset
            if start + len(data) > staged.size:
                raise Refusal(ErrorCode.BAD_REQUEST, "a piece beyond the end of the file")
            write_all(self._door, staged.descriptor.fd, data, start)
            end = start + len(data)
            if self._promised:
                with self._lock:
                    if upload_id in self._promised:
                        self._promised[upload_id] = max(0, self._promised[upload_id] - len(data))
            first, last = start // WRITE_BACK_BYTES, end // WRITE_BACK_BYTES
            if first != last:  # a piece of the walk to the disk is complete
                count = (last - first) * WRITE_BACK_BYTES
                self._door.start_write_back(staged.descriptor.fd, first * WRITE_BACK_BYTES, count)
        except OSError as error:
            if not is_full(error):
                self._health.fail("writing an upload", error)
            self.remove(upload_id)
            raise refusal_of(error) from None
        finally:
            staged.descriptor.release()

    def read(self, upload_id: bytes, segment: int, offset: int, buffer: bytearray | memoryview) -> int:
        """Read bytes of a segment back, not beyond its end. ``UploadUnknown``, ``StorageFault``."""
        staged = self.acquire(upload_id)
        try:
            layout = Layout.of(staged.size)
            if segment >= layout.count:  # somebody has cut the file short
                raise Refusal(ErrorCode.UPLOAD_UNKNOWN, f"{staged.size} bytes are staged")
            room = max(0, layout.length(segment) - offset)
            view = memoryview(buffer).cast("B")[:room]
            return read_all(self._door, staged.descriptor.fd, view, segment * staged.segment_bytes + offset)
        except OSError as error:
            raise refusal_of(error) from None
        finally:
            staged.descriptor.release()

    def acquire(self, upload_id: bytes) -> StagedFile:
        """An upload's open file; the caller releases its descriptor. ``UploadUnknown``."""
        with self._lock:
            staged = self._open.get(upload_id)
            if staged is not None and staged.descriptor.retain():
                return staged
            directory, name = self.locate(upload_id)
            try:
                fd = self._door.open_at(directory, name, os.O_RDWR)
            except FileNotFoundError:
                raise Refusal(ErrorCode.UPLOAD_UNKNOWN) from None
            except OSError as error:
                raise refusal_of(error) from None
            descriptor = SharedDescriptor(self._door.close, fd)
            size = self._door.fstat(fd).st_size
            staged = StagedFile(descriptor, size, segment_size_for(size))
            descriptor.retain()
            self._open.put(upload_id, staged)
            return staged

    def locate(self, upload_id: bytes) -> tuple[int, str]:
        """The directory and the name of an upload's file, whether or not it is there."""
        return self._directories[upload_id[0] % len(self._directories)], upload_id.hex()

    def holds(self, upload_id: bytes) -> bool:
        """Whether an upload's file is there."""
        try:
            self._door.stat_at(*self.locate(upload_id))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise refusal_of(error) from None
        return True

    @property
    def rest_seconds(self) -> float:
        """How long no large upload has been written to."""
        return time.monotonic() - self._written_at

    @property
    def promised_bytes(self) -> int:
        """What uploads under way still need where no blocks can be had beforehand."""
        with self._lock:
            return sum(self._promised.values())

    def next_directory(self) -> int:
        """The directory for the next batch of small files."""
        return self._directories[next(self._turn) % len(self._directories)]

    def next_name(self) -> str:
        """A name for a small file; no upload id looks like it."""
        return f"s{next(self._serial):x}"

    def forget(self, upload_id: bytes) -> None:
        """Close an upload's descriptor; the error of ``close`` when this was the last holder."""
        with self._lock:
            staged = self._open.pop(upload_id)
            self._promised.pop(upload_id, None)
        if staged is not None:
            staged.descriptor.release()

    def remove(self, upload_id: bytes) -> None:
        """Remove an upload's file; harmless when it is not there."""
        try:
            self.forget(upload_id)
        except OSError as error:
            self._health.fail("closing an upload", error)
        directory, name = self.locate(upload_id)
        self.discard(directory, name)

    def discard(self, directory: int, name: str) -> None:
        """Remove a staging file that failed; what cannot be removed now is removed at the next start."""
        try:
            self._door.unlink(directory, name)
        except OSError:
            return

    def _let_go(self, upload_id: bytes, staged: StagedFile) -> None:
        """A descriptor leaves the cache: with it would go the kernel's word about failed writes, so ask for it now."""
        del upload_id
        try:
            try:
                if staged.was_written:
                    self._door.fsync(staged.descriptor.fd)
            finally:
                staged.descriptor.release()
        except OSError as error:
            self._health.fail("flushing an upload", error)


def write_all(door: DiskDoor, fd: int, data: Buffer, offset: int) -> None:
    """Write all of ``data``; a full disk first writes less, then says so."""
    written = door.write(fd, data, offset)
    if written < len(data):
        view = memoryview(data).cast("B")
        while written < len(view):
            written += door.write(fd, view[written:], offset + written)


def read_all(door: DiskDoor, fd: int, view: memoryview, offset: int) -> int:
    """Fill ``view``; fewer bytes only at the end of the file."""
    count = door.read_into(fd, view, offset) if len(view) else 0
    while 0 < count < len(view):
        more = door.read_into(fd, view[count:], offset + count)
        if not more:
            break
        count += more
    return count

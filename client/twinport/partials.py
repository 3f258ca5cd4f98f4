"""Unfinished downloads: a hidden file beside the target that takes the target's name only when all of it is verified.

    .{name}.twinport-part     the file's bytes, each at its place, then a trailer at the next multiple of 8:
                              magic 8 | size 8 | root 32 | for each segment: bytes written from its beginning on, 8

It loses the trailer when all is verified, before it is flushed; one without a trailer claims all that it has.

The trailer is a claim that saves reading holes, never a proof: what it claims is hashed against the manifest before it
counts, and a claim about another root or size is dropped with its bytes. It needs no flush: after a power cut it claims
too little or is refuted. The file is locked while a program works on it, so that two never write the same partial.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading

from twinport_protocol.segments import Layout, digest_of

from .errors import BusyError, DeniedError, SpaceError
from .target_tree import Directory, TargetTree
from .walk import PARTIAL_SUFFIX

_TRAILER = struct.Struct("!8sQ32s")
_CLAIM = struct.Struct("!Q")
_MAGIC = b"TPpart1\n"
_MAX_COMPONENT_BYTES = 255
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_TRIES = 5
_COPY_BITS = 0o444


def partial_name(base: str) -> str:
    """What the partial of ``base`` is called; of a name too long for that, by its digest."""
    name = f".{base}{PARTIAL_SUFFIX}"
    raw = base.encode("utf-8", "surrogateescape")
    if len(raw) + 1 + len(PARTIAL_SUFFIX) > _MAX_COMPONENT_BYTES:
        return f".{digest_of(raw).hex()}{PARTIAL_SUFFIX}"
    return name


class Partial:
    """One open, locked partial of the file ``name`` below ``tree``. Its owner closes or publishes it.

    ``BusyError`` when another program works on it, ``DeniedError`` when what is there is no partial of this user,
    ``OSError``.
    """

    def __init__(self, tree: TargetTree, name: str, *, executable: bool = False) -> None:
        self._tree = tree
        self.name = name
        parent, _, self._base = name.rpartition("/")
        self._partial = partial_name(self._base)
        self._executable = executable
        self._trailer_at = 0
        self.device = 0
        self.directory: Directory = tree.hold(parent)
        self.descriptor = -1
        self.is_fresh = True
        self.lock = threading.Lock()
        """Held for each read and write of a segment, together with the question whether it is still wanted."""
        try:
            self._open()
        except BaseException:
            tree.release(self.directory)
            raise

    def _open(self) -> None:
        at = self.directory.descriptor
        for _ in range(_TRIES):
            try:
                mode = 0o777 if self._executable else 0o666
                self.descriptor = os.open(self._partial, _FLAGS | os.O_CREAT | os.O_EXCL, mode, dir_fd=at)
                self.is_fresh = True
            except FileExistsError:
                try:
                    self.descriptor = os.open(self._partial, _FLAGS, dir_fd=at)
                except FileNotFoundError:
                    continue  # just now published or removed by another program
                except OSError as error:
                    if error.errno in (errno.ELOOP, errno.EMLINK):
                        raise self._foreign() from None
                    raise
                self.is_fresh = False
            try:
                if self._lock():
                    return
            except BaseException:
                self._shut()
                raise
            self._shut()
        raise BusyError(f"cannot write {self._tree.show(self.name)}: another program keeps replacing its partial")

    def _lock(self) -> bool:
        """Whether the open file is locked and still the one under the partial's name."""
        found = os.fstat(self.descriptor)
        self.device = found.st_dev
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
            raise self._foreign()
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "another program is fetching it; wait for it to end"
            raise BusyError(f"cannot write {self._tree.show(self.name)}: {text}") from None
        return self.is_fresh or self._is_named()

    def _is_named(self) -> bool:
        """Whether the open file is still the one under the partial's name."""
        found = os.fstat(self.descriptor)
        try:
            named = os.stat(self._partial, dir_fd=self.directory.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)

    def _foreign(self) -> DeniedError:
        text = f"{self._partial} beside it is no unfinished download of this user; remove it"
        return DeniedError(f"cannot write {self._tree.show(self.name)}: {text}")

    def write_whole(self, data: bytes | bytearray | memoryview) -> None:
        """The whole content of a small file."""
        if not self.is_fresh:
            os.ftruncate(self.descriptor, 0)
        view = memoryview(data)
        while view:
            view = view[os.write(self.descriptor, view) :]

    def begin(self, size: int, root: bytes) -> list[int]:
        """Prepare for a file of that size and root; for each segment the bytes that an earlier run claims to have."""
        layout = Layout.of(size)
        self._trailer_at = -(-size // 8) * 8
        end = self._trailer_at + _TRAILER.size + _CLAIM.size * layout.count
        head = _TRAILER.pack(_MAGIC, size, root)
        if not self.is_fresh:
            trailer = os.pread(self.descriptor, end - self._trailer_at + 1, self._trailer_at)
            if len(trailer) == end - self._trailer_at and trailer.startswith(head):
                claims = [claim for (claim,) in _CLAIM.iter_unpack(trailer[_TRAILER.size :])]
                return [min(claim, layout.length(segment)) for segment, claim in enumerate(claims)]
            if os.fstat(self.descriptor).st_size == size:
                # Sealed, and killed before it got its name: perhaps whole. It is hashed, as every claim is.
                wholes = [layout.length(segment) for segment in range(layout.count)]
                os.pwrite(self.descriptor, head + b"".join(map(_CLAIM.pack, wholes)), self._trailer_at)
                return wholes
            os.ftruncate(self.descriptor, 0)
        self._reserve(end)
        os.pwrite(self.descriptor, head + bytes(end - self._trailer_at - len(head)), self._trailer_at)
        return [0] * layout.count

    def _reserve(self, end: int) -> None:
        room = os.fstatvfs(self.descriptor)
        if room.f_bavail * room.f_frsize < end:
            text = f"it needs {end} bytes, the disk has less free; free some space, or choose another place"
            raise SpaceError(f"cannot write {self._tree.show(self.name)}: {text}")
        # Major 0 are tmpfs, overlays and network file systems: reserving there costs as much as writing.
        if os.major(os.fstat(self.descriptor).st_dev) and hasattr(os, "posix_fallocate"):
            try:
                _reserve_blocks(self.descriptor, end)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
        os.ftruncate(self.descriptor, end)

    def write(self, data: memoryview, offset: int) -> None:
        """Bytes at their place in the file."""
        while data:
            count = os.pwrite(self.descriptor, data, offset)
            data = data[count:]
            offset += count

    def claim(self, segment: int, length: int) -> None:
        """The first ``length`` bytes of a segment are written."""
        at = self._trailer_at + _TRAILER.size + _CLAIM.size * segment
        os.pwrite(self.descriptor, _CLAIM.pack(length), at)

    def seal(self, size: int, mtime_ns: int, executable: bool) -> None:
        """All is verified: drop the trailer, set the time and the executable bit. Not durable yet, not visible yet."""
        found = os.fstat(self.descriptor)
        if found.st_size != size:
            os.ftruncate(self.descriptor, size)
        if executable != bool(found.st_mode & stat.S_IXUSR):
            mode = stat.S_IMODE(found.st_mode) & 0o666
            os.fchmod(self.descriptor, mode | (mode & _COPY_BITS) >> 2 if executable else mode)
        os.utime(self.descriptor, ns=(mtime_ns, mtime_ns))

    def publish(self) -> None:
        """Under its name from now on: after the content is durable. The directory must be flushed after. ``OSError``;
        ``BusyError`` when the partial's name stands for another file by now, whose bytes nobody verified."""
        if not self._is_named():
            text = "another program replaced its partial; run the same command again"
            raise BusyError(f"cannot write {self._tree.show(self.name)}: {text}")
        at = self.directory.descriptor
        os.rename(self._partial, self._base, src_dir_fd=at, dst_dir_fd=at)

    def discard(self) -> None:
        """Remove it, if that can be. Never raises: whoever discards has a failure to report already, and what stays is
        verified before any of it is used."""
        with contextlib.suppress(OSError):
            if self._is_named():
                os.unlink(self._partial, dir_fd=self.directory.descriptor)

    def _shut(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            # What closing reports (a network file system, late) is about bytes that are verified when they are needed.
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def close(self) -> None:
        """Unlock and close; what is there stays for the next run."""
        with self.lock:
            if self.descriptor < 0:
                return
            self._shut()
        self._tree.release(self.directory)


def _reserve_blocks(descriptor: int, size: int) -> None:
    """``fallocate(2)`` itself: Python's ``posix_fallocate`` writes zeros where the file system lacks it."""
    import ctypes  # noqa: PLC0415  # 10 ms that only large downloads pay

    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None:
        return
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(descriptor, 0, 0, size) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

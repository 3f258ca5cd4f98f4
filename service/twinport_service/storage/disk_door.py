"""The disk door: every file-system call of the local storage goes through this one small class.

So a test can put a subclass in its place that fails the N-th call, or dies in it, and a reader finds in one page what
the storage asks of the kernel. All names are relative to a directory descriptor; nothing here follows a symlink.

Python has no call for some of what is needed (``openat2``, ``renameat2``, the real ``fallocate``,
``sync_file_range``, ``syncfs``): these go through ctypes to libc, and each has a fallback where kernel, libc or file
system lack it. Python's own ``os.posix_fallocate`` is not used: where the file system cannot allocate, glibc writes a
zero into every block.

Every method raises ``OSError``; nothing is retried but ``EINTR``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_WAIT_AFTER = 4
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_TOPDIR_FL = 0x00020000
_STATFS_BYTES = 256  # more than any architecture's struct statfs; its type is the first word
_TMPFS_MAGIC = 0x01021994
_EINTR_TRIES = 100

O_PATH: int = getattr(os, "O_PATH", 0)
_NEVER_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OFFSET = ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "renameat2": (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint),
    "fallocate": (ctypes.c_int, ctypes.c_int, _OFFSET, _OFFSET),
    "sync_file_range": (ctypes.c_int, _OFFSET, _OFFSET, ctypes.c_uint),
    "syncfs": (ctypes.c_int,),
    "fstatfs": (ctypes.c_int, ctypes.c_void_p),
}


def _load_libc() -> dict[str, Callable[..., int]]:
    libc = ctypes.CDLL(None, use_errno=True)
    found: dict[str, Callable[..., int]] = {}
    for name, signature in _SIGNATURES.items():
        function = getattr(libc, name, None)
        if function is not None:
            function.argtypes = signature
            function.restype = ctypes.c_int
            found[name] = function
    if hasattr(libc, "syscall"):
        libc.syscall.argtypes = (
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(_OpenHow),
            ctypes.c_size_t,
        )
        libc.syscall.restype = ctypes.c_long
        found["openat2"] = lambda directory, path, how: libc.syscall(
            _SYS_OPENAT2, directory, path, ctypes.byref(how), ctypes.sizeof(how)
        )
    return found


_LIBC = _load_libc()
_RENAMEAT2 = _LIBC.get("renameat2")
_KERNEL = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def _call(name: str, *arguments: object) -> int:
    """Call a libc function, ``EINTR`` retried; ``OSError`` on failure, ``ENOSYS`` where libc has no such function."""
    function = _LIBC.get(name)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)
    for _ in range(_EINTR_TRIES):
        result = function(*arguments)
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EINTR:
            break
    raise OSError(number, os.strerror(number), name)


class DiskDoor:
    """The calls. ``use_openat2`` and ``use_renameat2`` false take the fallbacks at once, as an old kernel would."""

    def __init__(self, *, use_openat2: bool = True, use_renameat2: bool = True, use_fallocate: bool = True) -> None:
        self._has_openat2 = use_openat2
        self._has_renameat2 = use_renameat2
        self._has_fallocate = use_fallocate

    # opening ---------------------------------------------------------------------------------------------------------

    def open_root(self, path: str) -> int:
        """The one directory that is opened by an absolute path; symlinks on the way to it are the operator's."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_beneath(self, directory: int, path: str, flags: int) -> int:
        """Open ``path`` (several components) without leaving ``directory`` and without passing any symlink.

        A symlink anywhere is ``ELOOP``, leaving is ``EXDEV``. With ``O_PATH`` the last component may be a symlink,
        which is then opened itself, for ``fstat`` to show.
        """
        if self._has_openat2:
            resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
            # O_NOFOLLOW would let O_DIRECTORY say ENOTDIR of a link; only O_PATH needs it, to open the link itself.
            how = _OpenHow(flags | os.O_CLOEXEC | (os.O_NOFOLLOW if flags & O_PATH else 0), 0, resolve)
            try:
                return _call("openat2", directory, os.fsencode(path), how)
            except OSError as error:
                # EPERM is how seccomp filters of container runtimes answer a call that they do not know.
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._has_openat2 = False
        return self._walk_beneath(directory, path, flags | _NEVER_FOLLOW)

    def _walk_beneath(self, directory: int, path: str, flags: int) -> int:
        parts = path.split("/")
        here = directory
        try:
            for position, part in enumerate(parts):
                if part in ("", ".", ".."):
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
                is_last = position == len(parts) - 1
                try:
                    below = os.open(part, flags if is_last else O_PATH | os.O_DIRECTORY | _NEVER_FOLLOW, dir_fd=here)
                except NotADirectoryError:
                    # O_DIRECTORY on a symlink says ENOTDIR; openat2 says ELOOP.
                    if stat.S_ISLNK(os.stat(part, dir_fd=here, follow_symlinks=False).st_mode):
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
                    raise
                if here != directory:
                    os.close(here)
                here = below
            return here
        except BaseException:
            if here != directory:
                os.close(here)
            raise

    def open_at(self, directory: int, name: str, flags: int, mode: int = 0o666) -> int:
        """Open one plain component; a symlink is ``ELOOP`` (``ENOTDIR`` with ``O_DIRECTORY``)."""
        return os.open(name, flags | _NEVER_FOLLOW, mode, dir_fd=directory)

    def close(self, descriptor: int) -> None:
        """Close; an error counts as a write error, and the descriptor is gone all the same."""
        os.close(descriptor)

    def drop(self, descriptor: int) -> None:
        """Close a descriptor that nothing was written through: an error would mean nothing."""
        with suppress(OSError):
            os.close(descriptor)

    # looking ---------------------------------------------------------------------------------------------------------

    def fstat(self, descriptor: int) -> os.stat_result:
        """The facts of what is open."""
        return os.fstat(descriptor)

    def stat_at(self, directory: int, name: str) -> os.stat_result:
        """The facts of one component; of a symlink itself."""
        return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def scan(self, directory: int) -> Iterator[tuple[str, str]]:
        """Names in a directory and their kinds: ``f``, ``d``, or ``-`` for anything else."""
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    yield entry.name, "f"
                else:
                    yield entry.name, "d" if entry.is_dir(follow_symlinks=False) else "-"

    def free_bytes(self, descriptor: int) -> int:
        """What an ordinary user may still write to this file system."""
        facts = os.fstatvfs(descriptor)
        return facts.f_bavail * facts.f_frsize

    def free_files(self, descriptor: int) -> int | None:
        """How many inodes an ordinary user may still take; None where the file system makes them as needed."""
        facts = os.fstatvfs(descriptor)
        return facts.f_favail if facts.f_files else None

    # bytes -----------------------------------------------------------------------------------------------------------

    def allocate(self, descriptor: int, size_bytes: int) -> bool:
        """Give a new file its size, and its blocks: ``ENOSPC`` when they are not there.

        False where only the size was set: the file system cannot allocate, or it is a tmpfs, where allocating touches
        every page (0.25 s per GiB) for room that ``free_bytes`` tells as well.
        """
        if size_bytes and self._has_fallocate and not self._is_tmpfs(descriptor):
            try:
                _call("fallocate", descriptor, 0, 0, size_bytes)
                return True
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self._has_fallocate = False
        os.ftruncate(descriptor, size_bytes)
        return False

    def _is_tmpfs(self, descriptor: int) -> bool:
        facts = ctypes.create_string_buffer(_STATFS_BYTES)
        try:
            _call("fstatfs", descriptor, facts)
        except OSError:
            return False
        return ctypes.c_long.from_buffer(facts).value == _TMPFS_MAGIC

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> int:
        """``pwrite``: how much was written."""
        return os.pwrite(descriptor, data, offset)

    def read_into(self, descriptor: int, buffer: bytearray | memoryview, offset: int) -> int:
        """``preadv`` into the caller's memory: how much was read, 0 at the end."""
        return os.preadv(descriptor, (buffer,), offset)

    def send(self, socket: int, descriptor: int, offset: int, count: int) -> int:
        """``sendfile``: how much went."""
        return os.sendfile(socket, descriptor, offset, count)

    def set_mtime(self, descriptor: int, mtime_ns: int) -> None:
        """Set the mtime; the atime as well, there is no call for one alone in Python."""
        os.utime(descriptor, ns=(mtime_ns, mtime_ns))

    def set_executable(self, descriptor: int, *, executable: bool) -> None:
        """Let all who may read the file execute it, or nobody."""
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode) & ~0o111
        os.fchmod(descriptor, mode | (mode & 0o444) >> 2 if executable else mode)

    # durability ------------------------------------------------------------------------------------------------------

    def start_write_back(self, descriptor: int, offset: int, count: int) -> None:
        """Ask the kernel to begin writing a range (0 bytes: to the end); promises nothing, costs little."""
        self._sync_range(descriptor, offset, count, _SYNC_FILE_RANGE_WRITE)

    def await_write_back(self, descriptor: int, offset: int, count: int) -> None:
        """Wait until a range was written, to tell progress by; durable only after ``fsync``."""
        flags = _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE | _SYNC_FILE_RANGE_WAIT_AFTER
        self._sync_range(descriptor, offset, count, flags)

    def _sync_range(self, descriptor: int, offset: int, count: int, flags: int) -> None:
        try:
            _call("sync_file_range", descriptor, offset, count, flags)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP):
                raise

    def fsync(self, descriptor: int) -> None:
        """Make a file's bytes and facts durable. After a failure the kernel forgets what was lost: never ask again."""
        os.fsync(descriptor)

    def fsync_directory(self, descriptor: int) -> None:
        """Make a directory's names durable."""
        os.fsync(descriptor)

    @property
    def syncs_honestly(self) -> bool:
        """Whether ``sync_file_system`` reports what could not be written: Linux does since 5.8."""
        return "syncfs" in _LIBC and _KERNEL >= (5, 8)

    def sync_file_system(self, descriptor: int) -> None:
        """Make everything on the file system durable, strangers' bytes as well."""
        try:
            _call("syncfs", descriptor)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            os.sync()

    # names -----------------------------------------------------------------------------------------------------------

    def rename(self, source: int, name: str, target: int, new_name: str) -> None:
        """Rename, replacing what is there."""
        os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)

    def rename_new(self, source: int, name: str, target: int, new_name: str) -> None:
        """Rename where nothing stands; ``EEXIST`` otherwise, decided atomically (but for directories without
        renameat2)."""
        if self._has_renameat2 and _RENAMEAT2 is not None:
            # Called directly: this is done once for each small file.
            if _RENAMEAT2(source, name.encode(), target, new_name.encode(), _RENAME_NOREPLACE) == 0:
                return
            number = ctypes.get_errno()
            if number not in _UNSUPPORTED:
                raise OSError(number, os.strerror(number), new_name)
            if number == errno.ENOSYS:
                self._has_renameat2 = False
        self._link_new(source, name, target, new_name)

    def _link_new(self, source: int, name: str, target: int, new_name: str) -> None:
        if self._is_directory(source, name):
            try:
                self.stat_at(target, new_name)
            except FileNotFoundError:
                os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
                return
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name)
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        os.unlink(name, dir_fd=source)

    def _is_directory(self, directory: int, name: str) -> bool:
        return stat.S_ISDIR(self.stat_at(directory, name).st_mode)

    def unlink(self, directory: int, name: str) -> None:
        """Remove a name that is not a directory."""
        os.unlink(name, dir_fd=directory)

    def make_directory(self, directory: int, name: str, mode: int = 0o777) -> None:
        """Make a directory; the umask applies."""
        os.mkdir(name, mode, dir_fd=directory)

    def remove_directory(self, directory: int, name: str) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=directory)

    def spread_children(self, directory: int) -> None:
        """Have ext4 put each directory made below into another block group (``chattr +T``); a wish, never an error.

        ext4 will not reuse an inode for minutes after it was freed and steps over each one when it looks for a free
        one, so in a group where thousands of files were just replaced, making one costs half a millisecond of CPU.
        """
        flags = bytearray(8)
        try:
            fcntl.ioctl(directory, _FS_IOC_GETFLAGS, flags)
            wanted = int.from_bytes(flags[:4], "little") | _FS_TOPDIR_FL
            fcntl.ioctl(directory, _FS_IOC_SETFLAGS, wanted.to_bytes(8, "little"))
        except OSError:
            return

    def lock(self, descriptor: int) -> None:
        """Take an exclusive ``flock`` at once; ``BlockingIOError`` when another process holds it."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

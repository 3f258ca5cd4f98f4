"""The files of the audit log: ``audit.jsonl``, and the rotated ones from ``audit.000001.jsonl.gz`` on, oldest first.

Numbers and not times name rotated files, so that their order stands when the clock is set. All are 0600 in a 0700
directory. A file is complete under its number before it is compressed, and there uncompressed until it is.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .log import get_log
from .rationed_log import RationedLog

CURRENT_NAME = "audit.jsonl"
_ROTATED = re.compile(r"audit\.([0-9]{6,12})\.jsonl(\.gz)?", re.ASCII)
_FILE_MODE = 0o600
_LOOK_SECONDS = 1.0
_GZIP_LEVEL = 6
_YOUNG_SECONDS = 7 * 86_400
_COMPLAINT_SECONDS = 3600.0


def list_rotated(directory: Path) -> list[Path]:
    """The rotated files, oldest first; where one is just being compressed, its uncompressed form."""
    found: dict[int, Path] = {}
    for name in sorted(os.listdir(directory)):  # "….jsonl" before "….jsonl.gz"
        match = _ROTATED.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), directory / name)
    return [found[number] for number in sorted(found)]


def number_of(path: Path) -> int:
    """The number of a rotated file."""
    match = _ROTATED.fullmatch(path.name)
    if match is None:
        raise ValueError(path.name)
    return int(match[1])


class AuditFiles:
    """The writing end, for one thread. ``OSError`` wherever the disk fails; what was asked for may be asked again."""

    def __init__(self, directory: Path, *, max_bytes: int, keep: int) -> None:
        self._directory = directory
        self._path = directory / CURRENT_NAME
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor = -1
        self._size = 0
        self._looked_at = 0.0
        self._compressor: threading.Thread | None = None
        self._complaints = RationedLog(_COMPLAINT_SECONDS)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open()
        for half_done in directory.glob("audit.*.jsonl.gz.new"):
            half_done.unlink(missing_ok=True)
        self._start_compressor()

    def write(self, lines: Sequence[bytes]) -> int:
        """Append lines in one call, as many as belong into the current file, at least one; how many. All or nothing."""
        if not lines:
            return 0
        self._look()
        if self._size and self._size + len(lines[0]) > self._max_bytes:
            self._rotate()
        count, total = 0, 0
        for line in lines:
            if count and self._size + total + len(line) > self._max_bytes:
                break
            count += 1
            total += len(line)
        self._append(b"".join(lines[:count]))
        return count

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            # Half a line would spoil the next one too. Where even this fails, the next open ends the line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def reopen(self) -> None:
        """Go on in the file that has the name now."""
        self._close_descriptor()
        self._open()

    def sync(self) -> None:
        """Make durable what was written."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)

    def _look(self) -> None:
        """Whether the file was moved away or removed; looked after once a second."""
        if self._descriptor < 0:
            self._open()
            return
        now = time.monotonic()
        if now < self._looked_at + _LOOK_SECONDS:
            return
        self._looked_at = now
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            self.reopen()

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, _FILE_MODE)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a power cut left half a line
                size += os.write(descriptor, b"\n")
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._size = descriptor, size
        self._looked_at = time.monotonic()

    def _rotate(self) -> None:
        os.fsync(self._descriptor)
        rotated = list_rotated(self._directory)
        number = number_of(rotated[-1]) + 1 if rotated else 1
        os.rename(self._path, self._directory / f"audit.{number:06}.jsonl")
        self.reopen()
        for old in rotated[: max(0, len(rotated) + 1 - self._keep)]:
            self._complain_if_young(old)
            old.unlink(missing_ok=True)
            old.with_name(old.name + ".gz").unlink(missing_ok=True)
        self._start_compressor()

    def _complain_if_young(self, old: Path) -> None:
        """Lines go that somebody may still want to read: the log is small for what is done here, or is being washed."""
        for path in (old, old.with_name(old.name + ".gz")):  # it may be compressed just now
            try:
                written_at = path.stat().st_mtime
                break
            except OSError:
                continue
        else:
            return  # somebody else removed it
        if time.time() - written_at < _YOUNG_SECONDS:
            self._complaints.error(
                "[AUDIT] Entries less than 7 days old are removed: raise audit-keep or audit-max-bytes, "
                "and see who fills the audit log",
                file=old.name,
            )

    def _start_compressor(self) -> None:
        if self._compressor is not None and self._compressor.is_alive():
            return  # what it leaves is taken up at the next rotation
        try:
            self._compressor = threading.Thread(target=self._compress, name="audit-gzip", daemon=True)
            self._compressor.start()
        except RuntimeError:  # no thread to be had: larger files until the next rotation
            self._compressor = None

    def _compress(self) -> None:
        """Compress what is not; a file that cannot be stays as it is."""
        try:
            for path in list_rotated(self._directory):
                if path.suffix != ".gz":
                    _compress(path)
        except OSError as error:
            get_log().warning("[AUDIT] Cannot compress a rotated audit log", error=error.strerror)

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def close(self) -> None:
        """Make durable what was written, and end."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):  # nobody is left who could do anything about it
                os.fsync(self._descriptor)
        self._close_descriptor()
        if self._compressor is not None:
            self._compressor.join()


def _compress(path: Path) -> None:
    part = path.with_name(path.name + ".gz.new")
    part.unlink(missing_ok=True)
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _FILE_MODE)
        with open(descriptor, "wb") as raw:
            with path.open("rb") as plain, gzip.GzipFile("", "wb", _GZIP_LEVEL, raw) as packed:
                shutil.copyfileobj(plain, packed, 1024 * 1024)
                written_ns = os.fstat(plain.fileno()).st_mtime_ns
            raw.flush()
            os.utime(raw.fileno(), ns=(written_ns, written_ns))  # how old its last line is
            os.fsync(raw.fileno())
        os.rename(part, path.with_name(path.name + ".gz"))
    except FileNotFoundError:
        part.unlink(missing_ok=True)  # so old by now that the rotation removed it
        return
    except OSError:
        part.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)

"""What every storage promises, in words: shaped for a disk and for an object store alike.

No path and no descriptor of the storage leaks out of it. Implementations stand beside this file (``local``,
``memory``); one contract test suite runs on all of them. Every method may block and may be called from any thread; none
is called on the event loop. Every refusal is a :class:`twinport_protocol.errors.Refusal` with one of the codes named at
the method.

The storage stores and publishes; it does not judge. Generations, fencing, who may do what and whether bytes match their
digest are decided above it (``uploads.py``), so that they are decided once.

It tells the usage book it is given (``usage.UsageKeeper``) what it holds: all at ``start``, and each publication,
deletion and replacement together with it, under whatever decides who is first.

Life of an upload here: ``begin`` → (``put_piece``… ``seal_segment``)… → ``commit`` or ``abort``; or, for a small file
whose bytes are all in hand, ``commit_small`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from twinport_protocol.errors import Refusal
from twinport_protocol.names import RemoteName
from twinport_protocol.segments import Manifest

Buffer = bytes | bytearray | memoryview

SMALL_BYTES = 256 * 1024
"""Files up to this size may be committed whole by ``commit_small``."""


@dataclass(frozen=True)
class Precondition:
    """What must hold for the name at the moment of publication; decided atomically with it."""

    if_absent: bool = False
    if_match: bytes | None = None


ALWAYS = Precondition()


@dataclass(frozen=True)
class FileMarks:
    """What a file carries besides its bytes. Without ``mtime_ns`` it gets the time of its publication."""

    mtime_ns: int | None = None
    executable: bool = False


@dataclass(frozen=True)
class UploadSpec:
    """Everything about an upload that is known before its first byte."""

    upload_id: bytes
    user: str
    name: RemoteName
    size: int
    mtime_ns: int | None = None
    executable: bool = False
    precondition: Precondition = field(default=ALWAYS)
    root: bytes | None = None
    """What the bytes must add up to, where the client knew it beforehand; checked by whoever commits."""


@dataclass(frozen=True)
class Published:
    """What stands under the name now, durably. ``user`` is whose upload it was, ``is_repeated`` says that it
    answers one more COMMIT of what was published before, or by another one."""

    upload_id: bytes
    name: RemoteName
    size: int
    mtime_ns: int
    root: bytes
    user: str
    is_repeated: bool = field(default=False, compare=False)


OnDone = Callable[[Published | Refusal], None]
"""Called exactly once, from any thread, when a commit is durable or has failed. Must not block or raise."""
OnProgress = Callable[[int], None]
"""Called now and then with the bytes made durable so far."""


class WholeFile(NamedTuple):
    """A small file whose bytes are all in hand, on its way to its name. ``digest`` is its root, compared already;
    ``on_done`` tells its outcome."""

    spec: UploadSpec
    data: Buffer
    digest: bytes
    on_done: OnDone


class SmallFile(NamedTuple):
    """A stored file of at most ``SMALL_BYTES`` with its bytes, which nobody has compared with its root yet."""

    data: Buffer
    mtime_ns: int
    executable: bool
    root: bytes


@dataclass(frozen=True)
class VersionInfo:
    """One immutable version of a file. ``token`` (at most 1,400 bytes) names it to ``open_reader`` and ``manifest``."""

    token: bytes
    name: RemoteName
    size: int
    mtime_ns: int
    executable: bool
    root: bytes


@dataclass(frozen=True)
class Entry:
    """One line of a listing. ``kind`` is ``"f"`` or ``"d"``; ``root`` is given only where it costs no hashing."""

    name: str
    kind: str
    size: int
    mtime_ns: int
    executable: bool = False
    root: bytes | None = None

    @property
    def key(self) -> str:
        """What listings are ordered by (as UTF-8 bytes) and ``after=`` is compared with: a directory ends in ``/``."""
        return self.name + "/" if self.kind == "d" else self.name


@dataclass(frozen=True)
class Page:
    """A part of a listing in the order of ``Entry.key``; ``more`` when entries follow the last one."""

    entries: Sequence[Entry]
    more: bool


class HashingNeeded(Exception):  # noqa: N818  no error, but a matter for another thread
    """A file must be hashed first, and that was not to be done now."""


class Reader(Protocol):
    """The bytes of one version; they never change, whatever happens to the name. Used by one thread."""

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Fill ``buffer`` from ``offset``; fewer bytes only at the end of the file. ``StorageFault``, ``Corrupt``."""

    def close(self) -> None:
        """Release it; harmless when repeated."""


@runtime_checkable
class SendingReader(Reader, Protocol):
    """A reader whose storage can send without a copy through this process."""

    def send(self, socket_fd: int, offset: int, count: int) -> int:
        """Send up to ``count`` bytes straight to a non-blocking plain socket; how many went.

        ``BlockingIOError`` when none could. Raises ``StorageFault``, ``Corrupt``; other ``OSError`` is the socket's.
        """


class Storage(Protocol):
    """The contract.

    ``Refusal`` codes beyond those named: ``StorageFault`` (an I/O error), ``ReadOnly`` (any write after a failed
    flush), ``Denied`` (something stands under the name that is neither a file nor a directory of this storage).
    """

    def start(self, live_uploads: Mapping[bytes, int]) -> Collection[bytes]:
        """Recover from whatever the last run left; once, before any other call.

        Drops staging of uploads not in ``live_uploads``, which gives their sizes, and staging that was not made whole;
        returns those of them whose staging is really here, so that the caller forgets the rest."""

    def interrupt(self) -> None:
        """The server stops: hashing ends with ``ShuttingDown``, now and from now on. Commits are not disturbed."""

    def close(self) -> None:
        """Finish the commits under way, release everything."""

    # uploads ---------------------------------------------------------------------------------------------------------

    def begin(self, spec: UploadSpec) -> None:
        """Make room for an upload. ``DiskFull`` before a byte travels; ``NameConflict``, ``Exists``, ``Changed`` early
        if they are already certain (``commit`` decides them for good). Harmless when repeated for the same id."""

    def put_piece(self, upload_id: bytes, writer: int, segment: int, offset: int, data: Buffer) -> None:
        """Store bytes of an unsealed segment, ``offset`` counted within it.

        The caller sees to it that a segment has one writer at a time in this process, that offsets are contiguous and
        within the segment; ``writer`` tells apart writers of the same segment on other nodes. ``DiskFull`` (the upload
        is dropped), ``UploadUnknown``."""

    def seal_segment(self, upload_id: bytes, writer: int, segment: int, digest: bytes) -> None:
        """These bytes of this writer are the segment from now on: verified by the caller, immutable.

        On several nodes two writers may come here with different bytes, one of them fenced a moment later: the digest
        in the manifest that ``commit`` is given says which are meant."""

    def read_staged(self, upload_id: bytes, segment: int, offset: int, buffer: bytearray | memoryview) -> int:
        """Read back staged bytes of a segment, to hash them again; fewer where fewer are held."""

    def commit(
        self, spec: UploadSpec, manifest: Manifest, on_done: OnDone, on_progress: OnProgress | None = None
    ) -> None:
        """Publish a completely sealed upload: make durable, then visible, atomically. Returns at once.

        ``on_done`` tells the outcome: ``Published``, or ``Exists``, ``Changed``, ``NameConflict``, ``DiskFull``,
        ``UploadUnknown``, ``StorageFault`` (nothing published), ``OutcomeUnknown`` (repeat to learn). After ``Exists``,
        ``Changed`` and ``NameConflict`` the staging is kept and the upload can be committed again; after ``DiskFull``
        it is gone. A finished upload committed again answers what it published."""

    def commit_small(self, spec: UploadSpec, data: bytes, digest: bytes, on_done: OnDone) -> None:
        """``begin`` to ``commit`` of a file of at most ``SMALL_BYTES`` in one call.

        Its flushes are shared with its neighbours'. Nothing is kept of it when it fails. May block for a moment when
        too many are under way (back-pressure), never for its own durability. ``digest`` is the root: that of the only
        segment."""

    def commit_small_files(self, files: Sequence[WholeFile]) -> None:
        """As ``commit_small`` of each of them, handed over at once. Raises only before any of them was taken."""

    def abort(self, upload_id: bytes) -> None:
        """Forget an upload's staging. Harmless when unknown."""

    def finished(self, upload_id: bytes) -> Published | None:
        """What an upload of the last 24 h published, known durably with the publication itself; None when unknown
        (also while its commit is under way, and after ``OutcomeUnknown`` until the storage was started again)."""

    # versions --------------------------------------------------------------------------------------------------------

    def open_version(self, name: RemoteName, may_hash: bool = True) -> VersionInfo:
        """The current version of a file, kept readable for a while by its token.

        Makes a missing or outdated manifest anew (then this takes as long as hashing; ``HashingNeeded`` where not
        ``may_hash``, to be asked again by whoever has the time). ``FileNotFound``, ``Denied`` (a
        symlink, device, pipe, directory), ``Changed`` (it changes faster than it can be hashed)."""

    def read_small(self, name: RemoteName, most_bytes: int) -> SmallFile:
        """The current version of a small file, whole. ``FileNotFound``, ``Denied``; ``TooLarge`` for more than
        ``most_bytes`` or ``SMALL_BYTES``; ``Corrupt`` if it was cut short meanwhile; ``HashingNeeded`` where its root
        is not known."""

    def open_reader(self, token: bytes) -> Reader:
        """The bytes of a version. ``VersionGone``."""

    def manifest(self, token: bytes) -> Manifest:
        """The manifest of a version. ``VersionGone``."""

    def name_of(self, token: bytes) -> RemoteName:
        """The name that a version was opened under; for logs. From memory. ``VersionGone``."""

    # names -----------------------------------------------------------------------------------------------------------

    def list(self, prefix: str, after: str, limit: int, recursive: bool) -> Page:
        """Entries below the directory ``prefix`` ("" for all) whose key follows ``after``, at most ``limit``.

        Recursive: all files, and directories that are empty. Else: the files and directories directly below. A prefix
        that names a file lists that file alone. A prefix that does not exist is ``FileNotFound``. What comes or goes
        between two pages may or may not be in them; what stands all the time is listed exactly once."""

    def stat(self, name: RemoteName) -> Entry:
        """A file or directory. ``root`` only if it is known without hashing. ``FileNotFound``, ``Denied``."""

    def delete(self, name: RemoteName, if_match: bytes | None = None) -> None:
        """Remove a file or an empty directory, durably. ``FileNotFound``, ``NotEmpty``, ``Changed`` (also for a
        directory that was named with ``if_match``)."""

    def move(self, source: RemoteName, target: RemoteName, if_absent: bool = False) -> None:
        """Rename a file, replacing a target file, or a directory, where the target is free; durably. Missing parents
        of the target are made. Onto itself: nothing to do. ``FileNotFound``, ``Exists``, ``NameConflict``;
        ``InvalidName`` when a name in the directory would become too long, ``Busy`` while new ones keep coming."""

    def make_directory(self, name: RemoteName) -> bool:
        """Make a directory and its parents, durably; False when it was there. ``NameConflict``."""

    def free_bytes(self) -> int | None:
        """Room left, where that has a meaning, less what uploads that were begun are still going to take."""

    def free_files(self) -> int | None:
        """How many files and directories may still be made, where the disk has such a bound."""

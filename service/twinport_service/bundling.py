"""Bundles of small files on one channel: what PUT_MANY and GET_MANY mean. Without a socket, as ``channel_session``.

A bundle costs one admission, one hand-over to the storage and one wake, however many files are in it. What must be
asked for each file is asked for each: its name, its user's rights, its size, its digest, its quota. One that is refused
does not concern the others, and its client may ask again in the ordinary way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from twinport_protocol.bundles import (
    UploadedFile,
    count_names,
    decode_uploaded,
    fetched_head,
    fetched_refusal,
    iterate_names,
)
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.frames import AckStatus, Header
from twinport_protocol.names import parse_name_bytes
from twinport_protocol.segments import digest_of
from twinport_protocol.tickets import Action

from .access import Act
from .log import get_log
from .storage.contract import ALWAYS, Buffer, HashingNeeded, Precondition, Published, UploadSpec

if TYPE_CHECKING:
    from .channel_audit import ChannelAudit
    from .channel_rights import ChannelRights
    from .uploads import UploadDesk

BUNDLE_BYTES = 1024 * 1024
"""The body of a PUT_MANY at most, as announced in the greeting."""
FRAME_BYTES = 256 * 1024
"""A FILES frame takes no more files once it has so many bytes."""
MAX_WAITING_BYTES = 8 * 1024 * 1024
"""What the names of a channel's unanswered GET_MANYs may take before no more frames are received."""
_IF_ABSENT = Precondition(if_absent=True)


@dataclass(frozen=True)
class Bundling:
    """An attachment under a ticket for bundles."""

    user: str
    action: Action


class SentBundle(NamedTuple):
    """A PUT_MANY all of whose outcomes are known."""

    header: Header
    outcomes: list[Published | Refusal]

    def statuses(self) -> list[int]:
        """What the ACKS say."""
        return [
            int(AckStatus.COMMITTED) if isinstance(outcome, Published) else outcome.code.number
            for outcome in self.outcomes
        ]


class FetchBundle:
    """A GET_MANY that is being answered. ``RemoteProtocolError`` for a body that is none. ``weight_bytes`` is what its
    names take in memory."""

    def __init__(self, header: Header, body: bytes) -> None:
        self.header = header
        self.left_files = count_names(body)
        self.left_bytes = header.offset
        self.weight_bytes = len(body)
        self._names = iterate_names(body)

    def next_name(self) -> bytes:
        """The next file that is asked for; there are ``left_files``."""
        self.left_files -= 1
        return next(self._names)

    def refuse(self, code: ErrorCode) -> bytes:
        """The records of all files that are left."""
        left, self.left_files = self.left_files, 0
        return fetched_refusal(code) * left


class Shelf:
    """The bundles of one channel, for its owner. ``wake`` is called from any thread when :meth:`settled` has some."""

    def __init__(self, desk: UploadDesk, rights: ChannelRights, audit: ChannelAudit, wake: Callable[[], None]) -> None:
        self._desk = desk
        self._rights = rights
        self._audit = audit
        self._wake = wake
        self._settled: deque[tuple[SentBundle, list[UploadedFile], str, float]] = deque()
        self._is_closed = False

    # uploads ---------------------------------------------------------------------------------------------------------

    def put(self, header: Header, body: bytes, user: str) -> None:
        """Take the files of a PUT_MANY. ``RemoteProtocolError`` for a body that is none."""
        began = time.monotonic()
        files = decode_uploaded(body)
        judged = self._with_room([self._judge(file, user) for file in files])
        whole = [
            (spec, file.data, file.digest)
            for spec, file in zip(judged, files, strict=True)
            if isinstance(spec, UploadSpec)
        ]

        def on_all(outcomes: list[Published | Refusal]) -> None:
            told = iter(outcomes)
            all_of_them = [next(told) if isinstance(spec, UploadSpec) else spec for spec in judged]
            self._settled.append((SentBundle(header, all_of_them), files, user, began))
            if self._is_closed:
                self.close()  # nobody else looks any more
            else:
                self._wake()

        self._desk.committer.commit_files(whole, on_all)

    def _with_room(self, judged: list[UploadSpec | Refusal]) -> list[UploadSpec | Refusal]:
        """The same, without those for which the floors of the disk leave no room."""
        specs = [spec for spec in judged if isinstance(spec, UploadSpec)]
        try:
            self._desk.room.take(sum(spec.size for spec in specs), len(specs))
        except Refusal:
            return [self._alone_with_room(spec) if isinstance(spec, UploadSpec) else spec for spec in judged]
        return judged

    def _alone_with_room(self, spec: UploadSpec) -> UploadSpec | Refusal:
        try:
            self._desk.room.take(spec.size)
        except Refusal as refusal:
            return refusal
        return spec

    def _judge(self, file: UploadedFile, user: str) -> UploadSpec | Refusal:
        """What is to be published, or why it is not."""
        size = len(file.data)
        try:
            name = parse_name_bytes(file.name)
            self._rights.require(user, Act.WRITE, name)
        except ProtocolError as error:
            return Refusal(error.code)
        except Refusal as refusal:
            return refusal
        if size > self._desk.max_small_bytes:
            return Refusal(ErrorCode.TOO_LARGE)
        if digest_of(file.data) != file.digest:
            return Refusal(ErrorCode.DIGEST_MISMATCH)
        precondition = _IF_ABSENT if file.if_absent else ALWAYS
        # As an UPLOAD without a root would have it: a client that lost the ACKS asks so while this is under way.
        return UploadSpec(file.upload_id, user, name, size, file.mtime_ns, file.executable, precondition)

    def close(self) -> None:
        """Nobody asks any more for what is settled; what was published is written down all the same."""
        self._is_closed = True
        while self.settled() is not None:
            pass

    def settled(self) -> SentBundle | None:
        """A bundle all of whose outcomes are known now, written down in the audit log."""
        try:
            bundle, files, user, began = self._settled.popleft()
        except IndexError:
            return None
        seconds = time.monotonic() - began
        for file, outcome in zip(files, bundle.outcomes, strict=True):
            if isinstance(outcome, Published):
                self._audit.published(user, outcome, seconds)
                continue
            self._audit.refused("PUT_MANY", outcome.code, user, _shown(file.name))
            if outcome.detail:
                get_log().warning("[UPLOAD] Failed", code=outcome.code.value, detail=outcome.detail)
        return bundle

    # downloads -------------------------------------------------------------------------------------------------------

    def next_files(self, bundle: FetchBundle, user: str) -> tuple[bytes, int]:
        """The next records of the answer, and how many bytes of files are in them. Reads the disk."""
        records: list[Buffer] = []
        body_bytes = file_bytes = 0
        while bundle.left_files and body_bytes < FRAME_BYTES:
            raw = bundle.next_name()
            try:
                head, data = self._read(raw, user, bundle.left_bytes)
            except ProtocolError as error:
                head, data = fetched_refusal(error.code), b""
            except Refusal as refusal:
                self._audit.refused("GET_MANY", refusal.code, user, _shown(raw))
                head, data = fetched_refusal(refusal.code), b""
            records += (head, data)
            body_bytes += len(head) + len(data)
            file_bytes += len(data)
            bundle.left_bytes -= len(data)
        return b"".join(records), file_bytes

    def _read(self, raw: bytes, user: str, most_bytes: int) -> tuple[bytes, Buffer]:
        name = parse_name_bytes(raw)
        self._rights.require(user, Act.READ, name)
        try:
            file = self._desk.storage.read_small(name, most_bytes)
        except HashingNeeded:
            raise Refusal(ErrorCode.UNSUPPORTED) from None
        self._audit.fetched(user, name, len(file.data))
        return fetched_head(file.mtime_ns, len(file.data), file.root, executable=file.executable), file.data


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")

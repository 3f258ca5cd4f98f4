"""What a channel is asked for: segments, manifests, what is held, small files in bundles.

Answers are made one at a time, when the owner of the socket has room for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import DETACH_AFTER, FrameType, Header, encode_held
from twinport_protocol.tickets import Action, TicketKeys

from .bundling import MAX_WAITING_BYTES, Bundling, FetchBundle, Shelf
from .channel_attachments import ChannelAttachments
from .channel_audit import ChannelAudit
from .channel_download import Download
from .channel_rights import ChannelRights
from .storage.contract import SendingReader
from .upload_handle import UploadHandle
from .uploads import UploadDesk

INLINE_BYTES = 64 * 1024
"""SEG payloads up to this size are read into the outgoing bytes; larger ones are moved by the owner of the socket."""
_QUEUED_ANSWERS = 4096
"""More of them unsent, and no more frames are taken: a client that sends without reading would fill our memory."""


@dataclass
class Tally:
    """What went over the channel, for its one log line."""

    files_in: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class ChannelAnswers(ChannelAttachments):
    """The requests of one channel, in the order in which they came."""

    def __init__(
        self,
        desk: UploadDesk,
        keys: TicketKeys,
        limits: Limits,
        wake: Callable[[], None],
        now: Callable[[], float],
        audit: ChannelAudit,
        on_user: Callable[[str], None],
        rights: ChannelRights,
    ) -> None:
        super().__init__(desk, keys, limits, now, audit, on_user, rights)
        self._piece_bytes = limits.piece
        self._requests: deque[Header | FetchBundle] = deque()
        self._waiting_bytes = 0
        self._progress_at = 0
        self._shelf = Shelf(desk, rights, audit, wake)
        self.tally = Tally()

    @property
    def wants_to_send(self) -> bool:
        """Whether :meth:`produce` would queue something."""
        return bool(self._requests)

    @property
    def holds_much(self) -> bool:
        """Whether what is unanswered takes so much memory that nothing should be added to it."""
        return len(self.outgoing) > _QUEUED_ANSWERS or self._waiting_bytes > MAX_WAITING_BYTES

    def produce(self) -> None:
        """Queue the next answer, or SEG frame of an answer, to the oldest request.

        Called by the owner when ``outgoing`` has run low: answers are larger than requests, and a client that asks
        without reading must not fill our memory with them.
        """
        self._review()
        if not self._requests:
            return
        request = self._requests[0]
        if isinstance(request, FetchBundle):
            self._produce_files(request)
            return
        if request.type == FrameType.GET:
            self._produce_segment(request)
            return
        self._requests.popleft()
        if request.type == FrameType.MANIFEST:
            self._answer(request, FrameType.MANIFEST_IS, self._manifest)
        else:
            self._answer(request, FrameType.HAVE_IS, self._have)

    def _produce_files(self, bundle: FetchBundle) -> None:
        try:
            user = self._bundling(bundle.header.attachment, Action.DOWNLOAD_MANY).user
            body, file_bytes = self._shelf.next_files(bundle, user)
        except Refusal as refusal:
            body, file_bytes = bundle.refuse(refusal.code), 0
        last = not bundle.left_files
        self.tally.bytes_out += file_bytes
        self.outgoing.append(self._wire.files_header(bundle.header, len(body), file_bytes, last=last) + body)
        if last:
            self._requests.popleft()
            self._waiting_bytes -= bundle.weight_bytes

    def _bundling(self, attachment: int, action: Action) -> Bundling:
        bundling = self._attached.get(attachment)
        if not isinstance(bundling, Bundling) or bundling.action is not action:
            raise Refusal(self._refused.get(attachment, ErrorCode.NOT_ATTACHED))
        return bundling

    def _produce_segment(self, get: Header) -> None:
        offset = get.offset + self._progress_at
        length = min(self._piece_bytes, get.offset + get.length - offset)
        last = offset + length == get.offset + get.length
        try:
            download, position = self._readable(get, offset)
            reader = download.reader()
            if length > INLINE_BYTES and isinstance(reader, SendingReader):
                self.outgoing.append(self._wire.segment_header(get, offset, length, last=last))
                self.outgoing.append(download.payload(reader, position, length))
            else:
                data = bytearray(length)
                if reader.read_into(position, data) != length:
                    raise Refusal(ErrorCode.CORRUPT, "the stored file is shorter than it was")
                self.outgoing.append(self._wire.segment_header(get, offset, length, last=last) + data)
        except Refusal as refusal:
            self.outgoing.append(self._wire.segment_header(get, offset, 0, last=True, status=refusal.code.number))
            last = True
            attached = self._attached.get(get.attachment)
            if isinstance(attached, Download) and refusal.code is not ErrorCode.BUSY:
                self._audit.refused("GET", refusal.code, attached.user)
        else:
            self.tally.bytes_out += length
            download.sent_bytes += length
            self._progress_at += length
        if last:
            self._requests.popleft()
            self._progress_at = 0
            if get.flags & DETACH_AFTER:
                self._detach(get.attachment)

    def _readable(self, get: Header, offset: int) -> tuple[Download, int]:
        download = self._download(get.attachment)
        if get.segment >= download.layout.count or get.offset + get.length > download.layout.length(get.segment):
            raise Refusal(ErrorCode.BAD_REQUEST, "beyond the segment")
        return download, download.layout.start(get.segment) + offset

    def _download(self, attachment: int) -> Download:
        """The attachment, if its user may read the file now."""
        download = self._attached.get(attachment)
        if not isinstance(download, Download):
            raise Refusal(self._refused.get(attachment, ErrorCode.NOT_ATTACHED))
        self._rights.require_read(download)
        return download

    def _answer(self, header: Header, kind: FrameType, make: Callable[[int], bytes]) -> None:
        try:
            self.outgoing.append(self._wire.answer(header, kind, make(header.attachment)))
        except Refusal as refusal:
            self.outgoing.append(self._wire.answer(header, kind, b"", refusal.code.number))
            attached = self._attached.get(header.attachment)
            if isinstance(attached, Download):
                self._audit.refused(FrameType(header.type).name, refusal.code, attached.user)

    def _manifest(self, attachment: int) -> bytes:
        return self._desk.storage.manifest(self._download(attachment).token).digests

    def _have(self, attachment: int) -> bytes:
        handle = self._attached.get(attachment)
        if not isinstance(handle, UploadHandle):
            raise Refusal(self._refused.get(attachment, ErrorCode.NOT_ATTACHED))
        return encode_held(handle.have())

"""What a channel means: frames in, answers out, without a socket. Owned by one thread.

Answers are of two kinds: small bytes, collected in ``outgoing``; and the payload of large ``SEG`` frames, which the
owner moves straight from the reader to the socket (:class:`Payload`). Commits end on other threads: they leave their
outcome in a queue and call ``wake``; the owner turns them into ACKs by :meth:`settle`. So no thread but the owner
touches the connection's state.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from twinport_protocol.bundles import decode_uploaded
from twinport_protocol.channel import ChannelServer
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.frames import (
    COMMIT,
    DETACH_AFTER,
    LAST,
    AckStatus,
    Chunk,
    FrameType,
    Header,
    Message,
    encode_held,
)
from twinport_protocol.tickets import BUNDLING, Action, Ticket, TicketKeys

from .bundling import MAX_WAITING_BYTES, Bundling, FetchBundle, Shelf
from .channel_audit import ChannelAudit
from .channel_download import Download, OpenReaders, Payload
from .channel_rights import ChannelRights
from .log import get_log
from .storage.contract import Published, SendingReader
from .upload_handle import UploadHandle
from .uploads import UploadDesk

__all__ = ["INLINE_BYTES", "ChannelSession", "Payload", "Tally"]

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


class ChannelSession:
    """One channel. ``wake`` is called from any thread when :meth:`settle` has something to do. ``on_user`` is told
    whose ticket was shown, and may refuse. When what ``rights`` says changes, whoever changed it wakes the owner."""

    def __init__(
        self,
        desk: UploadDesk,
        keys: TicketKeys,
        limits: Limits,
        wake: Callable[[], None],
        *,
        now: Callable[[], float] = time.time,
        audit: ChannelAudit | None = None,
        on_user: Callable[[str], None] = lambda user: None,
        rights: ChannelRights | None = None,
    ) -> None:
        self._desk = desk
        self._keys = keys
        self._wake = wake
        self._now = now
        self._audit = audit or ChannelAudit()
        self._on_user = on_user
        self._rights = rights or ChannelRights()
        self._wire = ChannelServer(limits)
        self._piece_bytes = limits.piece
        self._attached: dict[int, UploadHandle | Download | Bundling] = {}
        self._epochs: dict[int, int] = {}
        self._withdrawn: list[Download] = []
        self._has_withdrawn_files = False
        self._readers = OpenReaders(desk.storage)
        self._refused: dict[int, ErrorCode] = {}
        self._put_status: int | None = None
        self._whole: bytearray | None = None
        self._requests: deque[Header | FetchBundle] = deque()
        self._waiting_bytes = 0
        self._shelf = Shelf(desk, self._rights, self._audit, wake)
        self._settled: deque[tuple[Header, str, Published | Refusal]] = deque()
        self._progress_at = 0
        self._is_closed = False
        self.outgoing: deque[bytes | Payload] = deque()
        self.tally = Tally()
        self.attached_once = False
        self.ended = False

    @property
    def at_boundary(self) -> bool:
        """Whether no frame is half received."""
        return self._wire.at_boundary

    @property
    def busy(self) -> bool:
        """Whether an answer is still owed."""
        return self._wire.unanswered > 0

    def receive(self, data: memoryview) -> None:
        """Take bytes off the connection. A protocol error ends the session: ``ended`` is set and the farewell
        queued."""
        self._review()
        try:
            for event in self._wire.feed(data):
                if isinstance(event, Chunk):
                    self._put(event)
                else:
                    self._message(event)
        except RemoteProtocolError as error:
            get_log().info("[CHANNEL] Closed", code=error.code.value, detail=error.detail)
            self.outgoing.append(self._wire.farewell(error.code))
            self.ended = True

    # uploads ---------------------------------------------------------------------------------------------------------

    def _put(self, chunk: Chunk) -> None:
        header = chunk.header
        handle = self._attached.get(header.attachment)
        first = chunk.at == header.offset and self._put_status is None and self._whole is None
        try:
            if not isinstance(handle, UploadHandle):
                raise Refusal(self._refused.get(header.attachment, ErrorCode.NOT_ATTACHED))
            if self._put_status is None:
                self._take(handle, chunk, first)
            if chunk.ends and header.flags & COMMIT and self._put_status == AckStatus.DUPLICATE:
                # Sealed by a copy that came before; what is left to do is to publish it.
                self._commit(handle, header, chunk.digest or b"")
        except Refusal as refusal:
            self._put_status = refusal.code.number
            self._whole = None
            if isinstance(handle, UploadHandle) and refusal.code is not ErrorCode.BUSY:
                self._audit.refused("PUT", refusal.code, handle.spec.user, handle.spec.name)
        if chunk.ends:
            status, self._put_status = self._put_status, None
            if status is not None and status >= 0:
                self._acknowledge(header, status)

    def _take(self, handle: UploadHandle, chunk: Chunk, first: bool) -> None:
        """Act on a part of a PUT; leaves in ``_put_status`` what its ACK is to say, -1 where a commit will tell
        later."""
        header = chunk.header
        if first:
            self._begin(handle, header)
            if self._put_status is not None:
                return
        self.tally.bytes_in += len(chunk.data)
        if self._whole is not None:
            self._whole += chunk.data
            if chunk.ends:
                data, self._whole = bytes(self._whole), None
                self._commit(handle, header, chunk.digest or b"", data)
            return
        if chunk.data:
            handle.write(header.segment, chunk.at, chunk.data)
        if chunk.ends:
            status = handle.end_piece(header.segment, chunk.digest)
            self._put_status = int(status)
            if header.flags & COMMIT:
                self._commit(handle, header, chunk.digest or b"")

    def _commit(self, handle: UploadHandle, header: Header, digest: bytes, whole: bytes | None = None) -> None:
        # An attachment lasts as long as its channel: what its user might do at its beginning says nothing of now.
        self._rights.require_write(handle)
        on_done = self._outcome_of(header, handle.spec.user)
        if whole is None:
            handle.commit(digest, on_done)
        else:
            handle.commit_whole(whole, digest, on_done)
        self._put_status = -1

    def _begin(self, handle: UploadHandle, header: Header) -> None:
        last = bool(header.flags & LAST)
        if header.flags & COMMIT:
            if not last or handle.layout.count != 1:
                raise Refusal(ErrorCode.BAD_REQUEST, "COMMIT is for the last piece of a one-segment file")
            if header.offset == 0 and header.segment == 0 and handle.takes_whole(header.length):
                self._whole = bytearray()
                return
        wanted = handle.begin_piece(header.segment, header.offset, header.length, last=last)
        if not wanted:
            self._put_status = int(AckStatus.DUPLICATE)

    def _outcome_of(self, header: Header, user: str) -> Callable[[Published | Refusal], None]:
        def on_done(outcome: Published | Refusal) -> None:
            self._settled.append((header, user, outcome))
            if self._is_closed:
                self._note_settled()  # nobody else looks any more
            else:
                self._wake()

        return on_done

    def settle(self) -> None:
        """Turn the outcomes of commits into ACKs, and end what is allowed no more."""
        self._review()
        while (bundle := self._shelf.settled()) is not None:
            self.tally.files_in += sum(isinstance(outcome, Published) for outcome in bundle.outcomes)
            self.outgoing.append(self._wire.acknowledge_many(bundle.header, bundle.statuses()))
        while self._settled:
            header, user, outcome = self._settled.popleft()
            self._audit.committed(header.attachment, user, outcome)
            if isinstance(outcome, Published):
                self.tally.files_in += 1
                self._acknowledge(header, AckStatus.COMMITTED)
                self._detach(header.attachment)
            else:
                if outcome.detail:
                    get_log().warning("[UPLOAD] Failed", code=outcome.code.value, detail=outcome.detail)
                self._acknowledge(header, outcome.code.number)

    def _note_settled(self) -> None:
        """Write down how commits ended that nobody can be told of."""
        with suppress(IndexError):
            while True:
                header, user, outcome = self._settled.popleft()
                self._audit.committed(header.attachment, user, outcome)

    def _acknowledge(self, header: Header, status: int) -> None:
        self.outgoing.append(self._wire.acknowledge(header, status))

    # downloads -------------------------------------------------------------------------------------------------------

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

    def _put_bundle(self, header: Header, body: bytes) -> None:
        self.tally.bytes_in += len(body)
        try:
            self._shelf.put(header, body, self._bundling(header.attachment, Action.UPLOAD_MANY).user)
        except Refusal as refusal:
            statuses = [refusal.code.number] * len(decode_uploaded(body))
            self.outgoing.append(self._wire.acknowledge_many(header, statuses))

    def _produce_files(self, bundle: FetchBundle) -> None:
        try:
            user = self._bundling(bundle.header.attachment, Action.DOWNLOAD_MANY).user
            body, file_bytes = self._shelf.next_files(bundle, user)
        except Refusal as refusal:
            body, file_bytes = bundle.refuse(refusal.code), 0
        last = not bundle.names
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

    # attachments and requests ----------------------------------------------------------------------------------------

    def _message(self, message: Message) -> None:
        header = message.header
        if header.type == FrameType.ATTACH:
            self._attach(header.attachment, message.body)
        elif header.type in (FrameType.GET, FrameType.MANIFEST, FrameType.HAVE):
            self._requests.append(header)
        elif header.type == FrameType.PUT_MANY:
            self._put_bundle(header, message.body)
        elif header.type == FrameType.GET_MANY:
            bundle = FetchBundle(header, message.body)
            self._waiting_bytes += bundle.weight_bytes
            self._requests.append(bundle)
        elif header.type == FrameType.DETACH:
            self._detach(header.attachment)

    def _attach(self, attachment: int, raw: bytes) -> None:
        user: str | None = None
        try:
            ticket = self._keys.verify(raw, self._now())
            user = ticket.user
            self._rights.require_ticket(ticket)
            self._on_user(user)
            if ticket.action is Action.UPLOAD:
                self._attached[attachment] = self._attach_upload(ticket)
            else:
                self._rights.require_anything(user)
                many = ticket.action in BUNDLING
                self._attached[attachment] = Bundling(user, ticket.action) if many else Download(self._readers, ticket)
            self._refused.pop(attachment, None)
            self._epochs[attachment] = ticket.epoch
            self._rights.keep_to(user)
            self._audit.attached(attachment)
            self.attached_once = True
        except Refusal as refusal:
            # The number stays taken until the client detaches it, so that frames already under way are answered in
            # kind.
            self._refused[attachment] = refusal.code
            self._audit.refused("ATTACH", refusal.code, user)
            self.outgoing.append(self._wire.fail(attachment, refusal.code))

    def _attach_upload(self, ticket: Ticket) -> UploadHandle:
        handle = self._desk.attach(ticket.scope, ticket.generation, ticket.user)
        try:
            self._rights.require_write(handle)
        except Refusal:
            handle.detach()
            raise
        return handle

    def _review(self) -> None:
        """End the attachments that the accounts allow no more: their FAIL is sent at once, and frames that come or wait
        are answered with the same status."""
        if not self._rights.have_changed():
            return
        self._withdrawn = [download for download in self._withdrawn if download.is_sending]
        for attachment, attached in list(self._attached.items()):
            loss = self._rights.loss_of(attached, self._epochs[attachment])
            if loss is None:
                continue
            if isinstance(attached, UploadHandle):
                self._audit.refused("PUT", loss.code, attached.spec.user, attached.spec.name)
            else:
                is_put = isinstance(attached, Bundling) and attached.action is Action.UPLOAD_MANY
                self._audit.refused("PUT" if is_put else "GET", loss.code, attached.user)
                if isinstance(attached, Download):
                    self._withdrawn.append(attached)
                self._has_withdrawn_files |= isinstance(attached, Bundling) and not is_put
            self._leave(attachment)
            self._refused[attachment] = loss.code
            self.outgoing.append(self._wire.fail(attachment, loss.code))

    @property
    def sends_withdrawn(self) -> bool:
        """Whether a frame is on its way to somebody who may not have it any more: only the end of the connection ends
        it earlier."""
        return self._has_withdrawn_files or any(download.is_sending for download in self._withdrawn)

    def all_is_sent(self) -> None:
        """Whatever was queued is on its way: files of bundles too."""
        self._has_withdrawn_files = False

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

    def _detach(self, attachment: int) -> None:
        self._refused.pop(attachment, None)
        self._leave(attachment)
        self._wire.detached(attachment)

    def _leave(self, attachment: int) -> None:
        attached = self._attached.pop(attachment, None)
        self._epochs.pop(attachment, None)
        if isinstance(attached, UploadHandle):
            attached.detach()
        elif isinstance(attached, Download):
            attached.close()
            self._audit.sent(attachment, attached.user, self._desk.storage, attached.token, attached.sent_bytes)
        self._audit.detached(attachment)

    def goodbye(self) -> None:
        """Tell the client that the server stops at this frame boundary."""
        self.outgoing.append(self._wire.goodbye())
        self.ended = True

    def close(self) -> None:
        """The connection is gone: leave every upload, close every reader."""
        for item in self.outgoing:
            if isinstance(item, Payload):
                item.release()
        self.outgoing.clear()
        for attachment in list(self._attached):
            self._leave(attachment)
        self._is_closed = True
        self._note_settled()
        self._shelf.close()

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

from twinport_protocol.bundles import decode_uploaded
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.frames import COMMIT, LAST, AckStatus, Chunk, FrameType, Header, Message
from twinport_protocol.tickets import Action, TicketKeys

from .bundling import FetchBundle
from .channel_answers import INLINE_BYTES, ChannelAnswers, Tally
from .channel_audit import ChannelAudit
from .channel_download import Payload
from .channel_rights import ChannelRights
from .log import get_log
from .storage.contract import Published
from .upload_handle import UploadHandle
from .uploads import UploadDesk

__all__ = ["INLINE_BYTES", "ChannelSession", "Payload", "Tally"]


class ChannelSession(ChannelAnswers):
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
        super().__init__(desk, keys, limits, wake, now, audit or ChannelAudit(), on_user, rights or ChannelRights())
        self._wake = wake
        self._put_status: int | None = None
        self._whole: bytearray | None = None
        self._settled: deque[tuple[Header, str, Published | Refusal]] = deque()
        self._is_closed = False
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

    def _put_bundle(self, header: Header, body: bytes) -> None:
        self.tally.bytes_in += len(body)
        try:
            self._shelf.put(header, body, self._bundling(header.attachment, Action.UPLOAD_MANY).user)
        except Refusal as refusal:
            statuses = [refusal.code.number] * len(decode_uploaded(body))
            self.outgoing.append(self._wire.acknowledge_many(header, statuses))

    def _acknowledge(self, header: Header, status: int) -> None:
        self.outgoing.append(self._wire.acknowledge(header, status))

    # frames ----------------------------------------------------------------------------------------------------------

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

    # the end ---------------------------------------------------------------------------------------------------------

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

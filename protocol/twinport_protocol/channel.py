"""Both ends of a data connection, without a socket: what may be sent, what was meant, and the credit that bounds it.

The client opens with the magic, then drives: every PUT, GET, MANIFEST, HAVE, PUT_MANY and GET_MANY is answered by the
server, and at most ``frames`` of them, with at most ``credit`` payload bytes, may be unanswered. An answer counts as
given when it is made, so a server takes no new frames while more than a bound of its answers is unsent; a client always
reads. Then what either end must hold is bounded, and two ends with the smallest buffers cannot block each other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .bundle_credit import BundleAnswer, SentBundle, SentFiles, credit_of
from .bundles import encode_statuses
from .control import Limits
from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .frames import (
    CHANNEL_MAGIC,
    COMMIT,
    DETACH_AFTER,
    LAST,
    MAX_PIECE_BYTES,
    WHOLE_CHANNEL,
    AckStatus,
    Chunk,
    FrameDecoder,
    FrameEvent,
    FrameType,
    Header,
    Message,
)

_ANSWERED = frozenset({FrameType.PUT, FrameType.GET, FrameType.MANIFEST, FrameType.HAVE})
_MANY = frozenset({FrameType.PUT_MANY, FrameType.GET_MANY})
_BUNDLE_ANSWERS = frozenset({FrameType.ACKS, FrameType.FILES})


class ChannelServer:
    """The server's end: checks magic, credit and attachment numbers; the meaning of frames is its owner's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = FrameDecoder(
            from_client=True, max_piece_bytes=limits.piece, max_bundle_bytes=min(limits.bundle, limits.credit)
        )
        self._magic_left = CHANNEL_MAGIC
        self._attachments: set[int] = set()
        self._frames = 0
        self._bytes = 0
        self._open_put: Header | None = None
        self._files = SentFiles()

    @property
    def at_boundary(self) -> bool:
        """Whether no frame is half received: the place to stop when draining."""
        return self._decoder.at_boundary and self._magic_left in (b"", CHANNEL_MAGIC)

    @property
    def unanswered(self) -> int:
        """How many frames wait for their answer."""
        return self._frames

    def feed(self, data: memoryview) -> list[FrameEvent]:
        """The frames in these bytes. Raises ``RemoteProtocolError``: close the connection with :meth:`farewell`."""
        if self._magic_left:
            head = bytes(data[: len(self._magic_left)])
            if not self._magic_left.startswith(head):
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "no channel magic")
            self._magic_left = self._magic_left[len(head) :]
            data = data[len(head) :]
        events = self._decoder.feed(data)
        for event in events:
            self._account(event)
        return events

    def _account(self, event: FrameEvent) -> None:
        header = event[0]
        if header.type == FrameType.PUT:
            if header is not self._open_put:
                self._charge(header.length)
            ends = event.ends if isinstance(event, Chunk) else True
            self._open_put = None if ends else header
        elif header.type == FrameType.GET:
            self._charge(header.length)
        elif header.type in _ANSWERED:
            self._charge(0)
        elif header.type in _MANY:
            self._charge(credit_of(header))
        elif header.type == FrameType.ATTACH:
            if header.attachment in self._attachments or header.attachment == WHOLE_CHANNEL:
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "attachment number in use")
            if len(self._attachments) >= self._limits.attachments:
                raise RemoteProtocolError(ErrorCode.CREDIT_EXCEEDED, "too many attachments")
            self._attachments.add(header.attachment)
        elif header.type == FrameType.DETACH:
            self._attachments.discard(header.attachment)

    def _charge(self, size_bytes: int) -> None:
        self._frames += 1
        self._bytes += size_bytes
        if self._frames > self._limits.frames or self._bytes > self._limits.credit:
            raise RemoteProtocolError(ErrorCode.CREDIT_EXCEEDED)

    def _release(self, size_bytes: int, frames: int) -> None:
        if frames > self._frames or size_bytes > self._bytes:
            raise LocalProtocolError(ErrorCode.BAD_STATE, "an answer to nothing")
        self._frames -= frames
        self._bytes -= size_bytes

    def detached(self, attachment: int) -> None:
        """The owner ended an attachment: its number is free again. Harmless when it is free already."""
        self._attachments.discard(attachment)

    def acknowledge(self, put: Header, status: int) -> bytes:
        """The ACK of a PUT; gives its credit back. ``status`` is an ``AckStatus`` or an error number.

        ``COMMITTED`` ends the attachment.
        """
        self._release(put.length, 1)
        if status == AckStatus.COMMITTED:
            self._attachments.discard(put.attachment)
        return Header(FrameType.ACK, 0, status, put.attachment, put.segment, put.offset + put.length, 0).encode()

    def segment_header(self, get: Header, offset: int, length: int, *, last: bool, status: int = 0) -> bytes:
        """The header of one SEG frame in answer to ``get``; gives credit back as it goes, the rest with ``last``.

        An error ``status`` ends the answer and goes with ``last`` and no bytes. The last frame of a GET that has
        ``DETACH_AFTER`` ends the attachment. ``LocalProtocolError`` for bytes beyond the GET or too few at its end.
        """
        left = get.offset + get.length - offset
        whole = length == left if last else 0 < length < left
        if not (whole if status == 0 else last and length == 0):
            raise LocalProtocolError(ErrorCode.BAD_STATE, "a SEG that does not fit its GET")
        self._release(left if last else length, int(last))
        if last and get.flags & DETACH_AFTER:
            self._attachments.discard(get.attachment)
        flags = LAST if last else 0
        return Header(FrameType.SEG, flags, status, get.attachment, get.segment, offset, length).encode()

    def answer(self, request: Header, kind: FrameType, body: bytes, status: int = 0) -> bytes:
        """``MANIFEST_IS`` or ``HAVE_IS`` in answer to a MANIFEST or HAVE."""
        self._release(0, 1)
        return Header(kind, 0, status, request.attachment, 0, 0, len(body)).encode() + body

    def acknowledge_many(self, put: Header, statuses: Sequence[int]) -> bytes:
        """The ACKS of a PUT_MANY: a status for each of its files, in their order."""
        self._release(put.length, 1)
        body = encode_statuses(statuses)
        return Header(FrameType.ACKS, 0, 0, put.attachment, put.segment, 0, len(body)).encode() + body

    def files_header(self, get: Header, body_bytes: int, file_bytes: int, *, last: bool) -> bytes:
        """The header of one FILES frame in answer to a GET_MANY, with so many bytes, so many of them of files; gives
        credit back as it goes, the rest with ``last``. ``offset`` counts what the frames before had of files'
        bytes, which are no more than were asked for."""
        given, credit = self._files.give(get, file_bytes, last=last)
        self._release(credit, int(last))
        flags = LAST if last else 0
        return Header(FrameType.FILES, flags, 0, get.attachment, get.segment, given, body_bytes).encode()

    def fail(self, attachment: int, code: ErrorCode) -> bytes:
        """An attachment did not come about, or ended: ``FAIL``."""
        return Header(FrameType.FAIL, 0, code.number, attachment, 0, 0, 0).encode()

    def farewell(self, code: ErrorCode) -> bytes:
        """The whole connection fails; the last bytes before it is closed."""
        return self.fail(WHOLE_CHANNEL, code)

    def goodbye(self) -> bytes:
        """The server stops at this frame boundary; what is unanswered was not received."""
        return Header(FrameType.GOODBYE, 0, 0, 0, 0, 0, 0).encode()


class _SentPut(NamedTuple):
    end: int
    length: int
    flags: int

    def allows(self, status: int) -> bool:
        """Whether an ACK may say so of this PUT: nothing is durable that was not to be committed."""
        if status == AckStatus.COMMITTED:
            return bool(self.flags & COMMIT)
        if status == AckStatus.SEALED:
            return bool(self.flags & LAST)
        return status != AckStatus.RECEIVED or not self.flags & LAST


class ChannelClient:
    """The client's end: builds frames within the credit and checks that every answer answers something."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._decoder = FrameDecoder(from_client=False, max_piece_bytes=MAX_PIECE_BYTES)
        self._attachments: set[int] = set()
        self._puts: dict[tuple[int, int], deque[_SentPut]] = {}
        self._gets: deque[Header] = deque()
        self._requests: dict[int, deque[int]] = {}
        self._bundles: dict[tuple[int, int], SentBundle] = {}
        self._received = 0
        self._next_attachment = 1
        self.unanswered_frames = 0
        self.unanswered_bytes = 0

    def open(self) -> bytes:
        """The first bytes of the connection."""
        return CHANNEL_MAGIC

    def has_credit(self, length: int, frames: int = 1) -> bool:
        """Whether so many frames of so many payload bytes in all may be sent now."""
        return (
            self.unanswered_frames + frames <= self._limits.frames
            and self.unanswered_bytes + length <= self._limits.credit
        )

    @property
    def attachment_count(self) -> int:
        """How many attachments are open."""
        return len(self._attachments)

    @property
    def can_attach(self) -> bool:
        """Whether one more attachment is allowed."""
        return len(self._attachments) < self._limits.attachments

    def attach(self, ticket: bytes) -> tuple[int, bytes]:
        """A new attachment number and its ATTACH frame. ``LocalProtocolError`` past the announced number."""
        if not self.can_attach:
            raise LocalProtocolError(ErrorCode.CREDIT_EXCEEDED, "too many attachments")
        while self._next_attachment in self._attachments:
            self._next_attachment += 1
        number = self._next_attachment
        self._next_attachment = number % (WHOLE_CHANNEL - 1) + 1
        self._attachments.add(number)
        return number, Header(FrameType.ATTACH, 0, 0, number, 0, 0, len(ticket)).encode() + ticket

    def detach(self, attachment: int) -> bytes:
        """End an attachment, a failed one too; what is unanswered is answered all the same."""
        self._attachments.discard(attachment)
        return Header(FrameType.DETACH, 0, 0, attachment, 0, 0, 0).encode()

    def put(self, attachment: int, segment: int, offset: int, length: int, flags: int) -> bytes:
        """The header of a PUT; the caller sends ``length`` bytes after it, and the digest if ``flags`` has ``LAST``.

        ``LocalProtocolError`` past the credit, for more bytes than a piece may have, for ``COMMIT`` without ``LAST``.
        """
        if length > self._limits.piece:
            raise LocalProtocolError(ErrorCode.CREDIT_EXCEEDED, "a piece larger than announced")
        if flags & COMMIT and not flags & LAST:
            raise LocalProtocolError(ErrorCode.BAD_REQUEST, "COMMIT without LAST")
        self._spend(attachment, length)
        self._puts.setdefault((attachment, segment), deque()).append(_SentPut(offset + length, length, flags))
        return Header(FrameType.PUT, flags, 0, attachment, segment, offset, length).encode()

    def get(self, attachment: int, segment: int, offset: int, length: int, flags: int = 0) -> bytes:
        """A GET frame; it may ask for more than a piece. ``LocalProtocolError`` past the credit."""
        self._spend(attachment, length)
        header = Header(FrameType.GET, flags, 0, attachment, segment, offset, length)
        self._gets.append(header)
        return header.encode()

    def request(self, kind: FrameType, attachment: int) -> bytes:
        """A MANIFEST or HAVE frame. ``LocalProtocolError`` past the credit."""
        self._spend(attachment, 0)
        answer = FrameType.MANIFEST_IS if kind is FrameType.MANIFEST else FrameType.HAVE_IS
        self._requests.setdefault(attachment, deque()).append(answer)
        return Header(kind, 0, 0, attachment, 0, 0, 0).encode()

    def put_many(self, attachment: int, serial: int, files: int, body_bytes: int) -> bytes:
        """The header of a PUT_MANY of so many files; the caller sends its body after it. ``serial`` tells apart the
        bundles of an attachment that are unanswered. ``LocalProtocolError`` past the credit or the announced size."""
        if body_bytes > self._limits.bundle:
            raise LocalProtocolError(ErrorCode.CREDIT_EXCEEDED, "a bundle larger than announced")
        return self._bundle(Header(FrameType.PUT_MANY, 0, 0, attachment, serial, 0, body_bytes), files)

    def get_many(self, attachment: int, serial: int, files: int, body: bytes, most_bytes: int) -> bytes:
        """A GET_MANY of so many names that takes ``most_bytes`` of files at most. ``LocalProtocolError`` past the
        credit."""
        return self._bundle(Header(FrameType.GET_MANY, 0, 0, attachment, serial, most_bytes, len(body)), files) + body

    def _bundle(self, header: Header, files: int) -> bytes:
        if (header.attachment, header.segment) in self._bundles:
            raise LocalProtocolError(ErrorCode.BAD_STATE, "a bundle of that number is under way")
        self._spend(header.attachment, credit_of(header))
        self._bundles[header.attachment, header.segment] = SentBundle(header, files)
        return header.encode()

    def _spend(self, attachment: int, length: int) -> None:
        if attachment not in self._attachments:
            raise LocalProtocolError(ErrorCode.NOT_ATTACHED)
        if not self.has_credit(length):
            raise LocalProtocolError(ErrorCode.CREDIT_EXCEEDED)
        self.unanswered_frames += 1
        self.unanswered_bytes += length

    def feed(self, data: memoryview) -> list[FrameEvent | BundleAnswer]:
        """The answers in these bytes.

        Raises ``RemoteProtocolError`` for an answer to nothing, out of order or beyond what was asked for, and for a
        success that the request cannot have.
        """
        events: list[FrameEvent | BundleAnswer] = []
        for event in self._decoder.feed(data):
            if isinstance(event, Message) and event.header.type in _BUNDLE_ANSWERS:
                events.append(self._settle_bundle(event))
            else:
                self._settle(event)
                events.append(event)
        return events

    def _settle(self, event: FrameEvent) -> None:
        header = event[0]
        if isinstance(event, Chunk):
            self._settle_segment(event)
        elif header.type == FrameType.ACK:
            waiting = self._puts.get((header.attachment, header.segment))
            if not waiting:
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "an ACK of nothing")
            sent = waiting.popleft()
            if header.offset != sent.end or not sent.allows(header.status):
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "an ACK that does not fit its PUT")
            self._release(sent.length)
            if not waiting:
                del self._puts[header.attachment, header.segment]
            if header.status == AckStatus.COMMITTED:
                self._attachments.discard(header.attachment)
        elif header.type in (FrameType.MANIFEST_IS, FrameType.HAVE_IS):
            asked = self._requests.get(header.attachment)
            if not asked or asked.popleft() != header.type:
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer to nothing")
            if not asked:
                del self._requests[header.attachment]
            self._release(0)

    def _settle_bundle(self, message: Message) -> BundleAnswer:
        key = message.header.attachment, message.header.segment
        sent = self._bundles.get(key)
        if sent is None:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer to no bundle")
        answer = sent.settle(message)
        if answer.ends:
            del self._bundles[key]
            self._release(sent.credit)
        return answer

    def _settle_segment(self, chunk: Chunk) -> None:
        header = chunk.header
        if not self._gets:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "bytes that were not asked for")
        get = self._gets[0]
        if (header.attachment, header.segment) != (get.attachment, get.segment):
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer out of order")
        if header.status:
            if header.length or not header.flags & LAST:
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "an error that does not end its answer")
        elif chunk.at != get.offset + self._received or not (header.length or header.flags & LAST):
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "other bytes than were asked for")
        self._received += len(chunk.data)
        if self._received > get.length:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "more bytes than were asked for")
        if chunk.ends and header.flags & LAST:
            if header.status == 0 and self._received != get.length:
                raise RemoteProtocolError(ErrorCode.BAD_STATE, "fewer bytes than were asked for")
            self._gets.popleft()
            self._received = 0
            self._release(get.length)
            if get.flags & DETACH_AFTER:
                self._attachments.discard(header.attachment)

    def _release(self, length: int) -> None:
        self.unanswered_frames -= 1
        self.unanswered_bytes -= length

"""Channel frames: a fixed 24-byte header, then a payload. Both directions of a data connection speak them.

    0      1      2        4            8          12       20       24
    | type | flags | status | attachment | segment | offset  | length | payload …[digest 32]

All numbers are big-endian. ``length`` counts the payload; a ``PUT`` with ``LAST`` is followed by the segment's 32-byte
digest, which ``length`` does not count: reading, hashing and sending are one pass, so the digest is known only at the
end.

Payloads of ``PUT`` and ``SEG`` are handed on as views into the caller's own buffer, never copied and never collected;
the payloads of the other frames are small, bounded by type, and collected. What bundles of small files hold is in
:mod:`bundles`.
"""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from .bundles import MAX_BUNDLE_FILES, MAX_NAMES_BYTES
from .errors import ErrorCode, RemoteProtocolError
from .numbers import MAX_SIZE
from .segments import DIGEST_BYTES, MAX_SEGMENTS
from .tickets import MAX_TICKET_BYTES

CHANNEL_MAGIC: Final = b"\x89TPC2\r\n\x1a"
HEADER: Final = struct.Struct("!BBHIIQI")
HEADER_BYTES: Final = HEADER.size
WHOLE_CHANNEL: Final = 0xFFFFFFFF
"""The attachment number of a ``FAIL`` that ends the connection."""

# Flags.
LAST: Final = 1
"""PUT: this piece ends its segment and the digest follows. SEG, FILES: this frame ends the answer to its request."""
COMMIT: Final = 2
"""PUT with LAST, of a one-segment file: publish it; the digest is its root. Answered by COMMITTED."""
DETACH_AFTER: Final = 4
"""GET: the attachment ends when this is answered."""

MAX_PIECE_BYTES: Final = 16 * 1024 * 1024
MAX_BODY_BYTES: Final = 64 * 1024 + MAX_SEGMENTS * 64
MAX_FILES_BYTES: Final = 1024 * 1024
"""The body of one ``FILES`` frame; an answer may have several."""


class FrameType(enum.IntEnum):
    """The frame types; the client's are below 128."""

    ATTACH = 1
    PUT = 2
    GET = 3
    MANIFEST = 4
    HAVE = 5
    DETACH = 6
    PUT_MANY = 7
    GET_MANY = 8
    FAIL = 129
    ACK = 130
    SEG = 131
    MANIFEST_IS = 132
    HAVE_IS = 133
    GOODBYE = 134
    ACKS = 135
    FILES = 136


class AckStatus(enum.IntEnum):
    """What an ACK says when it is no error; else its ``status`` is an ``ErrorCode.number`` (100 and above)."""

    RECEIVED = 0
    """The piece is held; its segment is not complete yet."""
    SEALED = 1
    """The segment is complete and verified; not yet durable."""
    DUPLICATE = 2
    """The segment was sealed before; the piece was dropped."""
    COMMITTED = 3
    """The file is durable under its name."""


class Header(NamedTuple):
    """One frame header. ``segment`` is a segment number, ``offset`` bytes within it, ``length`` payload bytes."""

    type: int
    flags: int
    status: int
    attachment: int
    segment: int
    offset: int
    length: int

    def encode(self) -> bytes:
        """The 24 bytes."""
        return HEADER.pack(*self)


class Chunk(NamedTuple):
    """A part of the payload of a ``PUT`` or ``SEG``: ``data`` belongs at ``at`` (bytes) within the segment.

    ``data`` is a view into what was fed and is valid only until the next feed. ``ends`` with the frame's last part;
    ``digest`` comes with it where the frame carries one.
    """

    header: Header
    at: int
    data: memoryview
    ends: bool
    digest: bytes | None


class Message(NamedTuple):
    """Any other frame, whole."""

    header: Header
    body: bytes


FrameEvent = Chunk | Message

_CLIENT_BODIES: Final[dict[int, int]] = {
    FrameType.ATTACH: MAX_TICKET_BYTES,
    FrameType.GET: 0xFFFFFFFF,  # wanted, not carried: what bounds it is the credit
    FrameType.MANIFEST: 0,
    FrameType.HAVE: 0,
    FrameType.DETACH: 0,
}
_SERVER_BODIES: Final[dict[int, int]] = {
    FrameType.FAIL: 0,
    FrameType.ACK: 0,
    FrameType.MANIFEST_IS: MAX_SEGMENTS * DIGEST_BYTES,
    FrameType.HAVE_IS: MAX_BODY_BYTES,
    FrameType.GOODBYE: 0,
    FrameType.ACKS: 2 * MAX_BUNDLE_FILES,
    FrameType.FILES: MAX_FILES_BYTES,
}
_EMPTY: Final = memoryview(b"")


class FrameDecoder:
    """Cuts a byte stream into frames. ``from_client`` says whose; ``max_piece_bytes`` bounds a PUT or SEG,
    ``max_bundle_bytes`` a PUT_MANY; without bundles these are frames that nobody knows.

    Holds at most one header or one bounded body.
    """

    def __init__(self, *, from_client: bool, max_piece_bytes: int = MAX_PIECE_BYTES, max_bundle_bytes: int = 0) -> None:
        self._stream_type = int(FrameType.PUT if from_client else FrameType.SEG)
        self._bodies = _CLIENT_BODIES if from_client else _SERVER_BODIES
        if from_client and max_bundle_bytes:
            bundles = {FrameType.PUT_MANY: max_bundle_bytes, FrameType.GET_MANY: MAX_NAMES_BYTES}
            self._bodies = self._bodies | bundles
        self._max_piece_bytes = max_piece_bytes
        self._partial = bytearray()
        self._header: Header | None = None
        self._remaining = 0

    @property
    def at_boundary(self) -> bool:
        """Whether the last byte fed ended a frame."""
        return self._header is None and not self._partial

    def feed(self, data: memoryview) -> list[FrameEvent]:
        """The events in these bytes. Raises ``RemoteProtocolError(BadRequest)``; the decoder is spent then."""
        events: list[FrameEvent] = []
        at = 0
        end = len(data)
        while True:
            if self._header is None:
                if not self._partial and end - at >= HEADER_BYTES:
                    header = Header._make(HEADER.unpack_from(data, at))
                    at += HEADER_BYTES
                else:
                    at += self._collect(data, at, HEADER_BYTES)
                    if len(self._partial) < HEADER_BYTES:
                        return events
                    header = Header._make(HEADER.unpack(self._partial))
                    self._partial.clear()
                self._check(header)
                self._header, self._remaining = header, header.length
            header = self._header
            if header.type == FrameType.GET:  # its length says how much is wanted; nothing follows it
                events.append(Message(header, b""))
                self._header = None
                continue
            if header.type != self._stream_type:
                if not self._partial and end - at >= header.length:  # all of it is here: one copy instead of two
                    events.append(Message(header, bytes(data[at : at + header.length])))
                    at += header.length
                    self._header = None
                    continue
                at += self._collect(data, at, header.length)
                if len(self._partial) < header.length:
                    return events
                events.append(Message(header, bytes(self._partial)))
                self._partial.clear()
                self._header = None
                continue
            done = self._stream(data, at, header, events)
            if done < 0:
                return events
            at = done

    def _collect(self, data: memoryview, at: int, wanted: int) -> int:
        taken = data[at : at + wanted - len(self._partial)]
        self._partial += taken
        return len(taken)

    def _stream(self, data: memoryview, at: int, header: Header, events: list[FrameEvent]) -> int:
        """Hand on payload; the position after the frame, or -1 when the bytes ran out inside it."""
        has_digest = header.type == FrameType.PUT and header.flags & LAST
        piece = data[at : at + self._remaining] if self._remaining else _EMPTY
        offset = header.offset + header.length - self._remaining
        self._remaining -= len(piece)
        at += len(piece)
        if self._remaining:
            if piece:
                events.append(Chunk(header, offset, piece, False, None))
            return -1
        digest = None
        if has_digest:
            if not self._partial and len(data) - at >= DIGEST_BYTES:
                digest = bytes(data[at : at + DIGEST_BYTES])
                at += DIGEST_BYTES
            else:
                at += self._collect(data, at, DIGEST_BYTES)
                if len(self._partial) < DIGEST_BYTES:
                    if piece:
                        events.append(Chunk(header, offset, piece, False, None))
                    return -1
                digest = bytes(self._partial)
                self._partial.clear()
        events.append(Chunk(header, offset, piece, True, digest))
        self._header = None
        return at

    def _check(self, header: Header) -> None:
        if header.type == self._stream_type:
            bound = self._max_piece_bytes
        else:
            known = self._bodies.get(header.type)
            if known is None:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, f"frame type {header.type}")
            bound = known
        if header.length > bound:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, f"frame of {header.length} bytes")
        # No file is larger; and whoever answers may add the two without leaving the field of 8 bytes.
        if header.offset + header.length > MAX_SIZE:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "bytes beyond the largest file")


HAVE_RECORD: Final = struct.Struct("!IQ32s")


class Held(NamedTuple):
    """One record of ``HAVE_IS``: the first ``length`` bytes of ``segment`` are held and have this digest.

    A record of a whole segment means that it is sealed; a shorter one that sending may go on at ``length``.
    """

    segment: int
    length: int
    digest: bytes


def encode_held(held: list[Held]) -> bytes:
    """The body of ``HAVE_IS``."""
    return b"".join(HAVE_RECORD.pack(*record) for record in held)


def decode_held(body: bytes) -> list[Held]:
    """The records of ``HAVE_IS``; ``RemoteProtocolError(BadRequest)``."""
    if len(body) % HAVE_RECORD.size:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "HAVE of a broken length")
    return [Held._make(record) for record in HAVE_RECORD.iter_unpack(body)]

"""What a new connection is, told from its first bytes without taking them: text, a channel, or TLS for one of the two.

Used with ``MSG_PEEK`` on the control port, which serves all of them, so that a blocked data port is no obstacle.
The ClientHello is read as RFC 8446 §4.1.2 and RFC 7301 §3.1 lay it out, also when it is spread over several records.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .errors import ErrorCode, RemoteProtocolError
from .frames import CHANNEL_MAGIC

MAX_CLIENT_HELLO_BYTES = 16 * 1024
ALPN_CONTROL = "twinport/2"
ALPN_CHANNEL = "twinport-data/2"

_TLS_HANDSHAKE = 0x16
_TLS_MAJOR = 3
_RECORD_HEADER_BYTES = 5
_CLIENT_HELLO = 0x01
_MESSAGE_HEADER_BYTES = 4
_VERSION_AND_RANDOM_BYTES = 2 + 32
_EXTENSION_ALPN = 16
_EXTENSION_VERSIONS = 43
_TLS_1_3 = b"\x03\x04"


class FirstBytes(enum.Enum):
    """The kinds of connection."""

    UNDECIDED = "undecided"
    TEXT = "text"
    CHANNEL = "channel"
    TLS = "tls"


@dataclass(frozen=True)
class Sniffed:
    """The kind, and for TLS the protocols that the client offers (ALPN), in its order, and whether it takes TLS 1.3."""

    kind: FirstBytes
    alpn: tuple[str, ...] = ()
    tls_1_3: bool = False


def sniff(data: bytes) -> Sniffed:
    """Judge the first bytes of a connection (as many as there are yet, at most ``MAX_CLIENT_HELLO_BYTES``).

    ``UNDECIDED`` asks for more. Raises ``RemoteProtocolError(BadRequest)`` for a handshake that is malformed or too
    long.
    """
    if not data:
        return Sniffed(FirstBytes.UNDECIDED)
    if data[0] == _TLS_HANDSHAKE:
        hello = _client_hello(data)
        if hello is None:
            if len(data) >= MAX_CLIENT_HELLO_BYTES:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "ClientHello too long")
            return Sniffed(FirstBytes.UNDECIDED)
        alpn, tls_1_3 = _offers(hello)
        return Sniffed(FirstBytes.TLS, alpn, tls_1_3)
    if data[0] == CHANNEL_MAGIC[0]:
        if data[: len(CHANNEL_MAGIC)] == CHANNEL_MAGIC:
            return Sniffed(FirstBytes.CHANNEL)
        if CHANNEL_MAGIC.startswith(data):
            return Sniffed(FirstBytes.UNDECIDED)
    return Sniffed(FirstBytes.TEXT)


def _client_hello(data: bytes) -> bytes | None:
    """The body of the ClientHello out of one or more records; None when it is not all there yet."""
    message = bytearray()
    at = 0
    while at + _RECORD_HEADER_BYTES <= len(data):
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        is_handshake = data[at] == _TLS_HANDSHAKE and data[at + 1] == _TLS_MAJOR
        if not is_handshake or not 0 < length <= MAX_CLIENT_HELLO_BYTES:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "not a TLS handshake record")
        at += _RECORD_HEADER_BYTES
        message += data[at : at + length]
        at += length
        if message[:1] not in (b"", bytes((_CLIENT_HELLO,))):
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "not a ClientHello")
        if len(message) >= _MESSAGE_HEADER_BYTES:
            wanted = int.from_bytes(message[1:_MESSAGE_HEADER_BYTES], "big")
            if wanted > MAX_CLIENT_HELLO_BYTES:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "ClientHello too long")
            if len(message) >= _MESSAGE_HEADER_BYTES + wanted:
                return bytes(message[_MESSAGE_HEADER_BYTES : _MESSAGE_HEADER_BYTES + wanted])
    return None


class _Cursor:
    """Reads length-prefixed fields; anything that reaches past the end is malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "malformed ClientHello")
        self._at += count
        return piece

    def vector(self, length_bytes: int) -> bytes:
        return self.take(int.from_bytes(self.take(length_bytes), "big"))

    def __bool__(self) -> bool:
        return self._at < len(self._data)


def _offers(hello: bytes) -> tuple[tuple[str, ...], bool]:
    """The application protocols, and whether TLS 1.3 is among the versions (RFC 8446 §4.2.1)."""
    cursor = _Cursor(hello)
    cursor.take(_VERSION_AND_RANDOM_BYTES)
    cursor.vector(1)
    cursor.vector(2)
    cursor.vector(1)
    extensions = _Cursor(cursor.vector(2) if cursor else b"")
    alpn: list[str] = []
    tls_1_3 = False
    while extensions:
        kind = int.from_bytes(extensions.take(2), "big")
        body = extensions.vector(2)
        if kind == _EXTENSION_ALPN:
            names = _Cursor(_Cursor(body).vector(2))
            while names:
                alpn.append(names.vector(1).decode("latin-1"))
        elif kind == _EXTENSION_VERSIONS:
            versions = _Cursor(_Cursor(body).vector(1))
            while versions:
                tls_1_3 |= versions.take(2) == _TLS_1_3
    return tuple(alpn), tls_1_3

"""Fetching one manifest over a channel of its own."""

from __future__ import annotations

import socket

from twinport_protocol.channel import ChannelClient
from twinport_protocol.errors import ErrorCode, ProtocolError
from twinport_protocol.frames import FrameType, Message
from twinport_protocol.segments import Layout, Manifest

from .errors import IntegrityError, NetworkError, nonsense, refusal
from .session import Session
from .streams import CONNECT_SECONDS, SILENT_SECONDS, connect_channel, tune

_READ_BYTES = 64 * 1024


def fetch_manifest(session: Session, ticket: bytes, size: int, root: bytes, name: str) -> Manifest:
    """The manifest of the version that ``ticket`` is for. ``IntegrityError`` if it does not add up to ``root``."""
    if Layout.of(size).count == 1:
        return Manifest(size, root)
    trouble: OSError | NetworkError | None = None
    for address in session.channel_addresses:
        try:
            with connect_channel(address, session.identity.certificate, CONNECT_SECONDS) as connection:
                connection.settimeout(SILENT_SECONDS)
                tune(connection, SILENT_SECONDS)
                answer = _exchange(connection, ChannelClient(session.limits), ticket)
        except ProtocolError as error:
            raise nonsense(error) from None
        except (OSError, NetworkError) as error:
            trouble = error
            continue
        if answer.header.status:
            raise refusal(ErrorCode.from_number(answer.header.status), f"no manifest of {name}")
        try:
            return Manifest.checked(size, answer.body, root)
        except ProtocolError:
            raise IntegrityError(f"the manifest of {name} does not add up to its root") from None
    raise NetworkError(f"no data connection for the manifest of {name}: {trouble}")


def _exchange(connection: socket.socket, protocol: ChannelClient, ticket: bytes) -> Message:
    number, attach = protocol.attach(ticket)
    connection.sendall(protocol.open() + attach + protocol.request(FrameType.MANIFEST, number))
    buffer = memoryview(bytearray(_READ_BYTES))
    while True:
        count = connection.recv_into(buffer)
        if count == 0:
            raise ConnectionResetError("the server closed the data connection")
        for event in protocol.feed(buffer[:count]):
            if isinstance(event, Message) and event.header.type == FrameType.MANIFEST_IS:
                return event
            if event.header.type in (FrameType.GOODBYE, FrameType.FAIL) and not protocol.unanswered_frames:
                raise ConnectionResetError("the server closed the data connection")

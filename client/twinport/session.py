"""Connecting: the greeting on the control connection, and where the channels are."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

from twinport_protocol.control import ControlClient, Greeting, Limits
from twinport_protocol.errors import ErrorCode, ProtocolError, RemoteProtocolError
from twinport_protocol.numbers import parse_size

from .addresses import MAX_PORT, Address
from .control_link import PING_SECONDS, ControlLink
from .data_channel import CONNECT_SECONDS, SILENT_SECONDS, tune
from .errors import NetworkError, TwinportError, nonsense, refusal

NONCE_BYTES = 16
# A server that allows none of these could only be waited for.
LEAST_ONE = ("window_commands", "window_bytes", "channels", "frames", "credit", "piece", "attachments")
# Answers that another try may change; everything else is final.
_PASSING = frozenset({ErrorCode.BUSY, ErrorCode.SHUTTING_DOWN, ErrorCode.TIMEOUT})


class Session:
    """One control connection that has been greeted, and the addresses of its channels."""

    def __init__(self, link: ControlLink, limits: Limits, channel_addresses: tuple[Address, ...]) -> None:
        self.link = link
        self.limits = limits
        self.channel_addresses = channel_addresses

    def close(self) -> None:
        """Say goodbye and close."""
        self.link.close()


def open_session(
    address: Address,
    agent: str,
    *,
    connect_seconds: float = CONNECT_SECONDS,
    ping_seconds: float = PING_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Session:
    """Connect to ``address`` and exchange greetings. ``NetworkError``, ``BusyError``, ``LoginError``."""
    try:
        connection = socket.create_connection((address.host, address.port), connect_seconds)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        text = f"no connection to {address}: {reason}; is twinportd running there, and is the port open?"
        raise NetworkError(text) from None
    try:
        protocol = ControlClient()
        options = _greet(connection, protocol, agent)
        limits = protocol.limits
        if min(getattr(limits, name) for name in LEAST_ONE) < 1:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a limit of nothing")
        port = parse_size(options.get("data-port", str(address.port)).encode(), maximum=MAX_PORT) or address.port
        tune(connection, SILENT_SECONDS)
        connection.setblocking(False)
    except ProtocolError as error:
        connection.close()
        raise _as_refusal(address, error) from None
    except OSError as error:
        connection.close()
        text = f"no greeting from {address}: {error.strerror or error}; is it a twinportd?"
        raise NetworkError(text) from None
    except BaseException:
        connection.close()
        raise
    link = ControlLink(connection, protocol, clock, ping_seconds)
    # The control port takes channels too, for networks that let only one port through.
    channels = (Address(address.host, port), address) if port != address.port else (address,)
    return Session(link, limits, channels)


def _greet(connection: socket.socket, protocol: ControlClient, agent: str) -> dict[str, str]:
    connection.sendall(protocol.hello({"agent": agent, "nonce": os.urandom(NONCE_BYTES).hex()}))
    while True:
        data = connection.recv(65536)
        if not data:
            raise NetworkError("the server closed the connection before its greeting; is it a twinportd?")
        protocol.feed(data)
        for event in protocol.events():
            if isinstance(event, Greeting):
                return dict(event.options)


def _as_refusal(address: Address, error: ProtocolError) -> TwinportError:
    is_answer = isinstance(error, RemoteProtocolError)
    if is_answer and (error.code in _PASSING or error.code.number >= ErrorCode.DENIED.number):
        return refusal(error.code, f"{address} refused the connection")
    return nonsense(error)

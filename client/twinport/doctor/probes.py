"""Looking at a host and its ports from outside, before any protocol."""

from __future__ import annotations

import enum
import errno
import ipaddress
import socket
import time
from dataclasses import dataclass

from twinport.addresses import Address

PROBE_SECONDS = 5.0
"""A packet that is lost is sent again after one second and after three; who has not answered by now drops them."""
_UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EACCES})
_NOWHERE_PORT = 9
"""No packet is sent to it: connecting a UDP socket only looks up the route."""


class PortState(enum.Enum):
    """What a TCP connection attempt ends in."""

    OPEN = "open"
    REFUSED = "refused"
    FILTERED = "filtered"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True)
class PortProbe:
    """One attempt: how it ended, after how long, and the system's own word for it."""

    state: PortState
    seconds: float
    reason: str = ""


def resolve(host: str) -> list[str]:
    """The addresses of a host, in the order in which they are tried. ``OSError`` (``socket.gaierror``)."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError("no name can be written like this") from None
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def source_of(number: str) -> str:
    """This machine's own address on the way to another one. ``OSError`` where there is no way."""
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((number, _NOWHERE_PORT))
        return str(probe.getsockname()[0])


def is_private(number: str) -> bool:
    """Whether an address exists only within a network of its own (RFC 1918, RFC 4193, link-local), this machine
    excepted."""
    try:
        address = ipaddress.ip_address(number.partition("%")[0])
    except ValueError:
        return False
    return (address.is_private or address.is_link_local) and not address.is_loopback


def probe_port(address: Address, seconds: float = PROBE_SECONDS) -> PortProbe:
    """Try to connect, and hang up. Never raises ``OSError``."""
    began = time.monotonic()
    try:
        with socket.create_connection((address.host, address.port), seconds):
            state, reason = PortState.OPEN, ""
    except TimeoutError:
        state, reason = PortState.FILTERED, "no answer"
    except ConnectionRefusedError as error:
        state, reason = PortState.REFUSED, error.strerror or "refused"
    except OSError as error:
        known = error.errno in _UNREACHABLE
        state = PortState.UNREACHABLE if known else PortState.FILTERED
        reason = error.strerror or str(error)
    return PortProbe(state, time.monotonic() - began, reason)

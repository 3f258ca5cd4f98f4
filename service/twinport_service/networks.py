"""What counts as one address when connections, tries and turns are counted."""

from __future__ import annotations

import ipaddress

_MAPPED_IPV4 = "::ffff:"


def network_of(peer: object) -> str:
    """What one customer gets and may walk through at will: an IPv4 address, or the /64 of an IPv6 one.

    ``peer`` is a socket's peer name; all that have no address count as one, "". An IPv4 address mapped into IPv6
    (RFC 4291 §2.5.5.2) is the same as itself.
    """
    try:
        address = ipaddress.ip_address(_host(peer).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv4Address) or address.is_loopback:
        return str(address)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))


def host_of(peer: object) -> str:
    """The host of a peer name, as it stands; an IPv4 address mapped into IPv6 is the same host."""
    return _host(peer).removeprefix(_MAPPED_IPV4)


def _host(peer: object) -> str:
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""


def is_loopback(network: str) -> bool:
    """Whether a result of :func:`network_of` is this machine itself."""
    try:
        return ipaddress.ip_network(network).is_loopback
    except ValueError:
        return False

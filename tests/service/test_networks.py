"""What counts as one address."""

from __future__ import annotations

import pytest
from twinport_service.networks import host_of, is_loopback, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::ffff:c000:207", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::1"),
        ("127.0.0.9", "127.0.0.9"),
        ("::ffff:127.0.0.9", "127.0.0.9"),
        ("::ffff:7f00:9", "127.0.0.9"),
        ("a name", ""),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of((address, 1, 0, 0)) == network
    assert is_loopback(network) is network.startswith(("127.", "::1"))


@pytest.mark.parametrize("peer", [None, "", (), ("",), "socket", 5])
def test_what_has_no_address_is_one_network_too(peer: object) -> None:
    assert network_of(peer) == ""


@pytest.mark.parametrize(
    ("peer", "host"),
    [(("::ffff:192.0.2.7", 1), "192.0.2.7"), (("fe80::1%eth0", 1, 0, 2), "fe80::1%eth0"), ("socket", ""), ((), "")],
)
def test_the_host_of_a_peer(peer: object, host: str) -> None:
    assert host_of(peer) == host

"""Addresses as people write them."""

from __future__ import annotations

import pytest
from twinport.addresses import Address, parse_address
from twinport.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org", "example.org", 5001),
        ("example.org:6000", "example.org", 6000),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]", "::1", 5001),
        ("[::1]:65535", "::1", 65535),
        ("::1", "::1", 5001),
        ("fe80::1%eth0", "fe80::1%eth0", 5001),
    ],
)
def test_an_address_is_read_and_written(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert address == Address(host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", ":", ":5001", "host:", "host:0", "host:65536", "host:x", "host:1:2", "[::1", "::1]", "[]:5", "a b", "host:５"],
)
def test_what_is_no_address_is_a_usage_mistake(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)

"""What a connection is, told from real ClientHellos, from text, from a channel's magic and from garbage."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.frames import CHANNEL_MAGIC
from twinport_protocol.sniff import (
    ALPN_CHANNEL,
    ALPN_CONTROL,
    MAX_CLIENT_HELLO_BYTES,
    FirstBytes,
    Sniffed,
    sniff,
)

from tests.protocol.helpers import attempt

UNDECIDED = Sniffed(FirstBytes.UNDECIDED)


def client_hello(
    *protocols: str, host: str | None = "files.example", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> bytes:
    """The first flight of Python's own TLS client."""
    context = ssl.create_default_context()
    context.maximum_version = newest
    if protocols:
        context.set_alpn_protocols(protocols)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=host)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def in_records(hello: bytes, size: int) -> bytes:
    """A ClientHello of one record, cut into records that carry ``size`` bytes each."""
    head, body = hello[:3], hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(head + len(part).to_bytes(2, "big") + part for part in parts)


def record(body: bytes) -> bytes:
    """One handshake record."""
    return b"\x16\x03\x01" + len(body).to_bytes(2, "big") + body


def prefixes(data: bytes) -> Iterator[bytes]:
    """Every proper prefix."""
    return (data[:end] for end in range(len(data)))


@pytest.mark.parametrize(
    "protocols", [(), (ALPN_CONTROL,), (ALPN_CHANNEL,), ("h2", "http/1.1"), (ALPN_CONTROL, ALPN_CHANNEL), ("x" * 255,)]
)
@pytest.mark.parametrize("host", [None, "files.example"])
def test_a_real_client_hello(protocols: tuple[str, ...], host: str | None) -> None:
    hello = client_hello(*protocols, host=host)
    assert sniff(hello) == Sniffed(FirstBytes.TLS, protocols, tls_1_3=True)
    assert sniff(hello + b"more") == Sniffed(FirstBytes.TLS, protocols, tls_1_3=True)


def test_a_client_that_is_too_old_is_known_by_its_hello() -> None:
    hello = client_hello(ALPN_CONTROL, newest=ssl.TLSVersion.TLSv1_2)
    assert sniff(hello) == Sniffed(FirstBytes.TLS, (ALPN_CONTROL,), tls_1_3=False)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100, 16384])
def test_a_client_hello_over_several_records(size: int) -> None:
    hello = in_records(client_hello(ALPN_CONTROL), size)
    assert sniff(hello) == Sniffed(FirstBytes.TLS, (ALPN_CONTROL,), tls_1_3=True)


@pytest.mark.parametrize("size", [1, 7, 16384])
def test_a_client_hello_byte_by_byte(size: int) -> None:
    hello = in_records(client_hello(ALPN_CHANNEL), size)
    assert {sniff(prefix) for prefix in prefixes(hello)} == {UNDECIDED}


def test_a_channel_byte_by_byte() -> None:
    assert {sniff(prefix) for prefix in prefixes(CHANNEL_MAGIC)} == {UNDECIDED}
    assert sniff(CHANNEL_MAGIC) == sniff(CHANNEL_MAGIC + b"\x01") == Sniffed(FirstBytes.CHANNEL)


@pytest.mark.parametrize(
    "data", [b"H", b"HELLO 2\n", b"\n", b"\x00", b"\xff" * 99, b"\x89PNG\r\n", b"\x89TPC1", b"\x15\x03"]
)
def test_anything_else_is_text_for_the_parser_of_lines_to_refuse(data: bytes) -> None:
    assert sniff(data) == Sniffed(FirstBytes.TEXT)


HELLO = client_hello(ALPN_CONTROL)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x02\x00\x00\x05hello", id="SSL 2"),
        pytest.param(b"\x16\x03\x01\x00\x00", id="empty record"),
        pytest.param(b"\x16\x03\x01\xff\xff" + bytes(10), id="record too long"),
        pytest.param(record(b"\x02\x00\x00\x02\x03\x03"), id="ServerHello"),
        pytest.param(record(b"\x01\xff\xff\xff"), id="message too long"),
        pytest.param(record(b"\x01\x00\x00\x00"), id="empty message"),
        pytest.param(record(b"\x01\x00\x00\x05\x03\x03abc"), id="truncated message"),
        pytest.param(record(b"\x01\x00\x40") + b"\x15\x03\x01\x00\x02\x01\x00", id="an alert in between"),
        pytest.param(
            HELLO.replace(b"\x00\x10\x00\x0d\x00\x0b\x0a", b"\x00\x10\x00\x0d\x00\x0b\xff"), id="ALPN beyond its end"
        ),
    ],
)
def test_a_malformed_handshake_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        sniff(data)
    assert caught.value.code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("end", range(1, 12))
def test_the_start_of_a_record_is_waited_for(end: int) -> None:
    assert sniff(HELLO[:end]) == UNDECIDED


def test_an_endless_client_hello_is_refused_at_the_bound() -> None:
    wanted = 16_000
    body = b"\x01" + wanted.to_bytes(3, "big") + bytes(wanted)
    dripped = in_records(record(body), 1)
    assert sniff(dripped[: MAX_CLIENT_HELLO_BYTES - 1]) == UNDECIDED
    with pytest.raises(RemoteProtocolError):
        sniff(dripped[:MAX_CLIENT_HELLO_BYTES])


@given(
    st.binary(max_size=80)
    | st.binary(max_size=60).map(lambda tail: b"\x16\x03\x01" + tail)
    | st.tuples(st.binary(max_size=40), st.integers(0, 60)).map(
        lambda made: record(b"\x01" + made[1].to_bytes(3, "big") + made[0]) if made[0] else b"\x16"
    )
)
def test_garbage_raises_only_the_protocols_error(data: bytes) -> None:
    found = attempt(sniff, data)
    if isinstance(found, Sniffed):
        assert found.kind is not FirstBytes.TLS or data[:1] == b"\x16"
    else:
        assert found is ErrorCode.BAD_REQUEST


@given(st.integers(5, len(HELLO) - 1), st.integers(0, 255))
def test_a_damaged_client_hello_raises_only_the_protocols_error(at: int, value: int) -> None:
    damaged = HELLO[:at] + bytes((value,)) + HELLO[at + 1 :]
    found = attempt(sniff, damaged)
    if isinstance(found, Sniffed):
        assert found.kind in (FirstBytes.TLS, FirstBytes.UNDECIDED)
    else:
        assert found is ErrorCode.BAD_REQUEST


@given(st.integers(0, len(HELLO) * 2))
def test_the_answer_only_ever_gets_more_definite(end: int) -> None:
    """What was decided on fewer bytes is decided the same on more."""
    data = in_records(HELLO, 5)
    seen = sniff(data[:end])
    assert seen == UNDECIDED or seen == sniff(data)

"""Counting TLS records without understanding them, and a client that sends nothing but such as carry no data."""

from __future__ import annotations

import ctypes
import ctypes.util
import socket
from pathlib import Path

import pytest
from twinport_protocol.sniff import ALPN_CONTROL
from twinport_service.tls_records import RecordCounter

from tests.service.conftest import MakeFoundation, StartServer
from tests.service.raw_client import Address, await_true
from tests.service.tls_parts import with_tls


def record(length: int) -> bytes:
    """One, of zeros."""
    return b"\x17\x03\x03" + length.to_bytes(2, "big") + bytes(length)


LENGTHS = [0, 1, 17, 300, 0, 0, 16_640, 5]


@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 7, 100, 100_000])
def test_records_are_counted_however_they_are_cut(step: int) -> None:
    counter = RecordCounter()
    data = b"".join(map(record, LENGTHS))
    for at in range(0, len(data), step):
        counter.feed(data[at : at + step])
    assert counter.count == len(LENGTHS)


def test_one_that_has_begun_counts() -> None:
    counter = RecordCounter()
    counter.feed(record(100)[:4])
    assert counter.count == 0
    counter.feed(record(100)[4:50])
    assert counter.count == 1


class _ForeignClient:
    """A client by OpenSSL itself, since Python's has no way to ask for new keys."""

    def __init__(self, address: Address) -> None:
        self._ssl = ctypes.CDLL(ctypes.util.find_library("ssl") or "libssl.so.3")
        for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
            getattr(self._ssl, name).restype = ctypes.c_void_p
        self._sock = socket.create_connection(address, timeout=30)
        self._sock.setblocking(True)
        self._context = ctypes.c_void_p(self._ssl.SSL_CTX_new(ctypes.c_void_p(self._ssl.TLS_client_method())))
        self._tls = ctypes.c_void_p(self._ssl.SSL_new(self._context))
        wanted = bytes([len(ALPN_CONTROL)]) + ALPN_CONTROL.encode()
        assert self._ssl.SSL_set_alpn_protos(self._tls, wanted, len(wanted)) == 0
        assert self._ssl.SSL_set_fd(self._tls, self._sock.fileno()) == 1
        assert self._ssl.SSL_connect(self._tls) == 1

    def change_keys(self, times: int) -> None:
        """So many records without data, as far as the server takes them."""
        for _ in range(times):
            self._ssl.SSL_key_update(self._tls, 0)
            if self._ssl.SSL_do_handshake(self._tls) != 1:
                return

    def say(self, line: bytes) -> bytes:
        """Say a line and hear one; nothing when the connection is cut."""
        buffer = ctypes.create_string_buffer(4096)
        self._ssl.SSL_write(self._tls, line, len(line))
        count = self._ssl.SSL_read(self._tls, buffer, len(buffer))
        return buffer.raw[: max(0, count)]

    def close(self) -> None:
        """Close."""
        self._ssl.SSL_free(self._tls)
        self._ssl.SSL_CTX_free(self._context)
        self._sock.close()


@pytest.mark.parametrize("storage_kind", ["local"], indirect=True)
def test_new_keys_now_and_then_are_fine_and_without_end_are_cut_off(
    start_server: StartServer, make_foundation: MakeFoundation, tmp_path: Path
) -> None:
    server = start_server(with_tls(make_foundation(), tmp_path))
    client = _ForeignClient(server.control_address)
    try:
        assert client.say(b"HELLO 2\n").startswith(b"OK 2 ")
        client.change_keys(40)
        assert client.say(b"1 PING\n") == b"1 OK\n"
        client.change_keys(1000)
        assert client.say(b"2 PING\n") == b""
    finally:
        client.close()
    await_true(lambda: server.session_count == 0)
    assert "records without data" in server.log.getvalue()
    server.assert_no_traceback()

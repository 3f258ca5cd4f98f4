"""The limit with TLS: one bare stream over one connection, TLS 1.3 with AES-128-GCM, straight on OpenSSL.

    python benchmarks/limit_tls.py serve DIR CERTIFICATE KEY [--host H]     prints its port, serves until killed
    python benchmarks/limit_tls.py put PORT PATH [--host H]
    python benchmarks/limit_tls.py get PORT PATH [--host H]

Python's ``ssl`` cannot be this limit: it reads from the socket for every record of 16 KiB and has no read-ahead. Here
OpenSSL is called through ctypes, which costs a microsecond a record; the sender gives it the mapped file. No
certificate is checked.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BUFFER_BYTES = 1024 * 1024
_READ_AHEAD_BYTES = 256 * 1024
_WRITE_BYTES = 256 * 1024
_RECORD_BYTES = 16 * 1024
_REQUEST = struct.Struct("!cQ")
_SSL_FILETYPE_PEM = 1
_SSL_CTRL_MODE, _SSL_MODE_ENABLE_PARTIAL_WRITE = 33, 1
_SSL_CTRL_SET_READ_AHEAD = 41
_SSL_CTRL_SET_MIN_PROTO_VERSION, _TLS1_3_VERSION = 123, 0x0304

_lib = ctypes.CDLL("libssl.so.3")
_POINTER, _INT, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_size_t
for _name, _result, *_arguments in (
    ("TLS_method", _POINTER),
    ("SSL_CTX_new", _POINTER, _POINTER),
    ("SSL_CTX_ctrl", _LONG, _POINTER, _INT, _LONG, _POINTER),
    ("SSL_CTX_set_ciphersuites", _INT, _POINTER, ctypes.c_char_p),
    ("SSL_CTX_set_default_read_buffer_len", None, _POINTER, _SIZE),
    ("SSL_CTX_use_certificate_chain_file", _INT, _POINTER, ctypes.c_char_p),
    ("SSL_CTX_use_PrivateKey_file", _INT, _POINTER, ctypes.c_char_p, _INT),
    ("SSL_new", _POINTER, _POINTER),
    ("SSL_free", None, _POINTER),
    ("SSL_set_fd", _INT, _POINTER, _INT),
    ("SSL_accept", _INT, _POINTER),
    ("SSL_connect", _INT, _POINTER),
    ("SSL_read", _INT, _POINTER, _POINTER, _INT),
    ("SSL_write", _INT, _POINTER, _POINTER, _INT),
):
    _function = getattr(_lib, _name)
    _function.restype, _function.argtypes = _result, _arguments


class TlsStream:
    """One connection. Raises ``ConnectionError`` when OpenSSL refuses to go on."""

    def __init__(self, context: int, sock: socket.socket, server: bool) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._ssl = _lib.SSL_new(context)
        _lib.SSL_set_fd(self._ssl, sock.fileno())
        if (_lib.SSL_accept if server else _lib.SSL_connect)(self._ssl) != 1:
            raise ConnectionError("no handshake")

    def close(self) -> None:
        """Close without a farewell."""
        _lib.SSL_free(self._ssl)
        self._sock.close()

    def write(self, address: int, count: int) -> None:
        """Send so many bytes of memory."""
        done = 0
        while done < count:
            sent = _lib.SSL_write(self._ssl, address + done, min(_WRITE_BYTES, count - done))
            if sent <= 0:
                raise ConnectionError("cannot send")
            done += sent

    def write_bytes(self, data: bytes) -> None:
        """Send a few bytes."""
        buffer = ctypes.create_string_buffer(data, len(data))
        self.write(ctypes.addressof(buffer), len(data))

    def read_bytes(self, count: int) -> bytes:
        """Exactly so many bytes, few of them."""
        buffer = ctypes.create_string_buffer(count)
        self._fill(ctypes.addressof(buffer), count)
        return buffer.raw

    def _fill(self, address: int, count: int) -> None:
        read, ssl, done = _lib.SSL_read, self._ssl, 0
        while done < count:
            got = read(ssl, address + done, count - done)
            if got <= 0:
                raise ConnectionError("the peer left")
            done += got

    def receive_file(self, path: Path, size: int) -> None:
        """Take so many bytes into a new file."""
        buffer = bytearray(_BUFFER_BYTES)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        with path.open("wb", buffering=0) as file, memoryview(buffer) as view:
            while size:
                count = min(_BUFFER_BYTES, size)
                self._fill(address, count)
                file.write(view[:count])
                size -= count

    def send_file(self, path: Path) -> None:
        """Send a file that is not empty, from its pages in the cache."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as view:
            start = ctypes.c_char.from_buffer(view)
            self.write(ctypes.addressof(start), len(view))
            del start  # the map cannot be closed while something points into it


def make_context(certificate: str | None = None, key: str | None = None) -> int:
    """A context for TLS 1.3 with AES-128-GCM alone, with read-ahead."""
    context: int = _lib.SSL_CTX_new(_lib.TLS_method())
    _lib.SSL_CTX_ctrl(context, _SSL_CTRL_SET_MIN_PROTO_VERSION, _TLS1_3_VERSION, None)
    _lib.SSL_CTX_ctrl(context, _SSL_CTRL_MODE, _SSL_MODE_ENABLE_PARTIAL_WRITE, None)
    _lib.SSL_CTX_ctrl(context, _SSL_CTRL_SET_READ_AHEAD, 1, None)
    _lib.SSL_CTX_set_default_read_buffer_len(context, _READ_AHEAD_BYTES)
    fine = _lib.SSL_CTX_set_ciphersuites(context, b"TLS_AES_128_GCM_SHA256") == 1
    if certificate is not None and key is not None:
        fine &= _lib.SSL_CTX_use_certificate_chain_file(context, os.fsencode(certificate)) == 1
        fine &= _lib.SSL_CTX_use_PrivateKey_file(context, os.fsencode(key), _SSL_FILETYPE_PEM) == 1
    if not fine:
        raise ValueError("OpenSSL takes neither the cipher nor the certificate")
    return context


@contextmanager
def _stream(context: int, sock: socket.socket, server: bool) -> Iterator[TlsStream]:
    stream = TlsStream(context, sock, server)
    try:
        yield stream
    finally:
        stream.close()


def _answer(context: int, sock: socket.socket, directory: Path) -> None:
    with _stream(context, sock, True) as stream:
        kind, size = _REQUEST.unpack(stream.read_bytes(_REQUEST.size))
        target = directory / "target"
        if kind == b"P":
            stream.receive_file(target, size)
            stream.write_bytes(b"D")
        else:
            stream.write_bytes(struct.pack("!Q", target.stat().st_size))
            stream.send_file(target)
            stream.read_bytes(1)


def serve(directory: Path, host: str, context: int) -> None:
    """Serve puts and gets of ``target`` beneath ``directory`` until killed."""
    listener = socket.create_server((host, 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=_answer, args=(context, sock, directory), daemon=True).start()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("serve", "put", "get"))
    parser.add_argument("words", nargs="+")
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    if options.act == "serve":
        serve(Path(options.words[0]), options.host, make_context(*options.words[1:]))
        return
    port, path = int(options.words[0]), Path(options.words[1])
    with _stream(make_context(), socket.create_connection((options.host, port)), False) as stream:
        if options.act == "put":
            stream.write_bytes(_REQUEST.pack(b"P", path.stat().st_size))
            stream.send_file(path)
            stream.read_bytes(1)
        else:
            stream.write_bytes(_REQUEST.pack(b"G", 0))
            (size,) = struct.unpack("!Q", stream.read_bytes(8))
            stream.receive_file(path, size)
            stream.write_bytes(b"D")


if __name__ == "__main__":
    main()

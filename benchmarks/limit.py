"""The limit: a bare copy over one TCP connection, as little as a program can do. No verification, no names to check,
no fsync unless asked for. What Twinport does on top of it is what a benchmark's ratio shows.

    python benchmarks/limit.py serve DIR [--fsync]        prints its port, serves until killed
    python benchmarks/limit.py put PORT PATH [--records]  one file, or with --records a directory as a stream of records
    python benchmarks/limit.py get PORT PATH [--records] [--fsync]

All take ``--host`` and ``--congestion``, the algorithm of their side.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

_BUFFER_BYTES = 1024 * 1024
_REQUEST = struct.Struct("!cBQ")
_RECORD = struct.Struct("!HQ")
_PUT, _GET = b"P", b"G"


def receive_file(sock: socket.socket, path: Path, size: int, fsync: bool) -> None:
    """Move ``size`` bytes from the socket into a new file, with splice(2) through a pipe."""
    source, sink = os.pipe()
    try:
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _BUFFER_BYTES)
        with path.open("wb", buffering=0) as file:
            left = size
            while left:
                waiting = os.splice(sock.fileno(), sink, min(left, _BUFFER_BYTES))
                if not waiting:
                    raise ConnectionError("the peer left")
                left -= waiting
                while waiting:
                    waiting -= os.splice(source, file.fileno(), waiting)
            if fsync:
                os.fsync(file.fileno())
    finally:
        os.close(source)
        os.close(sink)


def send_file(sock: socket.socket, path: Path) -> None:
    """Send a file with sendfile(2)."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            offset += os.sendfile(sock.fileno(), file.fileno(), offset, size - offset)


def send_records(sock: socket.socket, directory: Path) -> None:
    """Send every file of a directory as one stream of (name, size, bytes) records."""
    out = bytearray()
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        data = Path(entry.path).read_bytes()
        name = entry.name.encode()
        out += _RECORD.pack(len(name), len(data)) + name + data
        if len(out) > _BUFFER_BYTES:
            sock.sendall(out)
            out.clear()
    sock.sendall(out + _RECORD.pack(0, 0))


def receive_records(sock: socket.socket, directory: Path, fsync: bool) -> None:
    """Take a stream of records into a directory; with ``fsync`` each file is flushed and renamed, one by one."""
    stream = sock.makefile("rb", buffering=_BUFFER_BYTES)
    directory.mkdir(exist_ok=True)
    for name, data in _records(stream.read):
        target = directory / name
        part = directory / f".{name}.part" if fsync else target
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(descriptor, data)
        if fsync:
            os.fsync(descriptor)
        os.close(descriptor)
        if fsync:
            os.rename(part, target)


def _records(read: Callable[[int], bytes]) -> Iterator[tuple[str, bytes]]:
    while True:
        name_bytes, size = _RECORD.unpack(read(_RECORD.size))
        if not name_bytes:
            return
        name = read(name_bytes).decode()
        yield name, read(size)


def tune(sock: socket.socket, congestion: str | None) -> None:
    """What every connection is set to."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if congestion is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())


def serve(directory: Path, host: str, congestion: str | None, fsync: bool) -> None:
    """Serve puts and gets of ``target`` beneath ``directory`` until killed."""
    listener = socket.create_server((host, 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _ = listener.accept()
        tune(sock, congestion)
        threading.Thread(target=_answer, args=(sock, directory, fsync), daemon=True).start()


def _answer(sock: socket.socket, directory: Path, fsync: bool) -> None:
    with sock:
        kind, records, size = _REQUEST.unpack(sock.recv(_REQUEST.size, socket.MSG_WAITALL))
        target = directory / "target"
        if kind == _PUT:
            if records:
                receive_records(sock, target, fsync)
            else:
                receive_file(sock, target, size, fsync)
            sock.sendall(b"D")
        elif records:
            send_records(sock, target)
        else:
            sock.sendall(struct.pack("!Q", target.stat().st_size))
            send_file(sock, target)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=("serve", "put", "get"))
    parser.add_argument("where", help="directory to serve, or port")
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--records", action="store_true")
    parser.add_argument("--fsync", action="store_true")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--congestion")
    options = parser.parse_args()
    if options.act == "serve":
        serve(Path(options.where), options.host, options.congestion, options.fsync)
        return
    with socket.create_connection((options.host, int(options.where))) as sock:
        tune(sock, options.congestion)
        if options.act == "put":
            size = 0 if options.records else options.path.stat().st_size
            sock.sendall(_REQUEST.pack(_PUT, options.records, size))
            if options.records:
                send_records(sock, options.path)
            else:
                send_file(sock, options.path)
            if sock.recv(1) != b"D":
                raise ConnectionError("not confirmed")
        else:
            sock.sendall(_REQUEST.pack(_GET, options.records, 0))
            if options.records:
                receive_records(sock, options.path, options.fsync)
            else:
                (size,) = struct.unpack("!Q", sock.recv(8, socket.MSG_WAITALL))
                receive_file(sock, options.path, size, options.fsync)


if __name__ == "__main__":
    main()

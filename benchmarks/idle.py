"""What idle control sessions cost a server, and how long a new one takes beside them.

    python -m benchmarks.idle [--tls 2000] [--plain 10000] [--place /dev/shm]

The server is a process of its own with its defaults, but for the bounds on how many may come from one address: all
come from loopback. Needs as many descriptors here and there (``ulimit -n``).
"""

from __future__ import annotations

import argparse
import re
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from twinport_protocol.sniff import ALPN_CONTROL

MIB = 1024 * 1024
PROBES = 20
_ADDRESS = re.compile(r"control (\S+):(\d+) ")


def rss_bytes(pid: int) -> int:
    """The resident memory of a process now."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


@contextmanager
def running_server(root: Path, sessions: int) -> Iterator[tuple[int, tuple[str, int]]]:
    """The id and control address of ``twinportd serve``."""
    bounds = ["--max-sessions", "--max-sessions-per-address", "--max-unauthenticated"]
    shown = subprocess.run([*_command(), "serve", "--help"], capture_output=True, text=True, check=True).stdout
    flags = [word for bound in bounds if f"{bound} " in shown for word in (bound, str(sessions + 100))]
    line = [*_command(), "serve", "--root", str(root), "--control-port", "0", "--data-port", "0", *flags]
    with subprocess.Popen([*line, "--log-level", "warning"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = _ADDRESS.search(process.stdout.readline())
            assert match is not None, "the server did not get ready"
            yield process.pid, (match[1], int(match[2]))
        finally:
            process.terminate()


def _command() -> list[str]:
    return [sys.executable, "-c", "from twinport_service.cli import main; main()"]


def open_session(address: tuple[str, int], context: ssl.SSLContext | None) -> socket.socket:
    """A session that has greeted."""
    sock = socket.create_connection(address, timeout=30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if context is not None:
        sock = context.wrap_socket(sock)
    sock.sendall(b"HELLO 2 agent=idle\n")
    greeting = sock.recv(4096)
    assert greeting.startswith(b"OK 2 "), greeting
    return sock


def client_context() -> ssl.SSLContext:
    """A client that does not verify: it measures a server that it started itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN_CONTROL])
    return context


def measure(name: str, sessions: int, context: ssl.SSLContext | None, place: str) -> None:
    """Open so many, look at the server's memory, and time some more."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(dir=place))
        pid, address = stack.enter_context(running_server(Path(directory) / "root", sessions))
        open_session(address, context).close()
        before = rss_bytes(pid)
        began = time.perf_counter()
        for _ in range(sessions):
            stack.enter_context(open_session(address, context))
        opened = time.perf_counter() - began
        after = rss_bytes(pid)
        times = []
        for _ in range(PROBES):
            began = time.perf_counter()
            open_session(address, context).close()
            times.append(time.perf_counter() - began)
        print(
            f"{name:6} {sessions:6} sessions  RSS {before / MIB:6.1f} -> {after / MIB:6.1f} MiB"
            f"  {(after - before) / sessions / 1024:6.1f} KiB each  opened {sessions / opened:5.0f}/s"
            f"  a new one: median {statistics.median(times) * 1000:.1f} ms, worst {max(times) * 1000:.1f} ms"
        )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tls", type=int, default=2000, help="idle sessions under TLS; 0 leaves them out")
    parser.add_argument("--plain", type=int, default=10_000, help="idle sessions in plaintext; 0 leaves them out")
    parser.add_argument("--place", default="/dev/shm", help="where the root is made")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if options.tls:
        measure("TLS", options.tls, client_context(), options.place)
    if options.plain:
        measure("plain", options.plain, None, options.place)


if __name__ == "__main__":
    main()

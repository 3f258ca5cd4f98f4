"""A real ``twinportd`` in a process of its own, and a proxy that can stall, cut and count what passes it."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from twinport_protocol.frames import CHANNEL_MAGIC

START_SECONDS = 60
READ_BYTES = 64 * 1024


class ServerProcess:
    """``twinportd serve`` on loopback; ``port`` is its control port, kept over restarts."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.port = 0
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def reserving(self) -> Iterator[ServerProcess]:
        """Choose the port now and hold it, so that nobody else gets it while the server is down; at the end stop."""
        with socket.socket() as reserved:
            # Bound as servers are, and not listening: only who asks for this very port gets it too.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            self.port = reserved.getsockname()[1]
            try:
                yield self
            finally:
                self.stop()

    def start(self) -> ServerProcess:
        """Start, and wait for the ready line."""
        self.root.mkdir(parents=True, exist_ok=True)
        ports = ["--control-port", str(self.port), "--data-port", "0"]
        program = [sys.executable, "-c", "from twinport_service.cli import main; main()"]
        self._process = subprocess.Popen(
            [*program, "serve", "--root", str(self.root), *ports, *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        line = self._process.stdout.readline() if readable else ""
        match = re.search(r"ready: control [^ ]*:(\d+) ", line)
        assert match, f"the server said {line!r}"
        self.port = int(match[1])
        return self

    @property
    def host(self) -> str:
        """What ``--host`` takes."""
        return f"127.0.0.1:{self.port}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        process.wait(START_SECONDS)
        if process.stdout is not None:
            process.stdout.close()

    def stored(self, name: str) -> Path:
        """Where the server keeps a file."""
        return self.root / name


class Passage:
    """One proxied connection. ``kind`` is "control" or "channel", ``number`` counts within the kind."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.kind = ""
        self.number = -1
        self.up_bytes = 0
        self.down_bytes = 0
        self.stalled = False

    def cut(self) -> None:
        """Reset both sides."""
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


Rule = Callable[[Passage, str, bytes], bytes | None]
"""Given the passage, "up" or "down" and the bytes: what to pass on; None stalls the passage for good."""


def pass_all(passage: Passage, direction: str, data: bytes) -> bytes | None:
    """Change nothing."""
    return data


class Proxy:
    """Listens on loopback; every connection, control and channels alike, goes to the server's control port.

    The greeting's ``data-port`` is rewritten, so that channels come through here too.
    """

    def __init__(self, server_port: int, rule: Rule = pass_all) -> None:
        self.rule = rule
        self.passages: list[Passage] = []
        self.lock = threading.Lock()
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def host(self) -> str:
        """What ``--host`` takes."""
        return f"127.0.0.1:{self.port}"

    def moved_bytes(self, direction: str) -> int:
        """What went "up" to or "down" from the server over channels."""
        channels = [passage for passage in list(self.passages) if passage.kind == "channel"]
        return sum(passage.up_bytes if direction == "up" else passage.down_bytes for passage in channels)

    def cut_all(self) -> None:
        """Reset everything that is open."""
        for passage in list(self.passages):
            passage.cut()

    def close(self) -> None:
        """End all threads."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        self.cut_all()
        for thread in self._threads:
            thread.join()
        for passage in self.passages:
            passage.client.close()
            passage.server.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port), 30)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for side in (client, server):
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            passage = Passage(client, server)
            self.passages.append(passage)
            for direction, source, target in (("up", client, server), ("down", server, client)):
                thread = threading.Thread(target=self._pump, args=(passage, direction, source, target))
                self._threads.append(thread)
                thread.start()

    def _pump(self, passage: Passage, direction: str, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(READ_BYTES):
                with self.lock:
                    if not passage.kind:
                        passage.kind = "channel" if data[:1] == CHANNEL_MAGIC[:1] else "control"
                        passage.number = sum(other.kind == passage.kind for other in self.passages) - 1
                    if direction == "down" and passage.kind == "control" and not passage.down_bytes:
                        data = re.sub(rb"data-port=\d+", b"data-port=%d" % self.port, data)
                    passed = None if passage.stalled else self.rule(passage, direction, data)
                    if passed is None:
                        passage.stalled = True
                        continue  # take the bytes, so that only silence tells
                    if direction == "up":
                        passage.up_bytes += len(passed)
                    else:
                        passage.down_bytes += len(passed)
                target.sendall(passed)
        except OSError:
            pass
        passage.cut()

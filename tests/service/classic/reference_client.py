"""A client of the classic dialect as its users have it: blocking sockets, 4,096-byte chunks, replies of one ``recv``.

It knows the published protocol and nothing of this project's code, so that the two cannot share a mistake.
"""

from __future__ import annotations

import socket
from types import TracebackType

CHUNK_SIZE = 4096
REPLY_SIZE = 1024


class ServerError(Exception):
    """The server's ``ERROR`` line; ``code`` is its second word."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line
        self.code = line.split(" ")[1]


class ReferenceClient:
    """One session. ``source`` binds its sockets to a local address."""

    def __init__(self, host: str, control_port: int, *, timeout: float = 30.0, source: str | None = None) -> None:
        self.host = host
        self.timeout = timeout
        self.source = (source, 0) if source else None
        self.control = socket.create_connection((host, control_port), timeout, self.source)

    def __enter__(self) -> ReferenceClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.control.close()

    def send(self, line: str) -> None:
        """Send a command without waiting for its reply."""
        self.control.sendall(line.encode() + b"\n")

    def reply(self) -> str:
        """One reply; ``ServerError`` for an ERROR, ``ConnectionError`` when the server has closed."""
        raw = self.control.recv(REPLY_SIZE)
        if not raw:
            raise ConnectionError("the server closed the control connection")
        line = raw.decode()
        if line.startswith("ERROR"):
            raise ServerError(line.rstrip("\n"))
        return line.rstrip("\n")

    def ask(self, line: str) -> str:
        """Send a command and read its reply."""
        self.send(line)
        return self.reply()

    def connect_data(self, port: int) -> socket.socket:
        """A data connection."""
        return socket.create_connection((self.host, port), self.timeout, self.source)

    def begin_upload(self, filename: str, filesize: int) -> socket.socket:
        """UPLOAD, OK, and the data connection, on which nothing was sent yet."""
        return self.connect_data(int(self.ask(f"UPLOAD {filename} {filesize}").split(" ")[1]))

    def upload(self, filename: str, content: bytes) -> None:
        """A whole upload; returns at DONE."""
        with self.begin_upload(filename, len(content)) as data:
            sent = 0
            while sent < len(content):
                chunk = content[sent : sent + CHUNK_SIZE]
                data.sendall(chunk)
                sent += len(chunk)
        assert self.reply() == "DONE"

    def begin_download(self, filename: str) -> tuple[int, socket.socket]:
        """DOWNLOAD, OK, READY, and the data connection: the file's size and the socket."""
        word, filesize, port = self.ask(f"DOWNLOAD {filename}").split(" ")
        assert word == "OK"
        self.send("READY")
        return int(filesize), self.connect_data(int(port))

    def download(self, filename: str) -> bytes:
        """A whole download; returns at DONE."""
        filesize, data = self.begin_download(filename)
        content = bytearray()
        with data:
            while len(content) < filesize:
                chunk = data.recv(min(CHUNK_SIZE, filesize - len(content)))
                if not chunk:
                    break
                content += chunk
        assert self.reply() == "DONE"
        assert len(content) == filesize
        return bytes(content)

    def list_names(self) -> list[str]:
        """LIST; reads on until as many names as were counted have come."""
        self.send("LIST")
        raw = bytearray()
        missing: int | None = None
        while missing is None or missing > 0:
            more = self.control.recv(REPLY_SIZE)
            if not more:
                raise ConnectionError("the server closed the control connection")
            raw += more
            if raw.startswith(b"ERROR"):
                raise ServerError(raw.decode().rstrip("\n"))
            if missing is not None:
                missing -= more.count(b"\n")
            elif b"\n" in raw:
                head, _, body = raw.partition(b"\n")
                missing = int(head.split(b" ")[1]) - body.count(b"\n")
        return raw.decode().split("\n")[1:-1]

    def quit(self) -> None:
        """QUIT; returns when the server has closed."""
        self.send("QUIT")
        assert self.control.recv(REPLY_SIZE) == b""
        self.control.close()

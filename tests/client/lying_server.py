"""A server that speaks the protocol well and lies: about names, sizes, roots, manifests and bytes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping

from twinport_protocol.bundles import decode_uploaded, fetched_head, iterate_names
from twinport_protocol.channel import ChannelServer
from twinport_protocol.control import ControlServer, Greeting, Limits
from twinport_protocol.errors import ErrorCode, ProtocolError
from twinport_protocol.frames import CHANNEL_MAGIC, DETACH_AFTER, AckStatus, FrameType, Header, Message
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.segments import Layout, digest_of, root_of
from twinport_protocol.tickets import encode_ticket


def manifest_of(data: bytes) -> bytes:
    """The digests of all segments."""
    layout = Layout.of(len(data))
    starts = (layout.start(segment) for segment in range(layout.count))
    return b"".join(digest_of(data[start : start + layout.segment_bytes]) for start in starts)


class LyingServer:
    """Honest about ``files`` until a test replaces one of the methods or attributes."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.listed: list[tuple[str, str]] | None = None
        self.greeting: bytes | None = None
        self.login: dict[str, str] | None = None
        self.more = "0"
        self.bundle = 0
        """The body of a bundle, as announced; with it listings tell the facts of each file."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._closing = False
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    # what a test may replace -----------------------------------------------------------------------------------------

    def facts(self, name: str) -> dict[str, str]:
        """The answer to DOWNLOAD, without the ticket."""
        data = self.files[name]
        return {"size": str(len(data)), "root": self.root(name).hex(), "mtime": "0", "exec": "0"}

    def root(self, name: str) -> bytes:
        """The root of a file."""
        return root_of(len(self.files[name]), manifest_of(self.files[name]))

    def manifest(self, name: str) -> bytes:
        """The body of MANIFEST_IS."""
        return manifest_of(self.files[name])

    def segment(self, wire: ChannelServer, get: Header, name: str) -> bytes:
        """The frames that answer a GET."""
        start = get.segment * Layout.of(len(self.files[name])).segment_bytes + get.offset
        data = self.files[name][start : start + get.length]
        return wire.segment_header(get, get.offset, len(data), last=True) + data

    def fetched(self, wire: ChannelServer, get: Header, names: list[str]) -> bytes:
        """The frames that answer a GET_MANY."""
        datas = [self.files[name] for name in names]
        records = [fetched_head(0, len(data), digest_of(data), executable=False) + data for data in datas]
        body = b"".join(records)
        return wire.files_header(get, len(body), sum(map(len, datas)), last=True) + body

    def taken(self, wire: ChannelServer, put: Header, files: int) -> bytes:
        """The frames that answer a PUT_MANY of so many files."""
        return wire.acknowledge_many(put, [int(AckStatus.COMMITTED)] * files)

    def answer(self, command: Command) -> list[Reply]:
        """The replies to a command."""
        number = command.id
        if command.verb is Verb.LIST:
            entries = self.listed if self.listed is not None else [(name, "f") for name in sorted(self.files)]
            facts = {"size": "0", "mtime": "0", "exec": "0"}
            replies = [
                Reply(number, ReplyKind.ENTRY, (name,), {"kind": kind, **(self.facts(name) if self.bundle else facts)})
                for name, kind in entries
            ]
            return [*replies, Reply(number, ReplyKind.DONE, (), {"count": str(len(entries)), "more": self.more})]
        if command.verb is Verb.DOWNLOAD:
            name = command.words[0]
            if name not in self.files:
                return [Reply(number, ReplyKind.ERROR, code=ErrorCode.FILE_NOT_FOUND)]
            ticket = encode_ticket(name.encode("utf-8", "surrogateescape"))
            return [Reply(number, ReplyKind.OK, (), {**self.facts(name), "ticket": ticket})]
        if command.verb is Verb.BUNDLE:
            return [Reply(number, ReplyKind.OK, (), {"ticket": encode_ticket(b"a bundle")})]
        if command.verb is Verb.QUOTA:
            return [Reply(number, ReplyKind.OK, (), {"bytes": "0", "files": "0", **(self.login or {})})]
        if command.verb is Verb.LOGIN:
            return [Reply(number, ReplyKind.OK, (), self.login or {})]
        return [Reply(number, ReplyKind.OK if command.verb is Verb.PING else ReplyKind.DONE)]

    # sockets ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all threads."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ProtocolError):
            first = connection.recv(65536)
            serve: Callable[[socket.socket, bytes], None]
            serve = self._serve_channel if first[:1] == CHANNEL_MAGIC[:1] else self._serve_control
            serve(connection, first)

    def _serve_control(self, connection: socket.socket, data: bytes) -> None:
        if self.greeting is not None:
            connection.sendall(self.greeting)
            connection.recv(65536)
            return
        wire = ControlServer(Limits(bundle=self.bundle))
        while data:
            wire.feed(data)
            for event in wire.events():
                if isinstance(event, Greeting):
                    login = {} if self.login is None else {"login": "required", "nonce": "ab" * 16}
                    connection.sendall(wire.greet({"data-port": str(self.port), **login}))
                elif isinstance(event, Command):
                    connection.sendall(b"".join(wire.reply(reply) for reply in self.answer(event)))
            data = connection.recv(65536)

    def _serve_channel(self, connection: socket.socket, data: bytes) -> None:
        wire = ChannelServer(Limits(bundle=self.bundle))
        names: dict[int, str] = {}
        while data:
            for event in wire.feed(memoryview(data)):
                header = event.header
                if not isinstance(event, Message):
                    continue
                if header.type == FrameType.ATTACH:
                    names[header.attachment] = event.body.decode("utf-8", "surrogateescape")
                elif header.type == FrameType.MANIFEST:
                    body = self.manifest(names[header.attachment])
                    connection.sendall(wire.answer(header, FrameType.MANIFEST_IS, body))
                elif header.type == FrameType.GET_MANY:
                    asked = [name.decode() for name in iterate_names(event.body)]
                    connection.sendall(self.fetched(wire, header, asked))
                elif header.type == FrameType.PUT_MANY:
                    connection.sendall(self.taken(wire, header, len(decode_uploaded(event.body))))
                elif header.type == FrameType.GET:
                    connection.sendall(self.segment(wire, header, names[header.attachment]))
                    if header.flags & DETACH_AFTER:
                        wire.detached(header.attachment)
            data = connection.recv(65536)

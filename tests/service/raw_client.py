"""A small synchronous client for both connections that can also break every rule: what tests attack the server with.

It judges what it gets: a control reply must be one line of UTF-8 without controls and within the line bound. It does no
resuming, no threads and no cleverness; a test says each step itself.
"""

from __future__ import annotations

import re
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

from twinport_protocol.bundles import (
    FetchedFile,
    decode_fetched,
    decode_statuses,
    encode_names,
    uploaded_head,
)
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import (
    CHANNEL_MAGIC,
    COMMIT,
    HEADER,
    HEADER_BYTES,
    LAST,
    WHOLE_CHANNEL,
    AckStatus,
    FrameType,
    Header,
    Held,
    decode_held,
)
from twinport_protocol.messages import (
    MAX_LINE_BYTES,
    Command,
    Reply,
    ReplyKind,
    Verb,
    format_command,
    format_greeting,
    parse_greeting,
    parse_reply,
)
from twinport_protocol.segments import Layout, digest_of, root_of
from twinport_protocol.tickets import decode_ticket

Address = tuple[str, int]
ANSWER_SECONDS = 30.0
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WITH_BODY = frozenset(
    {FrameType.SEG, FrameType.MANIFEST_IS, FrameType.HAVE_IS, FrameType.ACKS, FrameType.FILES},
)
_T = TypeVar("_T")
_ClientT = TypeVar("_ClientT", bound="_Raw")


class ClosedError(Exception):
    """The server closed the connection where an answer was expected."""


class RefusedError(Exception):
    """A GET was answered with this code."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.value)
        self.code = code


class _Raw:
    """A socket and what was read from it ahead of time."""

    def __init__(
        self,
        address: Address,
        *,
        timeout_seconds: float = ANSWER_SECONDS,
        receive_buffer: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout_seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.sock.connect(address)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock)
        except OSError:
            self.sock.close()
            raise
        self._ahead = bytearray()

    def send(self, *parts: bytes | memoryview) -> None:
        """Send bytes, whatever they are."""
        self.sock.sendall(b"".join(parts))

    def _fill(self) -> None:
        try:
            data = self.sock.recv(256 * 1024)
        except ConnectionError:
            data = b""
        if not data:
            raise ClosedError
        self._ahead += data

    def is_closed(self, within_seconds: float = ANSWER_SECONDS) -> bool:
        """Whether the server closes within that time; what it says before is dropped."""
        self.sock.settimeout(within_seconds)
        try:
            while True:
                self._fill()
        except ClosedError:
            return True
        except TimeoutError:
            return False

    def reset(self) -> None:
        """Close with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Close."""
        self.sock.close()

    def __enter__(self: _ClientT) -> _ClientT:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True)
class Opened:
    """An upload that a server opened."""

    upload_id: bytes
    generation: int
    ticket: bytes
    size: int
    resumable: bytes | None = None


@dataclass(frozen=True)
class Version:
    """A version that a server offers for download."""

    size: int
    root: bytes
    ticket: bytes


class RawControl(_Raw):
    """A control connection. ``ask`` waits for the final reply; ``start`` and ``finish`` take it apart."""

    def __init__(
        self,
        address: Address,
        *,
        greet: bool = True,
        timeout_seconds: float = ANSWER_SECONDS,
        receive_buffer: int = 0,
        nonce: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(address, timeout_seconds=timeout_seconds, receive_buffer=receive_buffer, tls=tls)
        self.limits = Limits()
        self.greeting: Mapping[str, str] = {}
        self._next_id = 1
        self._unasked: list[Reply] = []
        if greet:
            try:
                self.send(format_greeting("HELLO", {"agent": "raw", **({"nonce": nonce} if nonce else {})}))
                self.greeting = parse_greeting(self.line(), "OK")
                self.limits = Limits.from_options(self.greeting)
            except BaseException:
                self.close()
                raise

    def line(self) -> bytes:
        """The next line without its end; ``ClosedError`` at the end of the stream."""
        while (end := self._ahead.find(b"\n")) < 0:
            self._fill()
        line = bytes(self._ahead[:end])
        del self._ahead[: end + 1]
        assert not _CONTROL.search(line.decode("utf-8", "strict")), line
        assert len(line) <= MAX_LINE_BYTES
        return line

    def reply(self) -> Reply:
        """The next reply, whosever it is."""
        reply = parse_reply(self.line())
        if reply.kind is ReplyKind.ERROR:
            assert reply.code is not None
            assert reply.text == reply.code.text, "an error text is fixed and never echoes input"
        return reply

    def start(self, verb: Verb, *words: str, options: Mapping[str, str] | None = None) -> int:
        """Send a command and return its id."""
        number, self._next_id = self._next_id, self._next_id + 1
        self.send(format_command(Command(number, verb, words, options or {})))
        return number

    def finish(self, number: int) -> list[Reply]:
        """All replies to that command, the final one last."""
        mine = [reply for reply in self._unasked if reply.id == number]
        self._unasked = [reply for reply in self._unasked if reply.id != number]
        while not mine or not mine[-1].kind.ends_command:
            reply = self.reply()
            (mine if reply.id == number else self._unasked).append(reply)
        return mine

    def ask(self, verb: Verb, *words: str, options: Mapping[str, str] | None = None) -> Reply:
        """Send a command and wait for its final reply."""
        return self.finish(self.start(verb, *words, options=options))[-1]

    def refused(self, verb: Verb, *words: str, options: Mapping[str, str] | None = None) -> ErrorCode | None:
        """The code that the command is refused with; None if it is not."""
        return self.ask(verb, *words, options=options).code

    def raw(self, line: bytes) -> Reply:
        """Send a line as it is and wait for one reply."""
        self.send(line + b"\n")
        return self.reply()

    def upload(self, name: str, size: int, upload_id: bytes, options: Mapping[str, str] | None = None) -> Opened:
        """Open an upload that must not be refused."""
        reply = self.ask(Verb.UPLOAD, name, str(size), options={"upload": upload_id.hex(), **(options or {})})
        return opened(reply, size)

    def resume(self, name: str, size: int, upload_id: bytes) -> Opened:
        """Take an upload over."""
        return opened(self.ask(Verb.UPLOAD, name, str(size), options={"resume": upload_id.hex()}), size)

    def commit(self, upload: Opened, root: bytes) -> Reply:
        """COMMIT and its final reply."""
        options = {"generation": str(upload.generation), "root": root.hex()}
        return self.ask(Verb.COMMIT, upload.upload_id.hex(), options=options)

    def download(self, name: str) -> Version:
        """Ask for a file that must be there."""
        reply = self.ask(Verb.DOWNLOAD, name)
        assert reply.kind is ReplyKind.OK, reply
        options = reply.options
        return Version(int(options["size"]), bytes.fromhex(options["root"]), decode_ticket(options["ticket"]))

    def bundle(self, direction: str) -> bytes:
        """A ticket for bundles that must not be refused."""
        reply = self.ask(Verb.BUNDLE, direction)
        assert reply.kind is ReplyKind.OK, reply
        return decode_ticket(reply.options["ticket"])

    def names(self, prefix: str = "") -> list[str]:
        """All files, by LIST in pages of 100."""
        found: list[str] = []
        after = ""
        while True:
            options = {"limit": "100", **({"after": after} if after else {})}
            *entries, done = self.finish(self.start(Verb.LIST, *([prefix] if prefix else []), options=options))
            assert done.kind is ReplyKind.DONE, done
            assert int(done.options["count"]) == len(entries)
            found += [entry.words[0] for entry in entries if entry.options["kind"] == "f"]
            if done.options["more"] == "0":
                return found
            last = entries[-1]
            after = last.words[0] + ("/" if last.options["kind"] == "d" else "")


def opened(reply: Reply, size: int) -> Opened:
    """The upload of an ``OK`` reply."""
    assert reply.kind is ReplyKind.OK, reply
    options = reply.options
    resumable = options.get("resumable")
    return Opened(
        bytes.fromhex(options["upload"]),
        int(options["generation"]),
        decode_ticket(options["ticket"]),
        size,
        None if resumable is None else bytes.fromhex(resumable),
    )


@dataclass(frozen=True)
class Small:
    """A file for a bundle; a ``digest`` and a ``raw_name`` of their own are a liar's."""

    name: str
    data: bytes
    upload_id: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    digest: bytes | None = None
    raw_name: bytes | None = None
    mtime_ns: int = 1_700_000_000_000_000_000
    executable: bool = False
    if_absent: bool = False

    def record(self) -> bytes:
        """What stands for it in a PUT_MANY."""
        head = uploaded_head(
            self.upload_id,
            self.name.encode() if self.raw_name is None else self.raw_name,
            self.mtime_ns,
            len(self.data),
            self.digest or digest_of(self.data),
            executable=self.executable,
            if_absent=self.if_absent,
        )
        return head + self.data


@dataclass(frozen=True)
class Answer:
    """One frame of the server."""

    type: FrameType
    status: int
    flags: int
    attachment: int
    segment: int
    offset: int
    body: bytes

    @property
    def code(self) -> ErrorCode | None:
        """The error that the status stands for; None for an ``AckStatus``."""
        return ErrorCode.from_number(self.status) if self.status >= ErrorCode.BAD_REQUEST.number else None


class RawChannel(_Raw):
    """A data connection."""

    def __init__(
        self, address: Address, *, magic: bool = True, receive_buffer: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(address, receive_buffer=receive_buffer, tls=tls)
        self._next_attachment = 0x7000
        if magic:
            self.send(CHANNEL_MAGIC)

    def frame(
        self,
        kind: int,
        attachment: int = 0,
        segment: int = 0,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        *body: bytes | memoryview,
    ) -> None:
        """Send any frame; nothing says that ``length`` must be true."""
        self.send(HEADER.pack(kind, flags, 0, attachment, segment, offset, length), *body)

    def attach(self, ticket: bytes, attachment: int = 1) -> None:
        """ATTACH; good ones have no answer."""
        self.frame(FrameType.ATTACH, attachment, 0, 0, len(ticket), 0, ticket)

    def attach_next(self, ticket: bytes) -> int:
        """ATTACH under a number that was not used before."""
        self._next_attachment += 1
        self.attach(ticket, self._next_attachment)
        return self._next_attachment

    def detach(self, attachment: int = 1) -> None:
        """DETACH."""
        self.frame(FrameType.DETACH, attachment)

    def put(
        self,
        attachment: int,
        segment: int,
        offset: int,
        data: bytes | memoryview,
        flags: int = 0,
        digest: bytes = b"",
    ) -> None:
        """PUT, with the digest if one is given."""
        self.frame(FrameType.PUT, attachment, segment, offset, len(data), flags, data, digest)

    def get(self, attachment: int, segment: int, offset: int, length: int, flags: int = 0) -> None:
        """GET."""
        self.frame(FrameType.GET, attachment, segment, offset, length, flags)

    def answer(self) -> Answer:
        """The next frame; ``ClosedError`` at the end of the stream."""
        while len(self._ahead) < HEADER_BYTES:
            self._fill()
        header = Header._make(HEADER.unpack_from(self._ahead))
        kind = FrameType(header.type)
        size = header.length if kind in _WITH_BODY else 0
        while len(self._ahead) < HEADER_BYTES + size:
            self._fill()
        body = bytes(self._ahead[HEADER_BYTES : HEADER_BYTES + size])
        del self._ahead[: HEADER_BYTES + size]
        return Answer(kind, header.status, header.flags, header.attachment, header.segment, header.offset, body)

    def acknowledged(self) -> int | ErrorCode:
        """The next ACK: its ``AckStatus``, or its error. The FAIL of an attachment may come before it."""
        answer = self.answer()
        while answer.type is FrameType.FAIL and answer.attachment != WHOLE_CHANNEL:
            answer = self.answer()
        assert answer.type is FrameType.ACK, answer
        return answer.code or AckStatus(answer.status)

    def put_segment(
        self,
        attachment: int,
        segment: int,
        data: bytes | memoryview,
        *,
        piece_bytes: int = 1024 * 1024,
        commit: bool = False,
        start: int = 0,
    ) -> int | ErrorCode:
        """Send a whole segment (or what follows ``start``), one piece after the other; the last ACK."""
        view = memoryview(data)
        digest = digest_of(view)
        offset = start
        while True:
            piece = view[offset : offset + piece_bytes]
            last = offset + len(piece) == len(view)
            flags = (LAST | (COMMIT if commit else 0)) if last else 0
            self.put(attachment, segment, offset, piece, flags, digest if last else b"")
            status = self.acknowledged()
            if last or status is not AckStatus.RECEIVED:
                return status
            offset += len(piece)

    def get_all(self, attachment: int, segment: int, offset: int, length: int, flags: int = 0) -> bytes:
        """GET and collect its SEG frames, which must be in order; ``RefusedError`` for one with an error."""
        self.get(attachment, segment, offset, length, flags)
        data = bytearray()
        while True:
            answer = self.answer()
            assert answer.type is FrameType.SEG
            if answer.code is not None:
                raise RefusedError(answer.code)
            assert answer.offset == offset + len(data)
            data += answer.body
            if answer.flags & LAST:
                return bytes(data)

    def have(self, attachment: int = 1) -> list[Held] | ErrorCode:
        """HAVE and its answer."""
        self.frame(FrameType.HAVE, attachment)
        answer = self.answer()
        assert answer.type is FrameType.HAVE_IS
        return answer.code or decode_held(answer.body)

    def start_put_many(self, attachment: int, files: Sequence[Small], serial: int = 0) -> None:
        """PUT_MANY, without waiting."""
        body = b"".join(file.record() for file in files)
        self.frame(FrameType.PUT_MANY, attachment, serial, 0, len(body), 0, body)

    def put_many(self, attachment: int, files: Sequence[Small], serial: int = 0) -> list[AckStatus | ErrorCode]:
        """PUT_MANY and what its ACKS say. The FAIL of the attachment may come before."""
        self.start_put_many(attachment, files, serial)
        return self.all_acknowledged(serial)

    def all_acknowledged(self, serial: int = 0) -> list[AckStatus | ErrorCode]:
        """What the next ACKS say of each file."""
        answer = self.answer()
        while answer.type is FrameType.FAIL and answer.attachment != WHOLE_CHANNEL:
            answer = self.answer()
        assert (answer.type, answer.segment) == (FrameType.ACKS, serial), answer
        return [
            ErrorCode.from_number(status) if status >= ErrorCode.BAD_REQUEST.number else AckStatus(status)
            for status in decode_statuses(answer.body)
        ]

    def start_get_many(self, attachment: int, names: Sequence[str | bytes], most_bytes: int, serial: int = 0) -> None:
        """GET_MANY, without waiting."""
        body = encode_names(name.encode() if isinstance(name, str) else name for name in names)
        self.frame(FrameType.GET_MANY, attachment, serial, most_bytes, len(body), 0, body)

    def get_many(
        self, attachment: int, names: Sequence[str | bytes], most_bytes: int = 1024 * 1024, serial: int = 0
    ) -> list[bytes | ErrorCode]:
        """GET_MANY and the bytes of each file, compared with its root, or why it is not sent."""
        self.start_get_many(attachment, names, most_bytes, serial)
        found: list[bytes | ErrorCode] = []
        for file in self.all_files(serial):
            if file.status:
                assert file == FetchedFile(file.status, 0, False, bytes(32), b""), "a refusal says nothing else"
                found.append(ErrorCode.from_number(file.status))
            else:
                assert digest_of(file.data) == file.digest
                found.append(bytes(file.data))
        return found

    def all_files(self, serial: int = 0) -> list[FetchedFile]:
        """The files of the next answer to a GET_MANY."""
        files: list[FetchedFile] = []
        while True:
            answer = self.answer()
            if answer.type is FrameType.FAIL and answer.attachment != WHOLE_CHANNEL:
                continue
            assert (answer.type, answer.segment) == (FrameType.FILES, serial), answer
            assert answer.offset == sum(len(file.data) for file in files)
            files += decode_fetched(answer.body)
            if answer.flags & LAST:
                return files


def send_file(
    control: RawControl,
    channel: RawChannel,
    name: str,
    data: bytes,
    upload_id: bytes,
    options: Mapping[str, str] | None = None,
) -> Reply | int | ErrorCode:
    """Upload a whole file: one-segment files commit with their PUT (its ACK), larger ones by COMMIT (its reply)."""
    upload = control.upload(name, len(data), upload_id, options)
    attachment = channel.attach_next(upload.ticket)
    layout = Layout.of(len(data))
    if layout.count == 1:
        return channel.put_segment(attachment, 0, data, commit=True)
    for segment, part in enumerate(parts_of(data)):
        status = channel.put_segment(attachment, segment, part)
        assert status is AckStatus.SEALED, status
    channel.detach(attachment)
    return control.commit(upload, root_of_data(data))


def fetch_file(control: RawControl, channel: RawChannel, name: str) -> bytes:
    """Download a whole file and check it against its root."""
    version = control.download(name)
    attachment = channel.attach_next(version.ticket)
    layout = Layout.of(version.size)
    data = b"".join(channel.get_all(attachment, segment, 0, layout.length(segment)) for segment in range(layout.count))
    channel.detach(attachment)
    assert root_of_data(data) == version.root
    return data


def parts_of(data: bytes) -> Sequence[memoryview]:
    """A file's segments."""
    layout = Layout.of(len(data))
    view = memoryview(data)
    return [view[layout.start(number) : layout.start(number) + layout.length(number)] for number in range(layout.count)]


def root_of_data(data: bytes) -> bytes:
    """A file's root."""
    return root_of(len(data), b"".join(digest_of(part) for part in parts_of(data)))


def await_true(
    condition: Callable[[], bool], within_seconds: float = ANSWER_SECONDS, what: str = "the condition"
) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {within_seconds} s"
        time.sleep(0.002)


@contextmanager
def many(clients: Sequence[_Raw]) -> Iterator[None]:
    """Close all of them at the end."""
    try:
        yield
    finally:
        for client in clients:
            with suppress(OSError):
                client.close()


def run_all(functions: Sequence[Callable[[], _T]]) -> list[_T]:
    """Run all at once, each in a thread of its own; their results, or what one of them raised."""
    with ThreadPoolExecutor(len(functions)) as threads:
        return [future.result() for future in [threads.submit(function) for function in functions]]

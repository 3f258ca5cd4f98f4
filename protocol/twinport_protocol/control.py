"""Both ends of a twinport/2 control connection, without a socket: bytes in, events out.

    state      client sends       server sends          next
    GREETING   HELLO 2 …          OK 2 … (or ERROR)     READY (or CLOSED)
    READY      commands           replies, notices      READY
    READY      QUIT               DONE                  CLOSED

Any number of commands may be outstanding up to the announced window; past it the server stops taking lines off its
buffer (``paused``) and its owner stops reading, so nothing grows.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .lines import LineBuffer
from .messages import (
    MAX_LINE_BYTES,
    Command,
    CommandError,
    Reply,
    ReplyKind,
    Verb,
    format_command,
    format_greeting,
    format_reply,
    parse_command,
    parse_greeting,
    parse_reply,
)
from .numbers import parse_size

MAX_EMPTY_LINES = 10
MAX_BAD_LINES = 10

# A server that announced 0 of one of these could not be talked to: the client would wait for ever.
_NEVER_ZERO = frozenset(
    {"window_commands", "window_bytes", "line", "channels", "frames", "credit", "piece", "attachments"}
)


class ControlState(enum.Enum):
    """Where a control connection stands."""

    GREETING = "greeting"
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True)
class Limits:
    """What the server announces in its greeting, under these names with ``-`` for ``_``; sizes in bytes."""

    window_commands: int = 1024
    window_bytes: int = 256 * 1024
    line: int = MAX_LINE_BYTES
    channels: int = 8
    frames: int = 1024
    credit: int = 32 * 1024 * 1024
    piece: int = 1024 * 1024
    attachments: int = 1024
    bundle: int = 0
    """The body of a ``PUT_MANY`` at most; 0 is a server that takes no bundles."""
    max_file: int = 2**63 - 1
    idle: int = 300

    def to_options(self) -> dict[str, str]:
        """The limits as greeting keys."""
        return {item.name.replace("_", "-"): str(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Limits:
        """The limits out of greeting keys; a missing one has its default.

        Raises ``RemoteProtocolError`` for what is no number, and for 0 where nothing could be done then.
        """
        known = {item.name: item.name.replace("_", "-") for item in fields(cls)}
        found = {name: parse_size(options[key].encode()) for name, key in known.items() if key in options}
        if any(not value and name in _NEVER_ZERO for name, value in found.items()):
            raise RemoteProtocolError(ErrorCode.INVALID_SIZE, "a limit of 0")
        return cls(**found)


@dataclass(frozen=True)
class Greeting:
    """Event: the other side's greeting, with all its keys."""

    options: Mapping[str, str]


@dataclass(frozen=True)
class BadLine:
    """Event (server): a line that was no command. The connection goes on.

    ``reply`` is to be sent as ``messages.format_reply`` makes it: the line never held a place in the window.
    """

    reply: Reply


class ControlServer:
    """The server's end. Feed what arrives, take :meth:`events`, send what :meth:`greet` and :meth:`reply` return."""

    def __init__(self, limits: Limits) -> None:
        self.state = ControlState.GREETING
        self._limits = limits
        self._lines = LineBuffer(limits.line)
        self._outstanding: dict[int, int] = {}
        self._outstanding_bytes = 0
        self._empty_lines = 0
        self._bad_lines = 0
        self._hello_seen = False

    @property
    def outstanding(self) -> int:
        """How many commands wait for their final reply."""
        return len(self._outstanding)

    @property
    def paused(self) -> bool:
        """Whether the window is full: stop reading the connection until a reply went out."""
        return (
            len(self._outstanding) >= self._limits.window_commands
            or self._outstanding_bytes >= self._limits.window_bytes
        )

    @property
    def buffered_bytes(self) -> int:
        """How many bytes were fed and not yet handed on."""
        return len(self._lines)

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self._lines.feed(data)

    def events(self) -> Iterator[Greeting | Command | BadLine]:
        """What the bytes fed so far mean, as far as the window allows; after a :class:`Greeting`, once it is answered.

        Raises ``RemoteProtocolError`` where the connection must be closed: a line too long, no greeting, too many bad
        or empty lines, an id that is still outstanding.
        """
        while self.state is not ControlState.CLOSED and not self.paused:
            if self.state is ControlState.GREETING and self._hello_seen:
                return
            line = self._lines.pop()
            if line is None:
                return
            if self.state is ControlState.GREETING:
                options = parse_greeting(line, "HELLO")
                self._hello_seen = True
                yield Greeting(options)
            elif not line:
                self._empty_lines += 1
                if self._empty_lines > MAX_EMPTY_LINES:
                    raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "too many empty lines")
            else:
                yield self._command(line)

    def _command(self, line: bytes) -> Command | BadLine:
        try:
            command = parse_command(line)
        except CommandError as error:
            self._bad_lines += 1
            if self._bad_lines > MAX_BAD_LINES:
                raise RemoteProtocolError(error.code, "too many bad lines") from None
            reply_id = 0 if error.command_id in self._outstanding else error.command_id
            return BadLine(Reply(reply_id, ReplyKind.ERROR, code=error.code))
        if command.id in self._outstanding:
            raise RemoteProtocolError(ErrorCode.BAD_STATE, "an id that is still outstanding")
        self._empty_lines = self._bad_lines = 0
        self._outstanding[command.id] = len(line)
        self._outstanding_bytes += len(line)
        return command

    def greet(self, options: Mapping[str, str]) -> bytes:
        """Answer the greeting; commands may follow from here."""
        if self.state is not ControlState.GREETING:
            raise LocalProtocolError(ErrorCode.BAD_STATE, "greeted twice")
        self.state = ControlState.READY
        return format_greeting("OK", {**options, **self._limits.to_options()})

    def reply(self, reply: Reply) -> bytes:
        """The bytes of a reply; a final one frees its id. ``LocalProtocolError`` for an id that is not outstanding."""
        if reply.id and reply.id not in self._outstanding:
            raise LocalProtocolError(ErrorCode.BAD_STATE, f"reply to {reply.id}, which is not outstanding")
        if reply.id and reply.kind in (ReplyKind.OK, ReplyKind.DONE, ReplyKind.ERROR):
            self._outstanding_bytes -= self._outstanding.pop(reply.id)
        return format_reply(reply)

    def close(self) -> None:
        """No more events from here on."""
        self.state = ControlState.CLOSED


class ControlClient:
    """The client's end: :meth:`hello`, then commands; feed what arrives and take :meth:`events`."""

    def __init__(self) -> None:
        self.state = ControlState.GREETING
        self.limits = Limits()
        self._lines = LineBuffer(MAX_LINE_BYTES)
        self._outstanding: dict[int, int] = {}
        self._outstanding_bytes = 0
        self._next_id = 1

    @property
    def outstanding(self) -> int:
        """How many commands wait for their final reply."""
        return len(self._outstanding)

    def hello(self, options: Mapping[str, str]) -> bytes:
        """The first bytes of the connection."""
        return format_greeting("HELLO", options)

    def has_room(self, line_bytes: int = MAX_LINE_BYTES) -> bool:
        """Whether a command of that many bytes fits into the window now."""
        return (
            self.state is ControlState.READY
            and len(self._outstanding) < self.limits.window_commands
            and (not self._outstanding or self._outstanding_bytes + line_bytes <= self.limits.window_bytes)
        )

    def command(
        self, verb: Verb, words: tuple[str, ...] = (), options: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """The id and the bytes of a new command.

        ``LocalProtocolError`` before the greeting, past the window, or when the line would be too long.
        """
        command = Command(self._next_id, verb, words, options or {})
        data = format_command(command)
        if len(data) > self.limits.line + 1:
            raise LocalProtocolError(ErrorCode.LINE_TOO_LONG)
        if not self.has_room(len(data)):
            raise LocalProtocolError(ErrorCode.BAD_STATE, "the command window is full or the connection is not ready")
        self._next_id += 1
        self._outstanding[command.id] = len(data)
        self._outstanding_bytes += len(data)
        return command.id, data

    @property
    def buffered_bytes(self) -> int:
        """How many bytes were fed and not yet handed on."""
        return len(self._lines)

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        self._lines.feed(data)

    def events(self) -> Iterator[Greeting | Reply]:
        """The greeting, then replies. Raises ``RemoteProtocolError`` for anything else.

        A greeting that is an error line, of either dialect, raises it with that error's code.
        """
        while self.state is not ControlState.CLOSED:
            line = self._lines.pop()
            if line is None:
                return
            if self.state is ControlState.GREETING:
                yield self._greeting(line)
                continue
            reply = parse_reply(line)
            if reply.id:
                if reply.id not in self._outstanding:
                    raise RemoteProtocolError(ErrorCode.BAD_STATE, "a reply to nothing")
                if reply.kind.ends_command:
                    self._outstanding_bytes -= self._outstanding.pop(reply.id)
            yield reply

    def _greeting(self, line: bytes) -> Greeting:
        refusal = line.removeprefix(b"0 ")
        if refusal.startswith(b"ERROR "):
            word = refusal.removeprefix(b"ERROR ").partition(b" ")[0].decode("utf-8", "replace")
            raise RemoteProtocolError(ErrorCode.from_word(word))
        options = parse_greeting(line, "OK")
        self.limits = Limits.from_options(options)
        self.state = ControlState.READY
        return Greeting(options)

    def close(self) -> None:
        """No more events from here on."""
        self.state = ControlState.CLOSED

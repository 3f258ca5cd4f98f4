"""The classic dialect, without a socket: the original protocol's lines, and the server's end of a session as one table.

    UPLOAD <name> <size>   ->  OK <data port>                 the client connects and streams   ->  DONE
    DOWNLOAD <name>        ->  OK <size> <data port>  READY   the client connects and receives  ->  DONE
    LIST                   ->  OK <count> and one name per line
    QUIT                   ->  the connection is closed
    any failure            ->  ERROR <Code> <text>

The size is an upload's last word, so names may hold spaces; percent signs are literal. Replies come in the order of
the commands, but for ``DONE`` (or ``ERROR``) of the transfer that runs: LIST and QUIT are served beside it, a further
UPLOAD or DOWNLOAD waits for its turn. At most ``queue_lines`` lines are taken in advance; then the owner stops reading.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from .errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from .lines import LineBuffer
from .names import RemoteName, parse_name_bytes
from .numbers import parse_size

MAX_LINE_BYTES = 4096
MAX_REPLY_BYTES = 512
MAX_QUEUE_LINES = 16
MAX_EMPTY_LINES = 10
MAX_BAD_LINES = 10
_OK_WORDS = (2, 3)


@dataclass(frozen=True)
class Upload:
    """``UPLOAD <name> <size>``; ``size`` in bytes."""

    name: RemoteName
    size: int


@dataclass(frozen=True)
class Download:
    """``DOWNLOAD <name>``."""

    name: RemoteName


@dataclass(frozen=True)
class List:
    """``LIST``."""


@dataclass(frozen=True)
class Ready:
    """``READY``: the client is about to connect for its download."""


@dataclass(frozen=True)
class Quit:
    """``QUIT``."""


Command = Upload | Download | List | Ready | Quit


def parse_command(line: bytes) -> Command:
    """The command of a line without its end.

    Raises ``RemoteProtocolError``: ``InvalidEncoding`` (not UTF-8), ``BadRequest`` (unknown verb, wrong words, a CR),
    ``InvalidName``, ``InvalidSize``. Verbs are compared as bytes: no other case and no look-alike is one.
    """
    try:
        line.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise RemoteProtocolError(ErrorCode.INVALID_ENCODING) from None
    if b"\r" in line:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a CR inside a line")
    verb, space, rest = line.partition(b" ")
    if verb == b"UPLOAD" and space:
        return _parse_upload(rest)
    if verb == b"DOWNLOAD" and space:
        return Download(parse_name_bytes(rest))
    bare: dict[bytes, Command] = {b"LIST": List(), b"READY": Ready(), b"QUIT": Quit()}
    if line in bare:
        return bare[line]
    raise RemoteProtocolError(ErrorCode.BAD_REQUEST)


def _parse_upload(rest: bytes) -> Upload:
    name, space, size = rest.rpartition(b" ")
    if not space:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a missing word")
    # A doubled separator is a malformed line sooner than a name that ends in a space; only LIST could tell them apart.
    if name[:1] == b" " or name[-1:] == b" ":
        raise RemoteProtocolError(ErrorCode.INVALID_NAME)
    return Upload(parse_name_bytes(name), parse_size(size))


def format_command(command: Command) -> bytes:
    """The line of a command, its end included. ``LocalProtocolError(LineTooLong)`` past 4,096 bytes."""
    if isinstance(command, Upload):
        line = f"UPLOAD {command.name} {command.size}\n".encode()
    elif isinstance(command, Download):
        line = f"DOWNLOAD {command.name}\n".encode()
    else:
        line = type(command).__name__.upper().encode() + b"\n"
    if len(line) > MAX_LINE_BYTES + 1:
        raise LocalProtocolError(ErrorCode.LINE_TOO_LONG)
    return line


class ReplyKind(enum.Enum):
    """The first word of a reply."""

    OK = "OK"
    DONE = "DONE"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Reply:
    """One reply line: the numbers of an OK (port; size and port; count), or the code of an ERROR."""

    kind: ReplyKind
    numbers: tuple[int, ...] = ()
    code: ErrorCode | None = None


def parse_reply(line: bytes) -> Reply:
    """The reply of a line without its end, as a client reads it; anything else is ``BadRequest``."""
    words = line.split(b" ")
    if line == b"DONE":
        return Reply(ReplyKind.DONE)
    if words[0] == b"OK" and len(words) in _OK_WORDS:
        return Reply(ReplyKind.OK, tuple(parse_size(word) for word in words[1:]))
    if words[0] == b"ERROR" and len(words) > 1 and len(line) <= MAX_REPLY_BYTES:
        return Reply(ReplyKind.ERROR, code=ErrorCode.from_word(words[1].decode("utf-8", "replace")))
    raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "not a reply of the classic dialect")


def format_error(code: ErrorCode, text: str | None = None) -> bytes:
    """``ERROR <Code> <text>``; the text is the code's own unless the caller has a more exact fixed one."""
    line = f"ERROR {code.value} {text or code.text}"
    if len(line) >= MAX_REPLY_BYTES or not (line.isascii() and line.isprintable()):
        raise LocalProtocolError(ErrorCode.INTERNAL, "an error text that is no printable line")
    return line.encode() + b"\n"


class SessionState(enum.Enum):
    """Where a session stands with its one transfer."""

    IDLE = "idle"
    OPENING = "opening"
    """A transfer was asked for; its OK is still owed."""
    WAITING_READY = "waiting for READY"
    TRANSFERRING = "transferring"
    CLOSED = "closed"


class SessionEvent(enum.Enum):
    """What moves a session from state to state."""

    ASKED = "UPLOAD or DOWNLOAD"
    UPLOAD_OK = "OK to an UPLOAD"
    DOWNLOAD_OK = "OK to a DOWNLOAD"
    READY = "READY"
    DONE = "DONE"
    FAILED = "ERROR"
    CLOSE = "close"


_S, _E = SessionState, SessionEvent
TRANSITIONS: dict[tuple[SessionState, SessionEvent], SessionState] = {
    (_S.IDLE, _E.ASKED): _S.OPENING,
    (_S.OPENING, _E.UPLOAD_OK): _S.TRANSFERRING,
    (_S.OPENING, _E.DOWNLOAD_OK): _S.WAITING_READY,
    (_S.OPENING, _E.FAILED): _S.IDLE,
    (_S.WAITING_READY, _E.READY): _S.TRANSFERRING,
    (_S.WAITING_READY, _E.FAILED): _S.IDLE,
    (_S.TRANSFERRING, _E.DONE): _S.IDLE,
    (_S.TRANSFERRING, _E.FAILED): _S.IDLE,
} | {(state, _E.CLOSE): _S.CLOSED for state in SessionState}


@dataclass(frozen=True)
class BadLine:
    """Event: a line that was no command, or none that fits the state; send ``reply`` and go on."""

    reply: bytes


class ClassicServer:
    """The server's end. Feed what arrives, take :meth:`next_event` until None, send what the reply methods return."""

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES, queue_lines: int = MAX_QUEUE_LINES) -> None:
        self.state = SessionState.IDLE
        self.lines_taken = 0
        self._lines = LineBuffer(max_line_bytes)
        self._queue: deque[bytes] = deque()
        self._queue_lines = queue_lines
        self._failure: RemoteProtocolError | None = None
        self._listing = False
        self._withheld: list[bytes] = []
        self._ready_is_late = False
        self._empty_lines = 0
        self._bad_lines = 0

    @property
    def paused(self) -> bool:
        """Whether the queue is full: stop reading the connection until :meth:`next_event` made room."""
        return len(self._queue) >= self._queue_lines

    @property
    def has_partial_line(self) -> bool:
        """Whether a line has begun and its end has not come yet."""
        return len(self._lines) > 0 and not self.paused

    @property
    def is_settled(self) -> bool:
        """Whether nothing is queued, running or owed: the moment to close a session that has ended."""
        return self.state in (_S.IDLE, _S.CLOSED) and not self._listing and not self._queue

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection; dropped once the session is closed, or is to end with an error."""
        if self.state is not _S.CLOSED and self._failure is None:
            self._lines.feed(data)

    def next_event(self) -> Command | BadLine | None:
        """The next command that may be served now, or None.

        Raises ``RemoteProtocolError`` where the session must end with that error: a line too long, too many empty or
        bad lines. It is raised in its place among the lines, after the commands before it.
        """
        while self.state is not _S.CLOSED:
            self._fill_queue()
            if not self._queue:
                if self._failure is not None and not self._owes_reply:
                    raise self._failure
                return None
            if self._owes_reply:
                return None
            event = self._judge(self._queue[0])
            if event is _WAIT:
                return None
            self._queue.popleft()
            if isinstance(event, Upload | Download | List | Ready | Quit | BadLine):
                return event
        return None

    @property
    def _owes_reply(self) -> bool:
        return self._listing or self.state is _S.OPENING

    def _fill_queue(self) -> None:
        while len(self._queue) < self._queue_lines and self._failure is None:
            try:
                line = self._lines.pop()
            except RemoteProtocolError as error:
                self._failure = error
                return
            if line is None:
                return
            self.lines_taken += 1
            self._queue.append(line)

    def _judge(self, line: bytes) -> Command | BadLine | _Marker:
        if not line:
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "too many empty lines")
            return _SKIP
        self._empty_lines = 0
        try:
            command = parse_command(line)
        except RemoteProtocolError as error:
            return self._bad(error.code)
        late, self._ready_is_late = self._ready_is_late, False
        if isinstance(command, Upload | Download):
            if self.state is not _S.IDLE:
                self._ready_is_late = late
                return _WAIT
            self._move(_E.ASKED)
        elif isinstance(command, List):
            self._listing = True
        elif isinstance(command, Ready):
            if self.state is not _S.WAITING_READY:
                # READY crossed with the ERROR that ended its download: that reply was the answer to both.
                return _SKIP if late else self._bad(ErrorCode.BAD_STATE)
            self._move(_E.READY)
        self._bad_lines = 0
        return command

    def _bad(self, code: ErrorCode) -> BadLine:
        self._bad_lines += 1
        if self._bad_lines > MAX_BAD_LINES:
            raise RemoteProtocolError(code, "too many bad lines")
        return BadLine(format_error(code))

    def _move(self, event: SessionEvent) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise LocalProtocolError(ErrorCode.BAD_STATE, f"{event.value} while {self.state.value}") from None

    # replies ---------------------------------------------------------------------------------------------------------

    def accept_upload(self, data_port: int) -> bytes:
        """``OK <data port>``."""
        self._move(_E.UPLOAD_OK)
        return f"OK {data_port}\n".encode()

    def accept_download(self, size: int, data_port: int) -> bytes:
        """``OK <size> <data port>``; READY is to follow."""
        self._move(_E.DOWNLOAD_OK)
        return f"OK {size} {data_port}\n".encode()

    def finish_transfer(self) -> bytes:
        """``DONE``; empty while a listing is being sent, whose end then brings it."""
        self._move(_E.DONE)
        return self._withhold(b"DONE\n")

    def fail_transfer(self, code: ErrorCode, text: str | None = None) -> bytes:
        """``ERROR``, also in place of the OK; empty while a listing is being sent, whose end then brings it."""
        self._ready_is_late = self.state is _S.WAITING_READY
        self._move(_E.FAILED)
        return self._withhold(format_error(code, text))

    def end_listing(self) -> list[bytes]:
        """The listing (or its ERROR) was sent; the replies that waited for it."""
        if not self._listing:
            raise LocalProtocolError(ErrorCode.BAD_STATE, "no listing to end")
        self._listing = False
        withheld, self._withheld = self._withheld, []
        return withheld

    def _withhold(self, reply: bytes) -> bytes:
        # A listing is framed by its count alone: nothing may come between its lines.
        if not self._listing:
            return reply
        self._withheld.append(reply)
        return b""

    def close(self) -> None:
        """No more events from here on."""
        self._move(_E.CLOSE)
        self._queue.clear()


class _Marker(enum.Enum):
    """What a line can mean besides an event."""

    SKIP = enum.auto()
    WAIT = enum.auto()


_SKIP, _WAIT = _Marker.SKIP, _Marker.WAIT


def listing_head(count: int) -> bytes:
    """``OK <count>``: the first line of a listing; ``count`` names follow, one per line."""
    return f"OK {count}\n".encode()

"""The lines of twinport/2: commands, replies and the two greeting lines, as values.

    <id> <VERB> <words> [key=value …]
    <id> OK|DONE|ENTRY|PROGRESS <words> [key=value …]
    <id> ERROR <Code> [retry=<s>] <text>
    0 NOTICE <word>

Words and values are percent-encoded where they must be (``names.quote``); unknown keys are ignored by whoever reads
them. One space stands between two words; there is none at the end, and no word is empty.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import ErrorCode, LocalProtocolError, ProtocolError, RemoteProtocolError
from .names import quote, unquote
from .numbers import parse_size

MAX_LINE_BYTES = 8192
DIALECT = "2"
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class Verb(str, enum.Enum):
    """Everything a client may ask for on the control connection."""

    LOGIN = "LOGIN"
    QUOTA = "QUOTA"
    UPLOAD = "UPLOAD"
    COMMIT = "COMMIT"
    ABORT = "ABORT"
    RENEW = "RENEW"
    DOWNLOAD = "DOWNLOAD"
    BUNDLE = "BUNDLE"
    LIST = "LIST"
    STAT = "STAT"
    DELETE = "DELETE"
    MOVE = "MOVE"
    MKDIR = "MKDIR"
    PING = "PING"
    QUIT = "QUIT"


# How many words each verb takes, least and most.
WORDS: Mapping[Verb, tuple[int, int]] = {
    Verb.LOGIN: (1, 1),
    Verb.QUOTA: (0, 0),
    Verb.UPLOAD: (2, 2),
    Verb.COMMIT: (1, 1),
    Verb.ABORT: (1, 1),
    Verb.RENEW: (1, 1),
    Verb.DOWNLOAD: (1, 1),
    Verb.BUNDLE: (1, 1),
    Verb.LIST: (0, 1),
    Verb.STAT: (1, 1),
    Verb.DELETE: (1, 1),
    Verb.MOVE: (2, 2),
    Verb.MKDIR: (1, 1),
    Verb.PING: (0, 0),
    Verb.QUIT: (0, 0),
}
_VERBS = {verb.value.encode(): verb for verb in Verb}


class ReplyKind(str, enum.Enum):
    """The second word of a reply. ``ENTRY`` and ``PROGRESS`` come before the reply that ends the command."""

    OK = "OK"
    DONE = "DONE"
    ERROR = "ERROR"
    ENTRY = "ENTRY"
    PROGRESS = "PROGRESS"
    NOTICE = "NOTICE"

    @property
    def ends_command(self) -> bool:
        """Whether the command's id is free again after this reply."""
        return self in _FINAL


_FINAL = frozenset({ReplyKind.OK, ReplyKind.DONE, ReplyKind.ERROR})
_KINDS = {kind.value: kind for kind in ReplyKind}


@dataclass(frozen=True)
class Command:
    """One command line. ``words`` and ``options`` are decoded."""

    id: int
    verb: Verb
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """One reply line. For ``ERROR``, ``code`` is set and ``retry_seconds`` may be; ``text`` is the rest of the line."""

    id: int
    kind: ReplyKind
    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    code: ErrorCode | None = None
    retry_seconds: int | None = None
    text: str = ""


class CommandError(RemoteProtocolError):
    """A command line that cannot be understood; ``command_id`` is 0 where not even that could be read."""

    def __init__(self, code: ErrorCode, command_id: int, detail: str = "") -> None:
        self.command_id = command_id
        super().__init__(code, detail)


def parse_command(line: bytes) -> Command:
    """A command from its line; ``CommandError`` with the code to answer."""
    first, _, rest = line.partition(b" ")
    command_id = 0
    try:
        command_id = parse_size(first)
        if command_id == 0 or _CONTROL.search(line):
            raise CommandError(ErrorCode.BAD_REQUEST, command_id)
        verb_word, space, rest = rest.partition(b" ")
        verb = _VERBS.get(verb_word)
        if verb is None:
            raise CommandError(ErrorCode.BAD_REQUEST, command_id, "unknown verb")
        words, options = _split(rest.decode("utf-8", "strict")) if space else ((), {})
        least, most = WORDS[verb]
        if not least <= len(words) <= most:
            raise CommandError(ErrorCode.BAD_REQUEST, command_id, "wrong number of words")
        return Command(command_id, verb, words, options)
    except UnicodeDecodeError:
        raise CommandError(ErrorCode.INVALID_ENCODING, command_id) from None
    except CommandError:
        raise
    except ProtocolError as error:
        code = error.code if command_id else ErrorCode.BAD_REQUEST
        raise CommandError(code, command_id) from None


def format_command(command: Command) -> bytes:
    """The line of a command, with its end. ``LocalProtocolError`` for an empty word or a lone surrogate."""
    return _join([str(command.id), command.verb.value], command.words, command.options)


def parse_reply(line: bytes) -> Reply:
    """A reply from its line; ``RemoteProtocolError`` if it is none."""
    try:
        text = line.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise RemoteProtocolError(ErrorCode.INVALID_ENCODING) from None
    if _CONTROL.search(line):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "control characters in a reply")
    first, _, rest = text.partition(" ")
    reply_id = parse_size(first.encode())
    word, space, rest = rest.partition(" ")
    kind = _KINDS.get(word)
    if kind is None:
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "unknown kind of reply")
    if kind is not ReplyKind.ERROR:
        words, options = _split(rest) if space else ((), {})
        return Reply(reply_id, kind, words, options)
    code_word, _, rest = rest.partition(" ")
    retry = None
    if rest.startswith("retry="):
        value, _, rest = rest.partition(" ")
        retry = parse_size(value.removeprefix("retry=").encode())
    return Reply(reply_id, kind, code=ErrorCode.from_word(code_word), retry_seconds=retry, text=rest)


def format_reply(reply: Reply) -> bytes:
    """The line of a reply, with its end. ``LocalProtocolError`` for what would be read as another reply."""
    if reply.kind is not ReplyKind.ERROR:
        return _join([str(reply.id), reply.kind.value], reply.words, reply.options)
    code = reply.code or ErrorCode.INTERNAL
    retry = "" if reply.retry_seconds is None else f"retry={reply.retry_seconds} "
    line = f"{reply.id} ERROR {code.value} {retry}{reply.text or code.text}".encode("utf-8", "replace")
    if reply.text and (_CONTROL.search(line) or reply.text.startswith("retry=")):
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "an error text that is more than text")
    return line + b"\n"


def parse_greeting(line: bytes, lead: str) -> Mapping[str, str]:
    """The keys of ``HELLO 2 …`` (``lead`` "HELLO") or ``OK 2 …`` (``lead`` "OK").

    ``Unsupported`` for another dialect number, ``BadRequest`` for anything else.
    """
    try:
        words, options = _split(line.decode("utf-8", "strict"))
    except UnicodeDecodeError:
        raise RemoteProtocolError(ErrorCode.INVALID_ENCODING) from None
    if not words or words[0] != lead or _CONTROL.search(line):
        raise RemoteProtocolError(ErrorCode.BAD_REQUEST, f"expected {lead}")
    if words[1:2] != (DIALECT,):
        raise RemoteProtocolError(ErrorCode.UNSUPPORTED, "another dialect number")
    return options


def format_greeting(lead: str, options: Mapping[str, str]) -> bytes:
    """A greeting line, with its end."""
    return _join([lead, DIALECT], (), options)


def _join(parts: list[str], words: tuple[str, ...], options: Mapping[str, str]) -> bytes:
    if "" in words:
        raise LocalProtocolError(ErrorCode.BAD_REQUEST, "an empty word")
    parts += [quote(word) for word in words]
    parts += [f"{key}={quote(value)}" for key, value in options.items()]
    try:
        return " ".join(parts).encode() + b"\n"
    except UnicodeEncodeError:
        raise LocalProtocolError(ErrorCode.INVALID_ENCODING) from None


def _split(text: str) -> tuple[tuple[str, ...], dict[str, str]]:
    words: list[str] = []
    options: dict[str, str] = {}
    for token in text.split(" "):
        key, equals, value = token.partition("=")
        if not token or "=" in value or (equals and not key):
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST)
        if not equals:
            words.append(unquote(token))
        elif key in options:
            raise RemoteProtocolError(ErrorCode.BAD_REQUEST, "a key twice")
        else:
            options[key] = unquote(value)
    return tuple(words), options

"""What the verbs do that are about a name: downloads, listings, removals and renames. No socket, no event loop.

What all handlers have in common stands here too: who asks, how a name is allowed, how a refusal is told and written
down, how a ticket is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.names import RemoteName, parse_name, parse_prefix
from twinport_protocol.numbers import parse_size
from twinport_protocol.segments import DIGEST_BYTES
from twinport_protocol.tickets import Action, Ticket, TicketKeys, encode_ticket

from .access import Act, Decide, require
from .audit import AUDITED_REFUSALS, AuditEntry, AuditEvent, Record
from .log import get_log
from .replies import describe_entry, parse_hex, refuse
from .room import DIRECTORY_BYTES
from .storage.contract import (
    Entry,
)
from .uploads import UploadDesk
from .visible_listing import list_visible

UPLOAD_ID_BYTES = 16
MAX_PAGE_ENTRIES = 1000
RENEWABLE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Caller:
    """Who asks: the user of the session and its peer address for the log."""

    user: str
    peer: object
    secure: bool = False
    """Whether the session is under TLS; its tickets then hold for channels under TLS only."""
    session: int | None = None
    """The number of the session, for the audit log."""
    epoch: int = 0
    """That of the account at the login; the session's tickets end with it. 0 without a login."""


_NAMING = frozenset({Verb.UPLOAD, Verb.DOWNLOAD, Verb.LIST, Verb.STAT, Verb.DELETE, Verb.MOVE, Verb.MKDIR})
"""The verbs whose first word is a name, and no ticket."""


class NameHandlers:
    """Those verbs; :class:`twinport_service.handlers.Handlers` adds those of uploads and chooses among them."""

    def __init__(
        self,
        desk: UploadDesk,
        keys: TicketKeys,
        decide: Decide,
        *,
        ticket_seconds: int,
        now: Callable[[], float],
        record: Record,
    ) -> None:
        self._record = record
        self._desk = desk
        self._storage = desk.storage
        self._keys = keys
        self._decide = decide
        self._ticket_seconds = ticket_seconds
        self._now = now

    def _download(self, caller: Caller, command: Command, *, may_hash: bool = True) -> Sequence[Reply]:
        name = self._name(caller, command, 0, Act.READ)
        version = self._storage.open_version(name, may_hash)
        options = {
            "size": str(version.size),
            "root": version.root.hex(),
            "mtime": str(version.mtime_ns),
            "exec": "1" if version.executable else "0",
            "ticket": self._ticket(Action.DOWNLOAD, caller, version.token, version.size),
        }
        return [Reply(command.id, ReplyKind.OK, options=options)]

    def list_in_turns(self, caller: Caller, command: Command) -> Iterator[Sequence[Reply] | None]:
        """The replies to a LIST, the last of them final; before them None whenever somebody else may have a turn. Never
        raises."""
        try:
            yield from self._list_in_turns(caller, command)
        except (Refusal, ProtocolError) as error:
            yield [self.turn_away(caller, command, error)]
        except Exception:
            get_log().exception("[CONTROL] Internal error", peer=caller.peer, verb=command.verb.value)
            yield [Reply(command.id, ReplyKind.ERROR, code=ErrorCode.INTERNAL)]

    def _list_in_turns(self, caller: Caller, command: Command) -> Iterator[Sequence[Reply] | None]:
        prefix = parse_prefix(command.words[0]) if command.words else ""
        if not self._decide(caller.user, Act.LIST, prefix):
            require(self._decide, caller.user, Act.SEE, prefix)
            if prefix:
                self._see(parse_name(prefix))
        limit = parse_size(command.options.get("limit", str(MAX_PAGE_ENTRIES)).encode())
        if not limit:
            raise Refusal(ErrorCode.BAD_REQUEST, "limit=0")
        recursive = command.options.get("depth") != "1"
        after, limit = command.options.get("after", ""), min(limit, MAX_PAGE_ENTRIES)
        pages = list_visible(self._storage.list, self._decide, caller.user, prefix, after, limit, recursive)
        for page in pages:
            if page is None:
                yield None
                continue
            replies = [
                Reply(command.id, ReplyKind.ENTRY, (entry.name,), describe_entry(entry)) for entry in page.entries
            ]
            tail = {"count": str(len(page.entries)), "more": "1" if page.more else "0"}
            yield [*replies, Reply(command.id, ReplyKind.DONE, options=tail)]

    def _list(self, caller: Caller, command: Command) -> Sequence[Reply]:
        return next(replies for replies in self._list_in_turns(caller, command) if replies is not None)

    def _stat(self, caller: Caller, command: Command) -> Sequence[Reply]:
        name = parse_name(command.words[0])
        if self._decide(caller.user, Act.LIST, name):
            entry = self._storage.stat(name)
        else:
            require(self._decide, caller.user, Act.SEE, name)
            entry = self._see(name)
        return [Reply(command.id, ReplyKind.OK, options=describe_entry(entry))]

    def _see(self, name: RemoteName) -> Entry:
        """What stands where something allowed may lie below. A file there is nobody's business: as if it were not
        there, or names could be tried out in the place of a ``*``."""
        entry = self._storage.stat(name)
        if entry.kind != "d":
            raise Refusal(ErrorCode.FILE_NOT_FOUND, "not a directory")
        return entry

    def _delete(self, caller: Caller, command: Command) -> Sequence[Reply]:
        name = self._name(caller, command, 0, Act.DELETE)
        self._storage.delete(name, self._match(caller, command, name))
        get_log().info(f"[DELETE] {name}", peer=caller.peer)
        self._note(AuditEvent.DELETE, caller, name)
        return [Reply(command.id, ReplyKind.DONE)]

    def _move(self, caller: Caller, command: Command) -> Sequence[Reply]:
        source = self._name(caller, command, 0, Act.DELETE)
        require(self._decide, caller.user, Act.READ, source)
        target = self._name(caller, command, 1, Act.WRITE)
        self._require_tree(caller, source, target)
        self._storage.move(source, target, command.options.get("if-absent") == "1")
        if source != target:
            get_log().info(f"[MOVE] {source} to {target}", peer=caller.peer)
            self._note(AuditEvent.MOVE, caller, source, to=target)
        return [Reply(command.id, ReplyKind.DONE)]

    def _require_tree(self, caller: Caller, source: RemoteName, target: RemoteName) -> None:
        """A directory takes along what is in it, and leaves with it what its grants are."""
        trees = ((Act.DELETE, source), (Act.READ, source), (Act.WRITE, target))
        if all(self._decide(caller.user, act, name + "/") for act, name in trees):
            return
        if self._storage.stat(source).kind == "d":
            raise Refusal(ErrorCode.DENIED, f"a directory moved by {caller.user}")

    def _make_directory(self, caller: Caller, command: Command) -> Sequence[Reply]:
        name = self._name(caller, command, 0, Act.WRITE)
        self._desk.room.take(DIRECTORY_BYTES)
        if self._storage.make_directory(name):
            self._note(AuditEvent.MKDIR, caller, name)
        return [Reply(command.id, ReplyKind.DONE)]

    def _name(self, caller: Caller, command: Command, word: int, act: Act) -> RemoteName:
        name = parse_name(command.words[word])
        require(self._decide, caller.user, act, name)
        return name

    def _note(self, event: AuditEvent, caller: Caller, file: str | None, **more: Any) -> None:
        self._record(AuditEntry(event, caller.user, caller.peer, file, session=caller.session, **more))

    def turn_away(self, caller: Caller, command: Command, error: Refusal | ProtocolError) -> Reply:
        """The reply to a command that is refused, which is written down if it was not allowed."""
        if error.code in AUDITED_REFUSALS:
            file = command.words[0] if command.words and command.verb in _NAMING else None
            self._note(AuditEvent.REFUSAL, caller, file, outcome=error.code.value, what=command.verb.value)
        return refuse(command, error)

    def _ticket(
        self, action: Action, caller: Caller, scope: bytes, size: int, generation: int = 0, *, secure: bool = False
    ) -> str:
        expires_at = int(self._now()) + self._ticket_seconds
        is_secure = secure or caller.secure
        ticket = Ticket(action, caller.user, scope, size, expires_at, generation, is_secure, caller.epoch)
        return encode_ticket(self._keys.sign(ticket))

    def _match(self, caller: Caller, command: Command, name: RemoteName) -> bytes | None:
        """The root that the file must have. Who may not read it is not told whether it is one that he knows."""
        if "if-match" not in command.options:
            return None
        require(self._decide, caller.user, Act.READ, name)
        return parse_hex(command.options["if-match"], DIGEST_BYTES)

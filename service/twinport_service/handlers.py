"""What the verbs of twinport/2 do. No socket, no event loop: a command in, replies out.

``quick`` answers what touches memory alone, on the event loop. ``slow`` may wait for the disk and runs on a worker
thread, many commands in one job. ``COMMIT`` answers from whichever thread ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.names import parse_name
from twinport_protocol.numbers import parse_signed, parse_size
from twinport_protocol.segments import DIGEST_BYTES
from twinport_protocol.tickets import BUNDLING, Action, TicketKeys, decode_ticket

from .access import Act, Decide, require
from .audit import AuditEvent, Record, discard
from .ledger import UploadRecord
from .log import get_log
from .name_handlers import Caller, NameHandlers
from .replies import describe_published, describe_usage, parse_hex
from .storage.contract import (
    SMALL_BYTES,
    FileMarks,
    HashingNeeded,
    OnProgress,
    Precondition,
    Published,
    UploadSpec,
)
from .uploads import UploadDesk

UPLOAD_ID_BYTES = 16
MAX_PAGE_ENTRIES = 1000
RENEWABLE_SECONDS = 24 * 3600


OnReply = Callable[[Reply], None]


class Handlers(NameHandlers):
    """The verbs. One instance serves all sessions; thread-safe."""

    def __init__(
        self,
        desk: UploadDesk,
        keys: TicketKeys,
        decide: Decide,
        limits: Limits,
        *,
        ticket_seconds: int = 3600,
        now: Callable[[], float] = time.time,
        record: Record = discard,
    ) -> None:
        super().__init__(desk, keys, decide, ticket_seconds=ticket_seconds, now=now, record=record)
        self._limits = limits
        self._slow: dict[Verb, Callable[[Caller, Command], Sequence[Reply]]] = {
            Verb.UPLOAD: self._upload,
            Verb.ABORT: self._abort,
            Verb.RENEW: self._renew,
            Verb.DOWNLOAD: self._download,
            Verb.LIST: self._list,
            Verb.STAT: self._stat,
            Verb.DELETE: self._delete,
            Verb.MOVE: self._move,
            Verb.MKDIR: self._make_directory,
        }

    def quick(self, caller: Caller, command: Command) -> Reply | None:
        """The reply where no disk is needed: PING, QUOTA, BUNDLE, UPLOAD of a small file. None: ask :meth:`slow`."""
        if command.verb is Verb.PING:
            return Reply(command.id, ReplyKind.OK)
        if command.verb is Verb.QUOTA:
            return Reply(
                command.id, ReplyKind.OK, options=describe_usage(caller.user, self._desk.ledger.usage_of(caller.user))
            )
        if command.verb is Verb.BUNDLE:
            try:
                return self._bundle(caller, command)
            except Refusal as refusal:
                return self.turn_away(caller, command, refusal)
        if command.verb is Verb.UPLOAD and "resume" not in command.options:
            try:
                spec = self._spec(caller, command)
                if spec.size > SMALL_BYTES or not self._desk.room.is_fresh:
                    return None
                return self._opened(caller, command, self._desk.open_small(spec, caller.session))
            except (Refusal, ProtocolError) as error:
                if error.code is ErrorCode.QUOTA_EXCEEDED:
                    return None  # unless it is published already, which the disk knows
                return self.turn_away(caller, command, error)
            except Exception:
                get_log().exception("[CONTROL] Internal error", peer=caller.peer, verb=command.verb.value)
                return Reply(command.id, ReplyKind.ERROR, code=ErrorCode.INTERNAL)
        return None

    def slow(self, caller: Caller, command: Command, *, may_hash: bool = True) -> Sequence[Reply]:
        """The replies, the last of them final. Raises ``HashingNeeded`` where not ``may_hash``, else nothing."""
        try:
            if not may_hash and command.verb is Verb.DOWNLOAD:
                return self._download(caller, command, may_hash=False)
            if not may_hash and command.verb is Verb.DELETE and "if-match" in command.options:
                raise HashingNeeded
            return self._slow[command.verb](caller, command)
        except HashingNeeded:
            raise
        except (Refusal, ProtocolError) as error:
            return [self.turn_away(caller, command, error)]
        except Exception:
            get_log().exception("[CONTROL] Internal error", peer=caller.peer, verb=command.verb.value)
            return [Reply(command.id, ReplyKind.ERROR, code=ErrorCode.INTERNAL)]

    def end_session(self, number: int) -> None:
        """A session that has opened uploads is over. May wait for the disk. Never raises."""
        try:
            self._desk.end_session(number)
        except Exception:
            get_log().exception("[CONTROL] Internal error", session=number)

    # uploads ---------------------------------------------------------------------------------------------------------

    def _spec(self, caller: Caller, command: Command) -> UploadSpec:
        name = parse_name(command.words[0])
        options, marks = command.options, self._marks(command)
        require(self._decide, caller.user, Act.WRITE, name)
        match = self._match(caller, command, name)
        return UploadSpec(
            upload_id=parse_hex(options.get("upload"), UPLOAD_ID_BYTES),
            user=caller.user,
            name=name,
            size=parse_size(command.words[1].encode()),
            mtime_ns=marks.mtime_ns,
            executable=marks.executable,
            root=parse_hex(options["root"], DIGEST_BYTES) if "root" in options else None,
            precondition=Precondition(if_absent=options.get("if-absent") == "1", if_match=match),
        )

    @staticmethod
    def _marks(command: Command) -> FileMarks:
        mtime = command.options.get("mtime")
        return FileMarks(None if mtime is None else parse_signed(mtime.encode()), command.options.get("exec") == "1")

    def _opened(
        self, caller: Caller, command: Command, record: UploadRecord | Published, resumable: bytes | None = None
    ) -> Reply:
        if isinstance(record, Published):
            return Reply(command.id, ReplyKind.DONE, options=describe_published(record))
        spec = record.spec
        options = {
            "upload": spec.upload_id.hex(),
            "generation": str(record.generation),
            "ticket": self._ticket(Action.UPLOAD, caller, spec.upload_id, spec.size, record.generation),
        }
        if resumable is not None:
            options["resumable"] = resumable.hex()
        return Reply(command.id, ReplyKind.OK, options=options)

    def _upload(self, caller: Caller, command: Command) -> Sequence[Reply]:
        if "resume" in command.options:
            return [self._resume(caller, command)]
        spec = self._spec(caller, command)
        if spec.size <= SMALL_BYTES:
            return [self._opened(caller, command, self._open_small(caller, spec))]
        resumable = self._desk.ledger.resumable(caller.user, spec.name, spec.size)
        former = None if resumable is None else self._desk.ledger.load(resumable)
        # A resumed upload keeps its precondition: another one than is asked for now might replace what must stay.
        if former is None or resumable == spec.upload_id or former.spec.precondition != spec.precondition:
            resumable = None
        # Whoever goes on with the other one must not need room twice.
        record = self._desk.open(spec, reserve=resumable is None, session=caller.session)
        return [self._opened(caller, command, record, resumable)]

    def _open_small(self, caller: Caller, spec: UploadSpec) -> UploadRecord | Published:
        """What was published under that id needs no room a second time."""
        try:
            return self._desk.open_small(spec, caller.session)
        except Refusal as refusal:
            done = self._desk.published(spec) if refusal.code is ErrorCode.QUOTA_EXCEEDED else None
            if done is None:
                raise
            return done

    def _resume(self, caller: Caller, command: Command) -> Reply:
        name = parse_name(command.words[0])
        size = parse_size(command.words[1].encode())
        require(self._decide, caller.user, Act.WRITE, name)
        upload_id = parse_hex(command.options["resume"], UPLOAD_ID_BYTES)
        marks = self._marks(command) if "mtime" in command.options else None
        record = self._desk.resume(caller.user, upload_id, name, size, session=caller.session, marks=marks)
        return self._opened(caller, command, record)

    def commit(self, caller: Caller, command: Command, on_reply: OnReply, on_progress: OnProgress) -> None:
        """Start a COMMIT; its final reply goes to ``on_reply``, perhaps on another thread. Never raises."""

        def on_done(outcome: Published | Refusal) -> None:
            if isinstance(outcome, Published):
                if not outcome.is_repeated:
                    get_log().info(f"[UPLOAD] Complete: {outcome.name} saved ({outcome.size} bytes)", peer=caller.peer)
                    self._note(
                        AuditEvent.UPLOAD,
                        caller,
                        outcome.name,
                        size=outcome.size,
                        root=outcome.root,
                        seconds=time.monotonic() - began,
                    )
                on_reply(Reply(command.id, ReplyKind.DONE, options=describe_published(outcome)))
            else:
                on_reply(self.turn_away(caller, command, outcome))

        began = time.monotonic()

        try:
            upload_id = parse_hex(command.words[0], UPLOAD_ID_BYTES)
            root = parse_hex(command.options.get("root"), DIGEST_BYTES)
            generation = parse_size(command.options.get("generation", "").encode())
            self._require_own(caller, upload_id)
            self._desk.committer.commit(caller.user, upload_id, generation, root, on_done, on_progress)
        except (Refusal, ProtocolError) as error:
            on_reply(self.turn_away(caller, command, error))
        except Exception:
            get_log().exception("[CONTROL] Internal error", peer=caller.peer, verb=command.verb.value)
            on_reply(Reply(command.id, ReplyKind.ERROR, code=ErrorCode.INTERNAL))

    def _bundle(self, caller: Caller, command: Command) -> Reply:
        """A ticket for any number of small files in one direction; whose and which is asked for each of them."""
        action = _BUNDLES.get(command.words[0])
        if action is None:
            raise Refusal(ErrorCode.BAD_REQUEST, "a bundle in no direction")
        require(self._decide, caller.user, Act.SEE, "")
        if not self._limits.bundle:
            raise Refusal(ErrorCode.UNSUPPORTED)
        return Reply(command.id, ReplyKind.OK, options={"ticket": self._ticket(action, caller, b"", 0)})

    def _abort(self, caller: Caller, command: Command) -> Sequence[Reply]:
        generation = command.options.get("generation")
        upload_id = parse_hex(command.words[0], UPLOAD_ID_BYTES)
        self._desk.abort(caller.user, upload_id, None if generation is None else parse_size(generation.encode()))
        return [Reply(command.id, ReplyKind.DONE)]

    def _require_own(self, caller: Caller, upload_id: bytes) -> None:
        """What was allowed when the upload was opened may have been taken away since."""
        known = self._desk.ledger.load(upload_id)
        if known is not None and known.spec.user == caller.user:
            require(self._decide, caller.user, Act.WRITE, known.spec.name)

    def _renew(self, caller: Caller, command: Command) -> Sequence[Reply]:
        old = self._keys.verify(decode_ticket(command.words[0]), self._now(), grace_seconds=RENEWABLE_SECONDS)
        if old.user != caller.user:
            raise Refusal(ErrorCode.TICKET_INVALID, "another user's ticket")
        if old.action in BUNDLING:
            raise Refusal(ErrorCode.TICKET_INVALID, "for bundles, BUNDLE gives another")
        if old.action is Action.UPLOAD:
            self._desk.ledger.check(old.scope, old.generation)
            self._require_own(caller, old.scope)
        else:
            require(self._decide, caller.user, Act.READ, self._storage.name_of(old.scope))
            self._storage.open_reader(old.scope).close()
        ticket = self._ticket(old.action, caller, old.scope, old.size, old.generation, secure=old.secure)
        return [Reply(command.id, ReplyKind.OK, options={"ticket": ticket})]


_BUNDLES = {Verb.UPLOAD.value: Action.UPLOAD_MANY, Verb.DOWNLOAD.value: Action.DOWNLOAD_MANY}

"""Every verb that may be refused leaves a line in the audit log, but for what is no matter of rights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.names import parse_name
from twinport_protocol.segments import digest_of
from twinport_service.access import BEFORE_LOGIN, allow_all
from twinport_service.audit import AuditEntry, AuditEvent
from twinport_service.handlers import Handlers
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.name_handlers import Caller
from twinport_service.storage.contract import UploadSpec
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk
from twinport_service.usage import UsageBook

from tests.service.conftest import KEYS

LARGE = 9_000_000
MINE, NEW = bytes(range(16)), bytes(range(16, 32))  # names of tests are made of them: in every process the same
BOB = Caller("bob", ("192.0.2.7", 40000), session=7)


@dataclass(frozen=True)
class Asked:
    """A command of bob's, who may do nothing any more, and the name that its line has; None for one that is no matter
    of rights."""

    words: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    is_refused: bool = True


TABLE: dict[Verb, list[Asked]] = {
    # The session answers these two; see accounts/test_audited.py, and the tests of logins.
    Verb.LOGIN: [],
    Verb.QUIT: [],
    Verb.PING: [Asked(is_refused=False)],
    Verb.QUOTA: [Asked(is_refused=False)],
    Verb.ABORT: [Asked((MINE.hex(),), is_refused=False)],
    Verb.UPLOAD: [
        Asked(("a", "5"), {"upload": NEW.hex()}, "a"),
        Asked(("a", str(LARGE)), {"upload": NEW.hex()}, "a"),
        Asked(("big", str(LARGE)), {"resume": MINE.hex()}, "big"),
    ],
    Verb.COMMIT: [Asked((MINE.hex(),), {"generation": "1", "root": "0" * 64})],
    Verb.RENEW: [Asked(("ticket",)), Asked(("old ticket",)), Asked(("nonsense",))],
    Verb.BUNDLE: [Asked(("UPLOAD",)), Asked(("DOWNLOAD",))],
    Verb.DOWNLOAD: [Asked(("box/file",), file="box/file"), Asked(("nothing",), file="nothing")],
    Verb.LIST: [Asked(), Asked(("box",), file="box")],
    Verb.STAT: [Asked(("box/file",), file="box/file"), Asked(("nothing",), file="nothing")],
    Verb.DELETE: [
        Asked(("box/file",), file="box/file"),
        Asked(("box/file",), {"if-match": "0" * 64}, "box/file"),
    ],
    Verb.MOVE: [Asked(("box/file", "b"), file="box/file")],
    Verb.MKDIR: [Asked(("d",), file="d")],
}
CASES = [(verb, asked) for verb, all_asked in TABLE.items() for asked in all_asked]


@pytest.fixture
def desk() -> UploadDesk:
    """With a file of alice's and an upload of bob's."""
    usage = UsageBook()
    storage = MemoryStorage(usage=usage)
    spec = UploadSpec(bytes(16), "alice", parse_name("box/file"), 4, None, False)
    storage.commit_small(spec, b"data", digest_of(b"data"), lambda outcome: None)
    desk = UploadDesk(storage, MemoryLedger(usage=usage))
    desk.open(UploadSpec(MINE, "bob", parse_name("big"), LARGE, None, False), reserve=True, session=7)
    return desk


def replies(handlers: Handlers, command: Command) -> list[Reply]:
    """What is answered, in whichever way."""
    if command.verb is Verb.COMMIT:
        found: list[Reply] = []
        handlers.commit(BOB, command, found.append, lambda progress: None)
        return found
    if command.verb is Verb.LIST:
        return [reply for turn in handlers.list_in_turns(BOB, command) for reply in turn or ()]
    quick = handlers.quick(BOB, command)
    return [quick] if quick is not None else list(handlers.slow(BOB, command))


def test_the_table_has_every_verb() -> None:
    assert set(TABLE) == set(Verb)
    assert {verb for verb, asked in TABLE.items() if not asked} <= BEFORE_LOGIN


@pytest.mark.parametrize(("verb", "asked"), CASES, ids=[f"{verb.value}-{asked.words}" for verb, asked in CASES])
def test_a_verb_that_is_refused_has_a_line(desk: UploadDesk, verb: Verb, asked: Asked) -> None:
    before = Handlers(desk, KEYS, allow_all, Limits())
    (download,) = before.slow(BOB, Command(1, Verb.DOWNLOAD, ("box/file",), {}))
    (upload,) = before.slow(BOB, Command(1, Verb.UPLOAD, ("big", str(LARGE)), {"resume": MINE.hex()}))
    tickets = {"ticket": upload.options["ticket"], "old ticket": download.options["ticket"]}
    lines: list[AuditEntry] = []
    handlers = Handlers(desk, KEYS, lambda user, act, path: False, Limits(), record=lines.append)
    words = tuple(tickets.get(word, word) for word in asked.words)
    *_, last = replies(handlers, Command(1, verb, words, asked.options))
    if not asked.is_refused:
        assert last.kind is not ReplyKind.ERROR
        assert lines == []
        return
    assert last.code in (ErrorCode.DENIED, ErrorCode.TICKET_INVALID)
    (line,) = lines
    assert (line.event, line.user, line.peer, line.session) == (AuditEvent.REFUSAL, "bob", BOB.peer, 7)
    assert (line.what, line.file, line.outcome) == (verb.value, asked.file, last.code.value)
    assert not any(word in repr(line) for word in tickets.values())

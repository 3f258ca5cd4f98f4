"""What the verbs answer to users of whom not everything is allowed."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Command, Reply, Verb
from twinport_protocol.names import parse_name
from twinport_protocol.segments import digest_of
from twinport_service.access import Act
from twinport_service.handlers import Handlers
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.name_handlers import Caller
from twinport_service.storage.contract import UploadSpec
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk
from twinport_service.usage import UsageBook

from tests.service.conftest import KEYS

SECRET = b"the winner is bob"


@pytest.fixture
def desk() -> UploadDesk:
    """A desk over a storage with one file of alice's."""
    usage = UsageBook()
    storage = MemoryStorage(usage=usage)
    spec = UploadSpec(bytes(16), "alice", parse_name("box/secret"), len(SECRET), None, False)
    storage.commit_small(spec, SECRET, digest_of(SECRET), lambda outcome: None)
    return UploadDesk(storage, MemoryLedger(usage=usage))


def ask(desk: UploadDesk, acts: set[Act], verb: Verb, *words: str, options: Mapping[str, str]) -> Reply:
    """The answer to bob, who may do that everywhere."""
    handlers = Handlers(desk, KEYS, lambda user, act, path: act in acts, Limits())
    caller, command = Caller("bob", None), Command(1, verb, words, options)
    return handlers.quick(caller, command) or handlers.slow(caller, command)[-1]


@pytest.mark.parametrize("verb", [Verb.STAT, Verb.LIST])
def test_files_in_the_place_of_a_star_cannot_be_found_by_trying_names(desk: UploadDesk, verb: Verb) -> None:
    """As with a grant on ``*/*/public/**``: what leads there may be seen, and a file leads nowhere."""
    there = ask(desk, {Act.SEE}, verb, "box/secret", options={})
    assert there.code is ErrorCode.FILE_NOT_FOUND
    assert there == ask(desk, {Act.SEE}, verb, "box/nothing", options={})
    assert ask(desk, {Act.SEE}, verb, "box", options={}).code is None


@pytest.mark.parametrize("content", [SECRET, b"the winner is eve"], ids=["right", "wrong"])
@pytest.mark.parametrize(("verb", "words"), [(Verb.UPLOAD, ("box/secret", "9000000")), (Verb.DELETE, ("box/secret",))])
def test_who_may_not_read_a_file_does_not_learn_what_is_in_it(
    desk: UploadDesk, verb: Verb, words: tuple[str, ...], content: bytes
) -> None:
    options = {"if-match": digest_of(content).hex()}
    if verb is Verb.UPLOAD:
        options["upload"] = "f" * 32
    assert ask(desk, {Act.WRITE, Act.DELETE}, verb, *words, options=options).code is ErrorCode.DENIED
    told = ask(desk, {Act.WRITE, Act.DELETE, Act.READ}, verb, *words, options=options).code
    assert told is (None if content == SECRET else ErrorCode.CHANGED)

"""The contract of ledgers, held by the one in memory and the one in SQLite."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.upload import UploadState
from twinport_service.ledger import Ledger
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.ledger_sqlite import SqliteLedger
from twinport_service.quota import Quota
from twinport_service.storage.contract import FileMarks, UploadSpec
from twinport_service.usage import UsageBook

LARGE = 20 * 1024 * 1024
_serial = itertools.count(1)


def make_spec(name: str = "file", size: int = LARGE, user: str = "alice") -> UploadSpec:
    return UploadSpec(next(_serial).to_bytes(16, "big"), user, parse_name(name), size)


@contextmanager
def refused(code: ErrorCode) -> Iterator[None]:
    """What happens within is refused with that code."""
    with pytest.raises(Refusal) as caught:
        yield
    assert caught.value.code is code


class Clock:
    """Wall-clock seconds that move when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    made: Ledger
    if request.param == "memory":
        made = MemoryLedger(now=clock, max_open_uploads_per_user=3)
    else:
        made = SqliteLedger(tmp_path / "ledger.db", now=clock, max_open_uploads_per_user=3)
    yield made
    made.close()


def test_upload_begins_open_in_generation_one(ledger: Ledger) -> None:
    spec = make_spec()
    assert ledger.load(spec.upload_id) is None
    record = ledger.begin(spec)
    assert (record.spec, record.generation, record.state, record.touched_at) == (spec, 1, UploadState.OPEN, 1000.0)
    assert ledger.load(spec.upload_id) == record
    assert list(ledger.open_uploads()) == [record]
    assert ledger.sealed(spec.upload_id) == {}
    ledger.check(spec.upload_id, 1)


def test_begin_repeated_answers_the_record_as_it_stands(ledger: Ledger) -> None:
    spec = make_spec()
    ledger.begin(spec)
    leased = ledger.lease(spec.upload_id, "alice")
    assert ledger.begin(spec) == leased
    other = UploadSpec(spec.upload_id, "alice", parse_name("other"), LARGE)
    with refused(ErrorCode.DENIED):
        ledger.begin(other)


def test_open_uploads_of_a_user_are_capped(ledger: Ledger) -> None:
    specs = [make_spec(f"f{number}") for number in range(3)]
    for spec in specs:
        ledger.begin(spec)
    with refused(ErrorCode.BUSY):
        ledger.begin(make_spec("one more"))
    ledger.begin(specs[0])
    ledger.begin(make_spec("another user's", user="bob"))
    ledger.finish(specs[0].upload_id)
    ledger.begin(make_spec("one more"))


def test_lease_fences_the_older_holder(ledger: Ledger, clock: Clock) -> None:
    spec = make_spec()
    ledger.begin(spec)
    assert ledger.seal(spec.upload_id, 1, 0, b"0" * 32)
    clock.seconds += 5
    record = ledger.lease(spec.upload_id, "alice")
    assert (record.generation, record.state, record.touched_at) == (2, UploadState.OPEN, 1005.0)
    for use in (
        lambda: ledger.check(spec.upload_id, 1),
        lambda: ledger.seal(spec.upload_id, 1, 1, b"1" * 32),
        lambda: ledger.fence(spec.upload_id, 1),
    ):
        with refused(ErrorCode.FENCED):
            use()
    assert ledger.sealed(spec.upload_id) == {0: b"0" * 32}
    assert ledger.seal(spec.upload_id, 2, 1, b"1" * 32)
    with refused(ErrorCode.UPLOAD_UNKNOWN):
        ledger.lease(spec.upload_id, "bob")


def test_sealed_segment_is_immutable_until_unsealed(ledger: Ledger) -> None:
    spec = make_spec()
    ledger.begin(spec)
    assert ledger.seal(spec.upload_id, 1, 0, b"a" * 32)
    assert not ledger.seal(spec.upload_id, 1, 0, b"b" * 32)
    assert ledger.sealed(spec.upload_id) == {0: b"a" * 32}
    assert ledger.seal(spec.upload_id, 1, 2, b"c" * 32)
    ledger.unseal(spec.upload_id, [0, 1, 5])
    assert ledger.sealed(spec.upload_id) == {2: b"c" * 32}
    assert ledger.seal(spec.upload_id, 1, 0, b"b" * 32)
    ledger.unseal(b"unknown", [0])


def test_fence_closes_and_reopen_opens(ledger: Ledger) -> None:
    spec = make_spec()
    ledger.begin(spec)
    ledger.fence(spec.upload_id, 1)
    record = ledger.load(spec.upload_id)
    assert record is not None
    assert record.state is UploadState.COMMITTING
    for use in (
        lambda: ledger.check(spec.upload_id, 1),
        lambda: ledger.seal(spec.upload_id, 1, 1, b"1" * 32),
        lambda: ledger.fence(spec.upload_id, 1),
        lambda: ledger.lease(spec.upload_id, "alice"),
    ):
        with refused(ErrorCode.UPLOAD_CLOSED):
            use()
    assert ledger.resumable("alice", spec.name, LARGE) == spec.upload_id
    assert [found.state for found in ledger.open_uploads()] == [UploadState.COMMITTING]
    ledger.reopen(spec.upload_id)
    ledger.reopen(spec.upload_id)
    ledger.reopen(b"unknown")
    assert ledger.seal(spec.upload_id, 1, 1, b"1" * 32)


def test_finished_upload_is_unknown(ledger: Ledger) -> None:
    spec = make_spec()
    ledger.begin(spec)
    ledger.seal(spec.upload_id, 1, 0, b"0" * 32)
    ledger.finish(spec.upload_id)
    ledger.finish(spec.upload_id)
    assert ledger.load(spec.upload_id) is None
    assert ledger.sealed(spec.upload_id) == {}
    assert list(ledger.open_uploads()) == []
    for use in (
        lambda: ledger.check(spec.upload_id, 1),
        lambda: ledger.seal(spec.upload_id, 1, 1, b"1" * 32),
        lambda: ledger.fence(spec.upload_id, 1),
        lambda: ledger.lease(spec.upload_id, "alice"),
    ):
        with refused(ErrorCode.UPLOAD_UNKNOWN):
            use()
    assert ledger.begin(spec).generation == 1
    assert ledger.sealed(spec.upload_id) == {}


def test_resumable_is_the_newest_that_is_worth_it(ledger: Ledger) -> None:
    name = parse_name("file")
    assert ledger.resumable("alice", name, LARGE) is None
    first, second = make_spec(), make_spec()
    ledger.begin(first)
    assert ledger.resumable("alice", name, LARGE) == first.upload_id
    ledger.begin(second)
    assert ledger.resumable("alice", name, LARGE) == second.upload_id
    assert ledger.resumable("bob", name, LARGE) is None
    assert ledger.resumable("alice", name, LARGE + 1) is None
    assert ledger.resumable("alice", parse_name("other"), LARGE) is None
    ledger.finish(second.upload_id)
    assert ledger.resumable("alice", name, LARGE) == first.upload_id
    small = make_spec("small", 5)
    ledger.begin(small)
    assert ledger.resumable("alice", small.name, 5) is None
    ledger.seal(small.upload_id, 1, 0, b"s" * 32)
    assert ledger.resumable("alice", small.name, 5) == small.upload_id


def test_of_many_leases_at_once_each_has_a_generation_of_its_own(ledger: Ledger) -> None:
    spec = make_spec()
    ledger.begin(spec)
    generations: list[int] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        for _ in range(20):
            generations.append(ledger.lease(spec.upload_id, "alice").generation)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(generations) == list(range(2, 162))


def test_a_lease_may_bring_new_marks(ledger: Ledger) -> None:
    spec = make_spec()
    ledger.begin(spec)
    assert ledger.lease(spec.upload_id, "alice").spec == spec
    leased = ledger.lease(spec.upload_id, "alice", None, FileMarks(5, True))
    assert leased.spec == replace(spec, mtime_ns=5, executable=True)
    assert ledger.load(spec.upload_id) == leased


def test_an_untouched_upload_belongs_to_the_session_that_asked_last(ledger: Ledger) -> None:
    mine, theirs = ("node", 1), ("node", 2)
    spec = make_spec()
    ledger.begin(spec, True, mine)
    assert list(ledger.untouched(mine)) == [spec.upload_id]
    ledger.begin(spec, True, theirs)
    assert (list(ledger.untouched(mine)), list(ledger.untouched(theirs))) == ([], [spec.upload_id])
    ledger.lease(spec.upload_id, "alice", mine)
    assert (list(ledger.untouched(mine)), list(ledger.untouched(theirs))) == ([spec.upload_id], [])
    assert ledger.abandon(spec.upload_id, theirs) is None
    record = ledger.abandon(spec.upload_id, mine)
    assert record is not None
    assert record.spec == spec
    with refused(ErrorCode.UPLOAD_CLOSED):
        ledger.claim(spec.upload_id, 2)
    assert ledger.abandon(spec.upload_id, mine) is None
    ledger.finish(spec.upload_id)
    assert not ledger.open_uploads()


def test_an_upload_that_was_claimed_sealed_or_finished_is_nobodys(ledger: Ledger) -> None:
    session = ("node", 1)
    claimed, sealed, finished = (make_spec(f"f{number}") for number in range(3))
    for spec in (claimed, sealed, finished):
        ledger.begin(spec, True, session)
    ledger.claim(claimed.upload_id, 1)
    ledger.seal(sealed.upload_id, 1, 0, b"0" * 32)
    ledger.finish(finished.upload_id)
    assert not ledger.untouched(session)
    ledger.begin(claimed, True, session)  # a repeated request does not take it back
    assert not ledger.untouched(session)
    assert ledger.abandon(claimed.upload_id, session) is None
    ledger.check(claimed.upload_id, 1)


def test_one_that_is_being_committed_is_not_abandoned(ledger: Ledger) -> None:
    spec, session = make_spec(), ("node", 1)
    ledger.begin(spec, True, session)
    ledger.fence(spec.upload_id, 1)
    assert ledger.abandon(spec.upload_id, session) is None


def test_untouched_uploads_of_a_session_are_capped() -> None:
    ledger = MemoryLedger(max_untouched_per_session=2)
    session = ("node", 1)
    specs = [make_spec(f"f{number}") for number in range(4)]
    for spec in specs[:2]:
        ledger.begin(spec, True, session)
    with refused(ErrorCode.BUSY):
        ledger.begin(specs[2], True, session)
    ledger.begin(specs[0], True, session)
    ledger.begin(specs[2], True, ("node", 2))
    ledger.claim(specs[0].upload_id, 1)
    ledger.begin(specs[3], True, session)


# many at once ---------------------------------------------------------------------------------------------------------


def codes(outcomes: Sequence[Refusal | None]) -> list[ErrorCode | None]:
    return [None if outcome is None else outcome.code for outcome in outcomes]


def test_what_is_admitted_is_being_committed_until_it_is_finished(ledger: Ledger) -> None:
    specs = [make_spec("a", 5), make_spec("b", 0), make_spec("c")]
    assert codes(ledger.admit(specs)) == [None, None, None]
    for spec in specs:
        record = ledger.load(spec.upload_id)
        assert record is not None
        assert (record.spec, record.generation, record.state) == (spec, 1, UploadState.COMMITTING)
        assert record.has_room
        assert ledger.begin(spec) == record  # the same request by itself
        with refused(ErrorCode.UPLOAD_CLOSED):
            ledger.check(spec.upload_id, 1)
        with refused(ErrorCode.UPLOAD_CLOSED):
            ledger.fence(spec.upload_id, 1)
        with refused(ErrorCode.UPLOAD_CLOSED):
            ledger.lease(spec.upload_id, "alice")
    usage = ledger.usage_of("alice")
    assert (usage.open_uploads, usage.reserved_bytes) == (3, 5 + LARGE)
    ledger.finish_all([specs[0].upload_id, b"nobody's upload!", specs[2].upload_id])
    assert [record.spec for record in ledger.open_uploads()] == [specs[1]]
    ledger.finish_all([spec.upload_id for spec in specs])
    ledger.finish_all([])
    usage = ledger.usage_of("alice")
    assert (usage.open_uploads, usage.reserved_bytes) == (0, 0)
    assert list(ledger.open_uploads()) == []
    assert codes(ledger.admit(specs)) == [None, None, None]


def test_each_is_admitted_or_refused_by_itself(ledger: Ledger) -> None:
    taken, mine = make_spec("taken", 1), make_spec("mine", 1)
    ledger.begin(taken)
    others = replace(make_spec("others", 1, "bob"), upload_id=taken.upload_id)
    closed, busy = ErrorCode.UPLOAD_CLOSED, ErrorCode.BUSY
    specs = [taken, mine, mine, others, make_spec("third", 1), make_spec("one too many", 1), make_spec("his", 1, "bob")]
    assert codes(ledger.admit(specs)) == [closed, None, closed, closed, None, busy, None]
    assert codes(ledger.admit([])) == []
    usage = ledger.usage_of("alice")
    assert (usage.open_uploads, usage.reserved_bytes) == (3, 3)
    record = ledger.load(taken.upload_id)
    assert record is not None
    assert record.state is UploadState.OPEN
    ledger.finish(mine.upload_id)
    assert codes(ledger.admit([specs[5]])) == [None]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("quota", [Quota(25, None), Quota(None, 2)], ids=["bytes", "files"])
def test_as_many_are_admitted_as_the_quota_has_room_for(tmp_path: Path, kind: str, quota: Quota) -> None:
    usage = UsageBook(lambda user: quota)
    ledger = MemoryLedger(usage=usage) if kind == "memory" else SqliteLedger(tmp_path / "ledger.db", usage=usage)
    full = ErrorCode.QUOTA_EXCEEDED
    specs = [make_spec(f"f{number}", 10) for number in range(4)]
    assert codes(ledger.admit(specs)) == [None, None, full, full]
    assert codes(ledger.admit([specs[2]])) == [full]
    ledger.finish_all([specs[0].upload_id])
    assert codes(ledger.admit(specs[2:])) == [None, full]
    assert {record.spec.name for record in ledger.open_uploads()} == {"f1", "f2"}
    ledger.close()


def test_of_many_that_admit_at_once_each_id_is_admitted_once(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    specs = [make_spec(f"f{number}", size) for number in range(20) for size in (1, LARGE)]
    told: list[Sequence[Refusal | None]] = []

    def admit(turn: int) -> None:
        told.append(ledger.admit(specs[turn * 10 :] + specs[: turn * 10]))

    threads = [threading.Thread(target=admit, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(codes(outcomes).count(None) for outcomes in told) == 40
    assert len(ledger.open_uploads()) == 40
    ledger.finish_all([spec.upload_id for spec in specs])
    assert ledger.usage_of("alice").reserved_bytes == 0
    ledger.close()


class LedgerMachine(RuleBasedStateMachine):
    """The SQLite ledger, thrown away and opened again at any moment, agrees with the one in memory."""

    make: Callable[[], SqliteLedger]

    @initialize()
    def begin_all(self) -> None:
        self.sqlite = self.make()
        self.memory = MemoryLedger(now=lambda: 0.0)
        self.specs = [make_spec(f"f{number}", size) for number, size in enumerate((LARGE, LARGE, 2 * 1024 * 1024))]

    def both(self, use: Callable[[Ledger], object]) -> None:
        results: list[object] = []
        for ledger in (self.sqlite, self.memory):
            try:
                results.append(use(ledger))
            except Refusal as refusal:
                results.append(refusal.code)
        assert results[0] == results[1]

    which = st.integers(0, 2)
    generation = st.integers(1, 3)
    segment = st.integers(0, 2)

    @rule(which=which)
    def begin(self, which: int) -> None:
        self.both(lambda ledger: ledger.begin(self.specs[which]))

    @rule(which=which, marks=st.sampled_from([None, FileMarks(), FileMarks(7, True)]))
    def lease(self, which: int, marks: FileMarks | None) -> None:
        self.both(lambda ledger: ledger.lease(self.specs[which].upload_id, "alice", None, marks))

    @rule(which=which, generation=generation, segment=segment, fill=st.sampled_from([b"a", b"b"]))
    def seal(self, which: int, generation: int, segment: int, fill: bytes) -> None:
        self.both(lambda ledger: ledger.seal(self.specs[which].upload_id, generation, segment, fill * 32))

    @rule(which=which, segments=st.sets(segment))
    def unseal(self, which: int, segments: set[int]) -> None:
        self.both(lambda ledger: ledger.unseal(self.specs[which].upload_id, segments))

    @rule(which=which, generation=generation)
    def fence(self, which: int, generation: int) -> None:
        self.both(lambda ledger: ledger.fence(self.specs[which].upload_id, generation))

    @rule(which=which)
    def finish(self, which: int) -> None:
        self.both(lambda ledger: ledger.finish(self.specs[which].upload_id))

    @rule(many=st.lists(which, max_size=3))
    def admit(self, many: list[int]) -> None:
        self.both(lambda ledger: codes(ledger.admit([self.specs[number] for number in many])))

    @rule(many=st.lists(which, max_size=3))
    def finish_all(self, many: list[int]) -> None:
        self.both(lambda ledger: ledger.finish_all([self.specs[number].upload_id for number in many]))

    @rule()
    def restart(self) -> None:
        self.sqlite.close()
        self.sqlite = self.make()
        for record in self.memory.open_uploads():
            self.memory.reopen(record.spec.upload_id)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "sqlite"):
            self.both(lambda ledger: {record.spec.upload_id: record for record in ledger.open_uploads()})
            for spec in self.specs:
                self.both(lambda ledger, spec=spec: ledger.sealed(spec.upload_id))  # type: ignore[misc]

    def teardown(self) -> None:
        if hasattr(self, "sqlite"):
            self.sqlite.close()


def test_sqlite_agrees_with_memory_across_restarts(shm_path: Path) -> None:
    numbers = itertools.count()

    class Machine(LedgerMachine):
        def __init__(self) -> None:
            super().__init__()
            path = shm_path / f"ledger{next(numbers)}.db"
            self.make = lambda: SqliteLedger(path, now=lambda: 0.0, checkpoint_writes=3)

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=20, stateful_step_count=25, suppress_health_check=list(HealthCheck)),
    )

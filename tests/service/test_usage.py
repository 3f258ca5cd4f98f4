"""Usage: the book alone, and the whole of desk, ledger, storage and book against a model that only adds up."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.segments import digest_of
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.quota import Quota
from twinport_service.storage.contract import Precondition, Published, Storage, UploadSpec
from twinport_service.storage.local import LocalStorage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk
from twinport_service.usage import Owned, Stored, UsageBook

from tests.service.storage.conftest import Outcomes, refused


def figures(book: UsageBook, user: str) -> tuple[int, int, int, int]:
    """Stored bytes and files, reserved bytes and files."""
    usage = book.usage_of(user)
    return (*usage.stored, usage.reserved_bytes, usage.open_uploads)


def code_of(work: Callable[[], object]) -> ErrorCode | None:
    """What it was refused with."""
    try:
        work()
    except Refusal as refusal:
        return refusal.code
    return None


# the book ------------------------------------------------------------------------------------------------------------


def test_the_last_byte_and_the_last_file_can_be_had_and_no_more() -> None:
    book = UsageBook(lambda user: Quota(1000, 3))
    book.reserve(b"1", "u", 400)
    book.publish(b"1", Owned("u", 400), None)
    book.reserve(b"2", "u", 600)
    for size_bytes in (1, 2**63):
        with refused(ErrorCode.QUOTA_EXCEEDED):
            book.reserve(b"3", "u", size_bytes)
    book.reserve(b"3", "u", 0)
    with refused(ErrorCode.QUOTA_EXCEEDED):
        book.reserve(b"4", "u", 0)
    assert figures(book, "u") == (400, 1, 600, 2)


def test_an_upload_reserves_once_and_gives_back_once() -> None:
    book = UsageBook()
    for _ in range(2):
        book.reserve(b"1", "u", 7)
        book.restore(b"1", "u", 7)
    assert figures(book, "u") == (0, 0, 7, 1)
    for _ in range(2):
        book.release(b"1")
    assert figures(book, "u") == (0, 0, 0, 0)


def test_a_former_owner_gets_the_room_back_with_the_publication_and_not_before() -> None:
    book = UsageBook(lambda user: Quota(1000, None))
    book.load({"a": Stored(900, 1)})
    book.reserve(b"1", "b", 10)
    assert figures(book, "a") == (900, 1, 0, 0)
    book.publish(b"1", Owned("b", 10), Owned("a", 900))
    assert (figures(book, "a"), figures(book, "b")) == ((0, 0, 0, 0), (10, 1, 0, 0))


def test_while_a_file_is_replaced_both_count() -> None:
    book = UsageBook(lambda user: Quota(1000, None))
    book.load({"u": Stored(600, 1)})
    with refused(ErrorCode.QUOTA_EXCEEDED):
        book.reserve(b"1", "u", 600)


def test_a_lowered_quota_holds_from_the_next_upload_on() -> None:
    quota = Quota(1000, None)
    book = UsageBook(lambda user: quota)
    book.reserve(b"1", "u", 1000)
    quota = Quota(10, None)
    with refused(ErrorCode.QUOTA_EXCEEDED):
        book.reserve(b"2", "u", 0)
    book.publish(b"1", Owned("u", 1000), None)
    assert figures(book, "u") == (1000, 1, 0, 0)


def test_too_much_reserved_is_busy_but_what_never_fits_is_refused_for_good() -> None:
    book = UsageBook(max_reserved_bytes=100)
    book.reserve(b"1", "u", 60)
    with refused(ErrorCode.BUSY):
        book.reserve(b"2", "u", 41)
    with refused(ErrorCode.QUOTA_EXCEEDED):
        book.reserve(b"2", "u", 101)
    book.reserve(b"2", "v", 100)
    book.publish(b"1", Owned("u", 60), None)
    book.reserve(b"3", "u", 100)


def test_the_dialects_of_a_user_share_an_account() -> None:
    book = UsageBook(lambda user: Quota(10, None) if user == "u" else Quota())
    book.reserve(b"1", "u/classic", 6)
    with refused(ErrorCode.QUOTA_EXCEEDED):
        book.reserve(b"2", "u", 5)
    assert figures(book, "u") == (0, 0, 6, 1)


def test_many_threads_never_pass_a_quota_and_leave_nothing_over() -> None:
    book = UsageBook(lambda user: Quota(10_000, 60))
    published: list[int] = []

    def upload() -> None:
        for _ in range(40):
            upload_id = secrets.token_bytes(16)
            try:
                book.reserve(upload_id, "u", 170)
            except Refusal:
                continue
            usage = book.usage_of("u")
            assert usage.stored.size_bytes + usage.reserved_bytes <= 10_000
            if upload_id[0] % 2:
                book.release(upload_id)
            else:
                book.publish(upload_id, Owned("u", 170), None)
                published.append(170)

    threads = [threading.Thread(target=upload) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert figures(book, "u") == (sum(published), len(published), 0, 0)


# everything together -------------------------------------------------------------------------------------------------

NAMES = ["a", "b", "d/c", "d/e/f"]
USERS = ["u", "v"]


class Whole(RuleBasedStateMachine):
    """Uploads of every kind and fate. The model keeps one owner and size a name, and one user and size an upload."""

    make_storage: Callable[[UsageBook], Storage]

    def __init__(self) -> None:
        super().__init__()
        self.quotas = {user: Quota(100, 4) for user in USERS}
        self.book = UsageBook(lambda user: self.quotas[user])
        self.storage = type(self).make_storage(self.book)
        self.now = 0.0
        self.ledger = MemoryLedger(usage=self.book, now=lambda: self.now)
        self.desk = UploadDesk(self.storage, self.ledger)
        self.desk.recover()
        self.files: dict[str, Owned] = {}
        self.open: dict[bytes, UploadSpec] = {}
        self.done: list[UploadSpec] = []
        self.serial = 0

    def teardown(self) -> None:
        """Close it."""
        self.storage.close()

    def next_id(self) -> bytes:
        """Not drawn at random: the same steps must be the same steps when they are tried again."""
        self.serial += 1
        return self.serial.to_bytes(16, "little")

    def held(self, user: str) -> tuple[int, int, int, int]:
        """What the model says."""
        stored = [owned.size_bytes for owned in self.files.values() if owned.user == user]
        reserved = [spec.size for spec in self.open.values() if spec.user == user]
        return sum(stored), len(stored), sum(reserved), len(reserved)

    @rule(user=st.sampled_from(USERS), name=st.sampled_from(NAMES), size=st.integers(0, 60), absent=st.booleans())
    def upload(self, user: str, name: str, size: int, absent: bool) -> None:
        """Open one."""
        spec = UploadSpec(self.next_id(), user, parse_name(name), size, precondition=Precondition(if_absent=absent))
        stored, files, reserved, uploads = self.held(user)
        quota = self.quotas[user]
        fits = stored + reserved + size <= (quota.max_bytes or 0) and files + uploads < (quota.max_files or 0)
        refused_with = code_of(lambda: self.desk.open_small(spec))
        assert refused_with is (None if fits else ErrorCode.QUOTA_EXCEEDED)
        if fits:
            self.open[spec.upload_id] = spec

    @precondition(lambda self: self.open)
    @rule(data=st.data(), staged=st.booleans(), half=st.booleans())
    def send(self, data: st.DataObject, staged: bool, half: bool) -> None:
        """Send one, whole or in two pieces, or half of one."""
        spec = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        content = bytes(spec.size)
        generation = self.ledger.load(spec.upload_id).generation  # type: ignore[union-attr]
        handle = self.desk.attach(spec.upload_id, generation, spec.user)
        outcomes = Outcomes()

        def send_pieces() -> None:
            length = 1 if half and spec.size > 1 else spec.size
            if handle.begin_piece(0, 0, length, last=length == spec.size):
                handle.write(0, 0, content[:length])
                if length == spec.size:
                    handle.end_piece(0, digest_of(content))

        if staged or half:
            refused_with = code_of(send_pieces)
            handle.detach()
            assert refused_with in (None, ErrorCode.EXISTS)
            if half or refused_with:
                return
            handle.commit(digest_of(content), outcomes)
        else:
            handle.commit_whole(content, digest_of(content), outcomes)
            handle.detach()
        outcome = outcomes.next()
        if isinstance(outcome, Published):
            del self.open[spec.upload_id]
            self.files[spec.name] = Owned(spec.user, spec.size)
            self.done.append(spec)
            return
        assert outcome.code is ErrorCode.EXISTS
        if not staged:  # a small file's failed commit forgets it, a staged one's can be tried again
            del self.open[spec.upload_id]

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Ask once more for what is finished, and send it again: nothing counts twice."""
        spec = data.draw(st.sampled_from(self.done))
        before = dict(self.files)
        refused_with = code_of(lambda: self.desk.open_small(spec))
        if refused_with is not None:
            assert refused_with is ErrorCode.QUOTA_EXCEEDED
            return
        handle = self.desk.attach(spec.upload_id, 1, spec.user)
        outcomes = Outcomes()
        handle.commit_whole(bytes(spec.size), digest_of(bytes(spec.size)), outcomes)
        assert isinstance(outcomes.next(), Published)
        handle.detach()
        assert self.files == before

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Give one up."""
        spec = self.open.pop(data.draw(st.sampled_from(sorted(self.open))))
        self.desk.abort(spec.user, spec.upload_id)

    @rule()
    def sweep(self) -> None:
        """All are stale."""
        self.now += 100.0
        assert self.desk.sweep(self.now) == len(self.open)
        self.open.clear()

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Remove a file."""
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.storage.delete(parse_name(name))
        del self.files[name]

    @precondition(lambda self: self.files)
    @rule(data=st.data(), onto=st.sampled_from(NAMES))
    def move(self, data: st.DataObject, onto: str) -> None:
        """Move a file, perhaps onto another."""
        name = data.draw(st.sampled_from(sorted(self.files)))
        self.storage.move(parse_name(name), parse_name(onto))
        self.files[onto] = self.files.pop(name)

    @rule(user=st.sampled_from(USERS), most=st.sampled_from([50, 100, 200]))
    def change_quota(self, user: str, most: int) -> None:
        """The operator changes his mind."""
        self.quotas[user] = Quota(most, 4)

    @invariant()
    def adds_up(self) -> None:
        """Every figure is the model's."""
        for user in USERS:
            assert figures(self.book, user) == self.held(user)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_every_figure_is_the_sum_of_what_is_there(kind: str, shm_path: Path) -> None:
    def make_local(book: UsageBook) -> Storage:
        root = shm_path / secrets.token_hex(4)
        shutil.rmtree(root, ignore_errors=True)
        return LocalStorage(root, usage=book)

    class Machine(Whole):
        make_storage = staticmethod(make_local if kind == "local" else lambda book: MemoryStorage(usage=book))

    examples = 40 if kind == "local" else 150
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )

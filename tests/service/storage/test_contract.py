"""The contract of storages, held by each of them: in memory, on tmpfs, on a disk."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import parse_name
from twinport_protocol.segments import EMPTY_DIGEST, Manifest, digest_of
from twinport_service.storage.contract import SMALL_BYTES, Precondition, Published, Storage
from twinport_service.storage.memory import MemoryStorage

from .conftest import (
    Outcomes,
    commit_bundle,
    commit_bundled,
    commit_small,
    commit_staged,
    get,
    list_all,
    make_spec,
    put,
    read,
    refused,
    stage,
)

SEGMENT = 8 * 1024 * 1024
LARGE = random.Random(1).randbytes(SEGMENT + 12_345)
ABSENT = Precondition(if_absent=True)


def code_of(outcome: Published | Refusal) -> ErrorCode | None:
    return outcome.code if isinstance(outcome, Refusal) else None


# uploads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"y" * 4096, b"z" * SMALL_BYTES], ids=len)
def test_small_file_comes_back_as_it_was(storage: Storage, data: bytes) -> None:
    spec = make_spec("a/b c/file", len(data), executable=True)
    outcome = commit_small(storage, spec, data)
    assert outcome == Published(
        spec.upload_id, spec.name, len(data), 1_700_000_000_123_456_789, digest_of(data), spec.user
    )
    version, found = get(storage, "a/b c/file")
    assert found == data
    assert (version.size, version.mtime_ns, version.executable) == (len(data), 1_700_000_000_123_456_789, True)
    assert version.root == digest_of(data)
    assert len(version.token) <= 1400
    assert storage.manifest(version.token) == Manifest(len(data), digest_of(data))
    assert storage.name_of(version.token) == version.name
    with pytest.raises(Refusal):
        storage.name_of(b"no token")


@pytest.mark.parametrize("data", [b"", b"x" * 4096, LARGE[:SEGMENT], LARGE], ids=len)
def test_staged_file_comes_back_as_it_was(storage: Storage, data: bytes) -> None:
    spec = make_spec("large", len(data))
    outcome = commit_staged(storage, spec, data)
    assert isinstance(outcome, Published)
    version, found = get(storage, "large")
    assert found == data
    assert not version.executable
    manifest = storage.manifest(version.token)
    assert manifest.root == version.root == outcome.root
    assert manifest.digest(0) == digest_of(data[:SEGMENT])


def test_nothing_is_visible_before_the_commit(storage: Storage) -> None:
    spec = make_spec("later", len(LARGE))
    stage(storage, spec, LARGE)
    assert list_all(storage) == []
    with refused(ErrorCode.FILE_NOT_FOUND):
        storage.open_version(spec.name)
    assert storage.finished(spec.upload_id) is None


def test_segments_may_come_in_any_order_and_twice(storage: Storage) -> None:
    spec = make_spec("any", len(LARGE))
    storage.begin(spec)
    storage.begin(spec)
    parts = {1: LARGE[SEGMENT:], 0: LARGE[:SEGMENT]}
    for segment, part in parts.items():
        storage.put_piece(spec.upload_id, 1, segment, 0, bytes(1000))
        storage.put_piece(spec.upload_id, 1, segment, 0, part[:3000])
        storage.put_piece(spec.upload_id, 1, segment, 3000, memoryview(bytearray(part[3000:])))
        storage.seal_segment(spec.upload_id, 1, segment, digest_of(part))
    outcomes = Outcomes()
    storage.commit(spec, Manifest(len(LARGE), digest_of(parts[0]) + digest_of(parts[1])), outcomes)
    assert isinstance(outcomes.next(), Published)
    assert get(storage, "any")[1] == LARGE


def test_staged_bytes_can_be_read_back_within_their_segment(storage: Storage) -> None:
    spec = make_spec("back", len(LARGE))
    stage(storage, spec, LARGE)
    buffer = bytearray(20_000)
    assert storage.read_staged(spec.upload_id, 1, 100, buffer) == 12_245
    assert buffer[:12_245] == LARGE[SEGMENT + 100 :]
    assert storage.read_staged(spec.upload_id, 0, SEGMENT - 10, buffer) == 10
    assert buffer[:10] == LARGE[SEGMENT - 10 : SEGMENT]


def test_unknown_upload(storage: Storage) -> None:
    spec = make_spec("nothing", 3)
    with refused(ErrorCode.UPLOAD_UNKNOWN):
        storage.put_piece(spec.upload_id, 1, 0, 0, b"abc")
    with refused(ErrorCode.UPLOAD_UNKNOWN):
        storage.read_staged(spec.upload_id, 0, 0, bytearray(3))
    outcomes = Outcomes()
    storage.commit(spec, Manifest(3, digest_of(b"abc")), outcomes)
    assert code_of(outcomes.next()) is ErrorCode.UPLOAD_UNKNOWN
    storage.abort(spec.upload_id)
    assert storage.finished(spec.upload_id) is None


def test_aborted_upload_is_gone_and_may_begin_again(storage: Storage) -> None:
    spec = make_spec("aborted", len(LARGE))
    stage(storage, spec, LARGE)
    storage.abort(spec.upload_id)
    with refused(ErrorCode.UPLOAD_UNKNOWN):
        storage.put_piece(spec.upload_id, 1, 0, 0, b"abc")
    assert isinstance(commit_staged(storage, spec, LARGE), Published)


def test_finished_upload_answers_again_what_it_published(storage: Storage) -> None:
    spec = make_spec("once", len(LARGE), precondition=ABSENT)
    manifest = stage(storage, spec, LARGE)
    outcomes = Outcomes()
    storage.commit(spec, manifest, outcomes)
    first = outcomes.next()
    assert isinstance(first, Published)
    assert not first.is_repeated
    assert storage.finished(spec.upload_id) == first
    put(storage, "once", b"something newer")
    storage.commit(spec, manifest, outcomes)
    again = outcomes.next()
    assert again == first
    assert isinstance(again, Published)
    assert again.is_repeated
    assert get(storage, "once")[1] == b"something newer"


@pytest.mark.parametrize("precondition", [Precondition(), ABSENT], ids=["always", "absent"])
def test_small_upload_committed_again_changes_nothing(storage: Storage, precondition: Precondition) -> None:
    spec = make_spec("again", 5, precondition=precondition)
    first = commit_small(storage, spec, b"bytes")
    put(storage, "again", b"newer")
    assert commit_small(storage, spec, b"bytes") == first
    assert get(storage, "again")[1] == b"newer"


def test_small_upload_committed_twice_at_once_is_published_once(storage: Storage) -> None:
    spec = make_spec("twice", 5)
    outcomes = Outcomes()
    for _ in range(20):
        storage.commit_small(spec, b"bytes", digest_of(b"bytes"), outcomes)
    told = [outcomes.next() for _ in range(20)]
    assert isinstance(told[0], Published)
    assert set(told) == {told[0]}


def test_mtime_is_that_of_publication_when_the_sender_names_none(storage: Storage) -> None:
    published = put(storage, "now", b"x", mtime_ns=None)
    assert published.mtime_ns > 1_700_000_000_000_000_000
    assert storage.stat(parse_name("now")).mtime_ns == published.mtime_ns


def test_progress_ends_at_the_size(storage: Storage) -> None:
    spec = make_spec("progress", len(LARGE))
    manifest = stage(storage, spec, LARGE)
    progress: list[int] = []
    outcomes = Outcomes()
    storage.commit(spec, manifest, outcomes, progress.append)
    assert isinstance(outcomes.next(), Published)
    assert progress == sorted(progress)
    assert progress[-1] == len(LARGE)


def test_many_commits_from_many_threads(storage: Storage) -> None:
    outcomes = Outcomes()
    files = {f"d{number % 7}/f{number}": number.to_bytes(4, "big") * 300 for number in range(400)}

    def send(names: list[str]) -> None:
        for name in names:
            data = files[name]
            storage.commit_small(make_spec(name, len(data)), data, digest_of(data), outcomes)

    threads = [threading.Thread(target=send, args=(list(files)[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [outcomes.next() for _ in files]
    assert {outcome.name for outcome in told if isinstance(outcome, Published)} == set(files)
    assert outcomes.are_all_told
    assert {entry.name: entry.root for entry in list_all(storage)} == {n: digest_of(d) for n, d in files.items()}
    for name, data in files.items():
        assert get(storage, name)[1] == data


# preconditions and conflicts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", [commit_small, commit_staged, commit_bundled], ids=["small", "staged", "bundled"])
class TestPublication:
    """What is decided at the moment of publication, on both ways to it."""

    def test_replaces(self, storage: Storage, commit: type) -> None:
        put(storage, "name", b"old", executable=True)
        assert isinstance(commit(storage, make_spec("name", 3), b"new"), Published)
        version, data = get(storage, "name")
        assert (data, version.executable) == (b"new", False)
        assert [entry.name for entry in list_all(storage)] == ["name"]

    def test_if_absent(self, storage: Storage, commit: type) -> None:
        assert isinstance(commit(storage, make_spec("name", 3, precondition=ABSENT), b"one"), Published)
        with refused(ErrorCode.EXISTS):
            storage.begin(make_spec("name", 3, precondition=ABSENT))
        outcome = commit_small(storage, make_spec("name", 3, precondition=ABSENT), b"two")
        assert code_of(outcome) is ErrorCode.EXISTS
        assert get(storage, "name")[1] == b"one"

    def test_if_match(self, storage: Storage, commit: type) -> None:
        put(storage, "name", b"one")
        matches = Precondition(if_match=digest_of(b"one"))
        assert isinstance(commit(storage, make_spec("name", 3, precondition=matches), b"two"), Published)
        outcome = commit_small(storage, make_spec("name", 3, precondition=matches), b"six")
        assert code_of(outcome) is ErrorCode.CHANGED
        with refused(ErrorCode.CHANGED):
            storage.begin(make_spec("name", 3, precondition=matches))
        with refused(ErrorCode.CHANGED):
            storage.begin(make_spec("never was there", 3, precondition=matches))
        assert get(storage, "name")[1] == b"two"

    def test_name_is_a_directory(self, storage: Storage, commit: type) -> None:
        put(storage, "a/b", b"deep")
        with refused(ErrorCode.NAME_CONFLICT):
            storage.begin(make_spec("a", 3))
        assert code_of(commit_small(storage, make_spec("a", 3), b"new")) is ErrorCode.NAME_CONFLICT
        assert get(storage, "a/b")[1] == b"deep"

    def test_parent_is_a_file(self, storage: Storage, commit: type) -> None:
        put(storage, "a/b", b"file")
        with refused(ErrorCode.NAME_CONFLICT):
            storage.begin(make_spec("a/b/c/d", 3))
        assert code_of(commit_small(storage, make_spec("a/b/c/d", 3), b"new")) is ErrorCode.NAME_CONFLICT
        assert get(storage, "a/b")[1] == b"file"


@pytest.mark.parametrize("precondition", [ABSENT, Precondition(if_match=digest_of(b"first"))], ids=["absent", "match"])
def test_precondition_is_decided_by_the_commit_and_the_upload_kept(
    storage: Storage, precondition: Precondition
) -> None:
    if precondition.if_match:
        put(storage, "name", b"first")
    spec = make_spec("name", len(LARGE), precondition=precondition)
    manifest = stage(storage, spec, LARGE)
    put(storage, "name", b"quicker")
    outcomes = Outcomes()
    storage.commit(spec, manifest, outcomes)
    assert code_of(outcomes.next()) is (ErrorCode.EXISTS if precondition.if_absent else ErrorCode.CHANGED)
    assert get(storage, "name")[1] == b"quicker"
    assert storage.finished(spec.upload_id) is None
    storage.delete(parse_name("name"))
    if precondition.if_match:
        put(storage, "name", b"first")
    storage.commit(spec, manifest, outcomes)
    assert isinstance(outcomes.next(), Published)
    assert get(storage, "name")[1] == LARGE


@pytest.mark.parametrize("rounds", range(5))
def test_of_many_with_one_precondition_exactly_one_wins(storage: Storage, rounds: int) -> None:
    base = put(storage, "match", b"base")
    outcomes = Outcomes()
    absents = [make_spec("absent", 2, precondition=ABSENT) for _ in range(12)]
    matches = [make_spec("match", 2, precondition=Precondition(if_match=base.root)) for _ in range(12)]
    start = threading.Barrier(4)

    def send(part: int) -> None:
        start.wait()
        for number in range(part, 12, 4):
            for spec in (absents[number], matches[number]):
                data = b"%02d" % number
                storage.commit_small(spec, data, digest_of(data), outcomes)

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [outcomes.next() for _ in range(24)]
    winners = {outcome.name: outcome for outcome in told if isinstance(outcome, Published)}
    losers = sorted(outcome.code.value for outcome in told if isinstance(outcome, Refusal))
    assert losers == ["Changed"] * 11 + ["Exists"] * 11
    for name in ("absent", "match"):
        assert winners[parse_name(name)].root == get(storage, name)[0].root


# versions ------------------------------------------------------------------------------------------------------------


def test_version_stays_readable_when_its_name_is_replaced_and_deleted(storage: Storage) -> None:
    put(storage, "name", LARGE)
    version = storage.open_version(parse_name("name"))
    put(storage, "name", b"newer")
    assert read(storage, version.token, version.size) == LARGE
    storage.delete(parse_name("name"))
    assert read(storage, version.token, version.size) == LARGE
    assert storage.manifest(version.token).root == version.root


def test_reader_of_a_small_version_outlives_the_name(storage: Storage) -> None:
    put(storage, "name", b"old bytes")
    reader = storage.open_reader(storage.open_version(parse_name("name")).token)
    put(storage, "name", b"NEW BYTES")
    storage.delete(parse_name("name"))
    buffer = bytearray(100)
    assert reader.read_into(4, buffer) == 5
    assert buffer[:5] == b"bytes"
    assert reader.read_into(9, buffer) == reader.read_into(1000, buffer) == 0
    reader.close()
    reader.close()


@pytest.mark.parametrize("token", [b"", b"nonsense", bytes(200)])
def test_token_that_names_nothing(storage: Storage, token: bytes) -> None:
    with refused(ErrorCode.VERSION_GONE):
        storage.open_reader(token)
    with refused(ErrorCode.VERSION_GONE):
        storage.manifest(token)


def test_replaced_version_has_another_token(storage: Storage) -> None:
    put(storage, "name", b"same bytes")
    before = storage.open_version(parse_name("name"))
    put(storage, "name", b"same bytes")
    after = storage.open_version(parse_name("name"))
    assert before.token != after.token
    assert before.root == after.root


def test_version_of_nothing_and_of_a_directory(storage: Storage) -> None:
    storage.make_directory(parse_name("dir"))
    with refused(ErrorCode.DENIED):
        storage.open_version(parse_name("dir"))
    for name in ("nothing", "dir/nothing", "no/dir"):
        with refused(ErrorCode.FILE_NOT_FOUND):
            storage.open_version(parse_name(name))


# names ---------------------------------------------------------------------------------------------------------------


def test_stat(storage: Storage) -> None:
    put(storage, "dir/file", b"four", executable=True)
    entry = storage.stat(parse_name("dir/file"))
    assert (entry.name, entry.kind, entry.size, entry.executable) == ("dir/file", "f", 4, True)
    assert entry.root == digest_of(b"four")
    directory = storage.stat(parse_name("dir"))
    assert (directory.name, directory.kind, directory.key, directory.root) == ("dir", "d", "dir/", None)
    for name in ("file", "dir/file/x", "x/y"):
        with refused(ErrorCode.FILE_NOT_FOUND):
            storage.stat(parse_name(name))


def test_delete(storage: Storage) -> None:
    put(storage, "dir/file", b"bytes")
    with refused(ErrorCode.NOT_EMPTY):
        storage.delete(parse_name("dir"))
    with refused(ErrorCode.CHANGED):
        storage.delete(parse_name("dir/file"), digest_of(b"other"))
    with refused(ErrorCode.CHANGED):
        storage.delete(parse_name("dir"), digest_of(b"other"))
    storage.delete(parse_name("dir/file"), digest_of(b"bytes"))
    assert [entry.key for entry in list_all(storage)] == ["dir/"]
    storage.delete(parse_name("dir"))
    assert list_all(storage) == []
    for name in ("dir", "dir/file"):
        with refused(ErrorCode.FILE_NOT_FOUND):
            storage.delete(parse_name(name))


def test_make_directory(storage: Storage) -> None:
    put(storage, "file", b"")
    assert [storage.make_directory(parse_name("a/b/c")) for _ in range(2)] == [True, False]
    assert not storage.make_directory(parse_name("a/b"))
    assert [entry.key for entry in list_all(storage)] == ["a/b/c/", "file"]
    for name in ("file", "file/below"):
        with refused(ErrorCode.NAME_CONFLICT):
            storage.make_directory(parse_name(name))


def test_move_of_a_file(storage: Storage) -> None:
    first = put(storage, "a/one", b"1")
    storage.move(parse_name("a/one"), parse_name("b/c/uno"))
    assert get(storage, "b/c/uno")[1] == b"1"
    assert storage.stat(parse_name("b/c/uno")).root == digest_of(b"1")
    assert storage.finished(first.upload_id) == first
    put(storage, "two", b"2")
    with refused(ErrorCode.EXISTS):
        storage.move(parse_name("two"), parse_name("b/c/uno"), if_absent=True)
    storage.move(parse_name("two"), parse_name("b/c/uno"))
    assert get(storage, "b/c/uno")[1] == b"2"
    assert storage.stat(parse_name("b/c/uno")).root == digest_of(b"2")
    storage.move(parse_name("b/c/uno"), parse_name("b/c/uno"))
    assert [entry.key for entry in list_all(storage)] == ["a/", "b/c/uno"]
    for source, target, code in (
        ("two", "three", ErrorCode.FILE_NOT_FOUND),
        ("b/c/uno", "a", ErrorCode.NAME_CONFLICT),
        ("b/c/uno", "b/c/uno/below", ErrorCode.NAME_CONFLICT),
    ):
        with refused(code):
            storage.move(parse_name(source), parse_name(target))


def test_move_of_a_directory(storage: Storage) -> None:
    put(storage, "from/x/file", b"x")
    put(storage, "from/y", b"y")
    put(storage, "taken", b"t")
    storage.make_directory(parse_name("empty"))
    for target, code in (
        ("taken", ErrorCode.EXISTS),
        ("empty", ErrorCode.EXISTS),
        ("taken/below", ErrorCode.NAME_CONFLICT),
        ("from/x/inside", ErrorCode.NAME_CONFLICT),
    ):
        with refused(code):
            storage.move(parse_name("from"), parse_name(target))
    storage.move(parse_name("from"), parse_name("to/here"))
    keys = [(entry.key, entry.root) for entry in list_all(storage)]
    assert keys == [
        ("empty/", None),
        ("taken", digest_of(b"t")),
        ("to/here/x/file", digest_of(b"x")),
        ("to/here/y", digest_of(b"y")),
    ]
    assert get(storage, "to/here/x/file")[1] == b"x"


def test_move_of_a_directory_makes_no_name_too_long(storage: Storage) -> None:
    parts = ["d" * 200, "é" * 100, "f" * 200]
    put(storage, "/".join(parts))
    storage.make_directory(parse_name("empty/" + "g" * 250 + "/" + "h" * 250))
    fits, too_long = "t" * 200 + "/" + "t" * 200 + "/" + "t" * 96, "t" * 200 + "/" + "t" * 200 + "/" + "t" * 97
    with refused(ErrorCode.INVALID_NAME):
        storage.move(parse_name(parts[0]), parse_name(too_long))
    with refused(ErrorCode.INVALID_NAME):
        storage.move(parse_name("empty"), parse_name("t" * 200 + "/" + "t" * 198))
    storage.move(parse_name(parts[0]), parse_name(fits))
    assert get(storage, "/".join([fits, *parts[1:]]))[1] == b""
    assert len(fits.encode()) + len("/".join(["", *parts[1:]]).encode()) == 900
    keys = [entry.key for entry in list_all(storage)]
    assert keys == ["empty/" + "g" * 250 + "/" + "h" * 250 + "/", "/".join([fits, *parts[1:]])]


def test_list_of_one_level_and_of_all(storage: Storage) -> None:
    for name in ("b", "a/x", "a-", "a.b", "a0", "a/y/z", "ä", "z/1/2/3"):
        put(storage, name, b"-")
    storage.make_directory(parse_name("a/empty"))
    assert [entry.key for entry in list_all(storage)] == [
        *("a-", "a.b", "a/empty/", "a/x", "a/y/z", "a0", "b", "z/1/2/3", "ä")
    ]
    assert [e.key for e in list_all(storage, recursive=False)] == ["a-", "a.b", "a/", "a0", "b", "z/", "ä"]
    assert [e.key for e in list_all(storage, "a", recursive=False)] == ["a/empty/", "a/x", "a/y/"]
    assert [e.key for e in list_all(storage, "a")] == ["a/empty/", "a/x", "a/y/z"]
    assert [e.key for e in list_all(storage, "a0")] == ["a0"]
    assert list_all(storage, "a/empty") == []
    assert storage.list("a0", "a0", 10, True).entries == ()
    for prefix in ("nothing", "a/nothing", "a0/below"):
        with refused(ErrorCode.FILE_NOT_FOUND):
            storage.list(prefix, "", 10, True)


def test_list_after_a_key_that_is_not_there(storage: Storage) -> None:
    for name in ("a/1", "a/3", "c"):
        put(storage, name, b"")
    for after, expected in (
        ("a/2", ["a/3", "c"]),
        ("a", ["a/1", "a/3", "c"]),
        ("a/", ["a/1", "a/3", "c"]),
        ("a/1/x", ["a/3", "c"]),
        ("b", ["c"]),
        ("d", []),
    ):
        assert [entry.key for entry in storage.list("", after, 10, True).entries] == expected, after


class _Model:
    """A storage is shared by all examples of a property: each begins with an empty tree."""

    @staticmethod
    def clear(storage: Storage) -> None:
        for entry in list_all(storage):
            storage.delete(parse_name(entry.name))
            parent = entry.name.rpartition("/")[0]
            while parent:
                try:
                    storage.delete(parse_name(parent))
                except Refusal:
                    break
                parent = parent.rpartition("/")[0]


component = st.text(st.sampled_from("ab-./0éz😀"), min_size=1, max_size=3).filter(
    lambda text: "/" not in text and text.strip(".") != "" and text != " "
)
path = st.lists(component, min_size=1, max_size=3).map("/".join)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(path, max_size=12), limit=st.integers(1, 4), after=path, prefix=path)
def test_listings_agree_with_a_simple_model(
    storage: Storage, names: set[str], limit: int, after: str, prefix: str
) -> None:
    _Model.clear(storage)
    files: set[str] = set()
    directories: set[str] = set()
    for name in sorted(names):
        parents = {name[:at] for at in range(len(name)) if name[at] == "/"}
        if parents & files or name in directories:
            continue
        put(storage, name, b"")
        files.add(name)
        directories |= parents
    everything = sorted(files, key=str.encode)
    assert [entry.name for entry in list_all(storage, limit=limit)] == everything
    following = [name for name in everything if name.encode() > after.encode()]
    assert [entry.name for entry in storage.list("", after, 100, True).entries] == following
    if prefix in directories:
        below = [name for name in everything if name.startswith(prefix + "/")]
        assert [entry.name for entry in list_all(storage, prefix, limit=limit)] == below
        level = {name[len(prefix) + 1 :].partition("/") for name in below}
        keys = sorted((f"{prefix}/{head}{slash}" for head, slash, _ in level), key=str.encode)
        assert [entry.key for entry in list_all(storage, prefix, recursive=False, limit=limit)] == keys


# life ----------------------------------------------------------------------------------------------------------------


def test_free_bytes_say_what_can_be_known(storage: Storage) -> None:
    free = storage.free_bytes()
    assert free is None if isinstance(storage, MemoryStorage) else free is not None and free > 0
    free_files = storage.free_files()
    assert free_files is None if isinstance(storage, MemoryStorage) else free_files is None or free_files > 0


def test_empty_digest_is_the_root_of_an_empty_file(storage: Storage) -> None:
    assert put(storage, "empty", b"").root == EMPTY_DIGEST


# bundles -------------------------------------------------------------------------------------------------------------


def test_a_bundle_of_every_kind_comes_back_as_it_was(storage: Storage) -> None:
    put(storage, "old", b"older", executable=True)
    root = digest_of(b"older")
    files = [
        (make_spec("empty", 0), b""),
        (make_spec("deep/er/program", 3, executable=True, mtime_ns=7), b"run"),
        (make_spec("old", 5), b"newer"),
        (make_spec("fresh", 1, precondition=ABSENT), b"f"),
        (make_spec("large", SMALL_BYTES), b"z" * SMALL_BYTES),
        (make_spec("now", 1, mtime_ns=None), b"n"),
    ]
    told = commit_bundle(storage, files)
    assert [outcome.name for outcome in told if isinstance(outcome, Published)] == [spec.name for spec, _ in files]
    for (spec, data), outcome in zip(files, told, strict=True):
        version, found = get(storage, spec.name)
        assert (found, version.executable) == (data, spec.executable)
        assert isinstance(outcome, Published)
        assert version.mtime_ns == outcome.mtime_ns
        assert spec.mtime_ns in (None, version.mtime_ns)
        assert storage.finished(spec.upload_id) == outcome
    assert root != storage.open_version(parse_name("old")).root


def test_each_file_of_a_bundle_has_an_outcome_of_its_own(storage: Storage) -> None:
    put(storage, "file", b"x")
    put(storage, "dir/file", b"y")
    matches, differs = Precondition(if_match=digest_of(b"x")), Precondition(if_match=digest_of(b"z"))
    before = make_spec("before", 1)
    first = commit_small(storage, before, b"b")
    files = [
        (make_spec("a", 1), b"a"),
        (make_spec("file", 1, precondition=ABSENT), b"n"),
        (make_spec("file/below", 1), b"n"),
        (make_spec("b", 1), b"b"),
        (make_spec("dir", 1), b"n"),
        (make_spec("dir/file", 1, precondition=differs), b"n"),
        (make_spec("gone", 1, precondition=differs), b"n"),
        (make_spec("file", 2, precondition=matches), b"m!"),
        (before, b"b"),
        (make_spec("c", 1), b"c"),
    ]
    told = commit_bundle(storage, files)
    assert [code_of(outcome) for outcome in told] == [
        None,
        ErrorCode.EXISTS,
        ErrorCode.NAME_CONFLICT,
        None,
        ErrorCode.NAME_CONFLICT,
        ErrorCode.CHANGED,
        ErrorCode.CHANGED,
        None,
        None,
        None,
    ]
    assert told[8] == first
    assert isinstance(told[8], Published)
    assert told[8].is_repeated
    names = ["a", "b", "before", "c", "dir/file", "file"]
    assert [entry.name for entry in list_all(storage)] == names
    assert [get(storage, name)[1] for name in names] == [b"a", b"b", b"b", b"c", b"y", b"m!"]


def test_a_name_that_comes_twice_in_a_bundle_is_what_came_last(storage: Storage) -> None:
    files = [(make_spec("twice", 1), b"%d" % number) for number in range(5)]
    files.append((make_spec("twice", 1, precondition=ABSENT), b"x"))
    assert [code_of(outcome) for outcome in commit_bundle(storage, files)] == [None] * 5 + [ErrorCode.EXISTS]
    assert get(storage, "twice")[1] == b"4"


def test_an_id_that_comes_twice_in_a_bundle_is_published_once(storage: Storage) -> None:
    spec = make_spec("once", 5)
    told = commit_bundle(storage, [(spec, b"bytes"), (make_spec("other", 1), b"o"), *[(spec, b"bytes")] * 3])
    assert {outcome.name for outcome in told if isinstance(outcome, Published)} == {"once", "other"}
    assert told[0] == told[2] == told[3] == told[4]
    assert sum(isinstance(outcome, Published) and not outcome.is_repeated for outcome in told) == 2


def test_an_empty_bundle_is_nothing(storage: Storage) -> None:
    assert commit_bundle(storage, []) == []


def test_many_bundles_from_many_threads(storage: Storage) -> None:
    def send(part: int) -> None:
        files = [(make_spec(f"d{part % 2}/{part}-{number}", 4), b"%04d" % number) for number in range(300)]
        assert all(isinstance(outcome, Published) for outcome in commit_bundle(storage, files))

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_all(storage)) == 1200
    assert get(storage, "d1/3-299")[1] == b"0299"


def test_a_small_file_is_read_whole_with_its_marks(storage: Storage) -> None:
    put(storage, "d/file", b"bytes", executable=True, mtime_ns=-7_000_000_000)
    put(storage, "empty", b"")
    found = storage.read_small(parse_name("d/file"), 5)
    assert (bytes(found.data), found.mtime_ns, found.executable) == (b"bytes", -7_000_000_000, True)
    assert found.root == digest_of(b"bytes")
    empty = storage.read_small(parse_name("empty"), 0)
    assert (bytes(empty.data), empty.executable, empty.root) == (b"", False, EMPTY_DIGEST)
    put(storage, "d/file", b"others")
    assert bytes(storage.read_small(parse_name("d/file"), SMALL_BYTES).data) == b"others"


def test_what_is_no_small_file_is_not_read(storage: Storage) -> None:
    put(storage, "d/file", b"bytes")
    put(storage, "large", bytes(SMALL_BYTES + 1))
    for name, most_bytes, code in (
        ("nothing", 100, ErrorCode.FILE_NOT_FOUND),
        ("d/file/below", 100, ErrorCode.FILE_NOT_FOUND),
        ("nothing/below", 100, ErrorCode.FILE_NOT_FOUND),
        ("d", 100, ErrorCode.DENIED),
        ("d/file", 4, ErrorCode.TOO_LARGE),
        ("large", 10**9, ErrorCode.TOO_LARGE),
    ):
        with refused(code):
            storage.read_small(parse_name(name), most_bytes)

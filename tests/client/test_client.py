"""The library against a real server, without faults."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import twinport
from blake3 import blake3
from twinport import errors
from twinport.client import Client
from twinport.download_feed import DownloadFeed, Wanted
from twinport.entries import RemoteEntry
from twinport.partials import partial_name
from twinport.report import SilentObserver, TransferReport
from twinport_protocol.segments import MIN_SEGMENT_BYTES, Layout

from tests.client.conftest import Connect
from tests.client.servers import ServerProcess

MEBI = 1024 * 1024

SMALL = 256 * 1024
SIZES = [0, 1, 4096, SMALL, SMALL + 1, MIN_SEGMENT_BYTES, MIN_SEGMENT_BYTES + 1, 3 * MIN_SEGMENT_BYTES + 12345]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back_as_it_went(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path, size: int
) -> None:
    path = make_file("sent.bin", size)
    os.utime(path, ns=(5, 1_600_000_000_123_456_789))
    path.chmod(0o750)
    report = client.put(path, prefix)
    assert (report.files_done, report.bytes_moved, report.bytes_kept) == (1, size, 0)

    name = f"{prefix}/sent.bin"
    entry = client.stat(name)
    assert (entry.kind, entry.size, entry.mtime_ns, entry.executable) == ("f", size, 1_600_000_000_123_456_789, True)

    report = client.get(name, tmp_path / "back")
    back = tmp_path / "back" / "sent.bin"
    assert back.read_bytes() == path.read_bytes()
    assert back.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert back.stat().st_mode & stat.S_IXUSR
    assert os.listdir(tmp_path / "back") == ["sent.bin"]  # no partial is left
    assert (report.files_done, report.bytes_moved) == (1, size)


@pytest.mark.parametrize("size", [100, MIN_SEGMENT_BYTES + 1])
def test_the_manifest_and_the_root_are_those_of_the_local_file(
    client: Client, make_file: Callable[..., Path], prefix: str, size: int
) -> None:
    path = make_file("file", size)
    client.put(path, prefix)
    manifest = client.manifest(f"{prefix}/file")
    data = path.read_bytes()
    layout = Layout.of(size)
    assert manifest.digests == b"".join(
        blake3(data[layout.start(segment) :][: layout.length(segment)]).digest() for segment in range(layout.count)
    )
    assert client.verify(f"{prefix}/file", path) == manifest.root
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(errors.IntegrityError, match="differ in their contents"):
        client.verify(f"{prefix}/file", path)
    path.write_bytes(data + b"x")
    with pytest.raises(errors.IntegrityError, match="differ in their sizes"):
        client.verify(f"{prefix}/file", path)


def make_tree(root: Path) -> dict[str, bytes]:
    """A tree with names that need care; its files by their paths."""
    files = {
        "a": b"",
        "a b/c  d.txt": b"spaces",
        "a%20b=c": b"percent and equals",
        "a.d/x": b"sorts between a and a/",
        "deep/er/and/deeper/file": b"deep",
        "-rf": b"a dash",
        "ÄÖ/ß😀": b"umlauts",
        "OK": b"a reply",
        **{f"many/{number:03}": str(number).encode() * 7 for number in range(300)},
        "medium": os.urandom(400_000),
        "large": os.urandom(MIN_SEGMENT_BYTES + 100),
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "empty/below").mkdir(parents=True)
    return files


def read_tree(root: Path) -> dict[str, bytes]:
    """The files of a tree by their paths."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_tree_comes_back_as_it_went(client: Client, prefix: str, tmp_path: Path) -> None:
    files = make_tree(tmp_path / "tree")
    report = client.put(tmp_path / "tree", prefix, recursive=True)
    assert (report.files_done, report.directories_done, report.failures) == (len(files), 1, [])

    listed = [entry.key for entry in client.list(prefix, recursive=True)]
    assert listed == sorted(listed, key=str.encode)
    assert {key for key in listed if not key.endswith("/")} == {f"{prefix}/tree/{name}" for name in files}
    assert f"{prefix}/tree/empty/below/" in listed

    report = client.get(f"{prefix}/tree", tmp_path / "back", recursive=True)
    assert report.files_done == len(files)
    assert read_tree(tmp_path / "back" / "tree") == files
    assert (tmp_path / "back/tree/empty/below").is_dir()


def test_a_second_run_moves_only_what_changed(client: Client, prefix: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    files = make_tree(tree)
    client.put(tree, prefix, recursive=True)
    client.get(f"{prefix}/tree", tmp_path / "copy", recursive=True, exact=True)

    (tree / "many/007").write_bytes(b"changed")
    before = (tree / "many/008").stat()
    (tree / "many/008").write_bytes(b"9" * before.st_size)  # same size, same time, other bytes
    files["many/008"] = b"9" * before.st_size
    os.utime(tree / "many/008", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tree / "new").write_bytes(b"new")
    report = client.put(tree, prefix, recursive=True)
    assert (report.files_done, report.files_kept) == (3, len(files) - 2)

    report = client.get(f"{prefix}/tree", tmp_path / "copy", recursive=True, exact=True)
    assert (report.files_done, report.files_kept) == (3, len(files) - 2)
    assert read_tree(tmp_path / "copy") == read_tree(tree)


def test_a_repeated_get_replaces_what_differs_though_size_and_time_agree(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path
) -> None:
    path = make_file("file", 5000)
    client.put(path, prefix)
    client.get(f"{prefix}/file", tmp_path / "copy")
    copy = tmp_path / "copy/file"
    found = copy.stat()
    copy.write_bytes(b"x" * 5000)
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert client.get(f"{prefix}/file", tmp_path / "copy").files_done == 1
    assert copy.read_bytes() == path.read_bytes()


def test_the_content_of_dot_goes_without_a_directory_of_its_own(
    client: Client, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path / "tree/a b")
    client.put(".", prefix, recursive=True)
    assert [entry.name for entry in client.list(prefix)] == [f"{prefix}/c  d.txt"]


def test_links_are_skipped_with_a_note_and_followed_on_demand_inside_the_tree(
    client: Client, prefix: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/file").write_bytes(b"inside")
    (tmp_path / "outside").write_bytes(b"outside")
    (tree / "in").symlink_to("sub/file")
    (tree / "out").symlink_to("../outside")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "sub/loop").symlink_to("..")
    os.mkfifo(tree / "pipe")

    report = client.put(tree, prefix, recursive=True)
    assert report.files_done == 1
    assert len(report.notes) == 5
    assert sum("symbolic link" in note for note in report.notes) == 4

    report = client.put(tree, prefix + "-f", recursive=True, follow=True)
    names = [entry.name for entry in client.list(prefix + "-f", recursive=True)]
    assert names == [f"{prefix}-f/tree/in", f"{prefix}-f/tree/sub/file"]
    assert sum("does not stay inside" in note for note in report.notes) == 3


def test_names_that_no_server_takes_are_reported_and_the_rest_goes_on(
    client: Client, prefix: str, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "good").write_bytes(b"good")
    with open(os.fsencode(tree) + b"/bad\xff", "wb"):
        pass
    os.mkdir(os.fsencode(tree) + b"/empty\xfe")
    (tree / "new\nline").write_bytes(b"")
    with pytest.raises(errors.PartialFailureError) as caught:
        client.put(tree, prefix, recursive=True)
    report: TransferReport = caught.value.report
    assert report.files_done == 1
    messages = sorted(failure.error.message for failure in report.failures)
    assert "not valid UTF-8" in messages[0]
    assert "\\udcff" in messages[0]
    assert "\\udcfe" in messages[1]
    assert "new\\nline" in messages[2]
    assert caught.value.exit_code == 1


def test_one_failed_file_of_several_leaves_the_rest_done(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path
) -> None:
    good = make_file("good", 10)
    with pytest.raises(errors.PartialFailureError, match="1 of 2 failed"):
        client.put([good, tmp_path / "missing"], prefix)
    with pytest.raises(errors.NotFoundError, match="no such file here"):
        client.put(tmp_path / "missing", prefix)
    with pytest.raises(errors.UsageError, match="it is a directory"):
        client.put(tmp_path, prefix)
    with pytest.raises(errors.PartialFailureError) as caught:
        client.get([f"{prefix}/good", f"{prefix}/missing"], tmp_path / "back")
    assert caught.value.exit_code == 3
    assert (tmp_path / "back/good").read_bytes() == good.read_bytes()
    with pytest.raises(errors.NotFoundError):
        client.get(f"{prefix}/missing", tmp_path / "back")
    assert os.listdir(tmp_path / "back") == ["good"]


def test_an_unreadable_file_fails_alone(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file("tree/good", 10)
    bad = make_file("tree/bad", 10)
    real_open = os.open

    def deny(path: str, *rest: int, **more: int) -> int:
        if str(path) == str(bad):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", deny)
    report = client.put(tmp_path / "tree", prefix, recursive=True, check=False)
    assert report.files_done == 1
    assert [type(failure.error) for failure in report.failures] == [errors.DeniedError]


@pytest.mark.parametrize(("partial_bytes", "file_bytes"), [(10, 20), (500_000, 400_000), (9 * MEBI, 30 * MEBI)])
def test_a_remote_name_that_a_partial_may_have_is_refused_and_its_neighbour_has_its_own_bytes(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path, partial_bytes: int, file_bytes: int
) -> None:
    path = make_file("x", file_bytes, seed=1)
    client.put(path, prefix)
    client.put(make_file(partial_name("x"), partial_bytes, seed=2), prefix)
    report = client.get(prefix, tmp_path / "back", recursive=True, check=False)
    assert [(failure.name, failure.error.code) for failure in report.failures] == [
        (f"{prefix}/{partial_name('x')}", "InvalidName")
    ]
    assert {path.name: path.read_bytes() for path in (tmp_path / "back" / prefix).iterdir()} == {"x": path.read_bytes()}
    with pytest.raises(errors.DeniedError, match="kept for unfinished downloads"):
        client.get(f"{prefix}/{partial_name('x')}", tmp_path / "back")


def test_two_names_for_one_target_are_refused(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path
) -> None:
    path = make_file("same", 10)
    client.put(path, f"{prefix}/one")
    client.put(path, f"{prefix}/two")
    report = client.get([f"{prefix}/one/same", f"{prefix}/two/same"], tmp_path / "back", check=False)
    assert report.files_done == 1
    assert [type(failure.error) for failure in report.failures] == [errors.UsageError]


def test_replacing_can_be_refused(client: Client, make_file: Callable[..., Path], prefix: str) -> None:
    for size in (10, MIN_SEGMENT_BYTES + 1):
        path = make_file(f"file{size}", size)
        client.put(path, prefix, if_absent=True)
        with pytest.raises(errors.ConflictError, match="the name is taken") as caught:
            client.put(path, prefix, if_absent=True)
        assert caught.value.code == "Exists"


def test_a_listing_of_several_pages_lists_everything_once(client: Client, prefix: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(2300):
        path = tree / f"{number % 7}/{number:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    client.put(tree, prefix, recursive=True)
    names = [entry.name for entry in client.list(prefix, recursive=True)]
    assert len(names) == 2300
    assert names == sorted(set(names))
    assert [entry.key for entry in client.list(f"{prefix}/tree")] == [f"{prefix}/tree/{number}/" for number in range(7)]


def test_names_can_be_moved_made_and_removed(client: Client, make_file: Callable[..., Path], prefix: str) -> None:
    client.put(make_file("file", 10), prefix)
    client.mkdir(f"{prefix}/made/below")
    client.mkdir(f"{prefix}/made/below")
    assert client.stat(f"{prefix}/made").is_directory
    client.move(f"{prefix}/file", f"{prefix}/other/name")
    with pytest.raises(errors.NotFoundError, match="cannot move"):
        client.move(f"{prefix}/file", f"{prefix}/other/name")
    with pytest.raises(errors.ConflictError) as caught:
        client.delete(f"{prefix}/other")
    assert caught.value.code == "NotEmpty"
    with pytest.raises(errors.ConflictError) as caught:
        client.delete(f"{prefix}/other/name", if_match=bytes(32))
    assert caught.value.code == "Changed"
    assert client.delete(prefix, recursive=True) == 5  # the file, and other, made, below, and the prefix
    with pytest.raises(errors.NotFoundError):
        client.stat(prefix)
    with pytest.raises(errors.NotFoundError):
        client.delete(prefix, recursive=True)
    with pytest.raises(errors.NotFoundError):
        list(client.list(prefix))


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/passwd", "a//b", "a\nb", "x" * 901, ".twinport/x"])
def test_names_that_break_the_rules_are_a_usage_mistake(client: Client, name: str) -> None:
    with pytest.raises(errors.UsageError):
        client.stat(name)


def test_many_files_are_removed_at_once(client: Client, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(300):
        (tmp_path / "tree" / str(number)).write_bytes(b"x")
    client.put(tmp_path / "tree", prefix, recursive=True)
    names = [f"{prefix}/tree/{number}" for number in range(301)]
    assert client.delete_files(names) == 300  # the last never was there
    assert client.delete_files(names) == 0
    with pytest.raises(errors.UsageError):
        client.delete_files(["../x"])


def test_an_upload_that_was_interrupted_can_be_given_up(
    own_server: ServerProcess, connect: Connect, make_file: Callable[..., Path]
) -> None:
    client = connect(own_server)
    drawn: list[str] = []
    draw = client.new_upload_id

    def keep() -> str:
        drawn.append(draw())
        return drawn[-1]

    class Interrupting(SilentObserver):
        def progress(self, done_bytes: int, known_bytes: int) -> None:
            if done_bytes:
                raise KeyboardInterrupt

    client.new_upload_id = keep
    with pytest.raises(KeyboardInterrupt):
        client.put(make_file("file", 16 * MIN_SEGMENT_BYTES), progress=Interrupting())
    client.abandon(drawn)
    assert (client.quota().open_uploads, client.quota().reserved_bytes) == (0, 0)
    client.abandon(drawn)  # harmless


def test_an_observer_may_watch_the_connections(client: Client, make_file: Callable[..., Path], prefix: str) -> None:
    seen: list[tuple[str, bool]] = []

    class Watching(SilentObserver):
        def channel_opens(self, descriptor: int) -> None:
            seen.append(("opens", stat.S_ISSOCK(os.fstat(descriptor).st_mode)))

        def channel_closes(self, descriptor: int) -> None:
            seen.append(("closes", stat.S_ISSOCK(os.fstat(descriptor).st_mode)))

    client.put(make_file("file", 10), prefix, progress=Watching())
    assert seen == [("opens", True), ("closes", True)]


def test_the_limits_are_those_that_the_server_announced(client: Client) -> None:
    assert client.limits.channels >= 1
    assert client.limits.max_file == 2**63 - 1


def test_a_closed_client_says_so(shared_server: ServerProcess) -> None:
    with twinport.connect("127.0.0.1", shared_server.port) as client:
        assert client.ping() < 5
    client.close()
    with pytest.raises(errors.UsageError, match="closed"):
        client.stat("x")


def test_nobody_there_is_a_network_error() -> None:
    with pytest.raises(errors.NetworkError, match=r"no connection to 127\.0\.0\.1:1: .*is twinportd running there"):
        twinport.connect("127.0.0.1", 1)


def test_two_paths_for_one_name_are_refused(client: Client, make_file: Callable[..., Path], prefix: str) -> None:
    paths = [make_file("one/same", 10), make_file("two/same", 20)]
    report = client.put(paths, prefix, check=False)
    assert report.files_done == 1
    assert [type(failure.error) for failure in report.failures] == [errors.UsageError]
    assert client.stat(f"{prefix}/same").size == 10


def test_names_that_differ_in_case_alone_do_not_replace_each_other_where_case_is_nothing() -> None:
    entries = [RemoteEntry(name, "f", 1, 0) for name in ("A.txt", "a.txt", "b.txt")]
    for case_blind, targets in ((True, ["A.txt", "b.txt"]), (False, ["A.txt", "a.txt", "b.txt"])):
        feed = DownloadFeed(
            [""], ".", recursive=True, exact=False, listing=lambda prefix, deep: iter(entries), case_blind=case_blind
        )
        assert [item.target for item in feed.items() if isinstance(item, Wanted)] == targets


@pytest.mark.parametrize("recursive", [False, True])
def test_exact_names_the_copy_and_may_be_a_link_to_a_directory(
    client: Client, make_file: Callable[..., Path], prefix: str, tmp_path: Path, recursive: bool
) -> None:
    make_file("tree/file", 10)
    client.put(tmp_path / "tree", prefix, recursive=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    if recursive:
        client.get(f"{prefix}/tree", tmp_path / "link", recursive=True, exact=True)
        assert (tmp_path / "real/file").exists()
    else:
        client.get(f"{prefix}/tree/file", tmp_path / "link/name", exact=True)
        assert (tmp_path / "real/name").exists()
    with pytest.raises(errors.UsageError, match="several names need a directory"):
        client.get(["a", "b"], tmp_path, exact=True)

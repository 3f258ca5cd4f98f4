"""The library against a real server whose line stalls, breaks and comes back; nothing may be lost, doubled or sent in
vain."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from twinport import errors
from twinport.addresses import Address
from twinport.client import Client
from twinport.engine import Policy
from twinport.partials import partial_name
from twinport.report import TransferReport
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.client.conftest import Connect
from tests.client.servers import Passage, Proxy, ServerProcess

MakeFile = Callable[..., Path]
MakeProxy = Callable[..., Proxy]
LARGE = 6 * MIN_SEGMENT_BYTES + 1000
MEBI = 1024 * 1024
ONE_PERCENT = 1.01
pytestmark = pytest.mark.usefixtures("several_channels")
# A second: the server must not seem silent, on a busy machine either, before the line is.
GIVES_UP_SOON = {"silent_seconds": 1.0, "patience_seconds": 0.5}


def cut_after(limit_bytes: int, direction: str) -> Callable[[Passage, str, bytes], bytes | None]:
    """A rule: every channel breaks after so many bytes."""

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        moved = passage.up_bytes if direction == "up" else passage.down_bytes
        if passage.kind == "channel" and going == direction and moved + len(data) > limit_bytes:
            passage.cut()
            return None
        return data

    return rule


class Once:
    """True the first time, then False, whatever thread asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.happened = False

    def __call__(self) -> bool:
        with self._lock:
            first, self.happened = not self.happened, True
            return first


def test_an_upload_whose_channels_keep_breaking_arrives_whole(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    proxy = make_proxy(shared_server, cut_after(5 * MEBI, "up"))
    client = connect(proxy, policy=hasty)
    report = client.put(path, prefix)
    assert report.files_done == 1
    assert client.verify(f"{prefix}/file", path)
    assert len([passage for passage in proxy.passages if passage.kind == "channel"]) > 8


def test_a_download_whose_channels_keep_breaking_arrives_whole_and_moves_little_twice(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    client.put(path, prefix)
    proxy = make_proxy(shared_server, cut_after(5 * MEBI, "down"))
    connect(proxy, policy=hasty).get(f"{prefix}/file", tmp_path / "back")
    assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    # What was received is kept over a lost channel; only what the break left unread in buffers comes twice.
    breaks = sum(passage.kind == "channel" for passage in proxy.passages)
    assert breaks >= 10
    assert proxy.moved_bytes("down") < LARGE + breaks * MEBI // 2


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_lost_control_connection_is_regained(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
    direction: str,
) -> None:
    path = make_file("file", LARGE)
    if direction == "down":
        client.put(path, prefix)
    half_way = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        moved = proxy.moved_bytes(direction)
        if passage.kind == "channel" and moved > LARGE // 2 and half_way():
            next(other for other in proxy.passages if other.kind == "control").cut()
        return data

    proxy = make_proxy(shared_server, rule)
    through = connect(proxy, policy=hasty)
    if direction == "up":
        through.put(path, prefix)
        assert client.verify(f"{prefix}/file", path)
    else:
        through.get(f"{prefix}/file", tmp_path / "back")
        assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    assert half_way.happened
    assert sum(passage.kind == "control" for passage in proxy.passages) >= 2


def test_many_small_files_survive_the_loss_of_everything_half_way(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(500):
        (tree / str(number)).write_bytes(str(number).encode() * 500)
    broken = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes("up") + proxy.moved_bytes("down") > 300_000 and broken():
            proxy.cut_all()
            return None
        return data

    proxy = make_proxy(shared_server, rule)
    through = connect(proxy, policy=hasty)
    report = through.put(tree, prefix, recursive=True)
    assert broken.happened
    assert report.files_done == 500
    broken.happened = False
    for passage in list(proxy.passages):
        passage.up_bytes = passage.down_bytes = 0
    report = through.get(f"{prefix}/tree", tmp_path / "back", recursive=True, exact=True)
    assert broken.happened
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in tree.iterdir()
    }


def test_a_stalled_channel_is_given_up_while_three_go_on(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        stalls = passage.kind == "channel" and passage.number == 0 and passage.up_bytes > MEBI
        return None if stalls else data

    proxy = make_proxy(shared_server, rule)
    client = connect(proxy, policy=hasty, silent_seconds=0.5)
    assert client.put(path, prefix).files_done == 1
    assert client.verify(f"{prefix}/file", path)
    assert any(passage.stalled for passage in proxy.passages)


def test_a_stalled_download_channel_is_given_up(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    client.put(path, prefix)

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        stalls = passage.kind == "channel" and passage.number == 0 and passage.down_bytes > MEBI
        return None if stalls else data

    through = connect(make_proxy(shared_server, rule), policy=hasty, silent_seconds=0.5)
    through.get(f"{prefix}/file", tmp_path / "back")
    assert (tmp_path / "back/file").read_bytes() == path.read_bytes()


def test_a_commit_whose_answer_is_lost_is_repeated_and_publishes_once(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", 2 * MIN_SEGMENT_BYTES)
    commits: list[bytes] = []
    answer_lost = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "control" and going == "up":
            commits.extend(line for line in data.split(b"\n") if b" COMMIT " in line)
        if passage.kind == "control" and going == "down" and b" DONE " in data and commits and answer_lost():
            passage.cut()
            return None
        return data

    client = connect(make_proxy(shared_server, rule), policy=hasty)
    report = client.put(path, prefix)
    assert answer_lost.happened
    assert report.files_done == 1
    assert len(commits) == 2
    assert commits[0].split(b" ", 1)[1] == commits[1].split(b" ", 1)[1]  # the same upload, generation and root
    assert client.verify(f"{prefix}/file", path)


def test_a_small_file_whose_acknowledgement_is_lost_is_asked_for_by_the_same_id(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", 1000)
    asked: list[bytes] = []
    bundle = bytearray()
    lost = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "control" and going == "up":
            asked.extend(line for line in data.split(b"\n") if b" UPLOAD " in line)
        if passage.kind == "channel" and going == "up":
            bundle.extend(data)
        if passage.kind == "channel" and going == "down" and lost():
            passage.cut()
            return None
        return data

    client = connect(make_proxy(shared_server, rule), policy=hasty)
    assert client.put(path, prefix).files_done == 1
    (again,) = [re.findall(rb"upload=([0-9a-f]{32})", line) for line in asked if b"/file " in line]
    assert bytes.fromhex(again[0].decode()) in bundle
    assert [entry.name for entry in client.list(prefix)] == [f"{prefix}/file"]
    assert client.verify(f"{prefix}/file", path)


@pytest.mark.parametrize("kind", ["file", "directory", "nothing"])
def test_a_move_whose_answer_is_lost_is_told_from_one_that_never_was(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    kind: str,
) -> None:
    client.put(make_file("file", 1000), f"{prefix}/from")
    client.put(make_file("other", 2000), f"{prefix}/taken")
    asked, lost = Once(), Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "control" and going == "up" and b" MOVE " in data:
            asked()
        if passage.kind == "control" and going == "down" and asked.happened and lost():
            passage.cut()
            return None
        return data

    through = connect(make_proxy(shared_server, rule))
    if kind == "file":
        through.move(f"{prefix}/from/file", f"{prefix}/taken/other")
        assert client.stat(f"{prefix}/taken/other").size == 1000
    elif kind == "directory":
        through.move(f"{prefix}/from", f"{prefix}/to")
        assert client.stat(f"{prefix}/to/file").size == 1000
    else:
        with pytest.raises(errors.NotFoundError, match="cannot move"):
            through.move(f"{prefix}/from/missing", f"{prefix}/taken/other")
        assert client.stat(f"{prefix}/taken/other").size == 2000
    assert lost.happened


@pytest.mark.parametrize("size", [1000, LARGE])
def test_a_target_that_turns_read_only_fails_the_file_and_ends_the_transfer(
    client: Client,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    client.put(make_file("file", size), prefix)
    (tmp_path / "back").mkdir()
    reports: list[TransferReport] = []

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def unlink(*rest: object, **more: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "unlink", unlink)
        fetching = threading.Thread(
            target=lambda: reports.append(client.get(f"{prefix}/file", tmp_path / "back", check=False)), daemon=True
        )
        fetching.start()
        fetching.join(60)
        assert not fetching.is_alive(), "it never ends"
    ((failure,),) = (report.failures for report in reports)
    assert "cannot write" in failure.error.message
    assert "Input/output error" in failure.error.message
    assert not (tmp_path / "back/file").exists()
    # The disk is well again: what is there is verified, and the rest is fetched.
    client.get(f"{prefix}/file", tmp_path / "back")
    assert os.listdir(tmp_path / "back") == ["file"]


def test_an_interrupted_upload_goes_on_where_it_stopped(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    limit = 3 * MIN_SEGMENT_BYTES

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes("up") > limit:
            return None
        return data

    proxy = make_proxy(shared_server, rule)
    with pytest.raises(errors.NetworkError):
        connect(proxy, policy=hasty, **GIVES_UP_SOON).put(path, prefix)

    second = make_proxy(shared_server)
    report = connect(second, policy=hasty).put(path, prefix)
    assert report.files_done == 1
    assert report.bytes_kept > limit - 8 * MEBI
    assert second.moved_bytes("up") <= (LARGE - report.bytes_kept) * ONE_PERCENT + 4096
    assert connect(shared_server).verify(f"{prefix}/file", path)


def test_an_interrupted_upload_of_other_bytes_is_not_continued(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    """Same name, same size, another content: the server's segments and prefixes must be refused by their digests."""
    path = make_file("file", LARGE)

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        return None if passage.kind == "channel" and proxy.moved_bytes("up") > 2 * MIN_SEGMENT_BYTES else data

    proxy = make_proxy(shared_server, rule)
    with pytest.raises(errors.NetworkError):
        connect(proxy, policy=hasty, **GIVES_UP_SOON).put(path, prefix)
    make_file("file", LARGE, seed=2)
    client = connect(shared_server)
    report = client.put(path, prefix)
    assert report.files_done == 1
    assert client.verify(f"{prefix}/file", path)


def test_an_interrupted_download_goes_on_where_it_stopped(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    client.put(path, prefix)
    limit = 3 * MIN_SEGMENT_BYTES

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        return None if passage.kind == "channel" and proxy.moved_bytes("down") > limit else data

    proxy = make_proxy(shared_server, rule)
    with pytest.raises(errors.NetworkError):
        connect(proxy, policy=hasty, **GIVES_UP_SOON).get(f"{prefix}/file", tmp_path / "back")
    assert os.listdir(tmp_path / "back") == [partial_name("file")]

    second = make_proxy(shared_server)
    report = connect(second, policy=hasty).get(f"{prefix}/file", tmp_path / "back")
    assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    assert report.bytes_kept > limit - 5 * MEBI  # each of four channels loses less than a claim of 1 MiB
    assert second.moved_bytes("down") <= (LARGE - report.bytes_kept) * ONE_PERCENT + 4096
    assert os.listdir(tmp_path / "back") == ["file"]


@pytest.mark.parametrize("damage", ["bytes", "claims", "trailer", "short", "empty", "foreign"])
def test_a_damaged_partial_costs_time_and_nothing_else(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
    damage: str,
) -> None:
    size = 3 * MIN_SEGMENT_BYTES
    path = make_file("file", size)
    client.put(path, prefix)

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        return None if passage.kind == "channel" and proxy.moved_bytes("down") > 2 * MIN_SEGMENT_BYTES else data

    proxy = make_proxy(shared_server, rule)
    with pytest.raises(errors.NetworkError):
        connect(proxy, policy=hasty, **GIVES_UP_SOON).get(f"{prefix}/file", tmp_path / "back")
    partial = tmp_path / "back" / partial_name("file")
    with partial.open("r+b") as file:
        if damage == "bytes":
            for at in range(0, size, MEBI // 2):
                file.seek(at)
                file.write(b"damage")
        elif damage == "claims":
            file.seek(size + 48)
            file.write(b"\xff" * 24)
        elif damage == "trailer":
            file.seek(size)
            file.write(b"\xff" * 20)
        elif damage == "short":
            file.truncate(size // 2)
        elif damage == "empty":
            file.truncate(0)
        else:
            file.seek(0)
            file.write(os.urandom(size + 1000))
    client.get(f"{prefix}/file", tmp_path / "back")
    assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    assert os.listdir(tmp_path / "back") == ["file"]


def test_a_download_whose_source_changes_starts_anew(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    client.put(path, prefix)
    newer = make_file("newer/file", LARGE - 5000, seed=3)
    replaced = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes("down") > LARGE // 3 and replaced():
            threading.Thread(target=replace).start()
        return data

    done = threading.Event()

    def replace() -> None:
        client.put(newer, prefix)
        proxy.cut_all()
        done.set()

    proxy = make_proxy(shared_server, rule)
    connect(proxy, policy=hasty).get(f"{prefix}/file", tmp_path / "back")
    assert done.wait(60)
    got = (tmp_path / "back/file").read_bytes()
    assert got in (path.read_bytes(), newer.read_bytes())  # one version or the other, never a mixture
    client.get(f"{prefix}/file", tmp_path / "back")
    assert (tmp_path / "back/file").read_bytes() == newer.read_bytes()


def test_a_file_that_changes_while_it_is_sent_is_started_anew(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", LARGE)
    changed = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes("up") > 2 * MIN_SEGMENT_BYTES and changed():
            with path.open("r+b") as file:
                file.write(b"changed in the middle of it")
                file.truncate(LARGE - 77)
        return data

    proxy = make_proxy(shared_server, rule)
    client = connect(proxy, policy=hasty)
    report = client.put(path, prefix)
    assert changed.happened
    assert report.files_done == 1
    assert client.stat(f"{prefix}/file").size == LARGE - 77
    assert client.verify(f"{prefix}/file", path)


def test_a_file_that_never_rests_is_reported(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    path = make_file("file", 2 * MIN_SEGMENT_BYTES)
    times = iter(range(10**9))

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and going == "up":
            os.utime(path, ns=(0, next(times)))
        return data

    client = connect(make_proxy(shared_server, rule), policy=hasty)
    with pytest.raises(errors.SourceError, match="it changed while it was sent, 3 times") as caught:
        client.put(path, prefix)
    assert caught.value.code == "SourceChanged"
    with pytest.raises(errors.NotFoundError):
        client.stat(f"{prefix}/file")


def test_two_clients_that_resume_one_upload_do_not_mix(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    """The second takes over; the first is told so and stops."""
    path = make_file("file", LARGE)
    second_done = threading.Event()
    taken = Once()
    outcome: list[int] = []

    def take_over() -> None:
        outcome.append(connect(shared_server).put(path, prefix).files_done)
        second_done.set()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes("up") > 2 * MIN_SEGMENT_BYTES:
            if taken():
                threading.Thread(target=take_over).start()
            proxy.lock.release()
            second_done.wait(60)
            proxy.lock.acquire()
        return data

    proxy = make_proxy(shared_server, rule)
    first = connect(proxy, policy=hasty)
    with pytest.raises(errors.ConflictError) as caught:
        first.put(path, prefix)
    assert caught.value.code in ("Fenced", "UploadClosed")
    assert outcome == [1]
    assert connect(shared_server).verify(f"{prefix}/file", path)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_server_that_restarts_in_the_middle_is_waited_for(
    own_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    tmp_path: Path,
    hasty: Policy,
    direction: str,
) -> None:
    path = make_file("file", LARGE)
    if direction == "down":
        connect(own_server).put(path)
    restarted = Once()
    up_again = threading.Event()

    def restart() -> None:
        own_server.stop(signal.SIGTERM if direction == "up" else signal.SIGKILL)
        own_server.start()
        up_again.set()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes(direction) > LARGE // 2 and restarted():
            threading.Thread(target=restart).start()
        return data

    proxy = make_proxy(own_server, rule)
    client = connect(proxy, policy=hasty, patience_seconds=60)
    if direction == "up":
        client.put(path)
    else:
        client.get("file", tmp_path / "back")
        assert (tmp_path / "back/file").read_bytes() == path.read_bytes()
    assert up_again.wait(60)
    assert connect(own_server).verify("file", path)


def test_patience_ends(
    own_server: ServerProcess, make_proxy: MakeProxy, connect: Connect, make_file: MakeFile, hasty: Policy
) -> None:
    path = make_file("file", LARGE)
    stopped = Once()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes("up") > MIN_SEGMENT_BYTES and stopped():
            own_server.stop(signal.SIGKILL)
        return data

    proxy = make_proxy(own_server, rule)
    client = connect(proxy, policy=hasty, patience_seconds=1)
    with pytest.raises(errors.NetworkError):
        client.put(path)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_killed_client_continues_with_nothing_of_its_own_but_the_partial(
    client: Client,
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    tmp_path: Path,
    direction: str,
) -> None:
    path = make_file("file", LARGE)
    words = ["put", str(path), "--to", prefix]
    if direction == "down":
        client.put(path, prefix)
        words = ["get", f"{prefix}/file", "-o", str(tmp_path / "copy")]
    killed = Once()
    process: list[subprocess.Popen[bytes]] = []

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes(direction) > LARGE * 5 // 6 and killed():
            process[0].kill()
        return data

    proxy = make_proxy(shared_server, rule)
    command = [sys.executable, "-c", "from twinport.cli import main; main()", "--host", proxy.host, "-q", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        process.append(running)
        assert running.wait(60) == -signal.SIGKILL
    second = make_proxy(shared_server)
    through = connect(second)
    if direction == "up":
        report = through.put(path, prefix)
        assert client.verify(f"{prefix}/file", path)
    else:
        report = through.get(f"{prefix}/file", tmp_path / "copy", exact=True)
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    # Up: all but pieces under way, and what the sockets on the way had taken. Down: all but what four channels had
    # asked for ahead, and had not claimed yet.
    assert report.bytes_kept > LARGE * 5 // 6 - 4 * (4 if direction == "up" else 6) * MEBI
    assert second.moved_bytes(direction) <= (LARGE - report.bytes_kept) * ONE_PERCENT + 8192


def test_a_slow_line_on_which_one_piece_takes_longer_than_the_patience_with_silence_goes_on(
    shared_server: ServerProcess,
    make_proxy: MakeProxy,
    connect: Connect,
    make_file: MakeFile,
    prefix: str,
    hasty: Policy,
) -> None:
    """The line takes bytes slowly, the acknowledgement comes long after: the queue that shrinks shows life."""
    path = make_file("file", MEBI)
    slow = threading.Event()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and going == "up" and passage.number == 0:
            proxy.lock.release()
            slow.wait(0.3)  # 64 KiB in 0.3 s, read from a small buffer, so that the rest waits at the client
            proxy.lock.acquire()
        return data

    proxy = make_proxy(shared_server, rule)
    client = connect(proxy, policy=hasty, silent_seconds=3.0, channels=1)
    assert client.put(path, prefix).files_done == 1
    assert client.verify(f"{prefix}/file", path)
    assert sum(passage.kind == "channel" for passage in proxy.passages) == 1


def test_a_data_port_that_is_gone_ends_patience_not_the_machine(
    shared_server: ServerProcess, connect: Connect, make_file: MakeFile, prefix: str, hasty: Policy
) -> None:
    """Channels that cannot connect are tried again with growing waits, not in a tight loop, and not for ever."""
    client = connect(shared_server, policy=hasty, patience_seconds=0.5)
    client._connected().channel_addresses = (Address("127.0.0.1", 1),)
    with pytest.raises(errors.NetworkError, match=r"nothing moved for \d+ s; run the same command again to go on"):
        client.put(make_file("file", 1000), prefix)

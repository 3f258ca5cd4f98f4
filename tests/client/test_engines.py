"""The engines, joined in memory with the real server's handlers, in lock step: what is sent, how often, in how many
flights."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twinport import errors
from twinport.download_engine import DownloadEngine
from twinport.download_lane import DownloadLane
from twinport.engine import EventKind, Policy
from twinport.flusher import Flusher
from twinport.sources import find_source
from twinport.target_tree import TargetTree
from twinport.upload_engine import UploadEngine
from twinport.upload_feed import UploadFeed
from twinport.upload_lane import UploadLane
from twinport_protocol.control import ControlServer, Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.names import parse_name
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.client.memory_pair import MemoryPair, MemoryServer, new_lock

MEBI = 1024 * 1024
MAX_FLIGHTS_OF_SMALL_FILES = 6
NO_WAITING = Policy(first_wait_seconds=0.0, longest_wait_seconds=0.0)


class Upload:
    """An upload engine with its pair."""

    def __init__(
        self, server: MemoryServer, policy: Policy = NO_WAITING, options: dict[str, str] | None = None, **more: Any
    ) -> None:
        ids = itertools.count(int.from_bytes(os.urandom(6), "big"))
        self.lock = new_lock()
        self.engine = UploadEngine(
            server.limits, policy, lambda: 0.0, lambda: f"{next(ids):032x}", UploadFeed.find_again, options
        )

        def make_lane() -> UploadLane:
            return UploadLane(self.engine, self.lock, server.limits, lambda: None, lambda: 0.0)

        self.pair = MemoryPair(server, self.engine, make_lane, **more)

    def add(self, path: Path, name: str | None = None) -> None:
        self.engine.add(find_source(str(path), name or path.name))

    def run(self) -> int:
        """Everything added, to the end."""
        self.engine.close_input()
        return self.pair.run()


class Download:
    """A download engine with its pair, into a directory."""

    def __init__(self, server: MemoryServer, to: Path, policy: Policy = NO_WAITING, **more: Any) -> None:
        self.lock = new_lock()
        self.engine = DownloadEngine(server.limits, policy, lambda: 0.0)
        self.tree = TargetTree(str(to))

        def on_done(outcomes: list[Any]) -> None:
            for job, error in outcomes:
                self.engine.published(job, error)

        self.flusher = Flusher(self.tree, on_done)

        def make_lane() -> DownloadLane:
            return DownloadLane(self.engine, self.lock, server.limits, lambda: None, self.tree, self.flusher)

        self.pair = MemoryPair(server, self.engine, make_lane, after_flight=self.flusher.flush, **more)

    def add(self, name: str) -> None:
        self.engine.add(name, name)

    def run(self) -> int:
        """Everything added, to the end."""
        self.engine.close_input()
        flights = self.pair.run()
        self.close()
        return flights

    def close(self) -> None:
        self.flusher.flush()
        self.tree.close()


def make_files(directory: Path, count: int, size: int = 4096) -> list[Path]:
    """So many files of random bytes."""
    directory.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        path = directory / f"{number:05}"
        path.write_bytes(random.Random(number).randbytes(size))
        paths.append(path)
    return paths


def test_the_flights_of_a_transfer_do_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    flights: dict[int, tuple[int, int]] = {}
    for count in (20, 2000):
        server = MemoryServer(Limits(window_commands=4096, window_bytes=4 * 1024 * 1024))
        paths = make_files(tmp_path / str(count), count)
        upload = Upload(server)
        for path in paths:
            upload.add(path)
        up = upload.run()
        assert upload.engine.report.files_done == count

        download = Download(server, tmp_path / f"back{count}")
        for path in paths:
            download.add(path.name)
        down = download.run()
        assert download.engine.report.files_done == count
        assert all((tmp_path / f"back{count}" / path.name).read_bytes() == path.read_bytes() for path in paths)
        flights[count] = (up, down)
    assert flights[2000] == flights[20]
    assert max(flights[2000]) <= MAX_FLIGHTS_OF_SMALL_FILES


def test_with_the_usual_window_flights_grow_with_windows_only(tmp_path: Path) -> None:
    server = MemoryServer()
    paths = make_files(tmp_path / "files", 2000)
    upload = Upload(server)
    for path in paths:
        upload.add(path)
    # 2,000 commands pass a window of 256 KiB in two; a channel holds 1,024 attachments.
    assert upload.run() <= MAX_FLIGHTS_OF_SMALL_FILES
    counts = Counter(command.verb for command in upload.pair.commands)
    assert counts == {Verb.UPLOAD: 2000}


def test_a_tiny_window_slows_but_does_not_stop(tmp_path: Path) -> None:
    limits = Limits(window_commands=2, window_bytes=8192, frames=2, credit=300_000, piece=64 * 1024, attachments=2)
    server = MemoryServer(limits)
    paths = [*make_files(tmp_path / "small", 20), *make_files(tmp_path / "large", 2, MIN_SEGMENT_BYTES + 5)]
    upload = Upload(server, channels=2)
    for index, path in enumerate(paths):
        upload.add(path, str(index))
    upload.run()
    assert upload.engine.report.files_done == 22
    download = Download(server, tmp_path / "back", channels=2)
    for index in range(22):
        download.add(str(index))
    download.run()
    for index, path in enumerate(paths):
        assert (tmp_path / "back" / str(index)).read_bytes() == path.read_bytes()


def test_small_files_and_a_large_one_share_the_channels(tmp_path: Path) -> None:
    server = MemoryServer()
    (large,) = make_files(tmp_path / "large", 1, 8 * MIN_SEGMENT_BYTES)
    small = make_files(tmp_path / "small", 200)
    upload = Upload(server, channels=1)
    upload.add(large, "large")
    for path in small:
        upload.add(path)
    order: list[str] = []

    def watch() -> None:
        order.extend(event.name for event in upload.engine.events if event.kind is EventKind.DONE)
        upload.engine.events.clear()

    upload.pair.after_flight = watch
    upload.run()
    assert len(order) == 201
    assert order.index("large") == 200  # nothing small had to wait for the large one to end


@settings(max_examples=30)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 4096, 300_000, MIN_SEGMENT_BYTES + 1]), min_size=1, max_size=5),
    losses=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["channel", "session"])), max_size=4),
    channels=st.integers(1, 3),
)
def test_any_losses_at_any_flight_leave_every_file_whole_both_ways(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], losses: list[tuple[int, str]], channels: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("losses")
    server = MemoryServer()
    files: dict[str, bytes] = {}
    upload = Upload(server, channels=channels)
    for index, size in enumerate(sizes):
        files[str(index)] = random.Random(index).randbytes(size)
        path = tmp_path / str(index)
        path.write_bytes(files[str(index)])
        upload.add(path)
    download = Download(server, tmp_path / "back", channels=channels)
    for name in files:
        download.add(name)
    for transfer in (upload, download):
        assert isinstance(transfer, (Upload, Download))
        transfer.engine.close_input()
        for flight, what in sorted(losses):
            transfer.pair.run(until=lambda at=flight, pair=transfer.pair: pair.flights >= at)  # type: ignore[misc]
            if what == "session":
                transfer.pair.lose_session()
            else:
                transfer.pair.lose_channel(flight % channels)
        transfer.pair.run()
        assert transfer.engine.report.failures == []
        assert transfer.engine.report.files_done == len(files)
    download.close()
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == files


def test_a_file_lost_with_its_acknowledgement_is_published_once(tmp_path: Path) -> None:
    server = MemoryServer()
    (path,) = make_files(tmp_path / "files", 1)
    upload = Upload(server, channels=1)
    upload.add(path)
    upload.engine.close_input()
    upload.pair.run(until=lambda: upload.pair.flights == 1)
    lane, session = upload.pair.channels[0]
    sent = upload.pair.send_frames(lane)
    upload.pair.answer_frames(session, sent)  # the server published; its answer is lost
    first = server.storage.stat(parse_name("00000"))
    upload.pair.lose_channel(0)
    upload.pair.run()
    assert upload.engine.report.files_done == 1
    assert server.storage.stat(parse_name("00000")) == first
    ids = {command.options["upload"] for command in upload.pair.commands if command.verb is Verb.UPLOAD}
    assert len(ids) == 1


class Interrupted:
    """A file of which earlier runs have sent a part, on a server whose small credit makes for many flights."""

    def __init__(self, directory: Path) -> None:
        self.server = MemoryServer(Limits(credit=2 * MEBI))
        (self.path,) = make_files(directory, 1, 6 * MIN_SEGMENT_BYTES)

    def run(self, flights: int) -> Upload:
        """One more run that ends without a word after so many flights."""
        upload = Upload(self.server, channels=1)
        upload.add(self.path)
        upload.pair.run(until=lambda: upload.pair.flights == flights)
        assert not any(command.verb is Verb.COMMIT for command in upload.pair.commands)
        self.end(upload)
        return upload

    @staticmethod
    def end(upload: Upload) -> None:
        """Close what is open."""
        for lane, session in upload.pair.channels:
            session.close()
            lane.lost()


@pytest.mark.parametrize("loss", range(1, 9))
def test_an_upload_that_goes_on_with_an_older_one_leaves_none_behind(tmp_path: Path, loss: int) -> None:
    interrupted = Interrupted(tmp_path / "files")
    interrupted.run(8)
    ledger = interrupted.server.desk.ledger
    assert len(ledger.open_uploads()) == 1
    os.utime(interrupted.path, ns=(7, 7))
    interrupted.path.chmod(0o755)

    second = Upload(interrupted.server, channels=1)
    second.add(interrupted.path)
    second.engine.close_input()
    second.pair.run(until=lambda: second.pair.flights == loss)
    second.pair.lose_session()
    second.pair.run()
    interrupted.end(second)
    assert second.engine.report.files_done == 1
    assert second.engine.report.bytes_kept > 0
    assert not ledger.open_uploads()
    # What the file is like now travels with the wish to go on.
    resumes = [command for command in second.pair.commands if "resume" in command.options]
    assert resumes
    assert all((command.options["mtime"], command.options["exec"]) == ("7", "1") for command in resumes)


def test_runs_that_end_in_the_middle_leave_one_upload_open(tmp_path: Path) -> None:
    interrupted = Interrupted(tmp_path / "files")
    for flights in (8, 9, 10, 5):
        run = interrupted.run(flights)
        assert len(interrupted.server.desk.ledger.open_uploads()) == 1
    assert run.engine.done_bytes > 10 * MEBI


def refuse_first(server: MemoryServer, verb: Verb, code: ErrorCode, times: int = 1) -> Callable[[], int]:
    """Make the server refuse a verb so many times; returns how to ask how often it did."""
    real = server.answer
    refused: list[Command] = []

    def answer(wire: ControlServer, command: Command) -> bytes:
        if command.verb is verb and len(refused) < times:
            refused.append(command)
            return wire.reply(Reply(command.id, ReplyKind.ERROR, code=code))
        return real(wire, command)

    server.answer = answer  # type: ignore[method-assign]
    return lambda: len(refused)


@pytest.mark.parametrize(
    ("verb", "code"),
    [
        (Verb.UPLOAD, ErrorCode.BUSY),
        (Verb.UPLOAD, ErrorCode.TIMEOUT),
        (Verb.COMMIT, ErrorCode.BUSY),
        (Verb.COMMIT, ErrorCode.INCOMPLETE),
        (Verb.COMMIT, ErrorCode.OUTCOME_UNKNOWN),
        (Verb.COMMIT, ErrorCode.ROOT_MISMATCH),
    ],
)
def test_a_refusal_that_may_pass_is_tried_again(tmp_path: Path, verb: Verb, code: ErrorCode) -> None:
    server = MemoryServer()
    refused = refuse_first(server, verb, code, times=2)
    upload = Upload(server)
    for path in make_files(tmp_path / "files", 2, MIN_SEGMENT_BYTES + 1):
        upload.add(path)
    upload.run()
    assert refused() == 2
    assert upload.engine.report.failures == []
    assert upload.engine.report.files_done == 2


@pytest.mark.parametrize(
    ("verb", "code", "kind"),
    [
        (Verb.UPLOAD, ErrorCode.BUSY, errors.BusyError),
        (Verb.UPLOAD, ErrorCode.DISK_FULL, errors.SpaceError),
        (Verb.UPLOAD, ErrorCode.DENIED, errors.DeniedError),
        (Verb.UPLOAD, ErrorCode.UPLOAD_CLOSED, errors.ConflictError),
        (Verb.COMMIT, ErrorCode.CHANGED, errors.ConflictError),
        (Verb.COMMIT, ErrorCode.INCOMPLETE, errors.ConflictError),
        (Verb.COMMIT, ErrorCode.FENCED, errors.ConflictError),
        (Verb.COMMIT, ErrorCode.STORAGE_FAULT, errors.ServerError),
        (Verb.COMMIT, ErrorCode.ROOT_MISMATCH, errors.SourceError),
    ],
)
def test_a_refusal_that_stays_fails_the_file_alone(
    tmp_path: Path, verb: Verb, code: ErrorCode, kind: type[errors.TwinportError]
) -> None:
    server = MemoryServer()
    refuse_first(server, verb, code, times=10**6)
    upload = Upload(server)
    (path,) = make_files(tmp_path / "files", 1, MIN_SEGMENT_BYTES + 1)
    upload.add(path)
    upload.run()
    (failure,) = upload.engine.report.failures
    assert type(failure.error) is kind
    if verb is Verb.COMMIT:  # its room on the server is given back, unless it is somebody else's by now
        assert any(command.verb is Verb.ABORT for command in upload.pair.commands) is (code is not ErrorCode.FENCED)


def test_a_server_that_claims_to_hold_what_it_misses_gets_another_upload(tmp_path: Path) -> None:
    server = MemoryServer()
    refused = refuse_first(server, Verb.COMMIT, ErrorCode.INCOMPLETE, times=3)
    upload = Upload(server)
    (path,) = make_files(tmp_path / "files", 1, MIN_SEGMENT_BYTES + 1)
    upload.add(path)
    upload.run()
    assert refused() == 3
    assert upload.engine.report.files_done == 1
    ids = {command.options["upload"] for command in upload.pair.commands if command.verb is Verb.UPLOAD}
    assert len(ids) == 2


@pytest.mark.parametrize("code", [ErrorCode.BUSY, ErrorCode.TIMEOUT, ErrorCode.VERSION_GONE])
def test_a_download_refused_for_now_is_tried_again(tmp_path: Path, code: ErrorCode) -> None:
    server = MemoryServer()
    upload = Upload(server)
    for path in make_files(tmp_path / "files", 30):
        upload.add(path)
    upload.run()
    refused = refuse_first(server, Verb.DOWNLOAD, code, times=5)
    download = Download(server, tmp_path / "back")
    for number in range(30):
        download.add(f"{number:05}")
    download.run()
    assert refused() == 5
    assert download.engine.report.files_done == 30


@pytest.mark.parametrize("size", [4096, 300_000, 2 * MIN_SEGMENT_BYTES])
def test_tickets_that_expired_are_renewed_or_asked_for_again(tmp_path: Path, size: int) -> None:
    server = MemoryServer()
    upload = Upload(server, channels=1)
    (path,) = make_files(tmp_path / "files", 1, size)
    upload.add(path)
    upload.engine.close_input()
    upload.pair.run(until=lambda: any(command.verb is Verb.UPLOAD for command in upload.pair.commands))
    server.now += 4000
    upload.pair.run()
    assert upload.engine.report.files_done == 1
    assert any(command.verb is Verb.RENEW for command in upload.pair.commands) is (size > MIN_SEGMENT_BYTES)

    download = Download(server, tmp_path / "back", channels=1)
    download.add("00000")
    download.engine.close_input()
    download.pair.run(until=lambda: download.pair.flights == 1)
    server.now += 4000
    download.run()
    assert (tmp_path / "back/00000").read_bytes() == path.read_bytes()


class Damage:
    """Flips one bit in the middle of the next so many large deliveries."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, data: bytes) -> bytes:
        if len(data) < 2000 or not self.left:
            return data
        self.left -= 1
        middle = len(data) * 2 // 5  # in no header
        return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize("size", [4096, 300_000, 2 * MIN_SEGMENT_BYTES])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_bytes_damaged_on_the_way_are_sent_again_a_few_times(tmp_path: Path, size: int, direction: str) -> None:
    for times, succeeds in ((2, True), (10**6, False)):
        server = MemoryServer()
        name = f"{times}"
        (tmp_path / name).mkdir()
        (path,) = make_files(tmp_path / name / "files", 1, size)
        upload = Upload(server, channels=1)
        upload.add(path, name)
        if direction == "up":
            upload.pair.tamper_up = Damage(times)
            upload.run()
            report = upload.engine.report
        else:
            upload.run()
            download = Download(server, tmp_path / name / "back", channels=1)
            download.add(name)
            download.pair.tamper_down = Damage(times)
            download.run()
            report = download.engine.report
            assert (tmp_path / name / "back" / name).exists() is succeeds
        assert report.files_done == (1 if succeeds else 0)
        assert [failure.error.exit_code for failure in report.failures] == ([] if succeeds else [7])


def test_a_file_that_shrinks_or_vanishes_before_it_is_read_is_noticed(tmp_path: Path) -> None:
    server = MemoryServer()
    small, gone, large = make_files(tmp_path / "files", 3, 2 * MIN_SEGMENT_BYTES)
    small.write_bytes(b"x" * 100)
    upload = Upload(server, channels=1)
    for path in (small, gone, large):
        upload.add(path)
    small.write_bytes(b"y" * 50)
    gone.unlink()
    with large.open("r+b") as file:
        file.truncate(MIN_SEGMENT_BYTES + 7)
    upload.run()
    assert {failure.name: failure.error.exit_code for failure in upload.engine.report.failures} == {"00001": 3}
    assert server.storage.stat(parse_name("00000")).size == 50
    assert server.storage.stat(parse_name("00002")).size == MIN_SEGMENT_BYTES + 7


def test_giving_up_leaves_nothing_open(tmp_path: Path) -> None:
    server = MemoryServer()
    upload = Upload(server)
    for path in make_files(tmp_path / "files", 50, 300_000):
        upload.add(path)
    upload.run()
    download = Download(server, tmp_path / "back")
    for number in range(50):
        download.add(f"{number:05}")
    download.engine.close_input()
    download.pair.run(until=lambda: download.pair.flights == 2)
    for lane, _ in download.pair.channels:
        lane.lost()
    download.engine.fail_all(errors.InterruptError("stopped"))
    download.close()
    assert download.engine.is_over
    left = {path.name for path in (tmp_path / "back").iterdir()}
    assert all(name.startswith(".") or name.isdigit() for name in left)

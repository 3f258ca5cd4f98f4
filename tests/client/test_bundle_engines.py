"""The engines with a server that takes bundles, in memory and in lock step: one command for all small files, and no
file is lost, doubled or believed because of it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twinport import errors
from twinport.bundles import BUNDLE_FILES, MAX_TICKETS
from twinport.engine import EventKind, Order, OrderKind, Policy
from twinport.entries import RemoteEntry
from twinport.sources import SourceFile
from twinport_protocol.control import ControlServer, Limits
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.frames import AckStatus
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.names import parse_name
from twinport_protocol.segments import MIN_SEGMENT_BYTES
from twinport_protocol.tickets import Action, Ticket, TicketKeys, encode_ticket

from tests.client.memory_pair import MemoryServer
from tests.client.test_engines import (
    MAX_FLIGHTS_OF_SMALL_FILES,
    NO_WAITING,
    Damage,
    Download,
    Upload,
    make_files,
    refuse_first,
)

KIB = 1024
MEBI = 1024 * 1024
BUNDLES = Limits(bundle=MEBI)


def listed(server: MemoryServer, name: str) -> RemoteEntry:
    """What a listing says of a file."""
    entry = server.storage.stat(parse_name(name))
    return RemoteEntry(name, "f", entry.size, entry.mtime_ns, entry.executable, entry.root)


def fetch(
    server: MemoryServer, to: Path, names: Sequence[str], policy: Policy = NO_WAITING, channels: int = 4
) -> Download:
    """A download of listed files, not yet run."""
    download = Download(server, to, policy, channels=channels)
    for name in names:
        download.engine.add(name, name, listed(server, name))
    return download


def send(server: MemoryServer, paths: Sequence[Path], policy: Policy = NO_WAITING, channels: int = 4) -> Upload:
    """An upload, not yet run."""
    upload = Upload(server, policy, channels=channels)
    for path in paths:
        upload.add(path)
    return upload


def verbs(transfer: Upload | Download) -> dict[Verb, int]:
    """How often each command was sent."""
    return dict(Counter(command.verb for command in transfer.pair.commands))


def assert_all_done(transfer: Upload | Download, paths: Sequence[Path], back: Path | None = None) -> None:
    """Every file was moved once, and the figures are exact."""
    engine = transfer.engine
    assert engine.report.failures == []
    assert engine.report.files_done == len(paths)
    size = sum(path.stat().st_size for path in paths)
    assert (engine.done_bytes, engine.known_bytes, engine.report.bytes_moved) == (size, size, size)
    assert (engine.report.files_kept, engine.report.bytes_kept) == (0, 0)
    if back is not None:
        assert {path.name: path.read_bytes() for path in back.iterdir()} == {p.name: p.read_bytes() for p in paths}


def test_the_flights_of_a_transfer_do_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    flights: dict[int, tuple[int, int]] = {}
    for count in (20, 2000):
        server = MemoryServer(BUNDLES)
        paths = make_files(tmp_path / str(count), count)
        upload = send(server, paths)
        up = upload.run()
        assert_all_done(upload, paths)
        assert verbs(upload) == {Verb.BUNDLE: 1}
        back = tmp_path / f"back{count}"
        download = fetch(server, back, [path.name for path in paths])
        down = download.run()
        assert_all_done(download, paths, back)
        assert verbs(download) == {Verb.BUNDLE: 1}
        flights[count] = (up, down)
    assert flights[2000] == flights[20]
    assert max(flights[2000]) <= MAX_FLIGHTS_OF_SMALL_FILES


@pytest.mark.parametrize(
    ("limits", "alone"),
    [
        (BUNDLES, 3),
        (Limits(bundle=100 * KIB), 4),
        (Limits(bundle=100 * KIB, credit=1024 * KIB, frames=3, attachments=2), 4),
        (Limits(bundle=100 * KIB, credit=90 * KIB, frames=3, attachments=2), 7),
        (Limits(bundle=1), 7),
    ],
    ids=["usual", "small", "few frames", "tiny window", "none fits"],
)
def test_what_does_not_fit_a_bundle_goes_by_itself(tmp_path: Path, limits: Limits, alone: int) -> None:
    server = MemoryServer(limits)
    sizes = [0, 1, 4 * KIB, 256 * KIB, 256 * KIB + 1, 2 * MEBI, MIN_SEGMENT_BYTES + 1]
    paths = [path for size in sizes for path in make_files(tmp_path / str(size), 1, size)]
    for number, path in enumerate(paths):
        paths[number] = path.rename(tmp_path / f"n{number}")
    upload = send(server, paths, channels=2)
    upload.run()
    assert_all_done(upload, paths)
    asked = Counter(command.words[0] for command in upload.pair.commands if command.verb is Verb.UPLOAD)
    assert len(asked) == alone
    back = tmp_path / "back"
    download = fetch(server, back, [path.name for path in paths], channels=2)
    download.run()
    assert_all_done(download, paths, back)


def test_nothing_waits_for_the_end_of_something_else(tmp_path: Path) -> None:
    server = MemoryServer(Limits(bundle=10 * KIB, credit=2 * MEBI))
    (large,) = make_files(tmp_path / "large", 1, 8 * MIN_SEGMENT_BYTES)
    alone = make_files(tmp_path / "alone", 60, 20 * KIB)
    small = make_files(tmp_path / "small", 400, KIB)
    upload = Upload(server, channels=1)
    upload.add(large, "large")
    for number in range(60):
        upload.add(alone[number], f"alone{number}")
    for path in small:
        upload.add(path)
    done: list[str] = []

    def watch() -> None:
        done.extend(event.name for event in upload.engine.events if event.kind is EventKind.DONE)
        upload.engine.events.clear()

    upload.pair.after_flight = watch
    upload.run()
    assert len(done) == 461
    assert done[-1] == "large"


def test_a_channel_takes_of_everything_in_turn(tmp_path: Path) -> None:
    server = MemoryServer(Limits(bundle=10 * KIB))
    upload = Upload(server, channels=0)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(32 * MIN_SEGMENT_BYTES)
    engine = upload.engine
    upload.add(large, "large")
    for number, path in enumerate(make_files(tmp_path / "alone", 20, 20 * KIB)):
        upload.add(path, f"alone{number}")
    upload.pair.run(until=lambda: upload.pair.flights == 3)  # asked, and nobody takes them
    for path in make_files(tmp_path / "small", 200, KIB):
        upload.add(path)
    kinds: list[OrderKind] = []
    for _ in range(24):
        orders = engine.take_bundle(10 * KIB) or engine.take(1, MEBI)
        kinds.append(orders[0].kind)
    for start in range(20):
        assert set(kinds[start : start + 4]) == {OrderKind.BUNDLED, OrderKind.WHOLE, OrderKind.SEGMENT}, kinds


# refusals -------------------------------------------------------------------------------------------------------------

CODES = [
    ErrorCode.BUSY,
    ErrorCode.QUOTA_EXCEEDED,
    ErrorCode.UPLOAD_CLOSED,
    ErrorCode.DENIED,
    ErrorCode.TICKET_REVOKED,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.INTERNAL,
    ErrorCode.NOT_ATTACHED,
]


@pytest.mark.parametrize("code", CODES)
def test_what_a_bundle_does_not_get_done_is_sent_by_itself_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: ErrorCode
) -> None:
    server = MemoryServer(BUNDLES)
    ids: list[str] = []

    def admit(specs: Sequence[object]) -> list[Refusal]:
        ids.extend(spec.upload_id.hex() for spec in specs)  # type: ignore[attr-defined]
        return [Refusal(code)] * len(specs)

    monkeypatch.setattr(server.desk.ledger, "admit", admit)
    paths = make_files(tmp_path / "files", 150)
    upload = send(server, paths)
    upload.run()
    assert_all_done(upload, paths)
    asked = [command.options["upload"] for command in upload.pair.commands if command.verb is Verb.UPLOAD]
    assert sorted(asked) == sorted(ids)
    assert len(set(asked)) == 150


@pytest.mark.parametrize("code", [*CODES, ErrorCode.TOO_LARGE, ErrorCode.UNSUPPORTED, ErrorCode.CORRUPT])
def test_what_is_not_sent_in_a_bundle_is_fetched_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: ErrorCode
) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 150)
    send(server, paths).run()
    read_small = server.storage.read_small

    def refuse(name: object, most_bytes: int) -> object:
        if name == "00000":
            return read_small(name, most_bytes)  # type: ignore[arg-type]
        raise Refusal(code)

    monkeypatch.setattr(server.storage, "read_small", refuse)
    back = tmp_path / "back"
    download = fetch(server, back, [path.name for path in paths])
    download.run()
    assert_all_done(download, paths, back)
    assert verbs(download)[Verb.DOWNLOAD] == 149


def test_a_reason_to_refuse_is_told_as_of_a_file_by_itself(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 3)
    server.storage.make_directory(parse_name("00001"))
    upload = send(server, paths)
    upload.run()
    (failure,) = upload.engine.report.failures
    assert (failure.name, type(failure.error)) == ("00001", errors.ConflictError)
    download = fetch(server, tmp_path / "back", ["00000", "00002"])
    server.storage.delete(parse_name("00002"))
    download.run()
    (failure,) = download.engine.report.failures
    assert (failure.name, type(failure.error)) == ("00002", errors.NotFoundError)


@pytest.mark.parametrize("code", [ErrorCode.UNSUPPORTED, ErrorCode.BAD_REQUEST, ErrorCode.DENIED, ErrorCode.BUSY])
def test_without_a_ticket_small_files_go_as_they_always_did(tmp_path: Path, code: ErrorCode) -> None:
    server = MemoryServer(BUNDLES)
    refused = refuse_first(server, Verb.BUNDLE, code, times=10**6)
    paths = make_files(tmp_path / "files", 300)
    upload = send(server, paths)
    upload.run()
    assert_all_done(upload, paths)
    download = fetch(server, tmp_path / "back", [path.name for path in paths])
    download.run()
    assert_all_done(download, paths, tmp_path / "back")
    assert refused() == 2
    assert (verbs(upload)[Verb.UPLOAD], verbs(download)[Verb.DOWNLOAD]) == (300, 300)


def give_tickets(server: MemoryServer, make: Callable[[Action], str]) -> None:
    """Make the server answer BUNDLE so."""
    real = server.answer

    def answer(wire: ControlServer, command: Command) -> bytes:
        if command.verb is not Verb.BUNDLE:
            return real(wire, command)
        action = Action.UPLOAD_MANY if command.words[0] == "UPLOAD" else Action.DOWNLOAD_MANY
        return wire.reply(Reply(command.id, ReplyKind.OK, options={"ticket": make(action)}))

    server.answer = answer  # type: ignore[method-assign]


def test_a_server_that_refuses_each_of_its_tickets_is_not_asked_for_ever(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 2000, 10)
    stolen = TicketKeys(bytes(16), {1: bytes(32)}, 1)
    give_tickets(server, lambda action: encode_ticket(stolen.sign(Ticket(action, "anonymous", b"", 0, 2**40))))
    policy = Policy(open_files=150, first_wait_seconds=0.0, longest_wait_seconds=0.0)
    upload = send(server, paths, policy)
    upload.run()
    assert_all_done(upload, paths)
    assert verbs(upload) == {Verb.BUNDLE: MAX_TICKETS, Verb.UPLOAD: 2000}
    download = fetch(server, tmp_path / "back", [path.name for path in paths], policy)
    download.run()
    assert_all_done(download, paths, tmp_path / "back")
    assert verbs(download) == {Verb.BUNDLE: MAX_TICKETS, Verb.DOWNLOAD: 2000}


@pytest.mark.parametrize("word", ["", "&&&", "AAAA"])
def test_a_ticket_that_is_none_is_no_trouble(tmp_path: Path, word: str) -> None:
    server = MemoryServer(BUNDLES)
    give_tickets(server, lambda action: word or "%20")
    paths = make_files(tmp_path / "files", 30)
    upload = send(server, paths)
    upload.run()
    assert_all_done(upload, paths)


def test_a_ticket_that_expired_is_asked_for_again(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 600)
    upload = send(server, paths, Policy(open_files=200, first_wait_seconds=0.0, longest_wait_seconds=0.0), channels=1)
    upload.engine.close_input()
    upload.pair.run(until=lambda: upload.pair.flights == 2)
    server.now += 4000
    upload.pair.lose_channel(0)
    upload.run()
    assert_all_done(upload, paths)
    assert verbs(upload)[Verb.BUNDLE] == 2
    assert verbs(upload)[Verb.UPLOAD] < 400  # the rest went in bundles again


# losses ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 4096, 256 * KIB, 300_000]), min_size=1, max_size=6),
    losses=st.lists(st.tuples(st.integers(0, 8), st.sampled_from(["channel", "session"])), max_size=4),
    channels=st.integers(1, 3),
)
def test_any_losses_at_any_flight_leave_every_file_whole_both_ways(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], losses: list[tuple[int, str]], channels: int
) -> None:
    tmp_path = tmp_path_factory.mktemp("losses")
    server = MemoryServer(Limits(bundle=MEBI, credit=MEBI))
    paths = []
    for index, size in enumerate(sizes):
        path = tmp_path / str(index)
        path.write_bytes(random.Random(index).randbytes(size))
        paths.append(path)

    def run(transfer: Upload | Download) -> None:
        transfer.engine.close_input()
        for flight, what in sorted(losses):
            transfer.pair.run(until=lambda at=flight: transfer.pair.flights >= at)  # type: ignore[misc]
            if what == "session":
                transfer.pair.lose_session()
            else:
                transfer.pair.lose_channel(flight % channels)
        transfer.run()
        assert transfer.engine.report.failures == []
        assert transfer.engine.report.files_done == len(paths)
        size = sum(sizes)
        assert (transfer.engine.done_bytes, transfer.engine.known_bytes) == (size, size)

    run(send(server, paths, channels=channels))
    assert not server.desk.ledger.open_uploads()
    run(fetch(server, tmp_path / "back", [path.name for path in paths], channels=channels))
    assert all((tmp_path / "back" / path.name).read_bytes() == path.read_bytes() for path in paths)
    assert len(list((tmp_path / "back").iterdir())) == len(paths)


@pytest.mark.parametrize("loss", ["channel", "session"])
def test_files_lost_with_their_acknowledgement_are_published_once(tmp_path: Path, loss: str) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 200)
    upload = send(server, paths, channels=1)
    upload.engine.close_input()
    upload.pair.run(until=lambda: upload.pair.flights == 1)
    lane, session = upload.pair.channels[0]
    upload.pair.answer_frames(session, upload.pair.send_frames(lane))  # published; the answers are lost
    before = [server.storage.stat(parse_name(path.name)) for path in paths]
    if loss == "channel":
        upload.pair.lose_channel(0)
    else:
        upload.pair.lose_session()
    upload.run()
    assert_all_done(upload, paths)
    assert [server.storage.stat(parse_name(path.name)) for path in paths] == before
    usage = server.desk.ledger.usage_of("anonymous")
    assert (usage.stored.files, usage.open_uploads, usage.reserved_bytes) == (200, 0, 0)


def test_what_was_asked_for_on_a_lost_channel_is_fetched_without_a_bundle(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 100)
    send(server, paths).run()
    download = fetch(server, tmp_path / "back", [path.name for path in paths], channels=1)
    download.engine.close_input()
    download.pair.run(until=lambda: download.pair.flights == 1)
    lane, _ = download.pair.channels[0]
    assert download.pair.send_frames(lane)
    download.pair.lose_channel(0)  # perhaps because of something in this bundle
    download.run()
    assert_all_done(download, paths, tmp_path / "back")
    assert verbs(download) == {Verb.BUNDLE: 1, Verb.DOWNLOAD: 100}


def test_giving_up_in_mid_bundle_leaves_nothing_open(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 500)
    send(server, paths).run()
    download = fetch(server, tmp_path / "back", [path.name for path in paths])
    for transfer in (send(server, paths), download):
        transfer.pair.run(until=lambda pair=transfer.pair: pair.flights == 1)  # type: ignore[misc]
        sent = [transfer.pair.send_frames(lane) for lane, _ in transfer.pair.channels]
        assert any(sent)
        for lane, _ in transfer.pair.channels:
            lane.lost()
        transfer.engine.fail_all(errors.InterruptError("stopped"))
        transfer.engine.close_input()
        assert transfer.engine.is_over
        assert not transfer.engine.order_count
        assert len(transfer.engine.report.failures) == 500
    download.close()


# changes and damage ---------------------------------------------------------------------------------------------------


def test_a_file_that_changes_or_vanishes_before_it_is_read_is_noticed(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 5, 100)
    upload = send(server, paths)
    paths[1].write_bytes(b"y" * 50)
    paths[2].unlink()
    paths[3].write_bytes(b"z" * (256 * KIB + 1))
    upload.run()
    assert {failure.name: failure.error.exit_code for failure in upload.engine.report.failures} == {"00002": 3}
    assert [server.storage.stat(parse_name(f"0000{n}")).size for n in (0, 1, 3, 4)] == [100, 50, 256 * KIB + 1, 100]
    assert upload.engine.known_bytes == 100 + 50 + 100 + 256 * KIB + 1 + 100
    assert upload.engine.done_bytes == upload.engine.known_bytes - 100
    # Of what was never sent there is nothing to give back; the one that grew goes by itself.
    assert verbs(upload) == {Verb.BUNDLE: 1, Verb.UPLOAD: 1}


@pytest.mark.parametrize("mtime_ns", [2**63, 13 * 10**18])
def test_a_time_that_no_record_can_hold_fails_its_file_alone(shm_path: Path, mtime_ns: int) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(shm_path / "files", 3)
    os.utime(paths[1], ns=(mtime_ns, mtime_ns))
    upload = send(server, paths)
    upload.run()
    assert [failure.name for failure in upload.engine.report.failures] == ["00001"]
    assert upload.engine.report.files_done == 2


@pytest.mark.parametrize("direction", ["up", "down"])
def test_bytes_damaged_on_the_way_are_sent_again_a_few_times(tmp_path: Path, direction: str) -> None:
    for times, succeeds in ((2, True), (10**6, False)):
        server = MemoryServer(BUNDLES)
        (path,) = make_files(tmp_path / f"{times}", 1)
        upload = send(server, [path], channels=1)
        if direction == "up":
            upload.pair.tamper_up = Damage(times)
            upload.run()
            report = upload.engine.report
        else:
            upload.run()
            download = fetch(server, tmp_path / f"back{times}", [path.name], channels=1)
            download.pair.tamper_down = Damage(times)
            download.run()
            report = download.engine.report
            assert (tmp_path / f"back{times}" / path.name).exists() is succeeds
        assert report.files_done == (1 if succeeds else 0)
        assert [failure.error.exit_code for failure in report.failures] == ([] if succeeds else [7])


@pytest.mark.parametrize("size", [0, 50, 4096, 5000, 300_000, MIN_SEGMENT_BYTES + 1])
def test_another_version_than_was_listed_is_fetched_as_it_is(tmp_path: Path, size: int) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 5)
    send(server, paths).run()
    back = tmp_path / "back"
    download = fetch(server, back, [path.name for path in paths])
    paths[2].write_bytes(os.urandom(size))
    paths[2].chmod(0o755)
    send(server, [paths[2]]).run()
    download.run()
    assert_all_done(download, paths, back)
    assert os.access(back / paths[2].name, os.X_OK)
    assert (back / paths[2].name).stat().st_mtime_ns == paths[2].stat().st_mtime_ns


def test_whoever_waits_is_told_that_files_were_here_already(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 3)
    send(server, paths).run()
    fetch(server, tmp_path / "back", [path.name for path in paths]).run()
    again = fetch(server, tmp_path / "back", [path.name for path in paths], channels=1)
    again.pair.run(until=lambda: again.pair.flights == 1)
    told: list[int] = []
    lane = again.pair.channels[0][0]
    lane._on_change = lambda: told.append(again.engine.report.files_kept)
    assert lane.fill() == []
    assert told[-1] == 3
    again.close()


def test_what_is_here_already_is_not_fetched(tmp_path: Path) -> None:
    server = MemoryServer(BUNDLES)
    paths = make_files(tmp_path / "files", 300)
    send(server, paths).run()
    names = [path.name for path in paths]
    fetch(server, tmp_path / "back", names).run()
    (tmp_path / "back" / names[7]).unlink()
    (tmp_path / "back" / names[8]).write_bytes(b"")
    second = fetch(server, tmp_path / "back", names)
    second.run()
    report = second.engine.report
    assert (report.files_done, report.files_kept, report.bytes_moved) == (2, 298, 2 * 4096)
    assert report.bytes_kept == 298 * 4096
    assert second.engine.done_bytes == second.engine.known_bytes == 300 * 4096
    third = fetch(server, tmp_path / "back", names)
    third.run()
    assert (third.engine.report.files_kept, third.engine.report.bytes_moved) == (300, 0)


# bounds ---------------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_files_pass_through_an_engine_that_stays_small() -> None:
    upload = Upload(MemoryServer(BUNDLES), channels=0)
    engine = upload.engine
    added = most = 0
    while not engine.is_over:
        while added < 100_000 and engine.has_room:
            engine.add(SourceFile("x", f"{added:06}", 10, 0, False, 0, 0))
            added += 1
        if added == 100_000:
            engine.close_input()
        most = max(most, len(engine._fresh_small) + len(engine._open))
        for request in engine.next_requests(1000):
            assert request.verb is Verb.BUNDLE
            engine.take_replies([(request, Reply(1, ReplyKind.OK, options={"ticket": "AAAA"}))])
        flight: list[list[Order]] = []
        while orders := engine.take_bundle(MEBI):
            assert len(orders) <= BUNDLE_FILES
            flight.append(orders)
        most = max(most, len(engine._fresh_small) + len(engine._open))
        used = engine.bundles.current
        assert used is not None
        for orders in flight:
            engine.bundle_answered(used, [(order, 10, AckStatus.COMMITTED) for order in orders])
        engine.events.clear()
    assert engine.report.files_done == 100_000
    assert engine.done_bytes == engine.known_bytes == 1_000_000
    assert most <= engine.policy.backlog + engine.policy.open_files

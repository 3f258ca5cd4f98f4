"""A server that lies in bundles: no byte is accepted that does not match, and what does not fit ends its channel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twinport import errors
from twinport.client import Client
from twinport.engine import Policy
from twinport_protocol.bundles import encode_statuses, fetched_head, fetched_refusal
from twinport_protocol.channel import ChannelServer
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import LAST, FrameType, Header
from twinport_protocol.segments import digest_of

from tests.client.conftest import Connect
from tests.client.lying_server import LyingServer

FILES = {f"tree/{number}": os.urandom(1000 + number) for number in range(5)}
Frames = Callable[[Header, list[bytes]], bytes]


@pytest.fixture
def liar() -> Iterator[LyingServer]:
    """A lying server that takes bundles."""
    server = LyingServer(FILES)
    server.bundle = 1024 * 1024
    yield server
    server.close()


@pytest.fixture
def victim(liar: LyingServer, connect: Connect) -> Client:
    """Its client, with little patience."""
    return connect(liar, policy=Policy(first_wait_seconds=0.0, longest_wait_seconds=0.01), patience_seconds=2.0)


def found(target: Path) -> dict[str, bytes]:
    """What is in the target, but for partials."""
    return {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def record(data: bytes, digest: bytes | None = None) -> bytes:
    return fetched_head(0, len(data), digest or digest_of(data), executable=False) + data


def frame(get: Header, body: bytes, *, flags: int = LAST, segment: int | None = None) -> bytes:
    number = get.segment if segment is None else segment
    return Header(FrameType.FILES, flags, 0, get.attachment, number, 0, len(body)).encode() + body


def lie(monkeypatch: pytest.MonkeyPatch, liar: LyingServer, frames: Frames) -> list[int]:
    """Answer GET_MANYs so; how many files each asked for."""
    asked: list[int] = []

    def fetched(wire: ChannelServer, get: Header, names: list[str]) -> bytes:
        asked.append(len(names))
        return frames(get, [liar.files[name] for name in names])

    monkeypatch.setattr(liar, "fetched", fetched)
    return asked


def test_an_honest_bundle_is_taken(liar: LyingServer, victim: Client, tmp_path: Path) -> None:
    assert victim.get("tree", tmp_path, recursive=True).files_done == 5
    assert found(tmp_path) == FILES


def test_damaged_bytes_are_fetched_by_themselves(
    liar: LyingServer, victim: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = lie(
        monkeypatch, liar, lambda get, datas: frame(get, b"".join(record(b"x" + d[1:], digest_of(d)) for d in datas))
    )
    assert victim.get("tree", tmp_path, recursive=True).files_done == 5
    assert found(tmp_path) == FILES
    assert sum(asked) == 5


def test_bytes_that_never_match_are_never_accepted(
    liar: LyingServer, victim: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie(monkeypatch, liar, lambda get, datas: frame(get, b"".join(record(d, bytes(32)) for d in datas)))
    monkeypatch.setattr(liar, "root", lambda name: bytes(32))
    report = victim.get("tree", tmp_path, recursive=True, check=False)
    assert [type(failure.error) for failure in report.failures] == [errors.IntegrityError] * 5
    assert found(tmp_path) == {}


def test_files_in_another_order_are_the_versions_that_the_server_says(
    liar: LyingServer, victim: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie(monkeypatch, liar, lambda get, datas: frame(get, b"".join(map(record, sorted(datas, reverse=True)))))
    report = victim.get("tree", tmp_path, recursive=True, check=False)
    assert report.files_done + len(report.failures) == 5
    # Each is whole and one of them: nobody can tell a lie about which from a file that was replaced.
    assert set(found(tmp_path).values()) <= set(FILES.values())


NONSENSE: dict[str, Frames] = {
    "one more file": lambda get, datas: frame(get, b"".join(map(record, [*datas, b"x"]))),
    "one more refusal": lambda get, datas: frame(
        get, b"".join(map(record, datas)) + fetched_refusal(ErrorCode.FILE_NOT_FOUND)
    ),
    "one file less": lambda get, datas: frame(get, b"".join(map(record, datas[:-1]))),
    "no file": lambda get, datas: frame(get, b""),
    "no file and no end": lambda get, datas: frame(get, b"", flags=0),
    "no end": lambda get, datas: frame(get, b"".join(map(record, datas)), flags=0),
    "more bytes": lambda get, datas: frame(get, b"".join(record(data + bytes(2000)) for data in datas)),
    "half a file": lambda get, datas: frame(get, b"".join(map(record, datas))[:-1]),
    "another number": lambda get, datas: frame(get, b"".join(map(record, datas)), segment=get.segment + 1),
    "another kind": lambda get, datas: Header(FrameType.ACKS, 0, 0, get.attachment, get.segment, 0, 0).encode(),
    "a refusal with bytes": lambda get, datas: frame(
        get, fetched_refusal(ErrorCode.DENIED)[:11] + record(datas[0])[11:] + b"".join(map(record, datas[1:]))
    ),
    "too long a frame": lambda get, datas: Header(
        FrameType.FILES, LAST, 0, get.attachment, get.segment, 0, 1024 * 1024 + 1
    ).encode(),
    "twice": lambda get, datas: 2 * frame(get, b"".join(map(record, datas))),
}


@pytest.mark.parametrize("frames", NONSENSE.values(), ids=NONSENSE)
def test_what_does_not_fit_what_was_asked_ends_the_channel_and_is_fetched_without_bundles(
    liar: LyingServer, victim: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Frames
) -> None:
    lie(monkeypatch, liar, frames)
    report = victim.get("tree", tmp_path, recursive=True)
    assert report.files_done == 5
    assert found(tmp_path) == FILES


STATUSES: dict[str, list[int]] = {
    "too few": [3] * 4,
    "too many": [3] * 6,
    "none": [],
    "not committed": [0, 1, 2, 4, 99],
    "unknown": [65535] * 5,
}


@pytest.mark.parametrize("statuses", STATUSES.values(), ids=STATUSES)
def test_what_a_server_says_of_a_bundle_is_not_taken_for_done(
    liar: LyingServer, victim: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[int]
) -> None:
    for number in range(5):
        (tmp_path / f"f{number}").write_bytes(b"x")

    def taken(wire: ChannelServer, put: Header, files: int) -> bytes:
        assert files == 5
        body = encode_statuses(statuses)
        return Header(FrameType.ACKS, 0, 0, put.attachment, put.segment, 0, len(body)).encode() + body

    monkeypatch.setattr(liar, "taken", taken)
    # What was not done is asked for by itself, where this server has nothing sensible to say.
    report = victim.put([tmp_path / f"f{number}" for number in range(5)], check=False)
    assert report.files_done == 0
    assert [type(failure.error) for failure in report.failures] == [errors.ServerProtocolError] * 5

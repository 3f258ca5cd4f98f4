"""Measuring a real server: everything is measured, and nothing stays, whatever happens meanwhile."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twinport.addresses import Address
from twinport.bench import steps as steps_of_it
from twinport.bench.facts import Measurements
from twinport.bench.measure import measure
from twinport.bench.steps import Wish
from twinport.client import Client
from twinport.engine import Policy
from twinport.errors import InterruptError, NetworkError, SpaceError, UsageError
from twinport.remote_scratch import RemoteScratch

from tests.client.conftest import Connect
from tests.client.servers import Passage, Proxy, Rule, ServerProcess

QUICK = Wish(seconds=60.0, size_bytes=16 * 1024 * 1024, channels=2)
"""The size bounds it; the time is so long that no step is left out for want of it on a busy machine."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory for temporary files; empty again afterwards."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert os.listdir(place) == []


def ways(connect: Connect, place: ServerProcess | Proxy) -> Callable[[int, Policy | None], Client]:
    return lambda channels, policy: connect(place, channels=channels, policy=policy)


def slow_uploads(when: Callable[[], bool]) -> Rule:
    """Of a proxy: 64 KiB every 0.1 s."""

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and going == "up" and when():
            time.sleep(0.1)
        return data

    return rule


def assert_nothing_stays(server: ServerProcess, client: Client, *above: str) -> None:
    assert [entry.name for entry in client.list() if "bench" in entry.name] == []
    quota = client.quota()
    assert (quota.reserved_bytes, quota.open_uploads) == (0, 0)
    assert all(not server.stored(name).exists() for name in above)


def test_everything_is_measured_and_nothing_stays(own_server: ServerProcess, connect: Connect, temporary: Path) -> None:
    steps: list[str] = []
    found = measure(
        ways(connect, own_server), QUICK, lambda step, done: steps.append(step), address=Address("127.0.0.1", 5001)
    )
    assert isinstance(found, Measurements)
    assert (found.address, found.is_local, found.user, found.tls_version) == ("127.0.0.1:5001", True, None, None)
    assert found.round_trips.count >= 5
    assert 0 < found.round_trips.best_seconds <= found.round_trips.median_seconds <= found.round_trips.worst_seconds
    assert found.connect_seconds > 0
    for flow, channels in ((found.up_one, 1), (found.up_many, 2), (found.down_one, 1), (found.down_many, 2)):
        assert flow is not None
        assert flow.channels == channels
        assert not flow.is_cut
        assert flow.bytes_per_second > 0
        assert flow.flow_bytes_per_second >= flow.bytes_per_second
        assert flow.line is not None
        assert flow.line.connections >= 1
    assert found.up_one is not None
    assert found.up_one.loss is not None  # not even loopback loses nothing, when it is hurried
    for small in (found.small_up, found.small_down):
        assert small is not None
        assert small.files >= 32
    assert found.bounded_by == "size"
    assert found.sent_bytes <= QUICK.size_bytes
    assert found.fetched_bytes <= QUICK.size_bytes
    assert found.left_behind == ()
    assert len(set(steps)) >= 8
    assert_nothing_stays(own_server, connect(own_server))


def test_directories_that_were_missing_are_removed_and_others_stay(
    own_server: ServerProcess, connect: Connect, temporary: Path
) -> None:
    client = connect(own_server)
    client.mkdir("there")
    measure(ways(connect, own_server), Wish(0.5, 4 * 1024 * 1024, "there/is/more", 1))
    assert [entry.name for entry in client.list("", recursive=True)] == ["there"]


def test_one_channel_alone_is_measured_once(own_server: ServerProcess, connect: Connect, temporary: Path) -> None:
    found = measure(ways(connect, own_server), Wish(0.5, 4 * 1024 * 1024, None, 1))
    assert found.up_many is None
    assert found.down_many is None
    assert found.down_one is not None


def test_too_small_a_wish_is_refused_before_anything_is_sent(
    own_server: ServerProcess, connect: Connect, temporary: Path
) -> None:
    with pytest.raises(SpaceError, match="--size must be at least"):
        measure(ways(connect, own_server), Wish(1.0, 1000))
    assert_nothing_stays(own_server, connect(own_server))


def test_a_directory_that_is_no_name_is_refused(own_server: ServerProcess, connect: Connect, temporary: Path) -> None:
    with pytest.raises(UsageError):
        measure(ways(connect, own_server), Wish(1.0, to="../x"))


@pytest.mark.parametrize("step", ["upload, 1 channel", "upload, 2 channels", "download, 2 channels", "small files up"])
def test_after_ctrl_c_nothing_stays(own_server: ServerProcess, connect: Connect, temporary: Path, step: str) -> None:
    def tell(now: str, done_bytes: int) -> None:
        if now == step and done_bytes:
            raise KeyboardInterrupt

    with pytest.raises(InterruptError, match="nothing was left behind"):
        measure(ways(connect, own_server), QUICK, tell)
    assert_nothing_stays(own_server, connect(own_server))


def test_an_upload_that_was_interrupted_half_way_is_given_up(
    own_server: ServerProcess, connect: Connect, make_proxy: Callable[..., Proxy], temporary: Path
) -> None:
    def tell(step: str, done_bytes: int) -> None:
        if step.startswith("upload") and done_bytes > 300_000:
            raise KeyboardInterrupt

    proxy = make_proxy(own_server, slow_uploads(lambda: proxy.moved_bytes("up") > 200_000))
    client = connect(own_server)
    held: list[int] = []

    class Peeking(RemoteScratch):
        def remove(self) -> tuple[str, ...]:
            held.append(client.quota().open_uploads)
            return super().remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps_of_it, "RemoteScratch", Peeking)
        with pytest.raises(InterruptError, match="nothing was left behind"):
            measure(ways(connect, proxy), QUICK, tell)
    assert held == [1]
    assert_nothing_stays(own_server, client)


def test_what_cannot_be_removed_is_said(
    own_server: ServerProcess, connect: Connect, make_proxy: Callable[..., Proxy], temporary: Path
) -> None:
    proxy = make_proxy(own_server)

    def tell(step: str, done_bytes: int) -> None:
        if step == "small files up":
            own_server.stop()
            proxy.cut_all()

    def connected(channels: int, policy: Policy | None) -> Client:
        return connect(proxy, channels=channels, policy=policy, patience_seconds=0.5)

    with pytest.raises(NetworkError, match=r"left on the server, remove it with: twinport rm -r twinport-bench-\w+"):
        measure(connected, QUICK, tell)
    own_server.start()
    client = connect(own_server)
    (left,) = client.list()
    assert left.name.startswith("twinport-bench-")


def test_a_transfer_that_takes_too_long_is_cut(
    own_server: ServerProcess, connect: Connect, make_proxy: Callable[..., Proxy], temporary: Path
) -> None:
    """A line that is quick at first, and then gives next to nothing."""
    proxy = make_proxy(own_server, slow_uploads(lambda: proxy.moved_bytes("up") > 200_000))
    found = measure(ways(connect, proxy), Wish(0.5, 64 * 1024 * 1024, None, 1))
    assert found.up_one is not None
    assert found.up_one.is_cut
    assert 0 < found.up_one.size_bytes < 32 * 1024 * 1024
    assert found.seconds < 20
    assert_nothing_stays(own_server, connect(own_server))

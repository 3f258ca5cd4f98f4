"""The two kinds of stream: what a poll loop may rely on, and that TLS loses and doubles no byte under pressure."""

from __future__ import annotations

import errno
import os
import random
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
from twinport.streams import FileRange, Outgoing, PlainStream, Stream, stream_of
from twinport.tls import ALPN_CHANNEL, unverified
from twinport.tls_stream import TlsStream

from tests.client.secure_server import make_certificate, server_context

TIMEOUT_SECONDS = 30.0


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Stream, socket.socket]]:
    """The client's stream, and the other end, which blocks."""
    mine, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT_SECONDS)
    if request.param == "tls":
        context = server_context(make_certificate(tmp_path / "pem"), [ALPN_CHANNEL], ssl.TLSVersion.TLSv1_3)
        made: list[ssl.SSLSocket] = []
        thread = threading.Thread(target=lambda: made.append(context.wrap_socket(theirs, server_side=True)))
        thread.start()
        mine = unverified(ALPN_CHANNEL).wrap_socket(mine, server_hostname="localhost")
        thread.join()
        theirs = made[0]
    stream = stream_of(mine)
    assert type(stream) is (TlsStream if request.param == "tls" else PlainStream)
    yield stream, theirs
    stream.close()
    theirs.close()


def test_bytes_go_both_ways_under_pressure_and_none_is_lost_or_doubled(pair: tuple[Stream, socket.socket]) -> None:
    stream, theirs = pair
    draw = random.Random(5)
    up = draw.randbytes(20_000_000)
    down = draw.randbytes(12_000_000)
    got = bytearray()

    def peer_run() -> None:
        own = random.Random(6)
        at = 0
        while len(got) < len(up) or at < len(down):
            if len(got) < len(up):
                got.extend(theirs.recv(own.randrange(1, 100_000)))
            if at < len(down):
                count = own.randrange(1, 60_000)
                theirs.sendall(down[at : at + count])
                at += count

    peer = threading.Thread(target=peer_run)
    peer.start()
    received = bytearray()
    view = memoryview(bytearray(300_000))
    out: Outgoing = deque()
    at = 0
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLIN)
    while len(received) < len(down) or out or at < len(up):
        if not out and at < len(up):
            for _ in range(draw.randrange(1, 6)):
                count = draw.choice((1, 0, 17, 70_000, 1_000_000))
                out.append(memoryview(up[at : at + count]))
                at += count
        if out:
            stream.send(out)
        if not out and at < len(up):
            continue
        if not stream.has_input() and (out or len(received) < len(down)):
            poll.modify(stream.fileno(), stream.poll_mask(bool(out)))
            ready = poll.poll(TIMEOUT_SECONDS * 1000)
            assert ready, "nothing moves"
            if not stream.may_read(ready[0][1]):
                continue
        elif not stream.has_input():
            continue
        count_read = stream.receive_into(view)
        if count_read is not None:
            assert count_read > 0
            received += view[:count_read]
    peer.join()
    assert got == up
    assert received == down


def test_a_record_that_is_decrypted_already_is_told(pair: tuple[Stream, socket.socket]) -> None:
    stream, theirs = pair
    theirs.sendall(b"x" * 10_000)
    small = memoryview(bytearray(100))
    assert select.select([stream.fileno()], [], [], TIMEOUT_SECONDS)[0]
    count = 0
    while count < 10_000:
        # Either the kernel tells that there is more, or the stream does.
        assert stream.has_input() or select.select([stream.fileno()], [], [], TIMEOUT_SECONDS)[0]
        count += stream.receive_into(small) or 0
    assert not stream.has_input()
    assert stream.receive_into(small) is None


def test_the_end_of_the_stream_is_told_after_the_last_byte(pair: tuple[Stream, socket.socket]) -> None:
    stream, theirs = pair
    theirs.sendall(b"last")
    theirs.shutdown(socket.SHUT_RDWR)  # without close_notify
    view = memoryview(bytearray(100))
    counts: list[int] = []
    while not counts or counts[-1] != 0:
        assert stream.has_input() or select.select([stream.fileno()], [], [], TIMEOUT_SECONDS)[0]
        counts.append(stream.receive_into(view) or 0)
    assert counts == [4, 0]
    assert stream.receive_into(view) == 0
    stream.close()
    stream.close()


@pytest.fixture
def plain() -> Iterator[tuple[PlainStream, socket.socket]]:
    """A plain stream that takes files, and the other end."""
    mine, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT_SECONDS)
    stream = stream_of(mine)
    assert isinstance(stream, PlainStream)
    if not stream.takes_files:
        pytest.skip("sendfile is used on Linux")
    yield stream, theirs
    stream.close()
    theirs.close()


def send_all(stream: Stream, out: Outgoing) -> None:
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    while out:
        if not stream.send(out):
            assert poll.poll(TIMEOUT_SECONDS * 1000)


def test_ranges_of_files_go_between_buffers_in_their_order(
    plain: tuple[PlainStream, socket.socket], tmp_path: Path
) -> None:
    stream, theirs = plain
    content = random.Random(7).randbytes(3_000_000)
    (tmp_path / "file").write_bytes(content)
    received = bytearray()

    def receive() -> None:
        while data := theirs.recv(100_000):
            received.extend(data)

    peer = threading.Thread(target=receive)
    peer.start()
    with (tmp_path / "file").open("rb") as file:
        number = file.fileno()
        ranges = [FileRange(number, 1000, 2_000_000), FileRange(number, 0, 10), FileRange(number, 2_999_999, 1)]
        out: Outgoing = deque(
            [memoryview(b"head"), ranges[0], memoryview(b""), ranges[1], ranges[2], memoryview(b"end")]
        )
        send_all(stream, out)
    stream.close()
    peer.join()
    assert received == b"head" + content[1000:2_001_000] + content[:10] + content[-1:] + b"end"


def test_a_file_that_became_shorter_ends_the_connection(
    plain: tuple[PlainStream, socket.socket], tmp_path: Path
) -> None:
    stream, _ = plain
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with (tmp_path / "file").open("rb") as file, pytest.raises(OSError, match="shorter"):
        send_all(stream, deque([FileRange(file.fileno(), 0, 1001)]))


def test_where_the_file_system_has_no_sendfile_the_bytes_are_read(
    plain: tuple[PlainStream, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    stream, theirs = plain
    monkeypatch.setattr(os, "sendfile", refuse)
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        send_all(stream, deque([memoryview(b"<"), FileRange(file.fileno(), 3, 4), memoryview(b">")]))
        assert theirs.recv(6, socket.MSG_WAITALL) == b"<3456>"
        with pytest.raises(OSError, match="shorter"):
            send_all(stream, deque([FileRange(file.fileno(), 3, 8)]))


def test_what_is_not_to_be_sent_any_more_is_dropped_with_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        mine = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    stream = stream_of(mine)
    out: Outgoing = deque([memoryview(bytes(64 * 1024))])
    while stream.send(out):
        out.append(memoryview(bytes(64 * 1024)))
    stream.drop_unsent()
    stream.close()
    received = bytearray()
    with theirs, pytest.raises(ConnectionResetError):
        _receive_all(theirs, received)


def _receive_all(sock: socket.socket, received: bytearray) -> None:
    while data := sock.recv(100_000):
        received += data


def test_only_a_tls_socket_makes_a_tls_stream() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(TypeError):
        TlsStream(one)

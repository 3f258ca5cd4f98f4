"""What the tests of the wire share: splits of a byte stream, events in a form that splits do not change, strategies."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from hypothesis import strategies as st
from twinport_protocol.bundle_credit import BundleAnswer
from twinport_protocol.control import ControlServer, Greeting, Limits
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.frames import Chunk, FrameEvent, Header
from twinport_protocol.names import MAX_NAME_BYTES, parse_name

GREETING_OPTIONS = {"agent": "test/1", "nonce": "00" * 16}

Frame = tuple[Header, bytes, "bytes | None"]
T = TypeVar("T")
A = TypeVar("A")


def cut(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    """``data`` cut at the places (taken modulo its length)."""
    marks = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    for start, end in itertools.pairwise(marks):
        yield data[start:end]


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    """``data`` in pieces of one byte."""
    return (data[at : at + 1] for at in range(len(data)))


places = st.lists(st.integers(0, 2**20), max_size=12)
"""Where to cut a stream."""


def attempt(call: Callable[[A], T], argument: A) -> T | ErrorCode:
    """What the call returns, or the code of the ``RemoteProtocolError`` or ``Refusal`` that it raises; others pass."""
    try:
        return call(argument)
    except (RemoteProtocolError, Refusal) as error:
        return error.code


class FrameLog:
    """Collects frame events; parts of one payload are joined, so that it does not matter how the stream was cut."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._open: tuple[Header, bytearray] | None = None

    def take(self, events: Iterable[FrameEvent | BundleAnswer]) -> None:
        for event in events:
            assert not isinstance(event, BundleAnswer), "test_bundles.py looks at these"
            if not isinstance(event, Chunk):
                self.frames.append((event.header, event.body, None))
                continue
            header, data = self._open or (event.header, bytearray())
            assert header is event.header, "parts of two frames mixed"
            assert event.at == header.offset + len(data), "a gap in a payload"
            data += event.data
            self._open = (header, data)
            if event.ends:
                assert len(data) == header.length
                self.frames.append((header, bytes(data), event.digest))
                self._open = None


def frames_of(
    feed: Callable[[memoryview], Sequence[FrameEvent | BundleAnswer]], pieces: Iterable[bytes]
) -> list[Frame]:
    """The frames that a decoder makes of a stream that comes in these pieces."""
    log = FrameLog()
    for piece in pieces:
        log.take(feed(memoryview(piece)))
    return log.frames


def ready_server(limits: Limits | None = None) -> ControlServer:
    """A control server that has answered its greeting."""
    server = ControlServer(limits or Limits())
    server.feed(b"HELLO 2\n")
    assert [type(event) for event in server.events()] == [Greeting]
    server.greet(GREETING_OPTIONS)
    return server


@contextmanager
def allocating_at_most(limit_bytes: int) -> Iterator[None]:
    """Fails when, inside, more than ``limit_bytes`` of Python memory are held at any moment beyond what was before."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before <= limit_bytes, f"{peak - before} bytes were held"


def some_bytes(size_bytes: int, seed: int = 1) -> bytes:
    """Bytes that differ from each other and from those of another seed."""
    return random.Random(seed).randbytes(size_bytes)


def _is_name(text: str) -> bool:
    try:
        parse_name(text)
    except RemoteProtocolError:
        return False
    return True


texts = st.text(st.characters(codec="utf-8"), max_size=60)
"""Any text that UTF-8 can say."""
awkward = st.text(st.sampled_from(list("ab./ %=~\\-\x00\n\r\t\x7f\x85é∕．٣\U0001f600")), max_size=24)
"""Short texts of the characters that matter to names and words."""
names = (awkward | texts).filter(lambda text: len(text) <= MAX_NAME_BYTES and _is_name(text))
"""Remote names."""

"""Garbage and damaged streams against both sessions: no exception comes out, nothing is published that was not sent.

What stands under a name is judged by its digest: a sender that says the digest of some bytes at the end of a PUT has
sent exactly these bytes. So a published file whose digest is nowhere in the stream was made up on the way.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import (
    CHANNEL_MAGIC,
    COMMIT,
    DETACH_AFTER,
    HEADER,
    LAST,
    WHOLE_CHANNEL,
    Chunk,
    FrameDecoder,
    FrameType,
)
from twinport_protocol.messages import (
    Command,
    Reply,
    ReplyKind,
    Verb,
    format_command,
    format_greeting,
    parse_greeting,
    parse_reply,
)
from twinport_protocol.names import parse_name
from twinport_protocol.segments import digest_of
from twinport_protocol.tickets import Action, Ticket, encode_ticket
from twinport_service.access import allow_all
from twinport_service.channel_session import ChannelSession, Payload
from twinport_service.control_services import ControlServices, ControlTimes
from twinport_service.control_session import ControlSession
from twinport_service.handlers import Handlers
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.log import configure_logging
from twinport_service.storage.contract import SMALL_BYTES, Published, UploadSpec
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk

from tests.service.conftest import KEYS

LIMITS = Limits(frames=64, credit=1024 * 1024, piece=512 * 1024, attachments=8)
LATER = 2**40
STORED = b"what stood there before"
CONTENTS = [b"", b"a", b"hello" * 20, b"\x00" * 1000, bytes(range(256)) * 1200]  # the last is no small file
UPLOADS = [bytes((number,)) * 16 for number in range(len(CONTENTS))]


def fresh_desk() -> UploadDesk:
    """A desk with one stored file and one open upload for each of the contents."""
    configure_logging("human", "error")
    desk = UploadDesk(MemoryStorage(), MemoryLedger())
    stored = UploadSpec(b"s" * 16, "anonymous", parse_name("stored"), len(STORED))
    outcomes: list[object] = []
    desk.storage.commit_small(stored, STORED, digest_of(STORED), outcomes.append)
    assert isinstance(outcomes[0], Published)
    for number, (upload_id, content) in enumerate(zip(UPLOADS, CONTENTS, strict=True)):
        spec = UploadSpec(upload_id, "anonymous", parse_name(f"up/{number}"), len(content))
        if len(content) <= SMALL_BYTES:
            desk.open_small(spec)
        else:
            desk.open(spec)
    return desk


def stored_files(desk: UploadDesk) -> dict[str, bytes]:
    """All files and their bytes."""
    storage = desk.storage
    found = {}
    for entry in storage.list("", "", 10_000, True).entries:
        if entry.kind == "f":
            version = storage.open_version(parse_name(entry.name))
            buffer = bytearray(version.size)
            storage.open_reader(version.token).read_into(0, buffer)
            found[entry.name] = bytes(buffer)
    return found


def ticket_for(number: int, desk: UploadDesk) -> bytes:
    """A good ticket: of an upload, or of the stored file."""
    if number < len(UPLOADS):
        scope, action, size = UPLOADS[number], Action.UPLOAD, len(CONTENTS[number])
    else:
        version = desk.storage.open_version(parse_name("stored"))
        scope, action, size = version.token, Action.DOWNLOAD, version.size
    return KEYS.sign(Ticket(action, "anonymous", scope, size, LATER, 1 if action is Action.UPLOAD else 0))


# streams --------------------------------------------------------------------------------------------------------------

small = st.integers(0, len(UPLOADS))
Frame = Callable[[UploadDesk], bytes]


def attach(attachment: int, number: int) -> Frame:
    """ATTACH with a good ticket."""

    def make(desk: UploadDesk) -> bytes:
        ticket = ticket_for(number, desk)
        return HEADER.pack(FrameType.ATTACH, 0, 0, attachment, 0, 0, len(ticket)) + ticket

    return make


def put_all(attachment: int, number: int, cut: int, flags: int, lie: bool) -> Frame:
    """A whole file in one or two pieces; with the digest of other bytes if ``lie``."""
    content = CONTENTS[number % len(CONTENTS)]
    digest = digest_of(b"something else" if lie else content)
    at = cut % (len(content) + 1)

    def make(desk: UploadDesk) -> bytes:
        del desk
        first = b""
        if 0 < at < len(content):
            first = HEADER.pack(FrameType.PUT, 0, 0, attachment, 0, 0, at) + content[:at]
        start = at if first else 0
        rest = content[start:]
        return first + HEADER.pack(FrameType.PUT, LAST | flags, 0, attachment, 0, start, len(rest)) + rest + digest

    return make


def plain(kind: int, attachment: int, segment: int, offset: int, length: int, flags: int) -> Frame:
    """A frame without a payload, or with one of zeros."""
    body = bytes(length) if kind == FrameType.PUT else b""
    digest = bytes(32) if kind == FrameType.PUT and flags & LAST else b""
    return lambda desk: HEADER.pack(kind, flags, 0, attachment, segment, offset, length) + body + digest


def send_all(number: int, cut: int, flags: int, lie: bool) -> Frame:
    """ATTACH and all the bytes of an upload, as a client would."""
    parts = attach(number, number), put_all(number, number, cut, flags, lie)
    detach = plain(FrameType.DETACH, number, 0, 0, 0, 0)
    return lambda desk: b"".join(part(desk) for part in (detach, *parts))


cuts, lies = st.integers(0, 2000), st.booleans()
ends = st.sampled_from([COMMIT, COMMIT, COMMIT, 0])
frames = st.one_of(
    *[st.builds(send_all, small, cuts, ends, st.sampled_from([False, False, False, True]))] * 4,
    st.builds(lambda number: attach(number, number), small),
    st.builds(
        lambda number, cut, flags, lie: put_all(number, number, cut, flags, lie), small, cuts, ends, st.booleans()
    ),
    st.builds(attach, small, small),
    st.builds(put_all, small, small, cuts, ends, lies),
    st.builds(
        plain,
        st.sampled_from([FrameType.PUT, FrameType.GET, FrameType.MANIFEST, FrameType.HAVE, FrameType.DETACH]),
        small,
        st.integers(0, 2),
        st.sampled_from([0, 1, 50, 2**40]),
        st.sampled_from([0, 1, 23, 99, 1000]),
        st.sampled_from([0, LAST, COMMIT, LAST | COMMIT, DETACH_AFTER, 255]),
    ),
    st.binary(max_size=60).map(lambda junk: lambda desk: junk),
)


# The first is good, so that there is something to damage; what is cut off at the front is tried by the junk.
first_frames = st.builds(send_all, st.integers(0, len(UPLOADS) - 1), cuts, st.just(COMMIT), st.just(False))
streams = st.builds(lambda first, rest: [first, *rest], first_frames, st.lists(frames, max_size=10))


class Damage:
    """What happens to a stream on its way: some bytes are changed, it is cut into reads."""

    def __init__(self, flips: Iterable[tuple[float, int]], cuts: Iterable[float]) -> None:
        self.flips = list(flips)
        self.cuts = list(cuts)

    def applied(self, stream: bytes) -> list[bytes]:
        """The reads."""
        damaged = bytearray(stream)
        for where, value in self.flips:
            if damaged:
                damaged[int(where * (len(damaged) - 1))] = value
        places = sorted({int(where * len(damaged)) for where in self.cuts} | {0, len(damaged)})
        return [bytes(damaged[start:stop]) for start, stop in itertools.pairwise(places)]


fraction = st.floats(0, 1)
damages = st.builds(
    Damage,
    st.one_of(st.just([]), st.just([]), st.lists(st.tuples(fraction, st.integers(0, 255)), min_size=1, max_size=3)),
    st.lists(fraction, max_size=6),
)


def drive(desk: UploadDesk, reads: Iterable[bytes]) -> bytes:
    """Feed a session as its worker does; what it answers."""
    session = ChannelSession(desk, KEYS, LIMITS, lambda: None)
    answers = bytearray()

    def collect() -> None:
        session.settle()
        while session.outgoing or (session.wants_to_send and not session.ended):
            if not session.outgoing:
                session.produce()
                continue
            item = session.outgoing.popleft()
            assert not isinstance(item, Payload), "the storage in memory has no zero-copy path"
            answers.extend(item)

    for read in reads:
        if session.ended:
            break
        session.receive(memoryview(read))
        collect()
    session.close()
    assert not session.outgoing
    return bytes(answers)


def check_published(desk: UploadDesk, stream: bytes) -> None:
    """Whatever is visible was there before, or was sent with its digest."""
    for name, content in stored_files(desk).items():
        if name == "stored":
            assert content == STORED
        else:
            assert digest_of(content) in stream, name
            assert name.startswith("up/")


@settings(max_examples=400)
@given(streams, damages)
def test_a_damaged_channel_publishes_nothing_that_was_not_sent(stream: list[Frame], damage: Damage) -> None:
    desk = fresh_desk()
    reads = damage.applied(CHANNEL_MAGIC + b"".join(frame(desk) for frame in stream))
    answers = drive(desk, reads)
    check_published(desk, b"".join(reads))
    decoder = FrameDecoder(from_client=False)
    for event in decoder.feed(memoryview(answers)):
        header = event.header
        assert header.status in {0, 1, 2, 3} or ErrorCode.from_number(header.status).number == header.status
        if isinstance(event, Chunk) and header.status == 0:
            assert header.length <= LIMITS.piece
    assert decoder.at_boundary, "an answer is never half made"
    # Whoever comes next is served as if nothing had been.
    check_serves(desk)


def check_serves(desk: UploadDesk) -> None:
    """A good client on the same desk."""
    spec = UploadSpec(b"n" * 16, "anonymous", parse_name("next"), 3)
    desk.open_small(spec)
    ticket = KEYS.sign(Ticket(Action.UPLOAD, "anonymous", spec.upload_id, 3, LATER, 1))
    stream = CHANNEL_MAGIC + HEADER.pack(FrameType.ATTACH, 0, 0, 1, 0, 0, len(ticket)) + ticket
    stream += HEADER.pack(FrameType.PUT, LAST | COMMIT, 0, 1, 0, 0, 3) + b"abc" + digest_of(b"abc")
    drive(desk, [stream])
    assert stored_files(desk)["next"] == b"abc"


@settings(max_examples=150)
@given(streams, damages)
def test_the_cut_of_a_good_stream_changes_nothing(stream: list[Frame], damage: Damage) -> None:
    whole, cut = fresh_desk(), fresh_desk()
    made = CHANNEL_MAGIC + b"".join(frame(whole) for frame in stream)
    damage.flips.clear()
    answers = drive(cut, damage.applied(made)), drive(whole, [made])
    # An error of the protocol ends a channel before or after what came in the same read.
    if not any(WHOLE_CHANNEL.to_bytes(4, "big") in answer for answer in answers):
        assert stored_files(whole) == stored_files(cut)


@settings(max_examples=150)
@given(st.binary(max_size=300), st.booleans())
def test_garbage_on_a_channel_ends_it(junk: bytes, has_magic: bool) -> None:
    desk = fresh_desk()
    drive(desk, [(CHANNEL_MAGIC if has_magic else b"") + junk])
    assert stored_files(desk) == {"stored": STORED}


# control --------------------------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        """Keep it."""
        assert not self.closed
        self.written += data

    def close(self) -> None:
        """As a socket whose buffer is empty."""
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self.closed

    def pause_reading(self) -> None:
        """Nothing is read here."""

    def resume_reading(self) -> None:
        """Nothing is read here."""


class Inline:
    """An executor that runs at once."""

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        """Run it."""
        function(*arguments)


def services_for(desk: UploadDesk) -> ControlServices:
    """What a session needs, without threads."""
    inline: Any = Inline()
    return ControlServices(
        handlers=Handlers(desk, KEYS, allow_all, LIMITS),
        executor=inline,
        lister=inline,
        hasher=inline,
        limits=LIMITS,
        times=ControlTimes(),
        greeting=lambda: {"agent": "fuzzed"},
        on_open=lambda session: None,
        on_close=lambda session: None,
    )


GOOD_TICKET = KEYS.sign(Ticket(Action.UPLOAD, "anonymous", UPLOADS[0], 0, LATER, 1))
names = st.sampled_from(["stored", "up/0", "up", "a b", "x", "..", "é", "n" * 300, "", "stored/below"])
words = st.one_of(
    names,
    st.sampled_from([upload_id.hex() for upload_id in UPLOADS]),
    st.sampled_from(["0", "1", "5", "100", "-1", str(2**63), "abc"]),
    st.text(max_size=8),
)
options = st.dictionaries(
    st.sampled_from(
        ["upload", "resume", "root", "generation", "if-absent", "if-match", "mtime", "exec", "after", "limit", "depth"]
    ),
    st.one_of(
        st.sampled_from(["1", "0", "00" * 16, "11" * 16, digest_of(STORED).hex(), "-5", ""]),
        st.sampled_from([upload_id.hex() for upload_id in UPLOADS]),
        st.text(max_size=6),
    ),
    max_size=4,
)


def line_of(number: int, verb: Verb, some: list[str], extra: Mapping[str, str]) -> bytes:
    """A command, as well formed as its words allow."""
    try:
        return format_command(Command(number, verb, tuple(some), extra))
    except Exception:  # words that no client can send: the fuzz has others
        return b"%d %s\n" % (number, verb.value.encode())


lines = st.one_of(
    st.builds(line_of, st.integers(0, 40), st.sampled_from(list(Verb)), st.lists(words, max_size=3), options),
    st.just(
        f"1 RENEW {encode_ticket(KEYS.sign(Ticket(Action.UPLOAD, 'anonymous', UPLOADS[0], 0, LATER, 1)))}\n".encode()
    ),
    st.binary(max_size=30),
)


async def converse(desk: UploadDesk, reads: Iterable[bytes]) -> bytes:
    """Feed a session; what it answers."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    session = ControlSession(services_for(desk))
    wire = Wire()
    session.connection_made(wire)
    for read in reads:
        if wire.closed:
            break
        session.data_received(read)
        for _ in range(3):
            await asyncio.sleep(0)
    if not wire.closed:
        session.eof_received()
    for _ in range(200):
        await asyncio.sleep(0)
    assert wire.closed, "everything is answered, and it ends"
    session.connection_lost(None)
    assert not complaints, complaints
    return bytes(wire.written)


@settings(max_examples=400)
@given(st.lists(lines, max_size=15), damages)
def test_a_damaged_control_connection_gets_one_answer_a_command_and_publishes_nothing(
    said: list[bytes], damage: Damage
) -> None:
    desk = fresh_desk()
    reads = [format_greeting("HELLO", {"agent": "fuzz"}), *damage.applied(b"".join(said))]
    answered = asyncio.run(converse(desk, reads))
    assert answered.endswith(b"\n")
    first, *rest = answered[:-1].split(b"\n")
    parse_greeting(first, "OK")
    replies: list[Reply] = [parse_reply(line) for line in rest]
    for reply in replies:
        if reply.kind is ReplyKind.ERROR:
            assert reply.code is not None
            assert reply.text == reply.code.text
    finals = Counter(reply.id for reply in replies if reply.id and reply.kind.ends_command)
    stream = b"".join(reads)
    for number, count in finals.items():
        assert count <= stream.count(b"%d " % number), "more answers than commands"
    # Names may have moved and gone, but what is there is what was there.
    assert set(stored_files(desk).values()) <= {STORED}


@settings(max_examples=150)
@given(st.binary(max_size=200))
def test_garbage_instead_of_a_greeting_is_answered_and_closed(junk: bytes) -> None:
    desk = fresh_desk()
    answered = asyncio.run(converse(desk, [junk + b"\n"]))
    assert answered.count(b"\n") >= 1
    assert answered.startswith((b"0 ERROR ", b"OK 2 "))

"""Client and server joined in memory, in lock step: no socket, no thread, and every flight of bytes is counted.

The client's half is the real engine and real lanes, the server's the real handlers and channel sessions over storage in
memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from twinport.download_engine import DownloadEngine
from twinport.engine import Request
from twinport.lane import Lane
from twinport.streams import FileRange
from twinport.upload_engine import UploadEngine
from twinport_protocol.control import ControlClient, ControlServer, Limits
from twinport_protocol.messages import Command, Reply, Verb
from twinport_protocol.tickets import TicketKeys
from twinport_service.access import ANONYMOUS, allow_all
from twinport_service.channel_session import ChannelSession, Payload
from twinport_service.handlers import Handlers
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.name_handlers import Caller
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk
from twinport_service.usage import UsageBook

MAX_FLIGHTS = 2000


class MemoryServer:
    """The parts of a server that do not touch a socket."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        usage = UsageBook()
        self.storage = MemoryStorage(open_versions=4096, usage=usage)
        ledger = MemoryLedger(usage=usage)
        self.desk = UploadDesk(self.storage, ledger)
        self.now = 1_000_000.0
        self.keys = TicketKeys(bytes(range(16)), {7: bytes(range(32))}, 7)
        self.handlers = Handlers(self.desk, self.keys, allow_all, self.limits, now=lambda: self.now)
        self.caller = Caller(ANONYMOUS, "memory")

    def answer(self, wire: ControlServer, command: Command) -> bytes:
        """All replies to a command."""
        replies: list[Reply] = []
        if command.verb is Verb.COMMIT:
            self.handlers.commit(self.caller, command, replies.append, lambda done_bytes: None)
        else:
            quick = self.handlers.quick(self.caller, command)
            replies.extend([quick] if quick is not None else self.handlers.slow(self.caller, command))
        return b"".join(map(wire.reply, replies))


class MemoryPair:
    """Runs an engine to its end. ``flights`` counts round trips: all that can be sent is, then all is answered."""

    def __init__(
        self,
        server: MemoryServer,
        engine: UploadEngine | DownloadEngine,
        make_lane: Callable[[], Lane],
        *,
        channels: int = 4,
        after_flight: Callable[[], None] = lambda: None,
    ) -> None:
        self.flights = 0
        self.commands: list[Command] = []
        self._server = server
        self._engine = engine
        self._make_lane = make_lane
        self.after_flight = after_flight
        self.tamper_up: Callable[[bytes], bytes] = lambda data: data
        self.tamper_down: Callable[[bytes], bytes] = lambda data: data
        self._client_wire = ControlClient()
        self._server_wire = ControlServer(server.limits)
        self._waiting: dict[int, Request] = {}
        self._server_wire.feed(self._client_wire.hello({}))
        assert len(list(self._server_wire.events())) == 1
        self._client_wire.feed(self._server_wire.greet({}))
        assert len(list(self._client_wire.events())) == 1
        self.channels = [self._open_channel() for _ in range(channels)]

    def _open_channel(self) -> tuple[Lane, ChannelSession]:
        server = self._server
        session = ChannelSession(server.desk, server.keys, server.limits, lambda: None, now=lambda: server.now)
        lane = self._make_lane()
        session.receive(memoryview(lane.protocol.open()))
        return lane, session

    def lose_channel(self, index: int) -> None:
        """The connection breaks; the client opens another."""
        lane, session = self.channels[index]
        session.close()
        lane.lost()
        self.channels[index] = self._open_channel()

    def lose_session(self) -> None:
        """Everything breaks at once; the client greets anew."""
        for lane, session in self.channels:
            session.close()
            lane.lost()
        self._engine.session_lost()
        self._waiting.clear()
        self._client_wire = ControlClient()
        self._server_wire = ControlServer(self._server.limits)
        self._server_wire.feed(self._client_wire.hello({}))
        list(self._server_wire.events())
        self._client_wire.feed(self._server_wire.greet({}))
        list(self._client_wire.events())
        self.channels = [self._open_channel() for _ in self.channels]

    def run(self, until: Callable[[], bool] = lambda: False) -> int:
        """Flights until the engine is over or ``until`` says so."""
        while not self._engine.is_over and not until():
            self.flights += 1
            assert self.flights < MAX_FLIGHTS, "no end in sight"
            up = self._send_commands()
            puts = [self.send_frames(lane) for lane, _ in self.channels]
            down = self._answer_commands(up)
            for (lane, session), data in zip(self.channels, puts, strict=True):
                answers = self.tamper_down(self.answer_frames(session, self.tamper_up(data)))
                lane.receive(memoryview(answers))
            self._take_replies(down)
            self._engine.tick()
            self.after_flight()
        return self.flights

    def _send_commands(self) -> bytes:
        lines: list[bytes] = []
        while self._client_wire.has_room():
            requests = self._engine.next_requests(1)
            if not requests:
                break
            number, line = self._client_wire.command(requests[0].verb, requests[0].words, requests[0].options)
            self._waiting[number] = requests[0]
            lines.append(line)
        return b"".join(lines)

    @staticmethod
    def send_frames(lane: Lane) -> bytes:
        sent = bytearray()
        while buffers := lane.fill():
            for buffer in buffers:
                assert not isinstance(buffer, FileRange)  # only to a line that takes them
                sent += buffer
        return bytes(sent)

    def _answer_commands(self, data: bytes) -> bytes:
        self._server_wire.feed(data)
        answers: list[bytes] = []
        for event in self._server_wire.events():
            assert isinstance(event, Command), event
            self.commands.append(event)
            answers.append(self._server.answer(self._server_wire, event))
        return b"".join(answers)

    @staticmethod
    def answer_frames(session: ChannelSession, data: bytes) -> bytes:
        session.receive(memoryview(data))
        answers = bytearray()
        session.settle()
        while session.outgoing or session.wants_to_send:
            session.produce()
            session.settle()
            while session.outgoing:
                item = session.outgoing.popleft()
                if isinstance(item, Payload):
                    part = bytearray(item.remaining)
                    assert item.reader.read_into(item.offset, part) == len(part)
                    answers += part
                    item.release()
                else:
                    answers += item
        return bytes(answers)

    def _take_replies(self, data: bytes) -> None:
        self._client_wire.feed(data)
        pairs: list[tuple[Request, Reply]] = []
        for event in self._client_wire.events():
            assert isinstance(event, Reply)
            final = event.kind.ends_command
            pairs.append((self._waiting.pop(event.id) if final else self._waiting[event.id], event))
        self._engine.take_replies(pairs)


def new_lock() -> threading.Lock:
    """What the owner of an engine holds; here nobody else does."""
    return threading.Lock()

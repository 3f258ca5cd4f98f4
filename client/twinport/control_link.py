"""The control connection in one thread: writes commands in batches, reads replies while it writes, keeps the line
alive.

Commands come from two sides: single calls (:meth:`ControlLink.call`), and a running transfer (the *source*), which is
asked for as many as fit into the window whenever there is room and gets its replies a batch at a time.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from twinport_protocol.control import ControlClient, ControlState, Greeting
from twinport_protocol.errors import ErrorCode, ProtocolError
from twinport_protocol.messages import Reply, ReplyKind, Verb

from .engine import Request
from .errors import NetworkError, ServerProtocolError, TwinportError, nonsense
from .streams import Outgoing, Stream
from .wake import Waker

READ_BYTES = 256 * 1024
WRITE_BYTES = 128 * 1024
PING_SECONDS = 30.0
# The longest line that this client sends: two names of 900 bytes, each byte percent-encoded, would be the worst.
LONGEST_LINE_BYTES = 6 * 1024


class CommandSource(Protocol):
    """A running transfer, as the link sees it. Called in the link's thread."""

    def next_requests(self, room: int) -> list[Request]:
        """At most ``room`` commands to send now."""

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """Replies to commands of :meth:`next_requests`, in the order of their arrival."""

    def link_lost(self, error: TwinportError) -> None:
        """The connection is gone; no more replies come."""


class Call:
    """One command outside a transfer; :meth:`result` waits for its replies."""

    def __init__(self, verb: Verb, words: tuple[str, ...], options: Mapping[str, str]) -> None:
        self.verb = verb
        self.words = words
        self.options = options
        self.replies: list[Reply] = []
        # Whoever asks for a page says how long it may be; no other command is answered with entries.
        self._most_entries = int(self.options.get("limit", "0"))
        self._error: TwinportError | None = None
        self._done = threading.Event()

    def take(self, reply: Reply) -> None:
        """One more reply. ``ServerProtocolError`` for more entries than were asked for."""
        if reply.kind.ends_command:
            self.replies.append(reply)
            self._done.set()
        elif reply.kind is ReplyKind.ENTRY:
            if len(self.replies) >= self._most_entries:
                raise ServerProtocolError(f"the server answers {self.verb.value} with more entries than were asked for")
            self.replies.append(reply)

    def fail(self, error: TwinportError) -> None:
        """No reply will come."""
        self._error = error
        self._done.set()

    def result(self) -> list[Reply]:
        """All replies, the final one last. Raises what made them impossible."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self.replies


class _Asked(NamedTuple):
    """A command of a transfer: its reply is for nobody once another transfer runs."""

    source: CommandSource
    request: Request


class ControlLink:
    """Owns a connected stream from the greeting on."""

    def __init__(
        self,
        stream: Stream,
        protocol: ControlClient,
        clock: Callable[[], float],
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        self._stream = stream
        self._protocol = protocol
        self._clock = clock
        self._ping_seconds = ping_seconds
        self._waker = Waker()
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque()
        self._source: CommandSource | None = None
        self._waiting: dict[int, Call | _Asked | None] = {}
        self._closing = False
        self._error: TwinportError | None = None
        self._out: Outgoing = deque()
        self._heard = clock()
        self._pinged = False
        self.is_draining = False
        self._thread = threading.Thread(target=self._run, name="twinport-control", daemon=True)
        self._thread.start()

    @property
    def error(self) -> TwinportError | None:
        """Why the link is down, or None while it is up."""
        return self._error

    def call(self, verb: Verb, words: tuple[str, ...] = (), options: Mapping[str, str] | None = None) -> Call:
        """Send one command; wait with :meth:`Call.result`."""
        call = Call(verb, words, options or {})
        with self._lock:
            if self._error is not None:
                call.fail(self._error)
                return call
            self._calls.append(call)
        self._waker.wake()
        return call

    def set_source(self, source: CommandSource | None) -> None:
        """The transfer that may send commands from now on."""
        with self._lock:
            self._source = source
        self._waker.wake()

    def wake(self) -> None:
        """There may be new commands."""
        self._waker.wake()

    def close(self) -> None:
        """Say QUIT if the line is quiet, close, end the thread."""
        with self._lock:
            self._closing = True
        self._waker.wake()
        self._thread.join()

    # the thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: TwinportError = NetworkError("the connection was closed", "Closed")
        try:
            self._loop()
        except ProtocolError as broken:
            error = nonsense(broken)
        except TwinportError as lost:
            error = lost
        except OSError as lost:
            error = NetworkError(f"the control connection was lost: {lost.strerror or lost}")
        finally:
            self._end(error)

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        number = self._stream.fileno()
        poll.register(number, select.POLLIN)
        buffer = bytearray(READ_BYTES)
        view = memoryview(buffer)
        while True:
            if self._closing:
                self._say_goodbye()
                return
            if not self._out:
                self._fill()
            if self._out:
                self._stream.send(self._out)
            if self._stream.has_input():
                self._read(view)
                continue
            poll.modify(number, self._stream.poll_mask(bool(self._out)))
            ready = dict(poll.poll(self._wait_ms()))
            if self._waker.fileno() in ready:
                self._waker.clear()
            if self._stream.may_read(ready.get(number, 0)):
                self._read(view)

    def _wait_ms(self) -> int:
        quiet = self._clock() - self._heard
        if quiet >= 2 * self._ping_seconds and self._pinged:
            raise NetworkError(f"the server has been silent for {quiet:.0f} s")
        if quiet >= self._ping_seconds and not self._pinged and not self._out and self._protocol.has_room():
            self._pinged = True
            number, line = self._protocol.command(Verb.PING)
            self._waiting[number] = None
            self._out.append(memoryview(line))
            return 0
        edge = 2 * self._ping_seconds if self._pinged else self._ping_seconds
        return max(1, int((edge - quiet) * 1000) + 1) if edge > quiet else 1000

    def _fill(self) -> None:
        lines: list[bytes] = []
        size = 0
        while size < WRITE_BYTES and self._protocol.has_room(LONGEST_LINE_BYTES):
            with self._lock:
                call = self._calls.popleft() if self._calls else None
                source = self._source
            if call is not None:
                number, line = self._protocol.command(call.verb, call.words, call.options)
                self._waiting[number] = call
                lines.append(line)
                size += len(line)
                continue
            if source is None:
                break
            requests = source.next_requests(self._room())
            if not requests:
                break
            for request in requests:
                number, line = self._protocol.command(request.verb, request.words, request.options)
                self._waiting[number] = _Asked(source, request)
                lines.append(line)
                size += len(line)
        if lines:
            self._out.append(memoryview(b"".join(lines)))

    def _room(self) -> int:
        """How many commands fit into the window for sure."""
        commands = self._protocol.limits.window_commands - self._protocol.outstanding
        for count in (64, 8):
            if count <= commands and self._protocol.has_room(count * LONGEST_LINE_BYTES):
                return count
        return 1

    def _read(self, view: memoryview) -> None:
        count = self._stream.receive_into(view)
        if count is None:
            return
        if count == 0:
            raise NetworkError("the server closed the control connection")
        self._heard = self._clock()
        self._pinged = False
        self._protocol.feed(bytes(view[:count]))
        pairs: list[tuple[Request, Reply]] = []
        with self._lock:
            source = self._source
        for event in self._protocol.events():
            if isinstance(event, Greeting):
                continue
            if event.id == 0:
                self._on_notice(event)
                continue
            waiting = self._waiting.pop(event.id) if event.kind.ends_command else self._waiting[event.id]
            if isinstance(waiting, Call):
                waiting.take(event)
            elif waiting is not None:
                if event.code is ErrorCode.LOGIN_REQUIRED:
                    # Of a transfer, which logged in: the login was ended, and perhaps another one goes on with it all.
                    raise _ended(event)
                if waiting.source is source:
                    pairs.append((waiting.request, event))
        if pairs and source is not None:
            source.take_replies(pairs)

    def _on_notice(self, reply: Reply) -> None:
        if reply.kind is ReplyKind.NOTICE and "draining" in reply.words:
            self.is_draining = True
        elif reply.kind is ReplyKind.ERROR:
            raise _ended(reply)

    def _say_goodbye(self) -> None:
        if self._protocol.state is ControlState.READY and not self._out:
            try:
                self._stream.send(deque([memoryview(self._protocol.command(Verb.QUIT)[1])]))
            except (OSError, ProtocolError):
                return

    def _end(self, error: TwinportError) -> None:
        self._protocol.close()
        with self._lock:
            self._error = error
            calls = [*self._calls, *(waiting for waiting in self._waiting.values() if isinstance(waiting, Call))]
            self._calls.clear()
            self._waiting.clear()
            source = None if self._closing else self._source
        for call in calls:
            call.fail(error)
        try:
            self._stream.close()
        finally:
            self._waker.close()
        if source is not None:
            source.link_lost(error)


def _ended(reply: Reply) -> NetworkError:
    code = reply.code.value if reply.code else "Internal"
    return NetworkError(f"the server ended the connection: {reply.text} [{code}]", code)

"""One data connection in one thread: a non-blocking stream and a poll loop around a lane.

The thread owns the socket from connect to close, the TLS handshake included; nobody else ever touches it. Reading goes
on while writing waits, so the two ends cannot block each other. A channel on which an answer is due and nothing moves
for ``silent_seconds`` is given up: its socket is shut down first, then its orders go back to the engine.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from twinport_protocol.errors import ProtocolError

from .addresses import Address
from .congestion import LineFacts
from .errors import NetworkError, TrustError, TwinportError, nonsense
from .lane import Buffer, ChannelClosingError, Lane
from .report import ChannelWatcher
from .streams import CONNECT_SECONDS, SILENT_SECONDS, FileRange, Outgoing, Stream, connect_channel, stream_of, tune
from .timings import Stopwatch
from .wake import Waker

READ_BYTES = 1024 * 1024
SMALL_BYTES = 64 * 1024
FINISH_SECONDS = 10.0
FINISH_SILENT_SECONDS = 1.0
LOOK_SECONDS = 0.4
START_TRIES = 100
START_SECONDS = 0.001
UNUSED_SECONDS = 2.0
"""A channel that nobody needed for so long may be closed by the server without being called lost."""


class DataChannel:
    """Connects to the first of ``addresses`` that answers, then works for ``lane`` until told to stop or lost.

    ``certificate`` is that of the control connection (its SHA-256): the channel is under TLS then, to the same one.
    ``on_end(channel)`` is called last, from the channel's thread; :attr:`error` is why it was lost, None after
    :meth:`stop`. ``watcher`` looks at the connection.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        lane: Lane,
        on_end: Callable[[DataChannel], None],
        clock: Callable[[], float],
        *,
        certificate: bytes | None = None,
        silent_seconds: float = SILENT_SECONDS,
        connect_seconds: float = CONNECT_SECONDS,
        read_bytes: int = READ_BYTES,
        watcher: ChannelWatcher | None = None,
    ) -> None:
        self.lane = lane
        self.error: TwinportError | None = None
        self.is_idle = False
        self.watch = Stopwatch()
        """Where this channel's time goes; for others once it has ended."""
        self.line = LineFacts()
        """The line, as it was a moment ago."""
        self._was_used = False
        self._queued_bytes = 0
        self.address: Address | None = None
        self._addresses = addresses
        self._on_end = on_end
        self._clock = clock
        self._certificate = certificate
        self._silent_seconds = silent_seconds
        self._connect_seconds = connect_seconds
        self._read_bytes = read_bytes
        self._watcher = watcher
        self._waker = Waker()
        self._stopping = False
        self._is_overtaken = False
        self._finish_by: float | None = None
        self._connected_at = 0.0
        self._out: Outgoing = deque()
        self._thread = threading.Thread(target=self._run, name="twinport-channel", daemon=True)

    def start(self) -> None:
        """Connect and work."""
        self._thread.start()

    def wake(self) -> None:
        """There may be new orders."""
        self._waker.wake()

    def stop(self) -> None:
        """End at the next opportunity."""
        self._stopping = True
        self._waker.wake()

    @property
    def is_retiring(self) -> bool:
        """Whether it takes no more orders."""
        return self.lane.is_retiring

    def retire(self) -> None:
        """Take no more orders, and end when those in hand are done: nothing of them has to be done again."""
        self.lane.is_retiring = True
        self._waker.wake()

    def overtake(self) -> None:
        """Others go on with what it has in hand: give it up."""
        self._is_overtaken = True
        self._waker.wake()

    def finish(self) -> None:
        """Ask for nothing more, take the answers that are on their way, and end. Whatever the server still owes after
        ``FINISH_SECONDS``, or after a shorter silence, is given up."""
        self._finish_by = self._clock() + FINISH_SECONDS
        self._waker.wake()

    def join(self) -> None:
        """Wait for the end of the thread."""
        for _ in range(START_TRIES):
            try:
                self._thread.join()
                break
            except RuntimeError:  # Ctrl-C came while it was being started: it is about to run, or never will
                time.sleep(START_SECONDS)
        self._waker.close()

    def _run(self) -> None:
        stream: Stream | None = None
        self.watch.start()
        try:
            stream = self._connect()
            self.watch.lap("connecting")
            if stream is not None:
                if self._watcher is not None:
                    self._watcher.channel_opens(stream.fileno())
                self._loop(stream)
        except ProtocolError as broken:
            self.error = nonsense(broken)
        except ChannelClosingError as closing:
            self.error = NetworkError(f"the server closed a data connection: {closing}", "Closed")
        except (NetworkError, TrustError) as lost:
            self.error = lost
        except OSError as lost:
            self.error = NetworkError(f"a data connection was lost: {lost.strerror or lost}")
        finally:
            if stream is not None:
                if self._watcher is not None:
                    self._watcher.channel_closes(stream.fileno())
                stream.close()
                lived = self._clock() - self._connected_at
                if not self.lane.is_waiting and not self._out and (self._was_used or lived > UNUSED_SECONDS):
                    self.error = None  # the server closes what is idle; nothing is lost by it
            # Only now: nothing of this channel can reach the server any more.
            self.lane.lost()
            self._on_end(self)

    def _connect(self) -> Stream | None:
        trouble: OSError | NetworkError | None = None
        for address in self._addresses:
            if self._stopping:
                return None
            try:
                connection = connect_channel(address, self._certificate, self._connect_seconds)
            except (OSError, NetworkError) as error:
                trouble = error
                continue
            tune(connection, self._silent_seconds)
            self._connected_at = self._clock()
            self.address = address
            return stream_of(connection)
        if isinstance(trouble, NetworkError):
            raise trouble
        where = " or ".join(map(str, self._addresses))
        raise NetworkError(f"no data connection to {where}: {trouble and (trouble.strerror or trouble)}")

    def _loop(self, stream: Stream) -> None:
        # On one machine the other end would copy from a file's cold pages what it copies from ours while they are hot.
        self.lane.sends_files = stream.takes_files and not stream.look().is_local
        poll = select.poll()
        number = stream.fileno()
        poll.register(self._waker.fileno(), select.POLLIN)
        poll.register(number, select.POLLIN)
        watched = select.POLLIN
        view = memoryview(bytearray(self._read_bytes))
        self._out.append(memoryview(self.lane.protocol.open()))
        moved = self._clock()
        look_at = moved
        while not self._stopping:
            if self._is_overtaken:
                stream.drop_unsent()
                return
            finish_by = self._finish_by
            if finish_by is not None and (not self.lane.is_waiting or self._clock() > finish_by):
                return
            if not self._out and finish_by is None:
                self._queue(self.lane.fill())
                self.watch.lap("preparing")
                if not self._out and self.is_retiring and not self.lane.is_waiting:
                    return
            if self._out and self._send(stream, view):
                self._was_used = self._was_used or self.lane.is_waiting
                moved = self._clock()
                if not self._out and not self._poll_now(poll, number):
                    continue  # sent all: prepare the next piece before waiting for anything
            if stream.has_input() and self._read(stream, view):
                moved = self._clock()
                continue
            wanted = stream.poll_mask(bool(self._out))
            if wanted != watched:
                poll.modify(number, wanted)
                watched = wanted
            if moved >= look_at:
                self.line = stream.look()
                look_at = moved + LOOK_SECONDS
            due = self.lane.is_waiting or bool(self._out)
            self.is_idle = not due
            left = moved + self._silent_seconds - self._clock()
            if finish_by is not None:
                left = min(left, moved + FINISH_SILENT_SECONDS - self._clock())
                if left <= 0:
                    return
            if due and left <= 0:
                self._check_queue(stream)
                moved = self._clock()
                continue
            ready = dict(poll.poll(int(left * 1000) + 1 if due else None))
            self.watch.lap("waiting")
            self.is_idle = False
            if self._waker.fileno() in ready:
                self._waker.clear()
                if not due:
                    moved = self._clock()
            if stream.may_read(ready.get(number, 0)) and self._read(stream, view):
                moved = self._clock()

    def _send(self, stream: Stream, view: memoryview) -> bool:
        """Send what goes now; whether that was anything."""
        try:
            moved = stream.send(self._out)
            self.watch.lap("sending")
            return moved
        except OSError:
            # A reset fails the next write first, though answers that came before it still wait to be read.
            while self._read(stream, view):
                pass
            raise

    def _check_queue(self, stream: Stream) -> None:
        """On a slow line one piece may be under way for long: as long as what the kernel holds of it shrinks, it moves.
        ``NetworkError`` when it does not."""
        queued = stream.unsent_bytes()
        if queued == self._queued_bytes:
            stream.drop_unsent()
            raise NetworkError(f"a data connection was silent for {self._silent_seconds:.0f} s")
        self._queued_bytes = queued

    def _poll_now(self, poll: select.poll, number: int) -> bool:
        """Whether there is something to read already."""
        return any(found == number and events & ~select.POLLOUT for found, events in poll.poll(0))

    def _queue(self, buffers: list[Buffer]) -> None:
        """Many small buffers become one; large ones stay where they are."""
        small: list[bytes | bytearray | memoryview] = []
        for buffer in buffers:
            if not isinstance(buffer, FileRange) and len(buffer) <= SMALL_BYTES:
                small.append(buffer)
                continue
            if small:
                self._out.append(memoryview(b"".join(small)))
                small = []
            self._out.append(buffer if isinstance(buffer, FileRange) else memoryview(buffer))
        if small:
            self._out.append(memoryview(b"".join(small)))

    def _read(self, stream: Stream, view: memoryview) -> bool:
        count = stream.receive_into(view)
        self.watch.lap("receiving")
        if count is None:
            return False
        if count == 0:
            raise NetworkError("the server closed a data connection")
        self.lane.receive(view[:count])
        self.watch.lap("taking")
        return True

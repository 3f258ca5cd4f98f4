"""Runs one upload or download: feeds its engine, opens channels as there is work, reconnects what was lost.

Threads: the caller's feeds and supervises; the control link's sends commands and takes replies; each channel's takes
orders. They meet in the engine, under one lock, held for microseconds. The observer is only ever called from the
caller's thread, without the lock.

A lost channel costs its unanswered orders. A lost control connection costs the session: the channels are ended,
everything open is asked for again with the same ids. Tries go on, with growing waits, as long as something moved within
``patience_seconds``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from twinport_protocol.errors import ErrorCode
from twinport_protocol.messages import Reply

from .backoff import Backoff
from .channel_count import ChannelCount
from .data_channel import DataChannel
from .engine import Engine, EventKind, Request
from .errors import BusyError, InterruptError, LoginError, NetworkError, ServerProtocolError, TrustError, TwinportError
from .lane import Lane
from .report import ChannelWatcher, Observer
from .session import Session
from .streams import SILENT_SECONDS
from .tail_watch import Progress, TailWatch

PATIENCE_SECONDS = 120.0
CHANNEL_BYTES = 4 * 1024 * 1024
"""Work waiting for a channel that is worth another channel."""
LONG_CHANNEL_BYTES = 64 * 1024
"""The same on a long line: each connection begins with a few packets a round trip."""
FEED_ITEMS = 64
TICK_SECONDS = 0.1
IDLE_TICK_SECONDS = 1.0
MAX_NONSENSE = 4
"""Channels that end because the server broke the protocol: it will not mend itself."""


class Transfer:
    """One run. ``session()`` gives the current session, connecting anew when told to; ``make_lane`` a lane of the
    engine."""

    def __init__(
        self,
        engine: Engine,
        lock: threading.Lock,
        session: Callable[[bool], Session],
        make_lane: Callable[[Session, Callable[[], None]], Lane],
        observer: Observer,
        *,
        count: ChannelCount,
        patience_seconds: float = PATIENCE_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._engine = engine
        self._changed = threading.Condition(lock)
        self._get_session = session
        self._make_lane = make_lane
        self._observer = observer
        self._count = count
        self._patience_seconds = patience_seconds
        self._silent_seconds = silent_seconds
        self._clock = clock
        self._tail = TailWatch(clock)
        self._session: Session = session(False)
        self._count.begin(self._session.line, self._session.limits.channels)
        self._channels: list[DataChannel] = []
        self._ended: list[DataChannel] = []
        self._link_error: TwinportError | None = None
        self._blocked = False
        self._news = False
        self._new_backoff = backoff
        self._channel_backoff = backoff()
        self._channel_due = 0.0
        self._moved_at = clock()
        self._mark: tuple[int, int] = (0, 0)
        self._nonsense = 0
        self._distrusted = False
        self._login_ended_at: tuple[int, int] | None = None
        self._timings = engine.report.timings
        self._timings.opening = self._session.opening

    # the caller's thread ---------------------------------------------------------------------------------------------

    def run(self, feed: Iterator[Any], add: Callable[[Any], None]) -> None:
        """Transfer everything that ``feed`` finds; ``add`` hands an item to the engine, under the lock.

        Failures of files are the engine's report. Raises what ends the whole transfer: ``NetworkError`` when the line
        could not be regained in time, ``KeyboardInterrupt``, and whatever ``feed`` raises.
        """
        self._session.link.set_source(self)
        began = time.perf_counter()
        try:
            if self._count.opens_early:
                # While the first files are found and asked for: two or three round trips that nobody waits for then.
                self._open_channels(beforehand=True)
            feeding = True
            while True:
                if feeding:
                    before = time.perf_counter()
                    feeding = self._feed(feed, add)
                    self._timings.finding_seconds += time.perf_counter() - before
                self._report_events()
                with self._changed:
                    self._engine.tick()
                    if self._engine.is_over:
                        break
                    self._blocked = feeding and not self._engine.has_room
                    if (not feeding or self._blocked) and not self._news:
                        self._changed.wait(self._wait_seconds())
                    self._news = False
                    self._engine.tick()
                    orders = self._engine.order_count
                if orders:
                    # What was waiting for its time has no other event to announce it.
                    for channel in self._channels:
                        channel.wake()
                self._supervise()
                self._session.link.wake()
        except BaseException as error:
            self._stop_channels()
            with self._changed:
                self._engine.fail_all(_reason(error))
                self._engine.events.clear()  # what is raised says it once for all of them
            raise
        finally:
            self._session.link.set_source(None)
            self._stop_channels()
            self._report_events()
            self._timings.total_seconds += time.perf_counter() - began

    def _feed(self, feed: Iterator[Any], add: Callable[[Any], None]) -> bool:
        """Hand some items over; False when there are no more."""
        items: list[Any] = []
        more = True
        with self._changed:
            room = self._engine.has_room
        if not room:
            return True
        for _ in range(FEED_ITEMS):
            item = next(feed, None)
            if item is None:
                more = False
                break
            items.append(item)
        with self._changed:
            for item in items:
                add(item)
            if not more:
                self._engine.close_input()
            # A ticket that came before the files did makes them orders at once: no reply is going to announce them.
            self._news = self._news or self._engine.order_count > 0
        self._session.link.wake()
        return more

    def _wait_seconds(self) -> float:
        wait = IDLE_TICK_SECONDS if not self._channels else TICK_SECONDS
        due = self._engine.due_seconds()
        if due is not None:
            wait = min(wait, due)
        if self._channel_due:
            wait = min(wait, max(0.0, self._channel_due - self._clock()))
        return wait

    def _report_events(self) -> None:
        engine, observer = self._engine, self._observer
        while True:
            with self._changed:
                events = [engine.events.popleft() for _ in range(min(256, len(engine.events)))]
                done, known = engine.done_bytes, engine.known_bytes
            if not events:
                break
            for event in events:
                if event.kind is EventKind.DONE:
                    observer.file_done(event.name, event.size_bytes)
                elif event.kind is EventKind.FAILED and event.error is not None:
                    observer.file_failed(event.name, self._session.explain(event.error))
                else:
                    observer.note(event.name)
        observer.progress(max(0, done), known)

    def _supervise(self) -> None:
        with self._changed:
            ended, self._ended = self._ended, []
            link_error, self._link_error = self._link_error, None
            report = self._engine.report
            mark = (self._engine.done_bytes, report.files_done + report.files_kept + report.directories_done)
        for channel in ended:
            channel.join()
            self._timings.add(channel.watch)
            self._channels.remove(channel)
        if link_error is not None and link_error.code == ErrorCode.LOGIN_REQUIRED.value:
            if self._login_ended_at == mark:  # nothing moved since: the new login is ended too, and would be for ever
                raise LoginError(link_error.message, link_error.code)
            self._login_ended_at = mark
        if mark != self._mark:
            self._mark = mark
            self._moved_at = self._clock()
            # Also when it broke again: a line that moves something between two breaks is worth a quick next try.
            self._channel_backoff.reset()
        lost = next((channel for channel in ended if channel.error is not None), None)
        if lost is not None and isinstance(lost.error, TrustError):
            # A certificate may be changed this moment; then the next control connection has the new one too.
            if self._distrusted:
                raise lost.error
            self._distrusted = True
            link_error = link_error or lost.error
        if link_error is not None or (lost is not None and self._session.link.is_draining):
            self._regain(link_error or (lost and lost.error) or NetworkError("the server is stopping"))
        elif lost is not None and lost.error is not None:
            self._nonsense += isinstance(lost.error, ServerProtocolError)
            if self._nonsense >= MAX_NONSENSE:
                raise lost.error
            if self._clock() - self._moved_at > self._patience_seconds:
                raise self._given_up(lost.error)
            self._channel_due = self._clock() + self._channel_backoff.next_seconds()
        self._open_channels()

    def _open_channels(self, *, beforehand: bool = False) -> None:
        if self._channel_due and self._clock() < self._channel_due:
            return
        self._channel_due = 0.0
        with self._changed:
            self._engine.spread = self._count.wanted
            orders, size, done_bytes = self._engine.order_count, self._engine.order_bytes, self._engine.done_bytes
        working = [channel for channel in self._channels if not channel.is_retiring]
        progress = [Progress(channel, channel.lane.moved_bytes, channel.lane.left_bytes) for channel in self._channels]
        late = self._tail.find_late(progress, has_work=orders > 0, rtt_seconds=self._session.line.rtt_seconds)
        if isinstance(late, DataChannel):
            late.overtake()
        self._count.note(done_bytes, len(working), is_busy=orders > 0, lines=[channel.line for channel in working])
        for channel in working[self._count.wanted :]:
            channel.retire()
        idle = sum(channel.is_idle for channel in working)
        wanted = min(orders, 1 + size // (LONG_CHANNEL_BYTES if self._count.opens_early else CHANNEL_BYTES)) - idle
        if beforehand:
            wanted = self._count.wanted
        for _ in range(min(wanted, self._count.wanted - len(working))):
            channel = DataChannel(
                self._session.channel_addresses,
                self._make_lane(self._session, self.on_change),
                self._on_end,
                self._clock,
                certificate=self._session.identity.certificate,
                silent_seconds=self._silent_seconds,
                watcher=self._observer if isinstance(self._observer, ChannelWatcher) else None,
            )
            self._channels.append(channel)
            self._timings.channels = max(self._timings.channels, len(self._channels))
            channel.start()

    def _regain(self, error: TwinportError) -> None:
        """End the session and open another, with growing waits, until patience is at its end."""
        for channel in self._channels:
            channel.finish()  # what is on its way need not be sent again
        self._join_channels()
        self._observer.note(f"{error.message}; connecting again")
        backoff = self._new_backoff()
        while True:
            with self._changed:
                self._changed.wait(backoff.next_seconds())
            try:
                self._session = self._get_session(True)
                break
            except TwinportError as trouble:
                if not isinstance(trouble, NetworkError) and not isinstance(trouble, BusyError):
                    raise
                if self._clock() - self._moved_at > self._patience_seconds:
                    raise self._given_up(trouble) from None
        self._count.begin(self._session.line, self._session.limits.channels)
        with self._changed:
            self._link_error = None
            self._engine.session_lost()
        self._channel_backoff.reset()
        self._channel_due = 0.0
        self._session.link.set_source(self)

    def _given_up(self, error: TwinportError) -> TwinportError:
        text = f"{error.message}; nothing moved for {self._patience_seconds:.0f} s; run the same command again to go on"
        return type(error)(text, error.code)

    def _stop_channels(self) -> None:
        for channel in self._channels:
            channel.stop()
        self._join_channels()

    def _join_channels(self) -> None:
        for channel in self._channels:
            channel.join()
            self._timings.add(channel.watch)
        self._channels.clear()
        with self._changed:
            self._ended.clear()

    # the other threads -----------------------------------------------------------------------------------------------

    def next_requests(self, room: int) -> list[Request]:
        """For the control link: commands to send now."""
        with self._changed:
            return self._engine.next_requests(room)

    def take_replies(self, pairs: Sequence[tuple[Request, Reply]]) -> None:
        """For the control link: what was answered."""
        with self._changed:
            self._engine.take_replies(pairs)
        self.on_change()

    def link_lost(self, error: TwinportError) -> None:
        """For the control link: it is gone."""
        with self._changed:
            self._link_error = error
            self._news = True
            self._changed.notify_all()

    def on_change(self) -> None:
        """Outcomes came: there may be new commands, new orders, or nothing left."""
        with self._changed:
            orders = self._engine.order_count
            # The list is the caller's thread's; a snapshot taken here may only be too short, and that thread looks
            # itself.
            channels = list(self._channels)
            needs_channel = orders > 0 and len(channels) < self._count.wanted and not self._channel_due
            has_requests = self._engine.has_requests
            if needs_channel or self._engine.is_over or (self._blocked and self._engine.has_room):
                self._news = True
                self._changed.notify_all()
        if orders:
            for channel in channels:
                channel.wake()
        if has_requests:
            self._session.link.wake()

    def _on_end(self, channel: DataChannel) -> None:
        with self._changed:
            self._ended.append(channel)
            self._news = True
            self._changed.notify_all()


def _reason(error: BaseException) -> TwinportError:
    if isinstance(error, TwinportError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptError("interrupted; run the same command again to go on")
    return TwinportError(f"{type(error).__name__}: {error}")

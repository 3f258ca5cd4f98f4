"""One twinport/2 control connection on the event loop: lines in, handlers asked, lines out.

Commands that may wait for a disk go to worker threads, many of them in one job, at most ``_JOBS`` jobs of a session
at a time; their replies come back in one write. COMMITs take as long as the disk does, and what must
hash a file first as long as the file is large: each kind has a lane of its own and holds up nothing else. A session
that does not read its replies is not read either. What comes behind a LOGIN waits for its outcome; the rest about
logins is in :mod:`login_gate`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from twinport_protocol.control import BadLine, ControlServer, ControlState, Greeting
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb, format_reply

from .access import ANONYMOUS
from .accounts.authenticator import LoggedIn
from .commit_watch import CommitWatch
from .control_services import ControlServices
from .handlers import Caller
from .limits import BUSY_SOON_SECONDS, Admission
from .log import get_log
from .login_gate import LoginGate
from .side_lane import SideLane
from .storage.contract import HashingNeeded

_JOBS = 2
_COMMITS = 16
_BATCH = 64
_EVENTS_IN_A_ROW = 256


class ControlSession(asyncio.Protocol):
    """The connection. All methods run on the event loop but for what is handed to the executor.

    ``certificate_sha256`` is the hash of the certificate that the client was shown; None on a plaintext connection."""

    __slots__ = (
        "_caller", "_certificate_sha256", "_closing", "_commits", "_gate", "_has_uploads", "_hashings", "_jobs",
        "_listing", "_login_deadline", "_more_to_come", "_peer", "_queue", "_reading", "_services", "_transport",
        "_wire", "_writable", "admission", "deadline", "loop", "number",
    )  # fmt: skip

    def __init__(self, services: ControlServices, certificate_sha256: bytes | None = None) -> None:
        self.admission: Admission | None = None
        """Its place among the sessions; given back when the connection is gone."""
        self.number = 0
        self._services = services
        self._certificate_sha256 = certificate_sha256
        self._wire = ControlServer(services.limits)
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._caller: Caller | None = None
        self._peer: object = None
        self._queue: deque[Command] = deque()
        self._jobs = 0
        self._has_uploads = False
        self._commits = SideLane(_COMMITS, self._start_commit)
        self._hashings = SideLane(1, self._start_hashing)
        self._listing = False
        self._more_to_come = False
        self._reading = True
        self._writable = True
        self._closing = False
        self._gate = LoginGate(services.authenticator, certificate_sha256, None, None)
        self.deadline = self.loop.time() + services.times.greeting_seconds
        self._login_deadline = self.loop.time() + services.times.login_seconds

    # asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is ours."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (asyncio's own promise for stream sockets)
        self._transport = transport
        self._peer = transport.get_extra_info("peername")
        self._services.on_open(self)
        self._gate = LoginGate(self._services.authenticator, self._certificate_sha256, self._peer, self.number)
        get_log().info(f"[NEW CONNECTION] {self._peer} connected")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; what runs for it ends by itself and its replies are dropped."""
        del exc
        self._closing = True
        self._wire.close()
        self._drop_waiting()
        self._transport = None
        if self.admission is not None:
            self.admission.close()
        self._end_uploads()
        self._services.on_close(self)

    def _end_uploads(self) -> None:
        """What it has opened and never sent ends a while after the session; what still runs may yet open more."""
        if self._has_uploads and not self._jobs:
            self._has_uploads = False
            self.loop.call_later(self._services.times.unsent_seconds, self._services.end_uploads, self.number)

    def data_received(self, data: bytes) -> None:
        """Take lines."""
        self._wire.feed(data)
        self._advance()

    def eof_received(self) -> bool:
        """The client sends nothing more: answer what is complete, then close."""
        self._closing = True
        self._close_when_done()
        return True

    def pause_writing(self) -> None:
        """The client does not read: stop reading it, and give it a deadline."""
        self._writable = False
        self.deadline = self.loop.time() + self._services.times.unread_seconds
        self._regulate()

    def resume_writing(self) -> None:
        """It reads again."""
        self._writable = True
        self._touch()
        self._advance()

    # commands --------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        self._more_to_come = False
        self._advance()

    def _advance(self) -> None:
        if self._more_to_come or self._gate.is_pending or not self._writable:
            return
        out: list[bytes] = []
        try:
            for count, event in enumerate(self._wire.events(), 1):
                self._touch()  # here, not where bytes come in: half a line now and then keeps no session alive
                if isinstance(event, Greeting):
                    out.append(self._greet(event))
                elif isinstance(event, BadLine):
                    out.append(format_reply(event.reply))
                else:
                    self._command(event, out)
                    if self._gate.is_pending:
                        break
                if count == _EVENTS_IN_A_ROW:  # others have their turn first
                    self._more_to_come = True
                    self.loop.call_soon(self._go_on)
                    break
        except RemoteProtocolError as error:
            out.append(format_reply(Reply(0, ReplyKind.ERROR, code=error.code)))
            self._end()
        self._write(out)
        self._start_jobs()
        self._regulate()
        self._close_when_done()

    def _greet(self, greeting: Greeting) -> bytes:
        self._caller = self._caller_of(ANONYMOUS)
        if self.admission is not None and not self._gate.is_owed:
            with contextlib.suppress(Refusal):  # too many are anonymous: it stays with those who may have to give way
                self.admission.prove(ANONYMOUS)
        reply = self._wire.greet({**self._services.greeting(), **self._gate.greet(greeting.options)})
        self._touch()
        return reply

    def _caller_of(self, user: str) -> Caller:
        return Caller(user, self._peer, self._certificate_sha256 is not None, self.number)

    def _command(self, command: Command, out: list[bytes]) -> None:
        if self._caller is None:  # pragma: no cover - the wire yields no command before the greeting
            raise RemoteProtocolError(ErrorCode.BAD_STATE)
        if command.verb is Verb.QUIT:
            out.append(self._wire.reply(Reply(command.id, ReplyKind.DONE)))
            self._wire.close()
            self._closing = True
            return
        if command.verb is Verb.LOGIN:
            self._log_in(self._caller, command, out)
            return
        refusal = self._gate.refusal_of(command)
        if refusal is not None:
            out.append(self._wire.reply(self._services.handlers.turn_away(self._caller, command, refusal)))
            if self._gate.is_over:
                self._end()
            return
        if command.verb is Verb.UPLOAD:
            self._has_uploads = True
        reply = self._services.handlers.quick(self._caller, command)
        if reply is not None:
            out.append(self._wire.reply(reply))
        else:
            self._queue.append(command)

    def _log_in(self, caller: Caller, command: Command, out: list[bytes]) -> None:
        command_id = command.id  # so that nothing here keeps the secret

        def on_outcome(outcome: LoggedIn | Refusal) -> None:
            self.post(self._login_done, command_id, outcome)

        refusal = self._gate.begin(command, on_outcome)
        if refusal is None:
            self._jobs += 1
            return
        out.append(self._wire.reply(self._services.handlers.turn_away(caller, command, refusal)))
        self._end_if_spent(out)

    def _login_done(self, command_id: int, outcome: LoggedIn | Refusal) -> None:
        if isinstance(outcome, LoggedIn) and self.admission is not None:
            try:
                self.admission.prove(outcome.user)
            except Refusal as refusal:
                get_log().info(f"[LOGIN] Put off: {refusal.detail}", peer=self._peer, user=outcome.user)
                self._gate.put_off(outcome, refusal)
                outcome = refusal
        reply = self._gate.settle(command_id, outcome)
        if isinstance(outcome, LoggedIn):
            self._caller = self._caller_of(outcome.user)
        rest: list[bytes] = []
        self._end_if_spent(rest)
        self.job_done([reply], rest)

    def _end_if_spent(self, out: list[bytes]) -> None:
        if self._gate.is_spent:
            out.append(format_reply(Reply(0, ReplyKind.ERROR, code=ErrorCode.LOGIN_FAILED)))
            self._end()

    def _end(self) -> None:
        self._wire.close()
        self._drop_waiting()
        self._closing = True

    def _start_jobs(self) -> None:
        while self._queue and self._writable and self._caller is not None:
            verb = self._queue[0].verb
            if verb is Verb.COMMIT:
                self._commits.add((self._caller, self._queue.popleft()))
            elif self._jobs >= _JOBS:
                return
            elif verb is Verb.LIST:
                # A page is large: they are made one at a time, about as fast as they are read.
                if self._listing:
                    return
                self._listing = True
                self._jobs += 1
                turns = self._services.handlers.list_in_turns(self._caller, self._queue.popleft())
                self._services.lister.submit(self._run_list, turns)
            else:
                batch: list[Command] = []
                while self._queue and len(batch) < _BATCH and self._queue[0].verb not in _ALONE:
                    batch.append(self._queue.popleft())
                self._jobs += 1
                self._services.executor.submit(self._run_batch, self._caller, batch)

    def _run_batch(self, caller: Caller, batch: list[Command]) -> None:
        replies: list[Reply] = []
        deferred: list[tuple[Caller, Command]] = []
        for command in batch:
            try:
                replies += self._services.handlers.slow(caller, command, may_hash=False)
            except HashingNeeded:
                deferred.append((caller, command))
        self.post(self._batch_done, replies, deferred)

    def _batch_done(self, replies: list[Reply], deferred: list[tuple[Caller, Command]]) -> None:
        if self._transport is not None:
            for asked in deferred:
                self._hashings.add(asked)
        self.job_done(replies)

    def _start_hashing(self, asked: tuple[Caller, Command]) -> None:
        self._services.hasher.submit(self._run_hashing, *asked)

    def _run_hashing(self, caller: Caller, command: Command) -> None:
        self.post(self._hashing_done, list(self._services.handlers.slow(caller, command)))

    def _hashing_done(self, replies: list[Reply]) -> None:
        self._hashings.end_one()
        self._answer(replies)

    def _run_list(self, turns: Iterator[Sequence[Reply] | None]) -> None:
        replies = next(turns)
        if replies is None:  # not done: others have their turn first
            if self._transport is not None:
                with contextlib.suppress(RuntimeError):  # the server has stopped
                    self._services.lister.submit(self._run_list, turns)
            return
        *entries, last = replies
        self.post(self._list_done, b"".join(map(format_reply, entries)), last)

    def _list_done(self, entries: bytes, last: Reply) -> None:
        self._listing = False
        self._write([entries])
        self.job_done([last])

    def post(self, callback: Callable[..., None], *args: object) -> None:
        """Call back on the event loop; from any thread."""
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return  # the loop is closed: the server has stopped and nobody waits for the answer

    def job_done(self, replies: list[Reply], rest: Sequence[bytes] = ()) -> None:
        """A job of this session ended with these replies; ``rest`` is said after them."""
        self._jobs -= 1
        self._answer(replies, rest)

    def commit_done(self, reply: Reply) -> None:
        """A COMMIT of this session ended with this reply."""
        self._commits.end_one()
        self._answer([reply])

    def _answer(self, replies: list[Reply], rest: Sequence[bytes] = ()) -> None:
        if self._transport is None:
            self._end_uploads()
            return
        self._write([*(self._wire.reply(reply) for reply in replies), *rest])
        self._touch()
        self._advance()

    def tell_progress(self, reply: Reply) -> None:
        """Send a reply that does not end its command."""
        if self._transport is not None:
            self._write([self._wire.reply(reply)])

    def _start_commit(self, asked: tuple[Caller, Command]) -> None:
        caller, command = asked
        watch = CommitWatch(self, command.id)
        self._services.executor.submit(
            self._services.handlers.commit, caller, command, watch.on_reply, watch.on_progress
        )

    # the connection --------------------------------------------------------------------------------------------------

    def _write(self, out: list[bytes]) -> None:
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def _regulate(self) -> None:
        """Read exactly while there is room for what comes."""
        if self._transport is None or self._transport.is_closing():
            return
        has_room = not (self._wire.paused or self._more_to_come or self._gate.is_pending)
        wanted = self._writable and has_room and not self._closing
        if wanted and not self._reading:
            self._transport.resume_reading()
        elif not wanted and self._reading:
            self._transport.pause_reading()
        self._reading = wanted

    def _touch(self) -> None:
        if self._wire.state is ControlState.READY and self._writable:
            idle_at = self.loop.time() + self._services.times.idle_seconds
            self.deadline = self._login_deadline if self._gate.is_owed else idle_at

    def _close_when_done(self) -> None:
        idle = not (self._is_at_work or self._queue or self._more_to_come)
        if self._closing and self._transport is not None and idle:
            self._transport.close()

    @property
    def _is_at_work(self) -> bool:
        return self._jobs > 0 or self._commits.is_busy or self._hashings.is_busy

    def _drop_waiting(self) -> None:
        self._queue.clear()
        self._commits.clear()
        self._hashings.clear()

    def check_deadline(self, now: float) -> None:
        """Close a session that is past its deadline; called by the server's clock, ``now`` in the loop's time."""
        if now < self.deadline or self._transport is None:
            return
        if self._transport.is_closing() or not self._writable:
            self._transport.abort()  # it does not take what it was sent
            return
        if self._is_at_work:
            self._touch()  # it waits for us
            return
        self._write([format_reply(Reply(0, ReplyKind.ERROR, code=ErrorCode.TIMEOUT))])
        self.deadline = now + self._services.times.unread_seconds
        self._transport.close()

    def give_way(self) -> None:
        """Leave, as others wait who may be honest."""
        self._write([format_reply(Reply(0, ReplyKind.ERROR, code=ErrorCode.BUSY, retry_seconds=BUSY_SOON_SECONDS))])
        self._closing = True
        if self._transport is not None:
            self.deadline = self.loop.time() + self._services.times.unread_seconds
            self._transport.close()

    def notify(self, word: str) -> None:
        """Send ``0 NOTICE <word>``."""
        if self._wire.state is ControlState.READY:
            self._write([format_reply(Reply(0, ReplyKind.NOTICE, (word,)))])

    def stop(self) -> None:
        """The server stops: close once what runs is answered."""
        self._closing = True
        self._drop_waiting()
        self._close_when_done()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()


_ALONE = frozenset({Verb.COMMIT, Verb.LIST})

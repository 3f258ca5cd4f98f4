"""One twinport/2 control connection on the event loop: lines in, handlers asked, lines out.

Commands that may wait for a disk are run by :mod:`session_jobs`. A session that does not read its replies is not read
either. What comes behind a LOGIN waits for its outcome; the rest about logins is in :mod:`login_gate`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from twinport_protocol.control import BadLine, ControlServer, ControlState, Greeting
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb, format_reply

from .access import ANONYMOUS
from .accounts.authenticator import LoggedIn
from .control_services import ControlServices
from .limits import BUSY_SOON_SECONDS, Admission
from .log import get_log
from .login_gate import LoginGate
from .name_handlers import Caller
from .session_jobs import SessionJobs

_EVENTS_IN_A_ROW = 256


class ControlSession(asyncio.Protocol):
    """The connection. All methods run on the event loop but for what is handed to the executor.

    ``certificate_sha256`` is the hash of the certificate that the client was shown; None on a plaintext connection."""

    __slots__ = (
        "_caller", "_certificate_sha256", "_closing", "_gate", "_has_uploads", "_jobs", "_login_deadline",
        "_more_to_come", "_peer", "_reading", "_services", "_transport", "_wire", "_writable", "admission", "deadline",
        "loop", "number",
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
        self._jobs = SessionJobs(services, self)
        self._has_uploads = False
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
        self._jobs.clear()
        self._transport = None
        if self.admission is not None:
            self.admission.close()
        self._end_uploads()
        self._services.on_close(self)

    def _end_uploads(self) -> None:
        """What it has opened and never sent ends a while after the session; what still runs may yet open more."""
        if self._has_uploads and not self._jobs.may_open:
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
        if self._writable and self._caller is not None:
            self._jobs.start(self._caller)
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
        is_secure = self._certificate_sha256 is not None
        return Caller(user, self._peer, is_secure, self.number, self._gate.ticket_epoch)

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
            self._jobs.add(command)

    def _log_in(self, caller: Caller, command: Command, out: list[bytes]) -> None:
        command_id = command.id  # so that nothing here keeps the secret

        def on_outcome(outcome: LoggedIn | Refusal) -> None:
            self.post(self._login_done, command_id, outcome)

        refusal = self._gate.begin(command, on_outcome)
        if refusal is None:
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
        self.answer([reply], rest)

    def _end_if_spent(self, out: list[bytes]) -> None:
        if self._gate.is_spent:
            out.append(format_reply(Reply(0, ReplyKind.ERROR, code=ErrorCode.LOGIN_FAILED)))
            self._end()

    def _end(self) -> None:
        self._wire.close()
        self._jobs.clear()
        self._closing = True

    def post(self, callback: Callable[..., None], *args: object) -> None:
        """Call back on the event loop; from any thread."""
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            return  # the loop is closed: the server has stopped and nobody waits for the answer

    def answer(self, replies: Sequence[Reply], rest: Sequence[bytes] = ()) -> None:
        """Send the replies that end some commands, and ``rest`` after them, and go on; if anybody is still there."""
        if self._transport is None:
            self._end_uploads()
            return
        self._write([*(self._wire.reply(reply) for reply in replies), *rest])
        self._touch()
        self._advance()

    def tell(self, lines: bytes) -> None:
        """Send replies that end no command."""
        self._write([lines])

    @property
    def is_open(self) -> bool:
        """Whether anybody is there to be answered."""
        return self._transport is not None

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
        idle = not (self._is_at_work or self._jobs.is_waiting or self._more_to_come)
        if self._closing and self._transport is not None and idle:
            self._transport.close()

    @property
    def _is_at_work(self) -> bool:
        return self._jobs.is_running or self._gate.is_pending

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

    def check_login(self) -> None:
        """End the session if its login holds no more; called when the accounts changed. What runs may end."""
        if self._gate.is_stale and not self._closing:
            self._write([format_reply(Reply(0, ReplyKind.ERROR, code=ErrorCode.LOGIN_REQUIRED))])
            self._end()
            self._close_when_done()

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
        self._jobs.clear()
        self._close_when_done()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

"""One control connection of the classic dialect on the event loop: lines in, replies out, and its deadlines.

What the commands do is in ``commands``; what may be said when, in the protocol. Nothing waits for a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.classic import (
    MAX_LINE_BYTES,
    MAX_QUEUE_LINES,
    BadLine,
    ClassicServer,
    Download,
    List,
    Quit,
    Ready,
    SessionState,
    Upload,
    format_error,
)
from twinport_protocol.errors import ErrorCode, Refusal, RemoteProtocolError

from twinport_service.limits import Admission
from twinport_service.log import get_log, printable
from twinport_service.networks import host_of

from .commands import ClassicServices, Gone, record_refusal, serve_download, serve_list, serve_upload
from .data import DataConnection, TransferRefusal, tune_socket
from .turns import Turn

WRITE_BUFFER_BYTES = 64 * 1024


@dataclass(frozen=True)
class SessionLimits:
    """Bounds of one session. Seconds: for a line from its first byte; of silence; of unread replies; of a farewell."""

    line_seconds: float = 10.0
    idle_seconds: float = 300.0
    unread_seconds: float = 30.0
    linger_seconds: float = 1.0
    max_line_bytes: int = MAX_LINE_BYTES
    queue_lines: int = MAX_QUEUE_LINES


class ClassicSession(asyncio.Protocol):
    """The connection. Everything here runs on the event loop."""

    def __init__(
        self,
        services: ClassicServices,
        limits: SessionLimits,
        on_open: Callable[[ClassicSession], None],
        on_close: Callable[[ClassicSession], None],
    ) -> None:
        self.services = services
        self.wire = ClassicServer(max_line_bytes=limits.max_line_bytes, queue_lines=limits.queue_lines)
        self.peer: object = None
        self.address = ""
        self.number = 0
        self.admission: Admission | None = None
        self._limits = limits
        self._on_open = on_open
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._turn: Turn | None = None
        self._data: DataConnection | None = None
        self._farewell: Refusal | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reading = True
        self._ending = False
        self._half_closed = False
        self._stopping = False
        self._lingering = False
        self._timer: asyncio.TimerHandle | None = None
        self._active_at = self._line_at = self._stuck_at = self._loop.time()
        self._line_number = -1

    # asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is ours."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (asyncio's own promise for stream sockets)
        self._transport = transport
        self.peer = transport.get_extra_info("peername")
        self.address = host_of(self.peer)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        sock = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the client may be gone already
            tune_socket(sock)
        get_log().info(f"[NEW CONNECTION] {self.peer} connected")
        self._on_open(self)
        self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone, and with it all that it asked for."""
        del exc
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._give_up(Gone())
        self._writable.set()
        get_log().info(f"[DISCONNECTED] {self.peer}")
        if self.admission is not None:
            self.admission.close()
        self._on_close(self)

    def data_received(self, data: bytes) -> None:
        """Take lines."""
        self._active_at = self._loop.time()
        if not self._lingering:
            self.wire.feed(data)
            self.advance()

    def eof_received(self) -> bool:
        """The client sends nothing more: serve what is complete, then close."""
        if self._lingering:
            return False
        self._ending = self._half_closed = True
        if self._turn is not None:
            # Hardly anybody closes one side and goes on; others wait for the turn that this one would only let pass.
            self.services.turns.withdraw(self._turn, _half_closed())
        self.advance()
        return True

    def pause_writing(self) -> None:
        """The client does not read its replies."""
        self._writable.clear()
        self._stuck_at = self._loop.time()
        self._regulate()

    def resume_writing(self) -> None:
        """It reads again."""
        self._writable.set()
        self.advance()

    # commands --------------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Serve whatever may be served now."""
        try:
            while self._writable.is_set() and not self._lingering:
                event = self.wire.next_event()
                if event is None:
                    break
                if isinstance(event, BadLine):
                    self.write(event.reply)
                elif isinstance(event, Ready):
                    if self._turn is not None:
                        self.services.turns.mark_ready(self._turn, self.address)
                elif isinstance(event, Quit):
                    self._quit()
                elif isinstance(event, List):
                    self.services.spawn(self._list())
                elif self._stopping:
                    self.write(self.wire.fail_transfer(ErrorCode.SHUTTING_DOWN))
                else:
                    self.services.spawn(self._transfer(event))
        except RemoteProtocolError as error:
            self.say_farewell(error.code)
        if self._ending and self.wire.is_settled:
            self._finish()
        self._regulate()

    async def _transfer(self, command: Upload | Download) -> None:
        try:
            if isinstance(command, Upload):
                await serve_upload(self, command)
            else:
                await serve_download(self, command)
        except Refusal as refusal:
            self._fail(command, refusal)
        except Exception:
            get_log().exception("[CLASSIC] Internal error", peer=self.peer)
            self._fail(command, Refusal(ErrorCode.INTERNAL))
        else:
            if self.wire.state is not SessionState.CLOSED:
                self.write(self.wire.finish_transfer())
        finally:
            self._active_at = self._loop.time()
            self.advance()

    def _fail(self, command: Upload | Download, refusal: Refusal) -> None:
        word = "UPLOAD" if isinstance(command, Upload) else "DOWNLOAD"
        reason = f"{refusal.code.value}: {refusal.detail}" if refusal.detail else refusal.code.value
        get_log().info(f"[{word}] Failed: {printable(command.name)} ({printable(reason)}) for {self.peer}")
        record_refusal(self, command, refusal)
        if self.wire.state is not SessionState.CLOSED:
            text = refusal.text if isinstance(refusal, TransferRefusal) else None
            self.write(self.wire.fail_transfer(refusal.code, text))

    async def _list(self) -> None:
        try:
            await serve_list(self)
        except Gone:
            self._ending = True  # a listing that broke off cannot be followed by anything
        except Refusal as refusal:
            record_refusal(self, None, refusal)
            self.write(format_error(refusal.code))
        except Exception:
            get_log().exception("[CLASSIC] Internal error", peer=self.peer)
            self.say_farewell(ErrorCode.INTERNAL)
        finally:
            self._active_at = self._loop.time()
            if self.wire.state is not SessionState.CLOSED:
                for reply in self.wire.end_listing():
                    self.write(reply)
            self.advance()

    def hold_turn(self, turn: Turn | None) -> None:
        """The turn that the running command waits for."""
        self._turn = turn

    def hold_data(self, data: DataConnection | None) -> None:
        """The data connection of the running transfer; ended at once if the session has ended meanwhile."""
        self._data = data
        if data is not None and self._farewell is not None:
            data.cancel(self._farewell.code)

    def check_alive(self) -> None:
        """Raises why the session's transfer is to end, if it is."""
        if self._farewell is not None:
            raise self._farewell
        if self._half_closed:
            raise _half_closed()

    # the connection --------------------------------------------------------------------------------------------------

    def write(self, reply: bytes) -> None:
        """Send one reply, in one write."""
        if reply and self._transport is not None and not self._transport.is_closing():
            self._transport.write(reply)

    async def wait_writable(self) -> None:
        """Until the client has read enough of what was written; ``Gone`` when the session ends."""
        await asyncio.sleep(0)  # a fast reader must not keep the loop from the others
        await self._writable.wait()
        if self._farewell is not None:
            raise Gone

    def _quit(self) -> None:
        self.wire.close()
        self._give_up(Gone())
        self._finish()

    def _finish(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def say_farewell(self, code: ErrorCode) -> None:
        """Tell the client why, then close; what it still sends is dropped, so that no reset overtakes the reply."""
        if self._lingering or self._transport is None:
            return
        self.write(format_error(code))
        self._lingering = True
        self.wire.close()
        self._give_up(Gone())
        self._stuck_at = self._loop.time()
        try:
            self._transport.write_eof()
        except OSError:  # it has gone meanwhile
            self._transport.abort()
        if self._half_closed:
            self._finish()
        self._regulate()

    def stop(self) -> None:
        """The server stops: what runs may end, no new transfer begins."""
        self._ending = self._stopping = True
        if self.wire.is_settled:
            self.say_farewell(ErrorCode.SHUTTING_DOWN)
        elif self._turn is not None and not self._turn.granted.done():
            self.services.turns.withdraw(self._turn, Refusal(ErrorCode.SHUTTING_DOWN))

    def cut(self) -> None:
        """The server stops now: what runs is told so."""
        self._ending = self._stopping = True
        self._give_up(Refusal(ErrorCode.SHUTTING_DOWN))
        self._writable.set()

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _give_up(self, why: Refusal) -> None:
        self._farewell = self._farewell or why
        if self.wire.state is not SessionState.CLOSED and isinstance(why, Gone):
            self.wire.close()
        if self._turn is not None:
            self.services.turns.withdraw(self._turn, why)
        if self._data is not None:
            self._data.cancel(why.code)

    def _regulate(self) -> None:
        """Read exactly while there is room for what comes, and watch the clock."""
        if self._transport is not None and not self._transport.is_closing():
            wanted = self._lingering or (self._writable.is_set() and not self.wire.paused)
            if wanted != self._reading:
                self._reading = wanted
                (self._transport.resume_reading if wanted else self._transport.pause_reading)()
        self._rearm()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._deadline()
        if deadline is not None and self._transport is not None:
            self._timer = self._loop.call_at(deadline, self._on_deadline)

    def _deadline(self) -> float | None:
        """The loop's time at which patience ends; None while the client waits for us."""
        limits = self._limits
        if self._lingering:
            return self._stuck_at + limits.linger_seconds
        if not self._writable.is_set():
            return self._stuck_at + limits.unread_seconds
        if self.wire.has_partial_line and self._reading:
            if self._line_number != self.wire.lines_taken:
                self._line_number = self.wire.lines_taken
                self._line_at = self._active_at
            return self._line_at + limits.line_seconds
        return self._active_at + limits.idle_seconds if self.wire.is_settled else None

    def _on_deadline(self) -> None:
        if self._lingering or not self._writable.is_set():
            self.abort()
        else:
            self.say_farewell(ErrorCode.TIMEOUT)


def _half_closed() -> TransferRefusal:
    return TransferRefusal(ErrorCode.BAD_STATE, "the control connection was closed before the transfer began")

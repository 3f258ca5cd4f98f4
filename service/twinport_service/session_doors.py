"""The doors that control connections come in by: plain, under TLS, and those of the classic dialect. Whoever finds no
place is told when to come again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Callable

from twinport_protocol.errors import ErrorCode, Refusal

from .access import ANONYMOUS
from .classic.session import ClassicSession
from .control_session import ControlSession
from .control_tls import TurnAway
from .listener import turn_away
from .log import get_log
from .safeguards import Safeguards

_CONTROL_BUFFER_BYTES = 128 * 1024
_Session = ControlSession | ClassicSession


class SessionDoors:
    """Belongs to the event loop. ``make_control`` makes a session from the hash of the certificate that its client was
    shown, ``make_classic`` one of the other dialect, if that is served."""

    def __init__(
        self,
        guards: Safeguards,
        make_control: Callable[[bytes | None], ControlSession],
        make_classic: Callable[[], ClassicSession] | None,
    ) -> None:
        self._guards = guards
        self._make_control = make_control
        self._make_classic = make_classic
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()

    def open_control(self, sock: socket.socket, peer: object) -> None:
        """Take over a socket whose client speaks text."""
        session = self._make_control(None)
        busy = self._admit(session, peer, session.give_way)
        if busy is not None:
            turn_away(sock, busy.code, busy.retry_seconds)
            return
        bound_buffers(sock)
        self._adopt(session, sock)

    def make_tls_session(self, certificate_sha256: bytes, peer: object) -> asyncio.Protocol:
        """A session for a connection whose handshake is done, or what turns it away."""
        session = self._make_control(certificate_sha256)
        busy = self._admit(session, peer, session.give_way)
        return session if busy is None else TurnAway(busy.code, busy.retry_seconds)

    def open_classic(self, sock: socket.socket, peer: object) -> None:
        """Take over a socket whose client speaks the classic dialect."""
        if self._make_classic is None:
            turn_away(sock, ErrorCode.UNSUPPORTED)
            return
        session = self._make_classic()
        busy = self._admit(session, peer, session.abort)
        if busy is not None:
            turn_away(sock, busy.code, busy.retry_seconds)
            return
        if session.admission is not None:
            with contextlib.suppress(Refusal):  # too many are anonymous: it may have to give way
                session.admission.prove(ANONYMOUS)  # there is nothing to prove in this dialect
        self._adopt(session, sock)

    def _admit(self, session: _Session, peer: object, give_way: Callable[[], None]) -> Refusal | None:
        """Give a new session a number and a place; the refusal where there is none."""
        session.number = next(self._numbers)
        try:
            session.admission = self._guards.sessions.admit(peer, give_way)
        except Refusal as refusal:
            self._guards.log_refusal("session", peer, refusal)
            return refusal
        return None

    def _adopt(self, session: _Session, sock: socket.socket) -> None:
        async def adopt() -> None:
            try:
                await self._loop.connect_accepted_socket(lambda: session, sock)
            except OSError as error:
                get_log().info("[LISTENER] Gone before it was served", error=error.strerror)
                if session.admission is not None:
                    session.admission.close()
                sock.close()
                return
            if session.admission is not None and session.admission.closed:
                session.abort()  # its place went to another before it was here

        task = self._loop.create_task(adopt())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def bound_buffers(sock: socket.socket) -> None:
    """Left alone the system would hold megabytes of commands and replies of whoever does not read."""
    for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, buffer, _CONTROL_BUFFER_BYTES)

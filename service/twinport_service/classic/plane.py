"""The classic dialect as one part of a server: its sessions, its data connections, its end.

Made and used on the event loop. The server listens and hands over what it accepted: control connections by
:meth:`ClassicPlane.session_factory`, sockets of the data port by :meth:`ClassicPlane.accept_data`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from twinport_service.access import Decide
from twinport_service.audit import Record, discard
from twinport_service.bandwidth import Bandwidth
from twinport_service.buffers import BufferPool
from twinport_service.log import get_log
from twinport_service.uploads import UploadDesk

from .commands import ClassicServices
from .data import TransferTimes, tune_socket
from .pairing import PairingTimes
from .session import ClassicSession, SessionLimits
from .threads import TransferThreads
from .transfer import CLASSIC_UPLOADER
from .turns import Turns


@dataclass(frozen=True)
class ClassicLimits:
    """All bounds of the dialect. ``transfers`` is that of running ones and those that wait, in all; one thread each."""

    session: SessionLimits = field(default_factory=SessionLimits)
    pairing: PairingTimes = field(default_factory=PairingTimes)
    transfer: TransferTimes = field(default_factory=TransferTimes)
    waiting_per_address: int = 64
    transfers: int = 128
    buffer_bytes: int = 256 * 1024
    kept_buffers: int = 16


class ClassicPlane:
    """See the module. ``data_port`` is what clients are told; set it once the data port is bound.

    ``executor`` runs what waits for the storage, ``lister`` its listings; ``on_count`` is called when a session came
    or went.
    """

    def __init__(
        self,
        desk: UploadDesk,
        decide: Decide,
        executor: Executor,
        limits: ClassicLimits | None = None,
        *,
        lister: Executor,
        on_count: Callable[[], None],
        data_port: int = 0,
        clock: Callable[[], float] = time.monotonic,
        record: Record = discard,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        limits = limits or ClassicLimits()
        self.data_port = data_port
        self._limits = limits
        self._desk = desk
        self._draining = False
        self._on_count = on_count
        self._sessions: set[ClassicSession] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._services = ClassicServices(
            desk=desk,
            decide=decide,
            executor=executor,
            lister=lister,
            turns=Turns(
                limits.pairing,
                waiting_per_address=limits.waiting_per_address,
                transfers=limits.transfers,
                clock=clock,
            ),
            threads=TransferThreads(),
            buffers=BufferPool(limits.buffer_bytes, limits.kept_buffers),
            times=limits.transfer,
            clock=clock,
            data_port=lambda: self.data_port,
            spawn=self._spawn,
            record=record,
            bandwidth=bandwidth or Bandwidth(),
        )

    @property
    def sessions(self) -> int:
        """How many control connections there are."""
        return len(self._sessions)

    @property
    def transfers(self) -> int:
        """How many transfers run."""
        return self._services.threads.count

    @property
    def waiting(self) -> int:
        """How many transfers wait for their turn or their data connection."""
        return self._services.turns.count

    def recover(self) -> None:
        """Forget the uploads of an earlier run: nobody can resume them. Blocks; after the desk's own recovery.

        Only for a ledger of this server alone: another server's running uploads would be forgotten with them.
        """
        for record in self._desk.ledger.open_uploads():
            if record.spec.user == CLASSIC_UPLOADER:
                self._desk.abort(CLASSIC_UPLOADER, record.spec.upload_id)

    def session_factory(self) -> ClassicSession:
        """The protocol of a new control connection whose first bytes are still to be read."""
        return ClassicSession(self._services, self._limits.session, self._on_open, self._on_close)

    def accept_data(self, sock: socket.socket, peer: object) -> None:
        """Take over a socket of the data port."""
        try:
            sock.setblocking(False)
            tune_socket(sock)
        except OSError:  # gone before it was looked at; it still counts as a candidate, whose transfer then fails
            get_log().debug(f"[DATA] Lost at once, from {peer}")
        self._services.turns.accept(sock, peer)

    async def drain(self, grace_seconds: float) -> None:
        """Stop: idle sessions at once, running transfers when they end but within ``grace_seconds``, then all.

        Returns when nothing is left; a commit under way is waited for, so that what is durable was also answered.
        """
        self._draining = True
        for session in list(self._sessions):
            session.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for session in list(self._sessions):
            session.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.close()
        await asyncio.sleep(0)

    def close(self) -> None:
        """Drop every connection now; what runs ends by itself. :meth:`drain` is the orderly way."""
        self._draining = True
        for session in list(self._sessions):
            session.cut()
            session.abort()
        self._services.turns.close()

    def _on_open(self, session: ClassicSession) -> None:
        self._sessions.add(session)
        self._on_count()
        if self._draining:
            session.stop()

    def _on_close(self, session: ClassicSession) -> None:
        self._sessions.discard(session)
        self._on_count()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

"""A real server in a thread of its own, with the bounds of the classic dialect as a test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from twinport_protocol.tickets import TicketKeys
from twinport_service.access import Decide, allow_all
from twinport_service.classic.data import TransferTimes
from twinport_service.classic.pairing import PairingTimes
from twinport_service.classic.plane import ClassicLimits, ClassicPlane
from twinport_service.classic.session import SessionLimits
from twinport_service.config import Settings
from twinport_service.foundation import Foundation
from twinport_service.ledger import Ledger
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.log import configure_logging
from twinport_service.server import Server
from twinport_service.storage.contract import Storage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk

from .reference_client import ReferenceClient

# For tests of deadlines; a second, so that those clients of theirs that are in time are so on a busy machine too.
SHORT = ClassicLimits(
    session=SessionLimits(line_seconds=1.0, idle_seconds=60.0, unread_seconds=1.0, linger_seconds=0.3),
    pairing=PairingTimes(alone_seconds=1.0, contended_seconds=1.0, settle_seconds=0.05),
    transfer=TransferTimes(stall_seconds=1.0, grace_seconds=2.0),
)
PATIENT = ClassicLimits(
    session=SessionLimits(line_seconds=60.0, unread_seconds=60.0, linger_seconds=0.3),
    pairing=PairingTimes(alone_seconds=60.0, contended_seconds=60.0, settle_seconds=0.05),
    transfer=TransferTimes(stall_seconds=60.0, grace_seconds=60.0),
)
KEYS = TicketKeys(bytes(range(16)), {7: bytes(range(32))}, 7)
START_SECONDS = 30.0
STOP_SECONDS = 30.0


def limits_with(**session: float) -> ClassicLimits:
    """The patient limits with other ones for the session."""
    return replace(PATIENT, session=replace(PATIENT.session, **session))  # type: ignore[arg-type]


class BoundedServer(Server):
    """The server, with bounds that its settings do not offer."""

    def __init__(self, settings: Settings, foundation: Foundation, decide: Decide, limits: ClassicLimits) -> None:
        super().__init__(settings, foundation, decide)
        self._limits_of_classic = limits

    def _classic_limits(self) -> ClassicLimits:
        return self._limits_of_classic

    @property
    def classic(self) -> ClassicPlane:
        """The part under test."""
        assert self._classic is not None
        return self._classic

    @property
    def desk(self) -> UploadDesk:
        """Where its uploads are."""
        return self._desk


@dataclass
class RunningPlane:
    """A server that runs, and what the tests look at."""

    server: BoundedServer
    loop: asyncio.AbstractEventLoop
    log: io.StringIO
    complaints: list[str]

    @property
    def plane(self) -> ClassicPlane:
        """The classic part of the server."""
        return self.server.classic

    @property
    def desk(self) -> UploadDesk:
        """The desk of the server."""
        return self.server.desk

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.server.control_address[0]

    @property
    def control_port(self) -> int:
        """The port of control connections."""
        return self.server.control_address[1]

    @property
    def data_port(self) -> int:
        """The port of data connections."""
        return self.server.data_address[1]

    def client(self, *, timeout: float = 30.0, source: str | None = None) -> ReferenceClient:
        """A new session."""
        return ReferenceClient(self.host, self.control_port, timeout=timeout, source=source)

    def drain(self, grace_seconds: float) -> None:
        """Stop the classic part in an orderly way; returns when nothing is left of it."""
        asyncio.run_coroutine_threadsafe(self.plane.drain(grace_seconds), self.loop).result(STOP_SECONDS)


@contextlib.contextmanager
def running_plane(
    storage: Storage | None = None,
    limits: ClassicLimits = PATIENT,
    decide: Decide = allow_all,
    max_file_bytes: int = 2**63 - 1,
    ledger: Ledger | None = None,
) -> Iterator[RunningPlane]:
    """A server over ``storage`` (memory by default) on two free ports, stopped at the end; its log is kept."""
    log = io.StringIO()
    configure_logging(stream=log, level="debug")
    settings = Settings(
        root=Path("unused"),
        control_port=0,
        data_port=0,
        idle_seconds=limits.session.idle_seconds,
        max_file_bytes=max_file_bytes,
        drain_seconds=0.3,
        classic_grace_seconds=0.0,
    )
    foundation = Foundation(storage or MemoryStorage(), ledger or MemoryLedger(), KEYS)
    started = threading.Event()
    running: list[RunningPlane] = []
    enough: list[asyncio.Event] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        complaints: list[str] = []
        loop.set_exception_handler(lambda loop, context: complaints.append(str(context)))
        enough.append(asyncio.Event())
        server = BoundedServer(settings, foundation, decide, limits)
        async with server:
            running.append(RunningPlane(server, loop, log, complaints))
            started.set()
            await enough[0].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="classic-server")
    thread.start()
    try:
        assert started.wait(START_SECONDS)
        yield running[0]
    finally:
        if running:
            running[0].loop.call_soon_threadsafe(enough[0].set)
        thread.join(STOP_SECONDS)
        configure_logging()
    assert not thread.is_alive()
    assert not running[0].complaints

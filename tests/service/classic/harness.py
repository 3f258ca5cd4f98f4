"""The classic dialect on two loopback ports, without the rest of the server: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from twinport_service.access import Decide, allow_all
from twinport_service.classic import ClassicLimits, ClassicPlane
from twinport_service.classic_data import TransferTimes
from twinport_service.classic_pairing import PairingTimes
from twinport_service.classic_session import SessionLimits
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.log import configure_logging
from twinport_service.storage.contract import Storage
from twinport_service.storage.memory import MemoryStorage
from twinport_service.uploads import UploadDesk

from .reference_client import ReferenceClient

SHORT = ClassicLimits(
    session=SessionLimits(line_seconds=0.3, idle_seconds=5.0, unread_seconds=1.0, linger_seconds=0.3),
    pairing=PairingTimes(alone_seconds=0.3, contended_seconds=0.3, settle_seconds=0.05),
    transfer=TransferTimes(stall_seconds=0.3, grace_seconds=0.6),
)
PATIENT = replace(SHORT, pairing=PairingTimes(10.0, 3.0, 0.05), transfer=TransferTimes(30.0, 30.0))


def limits_with(**session: float) -> ClassicLimits:
    """The short limits with other ones for the session."""
    return replace(SHORT, session=replace(SHORT.session, **session))  # type: ignore[arg-type]


@dataclass
class RunningPlane:
    """A plane that serves; what the tests look at."""

    plane: ClassicPlane
    desk: UploadDesk
    storage: Storage
    loop: asyncio.AbstractEventLoop
    host: str
    control_port: int
    data_port: int
    log: io.StringIO
    complaints: list[str] = field(default_factory=list)

    def client(self, *, timeout: float = 20.0, source: str | None = None) -> ReferenceClient:
        """A new session."""
        return ReferenceClient(self.host, self.control_port, timeout=timeout, source=source)

    def drain(self, grace_seconds: float) -> None:
        """Stop the plane in an orderly way; returns when nothing is left of it."""
        asyncio.run_coroutine_threadsafe(self.plane.drain(grace_seconds), self.loop).result(timeout=20)


@contextlib.contextmanager
def running_plane(
    storage: Storage | None = None,
    limits: ClassicLimits = SHORT,
    decide: Decide = allow_all,
    max_file_bytes: int = 2**63 - 1,
) -> Iterator[RunningPlane]:
    """A plane over ``storage`` (memory by default) on two free ports, drained at the end; its log is kept."""
    log = io.StringIO()
    configure_logging(stream=log, level="debug")
    storage = storage or MemoryStorage()
    desk = UploadDesk(storage, MemoryLedger(), max_file_bytes=max_file_bytes)
    desk.recover()
    started = threading.Event()
    running: list[RunningPlane] = []
    stop: list[asyncio.Event] = []
    complaints: list[str] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: complaints.append(str(context)))
        with ThreadPoolExecutor(4) as executor:
            plane = ClassicPlane(desk, decide, executor, limits)
            control = await loop.create_server(plane.session_factory, "127.0.0.1", 0, backlog=512)
            data = socket.create_server(("127.0.0.1", 0), backlog=512)
            data.setblocking(False)

            def accept() -> None:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, peer = data.accept()
                        plane.accept_data(sock, peer)

            loop.add_reader(data, accept)
            plane.data_port = data.getsockname()[1]
            control_port = control.sockets[0].getsockname()[1]
            stop.append(asyncio.Event())
            running.append(
                RunningPlane(plane, desk, storage, loop, "127.0.0.1", control_port, plane.data_port, log, complaints)
            )
            started.set()
            await stop[0].wait()
            control.close()
            await plane.drain(0.0)
            loop.remove_reader(data)
            data.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="classic-server")
    thread.start()
    try:
        assert started.wait(10)
        yield running[0]
    finally:
        if running:
            running[0].loop.call_soon_threadsafe(stop[0].set)
        thread.join(20)
        storage.close()
        configure_logging()
    assert not thread.is_alive()

"""What the commands of the classic dialect do, from the first check to the last log line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from twinport_protocol.classic import ClassicServer, Download, Upload, listing_head
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import RemoteName

from twinport_service.access import ANONYMOUS, Act, Decide, require
from twinport_service.audit import AUDITED_REFUSALS, AuditEntry, AuditEvent, Record, discard
from twinport_service.bandwidth import Bandwidth
from twinport_service.buffers import BufferPool
from twinport_service.log import get_log, printable
from twinport_service.storage.contract import Reader, Storage, VersionInfo
from twinport_service.uploads import UploadDesk

from .data import DataConnection, TransferTimes
from .listing import collect_listing
from .threads import TransferThreads
from .transfer import OpenedUpload, abort_upload, open_upload, receive_upload, send_download
from .turns import Turn, Turns

_LOOKS = 16

LIST_CHUNK_BYTES = 32 * 1024
T = TypeVar("T")


class Gone(Refusal):
    """The session has ended: there is nobody left to answer."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.INTERNAL, "the control connection is gone")


@dataclass(frozen=True)
class ClassicServices:
    """What all sessions of a server share.

    ``executor`` runs what may wait for the storage for a moment, ``lister`` listings, which may take long.
    """

    desk: UploadDesk
    decide: Decide
    executor: Executor
    lister: Executor
    turns: Turns
    threads: TransferThreads
    buffers: BufferPool
    times: TransferTimes
    clock: Callable[[], float]
    data_port: Callable[[], int]
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    record: Record = discard
    bandwidth: Bandwidth = field(default_factory=Bandwidth)

    @property
    def storage(self) -> Storage:
        """Where the files are."""
        return self.desk.storage

    async def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` off the event loop."""
        return await asyncio.wrap_future(self.executor.submit(work))

    def forget(self, opened: OpenedUpload) -> None:
        """Have an upload forgotten; nobody waits for it."""
        work = partial(abort_upload, self.desk, opened)
        try:
            self.executor.submit(work)
        except RuntimeError:  # the executor is closed already: the server ends, waiting here harms nobody
            work()


class Conversation(Protocol):
    """What a command needs of its session."""

    services: ClassicServices
    wire: ClassicServer
    peer: object
    address: str
    number: int

    def write(self, reply: bytes) -> None: ...
    def advance(self) -> None: ...
    async def wait_writable(self) -> None: ...
    def check_alive(self) -> None: ...
    def hold_turn(self, turn: Turn | None) -> None: ...
    def hold_data(self, data: DataConnection | None) -> None: ...


async def serve_upload(talk: Conversation, command: Upload) -> None:
    """From the check to the durable file; the session says DONE. Raises ``Refusal``."""
    services = talk.services
    name, size = printable(command.name), command.size
    require(services.decide, ANONYMOUS, Act.WRITE, command.name)
    services.turns.check_room(services.threads.count)
    opened = await services.call(partial(open_upload, services.desk, command.name, size))
    try:
        data = await _connect(talk, size, partial(talk.wire.accept_upload, services.data_port()), ready=True)
        get_log().info(f"[UPLOAD] Receiving {name} ({size} bytes) from {talk.peer}")
        try:
            work = services.threads.start(partial(receive_upload, data, services.desk, opened, services.buffers))
        except Refusal:
            _release(talk, data)
            raise
    except BaseException:
        services.forget(opened)
        raise
    began = services.clock()
    try:
        published = await work
    finally:
        talk.hold_data(None)
    get_log().info(f"[UPLOAD] Complete: {name} saved ({size} bytes)")
    seconds = services.clock() - began
    services.record(_entry(AuditEvent.UPLOAD, talk, command.name, size=size, root=published.root, seconds=seconds))


async def serve_download(talk: Conversation, command: Download) -> None:
    """From the check to the last byte handed to the network; the session says DONE. Raises ``Refusal``."""
    services = talk.services
    name = printable(command.name)
    require(services.decide, ANONYMOUS, Act.READ, command.name)
    services.turns.check_room(services.threads.count)
    version, reader = await services.call(partial(_open_reader, services.storage, command.name))
    size = version.size
    try:
        accept = partial(talk.wire.accept_download, size, services.data_port())
        data = await _connect(talk, size, accept, ready=False)
        get_log().info(f"[DOWNLOAD] Sending {name} ({size} bytes) to {talk.peer}")
        try:
            work = services.threads.start(partial(send_download, data, reader, size, services.buffers))
        except Refusal:
            _release(talk, data)
            raise
    except BaseException:
        reader.close()
        raise
    began = services.clock()
    try:
        await work
    finally:
        talk.hold_data(None)
    get_log().info(f"[DOWNLOAD] Complete: {name} sent ({size} bytes)")
    seconds = services.clock() - began
    services.record(_entry(AuditEvent.DOWNLOAD, talk, command.name, size=size, root=version.root, seconds=seconds))


def record_refusal(talk: Conversation, command: Upload | Download | None, refusal: Refusal) -> None:
    """Tell the audit log if the refusal is one that it wants to know of."""
    if refusal.code in AUDITED_REFUSALS:
        what = "LIST" if command is None else "UPLOAD" if isinstance(command, Upload) else "DOWNLOAD"
        name = None if command is None else command.name
        talk.services.record(_entry(AuditEvent.REFUSAL, talk, name, outcome=refusal.code.value, what=what))


def _entry(event: AuditEvent, talk: Conversation, file: str | None, **fields: Any) -> AuditEntry:
    return AuditEntry(event, ANONYMOUS, talk.peer, file, session=talk.number, **fields)


async def serve_list(talk: Conversation) -> None:
    """Send every file's name; a short listing in one write, a long one as the client reads it. Raises ``Refusal``."""
    services = talk.services
    require(services.decide, ANONYMOUS, Act.LIST, "")
    get_log().info(f"[LIST] Sending file list to {talk.peer}")
    listing = await asyncio.wrap_future(services.lister.submit(collect_listing, services.storage))
    try:
        chunk = listing_head(listing.count) + listing.read(LIST_CHUNK_BYTES)
        while chunk:
            talk.write(chunk)
            await talk.wait_writable()
            chunk = listing.read(LIST_CHUNK_BYTES)
    finally:
        listing.close()
    get_log().info(f"[LIST] Complete: Sent {listing.count} filenames")


async def _connect(talk: Conversation, size: int, accept: Callable[[], bytes], *, ready: bool) -> DataConnection:
    """Wait for the turn, say OK, and wait for the data connection that belongs to it."""
    services = talk.services
    talk.check_alive()
    turn = services.turns.request(talk.address, ready=ready)
    talk.hold_turn(turn)
    try:
        await services.turns.open(turn)
        talk.check_alive()
        talk.write(accept())
        talk.advance()
        sock = await turn.connection()
    finally:
        talk.hold_turn(None)
        services.turns.end(turn)
    lane = services.bandwidth.lane()
    lane.bind(ANONYMOUS)
    data = DataConnection(sock, size, services.times, services.clock, lane)
    talk.hold_data(data)
    return data


def _release(talk: Conversation, data: DataConnection) -> None:
    talk.hold_data(None)
    data.close(reset=True)


def _open_reader(storage: Storage, name: RemoteName) -> tuple[VersionInfo, Reader]:
    """A file that is replaced between the look and the opening is looked at again; the client would not do it."""
    for _ in range(_LOOKS):
        version = storage.open_version(name)
        try:
            return version, storage.open_reader(version.token)
        except Refusal as refusal:
            if refusal.code is not ErrorCode.VERSION_GONE:
                raise
    raise Refusal(ErrorCode.CHANGED, "the file is replaced faster than it can be opened")

"""A channel's hold on the versions that it sends: attachments as many as the client likes, open readers a few."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from twinport_protocol.names import RemoteName
from twinport_protocol.segments import Layout
from twinport_protocol.tickets import Ticket

from .storage.contract import Reader, SendingReader, Storage

OPEN_READERS = 16
"""Readers kept open for the downloads used last: of as many files a client asks in turn without reopening any."""


@dataclass
class Payload:
    """Bytes that the owner of the socket moves itself, after everything that stands before them in ``outgoing``."""

    reader: SendingReader
    offset: int
    remaining: int
    release: Callable[[], None]
    """To be called once the bytes went out, or never will."""


class OpenReaders:
    """Which downloads of one channel have an open reader: ``capacity`` of them, and those that a payload needs."""

    def __init__(self, storage: Storage, capacity: int = OPEN_READERS) -> None:
        self._storage = storage
        self._capacity = capacity
        self._open: OrderedDict[Download, Reader] = OrderedDict()

    def take(self, download: Download) -> Reader:
        """The download's reader, opened by its token if it is not open. ``VersionGone``, ``Denied``."""
        reader = self._open.get(download)
        if reader is None:
            reader = self._open[download] = self._storage.open_reader(download.token)
        self._open.move_to_end(download)
        if len(self._open) > self._capacity:
            oldest = next((other for other in self._open if other is not download and not other.is_sending), None)
            if oldest is not None:
                self.drop(oldest)
        return reader

    def name_of(self, download: Download) -> RemoteName:
        """See :attr:`Download.name`."""
        return self._storage.name_of(download.token)

    def drop(self, download: Download) -> None:
        """Close its reader; harmless when it has none."""
        reader = self._open.pop(download, None)
        if reader is not None:
            reader.close()


class Download:
    """A download attachment. Its reader is closed when it is over and no payload needs it, or for others' sake."""

    def __init__(self, readers: OpenReaders, ticket: Ticket) -> None:
        self.token = ticket.scope
        self.user = ticket.user
        self.sent_bytes = 0
        self.layout = Layout.of(ticket.size)
        self._readers = readers
        self._name: RemoteName | None = None
        self._payloads = 0
        self._over = False

    @property
    def name(self) -> RemoteName:
        """The name that the version was opened under. ``VersionGone``."""
        if self._name is None:
            self._name = self._readers.name_of(self)
        return self._name

    @property
    def is_named(self) -> bool:
        """Whether its name is known already."""
        return self._name is not None

    @property
    def is_sending(self) -> bool:
        """Whether a payload needs its reader."""
        return self._payloads > 0

    def reader(self) -> Reader:
        """Its reader, for now. ``VersionGone``, ``Denied``."""
        return self._readers.take(self)

    def payload(self, reader: SendingReader, position: int, length: int) -> Payload:
        """Bytes for the owner of the socket to move; the reader stays open for them."""
        self._payloads += 1
        return Payload(reader, position, length, self._release)

    def _release(self) -> None:
        self._payloads -= 1
        self._close_when_done()

    def close(self) -> None:
        """The attachment is over."""
        self._over = True
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._over and not self._payloads:
            self._readers.drop(self)

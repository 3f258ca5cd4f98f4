"""What the two directions of a channel have in common, without a socket: attachments, waiting orders, the end.

A lane turns an engine's orders into frames and the server's frames into outcomes. The owner of the socket calls
:meth:`Lane.fill` when everything before is sent, and :meth:`Lane.receive` with what arrived; both only ever from one
thread. The engine is touched under ``lock`` alone, files are read and hashed outside of it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from twinport_protocol.bundle_credit import BundleAnswer
from twinport_protocol.channel import ChannelClient
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, RemoteProtocolError
from twinport_protocol.frames import WHOLE_CHANNEL, Chunk, FrameType, Header, Message

from .engine import Order
from .streams import FileRange

Buffer = bytes | bytearray | memoryview | FileRange
# Many small frames go out in one write of about this size.
BATCH_BYTES = 256 * 1024
BATCH_FILES = 64


class ChannelClosingError(Exception):
    """The server says goodbye, or gave the channel up: what is unanswered was not received."""


class Lane(ABC):
    """Base of the lanes. ``on_change`` is called after outcomes, outside the lock."""

    def __init__(self, lock: threading.Lock, limits: Limits, on_change: Callable[[], None]) -> None:
        self.protocol = ChannelClient(limits)
        self.moved_bytes = 0
        """Of files: acknowledged by the server, or here."""
        self.sends_files = False
        """Whether :meth:`fill` may give ranges of files, which stay open until it is called again."""
        self.is_retiring = False
        """Set from any thread: what was begun is ended, and nothing else is begun."""
        self._lock = lock
        self._limits = limits
        self._on_change = on_change
        self._attached: dict[Any, tuple[bytes, int]] = {}
        self._unanswered: dict[int, int] = {}
        self._urgent: list[Buffer] = []

    @property
    def is_waiting(self) -> bool:
        """Whether the server owes an answer."""
        return self.protocol.unanswered_frames > 0

    @property
    @abstractmethod
    def left_bytes(self) -> int:
        """Of segments in its hands, what is not yet moved; for any thread, so only nearly right."""

    @abstractmethod
    def fill(self) -> list[Buffer]:
        """What to send next; empty when there is nothing, or no credit. Valid until the next call."""

    def receive(self, data: memoryview) -> None:
        """Take bytes from the channel. ``RemoteProtocolError``, ``ChannelClosingError``: give the channel up."""
        changed = False
        for event in self.protocol.feed(data):
            if isinstance(event, Chunk):
                changed |= self._on_chunk(event)
            elif isinstance(event, BundleAnswer):
                self._on_bundle(event)
                changed = True
            elif event.header.type == FrameType.GOODBYE:
                raise ChannelClosingError("the server is stopping")
            elif event.header.type == FrameType.FAIL:
                self._on_fail(event.header)
            else:
                self._on_message(event)
                changed = True
        if changed:
            self._on_change()

    @abstractmethod
    def lost(self) -> None:
        """The channel is gone: hand back everything that was not answered, release what is open."""

    def _on_chunk(self, chunk: Chunk) -> bool:
        raise RemoteProtocolError(ErrorCode.BAD_STATE, "bytes that were not asked for")

    @abstractmethod
    def _on_message(self, message: Message) -> None:
        """A message other than FAIL and GOODBYE."""

    def _on_bundle(self, answer: BundleAnswer) -> None:
        raise RemoteProtocolError(ErrorCode.BAD_STATE, "an answer to no bundle")

    def _on_fail(self, header: Header) -> None:
        if header.attachment == WHOLE_CHANNEL:
            raise ChannelClosingError(ErrorCode.from_number(header.status).value)
        # Every frame of the attachment is answered with the same status; only the next one must not use it.
        for job, (_, number) in list(self._attached.items()):
            if number == header.attachment:
                del self._attached[job]

    def _attach(self, job: Any, ticket: bytes, out: list[Buffer]) -> int:
        """The attachment of a job on this channel, made if there is none."""
        known = self._attached.get(job)
        if known is not None and known[0] is ticket:
            return known[1]
        number, frame = self.protocol.attach(ticket)
        self._attached[job] = (ticket, number)
        self._unanswered.setdefault(number, 0)
        out.append(frame)
        return number

    def _answered(self, number: int) -> None:
        left = self._unanswered.get(number)
        if left is not None:
            self._unanswered[number] = left - 1

    def _detach_finished(self, out: list[Buffer]) -> None:
        """End the attachments whose job is over or goes on under another ticket, once nothing of them is unanswered."""
        for job, (ticket, _) in list(self._attached.items()):
            if job.is_over or job.ticket is not ticket:
                del self._attached[job]
        used = {number for _, number in self._attached.values()}
        for number, left in list(self._unanswered.items()):
            if left == 0 and number not in used:
                del self._unanswered[number]
                out.append(self.protocol.detach(number))


def is_live(order: Order | None) -> bool:
    """Whether an order still counts."""
    return order is not None and not order.is_stale

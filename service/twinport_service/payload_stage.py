"""A borrowed buffer that payloads pass through where the kernel cannot take them from the file by itself."""

from __future__ import annotations

from collections.abc import Callable

from twinport_protocol.errors import ErrorCode, Refusal

from .buffers import BufferPool
from .channel_session import Payload

STAGE_BYTES = 256 * 1024
"""Read at a time: what stays in a core's cache until it is sent."""


def check_not_short(count: int) -> int:
    """``count``, unless it is 0: the header has promised these bytes; the only honest end is the connection's."""
    if count == 0:
        raise Refusal(ErrorCode.CORRUPT, "the stored file is shorter than it was")
    return count


class PayloadStage:
    """For one connection. ``write`` sends from the start of what it is given, how much it says, or raises
    ``BlockingIOError``; then the very bytes that were refused are offered again."""

    def __init__(self, pool: BufferPool, write: Callable[[memoryview], int]) -> None:
        self._pool = pool
        self._write = write
        self._buffer: bytearray | None = None
        self._at = self._end = 0

    def send(self, payload: Payload) -> int:
        """Send some of a payload; how much of it counts as gone. The same payload must follow until it is gone."""
        if self._buffer is None:
            self._buffer = self._pool.take()
        with memoryview(self._buffer) as whole:
            if self._at == self._end:
                wanted = min(payload.remaining, len(whole), STAGE_BYTES)
                self._at = 0
                self._end = check_not_short(payload.reader.read_into(payload.offset, whole[:wanted]))
            count = self._write(whole[self._at : self._end])
        self._at += count
        return count

    @property
    def borrows(self) -> bool:
        """Whether the buffer is there and empty."""
        return self._buffer is not None and self._at == self._end

    def rest(self) -> None:
        """Give the buffer back if it is empty."""
        if self.borrows:
            self.close()

    def close(self) -> None:
        """Give it back in any case."""
        if self._buffer is not None:
            self._pool.give(self._buffer)
            self._buffer = None

"""Waking a thread that waits in ``poll``."""

from __future__ import annotations

import contextlib
import socket


class Waker:
    """A descriptor that becomes readable when another thread calls :meth:`wake`. Wakes that nobody saw yet are one."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._signalled = False

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._read.fileno()

    def wake(self) -> None:
        """Wake the thread; harmless after :meth:`close`."""
        if not self._signalled:
            self._signalled = True
            try:
                self._write.send(b"\0")
            except OSError:  # closed, or full of wakes already
                return

    def clear(self) -> None:
        """Taken note. Look for work only after this call: whatever was announced before it is there by then."""
        with contextlib.suppress(OSError):
            self._read.recv(64)
        # After the read: a wake in between finds the flag set and sends nothing, but its work is already there.
        self._signalled = False

    def close(self) -> None:
        """Release both descriptors."""
        self._signalled = True
        self._read.close()
        self._write.close()

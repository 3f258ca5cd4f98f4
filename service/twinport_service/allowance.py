"""Allowances: a session draws room out of its user's quota in lumps and spends it in memory.

So quotas are hard, yet a stream of small files costs no ledger transaction each. Without quotas the ledger always
grants.
"""

from __future__ import annotations

import threading

from twinport_protocol.errors import ErrorCode, Refusal

from .ledger import Ledger

LUMP_BYTES = 64 * 1024 * 1024
LUMP_FILES = 256


class Allowance:
    """What one session may still upload without asking the ledger again. Thread-safe."""

    def __init__(self, ledger: Ledger, user: str) -> None:
        self._ledger = ledger
        self._user = user
        self._lock = threading.Lock()
        self._bytes = 0
        self._files = 0

    def spend(self, size_bytes: int) -> None:
        """Take room for one file; ``Refusal(QuotaExceeded)`` when the user's quota does not hold it."""
        with self._lock:
            if size_bytes > self._bytes or not self._files:
                self._draw(max(0, size_bytes - self._bytes))
            self._bytes -= size_bytes
            self._files -= 1

    def _draw(self, missing_bytes: int) -> None:
        # A whole lump first; where the quota does not hold that much, exactly what this file needs.
        for extra_bytes, files in ((LUMP_BYTES, LUMP_FILES), (0, 1)):
            if self._ledger.draw(self._user, missing_bytes + extra_bytes, files):
                self._bytes += missing_bytes + extra_bytes
                self._files += files
                return
        raise Refusal(ErrorCode.QUOTA_EXCEEDED)

    def refund(self, size_bytes: int) -> None:
        """Put back the room of a file that was not published."""
        with self._lock:
            self._bytes += size_bytes
            self._files += 1

    def close(self) -> None:
        """Give back what was not spent; spending afterwards draws anew."""
        with self._lock:
            self._ledger.give_back(self._user, self._bytes, self._files)
            self._bytes = self._files = 0

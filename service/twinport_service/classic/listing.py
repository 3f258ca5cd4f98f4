"""The classic LIST: a count first, then every name, so the whole must be known before its first byte goes out.

The names are spooled: in memory up to ``MEMORY_BYTES``, in an unnamed temporary file beyond, so that a listing of any
length costs a bounded amount of memory.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import IO

from twinport_protocol.errors import RemoteProtocolError
from twinport_protocol.names import parse_name

from twinport_service.storage.contract import Storage

MEMORY_BYTES = 64 * 1024
PAGE_ENTRIES = 1000


@dataclass(frozen=True)
class Listing:
    """``count`` names, one per line, to be read from ``spool``. Closed by whoever holds it."""

    count: int
    spool: IO[bytes]

    def read(self, size_bytes: int) -> bytes:
        """The next bytes of the names; empty at the end."""
        return self.spool.read(size_bytes)

    def close(self) -> None:
        """Release the spool."""
        self.spool.close()


def collect_listing(storage: Storage) -> Listing:
    """Every file's name, in the order of the storage. Blocks; raises what ``Storage.list`` refuses with."""
    spool = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 (handed on, closed by the holder)
    count = 0
    try:
        after, more = "", True
        while more:
            page = storage.list("", after, PAGE_ENTRIES, True)
            for entry in page.entries:
                if entry.kind == "f" and _is_one_line(entry.name):
                    spool.write(entry.name.encode() + b"\n")
                    count += 1
            more = page.more and bool(page.entries)
            after = page.entries[-1].key if page.entries else after
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return Listing(count, spool)


def _is_one_line(name: str) -> bool:
    """Whether a client could ask for that name: a file put there by other means may break the framing."""
    try:
        parse_name(name)
    except RemoteProtocolError:
        return False
    return True

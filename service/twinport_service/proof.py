"""Proof after a restart: sealed segments count only once their bytes were read and hashed again.

One thread hashes for an upload, whoever else asks waits for it, and what is proved stays proved: a client that gave up
waiting and asks again finds all the work that was done meanwhile.
"""

from __future__ import annotations

import threading

from blake3 import blake3
from twinport_protocol.errors import ErrorCode, Refusal

from .ledger import Ledger
from .open_upload import OpenUpload
from .storage.contract import Storage

_READ_BYTES = 1024 * 1024


class Prover:
    """See the module. Thread-safe."""

    def __init__(self, storage: Storage, ledger: Ledger) -> None:
        self._storage = storage
        self._ledger = ledger
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """The server stops: hashing ends with ``ShuttingDown``, now and from now on."""
        self._is_stopped.set()

    def prove(self, upload: OpenUpload) -> None:
        """Prove what is not proved yet, and unseal what turns out to be lost. Takes as long as hashing.
        ``UploadUnknown``, ``StorageFault``, ``ShuttingDown``."""
        if not upload.unproved:
            return
        with upload.proving:
            while upload.unproved:
                segment, digest = next(iter(upload.unproved.items()))
                if self._hash(upload, segment) != digest:
                    self._ledger.unseal(upload.spec.upload_id, (segment,))
                    with upload.lock:
                        upload.segments.pop(segment, None)
                del upload.unproved[segment]

    def _hash(self, upload: OpenUpload, segment: int) -> bytes:
        hasher = blake3()
        length = upload.layout.length(segment)
        buffer = memoryview(bytearray(min(_READ_BYTES, max(1, length))))
        offset = 0
        while offset < length:
            if self._is_stopped.is_set():
                raise Refusal(ErrorCode.SHUTTING_DOWN)
            part = buffer[: min(len(buffer), length - offset)]
            count = self._storage.read_staged(upload.spec.upload_id, segment, offset, part)
            if not count:
                break
            hasher.update(part[:count])
            offset += count
        return hasher.digest()

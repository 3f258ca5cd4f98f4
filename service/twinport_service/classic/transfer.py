"""What the thread of a classic transfer does: from its socket to the desk, or from a reader to its socket."""

from __future__ import annotations

import contextlib
import secrets
from concurrent.futures import Future
from dataclasses import dataclass

from blake3 import blake3
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.names import RemoteName
from twinport_protocol.segments import Manifest, digest_of

from twinport_service.access import ANONYMOUS
from twinport_service.buffers import BufferPool
from twinport_service.storage.contract import SMALL_BYTES, Published, Reader, UploadSpec
from twinport_service.upload_handle import UploadHandle
from twinport_service.uploads import UploadDesk

from .data import DataConnection

# Uploads of this dialect cannot be resumed, so no client of the other one must be offered them as its own.
CLASSIC_UPLOADER = f"{ANONYMOUS}/classic"
UPLOAD_ID_BYTES = 16


@dataclass(frozen=True)
class OpenedUpload:
    """An upload that the desk has opened for one classic transfer."""

    spec: UploadSpec
    generation: int

    @property
    def is_small(self) -> bool:
        """Whether it is kept in memory and published whole."""
        return self.spec.size <= SMALL_BYTES


def open_upload(desk: UploadDesk, name: RemoteName, size: int) -> OpenedUpload:
    """Open an upload and, but for a small one, reserve its room. What the desk refuses: ``TooLarge``, ``DiskFull``…"""
    spec = UploadSpec(secrets.token_bytes(UPLOAD_ID_BYTES), CLASSIC_UPLOADER, name, size)
    record = desk.open_small(spec) if size <= SMALL_BYTES else desk.open(spec)
    if isinstance(record, Published):  # a fresh random id cannot have been published
        raise Refusal(ErrorCode.INTERNAL, "a new upload id is known already")
    return OpenedUpload(spec, record.generation)


def abort_upload(desk: UploadDesk, opened: OpenedUpload) -> None:
    """Forget an upload that will not be finished. Harmless when it is gone; a storage fault is left to recovery."""
    with contextlib.suppress(Refusal):
        desk.abort(opened.spec.user, opened.spec.upload_id)


def receive_upload(data: DataConnection, desk: UploadDesk, opened: OpenedUpload, buffers: BufferPool) -> Published:
    """Receive, verify and publish; returns when the file is durable under its name.

    Owns both from the start: afterwards the connection is closed, and the upload published or forgotten.
    ``ShortUpload``, ``SizeMismatch``, ``Timeout``, and whatever the desk and the storage refuse with.
    """
    outcome: Future[Published] = Future()

    def on_done(result: Published | Refusal) -> None:
        if isinstance(result, Published):
            outcome.set_result(result)
        else:
            outcome.set_exception(result)

    try:
        handle = desk.attach(opened.spec.upload_id, opened.generation, opened.spec.user)
        try:
            if opened.is_small:
                whole = _receive_whole(data, opened.spec.size)
                digest = digest_of(whole)
                data.refuse_more()
                handle.commit_whole(whole, digest, on_done)
            else:
                root = _receive_segments(data, handle, buffers)
                data.refuse_more()
                desk.committer.commit(opened.spec.user, opened.spec.upload_id, opened.generation, root, on_done)
            return outcome.result()
        finally:
            handle.detach()
    except BaseException:
        # A reset: after a mere FIN a client that is still sending would fill the window and then wait for a minute.
        data.close(reset=True)
        abort_upload(desk, opened)
        raise
    finally:
        data.close()


def _receive_whole(data: DataConnection, size: int) -> bytes:
    content = bytearray(size)
    with memoryview(content) as view:
        data.receive_exactly(view)
    data.refuse_more()
    return bytes(content)


def _receive_segments(data: DataConnection, handle: UploadHandle, buffers: BufferPool) -> bytes:
    """Store every segment as it comes; the root of the whole."""
    layout = handle.layout
    digests = bytearray()
    buffer = buffers.take()
    try:
        with memoryview(buffer) as view:
            for segment in range(layout.count):
                length = layout.length(segment)
                handle.begin_piece(segment, 0, length, last=True)
                hasher = blake3()
                for offset in range(0, length, len(view)):
                    part = view[: min(len(view), length - offset)]
                    data.receive_exactly(part)
                    if segment + 1 == layout.count and offset + len(part) == length:
                        data.refuse_more()
                    hasher.update(part)
                    handle.write(segment, offset, part)
                digest = hasher.digest()
                handle.end_piece(segment, digest)
                digests += digest
    finally:
        buffers.give(buffer)
    return Manifest(layout.file_bytes, bytes(digests)).root


def send_download(data: DataConnection, reader: Reader, size: int, buffers: BufferPool) -> None:
    """Send a whole version, then end the stream. Owns both: afterwards the reader and the connection are closed."""
    complete = False
    try:
        data.send_reader(reader, size, buffers)
        complete = True
    finally:
        reader.close()
        data.close(reset=not complete)

"""A segment all of whose bytes came, but whose digest did not, is not held: nothing proves it."""

from __future__ import annotations

import os
from collections.abc import Callable

from twinport_protocol.frames import LAST, AckStatus
from twinport_protocol.messages import ReplyKind
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.service.raw_client import RawChannel, RawControl, await_true, fetch_file, root_of_data
from tests.service.running_server import RunningServer


def test_bytes_without_their_digest_are_sent_again(
    server: RunningServer, control: RawControl, channel: RawChannel, upload_id: Callable[[], bytes]
) -> None:
    """Had it been listed, the client would skip it and COMMIT answer ``Incomplete`` for ever."""
    data = os.urandom(MIN_SEGMENT_BYTES + 4096)
    first, second = data[:MIN_SEGMENT_BYTES], data[MIN_SEGMENT_BYTES:]
    upload = control.upload("file", len(data), upload_id())
    channel.attach(upload.ticket)
    assert channel.put_segment(1, 0, first) is AckStatus.SEALED
    with RawChannel(server.data_address) as broken:
        broken.attach(upload.ticket)
        assert not isinstance(broken.have(), int)  # it is attached
        broken.put(1, 1, 0, second, LAST, digest=b"")
    await_true(lambda: server.channel_count == 1, what="the end of the broken channel")
    held = channel.have()
    assert isinstance(held, list)
    assert [record.segment for record in held] == [0]
    assert channel.put_segment(1, 1, second) is AckStatus.SEALED
    assert control.commit(upload, root_of_data(data)).kind is ReplyKind.DONE
    assert fetch_file(control, channel, "file") == data

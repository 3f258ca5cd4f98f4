"""A root given at UPLOAD is a promise: what is committed must add up to it, whichever way it is committed."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_protocol.frames import AckStatus
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.service.raw_client import RawChannel, RawControl, fetch_file, root_of_data, send_file

SIZES = [100, 300 * 1024, MIN_SEGMENT_BYTES + 5]  # in one call, staged and committed by its channel, by COMMIT


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_another_root_are_not_published(
    control: RawControl, channel: RawChannel, upload_id: Callable[[], bytes], size: int
) -> None:
    """Not even when they arrive undamaged."""
    data = os.urandom(size)
    outcome = send_file(control, channel, "file", data, upload_id(), {"root": root_of_data(b"something else").hex()})
    assert (outcome.code if isinstance(outcome, Reply) else outcome) is ErrorCode.ROOT_MISMATCH
    assert control.refused(Verb.STAT, "file") is ErrorCode.FILE_NOT_FOUND


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_that_root_are(
    control: RawControl, channel: RawChannel, upload_id: Callable[[], bytes], size: int
) -> None:
    """The promise is kept."""
    data = os.urandom(size)
    outcome = send_file(control, channel, "file", data, upload_id(), {"root": root_of_data(data).hex()})
    assert (outcome.kind is ReplyKind.DONE) if isinstance(outcome, Reply) else (outcome is AckStatus.COMMITTED)
    assert fetch_file(control, channel, "file") == data

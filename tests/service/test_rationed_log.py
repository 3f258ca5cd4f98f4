"""Lines that strangers can provoke: one a second of each kind, with the number of those left out."""

from __future__ import annotations

import io

import pytest
from twinport_service.log import configure_logging
from twinport_service.rationed_log import RationedLog


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Where the log goes, without times."""
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    found = io.StringIO()
    configure_logging("human", "info", found)
    return found


def test_one_line_a_second_of_a_kind(stream: io.StringIO) -> None:
    now = 0.0
    log = RationedLog(1.0, lambda: now)
    for number in range(1000):
        log.info("[LISTENER] Refused", code=number)
    log.error("[LISTENER] Another kind")
    now = 0.999
    log.info("[LISTENER] Refused", code=-1)
    now = 1.0
    log.info("[LISTENER] Refused", code=-2)
    now = 2.0
    log.info("[LISTENER] Refused", code=-3)
    assert stream.getvalue().splitlines() == [
        "[LISTENER] Refused code=0",
        "ERROR [LISTENER] Another kind",
        "[LISTENER] Refused code=-2 left_out=1000",
        "[LISTENER] Refused code=-3",
    ]

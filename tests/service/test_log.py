"""The log: the words of people, JSON for machines, and no line that a client could forge."""

from __future__ import annotations

import io
import json
import re

import pytest
from twinport_service.log import FORMAT_NAMES, LEVEL_NAMES, configure_logging, get_log, printable

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ")
HOSTILE = [
    "a\nb",
    "a\r\n2026-01-01T00:00:00Z [DELETE] all",
    "a\x00b",
    "a\x1b[2Jb",
    "a\u2028b",
    "a\u202eb",
    "a\x9bb",
    "a\tb",
    "a\x7fb",
]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Where the log goes."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    return io.StringIO()


def test_people_read_the_words_of_the_original(stream: io.StringIO) -> None:
    configure_logging("human", "info", stream)
    peer = ("127.0.0.1", 5)
    get_log().info(f"[NEW CONNECTION] {peer} connected", peer=peer)
    get_log().warning("[LISTENER] Refused: too many sessions", peer=peer, count=3)
    first, second = stream.getvalue().splitlines()
    assert STAMP.sub("", first) == "[NEW CONNECTION] ('127.0.0.1', 5) connected"
    assert STAMP.sub("", second) == "WARNING [LISTENER] Refused: too many sessions count=3"


def test_the_journal_has_its_own_clock(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    configure_logging("human", "info", stream)
    get_log().info("[STOP] Draining")
    assert stream.getvalue() == "[STOP] Draining\n"


def test_machines_read_one_object_a_line_with_all_fields(stream: io.StringIO) -> None:
    configure_logging("json", "info", stream)
    get_log().info("[DELETE] x", peer=("127.0.0.1", 5), code="Denied")
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record.pop("timestamp")
    assert record == {"event": "[DELETE] x", "peer": ["127.0.0.1", 5], "code": "Denied", "level": "info"}


@pytest.mark.parametrize("form", FORMAT_NAMES)
@pytest.mark.parametrize("text", HOSTILE)
def test_no_value_makes_a_second_line_or_moves_a_cursor(stream: io.StringIO, form: str, text: str) -> None:
    configure_logging(form, "info", stream)
    get_log().info(f"[UPLOAD] Receiving {text} (5 bytes)", name=text)
    written = stream.getvalue()
    assert written.count("\n") == 1
    assert written.endswith("\n")
    assert written[:-1].isprintable()
    if form == "json":
        assert json.loads(written)["name"] == text


@pytest.mark.parametrize("text", HOSTILE)
def test_printable_is(text: str) -> None:
    assert printable(text).isprintable()
    assert printable("plain é 漢 text") == "plain é 漢 text"
    assert printable(5) == "5"


def test_a_traceback_is_indented_so_that_no_line_of_it_starts_like_a_record(stream: io.StringIO) -> None:
    configure_logging("human", "info", stream)
    try:
        raise RuntimeError("2026-01-01T00:00:00Z [DELETE] all\n2026-01-01T00:00:00Z [DELETE] all")
    except RuntimeError:
        get_log().exception("[CONTROL] Internal error")
    first, *rest = stream.getvalue().splitlines()
    assert STAMP.match(first)
    assert rest
    assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_only_what_is_severe_enough_is_written(stream: io.StringIO, level: str) -> None:
    configure_logging("human", level, stream)
    for name in LEVEL_NAMES:
        getattr(get_log(), name)(f"line of {name}")
    written = [line.rpartition(" ")[2] for line in stream.getvalue().splitlines()]
    assert written == list(LEVEL_NAMES[LEVEL_NAMES.index(level) :])

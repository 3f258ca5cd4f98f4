"""The command ``bench``: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from twinport.cli.bench import ProgressLine, parse_amount
from twinport.errors import UsageError

from tests.client.conftest import RunCommand
from tests.client.screen import Screen
from tests.client.servers import ServerProcess

COMMAND = [sys.executable, "-c", "from twinport.cli import main; main()"]
QUICK = ["bench", "--seconds", "6", "--size", "4M"]


def test_it_prints_one_plain_screen_into_a_pipe(run_command: RunCommand, shared_server: ServerProcess) -> None:
    code, shown, said = run_command(*QUICK, shared_server.host)
    assert (code, said) == (0, "")
    assert "\x1b" not in shown
    lines = shown.splitlines()
    assert lines[0].startswith(f"{shared_server.host}, plaintext")
    assert len(lines) <= 23
    assert "What bounds it" in lines
    assert not list(shared_server.root.glob("twinport-bench-*"))


@pytest.mark.parametrize("place", ["--host before", "--host after", "argument"])
def test_the_server_may_be_named_in_three_ways(
    run_command: RunCommand, shared_server: ServerProcess, place: str
) -> None:
    host = shared_server.host
    words = {
        "--host before": ["--host", host, *QUICK],
        "--host after": [*QUICK, "--host", host],
        "argument": [*QUICK, host],
    }[place]
    code, shown, _ = run_command(*words, "--json")
    assert code == 0
    found = json.loads(shown)
    assert (found["schema"], found["address"], found["left_behind"]) == (1, host, [])
    assert [verdict["of"] for verdict in found["verdict"]] == ["large-up", "large-down", "small-up", "small-down"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--size", "lots"], 2, "--size 'lots' is no size; write a whole number with K, M or G, as in 200M"),
        (["--size", "10K"], 6, "cannot measure: --size must be at least 1 MiB"),
        (["--seconds", "1"], 2, "see twinport bench --help"),
        (["--to", "../x"], 2, "the name is not a relative path of plain components"),
        (["127.0.0.1:1"], 5, "no connection to 127.0.0.1:1: Connection refused"),
        (["[::1"], 2, "is no address"),
        (["@host"], 2, "write USER@HOST"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run_command: RunCommand, shared_server: ServerProcess, words: list[str], code: int, text: str
) -> None:
    found = run_command("--host", shared_server.host, "bench", *words)
    assert (found[0], found[1]) == (code, "")
    (line,) = found[2].splitlines()
    assert line.startswith("twinport: ")
    assert text in line


@pytest.mark.parametrize(("more", "is_marked"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_gets_more_unless_it_must_not(
    shared_server: ServerProcess, tmp_path: Path, more: dict[str, str], is_marked: bool
) -> None:
    primary, secondary = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", **more}
    environment.pop("NO_COLOR", None) if "NO_COLOR" not in more else None
    process = subprocess.Popen(
        [*COMMAND, *QUICK, shared_server.host],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=secondary,
    )
    os.close(secondary)
    drawn = b""
    while True:
        try:
            part = os.read(primary, 65536)
        except OSError:  # Linux: the terminal is gone
            break
        if not part:
            break
        drawn += part
    os.close(primary)
    assert process.wait(60) == 0
    assert (b"\x1b[1m" in drawn) is is_marked
    assert (b"upload, 1 channel" in drawn) is ("TERM" not in more)
    assert b"What bounds it" in drawn


def test_importing_the_command_does_not_import_what_it_runs() -> None:
    code = "import sys, twinport.cli\nprint([name for name in sys.modules if name.startswith('twinport.bench')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_sizes_as_people_write_them() -> None:
    assert [parse_amount(text) for text in ("4096", "1k", "20 M".replace(" ", ""), "1GiB", "3MB")] == [
        4096, 1024, 20 * 1024**2, 1024**3, 3 * 1024**2,
    ]  # fmt: skip
    for text in ("", "M", "1.5G", "-1", "1X", "9" * 30):
        with pytest.raises(UsageError):
            parse_amount(text)


def test_the_progress_line_is_drawn_at_each_step_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    now = [0.0]
    screen = Screen()
    line = ProgressLine(False, screen, lambda: now[0])  # type: ignore[arg-type]
    line.show("upload", 0)
    line.show("upload", 5000)  # too soon
    now[0] = 1.0
    line.show("upload", 5000)
    line.show("download " + "x" * 100, 0)
    assert screen.text.count("\r") == 3
    assert "  1 s  upload, 4.9 KiB" in screen.text
    assert max(len(part) for part in screen.text.split("\r")) < 40
    line.clear()
    assert screen.text.endswith("\r")
    quiet = Screen()
    ProgressLine(True, quiet, lambda: now[0]).show("upload", 1)  # type: ignore[arg-type]
    assert quiet.text == ""

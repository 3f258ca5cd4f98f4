"""The command as a newcomer meets it: options on either side, one clear line with the next step for each mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Daemon

COMMAND = [sys.executable, "-c", "from twinport.cli import main; main()"]
# Root may read and write everything; without these it is held to the permissions as anybody else is.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
RUN_SECONDS = 60
MANY_FILES = 2000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One server for all; it has two files and a directory."""
    directory = tmp_path_factory.mktemp("server")
    with Daemon(directory / "root", directory / "server.log") as running:
        (directory / "dir").mkdir()
        for name, size in (("file", 5000), ("large", 3_000_000), ("dir/below", 10)):
            (directory / name).write_bytes(os.urandom(size))
        done = run(directory, "-q", "--host", running.host, "put", "-r", "file", "large", "dir")
        assert done.returncode == 0, done.stderr
        yield running
    running.assert_no_traceback()


def run(
    directory: Path, *words: str, prefix: list[str] | None = None, host: str = ""
) -> subprocess.CompletedProcess[str]:
    """One command in a directory, to its end."""
    environment = {**os.environ, "TWINPORT_HOST": host, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*(prefix or []), *COMMAND, *words],
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def unprivileged() -> list[str]:
    """What to put before a command so that permissions count for it."""
    if os.geteuid() != 0:
        return []
    assert shutil.which("setpriv"), "setpriv is part of util-linux"
    return UNPRIVILEGED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; CI runs as root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("words", [["-q", "put", "x"], ["put", "-q", "x"], ["put", "x", "-q"], ["put", "x", "--quiet"]])
def test_quiet_may_stand_on_either_side(daemon: Daemon, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "x").write_bytes(b"x")
    done = run(tmp_path, *words, host=daemon.host)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "words", [["--host", "{}", "ls"], ["ls", "--host", "{}"], ["--host", "127.0.0.1:1", "ls", "--host", "{}"]]
)
def test_the_host_may_stand_on_either_side_and_the_last_counts(
    daemon: Daemon, tmp_path: Path, words: list[str]
) -> None:
    done = run(tmp_path, *(word.format(daemon.host) for word in words), host="127.0.0.1:2")
    assert done.returncode == 0, done.stderr
    assert "file\n" in done.stdout


def test_every_command_answers_in_json_on_demand(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for words, expected in (
        (["put", "x", "--to", "json"], {"files": 1}),
        (["get", "json/x", "-o", "copy"], {"failures": []}),
        (["ls", "json"], {"name": "json/x", "kind": "file", "size": 1}),
        (["stat", "json/x"], {"name": "json/x", "size": 1}),
        (["verify", "json/x", "x"], {"name": "json/x", "path": "x"}),
        (["mkdir", "json/made"], {"name": "json/made"}),
        (["rm", "json/made"], {"name": "json/made", "removed": 1}),
        (["mv", "json/x", "json/y"], {"from": "json/x", "to": "json/y"}),
        (["mv", "json/y", "json/x"], {"from": "json/y", "to": "json/x"}),
    ):
        for line in (["--json", *words], [*words, "--json"])[: 1 if words[0] in ("rm", "mv") else 2]:
            done = run(tmp_path, *line, host=daemon.host)
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout)
            assert {key: answer[key] for key in expected} == expected


@pytest.mark.parametrize("name", ["with  two spaces", "Ünïcode 😀", "-rf", "--help", "a%20b=c", "OK"])
def test_names_that_need_care_go_and_come(daemon: Daemon, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(name.encode())
    assert run(tmp_path, "-q", "put", "--to", "names", "--", name, host=daemon.host).returncode == 0
    assert run(tmp_path, "-q", "get", f"names/{name}", "-o", "back/", host=daemon.host).returncode == 0
    assert (tmp_path / "back" / name).read_bytes() == name.encode()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["get", "dir"], 2, "cannot fetch dir: it is a directory; add -r"),
        (["verify", "dir", "plain"], 2, "cannot verify dir: it is a directory"),
        (["put", "tree"], 2, "cannot send tree: it is a directory; add -r"),
        (["put", "locked"], 8, "cannot send locked: Permission denied; check the permissions"),
        (["get", "file", "-o", "shut/"], 8, "cannot write shut/file: Permission denied; check the permissions"),
        (["get", "file", "-o", "shut/a/b/"], 8, "cannot write to shut/a/b/: Permission denied; check the permissions"),
        (["get", "file", "-o", "plain/x"], 2, "it is no directory, or below a file; choose another place"),
        (
            ["get", "file", "-o", "taken/"],
            1,
            "cannot write taken/file: Is a directory; remove the directory, or choose",
        ),
        (["get", "../x"], 2, "'../x': the name is not a relative path of plain components"),
        (["get", "/etc/passwd"], 2, "'/etc/passwd': the name is not a relative path of plain components"),
        (["put", "--to", "../x", "plain"], 2, "'../x': the name is not a relative path of plain components"),
        (["put", ""], 3, "cannot send '': there is no such file here"),
        (["mv", "file", "dir"], 1, "cannot move file: dir is a directory; give the whole new name, as in dir/file"),
        (["rm", "dir"], 1, "cannot remove dir without -r: the directory is not empty"),
        (["rm", "-r", "nothing"], 3, "cannot remove nothing: there is no such file"),
        (["ls", "nothing"], 3, "cannot list nothing: there is no such file"),
        (["put", "-rf"], 2, " (names that begin with a dash go after --); see twinport put --help"),
        (["ls", "--channels", "99"], 2, "see twinport ls --help"),
    ],
)
def test_a_mistake_is_one_clear_line(
    daemon: Daemon, tmp_path: Path, unprivileged: list[str], words: list[str], code: int, text: str
) -> None:
    for name in ("tree", "shut", "taken/file/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "plain").write_bytes(b"x")
    (tmp_path / "locked").write_bytes(b"x")
    (tmp_path / "locked").chmod(0)
    (tmp_path / "shut").chmod(0o555)
    done = run(tmp_path, *words, prefix=unprivileged, host=daemon.host)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("twinport: ")
    assert text in line


def test_of_thousands_of_files_one_that_cannot_be_read_fails_alone(
    daemon: Daemon, tmp_path: Path, unprivileged: list[str]
) -> None:
    (tmp_path / "many").mkdir()
    for number in range(MANY_FILES):
        (tmp_path / f"many/{number}").write_text(str(number))
    (tmp_path / "many/77").chmod(0)
    done = run(tmp_path, "put", "-r", "many", prefix=unprivileged, host=daemon.host)
    told, summary = done.stderr.splitlines()
    assert told == "twinport: cannot send many/77: Permission denied; check the permissions"
    assert summary.startswith(f"twinport: {MANY_FILES - 1} files sent, ")
    assert summary.endswith(", 1 failed")
    assert done.returncode == 1


def test_a_full_disk_is_told_and_leaves_no_rubbish(daemon: Daemon, tmp_path: Path, small_disk: Path) -> None:
    done = run(tmp_path, "get", "large", "-o", "small/", host=daemon.host)
    (line,) = done.stderr.splitlines()
    assert line.startswith("twinport: cannot write small/large: it needs ")
    assert line.endswith("; free some space, or choose another place")
    assert done.returncode == 6
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_does_not_flood_the_terminal(daemon: Daemon, tmp_path: Path, small_disk: Path) -> None:
    (tmp_path / "flood").mkdir()
    for number in range(400):
        (tmp_path / f"flood/{number}").write_bytes(b"x" * 8192)
    assert run(tmp_path, "-q", "put", "-r", "flood", host=daemon.host).returncode == 0
    done = run(tmp_path, "get", "-r", "flood", "-o", "small/flood", host=daemon.host)
    *told, summary = done.stderr.splitlines()
    assert len(told) == 20
    assert all("; free some space, or choose another place" in line for line in told)
    assert "not shown; --json lists all" in summary
    assert done.returncode == 1
    arrived = [path for path in (small_disk / "flood").iterdir() if path.stat().st_size]
    assert arrived
    assert all(path.read_bytes() == b"x" * 8192 for path in arrived)

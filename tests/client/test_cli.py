"""The command: exit codes and texts, through real processes; never a traceback."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import twinport
from twinport.cli.display import TerminalObserver, format_bytes, format_time
from twinport_protocol.segments import MIN_SEGMENT_BYTES

from tests.client.conftest import Connect
from tests.client.lying_server import LyingServer
from tests.client.screen import Screen
from tests.client.servers import Passage, Proxy, ServerProcess

COMMAND = [sys.executable, "-c", "from twinport.cli import main; main()"]
RUN_SECONDS = 60

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(shared_server: ServerProcess, tmp_path: Path) -> Run:
    """Runs the command against the shared server, in the test's directory."""

    def start(*words: str, host: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TWINPORT_HOST": host or shared_server.host, **more}
        done = subprocess.run(
            [*COMMAND, *words],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=RUN_SECONDS,
        )
        assert "Traceback" not in done.stderr
        return done

    return start


def test_files_go_and_come(run: Run, make_file: Callable[..., Path], prefix: str, tmp_path: Path) -> None:
    make_file("file", 5000)
    done = run("put", "file", "--to", prefix)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("twinport: 1 file sent, 4.9 KiB in ")

    done = run("get", f"{prefix}/file", "-o", "copy")
    assert done.returncode == 0
    assert done.stderr.startswith("twinport: 1 file fetched, 4.9 KiB in ")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "file").read_bytes()

    (tmp_path / "sub").mkdir()
    for output, copy in (("sub", "sub/file"), ("other/", "other/file"), ("deep/er/name", "deep/er/name")):
        assert run("-q", "get", f"{prefix}/file", "-o", output).stderr == ""
        assert (tmp_path / copy).read_bytes() == (tmp_path / "file").read_bytes()

    done = run("verify", f"{prefix}/file", "copy")
    assert done.returncode == 0
    assert done.stdout.startswith("same  ")
    (tmp_path / "copy").write_bytes(b"other")
    done = run("verify", f"{prefix}/file", "copy")
    assert (done.returncode, done.stderr) == (7, f"twinport: {prefix}/file and copy differ in their sizes\n")


def test_trees_go_and_come(run: Run, make_file: Callable[..., Path], prefix: str, tmp_path: Path) -> None:
    for number in range(30):
        make_file(f"tree/{number % 3}/{number}", number, seed=number)
    assert run("put", "-r", "tree", "--to", prefix).returncode == 0
    for _ in range(2):  # the second time, where the target exists by now, is the same command and the same result
        done = run("get", "-r", f"{prefix}/tree", "-o", "copy")
        assert done.returncode == 0
        assert sorted(os.listdir(tmp_path / "copy")) == ["0", "1", "2"]
    assert "30 files, 435 B were there already" in done.stderr
    assert run("get", "-r", f"{prefix}/tree/0", f"{prefix}/tree/1", "-o", "both").returncode == 0
    assert sorted(os.listdir(tmp_path / "both")) == ["0", "1"]
    assert run("get", "-r", f"{prefix}/tree/0/27", "-o", "one").returncode == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "tree/0/27").read_bytes()


def test_listings(run: Run, make_file: Callable[..., Path], prefix: str) -> None:
    make_file("b", 2048)
    make_file("a d/c", 1)
    run("put", "b", "--to", prefix)
    run("put", "-r", "a d", "--to", prefix)
    assert run("ls", prefix).stdout == f"{prefix}/a d/\n{prefix}/b\n"
    assert run("ls", "-r", prefix).stdout == f"{prefix}/a d/c\n{prefix}/b\n"
    entries = [json.loads(line) for line in run("ls", prefix, "--json").stdout.splitlines()]
    assert [(entry["name"], entry["kind"], entry["size"]) for entry in entries] == [
        (f"{prefix}/a d", "directory", 0),
        (f"{prefix}/b", "file", 2048),
    ]
    assert "2.0 KiB  20" in run("ls", "-l", prefix).stdout
    entry = json.loads(run("stat", f"{prefix}/b", "--json").stdout)
    assert entry["size"] == 2048
    assert f"root  {entry['root']}" in run("stat", f"{prefix}/b").stdout

    assert run("mv", f"{prefix}/b", f"{prefix}/new/name").returncode == 0
    assert run("mkdir", f"{prefix}/made").returncode == 0
    assert run("ls", prefix).stdout == f"{prefix}/a d/\n{prefix}/made/\n{prefix}/new/\n"
    done = run("rm", f"{prefix}/new")
    assert done.returncode == 1
    assert done.stderr.endswith("the directory is not empty; remove what it holds first [NotEmpty]\n")
    assert run("rm", "-r", prefix).returncode == 0
    assert run("ls", prefix).returncode == 3


def test_names_from_a_server_do_not_command_the_terminal(run: Run, tmp_path: Path) -> None:
    liar = LyingServer()
    try:
        liar.listed = [("good", "f"), ("x\u202e\u009b31m", "f")]
        done = run("ls", host=f"127.0.0.1:{liar.port}")
    finally:
        liar.close()
    assert done.stdout == "good\nx\\u202e\\x9b31m\n"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["get", "no/such/file"], 3, "cannot fetch no/such/file: there is no such file; list the names that exist"),
        (["put", "missing"], 3, "cannot send missing: there is no such file here"),
        (["put", "."], 2, "it is a directory; add -r"),
        (["stat", "../x"], 2, "the name is not a relative path of plain components"),
        (["rm", "no/such/file"], 3, "cannot remove no/such/file: there is no such file"),
        (["mv", "no/such/file", "x"], 3, "cannot move no/such/file"),
        (["verify", "no/such/file", "x"], 3, "cannot verify no/such/file"),
        (["--host", "127.0.0.1:1", "ls"], 5, "no connection to 127.0.0.1:1: Connection refused; is twinportd running"),
        (["--host", "[::1", "ls"], 2, "'[::1' is no address; write HOST, HOST:PORT or [IPV6]:PORT"),
        (["--host", "nowhere.invalid", "ls"], 5, "no connection to nowhere.invalid:5001"),
        (["put"], 2, "Missing argument"),
        (["what"], 2, "No such command"),
        (["get", "-o", "x", "--what", "y"], 2, "No such option"),
    ],
)
def test_mistakes_are_told_in_one_line_with_their_exit_code(run: Run, words: list[str], code: int, text: str) -> None:
    done = run(*words)
    assert done.returncode == code
    assert text in done.stderr
    assert done.stdout == ""
    assert all(line.startswith("twinport: ") for line in done.stderr.splitlines())


def test_one_failed_file_of_several(run: Run, make_file: Callable[..., Path], prefix: str) -> None:
    make_file("good", 10)
    done = run("put", "good", "missing", "--to", prefix)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "twinport: cannot send missing: there is no such file here"
    assert done.stderr.splitlines()[-1].endswith(", 1 failed")
    done = run("get", "a/missing", "b/missing2", "-o", ".")
    assert done.returncode == 3  # all failed, and all alike
    done = run("put", "good", "missing", "--to", prefix, "--json", "-q")
    outcome = json.loads(done.stdout)
    assert outcome["files"] == 1
    assert [failure["code"] for failure in outcome["failures"]] == ["FileNotFound"]
    done = run("put", "good", "--to", prefix, "--no-replace")
    assert done.returncode == 1
    assert "the name is taken" in done.stderr


def test_help_and_version_are_complete(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in (
        "put", "get", "ls", "stat", "rm", "mv", "mkdir", "verify", "login", "logout", "whoami", "quota", "bench",
    ):  # fmt: skip
        assert f"\n  {command} " in done.stdout
        shown = run(command, "--help")
        assert shown.returncode == 0
        assert "Example" in shown.stdout
        assert f"\n    twinport {command}" in shown.stdout
    assert run("--version").stdout.startswith("twinport 0.")


def test_importing_and_helping_load_neither_asyncio_nor_tls_nor_the_hash() -> None:
    code = (
        "import sys, twinport, twinport.cli\n"
        "print([name for name in ('asyncio', 'ssl', 'blake3', 'twinport.client', 'ctypes') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_plaintext_pays_neither_for_tls_nor_for_keys(shared_server: ServerProcess) -> None:
    code = (
        "import sys\nfrom twinport.cli import run\n"
        f"assert run(['--host', '{shared_server.host}', 'stat', 'no/such/file']) == 3\n"
        "print([name for name in ('ssl', 'cryptography', 'asyncio', 'keyring') if name in sys.modules])"
    )
    words = [sys.executable, "-c", code]
    assert subprocess.check_output(words, text=True, stderr=subprocess.DEVNULL) == "[]\n"


def test_the_library_names_its_parts_and_nothing_else() -> None:
    assert twinport.connect.__module__ == "twinport.connecting"
    assert twinport.errors.UsageError.exit_code == 2
    assert all(getattr(twinport, name) is not None for name in dir(twinport) if name in twinport.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = twinport.nothing


@pytest.mark.parametrize("direction", ["up", "down"])
def test_an_interrupt_says_how_to_go_on(
    shared_server: ServerProcess,
    make_proxy: Callable[..., Proxy],
    connect: Connect,
    make_file: Callable[..., Path],
    prefix: str,
    tmp_path: Path,
    direction: str,
) -> None:
    path = make_file("file", 4 * MIN_SEGMENT_BYTES)
    words = ["put", "file", "--to", prefix]
    if direction == "down":
        connect(shared_server).put(path, prefix)
        words = ["get", f"{prefix}/file", "-o", "copy"]
    half_way = threading.Event()

    def rule(passage: Passage, going: str, data: bytes) -> bytes | None:
        if passage.kind == "channel" and proxy.moved_bytes(direction) > MIN_SEGMENT_BYTES:
            half_way.set()
            return None
        return data

    proxy = make_proxy(shared_server, rule)
    process = subprocess.Popen(
        [*COMMAND, "--host", proxy.host, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert half_way.wait(60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "twinport: interrupted; run the same command again to go on"
    assert "Traceback" not in said
    report = (
        connect(shared_server).put(path, prefix)
        if direction == "up"
        else connect(shared_server).get(f"{prefix}/file", tmp_path / "copy", exact=True)
    )
    assert report.bytes_kept > 0


def test_a_reader_that_has_enough_is_no_error(
    run: Run, shared_server: ServerProcess, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(300):
        (tmp_path / "tree" / f"{number:03}{'x' * 200}").write_bytes(b"")
    run("put", "-r", "tree", "--to", prefix)
    command = f"{sys.executable} -c 'from twinport.cli import main; main()'"
    pipe = f"{command} --host {shared_server.host} ls -r {prefix} | head -1"
    done = subprocess.run(["sh", "-c", pipe], check=False, capture_output=True, text=True, timeout=RUN_SECONDS)
    assert done.stdout.startswith(f"{prefix}/tree/000")
    assert done.stderr == ""


def test_progress_is_drawn_on_a_terminal_only(shared_server: ServerProcess, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(MIN_SEGMENT_BYTES))
    words = [*COMMAND, "--host", shared_server.host, "put", "file", "--to", prefix]
    primary, secondary = pty.openpty()
    process = subprocess.Popen(words, cwd=tmp_path, stderr=secondary, stdin=subprocess.DEVNULL)
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
    assert process.wait(RUN_SECONDS) == 0
    assert b"\r" in drawn
    assert b"1 file sent" in drawn


def test_the_progress_line_is_redrawn_seldom_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    now = [100.0]
    screen = Screen()
    observer = TerminalObserver(False, screen, lambda: now[0])  # type: ignore[arg-type]
    for step in range(100):
        now[0] += 0.01
        observer.progress(step * 1024, 100 * 1024)
    assert 4 <= screen.text.count("\r") <= 6
    assert "0 files, 80.0 KiB of 100.0 KiB 80%" in screen.text
    observer.note("skipped \x1b[31mred")
    assert screen.text.endswith("\r" + " " * observer_width(screen) + "\rtwinport: skipped \\x1b[31mred\n")
    monkeypatch.setenv("TERM", "dumb")
    quiet = Screen()
    TerminalObserver(False, quiet, lambda: now[0]).progress(1, 2)  # type: ignore[arg-type]
    assert quiet.text == ""


def observer_width(screen: Screen) -> int:
    """How wide the last line was that had to be taken away."""
    return len(screen.text.split("\r")[-2])


def test_sizes_and_times_for_people() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1024, 1536, 10 * 2**20, 2**62)] == [
        "0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10.0 MiB", "4096.0 PiB",
    ]  # fmt: skip
    assert len(format_time(0)) == 19
    assert format_time(2**63 - 1) != ""
    assert format_time(10**30) == ""

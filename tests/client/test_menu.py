"""``twinport menu``: the whole conversation through pipes, and through a terminal as far as that differs."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import twinport
from twinport.cli.menu import CountingObserver, Menu
from twinport.client import Client

from tests.client.conftest import RunCommand
from tests.client.screen import Screen
from tests.client.servers import ServerProcess

COMMAND = [sys.executable, "-c", "from twinport.cli import main; main()"]
PASSWORD = "correct horse battery staple"
MakeFile = Callable[..., Path]


def lines(*words: str) -> str:
    """What somebody types."""
    return "".join(f"{word}\n" for word in words)


def test_a_file_goes_is_listed_and_comes_back(
    run_command: RunCommand, own_server: ServerProcess, make_file: MakeFile, tmp_path: Path
) -> None:
    photo = make_file("photo.jpg", 118_601)
    given = lines("1", "photo.jpg", "3", "2", "photo.jpg", "4")
    code, shown, said = run_command("--host", own_server.host, "menu", given=given)
    assert (code, said) == (0, "")
    assert (
        """Enter your choice (1-4): 1
Enter the path of file to upload: photo.jpg
=== UPLOADING FILE ===
File: photo.jpg
Size: 118601 bytes
Uploading: 100% [118601/118601 bytes]
✓ Upload complete!
"""
        in shown
    )
    assert "=== AVAILABLE FILES ===\n1. photo.jpg\n" in shown
    assert (
        """Enter your choice (1-4): 2
Enter the filename to download: photo.jpg
=== DOWNLOADING FILE ===
File: photo.jpg
Size: 118601 bytes
Downloading: 100% [118601/118601 bytes]
✓ Download complete! Saved to: client_downloads/photo.jpg
"""
        in shown
    )
    assert shown.endswith("Enter your choice (1-4): 4\nGoodbye.\n")
    assert (tmp_path / "client_downloads/photo.jpg").read_bytes() == photo.read_bytes()


def test_no_error_ends_it(
    run_command: RunCommand, own_server: ServerProcess, make_file: MakeFile, tmp_path: Path
) -> None:
    make_file("empty", 0)
    (tmp_path / "folder").mkdir()
    given = lines(
        "5", "", "one", "1", "nothing-here", "1", "", "1", "folder", "2", "missing", "2", "../secret", "2", "",
        "3", "1", "'empty'", "1", "empty", "2", "empty", "4",
    )  # fmt: skip
    code, shown, said = run_command("--host", own_server.host, "menu", given=given)
    assert (code, said) == (0, "")
    assert shown.count("That is no choice; type 1, 2, 3 or 4.") == 3
    assert "Error: nothing-here: No such file or directory" in shown
    assert "Error: no path was given" in shown
    assert "Error: folder is a directory; `twinport put -r folder` sends all in it" in shown
    assert shown.count("[FileNotFound]") == 1
    assert "Error: no filename was given" in shown
    assert "=== AVAILABLE FILES ===\nThere are none yet.\n" in shown
    assert "Uploading: 100% [0/0 bytes]\n✓ Upload complete!\n" in shown
    assert "Saved to: client_downloads/empty" in shown
    assert (tmp_path / "client_downloads/empty").read_bytes() == b""


def test_a_large_file_that_is_there_is_not_sent_again(
    run_command: RunCommand, own_server: ServerProcess, make_file: MakeFile
) -> None:
    make_file("large", 9_000_000)
    code, shown, _ = run_command("--host", own_server.host, "menu", given=lines("1", "large", "1", "large", "4"))
    assert code == 0
    first, again = shown.split("✓ Upload complete!")[1:]
    assert not first.startswith(" (")
    assert again.startswith(" (It was there already.)")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1:strict"])
def test_no_byte_ends_it(own_server: ServerProcess, tmp_path: Path, encoding: str) -> None:
    (own_server.root / "\u65e5.txt").write_bytes(b"x")
    done = subprocess.run(
        [*COMMAND, "--host", own_server.host, "menu"],
        input=b"\xff\n1\na\0b\n1\n\xff\xfe\n3\n4\n",
        env={**os.environ, "PYTHONIOENCODING": encoding},
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == b""
    assert b"Error: no path has a zero byte in it" in done.stdout
    assert b"1. \xe6\x97\xa5.txt\n" in done.stdout or b"1. \\u65e5.txt\n" in done.stdout
    assert done.stdout.endswith(b"Goodbye.\n")


@pytest.mark.parametrize("given", ["", "1\n", "2", "3\n"])
def test_the_end_of_the_input_ends_it(run_command: RunCommand, shared_server: ServerProcess, given: str) -> None:
    code, shown, said = run_command("--host", shared_server.host, "menu", given=given)
    assert (code, said) == (0, "")
    assert shown.count("=== TWINPORT ===") == (2 if given == "3\n" else 1)


def test_whoever_has_read_enough_of_it_is_not_waited_for(shared_server: ServerProcess) -> None:
    command = [*COMMAND, "--host", shared_server.host, "menu"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"3\n" * 1000)
        process.stdin.close()
        assert process.wait(60) == 1
        assert b"Traceback" not in process.stderr.read()


def test_it_survives_a_server_that_is_gone_for_a_while(own_server: ServerProcess, make_file: MakeFile) -> None:
    path = make_file("file", 1000)
    with twinport.connect("127.0.0.1", own_server.port, patience_seconds=0.5) as client:
        shown = converse(client, "3", own_server.stop, "3", own_server.start, "1", str(path), "4")
    there, gone, again = shown.split("Enter your choice (1-4): ")[1:4]
    assert "There are none yet." in there
    assert "Error: " in gone
    assert "✓ Upload complete!" in again


def test_a_server_that_is_not_there_is_said_once(run_command: RunCommand, own_server: ServerProcess) -> None:
    own_server.stop()
    code, shown, said = run_command("--host", own_server.host, "menu", given=lines("3", "4"))
    assert (code, shown) == (5, "")
    assert said.startswith("twinport: no connection to ")


def test_it_keeps_to_the_users_own_folder(shm_path: Path, make_file: MakeFile, tmp_path: Path) -> None:
    root = shm_path / "root"
    command = [sys.executable, "-c", "from twinport_service.cli import main; main()", "user", "add", "alice"]
    subprocess.run(
        [*command, "--password-stdin", "--root", str(root)], input=f"{PASSWORD}\n", text=True, check=True, timeout=60
    )
    path = make_file("file", 1000)
    with (
        ServerProcess(root).reserving() as server,
        twinport.connect("127.0.0.1", server.start().port, user="alice", password=PASSWORD, tls=False) as client,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(tmp_path)
        shown = converse(client, "3", "1", str(path), "3", "2", "file", "4")
    assert "=== AVAILABLE FILES ===\nThere are none yet.\n" in shown
    assert "=== AVAILABLE FILES ===\n1. file\n" in shown
    assert (root / "alice/file").read_bytes() == path.read_bytes()
    assert (tmp_path / "client_downloads/file").read_bytes() == path.read_bytes()


class Answers(io.StringIO):
    """What somebody types, one line after the other; what can be called is done before the next line."""

    def __init__(self, *answers: str | Callable[[], object]) -> None:
        super().__init__()
        self._answers = iter(answers)

    def readline(self, size: int | None = -1, /) -> str:  # type: ignore[override]
        """The next answer."""
        for answer in self._answers:
            if isinstance(answer, str):
                return f"{answer}\n"
            answer()
        return ""


def converse(client: Client, *answers: str | Callable[[], object], encoding: str = "utf-8") -> str:
    """One run of the menu over pipes."""
    out = io.TextIOWrapper(io.BytesIO(), encoding, newline="\n")
    Menu(client, out, Answers(*answers)).run()
    out.seek(0)
    return out.read()


def test_where_the_terminal_has_no_tick_it_goes_without(shared_server: ServerProcess, make_file: MakeFile) -> None:
    with twinport.connect("127.0.0.1", shared_server.port) as client:
        shown = converse(client, "1", str(make_file("file", 10)), "4", encoding="ascii")
    assert "\nUpload complete!" in shown


def test_a_terminal_sees_the_bytes_count_up() -> None:
    screen = Screen()
    observer = CountingObserver("Uploading", 1000, screen)  # type: ignore[arg-type]
    observer.progress(0, 1000)
    observer.progress(420, 1000)
    observer.note("connecting again")
    observer.progress(1000, 1000)  # sent, and not stored yet
    observer.finish()
    assert screen.text == (
        "\rUploading: 0% [0/1000 bytes]\rUploading: 42% [420/1000 bytes]\n"
        "(connecting again)\n"
        "\rUploading: 100% [1000/1000 bytes]\n"
    )


@pytest.mark.parametrize("path", ["'with blank'", '"with blank"', "with\\ blank", "with blank"])
def test_paths_as_file_managers_drop_them(
    run_command: RunCommand, own_server: ServerProcess, tmp_path: Path, path: str
) -> None:
    (tmp_path / "with blank").write_bytes(b"1")
    code, shown, _ = run_command("--host", own_server.host, "menu", given=lines("1", path, "4"))
    assert code == 0
    assert "File: with blank\nSize: 1 bytes\n" in shown
    assert (own_server.root / "with blank").read_bytes() == b"1"


def test_a_menu_knows_no_json(run_command: RunCommand, shared_server: ServerProcess) -> None:
    code, shown, said = run_command("--host", shared_server.host, "menu", "--json")
    assert (code, shown) == (2, "")
    assert said == "twinport: a menu is for people; put, get and ls know --json\n"

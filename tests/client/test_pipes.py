"""``put -`` and ``get -o -``: standard input and output in the place of files, and names of one's choice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from twinport.client import Client
from twinport.errors import UsageError

from tests.client.conftest import RunCommand
from tests.client.servers import ServerProcess

COMMAND = [sys.executable, "-c", "from twinport.cli import main; main()"]
MakeFile = Callable[..., Path]
SIZES = [0, 1, 5_000_000]


def run_bytes(server: ServerProcess, directory: Path, *words: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """The command with bytes at both ends, and a temporary directory that must be empty afterwards."""
    temporary = directory / "tmp"
    temporary.mkdir(exist_ok=True)
    done = subprocess.run(
        [*COMMAND, "--host", server.host, *words],
        input=given,
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=directory,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr
    assert not list(temporary.iterdir())
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("size", SIZES)
def test_bytes_go_through_pipes(shared_server: ServerProcess, prefix: str, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    name = f"{prefix}/a/dump.sql"
    code, shown, said = run_bytes(shared_server, tmp_path, "put", "-", "--as", name, given=data)
    assert (code, shown) == (0, b"")
    assert said.startswith(b"twinport: 1 file sent, ")
    assert shared_server.stored(name).read_bytes() == data
    assert run_bytes(shared_server, tmp_path, "-q", "get", name, "-o", "-") == (0, data, b"")
    (tmp_path / "-").mkdir()
    assert run_bytes(shared_server, tmp_path, "-q", "get", name, "-o", "-") == (0, data, b""), "also beside such a name"


def test_a_file_and_a_tree_may_be_called_otherwise(
    run_command: RunCommand, shared_server: ServerProcess, make_file: MakeFile, prefix: str, tmp_path: Path
) -> None:
    make_file("tree/one", 10)
    make_file("tree/two", 20)
    code, _, _ = run_command("--host", shared_server.host, "put", "tree/one", "--as", f"{prefix}/other/name")
    assert code == 0
    assert shared_server.stored(f"{prefix}/other/name").read_bytes() == (tmp_path / "tree/one").read_bytes()
    for kept in (0, 2):  # the second time it is compared with what is there
        code, _, said = run_command("--host", shared_server.host, "put", "-r", "tree", "--as", f"{prefix}/grown")
        assert code == 0
        assert said.startswith(f"twinport: {2 - kept} files sent")
    assert sorted(path.name for path in shared_server.stored(f"{prefix}/grown").iterdir()) == ["one", "two"]


@pytest.mark.parametrize(
    "words",
    [
        ["put", "-"],
        ["put", "-", "x", "--as", "name"],
        ["put", "x", "--as", "name", "--to", "there"],
        ["get", "a", "b", "-o", "-"],
        ["get", "-r", "a", "-o", "-"],
        ["get", "a", "-o", "-", "--json"],
    ],
)
def test_what_makes_no_sense_is_refused(
    run_command: RunCommand, shared_server: ServerProcess, words: list[str]
) -> None:
    code, shown, said = run_command("--host", shared_server.host, *words)
    assert (code, shown) == (2, "")
    assert said.count("\n") == 1


def test_nothing_is_written_of_what_is_not_there(shared_server: ServerProcess, tmp_path: Path) -> None:
    code, shown, said = run_bytes(shared_server, tmp_path, "get", "no/such/file", "-o", "-")
    assert (code, shown) == (3, b"")
    assert b"no/such/file" in said


def test_the_library_takes_names_too(client: Client, make_file: MakeFile, prefix: str) -> None:
    path = make_file("file", 10)
    assert client.put(path, f"{prefix}/exactly", exact=True).files_done == 1
    assert client.stat(f"{prefix}/exactly").size == 10
    with pytest.raises(UsageError, match="several paths"):
        client.put([path, path], "x", exact=True)
    with pytest.raises(UsageError):
        client.put(path, "", exact=True)

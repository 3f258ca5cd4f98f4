"""The documents say what is so: commands, help texts, error codes, options and links."""

from __future__ import annotations

import dataclasses
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from twinport_protocol.errors import ErrorCode
from twinport_service.config import Settings, flag_of

PROJECT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
README = PROJECT / "README.md"
DOCUMENTS = sorted(
    [*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"), *(PROJECT / "ansible").rglob("*.md")],
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SCRIPT = re.compile(r"(?<![\w./-])(?:scripts/\w+|\.ci/\w+)")


def run_help(*command: str) -> str:
    """What an installed command prints for ``--help`` on a terminal of 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "LC_ALL": "C.UTF-8"}
    found = subprocess.run(
        [BIN / command[0], *command[1:], "--help"], env=environment, capture_output=True, text=True, check=True
    )
    return found.stdout


def read(document: str) -> str:
    """A document that the project promises to have."""
    return (PROJECT / document).read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [body for name, body in FENCE.findall(text) if name == language]


def help_excerpts(text: str) -> list[tuple[list[str], str]]:
    """The console blocks that show one ``--help``: the words of the command and what it prints."""
    found = []
    for block in blocks(text, "console"):
        first, _, rest = block.partition("\n")
        if first.startswith("$ ") and first.endswith(" --help"):
            found.append((first.split()[1:-1], rest))
    return found


def commands_of(text: str) -> list[list[str]]:
    """The words of every command of ours that console blocks show."""
    shown = [line for block in blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    lines = [shlex.split(line[2:], comments=True) for line in shown]
    return [words for words in lines if words and Path(words[0]).name in ("twinport", "twinportd")]


def verb_of(words: list[str]) -> str | None:
    """The verb of a command line: its first word that is neither an option nor the value of ``--host``."""
    rest = iter(words[1:])
    for word in rest:
        if word == "--host":
            next(rest)
        elif not word.startswith("-"):
            return word
    return None


@contextmanager
def running_server(root: Path) -> Iterator[str]:
    """The control address of a server that runs meanwhile."""
    command: list[str | Path] = [BIN / "twinportd", "serve", "--root", root, "--control-port", "0", "--data-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline().split()
            assert ready[:3] == ["twinportd", "ready:", "control"]
            yield ready[3]
        finally:
            server.terminate()
    assert server.returncode == 0


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual code hosts."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_the_scripts_named_in_a_document_can_be_run(document: str) -> None:
    named = set(SCRIPT.findall(read(document)))
    assert {"scripts/quickstart", "scripts/test"} <= named
    assert [name for name in sorted(named) if not os.access(PROJECT / name, os.X_OK)] == []


def test_the_readme_shows_the_real_help() -> None:
    excerpts = help_excerpts(README.read_text())
    assert {words[0] for words, _ in excerpts} == {"twinport", "twinportd"}
    for words, shown in excerpts:
        assert shown.strip() == run_help(*words).strip(), f"{' '.join(words)} --help prints something else"


def test_the_reference_has_every_command_with_its_real_help() -> None:
    script = runpy.run_path(str(PROJECT / "scripts" / "cli_reference.py"))
    assert script["page"]() == read("docs/cli.md"), "run scripts/cli_reference.py"


def test_the_verbs_in_the_readme_exist() -> None:
    commands = [(Path(words[0]).name, verb_of(words)) for words in commands_of(README.read_text())]
    assert ("twinportd", "serve") in commands
    helps = {name: run_help(name) for name in ("twinport", "twinportd")}
    for name, verb in commands:
        assert verb is None or re.search(rf"^  {re.escape(verb)}\b", helps[name], re.MULTILINE), f"{name} {verb}"


def test_the_examples_in_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server for two people, alice's login and all that she does, but for the names of files and hosts."""
    keys = tmp_path / ".ssh"
    keys.mkdir(mode=0o700)
    for name in ("alice", "bob"):
        key = keys / ("id_ed25519" if name == "alice" else name)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (tmp_path / f"{name}.pub").write_bytes(key.with_suffix(".pub").read_bytes())
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "film.mkv").write_bytes(b"film" * 1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    root = tmp_path / "server_files"

    every = [words for words in commands_of(README.read_text()) if words[-1] != "--help"]
    for words in every:
        if words[:3] == ["twinportd", "user", "add"]:
            words[words.index("/srv/files")] = str(root)
            subprocess.run([BIN / words[0], *words[1:]], check=True, timeout=60)
    commands = [words for words in every if words[0] == "twinport"]
    assert {"login", "put", "get", "ls", "verify", "mv", "rm", "quota"} <= {verb_of(words) for words in commands}
    (library,) = blocks(README.read_text(), "python")
    with running_server(root) as address:
        shown = subprocess.run([BIN / "twinportd", "cert", "show", "--root", root], capture_output=True, check=True)
        fingerprint = shown.stdout.decode().split()[1]
        for words in commands:
            real = {"alice@files.example.org": f"alice@{address}", "3f9a…": fingerprint}
            subprocess.run([BIN / words[0], *(real.get(word, word) for word in words[1:])], check=True, timeout=60)
        assert (tmp_path / "film-again.mkv").read_bytes() == b"film" * 1000
        host, _, port = address.rpartition(":")
        example = library.replace("files.example.org", host).replace("5001", port)
        subprocess.run([sys.executable, "-c", example], check=True, timeout=60)
    assert (tmp_path / "downloads" / "film.mkv").read_bytes() == b"film" * 1000
    assert (root / "alice" / "backup" / "photos" / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_is_described(code: ErrorCode) -> None:
    lines = [line for line in read("docs/protocol.md").splitlines() if re.search(rf"\b{code.value}\b", line)]
    assert any(re.search(rf"\b{code.number}\b", line) for line in lines), f"{code.value} ({code.number})"


def test_every_setting_of_the_server_is_described() -> None:
    described = read("docs/server-behaviour.md")
    keys = [flag_of(item) for item in dataclasses.fields(Settings)]
    assert "control-port" in keys
    assert [key for key in keys if not re.search(rf"(?<![\w-]){key}(?![\w-])", described.replace("--", " "))] == []


def test_every_option_of_the_server_is_described() -> None:
    described = read("docs/server-behaviour.md")
    options = set(OPTION.findall(run_help("twinportd", "serve"))) - {"--help"}
    assert {"--root", "--host", "--control-port", "--data-port", "--config"} <= options
    # A table of settings may leave the dashes out.
    missing = [
        option
        for option in sorted(options)
        if not re.search(rf"(?<![\w-])(?:--)?{option.removeprefix('--')}(?![\w-])", described)
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{target} does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in {slug(heading) for heading in HEADING.findall(file.read_text())}, f"{target}: no heading"


def test_the_promised_documents_are_linked_from_the_readme() -> None:
    links = set(LINK.findall(README.read_text()))
    assert {"docs/protocol.md", "docs/architecture.md", "docs/server-behaviour.md"} <= links

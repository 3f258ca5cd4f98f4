"""Writes docs/cli.md: what every command prints for ``--help``. Run it after a change to a help text; a test compares.

.venv/bin/python scripts/cli_reference.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from twinport.cli import cli as client
from twinport_service.cli import cli as server

PROJECT = Path(__file__).resolve().parents[1]
PAGE = PROJECT / "docs" / "cli.md"
HEAD = """# Commands

What every command prints for `--help`, on a terminal of 80 columns. Written by `scripts/cli_reference.py`; a test
compares it with the commands.
"""


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """A command and all below it, as words."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from commands(found, *words, name)


def help_of(words: tuple[str, ...]) -> str:
    """What the installed command prints."""
    environment = {**os.environ, "COLUMNS": "80", "LC_ALL": "C.UTF-8"}
    program = [str(Path(sys.executable).parent / words[0]), *words[1:], "--help"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def page() -> str:
    """The whole document."""
    parts = [HEAD]
    for words in [*commands(client, "twinport"), *commands(server, "twinportd")]:
        name = " ".join(words)
        parts.append(f"## {name}\n\n```console\n$ {name} --help\n{help_of(words)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    click.echo(PAGE.relative_to(PROJECT))

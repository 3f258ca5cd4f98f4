"""Asking the person at the terminal, where there is one."""

from __future__ import annotations

import os
import sys

import click

from twinport.errors import LoginError


def is_interactive() -> bool:
    """Whether a question can be shown and answered."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()


def has_colours() -> bool:
    """Whether stdout is a terminal that may be given more than plain text."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and sys.stdout.isatty()


def confirm(question: str) -> bool:
    """Ask until the answer is yes or no; the end of the input is no."""
    click.echo(question, err=True, nl=False)
    while line := sys.stdin.readline():
        answer = line.strip().lower()
        if answer in ("yes", "no"):
            return answer == "yes"
        click.echo("Type yes or no: ", err=True, nl=False)
    return False


def ask_secret(prompt: str) -> str:
    """Ask without showing what is typed. ``LoginError`` for nothing."""
    import getpass

    try:
        answer = getpass.getpass(prompt, stream=sys.stderr)
    except EOFError:
        answer = ""
    if not answer:
        raise LoginError("nothing was typed; the login was given up")
    return answer


def note(text: str) -> None:
    """Tell something that is no error."""
    click.echo(f"twinport: {text}", err=True)

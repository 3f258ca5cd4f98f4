"""``doctor``: which layer between here and a finished transfer fails, and what to do about it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from twinport.errors import InterruptError
from twinport.walk import show

from .context import Settings, with_settings
from .terminal import has_colours

if TYPE_CHECKING:
    from twinport.doctor.findings import Finding

PATIENCE_SECONDS = 10.0
_NARROWEST, _WIDEST = 40, 100
_MARK_WIDTH, _LAYER_WIDTH = 8, 14
_WORDS = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "failed": ("FAILED", "red"),
    "untried": ("-", "bright_black"),
}


@click.command(short_help="Find out why a server cannot be reached or used.")
@click.argument("server", required=False, metavar="[[USER@]HOST[:PORT]]")
@click.option("--to", metavar="DIR", help="Directory on the server for a test file; your own folder if not given.")
@with_settings
def doctor(settings: Settings, server: str | None, to: str | None) -> int:
    """Find out why a server cannot be reached or used.

    It looks at one layer after the other: the name, the route, both ports, what answers there, the login, versions,
    data connections, a small file there and back, clocks and space. It says what each of them is like, what is wrong as
    a rule when one is like that, and what to do. The test file is removed again.

    Exit code 0 when all works (perhaps with warnings), else that of the first layer that fails, as of every command: 4
    login or certificate, 5 network, 6 space, 7 integrity. With -q it prints what is wrong, and else nothing.

    \b
    Examples:
      twinport doctor
      twinport doctor alice@files.example.org
      twinport doctor --json
    """
    from twinport.doctor.examine import Examination
    from twinport.doctor.findings import Status

    from .destination import find_destination

    if server is not None:
        settings = replace(settings, host=server)
    place = find_destination(settings)
    examination = Examination(place.address, lambda: settings.connect(patience_seconds=PATIENCE_SECONDS), to=to)
    found: list[Finding] = []
    if not settings.as_json and not settings.quiet:
        click.echo(f"twinport doctor: {place.address}\n")
    try:
        for finding in examination.findings():
            found.append(finding)
            if not settings.as_json and not settings.quiet:
                click.echo(_line(finding))
    except KeyboardInterrupt:
        raise InterruptError("the examination was interrupted") from None
    wrong = [finding for finding in found if finding.status in (Status.FAILED, Status.WARNING)]
    if settings.as_json:
        click.echo(json.dumps({"schema": 1, "address": str(place.address), "findings": [*map(_facts, found)]}))
    elif not settings.quiet:
        click.echo("\n" + "\n".join(_advice(wrong)))
    elif wrong:
        click.echo("\n".join(["\n".join(map(_line, wrong)), *_advice(wrong)]))
    return next((finding.exit_code for finding in wrong if finding.status is Status.FAILED), 0)


def _line(finding: Finding) -> str:
    word, colour = _WORDS[finding.status.value]
    mark = f"{word:{_MARK_WIDTH}}"
    text = _filled(show(finding.text), _width(), 2 + _MARK_WIDTH + _LAYER_WIDTH).lstrip()
    if has_colours():
        mark = click.style(mark, fg=colour, bold=word.isupper())
    return f"  {mark}{finding.layer.value:{_LAYER_WIDTH}}{text}"


def _width() -> int:
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns)) - 1


def _advice(wrong: list[Finding]) -> Iterable[str]:
    if not wrong:
        yield "Everything works."
        return
    width = _width()
    told: set[tuple[str, str]] = set()
    for finding in wrong:
        if (finding.meaning, finding.next_step) in told:
            continue
        told.add((finding.meaning, finding.next_step))
        title = f"{finding.layer.value} [{finding.code}]"
        yield click.style(title, bold=True) if has_colours() else title
        if finding.meaning:
            yield _filled(show(finding.meaning), width)
        yield _filled(f"Next: {show(finding.next_step)}", width)


def _filled(text: str, width: int, indent: int = 4) -> str:
    """Indented, with nothing broken that somebody may want to copy."""
    blanks = " " * indent
    wrapper = textwrap.TextWrapper(
        width, initial_indent=blanks, subsequent_indent=blanks, break_on_hyphens=False, break_long_words=False
    )
    return wrapper.fill(text)


def _facts(finding: Finding) -> dict[str, Any]:
    facts: dict[str, Any] = {"layer": finding.layer.value, "status": finding.status.value, "text": finding.text}
    if finding.code:
        facts |= {"code": finding.code, "meaning": finding.meaning, "next_step": finding.next_step}
    return facts

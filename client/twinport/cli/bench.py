"""``bench``: what the line and the server give, and what bounds it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

import click

from twinport.errors import UsageError

from .context import Settings, with_settings
from .terminal import has_colours

if TYPE_CHECKING:
    from twinport.client import Client
    from twinport.engine import Policy

    from .destination import Destination

PATIENCE_SECONDS = 20.0
REDRAW_SECONDS = 0.2
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_amount(text: str) -> int:
    """A size as people write it: ``500M``, ``1G``, ``4096``. ``UsageError``."""
    number, unit = text.strip().upper().removesuffix("IB").removesuffix("B"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    if not (number.isascii() and number.isdecimal() and len(number) <= 12):  # noqa: PLR2004  # a terabyte of digits
        raise UsageError(f"--size {text!r} is no size; write a whole number with K, M or G, as in 200M")
    return int(number) * _UNITS[unit]


@click.command(short_help="Measure the line and the server; say what bounds them.")
@click.argument("server", required=False, metavar="[[USER@]HOST[:PORT]]")
@click.option("--to", metavar="DIR", help="Directory on the server to use; your own folder if not given.")
@click.option(
    "--seconds",
    type=click.FloatRange(2, 600),
    default=12.0,
    metavar="N",
    help="How long it may take, about; 12 if not given.",
)
@click.option("--size", default="1G", metavar="SIZE", help="Bytes to send at most, and to fetch; 1G if not given.")
@with_settings
def bench(settings: Settings, server: str | None, to: str | None, seconds: float, size: str) -> int:
    """Measure the line and the server by real transfers, and say in plain words what bounds large files and small
    ones, and what to do about it.

    It sends files that no compression makes smaller, fetches them, and removes them again on both sides, also after
    Ctrl-C. docs/performance.md says how to read what it shows.

    \b
    Examples:
      twinport bench
      twinport bench alice@files.example.org --to alice/tmp --seconds 30
      twinport bench --json > line.json
    """
    from twinport.bench.measure import measure
    from twinport.bench.steps import Wish

    from .destination import find_destination

    if server is not None:
        settings = replace(settings, host=server)
    wish = Wish(seconds, parse_amount(size), to, settings.channels or Wish.channels)
    place = find_destination(settings)
    line = ProgressLine(settings.quiet)
    with _ended_like_ctrl_c():
        try:
            found = measure(_connector(place), wish, line.show, address=place.address)
        finally:
            line.clear()
    if settings.as_json:
        import json

        from twinport.bench.report import to_json

        click.echo(json.dumps(to_json(found)))
    else:
        from twinport.bench.report import screen

        click.echo(screen(found, _bold if has_colours() and not settings.quiet else str))
    if found.left_behind:
        names = shlex.join(found.left_behind)
        click.echo(f"twinport: left on the server, remove it with: twinport rm -r {names}", err=True)
    return 1 if found.left_behind else 0


def _connector(place: Destination) -> Callable[[int, Policy | None], Client]:
    """Opens clients that share a login that worked, so that nobody is asked twice."""
    from twinport.client import Client
    from twinport.credentials import make_login

    login = make_login(place.credentials)

    def connect(channels: int, policy: Policy | None) -> Client:
        return Client(
            place.address,
            security=place.security,
            login=login,
            channels=channels,
            patience_seconds=PATIENCE_SECONDS,
            policy=policy,
        )

    return connect


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """Whoever ends the command by a signal wants it tidied up as well."""
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bold(text: str) -> str:
    return click.style(text, bold=True)


class ProgressLine:
    """One line on stderr that says what is measured now, redrawn in place; nothing where that is no terminal."""

    def __init__(self, quiet: bool, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._draws = not quiet and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._clock = clock
        self._begun = clock()
        self._step = ""
        self._drawn_at = 0.0
        self._width = 0

    def show(self, step: str, done_bytes: int) -> None:
        """Redraw: at once for another step, else not more often than every 0.2 s."""
        from .display import format_bytes

        now = self._clock()
        if not self._draws or (step == self._step and now - self._drawn_at < REDRAW_SECONDS):
            return
        self._step, self._drawn_at = step, now
        moved = f", {format_bytes(done_bytes)}" if done_bytes else ""
        text = f"{now - self._begun:3.0f} s  {step}{moved}"[: max(1, shutil.get_terminal_size().columns - 1)]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

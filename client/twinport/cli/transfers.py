"""``put`` and ``get``."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import click

from twinport.errors import UsageError, shared_exit_code

from .context import Settings, with_settings
from .warm_up import DOWNLOAD, UPLOAD

if TYPE_CHECKING:
    from twinport.report import TransferReport

    from .display import TerminalObserver


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(readable=False))
@click.option("--to", metavar="DIR", help="Directory on the server; made if missing.")
@click.option("--as", "name", metavar="NAME", help="What to call the one PATH on the server; - is standard input.")
@click.option("-r", "--recursive", is_flag=True, help="Directories with all in them.")
@click.option("--follow", is_flag=True, help="Follow symbolic links that stay inside the tree.")
@click.option("--no-replace", is_flag=True, help="Refuse to replace a file that is there.")
@with_settings
def put(
    settings: Settings,
    paths: tuple[str, ...],
    to: str | None,
    name: str | None,
    recursive: bool,
    follow: bool,
    no_replace: bool,
) -> int:
    """Send files to the server, each under its own name. With --as the PATH - stands for standard input, which is kept
    in TMPDIR until it ends.

    When this exits with 0, every file is on the server's stable storage, verified end to end. What an interrupted run
    has sent is not sent again.

    \b
    Examples:
      twinport put film.mkv
      twinport put -r photos --to backup/2026
      pg_dump shop | twinport put - --as backup/shop.sql
    """
    from .display import TerminalObserver
    from .pipes import STANDARD, spooled_input

    if name is not None and (to is not None or len(paths) != 1):
        raise UsageError("--as is for one PATH and in place of --to")
    if STANDARD in paths and name is None:
        raise UsageError("standard input has no name; give it one with --as (a file of this name is ./-)")
    observer = TerminalObserver(settings.quiet, names_files=settings.verbose > 0)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(settings.connect(needed=UPLOAD))  # first: nobody waits for a dump in vain
        sources = [stack.enter_context(spooled_input())] if paths == (STANDARD,) else list(paths)
        try:
            report = client.put(
                sources,
                (to or "") if name is None else name,
                recursive=recursive,
                follow=follow,
                exact=name is not None,
                if_absent=no_replace,
                check=False,
                progress=observer,
            )
        finally:
            observer.clear()
    return _finish(settings, observer, report, "sent")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "-o", "--output", metavar="PATH", type=click.Path(readable=False), help="Where to, or what to call the one copy."
)
@click.option("-r", "--recursive", is_flag=True, help="Directories with all in them.")
@with_settings
def get(settings: Settings, names: tuple[str, ...], output: str | None, recursive: bool) -> int:
    """Fetch files from the server.

    Without -o into the current directory. With one NAME, -o names the copy (for a file: unless PATH is a directory or
    ends in a slash); with several, it is the directory that they go into. A file appears under its name only complete
    and verified. -o - writes one file to standard output, once all of it is there (in TMPDIR) and verified.

    \b
    Examples:
      twinport get film.mkv
      twinport get -r backup/2026/photos -o photos
      twinport get backup/shop.sql -o - | psql shop
    """
    from .display import TerminalObserver
    from .pipes import STANDARD, spooled_output

    if output == STANDARD and (recursive or len(names) != 1 or settings.as_json):
        raise UsageError("standard output takes one file, and no --json beside it (a file of this name is ./-)")
    observer = TerminalObserver(settings.quiet, names_files=settings.verbose > 0)
    exact = output is not None and len(names) == 1
    if exact and output is not None and output != STANDARD and not recursive:
        exact = not (os.path.isdir(output) or output.endswith(("/", os.sep)))
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(spooled_output()) if output == STANDARD else output or "."
        client = stack.enter_context(settings.connect(needed=DOWNLOAD))
        try:
            report = client.get(list(names), target, recursive=recursive, exact=exact, check=False, progress=observer)
        finally:
            observer.clear()
    return _finish(settings, observer, report, "fetched")


def _finish(settings: Settings, observer: TerminalObserver, report: TransferReport, verb: str) -> int:
    if settings.verbose > 1:
        from .timing_lines import timing_lines

        click.echo("\n".join(timing_lines(report.timings)), err=True)
    if settings.as_json:
        outcome = {
            "files": report.files_done,
            "files_kept": report.files_kept,
            "directories": report.directories_done,
            "bytes": report.bytes_moved,
            "bytes_kept": report.bytes_kept,
            "failures": [
                {"name": failure.name, "code": failure.error.code, "message": failure.error.message}
                for failure in report.failures
            ],
            "notes": report.notes,
            "timings": report.timings.as_dict(),
        }
        click.echo(json.dumps(outcome))
    elif (report.failures and not _is_told(report)) or not (report.failures or settings.quiet):
        click.echo(f"twinport: {observer.summary(report, verb)}", err=True)
    if not report.failures:
        return 0
    others = report.files_done + report.files_kept + report.directories_done
    return 1 if others else shared_exit_code([failure.error for failure in report.failures])


def _is_told(report: TransferReport) -> bool:
    """Whether one failure, told already, is all there is to say."""
    return len(report.failures) == 1 and not (report.files_done or report.files_kept or report.directories_done)

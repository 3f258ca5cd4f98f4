"""``put`` and ``get``."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from twinport.errors import shared_exit_code

from .context import Settings, with_settings
from .warm_up import DOWNLOAD, UPLOAD

if TYPE_CHECKING:
    from twinport.report import TransferReport

    from .display import TerminalObserver


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(readable=False))
@click.option("--to", default="", metavar="DIR", help="Directory on the server; made if missing.")
@click.option("-r", "--recursive", is_flag=True, help="Directories with all in them.")
@click.option("--follow", is_flag=True, help="Follow symbolic links that stay inside the tree.")
@click.option("--no-replace", is_flag=True, help="Refuse to replace a file that is there.")
@with_settings
def put(settings: Settings, paths: tuple[str, ...], to: str, recursive: bool, follow: bool, no_replace: bool) -> int:
    """Send files to the server, each under its own name.

    When this exits with 0, every file is on the server's stable storage, verified end to end. What an interrupted run
    has sent is not sent again.

    \b
    Examples:
      twinport put film.mkv
      twinport put -r photos --to backup/2026
    """
    from .display import TerminalObserver

    observer = TerminalObserver(settings.quiet, names_files=settings.verbose > 0)
    with settings.connect(needed=UPLOAD) as client:
        try:
            report = client.put(
                list(paths),
                to,
                recursive=recursive,
                follow=follow,
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
    and verified.

    \b
    Examples:
      twinport get film.mkv
      twinport get -r backup/2026/photos -o photos
    """
    from .display import TerminalObserver

    observer = TerminalObserver(settings.quiet, names_files=settings.verbose > 0)
    exact = output is not None and len(names) == 1
    if exact and output is not None and not recursive:
        exact = not (os.path.isdir(output) or output.endswith(("/", os.sep)))
    with settings.connect(needed=DOWNLOAD) as client:
        try:
            report = client.get(
                list(names), output or ".", recursive=recursive, exact=exact, check=False, progress=observer
            )
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

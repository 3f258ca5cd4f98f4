"""The command ``twinport``. Only :func:`main` prints errors and decides the exit code; the library raises.

    0 ok   1 some failed   2 usage   3 not found   4 login   5 network   6 quota or disk   7 integrity   8 denied   9
    busy 130 interrupted
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from twinport.errors import InterruptError, TwinportError

from .context import INTERRUPTED, Settings
from .names import ls, mkdir, mv, rm, stat, verify
from .transfers import get, put


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        # Looked up only when asked for: reading package metadata is half of the start-up time.
        from twinport.client import version

        click.echo(f"twinport {version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--host",
    metavar="HOST[:PORT]",
    envvar="TWINPORT_HOST",
    default="127.0.0.1:5001",
    show_default=True,
    help="The server; IPv6 numbers go in brackets. Also from TWINPORT_HOST.",
)
@click.option("--channels", type=click.IntRange(1, 64), default=4, show_default=True, help="Data connections at most.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes; errors only.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.pass_context
def cli(context: click.Context, host: str, channels: int, quiet: bool) -> None:
    """Move files to and from a twinportd: verified, resumable, many at once.

    Interrupted? Run the same command again: only what is missing travels.

    \b
    Example:
      twinport --host files.example.org put -r photos --to backup
    """
    context.obj = Settings(host, channels, quiet)


for _command in (put, get, ls, stat, rm, mv, mkdir, verify):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code. Errors go to stderr, in one line each, never as a traceback."""
    try:
        words = None if arguments is None else list(arguments)
        result = cli.main(args=words, prog_name="twinport", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Abort:
        click.echo(INTERRUPTED, err=True)
        return InterruptError.exit_code
    except KeyboardInterrupt:
        click.echo(INTERRUPTED, err=True)
        return InterruptError.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TwinportError as error:
        click.echo(f"twinport: {error.message}", err=True)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output had enough; a flush at exit must not complain about it.
        sys.stderr.close()
        return 1
    except OSError as error:
        click.echo(f"twinport: {error}", err=True)
        return 1

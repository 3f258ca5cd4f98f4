"""The command ``twinport``. Only :func:`main` prints errors and decides the exit code; the library raises.

0 ok, 1 some failed, 2 usage, 3 not found, 4 login or the server's certificate, 5 network, 6 quota or disk,
7 integrity, 8 denied, 9 busy, 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click
from twinport_protocol.version import VERSION

from twinport.errors import InterruptError, TwinportError

from .context import INTERRUPTED, Settings, settings_from, shared_options


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"twinport {VERSION}")
        context.exit()


_HOMES = {
    **dict.fromkeys(("put", "get"), "transfers"),
    **dict.fromkeys(("ls", "stat", "rm", "mv", "mkdir", "verify"), "names"),
    **dict.fromkeys(("login", "logout", "whoami", "quota"), "account"),
    **dict.fromkeys(("du", "tree"), "trees"),
    **{name: name for name in ("bench", "completion", "doctor", "menu")},
}
"""The module of each command."""


class _LazyGroup(click.Group):
    """Loads the module of the command that is asked for, and no other: that of all of them takes as long as a small
    file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, by name."""
        return sorted(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, None for what is none."""
        home = _HOMES.get(cmd_name)
        if home is None:
            return None
        command = getattr(importlib.import_module(f".{home}", __name__), cmd_name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@shared_options
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """Move files to and from a twinportd: verified, resumable, many at once.

    Interrupted? Run the same command again: only what is missing travels. The options below may stand before or after
    the command.

    \b
    Example:
      twinport --host files.example.org put -r photos --to backup
    """
    context.obj = settings_from(Settings(), given)


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
        return _show_usage(error)
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


def _show_usage(error: click.ClickException) -> int:
    """One line that says what is wrong and where to read on; the whole help where nothing at all was asked for."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None or type(error).__name__ == "NoArgsIsHelpError":  # since click 8.2
        error.show()
        return error.exit_code
    text = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        text += " (names that begin with a dash go after --)"
    click.echo(f"twinport: {text}; see {context.command_path} --help", err=True)
    return error.exit_code

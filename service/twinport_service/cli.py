"""The command ``twinportd``."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

try:
    import click
    import structlog  # noqa: F401 (its absence means that the server's packages are not installed)
except ModuleNotFoundError as missing:
    sys.exit(f"twinportd needs the package {missing.name!r}. Install it with: pip install 'twinport[service]'")

from .config import ConfigError, Settings, flag_of, load_settings
from .foundation import FoundationError, open_foundation
from .log import configure_logging
from .server import Server, raise_descriptor_limit, require_loopback

_F = TypeVar("_F", bound=Callable[..., Any])
EXIT_FAILED = 1
EXIT_USAGE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("twinport"), prog_name="twinportd")
def cli() -> None:
    """The Twinport server: verified, resumable file transfer on two ports.

    \b
    Example:
      twinportd serve --root server_files
    """


def _setting_options(function: _F) -> _F:
    """One flag per setting, from the one table of settings."""
    for item in reversed(dataclasses.fields(Settings)):
        flag = flag_of(item)
        declaration = f"--{flag}/--no-{flag}" if isinstance(item.default, bool) else f"--{flag}"
        default = ("on" if item.default else "off") if isinstance(item.default, bool) else item.default
        function = click.option(
            declaration,
            item.name,
            default=None,
            metavar=None if isinstance(item.default, bool) else _metavar(item),
            help=f"{item.metadata['help']} Default: {default}.",
        )(function)
    return function


def _metavar(item: dataclasses.Field[Any]) -> str:
    choices = item.metadata.get("choices")
    if choices:
        return "|".join(choices)
    return {Path: "DIR", int: "N", float: "SECONDS"}.get(type(item.default), "TEXT")


@cli.command()
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Read settings from a TOML file.")
@_setting_options
def serve(config: Path | None, **flags: Any) -> None:
    """Serve the files of a directory until SIGTERM or Ctrl-C.

    Every option may also stand in the --config file (control-port = 5001) or in the environment
    (TWINPORT_SERVE_CONTROL_PORT=5001); a flag wins over the environment, the environment over the file.
    When it is ready it prints one line: "twinportd ready: control HOST:PORT data HOST:PORT".

    \b
    Examples:
      twinportd serve --root server_files
      twinportd serve --control-port 0 --data-port 0 --log-format json
    """
    try:
        settings = load_settings(flags, os.environ, config)
        require_loopback(settings.host)  # before anything is made in the root
        configure_logging(settings.log_format, settings.log_level)
        raise_descriptor_limit()
        asyncio.run(_serve(settings))
    except ConfigError as error:
        click.echo(f"twinportd: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except FoundationError as error:
        click.echo(f"twinportd: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        ports = f"{settings.control_port} and {settings.data_port} on {settings.host}"
        click.echo(
            f"twinportd: cannot listen on ports {ports}: {error.strerror}. "
            "Stop the program that has them, or choose others with --control-port and --data-port.",
            err=True,
        )
        sys.exit(EXIT_FAILED)


async def _serve(settings: Settings) -> None:
    server = Server(settings, open_foundation(settings))
    await server.start()
    server.catch_signals()
    control, data = (_join(*address) for address in (server.control_address, server.data_address))
    click.echo(f"twinportd ready: control {control} data {data}")
    await server.run_until_stopped()


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> None:
    """The entry point of the command."""
    cli(auto_envvar_prefix=None)



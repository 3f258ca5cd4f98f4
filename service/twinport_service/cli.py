"""The command ``twinportd``."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

try:
    import click
    import structlog  # noqa: F401 (its absence means that the server's packages are not installed)
except ModuleNotFoundError as missing:
    sys.exit(f"twinportd needs the package {missing.name!r}. Install it with: pip install 'twinport[service]'")

from twinport_protocol.version import VERSION

from .cli_audit import audit
from .cli_cert import cert
from .cli_user import user
from .config import ConfigError, Settings, flag_of, kind_of, load_settings
from .embedded import OWN_DIRECTORY, FoundationError, open_foundation
from .exposure import decide_exposure, is_loopback
from .log import configure_logging
from .server import Server, raise_descriptor_limit

_F = TypeVar("_F", bound=Callable[..., Any])
EXIT_FAILED = 1
EXIT_USAGE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="twinportd")
def cli() -> None:
    """The Twinport server: verified, resumable file transfer on two ports.

    \b
    Example:
      twinportd serve --root server_files
    """


cli.add_command(audit)
cli.add_command(cert)
cli.add_command(user)


def _setting_options(function: _F) -> _F:
    """One flag per setting, from the one table of settings."""
    for item in reversed(dataclasses.fields(Settings)):
        flag = flag_of(item)
        switch = kind_of(item) is bool
        function = click.option(
            f"--{flag}/--no-{flag}" if switch else f"--{flag}",
            item.name,
            default=None,
            multiple=bool(item.metadata.get("many")),
            metavar=None if switch else _metavar(item),
            help=f"{item.metadata['help']} Default: {_default(item)}.",
        )(function)
    return function


def _metavar(item: dataclasses.Field[Any]) -> str:
    choices = item.metadata.get("choices")
    if choices:
        return "|".join(choices)
    if item.default is None:
        return "FILE"
    return {Path: "DIR", int: "N", float: "SECONDS"}.get(type(item.default), "TEXT")


def _default(item: dataclasses.Field[Any]) -> object:
    if isinstance(item.default, bool):
        return "on" if item.default else "off"
    if item.default is None:
        return "auto" if kind_of(item) is bool else "none"
    return item.default if item.default != "" else "none"


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
        # Before anything is made in the root. Whether there are accounts in a used one, the server looks up itself.
        used = (settings.root / OWN_DIRECTORY).exists()
        decide_exposure(settings, has_accounts=not is_loopback(settings.host) and used)
        configure_logging(settings.log_format, settings.log_level)
        raise_descriptor_limit()
        _forbid_core_dumps()
        asyncio.run(_serve(settings))
    except ConfigError as error:
        click.echo(f"twinportd: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except FoundationError as error:
        click.echo(f"twinportd: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        ports = f"{settings.control_port} and {settings.data_port} on {settings.host}"
        reason = error.strerror or type(error).__name__
        click.echo(f"twinportd: cannot listen on ports {ports}: {reason}. {_listen_advice(error)}", err=True)
        sys.exit(EXIT_FAILED)


def _forbid_core_dumps() -> None:
    # In the memory of a server are its keys, and the passwords of logins that are under way.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _listen_advice(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "Give --host an address of this machine; this name leads to none."
    if error.errno == errno.EADDRNOTAVAIL:
        return "Give --host an address of this machine (`ip address` lists them), or 0.0.0.0 for all."
    if error.errno in (errno.EACCES, errno.EPERM):
        return "Choose ports from 1024 up with --control-port and --data-port."
    if error.errno == errno.EADDRINUSE:
        return "Stop the program that has them, or choose others with --control-port and --data-port."
    return "Check --host, --control-port and --data-port."


async def _serve(settings: Settings) -> None:
    foundation = open_foundation(settings)
    try:
        server = Server(settings, foundation)
    except ConfigError:
        foundation.close()
        raise
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

"""``ls``, ``stat``, ``rm``, ``mv``, ``mkdir`` and ``verify``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from twinport.errors import ConflictError, PartialFailureError, TwinportError, shared_exit_code

from .context import Settings, with_settings

if TYPE_CHECKING:
    from twinport.client import Client
    from twinport.entries import RemoteEntry


def _facts(entry: RemoteEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "kind": "directory" if entry.is_directory else "file",
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "executable": entry.executable,
        "root": None if entry.root is None else entry.root.hex(),
    }


@click.command(short_help="List what is on the server.")
@click.argument("prefix", default="", metavar="[PREFIX]")
@click.option("-r", "--recursive", is_flag=True, help="All files below, and the empty directories.")
@click.option("-l", "--long", "is_long", is_flag=True, help="Size and time too.")
@click.option(
    "--sort", "order", type=click.Choice(["name", "size", "time"]), default="name", help="Largest or newest first."
)
@click.option("--reverse", is_flag=True, help="The other way round.")
@with_settings
def ls(settings: Settings, prefix: str, recursive: bool, is_long: bool, order: str, reverse: bool) -> None:
    """List what is on the server, in the order of the bytes of the names. Directories end in a slash.

    \b
    Examples:
      twinport ls
      twinport ls -l --sort time
      twinport ls -r backup --json
    """
    from twinport.walk import show

    from .display import format_bytes, format_time

    with settings.connect() as client:
        for entry in _ordered(client.list(prefix, recursive=recursive), order, reverse):
            if settings.as_json:
                click.echo(json.dumps(_facts(entry), ensure_ascii=False))
            elif is_long:
                size = "-" if entry.is_directory else format_bytes(entry.size)
                click.echo(f"{size:>11}  {format_time(entry.mtime_ns):19}  {show(entry.key)}")
            else:
                click.echo(show(entry.key))


def _ordered(entries: Iterable[RemoteEntry], order: str, reverse: bool) -> Iterable[RemoteEntry]:
    """As they come, unless they must be known all before the first can be shown."""
    if order == "size":
        return sorted(entries, key=lambda entry: -entry.size, reverse=reverse)
    if order == "time":
        return sorted(entries, key=lambda entry: -entry.mtime_ns, reverse=reverse)
    return reversed(list(entries)) if reverse else entries


@click.command(short_help="Say what a name is on the server.")
@click.argument("name")
@with_settings
def stat(settings: Settings, name: str) -> None:
    """Say what NAME is on the server.

    \b
    Example:
      twinport stat film.mkv --json
    """
    from twinport.walk import show

    from .display import format_time

    with settings.connect() as client:
        entry = client.stat(name)
    if settings.as_json:
        click.echo(json.dumps(_facts(entry), ensure_ascii=False))
        return
    click.echo(f"name  {show(entry.key)}")
    if not entry.is_directory:
        click.echo(f"size  {entry.size}")
    click.echo(f"time  {format_time(entry.mtime_ns)}")
    if entry.executable:
        click.echo("executable")
    if entry.root is not None:
        click.echo(f"root  {entry.root.hex()}")


@click.command(short_help="Remove files and directories from the server.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-r", "--recursive", is_flag=True, help="Directories with all in them.")
@with_settings
def rm(settings: Settings, names: tuple[str, ...], recursive: bool) -> int:
    """Remove files and empty directories from the server; with -r directories and all in them.

    \b
    Example:
      twinport rm -r backup/2019
    """
    errors: list[TwinportError] = []
    outcomes: list[dict[str, Any]] = []
    with settings.connect() as client:
        for name in names:
            try:
                outcomes.append({"name": name, "removed": client.delete(name, recursive=recursive)})
            except TwinportError as error:
                if error.code == "NotEmpty" and not recursive:
                    error.message = error.message.replace(":", " without -r:", 1)
                click.echo(f"twinport: {error.message}", err=True)
                errors.append(error)
                outcomes.append({"name": name, "removed": 0, "code": error.code, "message": error.message})
    if settings.as_json:
        for outcome in outcomes:
            click.echo(json.dumps(outcome))
    return shared_exit_code(errors) if len(errors) == len(names) else min(len(errors), PartialFailureError.exit_code)


@click.command(short_help="Rename a file or directory on the server.")
@click.argument("source")
@click.argument("target")
@click.option("--no-replace", is_flag=True, help="Refuse to replace a file that is there.")
@with_settings
def mv(settings: Settings, source: str, target: str, no_replace: bool) -> None:
    """Rename a file or directory on the server. TARGET is the whole new name.

    \b
    Example:
      twinport mv draft.txt letters/final.txt
    """
    with settings.connect() as client:
        try:
            client.move(source, target, if_absent=no_replace)
        except ConflictError as error:
            if error.code == "NameConflict" and _is_directory(client, target):
                base = source.rstrip("/").rpartition("/")[2]
                text = f"{target} is a directory; give the whole new name, as in {target}/{base}"
                raise ConflictError(f"cannot move {source}: {text}", error.code) from None
            raise
    if settings.as_json:
        click.echo(json.dumps({"from": source, "to": target}))


def _is_directory(client: Client, name: str) -> bool:
    try:
        return client.stat(name).is_directory
    except TwinportError:
        return False


@click.command(short_help="Make a directory on the server.")
@click.argument("name")
@with_settings
def mkdir(settings: Settings, name: str) -> None:
    """Make a directory on the server, with its parents.

    \b
    Example:
      twinport mkdir backup/2026
    """
    with settings.connect() as client:
        client.mkdir(name)
    if settings.as_json:
        click.echo(json.dumps({"name": name}))


@click.command(short_help="Compare a file on the server with a local one.")
@click.argument("name")
@click.argument("path", type=click.Path(readable=False))
@with_settings
def verify(settings: Settings, name: str, path: str) -> None:
    """Compare the file NAME on the server with the local file PATH, by their digests: no bytes travel. Exit code 7 if
    they differ.

    \b
    Example:
      twinport verify film.mkv film.mkv
    """
    with settings.connect() as client:
        root = client.verify(name, path)
    if settings.as_json:
        click.echo(json.dumps({"name": name, "path": path, "root": root.hex()}))
    elif not settings.quiet:
        click.echo(f"same  {root.hex()}")

"""The command ``twinportd user``: accounts, what they may do, and how much."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .access import ANONYMOUS, Act
from .accounts.command_line import (
    EXIT_USAGE,
    fail,
    open_accounts,
    read_grants,
    read_keys,
    read_name,
    read_password,
    read_word,
    require_account,
    root_option,
    warn_of_unused_root,
)
from .accounts.descriptions import describe_fully, describe_grant, summarize, to_json
from .accounts.grants import ADMIN_GRANT, Grant, GrantError, parse_acts, parse_home, parse_pattern
from .accounts.records import Account
from .accounts.words import format_bytes, parse_bytes, parse_count, parse_rate
from .cli_credentials import keys, token
from .quota import Quota

_name = click.argument("name", callback=read_name)
_F = TypeVar("_F", bound=Callable[..., Any])


def _size(flag: str, text: str, parse: Callable[[str], int | None] = parse_bytes) -> Callable[[_F], _F]:
    return click.option(flag, metavar="SIZE", callback=read_word(parse), help=text)


@click.group()
def user() -> None:
    """Who may log in, what each may do, and how much.

    Everything takes effect at once, also on a server that runs. A server with accounts lets only those in; what
    is granted to the account "anonymous" is open to everybody.

    \b
    Examples:
      twinportd user add alice
      twinportd user add bob --key bob.pub --max-bytes 10G
      twinportd user grant bob 'alice/public/**' list,read
      twinportd user list
    """


user.add_command(keys)
user.add_command(token)


@user.command()
@_name
@click.option("--key", "key_files", multiple=True, metavar="FILE.pub|-", help="An SSH public key; - reads it on stdin.")
@click.option("--password-stdin", is_flag=True, help="Take the password from one line of stdin.")
@click.option("--no-password", is_flag=True, help="Ask for no password: with a token alone, or to set one later.")
@click.option(
    "--home", metavar="PATH", callback=read_word(parse_home), help="Where the user may do everything. Default: NAME."
)
@click.option("--no-home", is_flag=True, help="Without such a place.")
@click.option("--admin", is_flag=True, help="May do everything everywhere.")
@click.option(
    "--grant", "grants", multiple=True, metavar="PATTERN=ACTS", callback=read_grants, help="See `user grant`."
)
@_size("--max-bytes", "The most bytes stored, as in 10G. Default: no bound.")
@click.option("--max-files", metavar="N", callback=read_word(parse_count), help="The most files stored.")
@_size("--max-rate", "The most bytes a second, as in 20M.", parse_rate)
@root_option
def add(
    name: str,
    key_files: tuple[str, ...],
    password_stdin: bool,
    no_password: bool,
    home: str | None,
    no_home: bool,
    admin: bool,
    grants: list[Grant],
    root: Path,
    **bounds: int | None,
) -> None:
    """Add an account. Asks for a password unless a key is given.

    \b
    Examples:
      twinportd user add alice
      twinportd user add bob --key ~/bob.pub --max-bytes 10G
      twinportd user add ci --no-password --home builds
      twinportd user add anonymous --no-home --grant 'public/**=list,read'
    """
    if home and no_home:
        fail("--home and --no-home contradict each other.", EXIT_USAGE)
    if password_stdin and ("-" in key_files or no_password):
        fail("--password-stdin goes neither with --key - nor with --no-password.", EXIT_USAGE)
    try:
        home = None if no_home else home or parse_home(name)
    except GrantError as error:
        fail(f"{error} Choose one with --home, or --no-home.", EXIT_USAGE)
    found = [key for file in key_files for key in read_keys(file)]
    with open_accounts(root, make=True) as database:
        if name in database.load().accounts:
            fail(f"there is an account {name!r} already. Change it with `twinportd user passwd`, `grant`, `quota` …")
        asks = not (found or no_password or name == ANONYMOUS)
        account = Account(
            name,
            time.time(),
            read_password(name, from_stdin=password_stdin) if password_stdin or asks else None,
            home=home,
            quota=Quota(bounds["max_bytes"], bounds["max_files"]),
            rate=bounds["max_rate"],
            keys=tuple({key.blob: key for key in found}.values()),
            grants=(*([ADMIN_GRANT] if admin else []), *grants),
        )
        database.add(account)
        click.echo(f"added {name}: {summarize(account)}")
    warn_of_unused_root(root)


@user.command()
@_name
@click.option("--password-stdin", is_flag=True, help="Take the password from one line of stdin.")
@click.option("--remove", is_flag=True, help="Let no password log in any more.")
@root_option
def passwd(name: str, password_stdin: bool, remove: bool, root: Path) -> None:
    """Set a new password; the old one is worth nothing from then on."""
    with open_accounts(root) as database:
        require_account(database, name)
        database.set_password(name, None if remove else read_password(name, from_stdin=password_stdin))
        click.echo(f"{name}: {'no password' if remove else 'new password'}")


@user.command()
@_name
@root_option
def disable(name: str, root: Path) -> None:
    """Let an account do nothing any more, sessions that run included. Its files and settings stay."""
    _set_disabled(name, root, is_disabled=True)


@user.command()
@_name
@root_option
def enable(name: str, root: Path) -> None:
    """Undo `user disable`."""
    _set_disabled(name, root, is_disabled=False)


def _set_disabled(name: str, root: Path, *, is_disabled: bool) -> None:
    with open_accounts(root) as database:
        database.set_disabled(name, is_disabled)
        click.echo(f"{name}: {'disabled' if is_disabled else 'enabled'}")


@user.command()
@_name
@click.option("--yes", is_flag=True, help="Do not ask.")
@root_option
def remove(name: str, yes: bool, root: Path) -> None:
    """Remove an account with its keys, tokens and grants. Its files stay, and belong to whoever gets that name next."""
    with open_accounts(root) as database:
        require_account(database, name)
        if not yes:
            if not sys.stdin.isatty():
                fail("say --yes to remove an account without being asked.", EXIT_USAGE)
            click.confirm(f"Remove the account {name}? Its files stay", abort=True, err=True)
        database.remove(name)
        click.echo(f"removed {name}; its files stay")


@user.command()
@_name
@click.argument("pattern", callback=read_word(parse_pattern))
@click.argument("acts", callback=read_word(lambda word: parse_acts(word.split(","))))
@root_option
def grant(name: str, pattern: str, acts: frozenset[Act], root: Path) -> None:
    """Allow ACTS (some of list,read,write,delete) on what PATTERN covers.

    A pattern is a path. It covers itself and, when it ends in /**, everything below; * stands for anything within one
    component; ** alone is everything. A new grant replaces an older one of the same pattern.

    \b
    Examples:
      twinportd user grant bob 'alice/public/**' list,read
      twinportd user grant bob 'inbox/**' write
    """
    with open_accounts(root) as database:
        given = Grant(pattern, acts)
        database.put_grant(name, given)
        click.echo(f"{name}: {describe_grant(given)}")


@user.command()
@_name
@click.argument("pattern", callback=read_word(parse_pattern))
@root_option
def revoke(name: str, pattern: str, root: Path) -> None:
    """Take a grant away, by its pattern. The home of an account stays its own."""
    with open_accounts(root) as database:
        database.remove_grant(name, pattern)
        click.echo(f"{name}: nothing more on {pattern} by that grant")


@user.command()
@_name
@click.option("--max-bytes", "max_bytes", metavar="SIZE", help="The most bytes stored, as in 10G, or none.")
@click.option("--max-files", "max_files", metavar="N", help="The most files stored, or none.")
@click.option("--max-rate", "max_rate", metavar="SIZE", help="The most bytes a second, as in 20M, or none.")
@root_option
def quota(name: str, max_bytes: str | None, max_files: str | None, max_rate: str | None, root: Path) -> None:
    """Show or change the bounds of an account.

    A new bound holds for the next upload, a new rate for the next connection; what is stored already stays. What is in
    use, `twinport quota` shows.

    \b
    Example:
      twinportd user quota bob --max-bytes 20G --max-files none
    """
    with open_accounts(root) as database:
        account = require_account(database, name)
        bounds, rate = account.quota, account.rate
        try:
            if max_bytes is not None:
                bounds = Quota(parse_bytes(max_bytes), bounds.max_files)
            if max_files is not None:
                bounds = Quota(bounds.max_bytes, parse_count(max_files))
            if max_rate is not None:
                rate = parse_rate(max_rate)
        except ValueError as error:
            fail(str(error), EXIT_USAGE)
        if (bounds, rate) != (account.quota, account.rate):
            database.set_bounds(name, bounds, rate)
        files = "-" if bounds.max_files is None else str(bounds.max_files)
        most = f"bytes {format_bytes(bounds.max_bytes)}, files {files}, bytes a second {format_bytes(rate)}"
        click.echo(f"{name}: {most}")


@user.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@root_option
def list_accounts(as_json: bool, root: Path) -> None:
    """List the accounts."""
    with open_accounts(root) as database:
        accounts = list(database.load().accounts.values())
    if as_json:
        click.echo(json.dumps([to_json(account) for account in accounts], indent=2))
        return
    for account in accounts:
        click.echo(f"{account.name:<20} {summarize(account)}{'  DISABLED' if account.is_disabled else ''}")


@user.command()
@_name
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@root_option
def show(name: str, as_json: bool, root: Path) -> None:
    """Show an account with its keys, tokens and grants; never a secret."""
    with open_accounts(root) as database:
        account = require_account(database, name)
    if as_json:
        click.echo(json.dumps(to_json(account), indent=2))
        return
    click.echo(f"{name}{' (disabled)' if account.is_disabled else ''}")
    for line in describe_fully(account, time.time()):
        click.echo(f"  {line}")

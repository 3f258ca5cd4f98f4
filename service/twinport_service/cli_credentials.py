"""The commands ``twinportd user keys`` and ``twinportd user token``: what logs in besides a password."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import click
from twinport_protocol.auth import key_fingerprint

from .accounts.command_line import fail, open_accounts, read_keys, read_name, require_account, root_option
from .accounts.descriptions import describe_key, key_lines, token_lines
from .accounts.records import Account
from .accounts.tokens import make_token
from .accounts.words import WordError, format_moment, parse_expiry

_name = click.argument("name", callback=read_name)


def _read_expiry(ctx: click.Context, param: click.Parameter, word: str | None) -> float | None:
    try:
        return None if word is None else parse_expiry(word, time.time())
    except WordError as error:
        raise click.BadParameter(str(error), ctx, param) from None


_expires = click.option(
    "--expires", metavar="TIME", callback=_read_expiry, help="90d, 12h, 2027-12-31 or never. Default: never."
)


@click.group()
def keys() -> None:
    """SSH public keys that log in: ed25519, ECDSA, RSA of 3072 bits and more.

    \b
    Examples:
      twinportd user keys add bob ~/.ssh/id_ed25519.pub
      ssh-add -L | twinportd user keys add bob -
      twinportd user keys remove bob SHA256:…
    """


@keys.command("add")
@_name
@click.argument("file", metavar="FILE.pub|-")
@_expires
@root_option
def add_keys(name: str, file: str, expires: float | None, root: Path) -> None:
    """Add the keys of a .pub file, or of authorized_keys lines (of their options, expiry-time alone)."""
    found = read_keys(file)
    with open_accounts(root) as database:
        for key in found:
            database.add_key(name, key if expires is None else replace(key, expires=expires))
            click.echo(f"{name}: added {describe_key(key)}")


@keys.command("list")
@_name
@root_option
def list_keys(name: str, root: Path) -> None:
    """List the keys of an account by their fingerprints, as ssh-keygen -l prints them."""
    _print_of(name, root, key_lines)


@keys.command("remove")
@_name
@click.argument("fingerprint")
@root_option
def remove_key(name: str, fingerprint: str, root: Path) -> None:
    """Remove a key, by its fingerprint or by its comment."""
    with open_accounts(root) as database:
        account = require_account(database, name)
        found = [key for key in account.keys if fingerprint in (key_fingerprint(key.blob), key.comment)]
        if len(found) != 1:
            how_many = "more than one key" if found else "no key"
            fail(f"{name} has {how_many} {fingerprint!r}. `twinportd user keys list {name}` shows all.")
        database.remove_key(name, found[0].blob)
        click.echo(f"{name}: removed {describe_key(found[0])}")


@click.group()
def token() -> None:
    """Long-lived tokens for machines, each of which can be revoked.

    \b
    Examples:
      twinportd user token add ci --label backup --expires 365d > token
      twinportd user token revoke ci 0123456789abcdef
    """


@token.command("add")
@_name
@click.option("--label", default="", metavar="TEXT", help="What it is for.")
@_expires
@root_option
def add_token(name: str, label: str, expires: float | None, root: Path) -> None:
    """Make a token and print it, once: the server keeps only what is needed to recognise it."""
    if not label.isprintable():
        fail("a label is plain text on one line.")
    text, made = make_token(name, label, time.time(), expires)
    with open_accounts(root) as database:
        database.add_token(made)
    click.echo(text)
    click.echo(f"{name}: token {made.id}, expires {format_moment(expires)}. It is not shown again.", err=True)


@token.command("list")
@_name
@root_option
def list_tokens(name: str, root: Path) -> None:
    """List the tokens of an account, without their secrets."""
    _print_of(name, root, token_lines)


@token.command("revoke")
@_name
@click.argument("token_id", metavar="ID")
@root_option
def revoke_token(name: str, token_id: str, root: Path) -> None:
    """Revoke a token for good."""
    with open_accounts(root) as database:
        database.revoke_token(name, token_id)
        click.echo(f"{name}: revoked {token_id}")


def _print_of(name: str, root: Path, lines_of: Callable[[Account, float], Iterable[str]]) -> None:
    with open_accounts(root) as database:
        account = require_account(database, name)
    for line in lines_of(account, time.time()):
        click.echo(line)

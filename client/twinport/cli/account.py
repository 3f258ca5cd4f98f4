"""``login``, ``logout``, ``whoami`` and ``quota``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from twinport.errors import UsageError

from .context import Settings, with_settings

if TYPE_CHECKING:
    from twinport.login import Login
    from twinport.profiles import Profile
    from twinport.session import Identity

    from .destination import Destination


@click.command(short_help="Log in to a server and remember it.")
@click.argument("server", required=False, metavar="[[USER@]HOST[:PORT]]")
@click.option("--token-stdin", is_flag=True, help="Read a token from stdin and keep it.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@with_settings
def login(settings: Settings, server: str | None, token_stdin: bool, password_stdin: bool) -> None:
    """Log in to a server and remember it, with its certificate, as a profile, which becomes the default.

    Without more words the SSH agent's keys and the usual key files are tried, then a password is asked for. A password
    is kept in the system's keyring where there is one (the package `keyring`), else not at all.

    \b
    Examples:
      twinport login alice@files.example.org
      twinport login files.example.org --token-stdin < token.txt
    """
    from twinport.client import Client
    from twinport.credentials import make_login, parse_secret

    from .destination import find_destination

    if token_stdin and password_stdin:
        raise UsageError("stdin cannot be both token and password")
    if server is not None:
        settings = replace(settings, host=server)
    secret = None
    if token_stdin or password_stdin:
        if sys.stdin.isatty():
            raise UsageError("stdin is a terminal; pipe the secret in, or leave the option out")
        secret = parse_secret(sys.stdin.buffer.read(64 * 1024), "stdin")
    place = find_destination(
        settings,
        token=secret if token_stdin else None,
        password=secret if password_stdin else None,
        is_login=True,
    )
    proofs = make_login(place.credentials)
    with Client(place.address, security=place.security, login=proofs, channels=settings.channels) as client:
        identity = client.identity
    profile = _store(settings, place, proofs, identity)
    facts = {"profile": profile.name, **_facts(profile, identity)}
    if settings.as_json:
        click.echo(json.dumps(facts))
    elif not settings.quiet:
        who = f"logged in to {place.address} as {identity.user}" if identity.user else f"{place.address} wants no login"
        click.echo(f"twinport: {who}; stored as the profile {profile.name}, the default from now on", err=True)


def _store(settings: Settings, place: Destination, proofs: Login, identity: Identity) -> Profile:
    from twinport.known_servers import KnownServers
    from twinport.login import KeyProof, PasswordProof, TokenProof
    from twinport.profiles import Profile, Profiles
    from twinport.secrets_store import keep_password, keep_token
    from twinport.ssh_keys import FileKey

    profiles = Profiles()
    known = KnownServers()
    fingerprint = identity.certificate
    if fingerprint is not None and place.security.fingerprint is not None:
        # The user named it: this replaces what was known, which is what the refusal of a changed one tells them to do.
        known.replace(place.address, fingerprint)
    elif fingerprint is not None and known.find(place.address) is None and place.security.profile_fingerprint is None:
        fingerprint = None  # an authority vouches for it: its next certificate will be another one
    ca_file = place.security.ca_file
    if ca_file is not None:
        fingerprint, ca_file = None, os.path.abspath(os.path.expanduser(ca_file))
    profile = Profile(
        name=settings.profile or profiles.name_for(place.address, identity.user),
        address=place.address,
        user=identity.user,
        fingerprint=fingerprint,
        tls=identity.certificate is not None,
        ca_file=ca_file,
    )
    proof = proofs.accepted
    if isinstance(proof, TokenProof):
        profile = replace(profile, login="token", token_in=keep_token(profile.name, proof.token))
    elif isinstance(proof, KeyProof):
        is_file = isinstance(proof.signer, FileKey)
        path = place.credentials.key or (proof.signer.label if is_file else None)
        profile = replace(profile, login="key", key=path and os.path.abspath(os.path.expanduser(path)))
    elif isinstance(proof, PasswordProof):
        profile = replace(profile, login="password")
        keep_password(profile.account, proof.password)
    profiles.save(profile)
    return profile


@click.command(short_help="Forget a stored login.")
@with_settings
def logout(settings: Settings) -> None:
    """Forget a profile (--profile, else that of --host, else the default one) and the secrets kept for it.

    A token stays valid until the server's administrator revokes it. The server's certificate stays known.

    \b
    Example:
      twinport logout --profile files.example.org
    """
    from twinport.profiles import Profiles
    from twinport.secrets_store import forget

    from .destination import find_destination

    profile = find_destination(settings).profile
    if profile is None:
        raise UsageError("there is no such profile; name one with --profile")
    Profiles().remove(profile.name)
    forget(profile.name, profile.account)
    if settings.as_json:
        click.echo(json.dumps({"profile": profile.name}))
    elif not settings.quiet:
        click.echo(f"twinport: the profile {profile.name} is gone", err=True)


@click.command(short_help="Say who you are on the server, and which server it is.")
@with_settings
def whoami(settings: Settings) -> None:
    """Say who you are on the server, and which server it is.

    \b
    Example:
      twinport whoami --json
    """
    from twinport.walk import show

    from .destination import find_destination

    place = find_destination(settings)
    with settings.connect() as client:
        identity = client.identity
    if settings.as_json:
        click.echo(json.dumps(_facts(place, identity)))
        return
    click.echo(f"user         {identity.user or 'anonymous'}")
    if identity.home:
        click.echo(f"home         {show(identity.home)}/")
    click.echo(f"server       {place.address}")
    click.echo(f"connection   {identity.tls_version or 'plaintext'}")
    if identity.certificate is not None:
        click.echo(f"fingerprint  {identity.certificate.hex()}")


def _facts(place: Destination | Profile, identity: Identity) -> dict[str, Any]:
    return {
        "user": identity.user,
        "home": identity.home or None,
        "host": place.address.host,
        "port": place.address.port,
        "tls": identity.tls_version,
        "fingerprint": None if identity.certificate is None else identity.certificate.hex(),
    }


@click.command(short_help="Show what you have stored and how much it may be.")
@with_settings
def quota(settings: Settings) -> None:
    """Show what you have stored and how much it may be.

    \b
    Example:
      twinport quota --json
    """
    from .display import format_bytes

    with settings.connect() as client:
        found = client.quota()
    if settings.as_json:
        facts = {
            "user": found.user,
            "bytes": found.stored_bytes,
            "files": found.files,
            "reserved_bytes": found.reserved_bytes,
            "open_uploads": found.open_uploads,
            "max_bytes": found.max_bytes,
            "max_files": found.max_files,
        }
        click.echo(json.dumps(facts))
        return
    bound = "no bound" if found.max_bytes is None else f"of {format_bytes(found.max_bytes)}"
    count = "no bound" if found.max_files is None else f"of {found.max_files}"
    click.echo(f"user        {found.user or 'anonymous'}")
    click.echo(f"stored      {format_bytes(found.stored_bytes)} ({bound})")
    click.echo(f"files       {found.files} ({count})")
    click.echo(f"unfinished  {format_bytes(found.reserved_bytes)} in {found.open_uploads} uploads")
    if found.free_bytes is not None:
        click.echo(f"free        {format_bytes(found.free_bytes)}")

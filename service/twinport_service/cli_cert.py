"""``twinportd cert``: show the certificate in force, and put a new one in its place in two steps."""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from .certificates import (
    Certificate,
    CertificateError,
    CertificateFiles,
    check_mode,
    make_next,
    own_files,
    read_certificate,
    split_names,
    switch_over,
    warn_of_expiry,
)
from .config import ConfigError, Settings, load_settings
from .embedded import OWN_DIRECTORY, certificate_files

_EXIT_FAILED = 1
_EXIT_USAGE = 2
_NOT_THE_OWNER = 0o077
_RELOAD = "A server that runs takes notice when it is told to: systemctl reload twinportd, or kill -HUP its process."
_F = TypeVar("_F", bound=Callable[..., Any])


@click.group()
def cert() -> None:
    """The certificate that clients see.

    \b
    Examples:
      twinportd cert show --root server_files
      twinportd cert renew --root server_files
    """


def _options(function: _F) -> _F:
    root = click.option(
        "--root",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The directory that the server serves. Default: as for serve.",
    )
    config = click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="The server's --config.")
    return root(config(function))


@cert.command()
@_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(root: Path | None, config: Path | None, as_json: bool) -> None:
    """Show the fingerprint, the names and the end of the certificate in force, and of the one that will follow.

    The fingerprint is the SHA-256 of the certificate (DER), as clients pin it.
    """
    _, files = _load(root, config)
    current = _read_current(files)
    following = _read_next(files)
    if as_json:
        found = {**_facts(current), "next": None if following is None else _facts(following)}
        click.echo(json.dumps(found))
        return
    click.echo(f"fingerprint  {current.sha256.hex()}")
    click.echo(f"names        {', '.join(current.names) or 'none'}")
    click.echo(f"valid until  {_day(current.not_after)}")
    if following is not None:
        click.echo(f"next         {following.sha256.hex()}")
    told = warn_of_expiry(current, time.time())
    if told is not None:
        click.echo(f"twinportd: the certificate {told}", err=True)


@cert.command()
@_options
@click.option("--tls-name", multiple=True, metavar="NAME", help="More DNS names and addresses; as for serve.")
@click.option("--now", is_flag=True, help="Put the new certificate in force at once, without announcing it first.")
def renew(root: Path | None, config: Path | None, tls_name: tuple[str, ...], now: bool) -> None:
    """Make the next certificate; called again, put it in force.

    In between the server announces the next fingerprint, so that clients can pin it before they meet it. Names are
    those of the certificate in force, with those of --tls-name and the settings.
    """
    settings, files = _load(root, config, tls_name)
    if files.next is None:
        _fail(
            f"the certificate in force is {files.certificate}, from elsewhere. Replace it and its key there. {_RELOAD}"
        )
    directory = files.certificate.parent
    current = _read_current(files)
    waiting = _read_next(files)
    try:
        names = dict.fromkeys((*split_names(settings.tls_name, settings.host), *current.names))
        following = make_next(directory, names, time.time())
        if waiting is not None or now:
            switch_over(directory)
    except (CertificateError, OSError) as error:
        _fail(str(error))
    if waiting is None and not now:
        click.echo(f"Made the next certificate: {following.sha256.hex()}")
        click.echo(f"{_RELOAD} It then announces it; run this once more to put it in force.")
    else:
        click.echo(f"In force from the next reload: {following.sha256.hex()}")
        click.echo(f"Until then: {current.sha256.hex()}")
        click.echo(_RELOAD)


def _load(root: Path | None, config: Path | None, tls_name: tuple[str, ...] = ()) -> tuple[Settings, CertificateFiles]:
    try:
        settings = load_settings({"root": root, "tls_name": tls_name}, os.environ, config)
        return settings, certificate_files(settings, settings.root.absolute() / OWN_DIRECTORY)
    except ConfigError as error:
        _fail(str(error), _EXIT_USAGE)


def _read_current(files: CertificateFiles) -> Certificate:
    if files == own_files(files.certificate.parent) and not files.certificate.exists():
        _fail(f"{files.certificate} is not there yet; the server makes it at its first start. Check --root.")
    return _read(files.certificate, own=files.next is not None)


def _read_next(files: CertificateFiles) -> Certificate | None:
    return None if files.next is None or not files.next.exists() else _read(files.next, own=True)


def _read(path: Path, *, own: bool) -> Certificate:
    try:
        if own:
            check_mode(path, _NOT_THE_OWNER)
        return read_certificate(path)
    except CertificateError as error:
        _fail(str(error))


def _facts(certificate: Certificate) -> dict[str, object]:
    return {
        "sha256": certificate.sha256.hex(),
        "names": list(certificate.names),
        "not_before": _day(certificate.not_before),
        "not_after": _day(certificate.not_after),
    }


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _fail(text: str, code: int = _EXIT_FAILED) -> NoReturn:
    click.echo(f"twinportd: {text}", err=True)
    sys.exit(code)

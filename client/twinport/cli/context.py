"""What every command gets from the options that may stand before or after it, and how it reaches the server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from twinport.client import Client

INTERRUPTED = "twinport: interrupted; run the same command again to go on"
_R = TypeVar("_R")


@dataclass(frozen=True)
class Settings:
    """The options that all commands share; None for what was not given."""

    host: str | None = None
    user: str | None = None
    profile: str | None = None
    fingerprint: str | None = None
    key: str | None = None
    tls: bool | None = None
    plaintext: bool = False
    ca_file: str | None = None
    channels: int | None = None
    quiet: bool = False
    verbose: int = 0
    as_json: bool = False

    def connect(self, needed: tuple[str, ...] = (), *, patience_seconds: float | None = None) -> Client:
        """A client for the server. Raises as :func:`twinport.connect`. ``needed`` are modules to load meanwhile;
        ``patience_seconds`` is that of :class:`twinport.client.Client` unless given."""
        from twinport.client import Client
        from twinport.connector import is_loopback
        from twinport.credentials import make_login
        from twinport.transfer import PATIENCE_SECONDS

        from .destination import find_destination
        from .warm_up import KEY_LOGIN, warm_up

        place = find_destination(self)
        if not is_loopback(place.address.host):
            warm_up((KEY_LOGIN if place.credentials.key is not None else ()) + needed)
        login = make_login(place.credentials)
        patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        return Client(
            place.address, security=place.security, login=login, channels=self.channels, patience_seconds=patience
        )


def shared_options(function: Callable[..., _R]) -> Callable[..., _R]:
    """The options that may stand on either side of the command, without defaults: those that are not given are None."""
    options = (
        click.option(
            "--host",
            metavar="[USER@]HOST[:PORT]",
            help="The server; TWINPORT_HOST, the default profile's or 127.0.0.1:5001 if not given.",
        ),
        click.option("--user", metavar="NAME", help="Who to log in as [TWINPORT_USER]."),
        click.option("--profile", metavar="NAME", help="A server that `twinport login` stored [TWINPORT_PROFILE]."),
        click.option(
            "--fingerprint",
            metavar="HEX",
            help="The server's certificate, as `twinportd cert show` prints it [TWINPORT_FINGERPRINT].",
        ),
        click.option(
            "--key",
            metavar="FILE",
            type=click.Path(readable=False),
            help="SSH key to log in with; a public one for the agent's [TWINPORT_KEY].",
        ),
        click.option(
            "--tls/--no-tls", default=None, help="TLS always, or never (this machine only) [TWINPORT_TLS=1|0]."
        ),
        click.option(
            "--plaintext",
            is_flag=True,
            default=None,
            help="No TLS, wherever the server is; all on the way can read it.",
        ),
        click.option(
            "--ca-file",
            metavar="FILE",
            type=click.Path(readable=False),
            help="Authorities that may vouch for the server, PEM [TWINPORT_CA_FILE].",
        ),
        click.option(
            "--channels",
            type=click.IntRange(1, 64),
            metavar="N",
            help="Data connections at most; as many as the line is worth if not given.",
        ),
        click.option("-q", "--quiet", is_flag=True, default=None, help="No progress, no notes; errors only."),
        click.option(
            "-v", "--verbose", count=True, default=None, help="Each file as it is done; -vv: where the time went."
        ),
        click.option("--json", "as_json", is_flag=True, default=None, help="Print the outcome as JSON."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def with_settings(function: Callable[..., _R]) -> Callable[..., _R]:
    """Makes a command take the shared options too, and hands it the settings first; what stands last counts."""

    @functools.wraps(function)
    def run(before: Settings, /, **values: Any) -> _R:
        after = {item.name: values.pop(item.name) for item in fields(Settings)}
        return function(settings_from(before, after), **values)

    return shared_options(click.pass_obj(run))


def settings_from(before: Settings, given: dict[str, Any]) -> Settings:
    """The settings with what was given in their place."""
    return replace(before, **{name: value for name, value in given.items() if value is not None})

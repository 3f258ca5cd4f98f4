"""What every command gets from the options that may stand before or after it, and how it reaches the server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from twinport.client import Client

INTERRUPTED = "twinport: interrupted; run the same command again to go on"
DEFAULT_HOST = "127.0.0.1:5001"
DEFAULT_CHANNELS = 4
_R = TypeVar("_R")


@dataclass(frozen=True)
class Settings:
    """The options that all commands share."""

    host: str = DEFAULT_HOST
    channels: int = DEFAULT_CHANNELS
    quiet: bool = False
    as_json: bool = False

    def connect(self) -> Client:
        """A client for the server. Raises as :func:`twinport.connect`."""
        from twinport.addresses import parse_address
        from twinport.client import Client

        return Client(parse_address(self.host), channels=self.channels)


def shared_options(function: Callable[..., _R]) -> Callable[..., _R]:
    """The options that may stand on either side of the command, without defaults: those that are not given are None."""
    options = (
        click.option(
            "--host", metavar="HOST[:PORT]", help=f"The server; {DEFAULT_HOST} or TWINPORT_HOST if not given."
        ),
        click.option(
            "--channels",
            type=click.IntRange(1, 64),
            metavar="N",
            help="Data connections at most; 4 if not given.",
        ),
        click.option("-q", "--quiet", is_flag=True, default=None, help="No progress, no notes; errors only."),
        click.option("--json", "as_json", is_flag=True, default=None, help="Print the outcome as JSON."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def with_settings(function: Callable[..., _R]) -> Callable[..., _R]:
    """Makes a command take the shared options too, and hands it the settings first; what stands last counts."""

    @functools.wraps(function)
    def run(before: Settings, /, **values: Any) -> _R:
        after = {name: values.pop(name) for name in ("host", "channels", "quiet", "as_json")}
        return function(settings_from(before, after), **values)

    return shared_options(click.pass_obj(run))


def settings_from(before: Settings, given: dict[str, Any]) -> Settings:
    """The settings with what was given in their place."""
    return replace(before, **{name: value for name, value in given.items() if value is not None})

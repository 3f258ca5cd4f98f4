"""What every command gets from the options before it, and how it reaches the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twinport.client import Client

INTERRUPTED = "twinport: interrupted; run the same command again to go on"


@dataclass(frozen=True)
class Settings:
    """The options before the command."""

    host: str
    channels: int
    quiet: bool

    def connect(self) -> Client:
        """A client for the server. Raises as :func:`twinport.connect`."""
        from twinport.addresses import parse_address
        from twinport.client import Client

        return Client(parse_address(self.host), channels=self.channels)

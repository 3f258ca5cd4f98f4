"""Where the server is: ``HOST``, ``HOST:PORT``, ``[IPV6]`` or ``[IPV6]:PORT``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5001
MAX_PORT = 65535

_BRACKETS = re.compile(r"\[([^\[\]]+)\](?::([0-9]{1,5}))?")
_PLAIN = re.compile(r"([^:\s\[\]]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class Address:
    """A host name or number and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int = DEFAULT_PORT) -> Address:
    """The address that ``text`` spells; a bare IPv6 number may go without brackets. Raises ``UsageError``."""
    match = _BRACKETS.fullmatch(text) or _PLAIN.fullmatch(text)
    if match is None:
        if text.count(":") > 1 and re.fullmatch(r"[0-9A-Fa-f:.]+(%\w+)?", text):
            return Address(text, default_port)
        raise UsageError(f"{text!r} is no address; write HOST, HOST:PORT or [IPV6]:PORT")
    port = int(match[2]) if match[2] else default_port
    if not 0 < port <= MAX_PORT:
        raise UsageError(f"{port} is no TCP port; ports go from 1 to {MAX_PORT}")
    return Address(match[1], port)

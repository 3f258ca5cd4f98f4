"""The servers whose certificates this user has accepted: ``known_servers.json``.

    {"version": 1, "servers": {"files.example.org:5001": {"fingerprint": "3f9a…", "next": "81c0…", "former": ["…"]}}}

    {"servers": {"open.example.org:5001": {"by-authority": true}}}

``by-authority``: an authority vouched for whatever certificate it had, so one without an authority is no first meeting.
``next`` is what the server announced, over a verified connection, as its next certificate; ``former`` what was replaced
in that way, so that a profile that still names one of them is understood.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .addresses import Address
from .config_files import ConfigFile, config_directory
from .errors import ConflictError, UsageError
from .fingerprints import parse_fingerprint

FILE_NAME = "known_servers.json"
MAX_FORMER = 8
_VOUCHED_FOR = {"by-authority": True}


@dataclass(frozen=True)
class KnownServer:
    """What is known of one address."""

    fingerprint: bytes
    following: bytes | None = None
    former: tuple[bytes, ...] = ()


class KnownServers:
    """The store. Nothing in it is replaced unless the caller knows what was there."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = ConfigFile(path or config_directory() / FILE_NAME)

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return self._file.path

    def find(self, address: Address) -> KnownServer | None:
        """The entry of an address. ``UsageError`` for one that is damaged: it must not count as none."""
        return self._parse(address, _servers(self._file.read(), self.path).get(_key(address)))

    def is_vouched_for(self, address: Address) -> bool:
        """Whether this server was met with a certificate that an authority vouched for."""
        return _servers(self._file.read(), self.path).get(_key(address)) == _VOUCHED_FOR

    def vouch_for(self, address: Address) -> None:
        """Remember that an authority did; nothing if a certificate is known, which says more."""
        if self.is_vouched_for(address) or self.find(address) is not None:
            return

        def edit(content: dict[str, Any]) -> None:
            if _servers(content, self.path).get(_key(address)) is None:
                content.setdefault("version", 1)
                content.setdefault("servers", {})[_key(address)] = dict(_VOUCHED_FOR)

        self._file.change(edit)

    def add(self, address: Address, fingerprint: bytes) -> None:
        """A new entry; nothing if it is there already. ``ConflictError`` if another one is."""

        def edit(content: dict[str, Any]) -> None:
            there = self._parse(address, _servers(content, self.path).get(_key(address)))
            if there is not None and there.fingerprint != fingerprint:
                raise ConflictError(
                    f"{self.path} knows another certificate of {address} meanwhile; run the command again", "Changed"
                )
            if there is None:
                _put(content, address, KnownServer(fingerprint))

        self._file.change(edit)

    def replace(self, address: Address, fingerprint: bytes) -> None:
        """What the user decided: this certificate and no other."""
        self._file.change(lambda content: _put(content, address, KnownServer(fingerprint)))

    def announce(self, address: Address, fingerprint: bytes, following: bytes | None) -> None:
        """Remember what a server with the certificate ``fingerprint`` announced; nothing if another one is known."""
        known = self.find(address)
        is_new = following is not None if known is None else known.following != following
        if not is_new or (known is not None and known.fingerprint != fingerprint):
            return

        def edit(content: dict[str, Any]) -> None:
            there = self._parse(address, _servers(content, self.path).get(_key(address)))
            if there is None:
                there = KnownServer(fingerprint)
            if there.fingerprint == fingerprint:
                _put(content, address, KnownServer(fingerprint, following, there.former))

        self._file.change(edit)

    def adopt(self, address: Address, fingerprint: bytes) -> None:
        """The announced certificate has come. ``ConflictError`` if it is not the one that was announced."""

        def edit(content: dict[str, Any]) -> None:
            there = self._parse(address, _servers(content, self.path).get(_key(address)))
            if there is not None and there.fingerprint == fingerprint:
                return  # another process was first
            if there is None or there.following != fingerprint:
                raise ConflictError(f"{self.path} was changed meanwhile; run the command again", "Changed")
            _put(content, address, KnownServer(fingerprint, None, (there.fingerprint, *there.former)[:MAX_FORMER]))

        self._file.change(edit)

    def _parse(self, address: Address, entry: Any) -> KnownServer | None:
        if entry is None or entry == _VOUCHED_FOR:
            return None
        try:
            following = entry.get("next")
            return KnownServer(
                parse_fingerprint(entry["fingerprint"]),
                None if following is None else parse_fingerprint(following),
                tuple(parse_fingerprint(text) for text in entry.get("former", [])),
            )
        except (UsageError, AttributeError, KeyError, TypeError):
            raise UsageError(f"the entry {_key(address)} of {self.path} is damaged; repair or remove it") from None


def _key(address: Address) -> str:
    return str(Address(address.host.lower(), address.port))


def _servers(content: dict[str, Any], path: Path) -> dict[str, Any]:
    servers = content.get("servers", {})
    if not isinstance(servers, dict):
        raise UsageError(f"{path} is damaged; repair or remove it")
    return servers


def _put(content: dict[str, Any], address: Address, server: KnownServer) -> None:
    content.setdefault("version", 1)
    entry: dict[str, Any] = {"fingerprint": server.fingerprint.hex()}
    if server.following is not None:
        entry["next"] = server.following.hex()
    if server.former:
        entry["former"] = [former.hex() for former in server.former]
    content.setdefault("servers", {})[_key(address)] = entry

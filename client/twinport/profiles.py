"""Profiles: servers by name, with who one is there. ``profiles.json``; unknown keys are kept, secrets are never in it.

    {"version": 1, "default": "files", "profiles": {"files": {"host": "files.example.org", "port": 5001, "tls": true,
     "user": "alice", "fingerprint": "3f9a…", "login": "key", "key": "/home/alice/.ssh/id_ed25519"}}}

``login`` is ``key`` (with ``key``; without, whatever the agent and the usual files hold), ``token`` (``token_in`` says
where), ``password`` or ``none``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .addresses import DEFAULT_PORT, MAX_PORT, Address
from .config_files import ConfigFile, config_directory
from .errors import NotFoundError, UsageError
from .fingerprints import parse_fingerprint

FILE_NAME = "profiles.json"
LOGIN_KINDS = ("key", "token", "password", "none")
_NAME = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9._:@\[\]-]{0,99}")


@dataclass(frozen=True)
class Profile:
    """One server and one user."""

    name: str
    address: Address
    user: str | None = None
    fingerprint: bytes | None = None
    tls: bool = False
    login: str = "none"
    key: str | None = None
    token_in: str | None = None
    ca_file: str | None = None

    @property
    def account(self) -> str:
        """User and address, as the keyring knows them."""
        return f"{self.user}@{self.address}"

    def facts(self) -> dict[str, Any]:
        """As it is written."""
        facts: dict[str, Any] = {"host": self.address.host, "port": self.address.port, "tls": self.tls}
        facts["login"] = self.login
        fingerprint = None if self.fingerprint is None else self.fingerprint.hex()
        more = {
            "user": self.user,
            "fingerprint": fingerprint,
            "key": self.key,
            "token_in": self.token_in,
            "ca_file": self.ca_file,
        }
        return {**facts, **{key: value for key, value in more.items() if value is not None}}


class Profiles:
    """The file."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = ConfigFile(path or config_directory() / FILE_NAME)
        self._loaded: dict[str, Any] | None = None

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._file.path

    def get(self, name: str) -> Profile:
        """One by name. ``NotFoundError``, ``UsageError``."""
        found = self._all().get(name)
        if found is None:
            names = ", ".join(sorted(self._all())) or "none"
            raise NotFoundError(
                f"there is no profile {name}; there are: {names}; make one: twinport login", "NoProfile"
            )
        return self._parse(name, found)

    def default(self) -> Profile | None:
        """The one that counts when no other is named."""
        name = self._content().get("default")
        return self.get(name) if isinstance(name, str) and name in self._all() else None

    def find(self, address: Address, user: str | None) -> Profile | None:
        """The profile for an address, of ``user`` if one is named; the default one before others."""
        content = self._content()
        names = sorted(self._all(), key=lambda name: (name != content.get("default"), name))
        for name in names:
            profile = self._parse(name, self._all()[name])
            if profile.address == address and user in (None, profile.user):
                return profile
        return None

    def save(self, profile: Profile) -> None:
        """Write one, which becomes the default."""
        if not _NAME.fullmatch(profile.name):
            raise UsageError(f"{profile.name!r} is no name for a profile; use letters, digits and ._@-")

        def edit(content: dict[str, Any]) -> None:
            content.setdefault("version", 1)
            there = content.setdefault("profiles", {})
            others = set(Profile("", profile.address, "", bytes(32), False, "", "", "", "").facts())
            kept = {key: value for key, value in there.get(profile.name, {}).items() if key not in others}
            there[profile.name] = {**kept, **profile.facts()}
            content["default"] = profile.name

        self._file.change(edit)
        self._loaded = None

    def remove(self, name: str) -> None:
        """Remove one. ``NotFoundError``."""

        def edit(content: dict[str, Any]) -> None:
            if content.get("profiles", {}).pop(name, None) is None:
                raise NotFoundError(f"there is no profile {name}", "NoProfile")
            if content.get("default") == name:
                del content["default"]

        self._file.change(edit)
        self._loaded = None

    def name_for(self, address: Address, user: str | None) -> str:
        """A name for a profile that was given none: that of the one it replaces, or the host's."""
        there = self.find(address, user)
        if there is not None and there.user == user:
            return there.name
        host = address.host if address.port == DEFAULT_PORT else f"{address.host}:{address.port}"
        names = (host, f"{user}@{host}")
        return next((name for name in names if name not in self._all()), names[-1])

    def _content(self) -> dict[str, Any]:
        if self._loaded is None:
            self._loaded = self._file.read()
        return self._loaded

    def _all(self) -> dict[str, Any]:
        found = self._content().get("profiles", {})
        if not isinstance(found, dict):
            raise UsageError(f"{self.path} is damaged; repair or remove it")
        return found

    def _parse(self, name: str, facts: Any) -> Profile:
        try:
            port = facts.get("port", DEFAULT_PORT)
            texts = {key: facts.get(key) for key in ("user", "key", "token_in", "ca_file")}
            fingerprint, login = facts.get("fingerprint"), facts.get("login", "none")
            is_sound = isinstance(facts["host"], str) and isinstance(port, int) and 0 < port <= MAX_PORT
            if not is_sound or not all(text is None or isinstance(text, str) for text in texts.values()):
                raise TypeError
            return Profile(
                name=name,
                address=Address(facts["host"], port),
                fingerprint=None if fingerprint is None else parse_fingerprint(fingerprint),
                tls=bool(facts.get("tls", False)),
                login=login if login in LOGIN_KINDS else "none",
                **texts,
            )
        except (UsageError, AttributeError, KeyError, TypeError):
            raise UsageError(f"the profile {name} in {self.path} is damaged; repair or remove it") from None

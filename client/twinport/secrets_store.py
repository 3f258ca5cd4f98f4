"""Where tokens and passwords are kept: the system's keyring where the package ``keyring`` and a backend are there; else
tokens in a file of this user alone (``tokens.json``, mode 0600), and passwords nowhere."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .config_files import ConfigFile, config_directory

SERVICE = "twinport"
TOKEN_FILE = "tokens.json"  # noqa: S105  # a name, not a secret


def keep_password(account: str, password: str) -> bool:
    """Keep a password in the keyring; whether there was one. ``account`` is ``user@host:port``."""
    return _set(account, password)


def find_password(account: str) -> str | None:
    """The password in the keyring."""
    return _get(account)


def keep_token(profile: str, token: str, path: Path | None = None) -> str:
    """Keep the token of a profile; where: ``keyring`` or ``file``."""
    if _set(_entry(profile), token):
        return "keyring"
    _token_file(path).change(lambda content: content.__setitem__(profile, token))
    return "file"


def find_token(profile: str, place: str, path: Path | None = None) -> str | None:
    """The token of a profile, kept in ``place``."""
    if place == "keyring":
        return _get(_entry(profile))
    found = _token_file(path).read().get(profile)
    return found if isinstance(found, str) else None


def forget(profile: str, account: str, path: Path | None = None) -> None:
    """Remove what is kept of a profile."""
    file = _token_file(path)
    if profile in file.read():
        file.change(lambda content: content.pop(profile, None))
    for entry in (_entry(profile), account):
        _delete(entry)


def _entry(profile: str) -> str:
    return f"profile {profile}"


def _token_file(path: Path | None) -> ConfigFile:
    return ConfigFile(path or config_directory() / TOKEN_FILE)


def _keyring() -> Any:
    """The package, None where there is none or it has nowhere to keep things."""
    try:
        keyring = importlib.import_module("keyring")
        priority = float(keyring.get_keyring().priority)
    except Exception:  # backends fail in ways of their own; that is the same as having none
        return None
    return keyring if priority > 0 else None


def _set(entry: str, value: str) -> bool:
    keyring = _keyring()
    if keyring is None:
        return False
    try:
        keyring.set_password(SERVICE, entry, value)
    except Exception:  # locked, or refused by its user
        return False
    return True


def _get(entry: str) -> str | None:
    keyring = _keyring()
    if keyring is None:
        return None
    try:
        found = keyring.get_password(SERVICE, entry)
    except Exception:  # as above
        return None
    return found if isinstance(found, str) else None


def _delete(entry: str) -> None:
    keyring = _keyring()
    if keyring is None:
        return
    try:
        keyring.delete_password(SERVICE, entry)
    except Exception:  # not there
        return

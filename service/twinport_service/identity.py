"""What a server is: its audience and ticket keys, kept in one 0600 file beside the data.

Two keys overlap during a rotation: tickets are signed with the newest and accepted from both.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from twinport_protocol.tickets import AUDIENCE_BYTES, KEY_BYTES, TicketKeys

_MODE = 0o600
_MAX_KEY_ID = 2**32 - 1


class IdentityError(Exception):
    """The identity file cannot be used; the message says why and what to do."""


def load_identity(path: Path) -> TicketKeys:
    """The ticket keys of the file, which is made if it is missing. Raises ``IdentityError``."""
    try:
        raw = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return _parse(_create(path), path)
    except (OSError, UnicodeDecodeError) as error:
        raise IdentityError(f"cannot read {path}: {error}. Restore it from a backup or remove it.") from None
    if path.stat().st_mode & 0o077:
        raise IdentityError(f"{path} can be read by others. Run: chmod 600 {path}")
    return _parse(raw, path)


def _create(path: Path) -> str:
    raw = json.dumps(
        {
            "audience": secrets.token_hex(AUDIENCE_BYTES),
            "signing": 1,
            "keys": {"1": secrets.token_hex(KEY_BYTES)},
        }
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Complete under its name or not there at all, and never readable by others, not even for a moment.
    part = path.with_name(path.name + ".new")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        os.write(descriptor, raw.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(part, path)
    return raw


def _parse(raw: str, path: Path) -> TicketKeys:
    try:
        value = json.loads(raw)
        keys = {int(number): bytes.fromhex(key) for number, key in value["keys"].items()}
        if any(not 0 <= number <= _MAX_KEY_ID for number in keys):
            raise ValueError
        return TicketKeys(bytes.fromhex(value["audience"]), keys, int(value["signing"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise IdentityError(f"{path} is damaged. Restore it from a backup, or remove it to get new keys.") from None

"""Long-lived, revocable tokens for machines: ``tp_<id>_<secret>``. The server keeps the id and a SHA-256.

The secret has 256 random bits, so a plain hash is enough: there is nothing to guess, hence nothing to slow down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable

from .records import Token

_ID_BYTES = 8
_SECRET_BYTES = 32
_FORM = re.compile(r"tp_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_NO_DIGEST = bytes(hashlib.sha256().digest_size)


def make_token(user: str, label: str, created: float, expires: float | None = None) -> tuple[str, Token]:
    """A new token: the text that is shown once, and what is kept of it."""
    token_id = secrets.token_hex(_ID_BYTES)
    text = f"tp_{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return text, Token(token_id, user, _digest(text), label, created, expires)


def check_token(text: str, find: Callable[[str], Token | None], now: float) -> Token | None:
    """The token that ``text`` is, or None where it is none, unknown, revoked or expired. ``find`` takes a token id."""
    match = _FORM.fullmatch(text)
    known = find(match[1]) if match else None
    is_same = hmac.compare_digest(_digest(text), _NO_DIGEST if known is None else known.digest)
    if known is None or not is_same or known.is_revoked:
        return None
    return known if known.expires is None or now < known.expires else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

"""Certificate fingerprints: the SHA-256 of a certificate, as people read and write it."""

from __future__ import annotations

import re

from .errors import UsageError

FINGERPRINT_BYTES = 32


def parse_fingerprint(text: str, source: str = "--fingerprint") -> bytes:
    """The 32 bytes; 64 hexadecimal digits in either case, colons between them and ``sha256:`` before them allowed.
    ``UsageError`` names ``source``."""
    plain = re.sub(r"^sha-?256[:=]", "", text.strip().lower().replace(" fingerprint", "")).replace(":", "")
    if not re.fullmatch(f"[0-9a-f]{{{2 * FINGERPRINT_BYTES}}}", plain):
        text = f"{source} takes the 64 hexadecimal digits that `twinportd cert show` prints on the server"
        raise UsageError(text)
    return bytes.fromhex(plain)

"""SSH public keys: reading ``.pub`` files and ``authorized_keys`` lines, and checking what a key signed.

Signature blobs: RFC 8709 §6 (ed25519), RFC 5656 §3.1.2 (ECDSA), RFC 8332 §3 (RSA with SHA-2).
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime, timezone

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from twinport_protocol.auth import ALGORITHMS, MIN_RSA_BITS, SshSignature, key_type, signed_data, split_strings
from twinport_protocol.errors import ProtocolError

from .records import Key

MAX_RSA_BITS = 8192
MAX_RSA_EXPONENT_BITS = 33
"""A check costs time in proportion to the exponent, which whoever makes up a key chooses; what programs make is 65537,
or smaller."""
MAX_COMMENT_CHARACTERS = 200
PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_HASH_OF_CURVE: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_RSA_HASHES: dict[str, hashes.HashAlgorithm] = {"rsa-sha2-512": hashes.SHA512(), "rsa-sha2-256": hashes.SHA256()}
_EXPIRY = re.compile(r'expiry-time="(\d{8}|\d{12}|\d{14})(Z?)"', re.IGNORECASE | re.ASCII)


class KeyTextError(ValueError):
    """A line holds no key that can be used; the message says why and what would do."""


def load_public_key(blob: bytes) -> PublicKey:
    """The key of a wire blob. ``KeyTextError`` for a type or size that is not taken."""
    try:
        text = f"{key_type(blob)} {base64.b64encode(blob).decode()}"
        key = serialization.load_ssh_public_key(text.encode())
    except (ProtocolError, ValueError, UnsupportedAlgorithm):
        raise KeyTextError("not an ed25519, ECDSA (NIST curve) or RSA key; make one: ssh-keygen -t ed25519") from None
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise KeyTextError(
                f"an RSA key of {key.key_size} bits; it needs {MIN_RSA_BITS} to {MAX_RSA_BITS}. "
                "Make another: ssh-keygen -t ed25519"
            )
        if key.public_numbers().e.bit_length() > MAX_RSA_EXPONENT_BITS:
            raise KeyTextError("an RSA key of a very large exponent; make another: ssh-keygen -t ed25519")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey):
        return key
    raise KeyTextError("a key of a type that is not taken; make one: ssh-keygen -t ed25519")


def parse_keys(text: str) -> list[Key]:
    """The keys of a ``.pub`` or ``authorized_keys`` text: one a line, comments and empty lines skipped.

    ``KeyTextError`` names the first line that cannot be used. Of the options of ``authorized_keys`` only
    ``expiry-time`` is known; a line with another is refused rather than taken without its restriction.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if content and not content.startswith("#"):
            try:
                keys.append(_parse_line(content))
            except KeyTextError as error:
                raise KeyTextError(f"line {number}: {error}") from None
    if not keys:
        raise KeyTextError("there is no key in it; give the .pub file, as ssh-keygen writes it")
    return keys


def _parse_line(line: str) -> Key:
    if "PRIVATE KEY" in line:
        raise KeyTextError("this is a private key, keep it secret; give the .pub file beside it")
    expires: float | None = None
    words = line.split(None, 1)
    if words[0] not in ALGORITHMS:
        match = _EXPIRY.match(line)
        if match is not None and line[match.end() : match.end() + 1] in (" ", "\t"):
            expires = _parse_expiry(match[1], is_utc=bool(match[2]))
            words = line[match.end() :].split(None, 1)
        elif "=" in words[0] or "," in words[0]:
            raise KeyTextError("an option other than expiry-time; remove it, it would not be obeyed")
    if words[0] not in ALGORITHMS or len(words) == 1:
        raise KeyTextError("not an ed25519, ECDSA (NIST curve) or RSA key; make one: ssh-keygen -t ed25519")
    encoded, _, comment = words[1].partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise KeyTextError("the key is cut short or damaged; copy the whole line of the .pub file") from None
    load_public_key(blob)
    if key_type(blob) != words[0]:
        raise KeyTextError("the line names another type than its key has")
    printable = "".join(character for character in comment.strip() if character.isprintable())
    return Key(blob, printable[:MAX_COMMENT_CHARACTERS], expires)


def _parse_expiry(digits: str, *, is_utc: bool) -> float:
    try:
        moment = datetime.strptime(digits, "%Y%m%d%H%M%S"[: {8: 6, 12: 10, 14: 12}[len(digits)]])
    except ValueError:
        raise KeyTextError('expiry-time is no date; write it as in expiry-time="20271231"') from None
    return (moment.replace(tzinfo=timezone.utc) if is_utc else moment).timestamp()


def verify_signature(signature: SshSignature, message: bytes) -> bool:
    """Whether the key that is in the signature made it over ``message``. False for anything malformed too."""
    try:
        _verify(load_public_key(signature.public_key), signature, signed_data(message, signature.hash_name))
    except (InvalidSignature, KeyTextError, ProtocolError, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _verify(key: PublicKey, signature: SshSignature, data: bytes) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature.signature, data)
    elif isinstance(key, rsa.RSAPublicKey):
        digest = _RSA_HASHES[signature.algorithm]
        # Some agents leave out leading zeros (RFC 8332 does not), which OpenSSL would refuse.
        key.verify(signature.signature.rjust(-(-key.key_size // 8), b"\0"), data, padding.PKCS1v15(), digest)
    else:
        r, s = (int.from_bytes(number, "big", signed=True) for number in split_strings(signature.signature, 2))
        if r <= 0 or s <= 0:
            raise InvalidSignature
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(_HASH_OF_CURVE[key.curve.name]))

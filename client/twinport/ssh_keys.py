"""SSH private keys in files: OpenSSH's form and PEM, with or without a passphrase.

``cryptography`` is imported when a key is read, not before.
"""

from __future__ import annotations

import base64
import binascii
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from twinport_protocol.auth import MIN_RSA_BITS, key_fingerprint, key_type
from twinport_protocol.errors import ProtocolError

from .errors import LoginError, local_failure

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey | RSAPrivateKey

DEFAULT_NAMES = ("id_ed25519", "id_ecdsa", "id_rsa")
MAX_KEY_BYTES = 64 * 1024
MAX_PASSPHRASES = 3

AskSecret = Callable[[str], str]


class FileKey:
    """A private key in memory; a ``Signer``. ``label`` is its file."""

    def __init__(self, key: PrivateKey, label: str) -> None:
        self.label = label
        self._key = key
        self.public_key = _public_blob(key, label)

    def sign(self, data: bytes) -> tuple[str, bytes]:
        """The algorithm and the inner signature blob."""
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  # only here is it needed
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils  # noqa: PLC0415

        key = self._key
        if isinstance(key, rsa.RSAPrivateKey):
            return "rsa-sha2-512", key.sign(data, padding.PKCS1v15(), hashes.SHA512())
        if isinstance(key, ec.EllipticCurvePrivateKey):
            digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[key.curve.key_size]
            r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
            return key_type(self.public_key), _mpint(r) + _mpint(s)
        return "ssh-ed25519", key.sign(data)


def load_key(path: str, ask_secret: AskSecret | None = None) -> FileKey:
    """The private key in a file. ``ask_secret`` asks for its passphrase, None where nobody can be asked.

    ``NotFoundError``, ``DeniedError``; ``LoginError`` for what is no key, one of a kind that is not taken, or one that
    stays locked. Source of the forms: OpenSSH's PROTOCOL.key, RFC 7468.
    """
    data = read_key_file(path)
    passphrase: bytes | None = None
    for attempt in range(MAX_PASSPHRASES + 1):
        try:
            return FileKey(_parse(data, passphrase, path), path)
        except _LockedKeyError:
            if ask_secret is None:
                raise LoginError(
                    f"the key {path} has a passphrase, and there is no terminal to ask for it; load it into the SSH "
                    "agent (ssh-add)"
                ) from None
            if attempt == MAX_PASSPHRASES:
                break
            passphrase = ask_secret(f"Passphrase of {path}: ").encode()
    raise LoginError(f"the key {path} stays locked: wrong passphrase")


def read_key_file(path: str) -> bytes:
    """What a key file holds, private or public. ``NotFoundError``, ``DeniedError``, ``LoginError``."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
    except OSError as error:
        raise local_failure(f"cannot read the key {path}", error) from None
    if len(data) > MAX_KEY_BYTES:
        raise LoginError(f"{path} is no SSH key: too large")
    return data


def public_blob_of(data: bytes) -> bytes | None:
    """The wire blob of a public key file (``ssh-ed25519 AAAA… comment``); None for anything else."""
    words = data.split(None, 2)
    if len(words) < 2 or b"\n" in data.strip():  # noqa: PLR2004  # type and key
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
        return blob if key_type(blob) == words[0].decode("ascii", "replace") else None
    except (binascii.Error, ProtocolError):
        return None


def default_key_files() -> list[str]:
    """The usual private keys of this user that exist."""
    directory = os.path.expanduser("~/.ssh")
    paths = (os.path.join(directory, name) for name in DEFAULT_NAMES)
    return [path for path in paths if os.path.isfile(path)]


class _LockedKeyError(Exception):
    """A passphrase is needed, or it was the wrong one."""


def _parse(data: bytes, passphrase: bytes | None, path: str) -> PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # as above
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # noqa: PLC0415

    is_own_form = b"BEGIN OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if is_own_form else serialization.load_pem_private_key
    try:
        key = load(data, passphrase)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        # What the library says of a wrong or missing passphrase differs by form and version.
        if not _is_encrypted(data):
            raise LoginError(f"{path} is no SSH private key that can be used") from None
        if isinstance(error, UnsupportedAlgorithm):
            text = f"the key {path} is encrypted in a way that cannot be read here; give it to the SSH agent (ssh-add)"
            raise LoginError(text) from None
        raise _LockedKeyError from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise LoginError(
                f"the RSA key {path} has {key.key_size} bits, at least {MIN_RSA_BITS} are needed; make a new one: "
                "ssh-keygen -t ed25519"
            )
        return key
    if isinstance(key, (ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey)):
        return key
    raise LoginError(f"the key {path} is of a kind that no server here takes; make a new one: ssh-keygen -t ed25519")


def _is_encrypted(data: bytes) -> bool:
    if b"ENCRYPTED" in data:
        return True
    body = b"".join(line for line in data.splitlines() if line and not line.startswith(b"-----"))
    try:
        blob = base64.b64decode(body)
    except binascii.Error:
        return False
    # openssh-key-v1, then the name of the cipher.
    return blob.startswith(b"openssh-key-v1\0") and not blob.startswith(b"openssh-key-v1\0\0\0\0\x04none")


def _public_blob(key: PrivateKey, path: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415  # as above

    try:
        line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        blob = base64.b64decode(line.split()[1])
        key_type(blob)
    except (ValueError, ProtocolError):
        raise LoginError(f"the key {path} is of a kind that no server here takes; use ssh-keygen -t ed25519") from None
    return blob


def describe(public_key: bytes) -> str:
    """What ``ssh-keygen -l`` would call it."""
    return f"{key_type(public_key)} {key_fingerprint(public_key)}"


def _mpint(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return struct.pack("!I", len(data)) + data

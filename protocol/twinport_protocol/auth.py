"""What is signed to log in with an SSH key, and the SSHSIG container that carries the signature. No cryptography here.

The message is a short text over everything that makes a login this one: the user, both nonces, and the certificate
that the client saw, so that whoever relays it to another server, under another certificate, gains nothing. Being
text it can be written by hand and signed with ``ssh-keygen -Y sign -n auth@twinport``.

SSHSIG is specified in OpenSSH's PROTOCOL.sshsig; key and signature blobs in RFC 4253 §6.6, RFC 5656 §3.1, RFC 8332 §3
and RFC 8709 §4.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from dataclasses import dataclass

from .errors import ErrorCode, Refusal, RemoteProtocolError

NAMESPACE = "auth@twinport"
HASH_NAME = "sha512"
MAX_SIGNATURE_BYTES = 4096
MIN_RSA_BITS = 3072
MAX_USER_CHARACTERS = 64
# Which signature algorithms a key type may be used with. DSA and SHA-1 (the algorithm "ssh-rsa") are not among them.
ALGORITHMS = {
    "ssh-ed25519": frozenset({"ssh-ed25519"}),
    "ecdsa-sha2-nistp256": frozenset({"ecdsa-sha2-nistp256"}),
    "ecdsa-sha2-nistp384": frozenset({"ecdsa-sha2-nistp384"}),
    "ecdsa-sha2-nistp521": frozenset({"ecdsa-sha2-nistp521"}),
    "ssh-rsa": frozenset({"rsa-sha2-512", "rsa-sha2-256"}),
}
_MAGIC = b"SSHSIG"
_VERSION = 1
_HASHES = {"sha512": hashlib.sha512, "sha256": hashlib.sha256}
_USER = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._@-]{{0,{MAX_USER_CHARACTERS - 1}}}")
_NONCE = re.compile(r"[0-9a-f]{32,128}")
_ARMOR = re.compile(r"\s*-----BEGIN SSH SIGNATURE-----\s([A-Za-z0-9+/=\s]+)-----END SSH SIGNATURE-----\s*")
_ARMOR_WIDTH = 70


def parse_user(text: str) -> str:
    """``text`` as a user name: at most 64 letters, digits and ``._@-``, a letter, digit or ``_`` first.
    ``LoginFailed``: what can be no user is refused as an unknown one."""
    if not _USER.fullmatch(text):
        raise Refusal(ErrorCode.LOGIN_FAILED, "not a user name")
    return text


def login_message(user: str, server_nonce: str, client_nonce: str, certificate_sha256: bytes | None) -> bytes:
    """The message to be signed; ``certificate_sha256`` is None only on a plaintext connection.

    ``LoginFailed`` for a user or nonce of the wrong form: nothing in it may be mistaken for another line.
    """
    parse_user(user)
    if not (_NONCE.fullmatch(server_nonce) and _NONCE.fullmatch(client_nonce)):
        raise Refusal(ErrorCode.LOGIN_FAILED, "a nonce is 16 to 64 bytes in lower case hexadecimal")
    certificate = "none" if certificate_sha256 is None else certificate_sha256.hex()
    lines = (
        "twinport login 1",
        f"user {user}",
        f"server-nonce {server_nonce}",
        f"client-nonce {client_nonce}",
        f"certificate {certificate}",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def signed_data(message: bytes, hash_name: str = HASH_NAME) -> bytes:
    """The bytes that the key itself signs. ``KeyError`` for another hash than sha256 and sha512."""
    digest = _HASHES[hash_name](message).digest()
    return _MAGIC + b"".join(map(_string, (NAMESPACE.encode(), b"", hash_name.encode(), digest)))


@dataclass(frozen=True)
class SshSignature:
    """One SSHSIG of our namespace. ``public_key`` is the key's wire blob; ``signature`` the inner blob of
    ``algorithm``: for ed25519 64 bytes, for RSA the number, for ECDSA two mpints."""

    public_key: bytes
    algorithm: str
    signature: bytes
    hash_name: str = HASH_NAME

    def encode(self) -> bytes:
        """The container."""
        inner = _string(self.algorithm.encode()) + _string(self.signature)
        fields = (self.public_key, NAMESPACE.encode(), b"", self.hash_name.encode(), inner)
        return _MAGIC + struct.pack("!I", _VERSION) + b"".join(map(_string, fields))

    def to_word(self) -> str:
        """The container as the ``signature=`` value of LOGIN: unpadded base64url."""
        return base64.urlsafe_b64encode(self.encode()).rstrip(b"=").decode()

    def to_armor(self) -> str:
        """The container as ``ssh-keygen -Y verify`` reads it."""
        text = base64.b64encode(self.encode()).decode()
        lines = [text[at : at + _ARMOR_WIDTH] for at in range(0, len(text), _ARMOR_WIDTH)]
        return "\n".join(("-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""))

    @classmethod
    def parse(cls, blob: bytes) -> SshSignature:
        """The signature in a container. ``RemoteProtocolError(LoginFailed)`` for another version, namespace, hash or
        algorithm, and for anything malformed."""
        if not blob.startswith(_MAGIC + struct.pack("!I", _VERSION)) or len(blob) > MAX_SIGNATURE_BYTES:
            raise _malformed("not an SSHSIG of version 1")
        public_key, namespace, _, hash_name, inner = split_strings(blob[len(_MAGIC) + 4 :], 5)
        algorithm, signature = split_strings(inner, 2)
        try:
            hash_text, algorithm_text = hash_name.decode("ascii"), algorithm.decode("ascii")
        except UnicodeDecodeError:
            raise _malformed("a name that is not ASCII") from None
        if namespace != NAMESPACE.encode() or hash_text not in _HASHES:
            raise _malformed("another namespace or hash")
        if algorithm_text not in ALGORITHMS.get(key_type(public_key), ()):
            raise _malformed("another algorithm than the key's, or a weak one")
        return cls(public_key, algorithm_text, signature, hash_text)

    @classmethod
    def from_word(cls, word: str) -> SshSignature:
        """The signature in a ``signature=`` value. ``RemoteProtocolError(LoginFailed)``."""
        if len(word) > 2 * MAX_SIGNATURE_BYTES or not re.fullmatch("[A-Za-z0-9_-]+", word):
            raise _malformed("not base64url")
        try:
            return cls.parse(base64.urlsafe_b64decode(word + "=" * (-len(word) % 4)))
        except binascii.Error:
            raise _malformed("not base64url") from None

    @classmethod
    def from_armor(cls, text: str) -> SshSignature:
        """The signature that ``ssh-keygen -Y sign`` wrote. ``RemoteProtocolError(LoginFailed)``."""
        match = _ARMOR.fullmatch(text)
        if match is None:
            raise _malformed("not an SSH signature file")
        try:
            return cls.parse(base64.b64decode("".join(match[1].split()), validate=True))
        except binascii.Error:
            raise _malformed("not base64") from None


def key_type(public_key: bytes) -> str:
    """The type that a public key's wire blob begins with. ``RemoteProtocolError(LoginFailed)`` for one that we do not
    take: DSA, security keys, certificates."""
    length = int.from_bytes(public_key[:4], "big")
    name = public_key[4 : 4 + length].decode("ascii", "replace")
    if len(public_key) < 4 + length or name not in ALGORITHMS:
        raise _malformed("a key of another type than ed25519, ECDSA (NIST curves) and RSA")
    return name


def key_fingerprint(public_key: bytes) -> str:
    """What ``ssh-keygen -l`` prints for a key: ``SHA256:`` and unpadded base64."""
    digest = base64.b64encode(hashlib.sha256(public_key).digest()).rstrip(b"=").decode()
    return f"SHA256:{digest}"


def _string(value: bytes) -> bytes:
    return struct.pack("!I", len(value)) + value


def split_strings(data: bytes, count: int) -> list[bytes]:
    """Exactly ``count`` SSH strings (RFC 4251 §5) that fill ``data``. ``RemoteProtocolError(LoginFailed)``."""
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        length = int.from_bytes(data[at : at + 4], "big")
        value = data[at + 4 : at + 4 + length]
        if len(data) < at + 4 or len(value) != length:
            raise _malformed("cut short")
        found.append(value)
        at += 4 + length
    if at != len(data):
        raise _malformed("bytes after the end")
    return found


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError(ErrorCode.LOGIN_FAILED, detail)

"""The server's certificate: its own, made at the first start and kept in one 0600 file beside the data, or a pair of
files that somebody else issued.

Clients pin the SHA-256 of the own one, so a new one is announced before it comes into use: it waits as *next* beside
the one in force. What is in force is decided by the files alone; a running server looks at them again on SIGHUP.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CURRENT_FILE = "certificate.pem"
NEXT_FILE = "next-certificate.pem"
OWN_VALID_DAYS = 3650
EXPIRES_SOON_SECONDS = 14 * 24 * 3600
_MODE = 0o600
_MAX_FILE_BYTES = 1024 * 1024
# A client whose clock is behind shall not take a fresh certificate for one of the future.
_BEFOREHAND_DAYS = 1
_DNS_NAME = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.?){1,126}", re.IGNORECASE | re.ASCII)
_MAX_DNS_NAME_CHARACTERS = 253


class CertificateError(Exception):
    """A certificate or key cannot be used; the message names the file, why, and what to do."""


@dataclass(frozen=True)
class Certificate:
    """What there is to know about a certificate. ``sha256`` is over its DER, as clients pin it; times are in seconds
    since the epoch."""

    sha256: bytes
    names: tuple[str, ...]
    not_before: float
    not_after: float


@dataclass(frozen=True)
class CertificateFiles:
    """Where the certificate in force is (with its chain), its key, and the one that will follow it, if any."""

    certificate: Path
    key: Path
    next: Path | None = None


def own_files(directory: Path) -> CertificateFiles:
    """The files of the server's own certificate, which need not be there yet; ``directory`` is ROOT/.twinport."""
    current = directory / CURRENT_FILE
    return CertificateFiles(current, current, directory / NEXT_FILE)


def read_certificate(path: Path) -> Certificate:
    """The first certificate of a PEM file. ``CertificateError``."""
    return parse_certificate(_read(path), path)


def parse_certificate(pem: bytes, path: Path) -> Certificate:
    """The first certificate in the contents of a PEM file; ``path`` is for the ``CertificateError``."""
    try:
        found = x509.load_pem_x509_certificate(pem)
        names = _names_of(found)
    except ValueError as error:
        raise CertificateError(f"{path} holds no certificate in PEM: {error}.") from None
    return Certificate(
        hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).digest(),
        names,
        found.not_valid_before_utc.timestamp(),
        found.not_valid_after_utc.timestamp(),
    )


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress)))


def make_own(directory: Path, names: Iterable[str], now: float) -> Certificate:
    """The server's own certificate, made if there is none. ``CertificateError``, ``OSError``."""
    path = directory / CURRENT_FILE
    if not path.exists():
        _create(path, names, now)
    return read_certificate(path)


def make_next(directory: Path, names: Iterable[str], now: float) -> Certificate:
    """The certificate that will follow, made if there is none. ``CertificateError``, ``OSError``."""
    path = directory / NEXT_FILE
    if not path.exists():
        _create(path, names, now)
    return read_certificate(path)


def switch_over(directory: Path) -> None:
    """Let the next certificate take the place of the one in force. ``OSError``."""
    os.rename(directory / NEXT_FILE, directory / CURRENT_FILE)
    _sync_directory(directory)


def check_mode(path: Path, forbidden: int) -> None:
    """``CertificateError`` when a file with a key can be read by whom it must not be."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}.") from None
    if mode & forbidden:
        raise CertificateError(
            f"{path} holds a key and can be read by others. Run: chmod {mode & 0o777 & ~forbidden:o} {path}"
        )


def split_names(text: str, host: str) -> tuple[str, ...]:
    """The names that an own certificate bears: this host's, loopback's, the address it listens on, and those listed.

    ``CertificateError`` for one that is neither a DNS name nor an address.
    """
    extra = [part.strip() for part in text.split(",") if part.strip()]
    for name in extra:
        if _address(name) is None and not _is_dns_name(name):
            raise CertificateError(f"--tls-name {name}: neither a DNS name nor an IP address.")
    own = [name for name in (socket.gethostname(), "localhost") if _is_dns_name(name)]
    listening = _address(host)
    bound = [] if listening is None or listening.is_unspecified else [host]
    if listening is None and _is_dns_name(host):
        bound = [host]
    return tuple(dict.fromkeys((*own, "127.0.0.1", "::1", *bound, *extra)))


def warn_of_expiry(certificate: Certificate, now: float) -> str | None:
    """What to tell the operator when it has expired, will soon, or is not valid yet."""
    if now >= certificate.not_after:
        return f"expired on {_day(certificate.not_after)}: clients that verify it refuse it"
    if now >= certificate.not_after - EXPIRES_SOON_SECONDS:
        return f"expires on {_day(certificate.not_after)}"
    if now < certificate.not_before:
        return f"is not valid before {_day(certificate.not_before)}: is the clock right?"
    return None


def _day(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise CertificateError(f"cannot read {path}: {error.strerror}.") from None


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_dns_name(name: str) -> bool:
    return len(name) <= _MAX_DNS_NAME_CHARACTERS and _DNS_NAME.fullmatch(name) is not None


def _create(path: Path, names: Iterable[str], now: float) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "twinport")])
    alternatives = [
        x509.DNSName(name) if (address := _address(name)) is None else x509.IPAddress(address) for name in names
    ]
    moment = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - datetime.timedelta(days=_BEFOREHAND_DAYS))
        .not_valid_after(moment + datetime.timedelta(days=OWN_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(path, private + certificate.public_bytes(serialization.Encoding.PEM))


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Complete under its name or not there at all, and never readable by others, not even for a moment.
    part = path.with_name(path.name + ".new")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        os.write(descriptor, raw)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(part, path)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""A certificate for the servers of a run, made on the spot, and trusted by its clients alone."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFE = datetime.timedelta(days=2)


@dataclass(frozen=True)
class CertificatePair:
    """PEM files: the certificate, its key, and both in one."""

    certificate: Path
    key: Path
    both: Path


def make_certificate(directory: Path, address: str) -> CertificatePair:
    """A self-signed P-256 certificate for an address, like the one that Twinport makes for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFE)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    shown = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pair = CertificatePair(*(directory / f"{part}.pem" for part in ("certificate", "key", "both")))
    for path, data in ((pair.certificate, shown), (pair.key, secret), (pair.both, shown + secret)):
        path.touch(mode=0o600)
        path.write_bytes(data)
    return pair

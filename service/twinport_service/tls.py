"""TLS on the server: contexts that take TLS 1.3 and nothing else, made from the files that are in force, and renewed
while it runs."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from twinport_protocol.sniff import ALPN_CHANNEL, ALPN_CONTROL

from .certificates import (
    Certificate,
    CertificateError,
    CertificateFiles,
    check_mode,
    parse_certificate,
    read_certificate,
    warn_of_expiry,
)
from .log import get_log

_OTHERS = 0o007
_NOT_THE_OWNER = 0o077
_READS = 3
_ALERT_HEAD = b"\x15\x03\x03\x00\x02\x02"
ALERT_PROTOCOL_VERSION = _ALERT_HEAD + b"\x46"
"""A fatal TLS alert in the clear (RFC 8446 §6): this server takes TLS 1.3 only."""
ALERT_NO_APPLICATION_PROTOCOL = _ALERT_HEAD + b"\x78"
ALERT_INTERNAL_ERROR = _ALERT_HEAD + b"\x50"
"""What TLS has for "not now": the fault is not the client's, and it may try again."""


@dataclass(frozen=True)
class TlsMaterial:
    """A certificate in force, the contexts that present it, and the SHA-256 of the one that will follow."""

    certificate: Certificate
    control: ssl.SSLContext
    channel: ssl.SSLContext
    next_sha256: bytes | None = None


def load_material(files: CertificateFiles) -> TlsMaterial:
    """What the files hold now. ``CertificateError`` names the file and the reason. Blocks for the disk."""
    own = files.key == files.certificate
    check_mode(files.key, _NOT_THE_OWNER if own else _OTHERS)
    for _ in range(_READS):
        before = _contents(files)
        certificate = parse_certificate(before[0], files.certificate)
        material = TlsMaterial(
            certificate, _make_context(files, before[1], ALPN_CONTROL), _make_context(files, before[1], ALPN_CHANNEL),
            _next_sha256(files.next, certificate),
        )  # fmt: skip
        # Both contexts and the fingerprint are of the same certificate, also when the files are replaced meanwhile.
        if _contents(files) == before:
            return material
    raise CertificateError(f"{files.certificate} is being replaced. Try again when that is done.")


def _contents(files: CertificateFiles) -> tuple[bytes, bytes]:
    try:
        return files.certificate.read_bytes(), files.key.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {error.filename}: {error.strerror}.") from None


def _next_sha256(path: Path | None, current: Certificate) -> bytes | None:
    if path is None or not path.exists():
        return None
    following = read_certificate(path).sha256
    return following if following != current.sha256 else None


def _make_context(files: CertificateFiles, key: bytes, alpn: str) -> ssl.SSLContext:
    if b"ENCRYPTED" in key:
        raise CertificateError(f"{files.key} is encrypted, and nobody is there to type its passphrase. Decrypt it.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Resuming would skip what the client pins, and every ticket costs memory and a write per connection.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols([alpn])
    try:
        context.load_cert_chain(files.certificate, files.key)
    except ssl.SSLError as error:
        pair = str(files.key) if files.key == files.certificate else f"{files.certificate} and {files.key}"
        raise CertificateError(f"{pair}: not a certificate with its key: {error.reason or error}.") from None
    except OSError as error:
        raise CertificateError(f"cannot read {files.certificate} or {files.key}: {error.strerror}.") from None
    return context


class TlsKeeper:
    """Holds the material in force. ``renew`` may be called from any thread, one at a time; ``material`` from any."""

    def __init__(self, files: CertificateFiles, now: Callable[[], float] = time.time) -> None:
        """Raises ``CertificateError``."""
        self._files = files
        self._now = now
        self.material = load_material(files)

    def describe(self) -> None:
        """Say in the log which certificate is in force, and whether it needs attention."""
        certificate = self.material.certificate
        get_log().info(f"[TLS] Certificate sha256:{certificate.sha256.hex()} for {', '.join(certificate.names) or '-'}")
        if self.material.next_sha256 is not None:
            get_log().info(f"[TLS] Next certificate sha256:{self.material.next_sha256.hex()}")
        self.check_expiry()

    def check_expiry(self) -> None:
        """Warn in the log when the certificate expires soon; for the start and once a day."""
        told = warn_of_expiry(self.material.certificate, self._now())
        if told is not None:
            get_log().warning(f"[TLS] The certificate {told}. Renew it: twinportd cert renew, or your issuer's way")

    def check_names(self, wanted: tuple[str, ...]) -> None:
        """Warn in the log of names that were asked for and are not in the certificate."""
        missing = [name for name in wanted if name not in self.material.certificate.names]
        if missing:
            get_log().warning(
                f"[TLS] The certificate is not for {', '.join(missing)}. Make one that is: twinportd cert renew"
            )

    def renew(self) -> None:
        """Look at the files again. What cannot be used changes nothing but the log."""
        before = self.material
        try:
            self.material = load_material(self._files)
        except CertificateError as error:
            get_log().error(f"[TLS] Kept the certificate in force: {error}")
            return
        if self.material.certificate.sha256 == before.certificate.sha256:
            get_log().info("[TLS] Reloaded: the certificate is the same")
        else:
            get_log().info(f"[TLS] Reloaded: it was sha256:{before.certificate.sha256.hex()}")
        self.describe()

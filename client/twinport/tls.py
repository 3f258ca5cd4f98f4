"""TLS 1.3 with ALPN: contexts, the handshake, and what its failures mean. Whom to believe is :mod:`twinport.trust`'s.

Importing this costs what importing ``ssl`` costs, so it is imported only where there is TLS. Python lets a connection
through whose ALPN did not match; it is compared here, before a byte is sent.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import socket
import ssl

from twinport_protocol.sniff import ALPN_CHANNEL, ALPN_CONTROL

from .addresses import Address
from .errors import NetworkError, TrustError, UsageError

__all__ = ["ALPN_CHANNEL", "ALPN_CONTROL", "certificate_of", "handshake", "secure_channel", "unverified", "verifying"]

_NOT_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "PACKET_LENGTH_TOO_LONG",
        "BAD_RECORD_TYPE",
        "UNKNOWN_PROTOCOL",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
    }
)
_OLD_TLS = frozenset({"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "SSLV3_ALERT_HANDSHAKE_FAILURE"})
_BUSY = frozenset({"TLSV1_ALERT_INTERNAL_ERROR"})
_OTHER_ALPN = frozenset({"TLSV1_ALERT_NO_APPLICATION_PROTOCOL"})


def _context(alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([alpn])
    return context


@functools.lru_cache(maxsize=4)
def unverified(alpn: str) -> ssl.SSLContext:
    """A context that takes any certificate: whoever uses it compares the certificate before sending anything."""
    context = _context(alpn)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@functools.lru_cache(maxsize=4)
def verifying(alpn: str, ca_file: str | None) -> ssl.SSLContext:
    """A context that checks chain and host name against ``ca_file``, or the system's authorities. ``UsageError``."""
    context = _context(alpn)
    if ca_file is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(os.path.expanduser(ca_file))
    except OSError as error:  # ssl.SSLError is one
        reason = "no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(
            f"cannot use {ca_file} as --ca-file: {reason}; it must hold certificates in PEM form"
        ) from None
    return context


def handshake(
    connection: socket.socket, context: ssl.SSLContext, address: Address, alpn: str, seconds: float
) -> ssl.SSLSocket:
    """TLS over a fresh connection, within ``seconds``; the connection is closed when it fails.

    ``ssl.SSLCertVerificationError`` as it comes; everything else is ``NetworkError`` with what it probably means.
    """
    connection.settimeout(seconds)
    tls: ssl.SSLSocket | None = None
    try:
        name = address.host.partition("%")[0]
        tls = context.wrap_socket(connection, server_hostname=name, do_handshake_on_connect=False)
        tls.do_handshake()
        if tls.version() != "TLSv1.3" or tls.selected_alpn_protocol() != alpn:
            raise _other_program(address, alpn)
    except BaseException as error:
        (tls or connection).close()
        if isinstance(error, (ssl.SSLCertVerificationError, NetworkError)) or not isinstance(
            error, (OSError, ValueError)
        ):
            raise
        raise _explained(error, address, alpn) from None
    return tls


def certificate_of(tls: ssl.SSLSocket) -> bytes:
    """The SHA-256 of the certificate that the other side proved to own."""
    der = tls.getpeercert(binary_form=True)
    if not der:
        raise TrustError("the server showed no certificate", "CertificateInvalid")
    return hashlib.sha256(der).digest()


def secure_channel(connection: socket.socket, address: Address, certificate: bytes, seconds: float) -> ssl.SSLSocket:
    """TLS on a data connection, to the server with that very certificate. ``NetworkError``, ``TrustError``."""
    try:
        tls = handshake(connection, unverified(ALPN_CHANNEL), address, ALPN_CHANNEL, seconds)
    except NetworkError as error:
        raise NetworkError(f"no data connection: {error.message}", error.code) from None
    actual = certificate_of(tls)
    if not hmac.compare_digest(actual, certificate):
        tls.close()
        raise TrustError(
            f"the data connection to {address} leads to another server: its certificate is {actual.hex()}, that of the "
            f"control connection {certificate.hex()}; nothing was sent over it. Somebody may be in between, or the "
            "certificate was changed this moment: run the same command again",
            "CertificateChanged",
        )
    return tls


def _explained(error: Exception, address: Address, alpn: str) -> NetworkError:
    reason = getattr(error, "reason", None) or ""
    if reason in _OTHER_ALPN:
        return _other_program(address, alpn)
    if reason in _OLD_TLS:
        text = f"{address} offers no TLS 1.3, and nothing older is used; is a twinportd listening there?"
        return NetworkError(text, "TlsVersion")
    if reason in _BUSY:
        return NetworkError(f"{address} has too many connections to take up now; try again later", "Busy")
    if isinstance(error, TimeoutError):
        what = "no answer in time"
    elif reason in _NOT_TLS:
        what = "the answer is not TLS"
    else:
        what = str(getattr(error, "strerror", None) or reason or error).rstrip(".")
    return NetworkError(
        f"no TLS with {address}: {what}. Either another program listens there: check host and port; or it is a "
        "twinportd without TLS: give it TLS, or say --no-tls (on this machine) or --plaintext (anywhere; open to all)",
        "TlsFailed",
    )


def _other_program(address: Address, alpn: str) -> NetworkError:
    text = f"{address} speaks TLS 1.3 but not {alpn}; another program listens there: check host and port"
    return NetworkError(text, "TlsProtocol")

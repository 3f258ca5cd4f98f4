"""A server of the protocol behind TLS, with logins, whose certificates, ALPN and versions a test chooses."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twinport_protocol.auth import SshSignature, login_message
from twinport_protocol.control import ControlServer, Greeting, Limits
from twinport_protocol.errors import ErrorCode, ProtocolError
from twinport_protocol.messages import Command, Reply, ReplyKind, Verb
from twinport_protocol.sniff import ALPN_CHANNEL, ALPN_CONTROL, sniff

from tests.client.lying_server import LyingServer

SERVER_NONCE = "ab" * 16


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key in one PEM file."""

    path: Path
    fingerprint: bytes


@dataclass
class Authority:
    """Signs certificates; with itself as the issuer of its own."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def name(self) -> x509.Name:
        """Its subject."""
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])

    def write(self, path: Path) -> Path:
        """Its own certificate, as ``--ca-file`` takes it."""
        certificate = self._build(self.name, self.key, is_authority=True, days=2)
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, path: Path, hosts: tuple[str, ...] = ("127.0.0.1",), days: int = 2) -> Certificate:
        """A server's certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test server")])
        return _write(path, self._build(subject, key, hosts=hosts, days=days), key)

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        hosts: tuple[str, ...] = (),
        is_authority: bool = False,
        days: int,
    ) -> x509.Certificate:
        return build_certificate(subject, self.name, key, self.key, hosts, is_authority, days)


def build_certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...],
    is_authority: bool,
    days: int,
) -> x509.Certificate:
    """A certificate from ten days ago until ``days`` from now."""
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if is_authority:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    if hosts:
        names = [_general_name(host) for host in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def make_certificate(path: Path, hosts: tuple[str, ...] = ("127.0.0.1",)) -> Certificate:
    """A self-signed one."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "twinportd")])
    return _write(path, build_certificate(name, name, key, key, hosts, False, 2), key)


def _write(path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Certificate:
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem)
    return Certificate(path, hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest())


def server_context(certificate: Certificate, alpn: list[str], version: ssl.TLSVersion) -> ssl.SSLContext:
    """What the server speaks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    context.num_tickets = 0
    context.load_cert_chain(certificate.path)
    context.set_alpn_protocols(alpn)
    return context


Check = Callable[[Command, str], Reply]


class SecureServer(LyingServer):
    """TLS for control and channels, on one port. ``check`` answers LOGIN; None is a server without accounts."""

    def __init__(self, certificate: Certificate, files: Mapping[str, bytes] | None = None) -> None:
        self.certificate = certificate
        self.channel_certificate = certificate
        self.alpn = [ALPN_CONTROL, ALPN_CHANNEL]
        self.version = ssl.TLSVersion.TLSv1_3
        self.options: dict[str, str] = {}
        self.check: Check | None = None
        self.takes_plaintext = False
        self.client_nonce = ""
        self.commands: list[Command] = []
        self.application_bytes = 0
        super().__init__(files)

    def key_message(self, user: str) -> bytes:
        """What a key must have signed on the last connection."""
        return login_message(user, SERVER_NONCE, self.client_nonce, self.certificate.fingerprint)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ProtocolError):
            found = sniff(connection.recv(16 * 1024, socket.MSG_PEEK))
            if not found.alpn and not self.takes_plaintext:
                connection.recv(65536)
                connection.sendall(b"ERROR TlsRequired this needs TLS; connect with TLS\n")
                return
            if not found.alpn:
                self._serve_control(connection, connection.recv(65536))
                return
            is_channel = ALPN_CHANNEL in found.alpn
            certificate = self.channel_certificate if is_channel else self.certificate
            context = server_context(certificate, self.alpn, self.version)
            # As a copy of the descriptor, which the base class may shut down from its own thread.
            with context.wrap_socket(connection.dup(), server_side=True) as tls:
                first = tls.recv(65536)
                self.application_bytes += len(first)
                (self._serve_channel if is_channel else self._serve_control)(tls, first)

    def _serve_control(self, connection: socket.socket, data: bytes) -> None:
        wire = ControlServer(Limits())
        while data:
            wire.feed(data)
            for event in wire.events():
                if isinstance(event, Greeting):
                    self.client_nonce = event.options.get("nonce", "")
                    options = {"data-port": str(self.port), "nonce": SERVER_NONCE, **self.options}
                    connection.sendall(wire.greet(options))
                elif isinstance(event, Command):
                    self.commands.append(event)
                    connection.sendall(b"".join(wire.reply(reply) for reply in self._answers(event)))
            data = connection.recv(65536)

    def _answers(self, command: Command) -> list[Reply]:
        if command.verb is Verb.LOGIN and self.check is not None:
            return [self.check(command, self.client_nonce)]
        if command.verb is Verb.QUOTA:
            options = {"user": "alice", "bytes": "2048", "files": "2", "reserved-bytes": "1024", "open-uploads": "1"}
            return [Reply(command.id, ReplyKind.OK, (), {**options, "max-bytes": "1048576"})]
        if command.verb is Verb.MKDIR:
            return [Reply(command.id, ReplyKind.ERROR, code=ErrorCode.DENIED)]
        return self.answer(command)


def accept_as(command: Command, user: str) -> Reply:
    """The login worked."""
    return Reply(command.id, ReplyKind.OK, (), {"user": user, "home": user})


def refuse(command: Command, code: ErrorCode = ErrorCode.LOGIN_FAILED, retry_seconds: int | None = None) -> Reply:
    """It did not."""
    return Reply(command.id, ReplyKind.ERROR, code=code, retry_seconds=retry_seconds)


def signature_of(command: Command) -> SshSignature:
    """What a key login carries."""
    return SshSignature.from_word(command.options["signature"])


def blob_of(public_line: str) -> bytes:
    """The wire blob of a public key line."""
    return base64.b64decode(public_line.split()[1])

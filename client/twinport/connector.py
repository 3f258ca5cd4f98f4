"""Connecting: plaintext or TLS, whom to believe, the greeting, the login; again when a connection was lost."""

from __future__ import annotations

import enum
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twinport_protocol.errors import ErrorCode, ProtocolError, RemoteProtocolError

from .addresses import Address
from .control_link import PING_SECONDS, ControlLink
from .errors import NetworkError, TwinportError, UsageError, nonsense, refusal
from .known_servers import KnownServers
from .login import Login
from .session import Identity, LoginLostError, Opening, Session, home_in, user_in
from .streams import CONNECT_SECONDS, SILENT_SECONDS, dial, stream_of, tune
from .timings import OpeningTimes

if TYPE_CHECKING:
    from .trust import Trust

MAX_LOGIN_LOSSES = 3
# Answers that another try may change; everything else is final.
_PASSING = frozenset({ErrorCode.BUSY, ErrorCode.SHUTTING_DOWN, ErrorCode.TIMEOUT})
_LOOPBACK = re.compile(r"localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|::1|(?:::ffff:)?127\.\d{1,3}\.\d{1,3}\.\d{1,3}")


class TlsMode(enum.Enum):
    """``AUTO``: TLS, but to this machine only for a login, or where something says so or the server wants it.
    ``NEVER``: none, allowed to this machine only. ``PLAINTEXT``: none, wherever the server is."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"
    PLAINTEXT = "plaintext"


@dataclass(frozen=True)
class Security:
    """How a client protects its connections; see :class:`twinport.trust.Trust`. ``known`` None stands for the user's
    own store. ``expects_tls`` says that this server was met under TLS before, ``expects_authority`` that an authority
    vouched for it then."""

    tls: TlsMode = TlsMode.AUTO
    fingerprint: bytes | None = None
    profile_fingerprint: bytes | None = None
    ca_file: str | None = None
    expects_tls: bool = False
    expects_authority: bool = False
    known: KnownServers | None = None
    confirm: Callable[[str], bool] | None = None
    note: Callable[[str], None] = lambda text: None


class _LoginNeedsTlsError(Exception):
    """The greeting came in plaintext, and a login is to follow that nobody allowed to go in plaintext."""


class Connector:
    """Opens sessions with one server. What was found out, a login that worked included, is kept for the next."""

    def __init__(
        self,
        address: Address,
        agent: str,
        security: Security | None = None,
        login: Login | None = None,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        ping_seconds: float = PING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self._agent = agent
        self._security = security or Security()
        self._login = login or Login()
        self._connect_seconds = connect_seconds
        self._ping_seconds = ping_seconds
        self._clock = clock
        self._trust: Trust | None = None
        self._wants_tls = False
        self._connect_took = 0.0

    def open(self) -> Session:
        """Connect, greet, log in. ``NetworkError``, ``BusyError``, ``LoginError``, ``TrustError``, ``UsageError``."""
        losses = 0
        while True:
            try:
                return self._open(uses_tls := self._uses_tls())
            except LoginLostError:
                losses += 1
                if losses > MAX_LOGIN_LOSSES:
                    raise NetworkError(f"{self.address} closes the connection during the login") from None
            except RemoteProtocolError as error:
                # Only towards this machine: whoever could forge this answer elsewhere would gain nothing by TLS.
                may_change = self._security.tls is TlsMode.AUTO and not uses_tls
                if error.code is not ErrorCode.TLS_REQUIRED or not may_change:
                    raise _as_refusal(self.address, error) from None
                self._wants_tls = True
            except _LoginNeedsTlsError:
                self._wants_tls = True
            except ProtocolError as error:
                raise _as_refusal(self.address, error) from None

    def _uses_tls(self) -> bool:
        security = self._security
        wants = security.fingerprint is not None or security.ca_file is not None
        if security.tls in (TlsMode.NEVER, TlsMode.PLAINTEXT):
            if wants:
                raise UsageError("a fingerprint or a CA file makes no sense without TLS; leave out one or the other")
            if security.tls is TlsMode.NEVER and not is_loopback(self.address.host):
                raise UsageError(
                    f"without TLS everybody on the way to {self.address} can read and change everything; leave out "
                    "--no-tls, or say --plaintext if that is what you want"
                )
            return False
        if security.tls is TlsMode.ALWAYS or not is_loopback(self.address.host):
            return True
        if wants or self._wants_tls or security.expects_tls or security.profile_fingerprint is not None:
            return True
        known = self._known()
        self._wants_tls = known.find(self.address) is not None or known.is_vouched_for(self.address)
        return self._wants_tls

    def _known(self) -> KnownServers:
        return self._security.known or KnownServers()

    def _open(self, uses_tls: bool) -> Session:
        certificate: bytes | None = None
        tls_version: str | None = None
        connection: socket.socket
        began = time.perf_counter()
        if uses_tls:
            tls, certificate = self._trusting().secure(self._connect, self._connect_seconds)
            tls_version = tls.version()
            connection = tls
        else:
            connection = self._connect()
        secured = time.perf_counter()
        try:
            opening = Opening(connection, self.address, self._agent)
            opening.greet()
            if certificate is not None:
                self._trusting().announced(certificate, opening.following)
            elif self._security.tls is TlsMode.AUTO and opening.wants(self._login):
                # Any program of this machine can listen on a free port: it must not be handed a password for asking.
                raise _LoginNeedsTlsError
            is_private = uses_tls or is_loopback(self.address.host)
            answer = opening.log_in(self._login, certificate, is_private=is_private)
            agent = opening.options.get("agent", "")
            identity = Identity(certificate, tls_version, user_in(answer), home_in(answer), agent)
            channels = opening.channel_addresses()
            tune(connection, SILENT_SECONDS)
            stream = stream_of(connection)
        except OSError as error:
            connection.close()
            text = f"no greeting from {self.address}: {error.strerror or error}; is it a twinportd?"
            raise NetworkError(text) from None
        except BaseException:
            connection.close()
            raise
        line = stream.look()
        secure_seconds = secured - began - self._connect_took
        times = OpeningTimes(self._connect_took, secure_seconds, time.perf_counter() - secured)
        link = ControlLink(stream, opening.protocol, self._clock, self._ping_seconds)
        return Session(link, opening.protocol.limits, channels, identity, line, times)

    def _trusting(self) -> Trust:
        if self._trust is None:
            from .trust import Trust  # noqa: PLC0415  # plaintext must not pay for TLS

            security = self._security
            self._trust = Trust(
                self.address,
                self._known(),
                fingerprint=security.fingerprint,
                profile_fingerprint=security.profile_fingerprint,
                ca_file=security.ca_file,
                expects_authority=security.expects_authority,
                user=self._login.user,
                confirm=security.confirm,
                note=security.note,
            )
        return self._trust

    def _connect(self) -> socket.socket:
        began = time.perf_counter()
        try:
            connection = dial(self.address, self._connect_seconds)
            self._connect_took = time.perf_counter() - began
            return connection
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            text = f"no connection to {self.address}: {reason}; is twinportd running there, and is the port open?"
            raise NetworkError(text) from None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone: nothing is looked up."""
    return _LOOPBACK.fullmatch(host.lower().rstrip(".")) is not None


def _as_refusal(address: Address, error: ProtocolError) -> TwinportError:
    is_answer = isinstance(error, RemoteProtocolError)
    if is_answer and (error.code in _PASSING or error.code.number >= ErrorCode.DENIED.number):
        return refusal(error.code, f"{address} refused the connection")
    return nonsense(error)

"""Whom to believe: decides about the certificate of one server, before anything is sent to it.

    a fingerprint was given       that certificate and no other
    one is known                  that one, or the next one that this server announced over a verified connection
    an authority vouched before   it must again
    none of these                 an authority vouches for it (the system's, or --ca-file); else the user is asked once,
                                  where there is a terminal; else the refusal says how to go on

There is no way to go on without one of them.
"""

from __future__ import annotations

import hmac
import socket
import ssl
from collections.abc import Callable

from .addresses import Address
from .errors import ConflictError, TrustError, TwinportError
from .known_servers import KnownServer, KnownServers
from .tls import ALPN_CONTROL, certificate_of, handshake, unverified, verifying

MAX_ROUNDS = 4
# OpenSSL's verdicts for "nobody I know signed this": the certificates that a twinportd makes by itself, and strangers.
_UNKNOWN = frozenset({2, 18, 19, 20, 21})

Confirm = Callable[[str], bool]
Connect = Callable[[], socket.socket]


class Trust:
    """What this client believes of the server at ``address``.

    ``fingerprint`` is final; ``profile_fingerprint`` gives way to a later one that was adopted from the same server.
    ``expects_authority`` says that an authority vouched for the server before. ``user`` is who wants to log in, for
    advice. ``confirm`` asks the user, None where nobody can be asked; ``note`` tells something.
    """

    def __init__(
        self,
        address: Address,
        known: KnownServers,
        *,
        fingerprint: bytes | None = None,
        profile_fingerprint: bytes | None = None,
        ca_file: str | None = None,
        expects_authority: bool = False,
        user: str | None = None,
        confirm: Confirm | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._address = address
        self._known = known
        self._fingerprint = fingerprint
        self._profile_fingerprint = profile_fingerprint
        self._ca_file = ca_file
        self._expects_authority = expects_authority
        self._user = user
        self._confirm = confirm
        self._note = note
        self._by_authority = False

    def secure(self, connect: Connect, seconds: float) -> tuple[ssl.SSLSocket, bytes]:
        """TLS for the control connection with a server that is believed, and its certificate's SHA-256.

        ``connect`` gives a fresh connection each time: a refused handshake uses one up. ``TrustError``,
        ``NetworkError``.
        """
        for _ in range(MAX_ROUNDS):
            pin = self._pin()
            if pin is not None:
                return self._pinned(pin, connect, seconds)
            try:
                context = verifying(ALPN_CONTROL, self._ca_file)
                tls = handshake(connect(), context, self._address, ALPN_CONTROL, seconds)
            except ssl.SSLCertVerificationError as error:
                self._meet(error, connect, seconds)
                continue
            self._by_authority = True
            self._remember(lambda: self._known.vouch_for(self._address))
            return tls, certificate_of(tls)
        raise TrustError(f"the certificate of {self._address} changes with every connection", "CertificateChanged")

    def announced(self, certificate: bytes, following: bytes | None) -> None:
        """What a greeting over the connection of :meth:`secure` announced as the next certificate."""
        if self._fingerprint is None and not self._by_authority:
            self._remember(lambda: self._known.announce(self._address, certificate, following))

    def _pin(self) -> KnownServer | None:
        if self._fingerprint is not None:
            return KnownServer(self._fingerprint)
        known = self._known.find(self._address)
        pin = self._profile_fingerprint
        if pin is not None and (known is None or pin not in (known.fingerprint, *known.former)):
            return KnownServer(pin)
        return known if self._ca_file is None else None

    def _pinned(self, pin: KnownServer, connect: Connect, seconds: float) -> tuple[ssl.SSLSocket, bytes]:
        tls = handshake(connect(), unverified(ALPN_CONTROL), self._address, ALPN_CONTROL, seconds)
        try:
            actual = certificate_of(tls)
            if hmac.compare_digest(actual, pin.fingerprint):
                return tls, actual
            if pin.following is None or not hmac.compare_digest(actual, pin.following):
                raise self._changed(pin.fingerprint, actual)
            self._remember(lambda: self._known.adopt(self._address, actual))
        except BaseException:
            tls.close()
            raise
        self._note(f"{self._address} has the new certificate that it had announced: {actual.hex()}")
        return tls, actual

    def _remember(self, write: Callable[[], None]) -> None:
        """What cannot be written down holds for this once."""
        try:
            write()
        except ConflictError:
            raise
        except TwinportError as error:
            self._note(f"the server's certificate cannot be remembered: {error.message}")

    def _meet(self, error: ssl.SSLCertVerificationError, connect: Connect, seconds: float) -> None:
        """A certificate that no authority vouches for: ask the user and store it, or refuse it."""
        # Nothing is sent over this connection; it only shows which certificate there is to decide about.
        tls = handshake(connect(), unverified(ALPN_CONTROL), self._address, ALPN_CONTROL, seconds)
        with tls:
            actual = certificate_of(tls)
        if error.verify_code not in _UNKNOWN or self._ca_file is not None:
            reason = (error.verify_message or "it does not verify").rstrip(".")
            raise TrustError(
                f"the certificate of {self._address} is refused: {reason}; its fingerprint is {actual.hex()}. If that "
                f"is what `twinportd cert show` prints on the server, trust it: {self._command(actual)}",
                "CertificateInvalid",
            )
        if self._expects_authority or self._known.is_vouched_for(self._address):
            raise TrustError(
                f"THE CERTIFICATE OF {self._address} IS NOT THE EXPECTED ONE, somebody may be in between; nothing was "
                f"sent. An authority vouched for it before, none does for {actual.hex()}; if that authority is your "
                "own, name it with --ca-file; if the server was set up anew, ask whoever runs it for what `twinportd "
                f"cert show` prints, and if that is this one, trust it: {self._command(actual)}",
                "CertificateChanged",
            )
        if self._confirm is None:
            raise TrustError(
                f"the server {self._address} is unknown, no authority vouches for it; its fingerprint is {actual.hex()}"
                ". Compare it with what `twinportd cert show` prints on the server, then trust it: "
                f"{self._command(actual)}",
                "UnknownServer",
            )
        question = (
            f"The server {self._address} is unknown, no authority vouches for it. Its fingerprint is\n"
            f"  {actual.hex()}\nand must be the one that `twinportd cert show` prints there.\n"
            "Trust this server from now on? (yes/no) "
        )
        if not self._confirm(question):
            raise TrustError(f"the server {self._address} is not trusted; nothing was sent", "UnknownServer")
        self._known.add(self._address, actual)

    def _changed(self, expected: bytes, actual: bytes) -> TrustError:
        if self._fingerprint is not None:
            advice = "check the fingerprint that you gave, and that the host is the right one"
        else:
            advice = (
                "if the server was set up anew, ask whoever runs it for what `twinportd cert show` prints, and if that "
                f"is the new one, trust it: {self._command(actual)}"
            )
        return TrustError(
            f"THE CERTIFICATE OF {self._address} IS NOT THE EXPECTED ONE, somebody may be in between; nothing was sent"
            f". Expected {expected.hex()}, got {actual.hex()}; {advice}",
            "CertificateChanged",
        )

    def _command(self, fingerprint: bytes) -> str:
        who = f"{self._user}@" if self._user else ""
        return f"twinport login {who}{self._address} --fingerprint {fingerprint.hex()}"

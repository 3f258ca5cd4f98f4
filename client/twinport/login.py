"""Logging in: which proofs there are, in which order they are tried, and the line that each makes.

A proof that was accepted is kept in memory, so that a connection that is lost in mid transfer logs in again without a
question. Nothing here has a ``repr`` or an error text that shows a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from twinport_protocol.auth import SshSignature, login_message, signed_data
from twinport_protocol.errors import Refusal

from .errors import LoginError

MAX_TRIES = 9
"""Refused proofs; the server ends the connection at ten."""


@dataclass(frozen=True)
class Situation:
    """What a proof is bound to. ``certificate`` is its SHA-256, None without TLS."""

    server_nonce: str
    client_nonce: str
    certificate: bytes | None


class Proof(Protocol):
    """One way to say who one is."""

    @property
    def label(self) -> str:
        """What to call it in a message; nothing secret."""

    def words(self, situation: Situation) -> tuple[str, dict[str, str]]:
        """Method and options of LOGIN. ``LoginError`` where it cannot be made."""


class Signer(Protocol):
    """Whoever holds a private key."""

    @property
    def public_key(self) -> bytes:
        """Its wire blob."""

    @property
    def label(self) -> str:
        """What to call it in a message."""

    def sign(self, data: bytes) -> tuple[str, bytes]:
        """The signature algorithm and the inner signature blob. ``LoginError``."""


class PasswordProof:
    """A password."""

    def __init__(self, user: str, password: str, label: str = "the password") -> None:
        self.label = label
        self.password = password
        self._user = user

    def words(self, situation: Situation) -> tuple[str, dict[str, str]]:
        """Method and options of LOGIN."""
        return "password", {"user": self._user, "password": self.password}


class TokenProof:
    """A token, which says who its user is; ``user`` has the server compare, None takes whoever it is."""

    def __init__(self, token: str, label: str = "the token", user: str | None = None) -> None:
        self.label = label
        self.token = token
        self._user = user

    def words(self, situation: Situation) -> tuple[str, dict[str, str]]:
        """Method and options of LOGIN."""
        named = {} if self._user is None else {"user": self._user}
        return "token", {**named, "token": self.token}


class KeyProof:
    """A signature over user, nonces and certificate, made anew for each connection."""

    def __init__(self, user: str, signer: Signer) -> None:
        self.label = signer.label
        self._user = user
        self.signer = signer

    def words(self, situation: Situation) -> tuple[str, dict[str, str]]:
        """Method and options of LOGIN. ``LoginError`` where the key or the agent does not sign."""
        try:
            message = login_message(self._user, situation.server_nonce, situation.client_nonce, situation.certificate)
        except Refusal as error:
            raise LoginError(f"nothing to sign: {error.detail}") from None
        algorithm, signature = self.signer.sign(signed_data(message))
        word = SshSignature(self.signer.public_key, algorithm, signature).to_word()
        return "key", {"user": self._user, "signature": word}


class Login:
    """The proofs of one client, over all its connections. ``find_proofs`` looks for them when one is needed, and may
    ask the user; ``user`` is who they are for, for messages.

    ``is_wanted`` says that the user wants to be logged in also where the server would take strangers, ``is_named`` that
    somebody was named, so that a server without accounts is the wrong one.
    """

    def __init__(
        self,
        find_proofs: Callable[[], Iterable[Proof]] = tuple,
        *,
        user: str | None = None,
        is_wanted: bool = False,
        is_named: bool = False,
    ) -> None:
        self.user = user
        self.is_named = is_named
        self.is_wanted = is_wanted
        self.tried: list[str] = []
        self._find_proofs = find_proofs
        self._proofs: Iterator[Proof] | None = None
        self._put_back: Proof | None = None
        self._accepted: Proof | None = None

    @property
    def accepted(self) -> Proof | None:
        """What worked."""
        return self._accepted

    @property
    def is_repeated(self) -> bool:
        """Whether a proof worked before, on a connection that is gone."""
        return self._accepted is not None

    def next_proof(self) -> Proof | None:
        """What to try now, None when there is nothing left; only the one that worked, once one did.

        Raises what finding them raises: ``LoginError``, ``NotFoundError``, ``InterruptError``.
        """
        if self._put_back is not None:
            proof, self._put_back = self._put_back, None
            return proof
        if self._accepted is not None or len(self.tried) >= MAX_TRIES:
            return None
        if self._proofs is None:
            self._proofs = iter(self._find_proofs())
        return next(self._proofs, None)

    def begin(self) -> None:
        """On a new connection, what worked before comes first."""
        self._put_back = self._accepted or self._put_back

    def put_back(self, proof: Proof) -> None:
        """It could not be tried: the connection was lost, perhaps while somebody was typing."""
        self._put_back = proof

    def accept(self, proof: Proof) -> None:
        """It worked."""
        self._accepted = proof
        self.tried.clear()

    def refused(self, address: str) -> LoginError:
        """The error when nothing worked."""
        who = f" as {self.user}" if self.user else ""
        if not self.tried:
            return LoginError(
                f"{address} wants a login{who}, and there is nothing to log in with; give --key FILE, load a key into "
                "the SSH agent, or run `twinport login` on a terminal [LoginRequired]",
                "LoginRequired",
            )
        return LoginError(
            f"{address} refused the login{who}; tried: {', '.join(self.tried)}. Check the user (--user) and the key "
            "(--key), or ask the server's administrator [LoginFailed]"
        )

"""The login of one control session: what may be asked before it, how often it may be tried, what it is bound to.

state        LOGIN                          other commands
out          begins (pending)               as ``access.BEFORE_LOGIN``, or all where anonymous is allowed
pending      waits                          wait
in           BadState                       while the account is active
in, over     BadState                       the first is refused, and the session ends
out, after MAX_TRIES refusals: the session ends
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Mapping

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.messages import Command, Reply, ReplyKind

from .access import BEFORE_LOGIN
from .accounts.authenticator import Authenticator, LoggedIn, LoginRequest
from .accounts.records import Epoch, mark_of
from .accounts.store import LoginMode

MAX_TRIES = 10
_NONCE_BYTES = 16


class LoginGate:
    """See the module. On the event loop only. Without an authenticator there are no accounts, and nothing to do."""

    __slots__ = (
        "_authenticator", "_certificate_sha256", "_client_nonce", "_epoch", "_nonce", "_peer", "_session", "_tries",
        "is_over", "is_pending", "user",
    )  # fmt: skip

    def __init__(
        self,
        authenticator: Authenticator | None,
        certificate_sha256: bytes | None,
        peer: object,
        session: int | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._certificate_sha256 = certificate_sha256
        self._peer = peer
        self._session = session
        self._nonce = secrets.token_hex(_NONCE_BYTES)
        self._client_nonce = ""
        self._tries = 0
        self.is_pending = False
        self.user: str | None = None
        """Who logged in."""
        self._epoch: Epoch | None = None
        self.is_over = False
        """Whether the login was found to hold no more: the session is to end."""

    @property
    def is_owed(self) -> bool:
        """Whether nothing can be done before a login."""
        return self.user is None and self._mode is LoginMode.REQUIRED

    @property
    def ticket_epoch(self) -> int:
        """What the tickets of the session carry: the epoch of its login, not the account's present one."""
        return mark_of(self._epoch)

    @property
    def is_spent(self) -> bool:
        """Whether it was tried in vain too often: the session is to end."""
        return self._tries >= MAX_TRIES

    @property
    def _mode(self) -> LoginMode:
        return LoginMode.NONE if self._authenticator is None else self._authenticator.store.login_mode

    def greet(self, options: Mapping[str, str]) -> dict[str, str]:
        """The keys for the greeting, from those of the client's."""
        self._client_nonce = options.get("nonce", "")
        keys = {"nonce": self._nonce}
        mode = self._mode
        if mode is not LoginMode.NONE:
            keys["login"] = mode.value
        return keys

    def refusal_of(self, command: Command) -> Refusal | None:
        """Why a command other than LOGIN is not even looked at; None when it may be."""
        if self._authenticator is None or command.verb in BEFORE_LOGIN:
            return None
        if self.user is None:
            return Refusal(ErrorCode.LOGIN_REQUIRED) if self._mode is LoginMode.REQUIRED else None
        if not self._authenticator.store.is_active(self.user):
            return Refusal(ErrorCode.DENIED, "the account was disabled or removed")
        if self.is_stale:
            self.is_over = True
            return Refusal(ErrorCode.LOGIN_REQUIRED, "the login holds no more")
        return None

    @property
    def is_stale(self) -> bool:
        """Whether somebody is logged in whose login holds no more, though the account is active."""
        if self._authenticator is None or self.user is None:
            return False
        store = self._authenticator.store
        return store.is_active(self.user) and not store.holds(self.user, self._epoch)

    def begin(self, command: Command, on_outcome: Callable[[LoggedIn | Refusal], None]) -> Refusal | None:
        """Begin a LOGIN; ``on_outcome`` is called once, on any thread, unless it is refused at once."""
        if self.user is not None:
            return Refusal(ErrorCode.BAD_STATE, "logged in already")
        if self._certificate_sha256 is None and not is_loopback(self._peer):
            return self._refuse(Refusal(ErrorCode.TLS_REQUIRED))
        if self._authenticator is None:
            return self._refuse(Refusal(ErrorCode.LOGIN_FAILED, "there are no accounts"))
        self.is_pending = True
        request = LoginRequest(
            method=command.words[0],
            options=command.options,
            server_nonce=self._nonce,
            client_nonce=self._client_nonce,
            certificate_sha256=self._certificate_sha256,
            peer=self._peer,
            session=self._session,
        )
        self._authenticator.authenticate(request, on_outcome)
        return None

    def put_off(self, login: LoggedIn, refusal: Refusal) -> None:
        """A login that succeeded is refused after all, as there are too many sessions; :meth:`settle` follows."""
        if self._authenticator is not None:
            self._authenticator.conclude(login, refusal)

    def settle(self, command_id: int, outcome: LoggedIn | Refusal) -> Reply:
        """The reply to a LOGIN whose outcome came."""
        self.is_pending = False
        if isinstance(outcome, Refusal):
            self._refuse(outcome)
            return Reply(command_id, ReplyKind.ERROR, code=outcome.code, retry_seconds=outcome.retry_seconds)
        if self._authenticator is not None:
            self._authenticator.conclude(outcome)
        self.user = outcome.user
        self._epoch = outcome.epoch
        home = {} if outcome.home is None else {"home": outcome.home}
        return Reply(command_id, ReplyKind.OK, options={"user": outcome.user, **home})

    def _refuse(self, refusal: Refusal) -> Refusal:
        # A server that was too busy to look leaves the client its tries; the time for a login ends those too.
        if refusal.code is not ErrorCode.BUSY:
            self._tries += 1
        return refusal


def is_loopback(peer: object) -> bool:
    """Whether a peer address is of this machine; what is no address is not."""
    if not isinstance(peer, tuple) or not peer:
        return False
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

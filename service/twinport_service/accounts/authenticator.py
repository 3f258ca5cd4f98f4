"""Logging in: one request in, one outcome out. Passwords and keys are checked in threads of their own.

``LoginFailed`` says no more than that; why is for the log alone, and there a user's name is written only if there is
such an account, because people type their password where the name belongs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from twinport_protocol.auth import SshSignature, login_message, parse_user
from twinport_protocol.errors import ErrorCode, ProtocolError, Refusal

from twinport_service.audit import OK, AuditEntry, AuditEvent, Record, discard
from twinport_service.log import get_log
from twinport_service.rationed_log import RationedLog

from .held_answers import FirstAnswer, HeldAnswers
from .keys import verify_signature
from .passwords import PasswordDesk
from .records import Account, Epoch
from .store import AccountStore
from .throttle import Throttle
from .tokens import check_token


@dataclass(frozen=True)
class LoginRequest:
    """A LOGIN and what it is bound to. ``certificate_sha256`` is None on a plaintext connection."""

    method: str
    options: Mapping[str, str] = field(repr=False)
    server_nonce: str
    client_nonce: str
    certificate_sha256: bytes | None
    peer: object
    session: int | None = None
    """The number of the connection, for the audit log."""


@dataclass(frozen=True)
class LoggedIn:
    """A login that succeeded. ``entry`` is its line for the audit log, for :meth:`Authenticator.conclude`."""

    user: str
    home: str | None
    entry: AuditEntry = field(default=AuditEntry(AuditEvent.LOGIN), repr=False, compare=False)
    epoch: Epoch | None = field(default=None, compare=False)
    """How long it holds: see ``AccountStore.holds``. None for as long as the account is active."""


_METHODS = frozenset({"password", "key", "token"})
OnOutcome = Callable[["LoggedIn | Refusal"], None]


class _Failed(Exception):  # noqa: N818  an outcome, not an error of the program
    """Why a login is refused, for the log."""


class Authenticator:
    """See the module. ``now`` is the wall clock that keys and tokens expire by."""

    def __init__(
        self,
        store: AccountStore,
        throttle: Throttle,
        passwords: PasswordDesk | None = None,
        *,
        now: Callable[[], float] = time.time,
        record: Record = discard,
        held: HeldAnswers | None = None,
    ) -> None:
        self._record = record
        self._rationed = RationedLog()
        self.store = store
        self._throttle = throttle
        self._passwords = passwords or PasswordDesk(store.replace_password_hash)
        self._now = now
        self._held = held or HeldAnswers()
        # One thread: a check takes a fraction of a millisecond, and must neither hold up the event loop nor stand
        # behind passwords.
        self._keys = ThreadPoolExecutor(1, thread_name_prefix="login-key")

    def authenticate(self, request: LoginRequest, on_outcome: OnOutcome) -> None:
        """Begin; ``on_outcome`` is called once, now or later, on any thread. Does not block."""
        try:
            if request.method == "password":
                self._by_password(request, on_outcome)
            elif request.method == "key":
                self._keys.submit(self._run, self._by_key, request, on_outcome)
            elif request.method == "token":
                self._run(self._by_token, request, on_outcome)
            else:
                on_outcome(Refusal(ErrorCode.BAD_REQUEST, "unknown method"))
        except RuntimeError:  # the threads have ended
            on_outcome(Refusal(ErrorCode.SHUTTING_DOWN))
        except (Refusal, ProtocolError) as error:
            on_outcome(self._refused(request, error))

    def conclude(self, login: LoggedIn, refusal: Refusal | None = None) -> None:
        """Write down a login that succeeded, once it is certain that its user may come in; or why that is not so."""
        self._record(login.entry if refusal is None else login.entry._replace(outcome=refusal.code.value))

    def close(self) -> None:
        """End the threads, once what waits was checked."""
        self._keys.shutdown(wait=True)
        self._passwords.close()
        self._held.close()

    def _run(self, check: Callable[[LoginRequest], Account], request: LoginRequest, on_outcome: OnOutcome) -> None:
        try:
            outcome: LoggedIn | Refusal = self._accepted(request, check(request))
        except _Failed as failed:
            outcome = self._failed(request, str(failed))
        except (Refusal, ProtocolError) as error:
            outcome = self._refused(request, error)
        except Exception:
            get_log().exception("[LOGIN] Internal error", peer=request.peer)
            outcome = Refusal(ErrorCode.INTERNAL)
        on_outcome(outcome)

    # the methods -----------------------------------------------------------------------------------------------------

    def _by_password(self, request: LoginRequest, on_outcome: OnOutcome) -> None:
        user = parse_user(request.options.get("user", ""))
        account = self._active(user)
        tried = self._throttle.admit(user, request.peer)
        password_hash = None if account is None else account.password_hash
        if tried.refusal is not None:
            on_outcome = self._hold(request, tried.refusal, on_outcome)
            if not tried.is_checked:
                self._refused(request, tried.refusal)
                return

        def on_done(is_right: bool) -> None:
            # Disabled or changed while it was hashed: what counts is what stands now.
            current = self._active(user)
            same = account is not None and current is not None and current.epoch == account.epoch
            good = is_right and same
            self._throttle.settle(tried, is_good=good)
            self._run(lambda _: self._judge(current, good), request, on_outcome)

        try:
            self._passwords.submit(user, password_hash, request.options.get("password", ""), on_done)
        except Refusal:
            self._throttle.withdraw(tried)
            if tried.refusal is None:
                raise
            self._refused(request, tried.refusal)

    def _hold(self, request: LoginRequest, refusal: Refusal, on_outcome: OnOutcome) -> OnOutcome:
        """Give the refusal after a fixed time, unless a login succeeds before that; a login that fails is not told, as
        that would tell that the password was looked at: the name of somebody who is trusted at that network."""
        first = FirstAnswer(on_outcome)
        self._held.hold(lambda: first.give(refusal))

        def on_checked(outcome: LoggedIn | Refusal) -> None:
            if isinstance(outcome, LoggedIn) and not first.give(outcome):
                self._refused(request, refusal)  # too late

        return on_checked

    def _judge(self, account: Account | None, good: bool) -> Account:
        if account is None or not good:
            raise _Failed("no such account" if account is None else "another password")
        return account

    def _by_key(self, request: LoginRequest) -> Account:
        user = parse_user(request.options.get("user", ""))
        signature = SshSignature.from_word(request.options.get("signature", ""))
        message = login_message(user, request.server_nonce, request.client_nonce, request.certificate_sha256)
        # First the signature, then whose it is: so unknown and known users cost the same.
        is_good = verify_signature(signature, message)
        account = self._active(user)
        known = [key for key in (account.keys if account else ()) if key.blob == signature.public_key]
        if account is None or not known:
            raise _Failed("no such account" if account is None else "a key that the account does not have")
        if not is_good:
            raise _Failed("a signature that is not of this login")
        if known[0].expires is not None and self._now() >= known[0].expires:
            raise _Failed("the key has expired")
        return account

    def _by_token(self, request: LoginRequest) -> Account:
        token = check_token(request.options.get("token", ""), self.store.token, self._now())
        if token is None:
            raise _Failed("no valid token")
        account = self._active(token.user)
        if account is None or request.options.get("user", token.user) != token.user:
            raise _Failed("a token of a disabled account" if account is None else "another user's token")
        # The account may be read after the token was revoked: the login would hold from then on.
        known = self.store.token(token.id)
        if known is None or known.is_revoked:
            raise _Failed("no valid token")
        return account

    def _active(self, user: str) -> Account | None:
        account = self.store.account(user)
        return None if account is None or account.is_disabled else account

    # outcomes --------------------------------------------------------------------------------------------------------

    def _name(self, request: LoginRequest) -> str:
        user = request.options.get("user", "")
        return user if self.store.account(user) is not None else "(unknown)"

    def _accepted(self, request: LoginRequest, account: Account) -> LoggedIn:
        get_log().info(f"[LOGIN] {account.name} by {request.method} from {request.peer}", peer=request.peer)
        entry = self._entry(AuditEvent.LOGIN, request, account.name, OK)
        return LoggedIn(account.name, account.home, entry, account.epoch)

    def _failed(self, request: LoginRequest, why: str) -> Refusal:
        user = self._name(request)
        get_log().warning(
            f"[LOGIN] Refused from {request.peer}", peer=request.peer, user=user, method=request.method, why=why
        )
        self._note(AuditEvent.LOGIN, request, user, ErrorCode.LOGIN_FAILED.value)
        return Refusal(ErrorCode.LOGIN_FAILED, why)

    def _refused(self, request: LoginRequest, error: Refusal | ProtocolError) -> Refusal:
        if error.code is ErrorCode.LOGIN_FAILED:
            return self._failed(request, error.detail)
        # However fast somebody asks while locked: that costs a line a second.
        self._rationed.info("[LOGIN] Put off", user=self._name(request), code=error.code.value, peer=request.peer)
        event = AuditEvent.LOCK if error.code is ErrorCode.LOCKED else AuditEvent.LOGIN
        self._note(event, request, self._name(request), error.code.value)
        return error if isinstance(error, Refusal) else Refusal(error.code, error.detail)

    def _note(self, event: AuditEvent, request: LoginRequest, user: str, outcome: str) -> None:
        self._record(self._entry(event, request, user, outcome))

    @staticmethod
    def _entry(event: AuditEvent, request: LoginRequest, user: str, outcome: str) -> AuditEntry:
        method = request.method if request.method in _METHODS else None
        return AuditEntry(event, user, request.peer, outcome=outcome, session=request.session, method=method)

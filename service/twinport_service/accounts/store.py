"""The accounts as the server asks for them: in memory, never waiting for the disk, and at most a moment old.

A thread asks the database every ``watch_seconds`` whether somebody changed it (a look at shared memory, some
microseconds) and then reads all accounts anew; and whether another file has its name by now, a backup that was put in
its place, say, which counts from then on. What cannot be read leaves the last good state in force and is reported.

A server that once saw an account never falls back to letting everybody do everything, not even when the last account
is removed: that takes a new start.
"""

from __future__ import annotations

import enum
import threading
from pathlib import Path

from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.access import ANONYMOUS, Act
from twinport_service.audit import AuditLog
from twinport_service.log import get_log
from twinport_service.quota import UNLIMITED, Quota
from twinport_service.rationed_log import RationedLog

from .changes import ChangeDesk
from .database import AccountDatabase, AccountError, AccountsUnusable
from .grants import is_allowed
from .records import Account, Epoch, Token

FILE_NAME = "accounts.db"
WATCH_SECONDS = 0.2
_COMPLAINT_SECONDS = 60.0


class LoginMode(enum.Enum):
    """What the greeting says about logging in."""

    NONE = "none"
    OFFERED = "offered"
    REQUIRED = "required"


class AccountStore:
    """See the module. Raises ``AccountsUnusable`` when the database cannot be used at the start. Look-ups are safe on
    any thread, the event loop's included. With ``open_to_all`` whoever does not log in may do everything."""

    def __init__(self, path: Path, *, watch_seconds: float = WATCH_SECONDS, open_to_all: bool = False) -> None:
        self._open_to_all = open_to_all
        self._watch_seconds = watch_seconds
        self._lock = threading.Lock()
        self._complaints = RationedLog(_COMPLAINT_SECONDS)
        self._database = AccountDatabase(path)
        try:
            self._version = self._database.version()
            self._snapshot = self._database.load()
        except BaseException:
            self._database.close()
            raise
        self._has_accounts = bool(self._snapshot.accounts)
        self._failed = False
        self._revision = 0
        self._desk: ChangeDesk | None = None
        self._is_unsettled = True
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="accounts-watch", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._ended.wait(self._watch_seconds):
            self.refresh()
            if self._is_unsettled and self._desk is not None:
                self._is_unsettled = False  # before: what is changed meanwhile makes it true again
                if not self._settle(self._desk):
                    self._is_unsettled = True

    def record_changes(self, audit: AuditLog) -> None:
        """From now on and until :meth:`close` put into ``audit`` what is changed about accounts, and what was while
        nobody did."""
        self._desk = ChangeDesk(audit)

    def _settle(self, desk: ChangeDesk) -> bool:
        """Put the changes into the audit log, and all into the one file; False where it is to be tried again."""
        try:
            with self._lock:
                changes = self._database.pending_changes()
            ids = desk.take(changes)
            with self._lock:
                if ids:
                    self._database.remove_changes(ids)
                    desk.forget(ids)
                return self._database.gather() and len(ids) == len(changes)
        except AccountsUnusable as error:
            self._complaints.error("[ACCOUNTS] Changes are not in the audit log yet", cause=str(error))
            return False

    def refresh(self, *, force: bool = False) -> None:
        """Read the accounts anew if they changed, or in any case with ``force``. Blocks; never raises."""
        with self._lock:
            if self._ended.is_set():
                return
            try:
                if self._database.is_replaced():
                    self._follow()
                    force = True
                version = self._database.version()
                if version == self._version and not force and not self._failed:
                    return
                snapshot = self._database.load()
            except AccountsUnusable as error:
                if not self._failed:
                    get_log().error("[ACCOUNTS] Cannot be read; what was known stays in force", cause=str(error))
                self._failed = True
                return
            if self._failed:
                get_log().info("[ACCOUNTS] Can be read again")
            self._failed = False
            self._is_unsettled = True
            self._version = version
            if snapshot.accounts and not self._has_accounts:
                get_log().warning("[ACCOUNTS] The first account: from now on only what is granted is allowed")
                self._has_accounts = True  # before the snapshot: in between nothing is allowed rather than everything
            self._snapshot = snapshot
            self._revision += 1  # behind it: whoever sees the number sees the accounts

    def _follow(self) -> None:
        """Go on with the file that has the name now."""
        self._database.abandon()
        self._database = AccountDatabase(self._database.path, make=False)
        get_log().warning("[ACCOUNTS] accounts.db was replaced: the accounts in the new file count from now on")
        if self._desk is not None:
            self._desk.note_replaced()

    def close(self) -> None:
        """Stop watching, record what was changed last, and release the database; harmless when repeated. Look-ups
        answer as before."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._watcher.join()
        if self._desk is not None:
            self._settle(self._desk)
        with self._lock:
            self._database.close()

    # look-ups --------------------------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The ``standing.Standing`` of these accounts: a number that grows with every change that was seen."""
        return self._revision

    @property
    def has_accounts(self) -> bool:
        """Whether there are accounts, or were any since the start."""
        return self._has_accounts

    @property
    def allows_anonymous(self) -> bool:
        """Whether those who do not log in may do something."""
        return self._open_to_all or not self._has_accounts or ANONYMOUS in self._snapshot.rules

    @property
    def login_mode(self) -> LoginMode:
        """What the greeting says."""
        if not self._has_accounts:
            return LoginMode.NONE
        return LoginMode.OFFERED if self.allows_anonymous else LoginMode.REQUIRED

    def account(self, name: str) -> Account | None:
        """An account, disabled or not."""
        return self._snapshot.accounts.get(name)

    def token(self, token_id: str) -> Token | None:
        """A token by its public id, revoked or not."""
        return self._snapshot.tokens.get(token_id)

    def is_active(self, user: str) -> bool:
        """Whether the user has an account that is not disabled. Without accounts everybody has."""
        if self._open_to_all and user == ANONYMOUS:
            return True
        return not self._has_accounts or user in self._snapshot.rules

    def holds(self, user: str, epoch: Epoch | None) -> bool:
        """Whether a login of the user in that epoch still holds: since then the account was not removed, disabled or
        enabled, its password not changed, and no key or token taken away from it."""
        account = self._snapshot.accounts.get(user)
        return epoch is None or (account is not None and account.epoch == epoch)

    def require_ticket(self, user: str, epoch: int) -> None:
        """The ``standing.Standing`` of these accounts. A ticket without a login ends with no account: what its holder
        may do is decided."""
        if not self._has_accounts or user == ANONYMOUS:
            return
        mark = self._snapshot.marks.get(user)
        if mark is None:
            raise Refusal(ErrorCode.DENIED, "the account was disabled or removed")
        if mark != epoch:
            raise Refusal(ErrorCode.TICKET_REVOKED, f"a ticket of an earlier login of {user}")

    def decide(self, user: str, act: Act, path: str) -> bool:
        """The ``access.Decide`` of these accounts."""
        if not self._has_accounts or (self._open_to_all and user == ANONYMOUS):
            return True
        return is_allowed(self._snapshot.rules.get(user, ()), act, path)

    def quota_of(self, user: str) -> Quota:
        """The ``quota.QuotaOf`` of these accounts."""
        account = self._snapshot.accounts.get(user)
        return UNLIMITED if account is None else account.quota

    def rate_of(self, user: str) -> int | None:
        """The most bytes per second of a user, over all connections; None is no bound of its own."""
        account = self._snapshot.accounts.get(user)
        return None if account is None else account.rate or None

    def has_rates(self) -> bool:
        """Whether any user has such a bound."""
        return self._snapshot.has_rates

    # what the server itself changes ----------------------------------------------------------------------------------

    def replace_password_hash(self, name: str, old: str, new: str) -> None:
        """Keep a password under newer parameters, unless it was changed meanwhile. Blocks."""
        with self._lock:
            if self._ended.is_set():
                return
            try:
                self._database.set_password(name, new, only_if=old)
            except (AccountError, AccountsUnusable) as error:
                get_log().warning("[ACCOUNTS] A password keeps its old parameters", user=name, cause=str(error))
                return
        self.refresh(force=True)

"""Passwords: argon2id, in at most two threads with a short queue, so that no number of guesses takes the machine.

The parameters are OWASP's first choice for argon2id (19 MiB, two passes, one lane). argon2-cffi releases the GIL while
it hashes. Whoever is unknown, disabled or without a password is checked against a hash that nobody has the password
of, so that every refusal costs the same.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from twinport_protocol.errors import ErrorCode, Refusal

from twinport_service.log import get_log

TIME_COST = 2
MEMORY_KIB = 19 * 1024
WORKERS = 2
QUEUE = 64
BUSY_SECONDS = 2
MIN_CHARACTERS = 8
MAX_CHARACTERS = 1024

Replace = Callable[[str, str, str], None]
"""``replace(user, old_hash, new_hash)``: keep the password under the parameters of today."""


class PasswordRejected(ValueError):  # noqa: N818  named by what happened to the password
    """A new password cannot be used; the message says why."""


def make_hasher(*, time_cost: int = TIME_COST, memory_kib: int = MEMORY_KIB) -> PasswordHasher:
    """An argon2id hasher with one lane."""
    return PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=1, type=Type.ID)


def hash_password(password: str) -> str:
    """The hash of a new password. ``PasswordRejected`` for one that is too short, too long or not one line."""
    if len(password) < MIN_CHARACTERS:
        raise PasswordRejected(f"the password has fewer than {MIN_CHARACTERS} characters")
    if len(password) > MAX_CHARACTERS or not password.isprintable():
        raise PasswordRejected(f"a password is one line of at most {MAX_CHARACTERS} printable characters")
    return make_hasher().hash(password)


class PasswordDesk:
    """Checks passwords in threads of its own. ``replace`` is called, on one of them, when a good password was hashed
    with other parameters than today's."""

    def __init__(
        self,
        replace: Replace,
        *,
        hasher: PasswordHasher | None = None,
        workers: int = WORKERS,
        queue: int = QUEUE,
    ) -> None:
        self._hasher = hasher or make_hasher()
        self._nobodys_hash = self._hasher.hash(secrets.token_urlsafe())
        self._replace = replace
        self._capacity = workers + queue
        self._lock = threading.Lock()
        self._under_way = 0
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="password")

    def submit(self, user: str, password_hash: str | None, password: str, on_done: Callable[[bool], None]) -> None:
        """Check a password; ``on_done`` is told, on another thread, whether it is right. ``password_hash`` is None for
        whoever cannot log in by password. ``Refusal(Busy)`` when too many wait."""
        with self._lock:
            if self._under_way >= self._capacity:
                raise Refusal(ErrorCode.BUSY, "too many passwords are being checked", BUSY_SECONDS)
            self._under_way += 1
        try:
            self._executor.submit(self._run, user, password_hash, password, on_done)
        except RuntimeError:
            raise Refusal(ErrorCode.SHUTTING_DOWN) from None

    def _run(self, user: str, password_hash: str | None, password: str, on_done: Callable[[bool], None]) -> None:
        is_right = False
        try:
            is_right = self.check(user, password_hash, password)
        except Exception:
            get_log().exception("[LOGIN] Internal error")
        finally:
            with self._lock:
                self._under_way -= 1
            on_done(is_right)

    def check(self, user: str, password_hash: str | None, password: str) -> bool:
        """Whether the password is right; takes as long as a hash. A hash that cannot be read is never right, and
        reported."""
        try:
            self._hasher.verify(self._nobodys_hash if password_hash is None else password_hash, password)
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError, UnicodeError):
            get_log().error("[LOGIN] A stored password hash is damaged; set the password anew", user=user)
            self._spend(password)
            return False
        if password_hash is None:
            return False
        if self._hasher.check_needs_rehash(password_hash):
            self._replace(user, password_hash, self._hasher.hash(password))
        return True

    def _spend(self, password: str) -> None:
        """As much time as a refusal takes."""
        try:
            self._hasher.verify(self._nobodys_hash, password)
        except (VerificationError, UnicodeError):
            return

    def close(self) -> None:
        """End the threads; what waits is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)

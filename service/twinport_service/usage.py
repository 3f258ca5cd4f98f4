"""Usage: what each user has stored and has reserved, and the one place where a quota is held.

What is stored and what unfinished uploads are going to need are counted together, under one lock, so their sum is
never above a quota, not by a byte and not for a moment. An upload holds its reservation from ``UPLOAD`` until it is
published (its room then is the file's) or forgotten, whatever the quota becomes meanwhile. While a file is being
replaced both versions count, because both are there; its former owner gets the room back with the publication.

Nothing here is written down: at the start the storage counts its files (``load``) and the ledger its open uploads
(``restore``). So a small file costs no transaction, and no crash can make the figures wrong.

A file belongs to whom published it, and stays his when it is moved. Files that came by other means are nobody's. A
user ``name/dialect`` shares the account of ``name``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from twinport_protocol.errors import ErrorCode, Refusal

from .quota import UNLIMITED, Quota, QuotaOf

_RETRY_SECONDS = 1


class Owned(NamedTuple):
    """A stored file as far as usage goes."""

    user: str
    size_bytes: int


class Stored(NamedTuple):
    """All stored files of one user."""

    size_bytes: int
    files: int


@dataclass(frozen=True)
class Usage:
    """The figures of one user at one moment, with the quota that holds for the next upload."""

    stored: Stored
    reserved_bytes: int
    open_uploads: int
    quota: Quota


class UsageKeeper(Protocol):
    """The contract, for the embedded book and for a database shared by many nodes. Thread-safe; never waits long."""

    def reserve(self, upload_id: bytes, user: str, size_bytes: int) -> None:
        """Take room for one file; once, however often it is asked. ``QuotaExceeded``; ``Busy`` when the unfinished
        uploads of the user hold too much."""

    def restore(self, upload_id: bytes, user: str, size_bytes: int) -> None:
        """The same without asking: an upload that was opened before a restart."""

    def release(self, upload_id: bytes) -> None:
        """Give an upload's room back. Harmless when it holds none: published, or released before."""

    def publish(self, upload_id: bytes, published: Owned, replaced: Owned | None) -> None:
        """A file got its name, and perhaps took it from another: the reservation becomes a stored file."""

    def removed(self, files: Iterable[Owned]) -> None:
        """Files are gone."""

    def resized(self, former: Owned, size_bytes: int) -> None:
        """A stored file was found to have another size now."""

    def load(self, stored: Mapping[str, Stored]) -> None:
        """What is stored in all, in place of what was counted before."""

    def usage_of(self, user: str) -> Usage:
        """The figures of a user."""


class _Account:
    """One user's figures."""

    __slots__ = ("reserved_bytes", "reserved_files", "stored_bytes", "stored_files")

    def __init__(self) -> None:
        self.stored_bytes = 0
        self.stored_files = 0
        self.reserved_bytes = 0
        self.reserved_files = 0

    @property
    def is_empty(self) -> bool:
        return not (self.stored_files or self.reserved_files or self.stored_bytes or self.reserved_bytes)


class UsageBook:
    """The contract in memory, which is all that one process on one root needs.

    ``quota_of`` is asked at every reservation, so a changed quota holds from the next upload on.
    ``max_reserved_bytes`` bounds what the unfinished uploads of one user hold together."""

    def __init__(self, quota_of: QuotaOf = lambda user: UNLIMITED, *, max_reserved_bytes: int | None = None) -> None:
        self._quota_of = quota_of
        self._max_reserved_bytes = max_reserved_bytes
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}
        self._reservations: dict[bytes, tuple[str, int]] = {}

    def reserve(self, upload_id: bytes, user: str, size_bytes: int) -> None:
        """See the contract."""
        payer = payer_of(user)
        quota = self._quota_of(payer)
        with self._lock:
            if upload_id not in self._reservations:
                self._check(self._accounts.get(payer) or _Account(), quota, size_bytes)
                self._take(upload_id, payer, size_bytes)

    def _check(self, account: _Account, quota: Quota, size_bytes: int) -> None:
        held_bytes = account.stored_bytes + account.reserved_bytes
        if quota.max_bytes is not None and held_bytes + size_bytes > quota.max_bytes:
            raise Refusal(ErrorCode.QUOTA_EXCEEDED, f"{held_bytes} of {quota.max_bytes} bytes are taken")
        held_files = account.stored_files + account.reserved_files
        if quota.max_files is not None and held_files + 1 > quota.max_files:
            raise Refusal(ErrorCode.QUOTA_EXCEEDED, f"{held_files} of {quota.max_files} files are taken")
        if self._max_reserved_bytes is not None and account.reserved_bytes + size_bytes > self._max_reserved_bytes:
            if size_bytes > self._max_reserved_bytes:  # waiting would not help
                raise Refusal(ErrorCode.QUOTA_EXCEEDED, f"an upload may reserve {self._max_reserved_bytes} bytes")
            raise Refusal(ErrorCode.BUSY, "too much is reserved by unfinished uploads", retry_seconds=_RETRY_SECONDS)

    def restore(self, upload_id: bytes, user: str, size_bytes: int) -> None:
        """See the contract."""
        with self._lock:
            if upload_id not in self._reservations:
                self._take(upload_id, payer_of(user), size_bytes)

    def _take(self, upload_id: bytes, payer: str, size_bytes: int) -> None:
        self._reservations[upload_id] = payer, size_bytes
        account = self._account(payer)
        account.reserved_bytes += size_bytes
        account.reserved_files += 1

    def release(self, upload_id: bytes) -> None:
        """See the contract."""
        with self._lock:
            self._release(upload_id)

    def _release(self, upload_id: bytes) -> None:
        held = self._reservations.pop(upload_id, None)
        if held is not None:
            account = self._accounts[held[0]]
            account.reserved_bytes -= held[1]
            account.reserved_files -= 1
            self._drop_empty(held[0], account)

    def publish(self, upload_id: bytes, published: Owned, replaced: Owned | None) -> None:
        """See the contract."""
        with self._lock:
            self._release(upload_id)
            account = self._account(payer_of(published.user))
            account.stored_bytes += published.size_bytes
            account.stored_files += 1
            if replaced is not None:
                self._remove(replaced)

    def removed(self, files: Iterable[Owned]) -> None:
        """See the contract."""
        with self._lock:
            for owned in files:
                self._remove(owned)

    def _remove(self, owned: Owned) -> None:
        payer = payer_of(owned.user)
        account = self._account(payer)
        account.stored_bytes -= owned.size_bytes
        account.stored_files -= 1
        self._drop_empty(payer, account)

    def resized(self, former: Owned, size_bytes: int) -> None:
        """See the contract."""
        with self._lock:
            self._account(payer_of(former.user)).stored_bytes += size_bytes - former.size_bytes

    def load(self, stored: Mapping[str, Stored]) -> None:
        """See the contract."""
        with self._lock:
            for account in self._accounts.values():
                account.stored_bytes = account.stored_files = 0
            for user, figures in stored.items():
                account = self._account(payer_of(user))
                account.stored_bytes += figures.size_bytes
                account.stored_files += figures.files
            for payer, account in list(self._accounts.items()):
                self._drop_empty(payer, account)

    def usage_of(self, user: str) -> Usage:
        """See the contract."""
        payer = payer_of(user)
        quota = self._quota_of(payer)
        with self._lock:
            account = self._accounts.get(payer) or _Account()
            stored = Stored(account.stored_bytes, account.stored_files)
            return Usage(stored, account.reserved_bytes, account.reserved_files, quota)

    def _account(self, payer: str) -> _Account:
        account = self._accounts.get(payer)
        if account is None:
            account = self._accounts[payer] = _Account()
        return account

    def _drop_empty(self, payer: str, account: _Account) -> None:
        if account.is_empty:
            self._accounts.pop(payer, None)


def payer_of(user: str) -> str:
    """Whose account a user's files are counted in: the name before a slash, which no account's name has."""
    return user.partition("/")[0]

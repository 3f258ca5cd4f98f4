"""What is known of accounts, as values: one with its keys, tokens and grants, and all at one moment."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from twinport_service.quota import UNLIMITED, Quota

from .grants import Grant, home_grants


@dataclass(frozen=True)
class Key:
    """A public key that logs in. ``blob`` is its wire form; ``expires`` is in seconds since the epoch."""

    blob: bytes
    comment: str = ""
    expires: float | None = None


@dataclass(frozen=True)
class Token:
    """A long-lived token: its public id, and the SHA-256 of the whole of it."""

    id: str
    user: str
    digest: bytes = field(repr=False)
    label: str
    created: float
    expires: float | None = None
    is_revoked: bool = False


Epoch = tuple[float, int]
"""When an account was made, and how often it was changed in a way that ends what was logged in."""


def mark_of(epoch: Epoch | None) -> int:
    """What stands for an epoch in a ticket: 64 bits that every node with the same accounts comes to, and that do not
    tell when the account was made or how often it was changed. 0 is nobody's account, and no account's."""
    if epoch is None:
        return 0
    created, changes = epoch
    return int.from_bytes(hashlib.sha256(struct.pack("!dQ", created, changes)).digest()[:8], "big") or 1


@dataclass(frozen=True)
class Account:
    """A user. Without a password hash no password logs in; ``home`` is None for none; ``rate`` bounds bytes per
    second."""

    name: str
    created: float
    password_hash: str | None = field(default=None, repr=False)
    is_disabled: bool = False
    home: str | None = None
    quota: Quota = UNLIMITED
    rate: int | None = None
    keys: tuple[Key, ...] = ()
    tokens: tuple[Token, ...] = ()
    grants: tuple[Grant, ...] = ()
    """As granted; what the home means is not among them."""
    changes: int = 0
    """How often a way to log in was taken away from it, or it was disabled or enabled."""

    @property
    def epoch(self) -> Epoch:
        """What a login holds for: another one once the account is another, or a way to log in was taken away."""
        return self.created, self.changes

    @property
    def all_grants(self) -> tuple[Grant, ...]:
        """With what the home means."""
        return self.grants if self.home is None else (*home_grants(self.home), *self.grants)


@dataclass(frozen=True)
class Snapshot:
    """All accounts as they stood at one moment."""

    accounts: Mapping[str, Account]
    tokens: Mapping[str, Token]
    rules: Mapping[str, tuple[Grant, ...]]
    """The grants of every account that is not disabled."""
    marks: Mapping[str, int] = field(default_factory=dict)
    """What a ticket of each of these must carry: see :func:`mark_of`."""
    has_rates: bool = False
    """Whether any account has a bound of bytes per second."""

    @classmethod
    def of(cls, accounts: Mapping[str, Account]) -> Snapshot:
        """With the tables that look-ups need."""
        return cls(
            MappingProxyType(dict(accounts)),
            {token.id: token for account in accounts.values() for token in account.tokens},
            {account.name: account.all_grants for account in accounts.values() if not account.is_disabled},
            {account.name: mark_of(account.epoch) for account in accounts.values() if not account.is_disabled},
            any(account.rate for account in accounts.values()),
        )


NOBODY = Snapshot.of({})

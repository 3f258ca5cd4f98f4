"""Whether tickets still stand: what ends them beside their own expiry, as those who are shown tickets ask for it."""

from __future__ import annotations

from typing import Protocol


class Standing(Protocol):
    """Both are asked on any thread and never wait for a disk."""

    @property
    def revision(self) -> int:
        """Another number whenever an answer to anything about users, here or of ``access.Decide``, may be another."""

    def require_ticket(self, user: str, epoch: int) -> None:
        """``Denied`` when the user has no account any more, or a disabled one; ``TicketRevoked`` when the account has
        left the epoch of the ticket."""


class NoAccounts:
    """Where there are no accounts, a ticket holds until it expires."""

    revision = 0

    def require_ticket(self, user: str, epoch: int) -> None:
        """It stands."""


NO_ACCOUNTS = NoAccounts()

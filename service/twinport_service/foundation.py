"""What a server stands on; given from outside, so that several nodes can stand on one."""

from __future__ import annotations

from dataclasses import dataclass, field

from twinport_protocol.tickets import TicketKeys

from .accounts.store import AccountStore
from .audit import AuditLog
from .ledger import Ledger
from .storage.contract import Storage
from .tls import TlsKeeper


@dataclass(frozen=True)
class Foundation:
    """Storage, ledger, keys, and what else a node shares with others. :meth:`close` it when the last has stopped."""

    storage: Storage
    ledger: Ledger
    keys: TicketKeys
    tls: TlsKeeper | None = field(default=None, kw_only=True)
    min_free_bytes: int = 0
    """What uploads and new directories leave free on the disk."""
    min_free_files: int = 0
    """How many inodes they leave free."""
    accounts: AccountStore | None = None
    """Who may log in, and what each may do; without it everybody may do everything."""
    audit: AuditLog | None = None
    """Where it is written down who did what."""

    def begin_recording(self) -> None:
        """From now on the audit log is told what is changed about accounts: behind the line of a server's start."""
        if self.accounts is not None and self.audit is not None:
            self.accounts.record_changes(self.audit)

    def end_recording(self) -> None:
        """The last changes, before the line of a server's end."""
        if self.accounts is not None:
            self.accounts.close()

    def close(self) -> None:
        """Close all of it. Blocks for what is under way."""
        self.storage.close()
        self.ledger.close()
        if self.accounts is not None:
            self.accounts.close()
        if self.audit is not None:
            self.audit.close()

"""What the embedded server stands on: local disk, SQLite and a key file, all beneath one root."""

from __future__ import annotations

from contextlib import ExitStack, closing

from .config import Settings
from .identity import IdentityError, load_identity
from .ledger_sqlite import LedgerUnknown, SqliteLedger
from .server import Foundation
from .storage.local import LocalStorage
from .storage.troubles import StorageError

OWN_DIRECTORY = ".twinport"


class FoundationError(Exception):
    """The root cannot be used; the message says why and what to do."""


def open_foundation(settings: Settings) -> Foundation:
    """Open the root of the settings, making what is missing. Raises ``FoundationError``."""
    root = settings.root.absolute()
    try:
        with ExitStack() as stack:
            storage = stack.enter_context(closing(LocalStorage(root, require_used=settings.require_used)))
            own = root / OWN_DIRECTORY
            keys = load_identity(own / "identity.json")
            ledger = SqliteLedger(own / "ledger.db", max_open_uploads_per_user=settings.max_open_uploads)
            stack.pop_all()
    except (StorageError, LedgerUnknown, IdentityError) as error:
        raise FoundationError(str(error)) from None
    except OSError as error:
        advice = "Choose another --root or mend its rights."
        raise FoundationError(f"cannot use {root}: {error.strerror}. {advice}") from None
    return Foundation(storage, ledger, keys)

"""What the embedded server stands on: local disk, SQLite and a key file, all beneath one root."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from pathlib import Path

from .config import Settings
from .identity import IdentityError, load_identity
from .ledger_sqlite import LedgerUnknown, SqliteLedger
from .quota import UNLIMITED, QuotaOf
from .server import Foundation
from .storage.local import LocalStorage
from .storage.troubles import StorageError
from .usage import UsageBook

OWN_DIRECTORY = ".twinport"
MOST_FREE_BYTES = 256 * 1024 * 1024
"""The default floor of free disk, where that is less than a hundredth of the disk."""


class FoundationError(Exception):
    """The root cannot be used; the message says why and what to do."""


def open_foundation(settings: Settings, quota_of: QuotaOf = lambda user: UNLIMITED) -> Foundation:
    """Open the root of the settings, making what is missing; ``quota_of`` is asked at every upload, on the event loop.
    Raises ``FoundationError``."""
    root = settings.root.absolute()
    usage = UsageBook(quota_of, max_reserved_bytes=settings.max_reserved_bytes_per_user)
    try:
        with ExitStack() as stack:
            storage = stack.enter_context(closing(LocalStorage(root, require_used=settings.require_used, usage=usage)))
            own = root / OWN_DIRECTORY
            keys = load_identity(own / "identity.json")
            ledger = SqliteLedger(
                own / "ledger.db", max_open_uploads_per_user=settings.max_open_uploads, usage=usage
            )
            floor_bytes = settings.min_free_bytes if settings.min_free_bytes >= 0 else _default_floor(root)
            stack.pop_all()
    except (StorageError, LedgerUnknown, IdentityError) as error:
        raise FoundationError(str(error)) from None
    except OSError as error:
        advice = "Choose another --root or mend its rights."
        raise FoundationError(f"cannot use {root}: {error.strerror}. {advice}") from None
    return Foundation(storage, ledger, keys, min_free_bytes=floor_bytes)


def _default_floor(root: Path) -> int:
    return min(MOST_FREE_BYTES, shutil.disk_usage(root).total // 100)

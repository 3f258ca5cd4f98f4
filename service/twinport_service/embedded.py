"""What the embedded server stands on: local disk, SQLite and a key file, all beneath one root."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack, closing
from pathlib import Path

from .accounts.database import AccountsUnusable
from .accounts.store import FILE_NAME, AccountStore
from .audit import AuditLog
from .certificates import CertificateError, CertificateFiles, make_own, own_files, split_names
from .config import ConfigError, Settings
from .foundation import Foundation
from .identity import IdentityError, load_identity
from .ledger_sqlite import LedgerUnknown, SqliteLedger
from .quota import Quota
from .storage.local import LocalStorage
from .storage.troubles import StorageError
from .tls import TlsKeeper
from .usage import UsageBook

OWN_DIRECTORY = ".twinport"
MOST_FREE_BYTES = 256 * 1024 * 1024
"""The default floor of free disk, where that is less than a hundredth of the disk."""

MOST_FREE_FILES = 16_384
"""The same of free inodes."""


class FoundationError(Exception):
    """The root cannot be used; the message says why and what to do."""


def open_foundation(settings: Settings) -> Foundation:
    """Open the root of the settings, making what is missing. Raises ``FoundationError``."""
    root = settings.root.absolute()

    def quota_of(user: str) -> Quota:
        return accounts.quota_of(user)

    usage = UsageBook(quota_of, max_reserved_bytes=settings.max_reserved_bytes_per_user)
    try:
        with ExitStack() as stack:
            storage = stack.enter_context(closing(LocalStorage(root, require_used=settings.require_used, usage=usage)))
            own = root / OWN_DIRECTORY
            keys = load_identity(own / "identity.json")
            accounts = stack.enter_context(closing(AccountStore(own / FILE_NAME, open_to_all=settings.open)))
            tls = _open_tls(settings, own) if settings.tls != "off" else None
            ledger = stack.enter_context(
                closing(
                    SqliteLedger(own / "ledger.db", max_open_uploads_per_user=settings.max_open_uploads, usage=usage)
                )
            )
            floor_bytes = settings.min_free_bytes if settings.min_free_bytes >= 0 else _default_floor(root)
            floor_files = settings.min_free_files if settings.min_free_files >= 0 else _default_files_floor(root)
            audit = AuditLog(own / "audit", max_bytes=settings.audit_max_bytes, keep=settings.audit_keep)
            stack.pop_all()
    except (StorageError, LedgerUnknown, IdentityError, CertificateError, AccountsUnusable) as error:
        raise FoundationError(str(error)) from None
    except OSError as error:
        advice = "Choose another --root or mend its rights."
        raise FoundationError(f"cannot use {root}: {error.strerror}. {advice}") from None
    return Foundation(
        storage,
        ledger,
        keys,
        tls=tls,
        min_free_bytes=floor_bytes,
        min_free_files=floor_files,
        accounts=accounts,
        audit=audit,
    )


def certificate_files(settings: Settings, own: Path) -> CertificateFiles:
    """Where the certificate in force is: the pair that the settings name, or the server's own in ``own``. Raises
    ``ConfigError`` when they name half a pair."""
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise ConfigError("--tls-certificate and --tls-key go together: name both, or none for the server's own.")
    if settings.tls_certificate is None or settings.tls_key is None:
        return own_files(own)
    return CertificateFiles(settings.tls_certificate, settings.tls_key)


def _open_tls(settings: Settings, own: Path) -> TlsKeeper:
    files = certificate_files(settings, own)
    if files.next is None:
        try:
            return TlsKeeper(files)
        except CertificateError as error:
            raise ConfigError(f"--tls-certificate, --tls-key: {error}") from None
    wanted = split_names(settings.tls_name, settings.host)
    make_own(own, wanted, time.time())
    keeper = TlsKeeper(files)
    keeper.check_names(wanted)
    return keeper


def _default_floor(root: Path) -> int:
    return min(MOST_FREE_BYTES, shutil.disk_usage(root).total // 100)


def _default_files_floor(root: Path) -> int:
    return min(MOST_FREE_FILES, os.statvfs(root).f_files // 100)

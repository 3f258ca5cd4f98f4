"""Fixtures for accounts: a database, a cheap hasher, real SSH keys, and a server that knows accounts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from twinport_protocol.auth import SshSignature
from twinport_service.accounts.database import AccountDatabase
from twinport_service.accounts.keys import parse_keys
from twinport_service.accounts.passwords import make_hasher
from twinport_service.accounts.records import Account, Key
from twinport_service.accounts.store import AccountStore
from twinport_service.audit import AuditLog
from twinport_service.foundation import Foundation
from twinport_service.ledger_memory import MemoryLedger
from twinport_service.storage.memory import MemoryStorage

from tests.service.conftest import KEYS, settings_for
from tests.service.running_server import RunningServer

PASSWORD = "correct horse battery"
NONCE = "5b" * 16
WATCH_SECONDS = 0.02


class SshKey:
    """A key pair that ssh-keygen made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def public(self) -> Key:
        """What is added to an account."""
        (key,) = parse_keys(self.path.with_suffix(".pub").read_text())
        return key

    def sign(self, message: bytes, namespace: str = "auth@twinport", hash_name: str = "sha512") -> str:
        """The armor that ssh-keygen writes."""
        command = [
            "ssh-keygen",
            "-q",
            "-Y",
            "sign",
            "-f",
            str(self.path),
            "-n",
            namespace,
            "-O",
            f"hashalg={hash_name}",
        ]
        return subprocess.run(
            command, input=message, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        ).stdout.decode()

    def word(self, message: bytes, hash_name: str = "sha512") -> str:
        """The signature as LOGIN carries it."""
        return SshSignature.from_armor(self.sign(message, hash_name=hash_name)).to_word()


KINDS = {
    "ed25519": ("ed25519", 0),
    "ecdsa-256": ("ecdsa", 256),
    "ecdsa-384": ("ecdsa", 384),
    "ecdsa-521": ("ecdsa", 521),
    "rsa-3072": ("rsa", 3072),
    "rsa-2048": ("rsa", 2048),
}


@pytest.fixture(scope="session")
def ssh_keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], SshKey]:
    """Makes real keys of a kind in ``KINDS`` (with a suffix after ``/`` a second one), once each."""
    directory = tmp_path_factory.mktemp("ssh")

    def make(name: str) -> SshKey:
        kind, bits = KINDS[name.partition("/")[0]]
        path = directory / name.replace("/", "-")
        if not path.exists():
            size = ["-b", str(bits)] if bits else []
            subprocess.run(["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", name, "-f", str(path)], check=True)
        return SshKey(path)

    return make


@pytest.fixture(scope="session")
def hasher() -> PasswordHasher:
    """Argon2id that costs next to nothing."""
    return make_hasher(time_cost=1, memory_kib=64)


@pytest.fixture
def database(shm_path: Path) -> Iterator[AccountDatabase]:
    """The accounts as the commands change them."""
    with closing(AccountDatabase(shm_path / "accounts.db")) as opened:
        yield opened


@pytest.fixture
def store(database: AccountDatabase) -> Iterator[AccountStore]:
    """The accounts as the server sees them."""
    with closing(AccountStore(database.path, watch_seconds=WATCH_SECONDS)) as opened:
        yield opened


@pytest.fixture
def add(database: AccountDatabase, hasher: PasswordHasher) -> Callable[..., None]:
    """Adds an account with ``PASSWORD`` and its name as home; fields of ``Account`` otherwise."""
    password_hash = hasher.hash(PASSWORD)

    def add_account(name: str, **fields: object) -> None:
        values: dict[str, object] = {"password_hash": password_hash, "home": name, **fields}
        database.add(Account(name, time.time(), **values))  # type: ignore[arg-type]

    return add_account


StartWithAccounts = Callable[..., RunningServer]


@pytest.fixture
def start_with_accounts(root: Path, database: AccountDatabase) -> Iterator[StartWithAccounts]:
    """Starts a server on storage in memory with the accounts of ``database``; ``changes`` are settings."""
    with ExitStack() as stack:

        def start(*, audit: AuditLog | None = None, **changes: object) -> RunningServer:
            accounts = AccountStore(database.path, watch_seconds=WATCH_SECONDS)
            foundation = Foundation(MemoryStorage(), MemoryLedger(), KEYS, accounts=accounts, audit=audit)
            return stack.enter_context(RunningServer(settings_for(root, **changes), foundation))

        yield start

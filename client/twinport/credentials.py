"""What there is to log in with, in the order in which it is tried.

    what was named           a key file (or a public key, for the agent), a password, a token
    a token                  TWINPORT_TOKEN, or the profile's
    keys                     those of the SSH agent, then ~/.ssh/id_ed25519, id_ecdsa, id_rsa
    a password               TWINPORT_PASSWORD_FILE, the system's keyring, or asked for on the terminal

Nothing is read or asked for before it is its turn. Where ``TWINPORT_HOST`` or ``TWINPORT_USER`` is set too, the token
and the password file of the environment are for that server and that user alone; else for whoever is named.
"""

from __future__ import annotations

import getpass
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from twinport_protocol.auth import parse_user
from twinport_protocol.errors import Refusal

from .errors import LoginError, TwinportError, UsageError, local_failure
from .login import KeyProof, Login, PasswordProof, Proof, TokenProof
from .ssh_agent import AgentKey, agent_keys, agent_path
from .ssh_keys import default_key_files, load_key, public_blob_of, read_key_file

MAX_KEYS = 5
"""An agent may hold many; a password must still have its turn."""
MAX_PASSWORDS = 3
MAX_SECRET_BYTES = 1024
AskSecret = Callable[[str], str]


@dataclass(frozen=True)
class Credentials:
    """Everything that may prove who the user is. ``stored_token`` and ``stored_password`` look where the profile says;
    ``ask_secret`` asks on the terminal, None where there is none."""

    user: str | None = None
    key: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    password_file: str | None = None
    stored_token: Callable[[], str | None] | None = None
    stored_password: Callable[[], str | None] | None = None
    ask_secret: AskSecret | None = None
    is_wanted: bool = False
    """Log in also where the server would take strangers."""


def make_login(credentials: Credentials) -> Login:
    """The login of a client with these. ``UsageError`` for what can be no user."""
    user = credentials.user
    if user is not None:
        try:
            parse_user(user)
        except Refusal:
            text = f"{user!r} is no user name; letters, digits and ._@- make one, at most 64"
            raise UsageError(text) from None
    named = (user, credentials.key, credentials.password, credentials.token)
    is_named = any(value is not None for value in named)
    return Login(
        lambda: _proofs(credentials),
        user=user,
        is_wanted=credentials.is_wanted or is_named,
        is_named=is_named,
    )


def _proofs(credentials: Credentials) -> Iterator[Proof]:
    if credentials.token is not None:
        yield TokenProof(credentials.token, user=credentials.user)
        return
    user = credentials.user or _system_user()
    if credentials.key is not None:
        yield _named_key(user, credentials.key, credentials.ask_secret)
        return
    if credentials.password is not None:
        yield PasswordProof(user, credentials.password)
        return
    token = credentials.stored_token() if credentials.stored_token else None
    if token:
        yield TokenProof(token, "the stored token", credentials.user)
    yield from itertools.islice(_found_keys(user, credentials.ask_secret), MAX_KEYS)
    yield from _passwords(user, credentials)


def _named_key(user: str, path: str, ask_secret: AskSecret | None) -> Proof:
    public = public_blob_of(read_key_file(path))
    if public is None:
        return KeyProof(user, load_key(path, ask_secret))
    agent = agent_path()
    if agent is None:
        raise LoginError(f"{path} is a public key, and there is no SSH agent to sign with it; name the private key")
    if not any(key.public_key == public for key in agent_keys(agent)):
        raise LoginError(f"{path} is a public key that the SSH agent does not hold; add it (ssh-add)")
    return KeyProof(user, AgentKey(agent, public, f"agent key {path}"))


def _found_keys(user: str, ask_secret: AskSecret | None) -> Iterator[Proof]:
    seen: set[bytes] = set()
    agent = agent_path()
    if agent is not None:
        try:
            keys = agent_keys(agent)
        except LoginError as error:
            yield _Unusable("the SSH agent", error.message)
            keys = []
        for agent_key in keys:
            seen.add(agent_key.public_key)
            yield KeyProof(user, agent_key)
    for path in default_key_files():
        if _public_half(path) in seen:
            continue
        try:
            file_key = load_key(path, ask_secret)
        except TwinportError as error:
            yield _Unusable(path, error.message)
            continue
        if file_key.public_key not in seen:
            yield KeyProof(user, file_key)


def _public_half(path: str) -> bytes | None:
    """What lies beside a private key: with it a passphrase need not be asked for a key that the agent has."""
    try:
        return public_blob_of(read_key_file(f"{path}.pub"))
    except TwinportError:
        return None


def _passwords(user: str, credentials: Credentials) -> Iterator[Proof]:
    if credentials.password_file is not None:
        yield PasswordProof(user, read_secret_file(credentials.password_file), "the password of the password file")
    stored = credentials.stored_password() if credentials.stored_password else None
    if stored:
        yield PasswordProof(user, stored, "the password of the keyring")
    if credentials.ask_secret is not None:
        for _ in range(MAX_PASSWORDS):
            yield PasswordProof(user, credentials.ask_secret(f"Password of {user}: "))


class _Unusable:
    """Something that should have been tried and could not be; told when nothing else works."""

    def __init__(self, label: str, reason: str) -> None:
        self.label = label
        self._reason = reason

    def words(self, situation: object) -> tuple[str, dict[str, str]]:
        raise LoginError(self._reason)


def read_secret_file(path: str) -> str:
    """The first line of a file. ``UsageError`` for none, ``NotFoundError``, ``DeniedError``."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise local_failure(f"cannot read {path}", error) from None
    return parse_secret(data, path)


def parse_secret(data: bytes, source: str) -> str:
    """The secret that ``data`` holds, without the end of its line. ``UsageError``, which never shows it."""
    line, _, rest = data.partition(b"\n")
    try:
        secret = line.rstrip(b"\r").decode()
    except UnicodeDecodeError:
        secret = ""
    if not secret or len(data) > MAX_SECRET_BYTES or rest.strip():
        raise UsageError(f"{source} must hold one line, the secret, of at most {MAX_SECRET_BYTES} bytes of UTF-8")
    return secret


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UsageError("who are you? give --user NAME") from None

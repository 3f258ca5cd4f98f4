"""``twinport.connect``: from plain words to a client."""

from __future__ import annotations

import os

from .addresses import DEFAULT_PORT, Address
from .client import Client
from .connector import Security, TlsMode
from .credentials import Credentials, make_login
from .engine import Policy
from .errors import UsageError
from .fingerprints import parse_fingerprint
from .streams import SILENT_SECONDS
from .transfer import PATIENCE_SECONDS


def connect(  # noqa: PLR0913  # keywords that most callers leave out
    host: str,
    port: int = DEFAULT_PORT,
    *,
    user: str | None = None,
    key: str | os.PathLike[str] | None = None,
    password: str | None = None,
    token: str | None = None,
    fingerprint: str | None = None,
    tls: bool | None = None,
    plaintext: bool = False,
    ca_file: str | os.PathLike[str] | None = None,
    channels: int | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    silent_seconds: float = SILENT_SECONDS,
    policy: Policy | None = None,
) -> Client:
    """Connect to a server; use the client as a context manager, or close it.

    TLS is used to every host but this machine, and there for a login, when ``tls`` says so, or when the server is known
    for it; ``tls=False`` goes without there, for a login too. Its certificate must be ``fingerprint`` (64 hexadecimal
    digits), one that ``twinport`` has accepted before, or one that the system's authorities, or those in ``ca_file``,
    vouch for. ``plaintext`` goes without, anywhere. Nobody is asked anything. To log in, give ``user`` with ``key`` (a
    file; also a public key, whose other half the SSH agent holds) or ``password``, or ``token``, which must be that of
    ``user`` if one is named; with ``user`` alone the agent's keys and the usual key files are tried.

    ``channels`` bounds the data connections of a transfer, which opens as many as its line is worth;
    ``patience_seconds`` how long one goes on trying while nothing moves; ``silent_seconds`` how long a data connection
    may owe an answer. ``NetworkError``, ``BusyError``, ``TrustError``, ``LoginError``, ``UsageError``.
    """
    if plaintext and tls:
        raise UsageError("TLS and plaintext at once make no sense")
    mode = TlsMode.AUTO if tls is None else TlsMode.ALWAYS if tls else TlsMode.NEVER
    return Client(
        Address(host, port),
        security=Security(
            tls=TlsMode.PLAINTEXT if plaintext else mode,
            fingerprint=None if fingerprint is None else parse_fingerprint(fingerprint, "fingerprint"),
            ca_file=None if ca_file is None else os.fspath(ca_file),
        ),
        login=make_login(
            Credentials(user=user, key=None if key is None else os.fspath(key), password=password, token=token)
        ),
        channels=channels,
        patience_seconds=patience_seconds,
        silent_seconds=silent_seconds,
        policy=policy,
    )

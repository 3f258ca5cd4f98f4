"""How accounts are shown: as lines for people, and as JSON for programs; never with a secret."""

from __future__ import annotations

from collections.abc import Iterator

from twinport_protocol.auth import key_fingerprint, key_type

from twinport_service.access import GRANTABLE

from .grants import Grant
from .records import Account, Key, Token
from .words import format_bytes, format_moment


def summarize(account: Account) -> str:
    """Where an account is at home and how it logs in."""
    ways = ["password"] if account.password_hash is not None else []
    ways += [f"{len(account.keys)} key(s)"] if account.keys else []
    ways += [f"{len(account.tokens)} token(s)"] if account.tokens else []
    home = f"home {account.home}/" if account.home else "no home"
    return f"{home}, login by {', '.join(ways) or 'nothing yet'}"


def describe_fully(account: Account, now: float) -> Iterator[str]:
    """All about an account, a line each."""
    bounds = account.quota
    yield f"home      {account.home or '-'}"
    files = "-" if bounds.max_files is None else bounds.max_files
    yield f"quota     bytes {format_bytes(bounds.max_bytes)}, files {files}"
    yield f"rate      {format_bytes(account.rate)}"
    for grant in account.grants:
        yield f"grant     {describe_grant(grant)}"
    yield f"password  {'set' if account.password_hash is not None else 'none'}"
    for line in key_lines(account, now):
        yield f"key       {line}"
    for line in token_lines(account, now):
        yield f"token     {line}"


def describe_grant(grant: Grant) -> str:
    """As in ``list,read on shared/**``."""
    return f"{','.join(_acts(grant))} on {grant.pattern}"


def describe_key(key: Key) -> str:
    """As ``ssh-keygen -l`` names it."""
    return f"{key_type(key.blob)} {key_fingerprint(key.blob)} {key.comment}".rstrip()


def key_lines(account: Account, now: float) -> Iterator[str]:
    """Its keys, a line each."""
    for key in account.keys:
        yield f"{describe_key(key)}  {_state(key.expires, now)}"


def token_lines(account: Account, now: float) -> Iterator[str]:
    """Its tokens, a line each."""
    for token in account.tokens:
        yield f"{token.id}  {token.label or '-'}  {'revoked' if token.is_revoked else _state(token.expires, now)}"


def to_json(account: Account) -> dict[str, object]:
    """What ``--json`` prints."""
    return {
        "name": account.name,
        "disabled": account.is_disabled,
        "created": account.created,
        "home": account.home,
        "password": account.password_hash is not None,
        "max_bytes": account.quota.max_bytes,
        "max_files": account.quota.max_files,
        "max_rate": account.rate,
        "grants": [{"pattern": grant.pattern, "acts": _acts(grant)} for grant in account.grants],
        "keys": [
            {"fingerprint": key_fingerprint(key.blob), "comment": key.comment, "expires": key.expires}
            for key in account.keys
        ],
        "tokens": [_token_to_json(token) for token in account.tokens],
    }


def _token_to_json(token: Token) -> dict[str, object]:
    return {
        "id": token.id,
        "label": token.label,
        "created": token.created,
        "expires": token.expires,
        "revoked": token.is_revoked,
    }


def _acts(grant: Grant) -> list[str]:
    return [act.value for act in GRANTABLE if act in grant.acts]


def _state(expires: float | None, now: float) -> str:
    return f"{'EXPIRED' if expires is not None and expires <= now else 'expires'} {format_moment(expires)}"

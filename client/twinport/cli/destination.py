"""Which server, who one is there, and how the connection is protected: flag before environment before profile before
default."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from twinport.addresses import Address, parse_address
from twinport.connector import Security, TlsMode
from twinport.credentials import Credentials
from twinport.errors import UsageError
from twinport.fingerprints import parse_fingerprint

from .terminal import ask_secret, confirm, is_interactive, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinport.profiles import Profile, Profiles

    from .context import Settings

DEFAULT_HOST = "127.0.0.1:5001"


@dataclass(frozen=True)
class Destination:
    """Everything that connecting needs."""

    address: Address
    security: Security
    credentials: Credentials
    profile: Profile | None


def split_user(text: str) -> tuple[str | None, str]:
    """``USER@HOST`` in two; the user None where there is none. ``UsageError`` for an empty one."""
    user, at, host = text.rpartition("@")
    if at and not user:
        raise UsageError(f"{text!r} is no address; write USER@HOST, or leave out the @")
    return (user or None), host


def find_destination(
    settings: Settings, *, token: str | None = None, password: str | None = None, is_login: bool = False
) -> Destination:
    """What the options, the environment and the profiles say. ``token`` and ``password`` come from stdin. ``is_login``:
    for ``twinport login``, which starts anew instead of going on with what a profile keeps. ``UsageError``."""
    profile, host = _profile_and_host(settings, is_login)
    host_user, host = split_user(host) if host is not None else (None, None)
    address = parse_address(host) if host is not None else profile.address if profile else parse_address(DEFAULT_HOST)
    user = settings.user or host_user or os.environ.get("TWINPORT_USER") or None
    if profile is None:
        profile = _profiles().find(address, user)
    own = profile if profile is not None and user in (None, profile.user) and not is_login else None
    credentials = _credentials(
        settings, own, user or (profile.user if profile else None), token, password, is_login, _is_meant(address, user)
    )
    if credentials.token is not None:
        # Whose it is, it says itself; only somebody who was named in so many words is compared with that.
        credentials = replace(credentials, user=user)
    return Destination(
        address,
        _security(settings, None if is_login and settings.fingerprint else profile),
        credentials,
        profile,
    )


def _profile_and_host(settings: Settings, is_login: bool) -> tuple[Profile | None, str | None]:
    host = settings.host or os.environ.get("TWINPORT_HOST") or None
    name = settings.profile
    if name is None and settings.host is None:
        name = os.environ.get("TWINPORT_PROFILE") or None
    if name is None:
        return (None, host) if host is not None else (_profiles().default(), None)
    if is_login and settings.host is not None:
        return None, host  # the name is for what is about to be stored
    profile = _profiles().get(name)
    if settings.host is not None and parse_address(split_user(settings.host)[1]) != profile.address:
        # What the profile keeps is for its own server alone.
        text = f"the profile {name} is for {profile.address}; leave out --host, or --profile"
        raise UsageError(text)
    return profile, settings.host


def _is_meant(address: Address, user: str | None) -> bool:
    """Whether the secrets of the environment are for this server and user: not if it names another one itself."""
    host_user, host = split_user(os.environ.get("TWINPORT_HOST", ""))
    named = os.environ.get("TWINPORT_USER") or host_user
    return (not host or parse_address(host) == address) and named in (None, user)


def _profiles() -> Profiles:
    from twinport.profiles import Profiles

    return Profiles()


def _security(settings: Settings, profile: Profile | None) -> Security:
    fingerprint = settings.fingerprint or os.environ.get("TWINPORT_FINGERPRINT") or None
    source = "--fingerprint" if settings.fingerprint else "TWINPORT_FINGERPRINT"
    ca_file = settings.ca_file or os.environ.get("TWINPORT_CA_FILE") or (profile.ca_file if profile else None)
    return Security(
        tls=_tls_mode(settings),
        fingerprint=None if fingerprint is None else parse_fingerprint(fingerprint, source),
        profile_fingerprint=profile.fingerprint if profile else None,
        ca_file=ca_file,
        expects_tls=profile is not None and profile.tls,
        expects_authority=profile is not None and profile.tls and profile.fingerprint is None,
        confirm=confirm if is_interactive() else None,
        note=(lambda text: None) if settings.quiet else note,
    )


def _tls_mode(settings: Settings) -> TlsMode:
    if settings.plaintext:
        if settings.tls:
            raise UsageError("--tls and --plaintext contradict each other")
        return TlsMode.PLAINTEXT
    tls = settings.tls
    if tls is None and (word := os.environ.get("TWINPORT_TLS", "")):
        if word not in ("0", "1"):
            raise UsageError("TWINPORT_TLS is 1 or 0")
        tls = word == "1"
    return TlsMode.AUTO if tls is None else TlsMode.ALWAYS if tls else TlsMode.NEVER


def _credentials(
    settings: Settings,
    profile: Profile | None,
    user: str | None,
    token: str | None,
    password: str | None,
    is_login: bool,
    is_meant: bool,
) -> Credentials:
    is_plain = token is None and password is None
    key = settings.key or (os.environ.get("TWINPORT_KEY") or None if is_plain else None)
    if key is None and is_plain and is_meant:
        token = os.environ.get("TWINPORT_TOKEN") or None
    if key is None and token is None and is_plain and profile is not None:
        key = profile.key
    return Credentials(
        user=user,
        key=key,
        password=password,
        token=token,
        password_file=(os.environ.get("TWINPORT_PASSWORD_FILE") or None) if is_meant else None,
        stored_token=_token_of(profile),
        stored_password=_password_of(profile),
        ask_secret=ask_secret if is_interactive() else None,
        is_wanted=is_login or (profile is not None and profile.login != "none"),
    )


def _token_of(profile: Profile | None) -> Callable[[], str | None] | None:
    if profile is None or profile.token_in is None:
        return None
    name, place = profile.name, profile.token_in

    def find() -> str | None:
        from twinport.secrets_store import find_token

        return find_token(name, place)

    return find


def _password_of(profile: Profile | None) -> Callable[[], str | None] | None:
    if profile is None or profile.login != "password":
        return None
    account = profile.account

    def find() -> str | None:
        from twinport.secrets_store import find_password

        return find_password(account)

    return find

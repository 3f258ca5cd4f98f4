"""To whom a server opens itself: one pure function from the settings and the accounts to what is served, or a refusal.

Safe by default: what others can reach needs TLS and an account. Who wants an open server must say so.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from .config import ConfigError, Settings


@dataclass(frozen=True)
class Exposure:
    """What a server offers, and the warnings to log at every start."""

    tls: bool
    plaintext: bool
    login_required: bool
    login_offered: bool
    classic: bool
    warnings: tuple[str, ...] = ()

    def describe(self, host: str) -> str:
        """The decision in a few words, for the audit log."""
        login = "required" if self.login_required else "offered" if self.login_offered else "none"
        words = {"tls": self.tls, "plaintext": self.plaintext, "classic": self.classic}
        return f"host={host} login={login} " + " ".join(f"{key}={'on' if on else 'off'}" for key, on in words.items())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def decide_exposure(settings: Settings, *, has_accounts: bool = False, has_anonymous: bool = False) -> Exposure:
    """The decision. ``has_accounts``: somebody can log in; ``has_anonymous``: those who do not may do something
    all the same. ``ConfigError`` says what does not go together."""
    loopback = is_loopback(settings.host)
    reach = f"--host {settings.host}: others can reach that address"
    if not loopback and not settings.open:
        if settings.tls == "off":
            raise ConfigError(
                f"{reach}, and without TLS they can read everything. Leave --tls at auto, listen on loopback, "
                "or say --open for a server that anybody may use."
            )
        if not has_accounts:
            raise ConfigError(
                f"{reach}, and there is no account. Add one with `twinportd user add NAME --root {settings.root}`, "
                "listen on loopback, or say --open for a server that anybody may use."
            )
    plaintext = settings.tls == "off" or (settings.tls == "auto" and (loopback or settings.open))
    if settings.classic:
        _check_classic(settings, plaintext=plaintext, loopback=loopback, has_accounts=has_accounts)
    alone = loopback and not has_accounts
    return Exposure(
        tls=settings.tls != "off",
        plaintext=plaintext,
        login_required=has_accounts and not has_anonymous and not settings.open,
        login_offered=has_accounts,
        classic=plaintext and (settings.open or alone) if settings.classic is None else settings.classic,
        warnings=_warnings(settings, plaintext=plaintext) if settings.open else (),
    )


def _check_classic(settings: Settings, *, plaintext: bool, loopback: bool, has_accounts: bool) -> None:
    if not plaintext:
        reason = "--tls on allows nothing else" if loopback or settings.open else f"others can reach {settings.host}"
        raise ConfigError(f"--classic: the classic dialect knows no TLS, and {reason}. Leave --classic away.")
    if settings.open:
        return
    if has_accounts:
        raise ConfigError(
            "--classic: there are accounts, and the classic dialect knows no login. "
            "Use --no-classic, or say --open for a server that anybody may use."
        )


def _warnings(settings: Settings, *, plaintext: bool) -> tuple[str, ...]:
    everybody = (
        "everybody on this machine" if is_loopback(settings.host) else f"everybody who can reach {settings.host}"
    )
    seen = ", and what is sent without TLS can be read on the way" if plaintext else ""
    return (f"[OPEN] --open: {everybody} may read, replace and delete files without login{seen}",)

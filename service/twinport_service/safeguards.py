"""What bounds the clients of a running server: crowds of sessions and of channels, rates, a log that has a ration."""

from __future__ import annotations

from dataclasses import dataclass

from twinport_protocol.errors import Refusal

from .accounts.store import AccountStore
from .bandwidth import Bandwidth
from .config import Settings
from .limits import Crowd, CrowdBounds
from .rationed_log import RationedLog


@dataclass(frozen=True)
class Safeguards:
    """One of each for a server; all of them may be used from any thread."""

    sessions: Crowd
    channels: Crowd
    bandwidth: Bandwidth
    log: RationedLog

    def log_refusal(self, what: str, peer: object, refusal: Refusal) -> None:
        """Say in the log that somebody was turned away at a limit."""
        self.log.info(f"[LISTENER] Refused a {what}: {refusal.detail}", peer=peer, code=refusal.code.value)


def make_safeguards(settings: Settings, accounts: AccountStore | None = None) -> Safeguards:
    """As the settings say, and for the rates of single users the accounts."""
    total, per_user = settings.max_bytes_per_second, settings.max_bytes_per_second_per_user
    if accounts is None:
        bandwidth = Bandwidth(total, per_user)
    else:
        bandwidth = Bandwidth(total, per_user, rate_of=accounts.rate_of, has_rates=accounts.has_rates)
    return Safeguards(
        Crowd(
            CrowdBounds(
                total=settings.max_sessions,
                per_address=settings.max_sessions_per_address,
                per_user=settings.max_sessions_per_user,
                unproved=settings.max_unauthenticated,
                loopback_exempt=not settings.limit_loopback,
            )
        ),
        Crowd(
            CrowdBounds(
                total=settings.max_channels,
                per_address=settings.max_channels_per_address,
                per_user=settings.max_channels_per_user,
                unproved=settings.max_unattached,
                early=False,
                loopback_exempt=not settings.limit_loopback,
            )
        ),
        bandwidth,
        RationedLog(),
    )

"""What the holder of a ticket may do on one channel: asked when it is shown, and again when the accounts changed."""

from __future__ import annotations

from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.tickets import Ticket

from .access import Act, Decide, allow_all, require
from .bundling import Bundling
from .channel_download import Download
from .standing import NO_ACCOUNTS, Standing
from .upload_handle import UploadHandle


class ChannelRights:
    """For the channel's owner. ``secure`` says that the connection is under TLS: others may not use tickets that were
    given over TLS. Nothing here waits for a disk, but for the name of a version that was not asked for before."""

    def __init__(self, decide: Decide = allow_all, standing: Standing = NO_ACCOUNTS, *, secure: bool = False) -> None:
        self._decide = decide
        self._standing = standing
        self._secure = secure
        self._revision = standing.revision
        self._user: str | None = None

    def have_changed(self) -> bool:
        """Whether any answer may be another than when this was asked last. Cheap: it is asked at every turn."""
        revision = self._standing.revision
        if revision == self._revision:
            return False
        self._revision = revision
        return True

    def require_ticket(self, ticket: Ticket) -> None:
        """Whether a ticket is good on this channel. ``TlsRequired``, ``TicketRevoked``; ``Denied`` also for one of
        another user than before: what a channel moves counts for one user's bounds, so it must be all that user's."""
        if ticket.secure and not self._secure:
            raise Refusal(ErrorCode.TLS_REQUIRED, "a ticket given over TLS")
        self._standing.require_ticket(ticket.user, ticket.epoch)
        if self._user not in (None, ticket.user):
            raise Refusal(ErrorCode.DENIED, "a ticket of another user than before")

    def keep_to(self, user: str) -> None:
        """Something of that user's was attached: the channel is theirs until its end."""
        self._user = user

    def require_write(self, handle: UploadHandle) -> None:
        """``Denied`` unless the user of an upload may write its name."""
        require(self._decide, handle.spec.user, Act.WRITE, handle.spec.name)

    def require_read(self, download: Download) -> None:
        """``Denied`` unless the user of a download may read its file. ``VersionGone``."""
        require(self._decide, download.user, Act.READ, download.name)

    def require(self, user: str, act: Act, name: str) -> None:
        """``Denied`` unless the user may do that to a name."""
        require(self._decide, user, act, name)

    def require_anything(self, user: str) -> None:
        """``Denied`` unless the user may still do something; what may be read is asked when it is asked for."""
        require(self._decide, user, Act.SEE, "")

    def loss_of(self, attached: UploadHandle | Download | Bundling, epoch: int) -> Refusal | None:
        """Why an attachment under a ticket of that epoch is to end; None when it may go on."""
        try:
            if isinstance(attached, UploadHandle):
                self._standing.require_ticket(attached.spec.user, epoch)
                self.require_write(attached)
            else:
                self._standing.require_ticket(attached.user, epoch)
                if isinstance(attached, Download) and attached.is_named:
                    self.require_read(attached)
                else:
                    self.require_anything(attached.user)
        except Refusal as refusal:
            return refusal
        return None

"""What is attached to a channel, under which tickets, and how that ends: the ground that the rest of it stands on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twinport_protocol.channel import ChannelServer
from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.tickets import BUNDLING, Action, Ticket, TicketKeys

from .bundling import Bundling
from .channel_audit import ChannelAudit
from .channel_download import Download, OpenReaders, Payload
from .channel_rights import ChannelRights
from .upload_handle import UploadHandle
from .uploads import UploadDesk


class ChannelAttachments:
    """The tickets of one channel. ``on_user`` is told whose ticket was shown, and may refuse."""

    def __init__(
        self,
        desk: UploadDesk,
        keys: TicketKeys,
        limits: Limits,
        now: Callable[[], float],
        audit: ChannelAudit,
        on_user: Callable[[str], None],
        rights: ChannelRights,
    ) -> None:
        self._desk = desk
        self._keys = keys
        self._now = now
        self._audit = audit
        self._on_user = on_user
        self._rights = rights
        self._wire = ChannelServer(limits)
        self._readers = OpenReaders(desk.storage)
        self._attached: dict[int, UploadHandle | Download | Bundling] = {}
        self._epochs: dict[int, int] = {}
        self._refused: dict[int, ErrorCode] = {}
        self._withdrawn: list[Download] = []
        self._has_withdrawn_files = False
        self.outgoing: deque[bytes | Payload] = deque()
        self.attached_once = False

    def _attach(self, attachment: int, raw: bytes) -> None:
        user: str | None = None
        try:
            ticket = self._keys.verify(raw, self._now())
            user = ticket.user
            self._rights.require_ticket(ticket)
            self._on_user(user)
            if ticket.action is Action.UPLOAD:
                self._attached[attachment] = self._attach_upload(ticket)
            else:
                self._rights.require_anything(user)
                many = ticket.action in BUNDLING
                self._attached[attachment] = Bundling(user, ticket.action) if many else Download(self._readers, ticket)
            self._refused.pop(attachment, None)
            self._epochs[attachment] = ticket.epoch
            self._rights.keep_to(user)
            self._audit.attached(attachment)
            self.attached_once = True
        except Refusal as refusal:
            # The number stays taken until the client detaches it, so that frames already under way are answered in
            # kind.
            self._refused[attachment] = refusal.code
            self._audit.refused("ATTACH", refusal.code, user)
            self.outgoing.append(self._wire.fail(attachment, refusal.code))

    def _attach_upload(self, ticket: Ticket) -> UploadHandle:
        handle = self._desk.attach(ticket.scope, ticket.generation, ticket.user)
        try:
            self._rights.require_write(handle)
        except Refusal:
            handle.detach()
            raise
        return handle

    def _review(self) -> None:
        """End the attachments that the accounts allow no more: their FAIL is sent at once, and frames that come or wait
        are answered with the same status."""
        if not self._rights.have_changed():
            return
        self._withdrawn = [download for download in self._withdrawn if download.is_sending]
        for attachment, attached in list(self._attached.items()):
            loss = self._rights.loss_of(attached, self._epochs[attachment])
            if loss is None:
                continue
            if isinstance(attached, UploadHandle):
                self._audit.refused("PUT", loss.code, attached.spec.user, attached.spec.name)
            else:
                is_put = isinstance(attached, Bundling) and attached.action is Action.UPLOAD_MANY
                self._audit.refused("PUT" if is_put else "GET", loss.code, attached.user)
                if isinstance(attached, Download):
                    self._withdrawn.append(attached)
                self._has_withdrawn_files |= isinstance(attached, Bundling) and not is_put
            self._leave(attachment)
            self._refused[attachment] = loss.code
            self.outgoing.append(self._wire.fail(attachment, loss.code))

    @property
    def sends_withdrawn(self) -> bool:
        """Whether a frame is on its way to somebody who may not have it any more: only the end of the connection ends
        it earlier."""
        return self._has_withdrawn_files or any(download.is_sending for download in self._withdrawn)

    def all_is_sent(self) -> None:
        """Whatever was queued is on its way: files of bundles too."""
        self._has_withdrawn_files = False

    def _detach(self, attachment: int) -> None:
        self._refused.pop(attachment, None)
        self._leave(attachment)
        self._wire.detached(attachment)

    def _leave(self, attachment: int) -> None:
        attached = self._attached.pop(attachment, None)
        self._epochs.pop(attachment, None)
        if isinstance(attached, UploadHandle):
            attached.detach()
        elif isinstance(attached, Download):
            attached.close()
            self._audit.sent(attachment, attached.user, self._desk.storage, attached.token, attached.sent_bytes)
        self._audit.detached(attachment)

"""Tickets: what a data connection shows to prove that a control connection allowed it.

A ticket is a signed statement (HMAC-SHA256, RFC 2104): anyone with the key can check it, so any node serves any data
connection, without memory of the control session. It holds for one service, one user, one action and one upload
generation or file version; it is useless for another. Its expiry is checked when a channel attaches, and only then.

    version 1 | key id 4 | action 1 | expires 8 | generation 4 | size 8 | epoch 8 | audience 16
    | user 1+n | scope 2+n | HMAC 32

The highest bit of the action says that it was given over TLS: a channel without TLS must not use it. The epoch says
how the user's account stood when the login happened that asked; whoever knows the accounts compares.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import ErrorCode, Refusal

MAX_TICKET_BYTES = 2048
MAX_SCOPE_BYTES = 1400
KEY_BYTES = 32
AUDIENCE_BYTES = 16
_VERSION = 2
_MAC_BYTES = 32
_MAX_USER_BYTES = 255
_SECURE = 0x80
_WORD = re.compile("[A-Za-z0-9_-]+")
_HEAD = struct.Struct("!BIBQIQQ16s")


class Action(enum.IntEnum):
    """What a ticket allows."""

    UPLOAD = 1
    DOWNLOAD = 2
    UPLOAD_MANY = 3
    """Any small file that the user may write, in bundles; without a scope."""
    DOWNLOAD_MANY = 4
    """Any small file that the user may read, in bundles; without a scope."""


BUNDLING = frozenset({Action.UPLOAD_MANY, Action.DOWNLOAD_MANY})


@dataclass(frozen=True)
class Ticket:
    """The statement. ``scope`` is the upload id or the version token; ``expires_at`` is in seconds since the epoch.

    ``secure`` says that it was given over TLS and holds for channels over TLS only. ``epoch`` is the
    account's, 0…2^64-1; 0 where there was no login.
    """

    action: Action
    user: str
    scope: bytes
    size: int
    expires_at: int
    generation: int = 0
    secure: bool = False
    epoch: int = 0


class TicketKeys:
    """Signs with the newest key, accepts every key it was given, so that two overlap during a rotation.

    ``audience`` (16 bytes) names the service; keys are 32 bytes under ids 0…2^32-1.
    """

    def __init__(self, audience: bytes, keys: Mapping[int, bytes], signing_key_id: int) -> None:
        if len(audience) != AUDIENCE_BYTES or any(len(key) != KEY_BYTES for key in keys.values()):
            raise ValueError("the audience is 16 bytes, a ticket key is 32")
        self._audience = audience
        self._macs = {key_id: hmac.new(key, digestmod=hashlib.sha256) for key_id, key in keys.items()}
        self._signing_key_id = signing_key_id
        if signing_key_id not in self._macs:
            raise ValueError("the signing key is not among the keys")

    def sign(self, ticket: Ticket) -> bytes:
        """The ticket as bytes, at most ``MAX_TICKET_BYTES``."""
        user = ticket.user.encode()
        if len(user) > _MAX_USER_BYTES or len(ticket.scope) > MAX_SCOPE_BYTES:
            raise ValueError("the user or the scope of a ticket is too long")
        head = _HEAD.pack(
            _VERSION,
            self._signing_key_id,
            ticket.action | (_SECURE if ticket.secure else 0),
            ticket.expires_at,
            ticket.generation,
            ticket.size,
            ticket.epoch,
            self._audience,
        )
        body = head + bytes((len(user),)) + user + len(ticket.scope).to_bytes(2, "big") + ticket.scope
        return body + self._mac(self._signing_key_id, body)

    def verify(self, raw: bytes, now: float, *, grace_seconds: float = 0) -> Ticket:
        """The statement of a ticket, ``now`` in seconds since the epoch.

        ``Refusal``: ``TicketInvalid`` (malformed, forged, another service's), ``TicketExpired``.
        """
        try:
            version, key_id, action, expires_at, generation, size, epoch, audience = _HEAD.unpack_from(raw)
            user_end = _HEAD.size + 1 + raw[_HEAD.size]
            user = raw[_HEAD.size + 1 : user_end].decode()
            scope_end = user_end + 2 + int.from_bytes(raw[user_end : user_end + 2], "big")
            scope, mac = bytes(raw[user_end + 2 : scope_end]), bytes(raw[scope_end:])
            known = version == _VERSION and key_id in self._macs and len(raw) <= MAX_TICKET_BYTES
            if not known or len(mac) != _MAC_BYTES or not hmac.compare_digest(mac, self._mac(key_id, raw[:scope_end])):
                raise Refusal(ErrorCode.TICKET_INVALID)
            if not hmac.compare_digest(audience, self._audience):
                raise Refusal(ErrorCode.TICKET_INVALID, "another service's ticket")
            ticket = Ticket(
                Action(action & ~_SECURE), user, scope, size, expires_at, generation, bool(action & _SECURE), epoch
            )
        except (struct.error, IndexError, ValueError):
            raise Refusal(ErrorCode.TICKET_INVALID, "malformed") from None
        if now > ticket.expires_at + grace_seconds:
            raise Refusal(ErrorCode.TICKET_EXPIRED)
        return ticket

    def _mac(self, key_id: int, body: bytes) -> bytes:
        mac = self._macs[key_id].copy()  # the key schedule is paid once
        mac.update(body)
        return mac.digest()


def encode_ticket(raw: bytes) -> str:
    """A ticket as one word of a line: base64url without padding (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_ticket(word: str) -> bytes:
    """The ticket of a word, which has one spelling only; ``Refusal(TicketInvalid)``."""
    if not _WORD.fullmatch(word) or len(word) % 4 == 1:
        raise Refusal(ErrorCode.TICKET_INVALID)
    raw = base64.urlsafe_b64decode(word + "=" * (-len(word) % 4))
    # The last character may hold bits that say nothing; only zeros are accepted there.
    if encode_ticket(raw) != word:
        raise Refusal(ErrorCode.TICKET_INVALID)
    return raw

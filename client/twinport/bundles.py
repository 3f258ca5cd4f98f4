"""Whether a transfer's small files travel in bundles, and under which ticket. Pure; owned by an engine.

    off ◀── the server takes none, refuses, or keeps changing its mind
    wanted ──BUNDLE──▶ asked ──OK▶ ready ──ticket refused, session lost──▶ wanted

What a bundle does not get done is asked for again file by file, in the ordinary way.
"""

from __future__ import annotations

import enum

from twinport_protocol.control import Limits
from twinport_protocol.errors import ErrorCode, Refusal
from twinport_protocol.messages import Reply, ReplyKind, Verb
from twinport_protocol.tickets import decode_ticket

from .engine import Request

BUNDLE_FILES = 128
BUNDLE_BYTES = 512 * 1024
"""More files in one would save little; fewer are answered sooner, and the next is read meanwhile."""
LEAST_BUNDLE_FILES = 16
"""Few files are spread over several channels, but not into bundles of fewer than that."""
LEAST_CREDIT_BYTES = 1024 * 1024
"""With less a bundle could wait for ever for the credit that it needs at once."""
MAX_TICKETS = 8
"""Tickets asked for in one session: a server that refuses each of them is not asked for ever."""
TICKET_CODES = frozenset({ErrorCode.TICKET_EXPIRED, ErrorCode.TICKET_INVALID, ErrorCode.TICKET_REVOKED})


class _State(enum.Enum):
    OFF = "off"
    WANTED = "wanted"
    ASKED = "asked"
    READY = "ready"


class BundlePass:
    """What a lane attaches: a ticket that stands for all files of its bundles."""

    def __init__(self, ticket: bytes) -> None:
        self.ticket = ticket
        self.is_over = False


class Bundles:
    """See the module. ``verb`` is the direction: ``UPLOAD`` or ``DOWNLOAD``."""

    def __init__(self, limits: Limits, verb: Verb) -> None:
        self.body_bytes = min(limits.bundle, limits.credit)
        """The body of a bundle at most."""
        self._verb = verb
        has_credit = limits.credit >= LEAST_CREDIT_BYTES
        self._state = _State.WANTED if self.body_bytes and has_credit else _State.OFF
        self._tickets = 0
        self.current: BundlePass | None = None
        """What to attach, while bundles can be sent."""

    @property
    def are_on(self) -> bool:
        """Whether small files should wait for a bundle instead of being asked for one by one."""
        return self._state is not _State.OFF

    @staticmethod
    def size(files: int, spread: int) -> int:
        """How many of so many files are to go into the next bundle, where so many channels are to have their part."""
        return max(LEAST_BUNDLE_FILES, min(BUNDLE_FILES, -(-files // max(1, spread))))

    def next_request(self) -> Request | None:
        """The command that is due, if one is. It is sent before anything is known to need it, as its answer takes a
        round trip."""
        if self._state is not _State.WANTED:
            return None
        if self._tickets >= MAX_TICKETS:
            self._state = _State.OFF
            return None
        self._tickets += 1
        self._state = _State.ASKED
        return Request(Verb.BUNDLE, (self._verb.value,), {}, "bundle", None)

    def take_reply(self, reply: Reply) -> None:
        """The answer to it. Whatever is no ticket turns bundles off."""
        if self._state is not _State.ASKED:
            return
        self._state = _State.OFF
        if reply.kind is ReplyKind.OK:
            try:
                self.current = BundlePass(decode_ticket(reply.options.get("ticket", "")))
                self._state = _State.READY
            except Refusal:
                return

    def refused(self, used: BundlePass, code: ErrorCode) -> None:
        """Files under that pass were refused. If that is for its ticket's sake, another is asked for, once for all."""
        if code in TICKET_CODES and used is self.current:
            self._drop()
            self._state = _State.WANTED

    def session_lost(self) -> None:
        """Another session needs another ticket."""
        self._drop()
        self._tickets = 0
        if self.are_on:
            self._state = _State.WANTED

    def _drop(self) -> None:
        if self.current is not None:
            self.current.is_over = True
            self.current = None

"""Every way in which the protocol says no.

    ProtocolError               the bytes break the protocol
    ├── LocalProtocolError      our own side tried to send nonsense: a bug here
    └── RemoteProtocolError     the peer sent nonsense; carries the code to answer with
    Refusal                     a well-formed request that is answered ``ERROR <Code>``

``ErrorCode`` is the one list of codes. A code is a stable CamelCase word on the control connection and a stable
number on a channel (frame field ``status``); its text is fixed here, so no reply ever echoes raw input.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class _Facts(NamedTuple):
    number: int
    text: str


class ErrorCode(str, enum.Enum):
    """A stable error word; ``number`` is its channel status, ``text`` its fixed explanation."""

    BAD_REQUEST = "BadRequest"
    INVALID_NAME = "InvalidName"
    INVALID_SIZE = "InvalidSize"
    INVALID_ENCODING = "InvalidEncoding"
    LINE_TOO_LONG = "LineTooLong"
    UNSUPPORTED = "Unsupported"
    BAD_STATE = "BadState"
    TIMEOUT = "Timeout"
    BUSY = "Busy"
    SHUTTING_DOWN = "ShuttingDown"
    INTERNAL = "Internal"

    FILE_NOT_FOUND = "FileNotFound"
    NAME_CONFLICT = "NameConflict"
    NOT_EMPTY = "NotEmpty"
    EXISTS = "Exists"
    CHANGED = "Changed"
    CORRUPT = "Corrupt"
    VERSION_GONE = "VersionGone"

    TOO_LARGE = "TooLarge"
    DISK_FULL = "DiskFull"
    QUOTA_EXCEEDED = "QuotaExceeded"
    STORAGE_FAULT = "StorageFault"
    OUTCOME_UNKNOWN = "OutcomeUnknown"
    READ_ONLY = "ReadOnly"

    SHORT_UPLOAD = "ShortUpload"
    SIZE_MISMATCH = "SizeMismatch"
    UPLOAD_UNKNOWN = "UploadUnknown"
    UPLOAD_CLOSED = "UploadClosed"
    FENCED = "Fenced"
    INCOMPLETE = "Incomplete"
    ROOT_MISMATCH = "RootMismatch"
    DIGEST_MISMATCH = "DigestMismatch"

    TICKET_INVALID = "TicketInvalid"
    TICKET_EXPIRED = "TicketExpired"
    NOT_ATTACHED = "NotAttached"
    CREDIT_EXCEEDED = "CreditExceeded"
    TICKET_REVOKED = "TicketRevoked"

    DENIED = "Denied"
    LOGIN_REQUIRED = "LoginRequired"
    LOGIN_FAILED = "LoginFailed"
    LOCKED = "Locked"
    TLS_REQUIRED = "TlsRequired"

    @property
    def number(self) -> int:
        """The code as a channel status, 1…65535."""
        return _FACTS[self].number

    @property
    def text(self) -> str:
        """The fixed explanation: what is wrong and what to do next, printable ASCII."""
        return _FACTS[self].text

    @classmethod
    def from_number(cls, number: int) -> ErrorCode:
        """The code of a channel status; an unknown number (a newer peer) reads as ``INTERNAL``."""
        return _BY_NUMBER.get(number, cls.INTERNAL)

    @classmethod
    def from_word(cls, word: str) -> ErrorCode:
        """The code of an ``ERROR`` word; an unknown word (a newer peer) reads as ``INTERNAL``."""
        return _BY_WORD.get(word, cls.INTERNAL)


_C = ErrorCode
_FACTS: dict[ErrorCode, _Facts] = {
    _C.BAD_REQUEST: _Facts(100, "the request is malformed; see docs/protocol.md for its form"),
    _C.INVALID_NAME: _Facts(101, "the name is not a relative path of plain components; rename the file"),
    _C.INVALID_SIZE: _Facts(102, "the size is not a plain decimal number from 0 to 2^63-1"),
    _C.INVALID_ENCODING: _Facts(103, "the request is not valid UTF-8"),
    _C.LINE_TOO_LONG: _Facts(104, "the line is longer than this connection allows"),
    _C.UNSUPPORTED: _Facts(105, "this server does not offer that; compare the versions of both sides"),
    _C.BAD_STATE: _Facts(106, "the request does not fit the state of the connection"),
    _C.TIMEOUT: _Facts(107, "nothing happened for too long; try again"),
    _C.BUSY: _Facts(108, "the server is at its limit; try again a little later"),
    _C.SHUTTING_DOWN: _Facts(109, "the server is stopping; connect again"),
    _C.INTERNAL: _Facts(110, "the server failed unexpectedly; its log says more"),
    _C.FILE_NOT_FOUND: _Facts(200, "there is no such file; list the names that exist"),
    _C.NAME_CONFLICT: _Facts(201, "a file stands where a directory is needed, or the reverse; choose another name"),
    _C.NOT_EMPTY: _Facts(202, "the directory is not empty; remove what it holds first"),
    _C.EXISTS: _Facts(203, "the name is taken and the request said not to replace it"),
    _C.CHANGED: _Facts(204, "the file is not the version that the request named; look again and decide"),
    _C.CORRUPT: _Facts(205, "the stored bytes no longer match their digest; restore the file from another copy"),
    _C.VERSION_GONE: _Facts(206, "that version is no longer kept; start the download again"),
    _C.TOO_LARGE: _Facts(300, "the file is larger than this server accepts"),
    _C.DISK_FULL: _Facts(301, "the server has no room for this file; free some space there"),
    _C.QUOTA_EXCEEDED: _Facts(302, "the quota of this user does not allow it; delete something first"),
    _C.STORAGE_FAULT: _Facts(303, "the server's storage failed; nothing was published; its log says more"),
    _C.OUTCOME_UNKNOWN: _Facts(304, "the storage failed while publishing; repeat the command to learn the outcome"),
    _C.READ_ONLY: _Facts(305, "the storage failed before and takes no writes until it was checked and restarted"),
    _C.SHORT_UPLOAD: _Facts(400, "fewer bytes arrived than were announced; nothing was stored"),
    _C.SIZE_MISMATCH: _Facts(401, "more bytes arrived than were announced; nothing was stored"),
    _C.UPLOAD_UNKNOWN: _Facts(402, "there is no such upload; start it again"),
    _C.UPLOAD_CLOSED: _Facts(403, "the upload is already committed, being committed or aborted"),
    _C.FENCED: _Facts(404, "another client took this upload over"),
    _C.INCOMPLETE: _Facts(405, "segments are missing; send them and commit again"),
    _C.ROOT_MISMATCH: _Facts(406, "the segments do not add up to the root; send the file again"),
    _C.DIGEST_MISMATCH: _Facts(407, "the segment's bytes do not match its digest; send it again"),
    _C.TICKET_INVALID: _Facts(500, "the ticket is not valid here; ask for a new one"),
    _C.TICKET_EXPIRED: _Facts(501, "the ticket is too old; renew it"),
    _C.NOT_ATTACHED: _Facts(502, "the frame names no attachment of this channel"),
    _C.CREDIT_EXCEEDED: _Facts(503, "more was sent than the announced window allows"),
    _C.TICKET_REVOKED: _Facts(
        504, "the account changed since this ticket was given; log in again and ask for a new one"
    ),
    _C.DENIED: _Facts(600, "this user may not do that; ask the server's administrator"),
    _C.LOGIN_REQUIRED: _Facts(601, "log in first"),
    _C.LOGIN_FAILED: _Facts(602, "the login was refused; check the user and the password or key"),
    _C.LOCKED: _Facts(603, "too many failed logins; wait before the next try"),
    _C.TLS_REQUIRED: _Facts(604, "this needs TLS; connect with TLS"),
}
_BY_NUMBER = {facts.number: code for code, facts in _FACTS.items()}
_BY_WORD = {code.value: code for code in ErrorCode}


class ProtocolError(Exception):
    """The bytes on a connection break the protocol. ``code`` is what the breaker is told."""

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code.value}: {detail or code.text}")


class LocalProtocolError(ProtocolError):
    """Our own side asked for bytes that the protocol does not allow now."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that the protocol does not allow now."""


class Refusal(Exception):
    """A well-formed request that gets ``ERROR <Code> [retry=<s>] <text>``; the connection goes on.

    ``detail`` is for the log of the refusing side only and never travels.
    """

    def __init__(self, code: ErrorCode, detail: str = "", retry_seconds: int | None = None) -> None:
        self.code = code
        self.detail = detail
        self.retry_seconds = retry_seconds
        super().__init__(f"{code.value}: {detail or code.text}")

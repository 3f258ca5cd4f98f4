"""Every way in which the client fails, as a tree; each class carries the exit code of the command line.

    TwinportError                 1  something failed
    ├── UsageError                2  the request makes no sense: a wrong address, a directory without recursive
    ├── NotFoundError             3  no such file or directory, on the server or here
    ├── LoginError                4  login needed or refused
    ├── TrustError                4  the server's certificate is not one that is trusted
    ├── NetworkError              5  no connection, or lost and not regained in time
    │   └── ServerProtocolError   5  the server sent what the protocol does not allow
    ├── SpaceError                6  disk or quota, on the server or here
    ├── IntegrityError            7  bytes that do not match their digest
    ├── DeniedError               8  the server or the local system forbids it
    ├── BusyError                 9  a limit is reached, or another program is at the same file
    ├── ConflictError             1  taken, changed, not empty, taken over by another client
    ├── SourceError               1  a local file that cannot be sent as it is
    ├── ServerError               1  the server failed
    ├── InterruptError          130  stopped by the user
    └── PartialFailureError       *  some of several files failed; the code they share, or 1

``code`` is a stable word: that of the protocol where the server refused (``docs/protocol.md``), else the class's own.
A message names what failed, why, and what to do next.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twinport_protocol.errors import ErrorCode, ProtocolError

if TYPE_CHECKING:
    from .report import TransferReport


class TwinportError(Exception):
    """Root of all errors of this library. ``code`` is stable, ``exit_code`` is the command's."""

    exit_code = 1
    default_code = "Failed"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code

    def add_hint(self, hint: str) -> None:
        """Say more, once."""
        if hint not in self.message:
            self.message = f"{self.message}; {hint}"
            self.args = (self.message,)


class UsageError(TwinportError):
    """The request makes no sense as it stands."""

    exit_code = 2
    default_code = "Usage"


class NotFoundError(TwinportError):
    """There is no such file or directory."""

    exit_code = 3
    default_code = "FileNotFound"


class LoginError(TwinportError):
    """The server wants a login, or refused it."""

    exit_code = 4
    default_code = "LoginFailed"


class TrustError(TwinportError):
    """The server's certificate is unknown, invalid, or another one than before. Nothing was sent."""

    exit_code = 4
    default_code = "Untrusted"


class NetworkError(TwinportError):
    """There is no connection, or it was lost and could not be regained in time."""

    exit_code = 5
    default_code = "Network"


class ServerProtocolError(NetworkError):
    """The server sent what the protocol does not allow."""

    default_code = "BadReply"


class SpaceError(TwinportError):
    """A disk or a quota is full, on the server or here."""

    exit_code = 6
    default_code = "DiskFull"


class IntegrityError(TwinportError):
    """Bytes do not match their digest; nothing of them was accepted."""

    exit_code = 7
    default_code = "Corrupt"


class DeniedError(TwinportError):
    """The server or the local system forbids it."""

    exit_code = 8
    default_code = "Denied"


class BusyError(TwinportError):
    """A limit is reached, or another program is at work on the same file."""

    exit_code = 9
    default_code = "Busy"


class ConflictError(TwinportError):
    """What is there does not fit the request: taken, changed, not empty, taken over."""

    default_code = "Conflict"


class SourceError(TwinportError):
    """A local file cannot be sent as it is."""

    default_code = "BadSource"


class ServerError(TwinportError):
    """The server failed."""

    default_code = "Internal"


class InterruptError(TwinportError):
    """The user stopped it. What arrived is kept; the same command goes on from there."""

    exit_code = 130
    default_code = "Interrupted"


class PartialFailureError(TwinportError):
    """Some of several files failed. ``report`` tells which and why; ``exit_code`` is the one they share, else 1."""

    default_code = "SomeFailed"

    def __init__(self, message: str, report: TransferReport) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = shared_exit_code([failure.error for failure in report.failures])


def shared_exit_code(errors: Sequence[TwinportError]) -> int:
    """0 for no errors, the exit code that all of them share, else 1."""
    codes = {error.exit_code for error in errors}
    if not codes:
        return 0
    return codes.pop() if len(codes) == 1 else 1


_C = ErrorCode
_CLASSES: dict[ErrorCode, type[TwinportError]] = {
    _C.INVALID_NAME: UsageError,
    _C.INVALID_ENCODING: UsageError,
    _C.INVALID_SIZE: UsageError,
    _C.FILE_NOT_FOUND: NotFoundError,
    _C.LOGIN_REQUIRED: LoginError,
    _C.LOGIN_FAILED: LoginError,
    _C.LOCKED: LoginError,
    _C.TLS_REQUIRED: LoginError,
    _C.TIMEOUT: NetworkError,
    _C.SHUTTING_DOWN: NetworkError,
    _C.BAD_REQUEST: ServerProtocolError,
    _C.BAD_STATE: ServerProtocolError,
    _C.LINE_TOO_LONG: ServerProtocolError,
    _C.NOT_ATTACHED: ServerProtocolError,
    _C.CREDIT_EXCEEDED: ServerProtocolError,
    _C.UNSUPPORTED: ServerProtocolError,
    _C.TOO_LARGE: SpaceError,
    _C.DISK_FULL: SpaceError,
    _C.QUOTA_EXCEEDED: SpaceError,
    _C.CORRUPT: IntegrityError,
    _C.ROOT_MISMATCH: IntegrityError,
    _C.DIGEST_MISMATCH: IntegrityError,
    _C.DENIED: DeniedError,
    _C.TICKET_INVALID: DeniedError,
    _C.TICKET_EXPIRED: DeniedError,
    _C.TICKET_REVOKED: DeniedError,
    _C.BUSY: BusyError,
    _C.NAME_CONFLICT: ConflictError,
    _C.NOT_EMPTY: ConflictError,
    _C.EXISTS: ConflictError,
    _C.CHANGED: ConflictError,
    _C.VERSION_GONE: ConflictError,
    _C.UPLOAD_UNKNOWN: ConflictError,
    _C.UPLOAD_CLOSED: ConflictError,
    _C.FENCED: ConflictError,
    _C.INCOMPLETE: ConflictError,
}


def refusal(code: ErrorCode, subject: str) -> TwinportError:
    """The error for a server that refused; ``subject`` says what was tried, as in ``cannot send a.txt``."""
    return _CLASSES.get(code, ServerError)(f"{subject}: {code.text} [{code.value}]", code.value)


def nonsense(error: ProtocolError) -> ServerProtocolError:
    """The error for a server that broke the protocol."""
    return ServerProtocolError(
        f"the server's answer makes no sense ({error}); "
        "check that host and port are those of a twinportd of this version"
    )


_SYSTEM: dict[int, type[TwinportError]] = {
    errno.ENOENT: NotFoundError,
    errno.ENOTDIR: NotFoundError,
    errno.EACCES: DeniedError,
    errno.EPERM: DeniedError,
    errno.EROFS: DeniedError,
    errno.ENOSPC: SpaceError,
    errno.EDQUOT: SpaceError,
    errno.EFBIG: SpaceError,
}
_ADVICE: dict[int, str] = {
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "choose another place",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EISDIR: "remove the directory, or choose another name",
    errno.EEXIST: "remove it, or choose another name",
    errno.ENOTDIR: "remove the file in the way, or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer --channels",
}


def local_failure(subject: str, error: OSError) -> TwinportError:
    """The error for a local system call that failed."""
    number = error.errno or 0
    kind = _SYSTEM.get(number, SourceError)
    advice = _ADVICE.get(number)
    text = f"{error.strerror or error}; {advice}" if advice else error.strerror or str(error)
    return kind(f"{subject}: {text}", kind.default_code)

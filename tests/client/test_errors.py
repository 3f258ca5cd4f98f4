"""The tree of errors: its drawing, its exit codes, its texts."""

from __future__ import annotations

import errno
import inspect
import re

import pytest
from twinport import errors
from twinport.report import Failure, TransferReport
from twinport_protocol.errors import ErrorCode, RemoteProtocolError

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.TwinportError)
}


def test_the_drawing_shows_every_class_with_its_parent_and_exit_code() -> None:
    drawn: dict[str, tuple[int, str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"( *[│├└─ ]*)(\w+Error) +(\d+|\*) ", line)
        if match:
            drawn[match[2]] = (len(match[1]), match[3])
    assert set(drawn) == set(CLASSES)
    for name, kind in CLASSES.items():
        depth, code = drawn[name]
        assert code in ("*", str(kind.exit_code)), name
        parent = kind.__mro__[1].__name__
        assert drawn.get(parent, (0, ""))[0] < depth, name


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_of_the_protocol_becomes_an_error_that_says_what_to_do(code: ErrorCode) -> None:
    error = errors.refusal(code, "cannot send a.txt")
    assert error.code == code.value
    assert error.message == f"cannot send a.txt: {code.text} [{code.value}]"
    assert str(error) == error.message


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (ErrorCode.FILE_NOT_FOUND, 3),
        (ErrorCode.LOGIN_REQUIRED, 4),
        (ErrorCode.LOGIN_FAILED, 4),
        (ErrorCode.LOCKED, 4),
        (ErrorCode.TLS_REQUIRED, 4),
        (ErrorCode.SHUTTING_DOWN, 5),
        (ErrorCode.DISK_FULL, 6),
        (ErrorCode.QUOTA_EXCEEDED, 6),
        (ErrorCode.TOO_LARGE, 6),
        (ErrorCode.CORRUPT, 7),
        (ErrorCode.ROOT_MISMATCH, 7),
        (ErrorCode.DENIED, 8),
        (ErrorCode.BUSY, 9),
        (ErrorCode.INVALID_NAME, 2),
        (ErrorCode.EXISTS, 1),
        (ErrorCode.FENCED, 1),
        (ErrorCode.INTERNAL, 1),
        (ErrorCode.STORAGE_FAULT, 1),
    ],
)
def test_exit_codes(code: ErrorCode, exit_code: int) -> None:
    assert errors.refusal(code, "x").exit_code == exit_code


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.NotFoundError),
        (errno.EACCES, errors.DeniedError),
        (errno.ENOSPC, errors.SpaceError),
        (errno.EDQUOT, errors.SpaceError),
        (errno.EIO, errors.SourceError),
    ],
)
def test_local_failures(number: int, kind: type[errors.TwinportError]) -> None:
    error = errors.local_failure("cannot read x", OSError(number, "some reason"))
    assert type(error) is kind
    text, _, advice = error.message.partition("; ")
    assert text == "cannot read x: some reason"
    assert bool(advice) is (number in {errno.EACCES, errno.ENOSPC, errno.EDQUOT})


def test_a_broken_protocol_asks_to_check_the_address() -> None:
    error = errors.nonsense(RemoteProtocolError(ErrorCode.BAD_REQUEST, "expected OK"))
    assert error.message == (
        "the server's answer makes no sense (BadRequest: expected OK); "
        "check that host and port are those of a twinportd of this version"
    )
    assert error.exit_code == 5


def failed(*kinds: type[errors.TwinportError], done: int = 0) -> TransferReport:
    """A report with such failures."""
    report = TransferReport(files_done=done)
    report.failures = [Failure(str(index), kind(f"failed {index}")) for index, kind in enumerate(kinds)]
    return report


def test_a_report_raises_what_fits() -> None:
    failed().raise_for_failures()
    with pytest.raises(errors.BusyError):
        failed(errors.BusyError).raise_for_failures()
    with pytest.raises(errors.PartialFailureError, match="1 of 3 failed, the first: failed 0") as caught:
        failed(errors.BusyError, done=2).raise_for_failures()
    assert caught.value.exit_code == 9
    with pytest.raises(errors.PartialFailureError) as caught:
        failed(errors.BusyError, errors.DeniedError).raise_for_failures()
    assert caught.value.exit_code == 1
    assert caught.value.report.failures[1].name == "1"


def test_shared_exit_codes() -> None:
    assert errors.shared_exit_code([]) == 0
    assert errors.shared_exit_code([errors.NotFoundError("a"), errors.NotFoundError("b")]) == 3
    assert errors.shared_exit_code([errors.NotFoundError("a"), errors.BusyError("b")]) == 1

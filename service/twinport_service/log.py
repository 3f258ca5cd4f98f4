"""The log: lines for people in the words of the original program, or one JSON object a line for machines.

An event is a tag and a text (``[UPLOAD] Receiving photo.jpg (118601 bytes) from (…)``) plus fields; people see the
text, machines the fields as well. Values are escaped, so no file or user name can forge a line.

No code of ours hands a secret to the log. Should one come here all the same, in the text of an exception perhaps, it is
struck out.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVEL_NAMES = tuple(_LEVELS)
FORMAT_NAMES = ("human", "json")
_SECRET_NAMES = frozenset({"password", "passphrase", "token", "secret", "signature", "ticket"})
# What looks like a token of ours or a password hash, anywhere; and in a traceback, where no name that a client wants
# to hide can be, what stands behind such a word.
_SECRET_TEXT = re.compile(r"tp_[0-9a-f]{16}_[A-Za-z0-9_-]{43}|\$argon2[a-z]*\$[^\s'\"]+")
_SECRET_IN_TRACE = re.compile(
    r"(?<![A-Za-z])(?:password|passphrase|token|secret|signature|ticket)['\"]?\s*[=:]\s*(?:'[^']*'|\"[^\"]*\"|[^\s,)}]+)"
)
_STRUCK_OUT = "[struck out]"


def configure_logging(form: str = "human", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up the process's log: ``form`` is one of ``FORMAT_NAMES``, ``level`` one of ``LEVEL_NAMES``; stderr by
    default.

    Under systemd (``JOURNAL_STREAM`` set) human lines carry no time of their own: the journal has it.
    """
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    render: Any = structlog.processors.JSONRenderer() if form == "json" else _render_human
    stamped = [stamp] if form == "json" or "JOURNAL_STREAM" not in os.environ else []
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *stamped,
            structlog.processors.format_exc_info,
            _strike_out_secrets,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )


def get_log() -> FilteringBoundLogger:
    """The service's logger; calls look like ``log.info("[LIST] Sending file list", peer=…)``."""
    logger: FilteringBoundLogger = structlog.get_logger("twinport")
    return logger


def printable(value: object) -> str:
    """``value`` as it may stand in a log line: nothing but printable characters, on one line."""
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _strike_out_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    del logger, method
    for key, value in event.items():
        if key in _SECRET_NAMES:
            event[key] = _STRUCK_OUT
        elif isinstance(value, str):
            text = _SECRET_IN_TRACE.sub(_STRUCK_OUT, value) if key == "exception" else value
            event[key] = _SECRET_TEXT.sub(_STRUCK_OUT, text)
    return event


def _render_human(logger: WrappedLogger, method: str, event: EventDict) -> str:
    del logger, method
    stamp = event.pop("timestamp", "")
    level = event.pop("level", "info")
    text = printable(event.pop("event", ""))
    trace = event.pop("exception", None)
    fields = " ".join(f"{key}={printable(value)}" for key, value in event.items() if key != "peer")
    parts = [stamp, "" if level == "info" else level.upper(), text, fields]
    line = " ".join(part for part in parts if part)
    # A traceback is our own bug; it is the one thing that may take several lines, indented so that none starts like a
    # record.
    return line if trace is None else line + "\n    " + str(trace).replace("\n", "\n    ")

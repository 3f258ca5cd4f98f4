"""What is found out about one layer between here and a finished transfer."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Layer(enum.Enum):
    """From the bottom up; each stands on those before it."""

    NAME = "name"
    ROUTE = "route"
    CONTROL_PORT = "control port"
    SERVER = "server"
    LOGIN = "login"
    VERSION = "version"
    DATA_PORT = "data port"
    CLOCK = "clock"
    TRANSFER = "transfer"
    SPACE = "space"


class Status(enum.Enum):
    """How it is. ``WARNING``: it works, but not as well as it might. ``UNTRIED``: a layer below has failed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNTRIED = "untried"


@dataclass(frozen=True)
class Finding:
    """``text`` says what was seen; ``meaning`` what that is as a rule, and ``next_step`` what to do, where something is
    wrong. ``code`` is stable, for programs; ``exit_code`` the command's if this is the first that failed."""

    layer: Layer
    status: Status
    text: str
    meaning: str = ""
    next_step: str = ""
    code: str = ""
    exit_code: int = 5

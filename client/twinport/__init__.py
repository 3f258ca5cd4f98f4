"""Twinport's client library: move files to and from a ``twinportd``, verified and resumable.

    import twinport

    with twinport.connect("127.0.0.1") as client:
        client.put("photos", to="backup", recursive=True)
        client.get("backup/photos/cat.jpg", "downloads")

Errors are in :mod:`twinport.errors`. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client
    from .connecting import connect
    from .engine import Policy
    from .entries import RemoteEntry
    from .errors import TwinportError
    from .report import Failure, Observer, TransferReport

__all__ = [
    "Client",
    "Failure",
    "Observer",
    "Policy",
    "RemoteEntry",
    "TransferReport",
    "TwinportError",
    "connect",
]

_HOMES = {
    "Client": "client",
    "RemoteEntry": "entries",
    "connect": "connecting",
    "Policy": "engine",
    "TwinportError": "errors",
    "Failure": "report",
    "Observer": "report",
    "TransferReport": "report",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module  # noqa: PLC0415  # as everything here, only when it is used

    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name == "errors":
        return import_module(".errors", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "errors"])

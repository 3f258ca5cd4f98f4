"""Loading what a command is going to need while its connection waits for the network.

A session takes several round trips to open, and what follows takes a tenth of a second of loading; over a long line
that is time for nothing if it comes one after the other.
"""

from __future__ import annotations

import contextlib
import importlib
import threading

KEY_LOGIN = ("cryptography.hazmat.primitives.serialization", "cryptography.hazmat.primitives.asymmetric.ed25519")
UPLOAD = ("twinport.upload_engine", "twinport.upload_feed", "twinport.upload_lane")
DOWNLOAD = ("twinport.download_engine", "twinport.download_feed", "twinport.download_lane")


def warm_up(modules: tuple[str, ...]) -> None:
    """Load modules in a thread that is left alone. One that fails says why when it is really needed."""
    # No daemon: an interpreter that ends in the middle of an import had better wait for it.
    threading.Thread(target=_load, args=(modules,), name="twinport-warm-up").start()


def _load(modules: tuple[str, ...]) -> None:
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)

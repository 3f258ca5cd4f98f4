"""How much a run of these tests does: the short form in CI, the full one when ``TWINPORT_TORTURE`` says so.

``scripts/torture`` sets the variables. ``TWINPORT_TORTURE_DIR`` is the directory for the files; by default it is
tmpfs, where there is one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1024 * 1024
IS_FULL = os.environ.get("TWINPORT_TORTURE") == "full"
KILL_BYTES = (1024 if IS_FULL else 96) * MIB + 4321
KILL_MOMENTS = int(os.environ.get("TWINPORT_TORTURE_MOMENTS", "20" if IS_FULL else "3"))
MEMORY_BYTES = (3 * 1024 if IS_FULL else 512) * MIB + 12345
SEED = int(os.environ.get("TWINPORT_TORTURE_SEED", "1"))


@contextmanager
def work_directory() -> Iterator[Path]:
    """An empty directory for large files, removed afterwards."""
    place = os.environ.get("TWINPORT_TORTURE_DIR")
    if place is None and os.access("/dev/shm", os.W_OK | os.X_OK):
        place = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="twinport-e2e-", dir=place) as name:
        yield Path(name)

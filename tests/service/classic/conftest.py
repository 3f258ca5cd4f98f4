"""Fixtures of the classic dialect: a server over a disk, and the oracle that judges it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from twinport_service.classic.plane import ClassicLimits
from twinport_service.storage.local import LocalStorage

from .harness import PATIENT, SHORT, RunningPlane, running_plane
from .oracle import ClassicOracle

in_a_hurry = pytest.mark.parametrize("limits", [SHORT], ids=["hurry"])
"""For tests of deadlines: the server of the test gives its clients one second for everything."""


@pytest.fixture
def root(shm_path: Path) -> Path:
    """The directory that is served."""
    path = shm_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def outside(shm_path: Path) -> Path:
    """A tree beside the root that nothing may touch."""
    path = shm_path / "outside"
    (path / ".ssh").mkdir(parents=True)
    for name in ("passwd", ".ssh/authorized_keys"):
        (path / name).write_bytes(os.urandom(64))
    return path


@pytest.fixture
def limits() -> ClassicLimits:
    """The bounds of ``server``; see ``in_a_hurry``."""
    return PATIENT


@pytest.fixture
def server(root: Path, limits: ClassicLimits) -> Iterator[RunningPlane]:
    """A server over a real directory."""
    with running_plane(LocalStorage(root), limits) as running:
        yield running


@pytest.fixture
def oracle(server: RunningPlane, root: Path, outside: Path) -> ClassicOracle:
    """The oracle of ``server``."""
    return ClassicOracle(server, root, outside)

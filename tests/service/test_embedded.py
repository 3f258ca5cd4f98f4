"""What the embedded server stands on, and what it says where it cannot stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from twinport_service.config import Settings
from twinport_service.embedded import FoundationError, open_foundation


def close(root: Path, **changes: bool) -> None:
    """Open and close a root."""
    foundation = open_foundation(Settings(root=root, **changes))  # type: ignore[arg-type]
    foundation.storage.start({})
    foundation.close()


def test_a_root_that_must_have_been_used_has_been(tmp_path: Path) -> None:
    """The empty directory below a missing mount is refused, the root itself is not."""
    with pytest.raises(FoundationError, match="root"):
        close(tmp_path / "root", require_used=True)
    assert not (tmp_path / "root").exists()
    close(tmp_path / "root")
    close(tmp_path / "root", require_used=True)


def test_a_root_is_served_by_one_server(tmp_path: Path) -> None:
    """The second is told so, and leaves the first alone."""
    first = open_foundation(Settings(root=tmp_path))
    try:
        with pytest.raises(FoundationError, match="another"):
            open_foundation(Settings(root=tmp_path))
    finally:
        first.storage.start({})
        first.close()


def test_a_root_below_a_file_is_refused_in_words(tmp_path: Path) -> None:
    """With the next step."""
    (tmp_path / "file").touch()
    with pytest.raises(FoundationError, match="Choose another --root"):
        open_foundation(Settings(root=tmp_path / "file" / "root"))

"""A temporary directory whose failure is told as the library's own errors are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import local_failure


@contextmanager
def temporary_directory(prefix: str) -> Iterator[str]:
    """Its path; removed afterwards with all in it. ``TwinportError`` where there can be none."""
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise local_failure("cannot make a temporary directory; set TMPDIR to one with room", error) from None
    with made as directory:
        yield directory

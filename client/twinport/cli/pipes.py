"""Standard input and output in the place of files: through one in TMPDIR, because sizes are told before bytes are sent,
and no byte is handed out before all of them are verified."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from twinport.errors import local_failure
from twinport.temporary import temporary_directory

STANDARD = "-"
_PREFIX = "twinport-"
_COPY_BYTES = 1024 * 1024


@contextmanager
def spooled_input() -> Iterator[str]:
    """All of standard input, as a file; its path. Removed afterwards. ``TwinportError``."""
    with temporary_directory(_PREFIX) as directory:
        path = os.path.join(directory, "input")
        try:
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file, _COPY_BYTES)
        except OSError as error:
            raise local_failure(f"cannot keep standard input in {directory}", error) from None
        yield path


@contextmanager
def spooled_output() -> Iterator[str]:
    """The path for a file; what is there at the end goes to standard output. ``TwinportError``."""
    with temporary_directory(_PREFIX) as directory:
        path = os.path.join(directory, "output")
        yield path
        if os.path.exists(path):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer, _COPY_BYTES)
            sys.stdout.buffer.flush()

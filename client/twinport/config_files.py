"""The files that this user keeps: JSON, mode 0600, replaced whole, never by two processes at once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import UsageError, local_failure

MAX_FILE_BYTES = 4 * 1024 * 1024


def config_directory() -> Path:
    """``TWINPORT_CONFIG_DIR``, or where this system keeps a user's settings (``~/.config/twinport``)."""
    given = os.environ.get("TWINPORT_CONFIG_DIR")
    if given:
        return Path(given)
    from platformdirs import user_config_dir  # noqa: PLC0415  # not where the variable answers already

    return Path(user_config_dir("twinport", appauthor=False))


class ConfigFile:
    """One JSON object in a file. What it holds besides what is known here is kept as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """What the file holds; nothing where there is none. ``UsageError`` for a file that is damaged,
        ``DeniedError`` for one that cannot be read."""
        try:
            with open(self.path, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):  # a home like /dev/null has no settings
            return {}
        except OSError as error:
            raise local_failure(f"cannot read {self.path}", error) from None
        try:
            found = json.loads(data) if len(data) <= MAX_FILE_BYTES else None
        except (ValueError, RecursionError):  # the latter for a thousand brackets
            found = None
        if not isinstance(found, dict):
            raise UsageError(f"{self.path} is damaged: not a JSON object; repair or remove it")
        return found

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Read, ``edit`` in place, write, while other processes wait. What ``edit`` raises leaves the file alone."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                content = self.read()
                edit(content)
                self._replace(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise local_failure(f"cannot write {self.path}", error) from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A lock of its own: the file itself is another one after each change.
        number = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def _replace(self, data: bytes) -> None:
        temporary = f"{self.path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # of a process that was killed; this one holds the lock
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

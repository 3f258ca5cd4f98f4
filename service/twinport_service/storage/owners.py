"""Owners: what the stored files of each user come to, told to the usage book as the catalogue sees it.

The owner of a file is the user in the newest row of its path. At the start those rows are summed. Files that were
removed by other means still have theirs: they are taken back when somebody asks for one, and a thread looks for all of
them after the start, so that no start has to wait for it (measured on this project's machine: see
docs/server-behaviour.md). Until it is through, such files count: too much, never too little.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
import time
from collections.abc import Sequence

from twinport_service.log import get_log
from twinport_service.usage import UsageKeeper

from .catalogue import Catalogue
from .tree import Tree

PAGE_ROWS = 256
REST_SECONDS = 0.002
"""After each page: commits come first."""


class Owners:
    """See the module. ``publication_lock`` is the publisher's. Start once, close once."""

    def __init__(
        self,
        tree: Tree,
        catalogue: Catalogue,
        publication_lock: threading.Lock,
        usage: UsageKeeper,
        *,
        page_rows: int = PAGE_ROWS,
    ) -> None:
        self._tree = tree
        self._catalogue = catalogue
        self._publication_lock = publication_lock
        self._usage = usage
        self._page_rows = page_rows
        self._is_closing = threading.Event()
        self._checked = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage-owners", daemon=True)

    def start(self) -> None:
        """Count what the catalogue says; then look, in a thread, whether it is there."""
        self._usage.load(self._catalogue.stored())
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._is_closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wait_checked(self, seconds: float) -> bool:
        """Wait until every path has been looked at; whether it has."""
        return self._checked.wait(seconds)

    def _run(self) -> None:
        started = time.monotonic()
        after, missing = "", 0
        try:
            while not self._is_closing.is_set():
                page = self._catalogue.owned_after(after, self._page_rows)
                if not page:
                    self._checked.set()
                    break
                after = page[-1].path
                missing += self.forget_missing([row.path for row in page if not self._is_there(row.path)])
                self._is_closing.wait(REST_SECONDS)
        except sqlite3.Error as error:
            get_log().error("[STORAGE] Missing files could not be looked for", cause=str(error))
        if missing:
            seconds = f"{time.monotonic() - started:.1f}"
            get_log().info("[STORAGE] Files removed by other means no longer count", files=missing, seconds=seconds)

    def note_missing(self, path: str) -> None:
        """Somebody asked for a file that is not there. Never raises."""
        try:
            self.forget_missing((path,))
        except sqlite3.Error as error:
            get_log().error("[STORAGE] The owner of a missing file is unknown", cause=str(error))

    def forget_missing(self, paths: Sequence[str]) -> int:
        """Take back what counts for those paths at which there is nothing; how many. Raises ``sqlite3.Error``."""
        count = 0
        for path in paths:
            if self._catalogue.current(path) is None:  # a name that never was: the common case, and no lock
                continue
            with self._publication_lock:
                if self._is_there(path):
                    continue
                owned = self._catalogue.owner(path)
                self._catalogue.forget_later(path)
                if owned is not None:
                    self._usage.removed((owned,))
                    count += 1
        return count

    def _is_there(self, path: str) -> bool:
        try:
            return not stat.S_ISDIR(self._tree.facts(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # nobody knows: it goes on counting

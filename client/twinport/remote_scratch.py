"""A directory of our own on the server for files that only try it out, and taking it away again, whatever happened
meanwhile."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import DeniedError, NetworkError, NotFoundError, TwinportError

if TYPE_CHECKING:
    from .client import Client

_LOOKS = 3
_PAUSE_SECONDS = 0.3


class RemoteScratch:
    """A directory of its own below ``above`` on the server, called ``prefix`` and something random. Every name that is
    sent goes through :meth:`begin` first, so that it can be taken away again."""

    def __init__(self, client: Client, above: str, prefix: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._above = above.strip("/")
        self._made: list[str] = []
        self._names: list[str] = []
        self._unfinished: set[str] = set()
        self._uploads: list[str] = []
        self._sleep = sleep
        base = prefix + secrets.token_hex(6)
        self.name = f"{self._above}/{base}" if self._above else base

    def make(self) -> None:
        """Make it; what is missing of the directories above is made, and will be removed too. ``DeniedError``."""
        parts = self._above.split("/") if self._above else []
        for count in range(1, len(parts) + 1):
            name = "/".join(parts[:count])
            try:
                self._client.stat(name)
            except NotFoundError:
                self._made.append(name)
            except DeniedError:
                continue  # what may not be looked at is there, or making the rest will say what is wrong
        self._made.append(self.name)
        try:
            self._client.mkdir(self.name)
        except DeniedError as error:
            self._made.clear()
            where = f"{self._above}/" if self._above else "the server's top directory"
            text = f"no test directory in {where}: you may not write there; name one where you may with --to"
            hint = error.message.partition("]; ")[2]
            raise DeniedError(f"{text}; {hint}" if hint else text, error.code) from None

    def new_upload_id(self) -> str:
        """For the client's uploads; kept, to give up those that are interrupted."""
        self._uploads.append(os.urandom(16).hex())
        return self._uploads[-1]

    def begin(self, below: str, paths: list[str]) -> str:
        """Files are about to be sent to a directory ``below``: what it is called on the server."""
        place = f"{self.name}/{below}"
        names = [f"{place}/{os.path.basename(path)}" for path in paths]
        self._names += names
        self._unfinished.update(names)
        return place

    def finish(self, names: list[str]) -> None:
        """These are there, and nothing of them is under way any more."""
        self._unfinished.difference_update(names)

    def remove(self) -> tuple[str, ...]:
        """Take it all away; the names of what could not be.

        After an interrupted transfer what was on its way may still arrive: then it is looked for more than once.
        """
        looks = _LOOKS if self._unfinished else 1
        left: tuple[str, ...] = ()
        try:
            for look in range(looks):
                if look:
                    self._sleep(_PAUSE_SECONDS)
                if self._unfinished:
                    self._client.abandon(self._uploads)
                left = self._remove_once()
        except TwinportError:
            # Not those above it: others may have files there by now, and whoever reads this removes all in it.
            return (self.name,) if self.name in self._made else ()
        return left

    def _remove_once(self) -> tuple[str, ...]:
        left: list[str] = []
        self._client.delete_files(self._names)
        for name in reversed(self._made):
            try:
                self._client.delete(name, recursive=name == self.name)
            except NotFoundError:
                continue
            except NetworkError:
                raise
            except TwinportError as error:
                if name == self.name or error.code != "NotEmpty":  # somebody else's files by now
                    left.append(name)
        return tuple(left)

"""What a transfer did, and who may watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from .errors import PartialFailureError, TwinportError
from .timings import Timings


@dataclass(frozen=True)
class Failure:
    """One file or directory that did not make it."""

    name: str
    error: TwinportError


@dataclass
class TransferReport:
    """The outcome of one ``put`` or ``get``. Sizes in bytes.

    ``bytes_moved`` crossed the line and were verified; ``bytes_kept`` were verified where they already were.
    """

    files_done: int = 0
    files_kept: int = 0
    directories_done: int = 0
    bytes_moved: int = 0
    bytes_kept: int = 0
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings, compare=False, repr=False)
    """Where the time went."""

    def raise_for_failures(self) -> None:
        """Nothing if all went well; the one error if one file was asked for; else ``PartialFailureError``."""
        if not self.failures:
            return
        if len(self.failures) == 1 and not self.files_done and not self.files_kept and not self.directories_done:
            raise self.failures[0].error
        total = self.files_done + self.files_kept + self.directories_done + len(self.failures)
        first = self.failures[0].error.message
        raise PartialFailureError(f"{len(self.failures)} of {total} failed, the first: {first}", self)


class Observer(Protocol):
    """Watches a transfer. Called in the thread that called ``put`` or ``get``, never under a lock."""

    def file_done(self, name: str, size_bytes: int) -> None:
        """A file is complete, verified and durable."""

    def file_failed(self, name: str, error: TwinportError) -> None:
        """A file failed; the rest goes on."""

    def note(self, text: str) -> None:
        """Something worth knowing: a skipped link, a lost connection."""

    def progress(self, done_bytes: int, known_bytes: int) -> None:
        """Now and then: verified bytes so far, and all bytes known so far (more may be found)."""


@runtime_checkable
class ChannelWatcher(Protocol):
    """An observer that also looks at the sockets of the transfer's data connections."""

    def channel_opens(self, descriptor: int) -> None:
        """A data connection is there. Called, as the other, in that connection's thread: be quick, raise nothing."""

    def channel_closes(self, descriptor: int) -> None:
        """It is about to be closed."""


class SilentObserver:
    """Watches without a word: the default."""

    def file_done(self, name: str, size_bytes: int) -> None:
        """Nothing."""

    def file_failed(self, name: str, error: TwinportError) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, done_bytes: int, known_bytes: int) -> None:
        """Nothing."""

"""The library's front door: one connection to one server, and what can be done over it.

A :class:`Client` is used by one thread at a time. Its calls block; threads of its own own the sockets.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from twinport_protocol.version import VERSION

from .addresses import Address
from .channel_count import ChannelCount, core_count
from .connector import Connector, Security
from .engine import Policy
from .entries import checked_name, checked_prefix
from .errors import (
    TwinportError,
    UsageError,
    local_failure,
)
from .login import Login
from .remote_names import RemoteNames
from .report import Observer, SilentObserver, TransferReport
from .streams import SILENT_SECONDS
from .transfer import PATIENCE_SECONDS, Transfer

if TYPE_CHECKING:
    pass

Names = str | Sequence[str]
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Client(RemoteNames):
    """A connection to a server; see :func:`twinport.connect`. Reconnects by itself while something is under way."""

    def __init__(
        self,
        address: Address,
        *,
        security: Security | None = None,
        login: Login | None = None,
        channels: int | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        policy: Policy | None = None,
    ) -> None:
        if channels is not None and channels < 1:
            raise UsageError("a transfer needs at least one channel")
        self._channels = channels
        self._silent_seconds = silent_seconds
        self._policy = policy or Policy()
        self.new_upload_id: Callable[[], str] = lambda: os.urandom(16).hex()
        """Gives the random ids of uploads. Replace it to keep them."""
        super().__init__(Connector(address, f"twinport/{VERSION}", security, login), patience_seconds)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # transfers -------------------------------------------------------------------------------------------------------

    def put(
        self,
        paths: Paths,
        to: str = "",
        *,
        recursive: bool = False,
        follow: bool = False,
        exact: bool = False,
        if_absent: bool = False,
        check: bool = True,
        progress: Observer | None = None,
    ) -> TransferReport:
        """Send files, and directories with ``recursive``, to the remote directory ``to``.

        With ``exact``, of one path, ``to`` is not where it goes but what it is called. When this returns without an
        error, every file is on the server's stable storage under its name, verified. What an interrupted run has sent
        is not sent again. ``if_absent`` refuses to replace. With ``check`` a failure is raised after the rest was sent
        (the file's own error, or ``PartialFailureError``); without, look at the report.
        """
        from .upload_engine import UploadEngine  # noqa: PLC0415
        from .upload_feed import UploadFeed  # noqa: PLC0415  # a listing must not pay for it
        from .upload_lane import UploadLane  # noqa: PLC0415

        wanted = _paths(paths)
        if exact and len(wanted) != 1:
            raise UsageError("several paths need a directory to go into")
        session = self._connected()
        lock = threading.Lock()
        feed = UploadFeed(
            wanted,
            checked_name(to) if exact else checked_prefix(to),
            recursive=recursive,
            follow=follow,
            listing=self._feed_listing,
            exact=exact,
        )
        options = {"if-absent": "1"} if if_absent else {}
        engine = UploadEngine(
            session.limits, self._policy, time.monotonic, self.new_upload_id, feed.find_again, options
        )
        transfer = Transfer(
            engine,
            lock,
            self._current_session,
            lambda current, on_change: UploadLane(engine, lock, current.limits, on_change, time.monotonic),
            progress or SilentObserver(),
            count=self._channel_count(),
            patience_seconds=self._patience_seconds,
            silent_seconds=self._silent_seconds,
        )
        transfer.run(feed.items(), lambda item: feed.add(engine, item))
        if check:
            engine.report.raise_for_failures()
        return engine.report

    def get(
        self,
        names: Names,
        to: str | os.PathLike[str] = ".",
        *,
        recursive: bool = False,
        exact: bool = False,
        check: bool = True,
        progress: Observer | None = None,
    ) -> TransferReport:
        """Fetch files, and directories with ``recursive``, into the local directory ``to``, each under its last part.

        With ``exact``, of one name, ``to`` is not where the copy goes but what it is called. A file appears under its
        name only complete, verified and flushed to disk, with its time and executable bit; what is there already is
        kept. ``check`` as in :meth:`put`.
        """
        from .download_engine import DownloadEngine  # noqa: PLC0415  # as in put
        from .download_feed import DownloadFeed  # noqa: PLC0415
        from .download_lane import DownloadLane  # noqa: PLC0415
        from .flusher import Flusher  # noqa: PLC0415
        from .target_tree import TargetTree  # noqa: PLC0415

        wanted = [names] if isinstance(names, str) else list(names)
        if exact and len(wanted) != 1:
            raise UsageError("several names need a directory to go into")
        session = self._connected()
        lock = threading.Lock()
        engine = DownloadEngine(session.limits, self._policy, time.monotonic)
        feed = DownloadFeed(wanted, os.fspath(to), recursive=recursive, exact=exact, listing=self._feed_listing)
        tree = TargetTree(feed.root)

        def on_published(outcomes: list[tuple[Any, TwinportError | None]]) -> None:
            with lock:
                for job, error in outcomes:
                    engine.published(job, error)
            transfer.on_change()

        flusher = Flusher(tree, on_published)
        transfer = Transfer(
            engine,
            lock,
            self._current_session,
            lambda current, on_change: DownloadLane(engine, lock, current.limits, on_change, tree, flusher),
            progress or SilentObserver(),
            count=self._channel_count(),
            patience_seconds=self._patience_seconds,
            silent_seconds=self._silent_seconds,
        )
        flusher.start()
        try:
            transfer.run(feed.items(), lambda item: feed.add(engine, tree, item))
        finally:
            flusher.close()
            engine.report.timings.flushing_seconds = flusher.seconds
            _finish(tree)
        if check:
            engine.report.raise_for_failures()
        return engine.report

    def _channel_count(self) -> ChannelCount:
        return ChannelCount(self._channels, core_count(), time.monotonic, first=self._policy.first_channels)


def _finish(tree: Any) -> None:
    """Directories without files in them must last too."""
    try:
        tree.sync_made()
    except OSError as error:
        raise local_failure("cannot flush the target directory", error) from None
    finally:
        tree.close()


def _paths(paths: Paths) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        return [os.fspath(paths)]
    return [os.fspath(path) for path in paths]

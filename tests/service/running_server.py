"""A real server in a thread of its own, with its own event loop, for tests to talk to over loopback."""

from __future__ import annotations

import asyncio
import io
import re
import threading
from collections.abc import Callable
from typing import TypeVar

from twinport_service.config import Settings
from twinport_service.embedded import OWN_DIRECTORY
from twinport_service.foundation import Foundation
from twinport_service.log import configure_logging
from twinport_service.server import Server
from twinport_service.storage.memory import MemoryStorage

_T = TypeVar("_T")
CALL_SECONDS = 30.0


class RunningServer:
    """Use as a context manager. Its log is in ``log``; whatever the event loop complains of is in ``complaints``."""

    def __init__(self, settings: Settings, foundation: Foundation) -> None:
        self.settings = settings
        self.foundation = foundation
        self.log = io.StringIO()
        self.complaints: list[str] = []
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # told to the starter, or to `stop`
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(lambda loop, context: self.complaints.append(str(context)))
        self._enough = asyncio.Event()
        async with Server(self.settings, self.foundation) as self.server:
            self._ready.set()
            await self._enough.wait()

    def __enter__(self) -> RunningServer:
        configure_logging("human", "debug", self.log)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it as a signal would; harmless when repeated."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._enough.set)
            self._thread.join()
        if self._failed is not None:
            raise self._failed

    def call(self, function: Callable[[], _T]) -> _T:
        """Call on the server's event loop."""

        async def run() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(CALL_SECONDS)

    @property
    def control_address(self) -> tuple[str, int]:
        """Where control connections go."""
        return self.server.control_address

    @property
    def data_address(self) -> tuple[str, int]:
        """Where channels go."""
        host, port = self.server.control_address
        return (host, port) if self.server.serves_classic else self.server.data_address

    @property
    def session_count(self) -> int:
        """Control sessions now."""
        return len(self.server._sessions)

    @property
    def channel_count(self) -> int:
        """Channels now."""
        return self.server._channels.count

    def live_uploads(self) -> set[bytes]:
        """The uploads that are open."""
        return {record.spec.upload_id for record in self.foundation.ledger.open_uploads()}

    def staged_uploads(self) -> set[bytes]:
        """The uploads that the storage holds bytes of."""
        storage = self.foundation.storage
        if isinstance(storage, MemoryStorage):
            return set(storage._stagings)
        names = (path.name for path in self.settings.root.glob(f"{OWN_DIRECTORY}/**/*") if path.is_file())
        return {bytes.fromhex(name) for name in names if re.fullmatch("[0-9a-f]{32}", name)}

    def assert_no_traceback(self) -> None:
        """Nothing went wrong that the server did not expect."""
        assert "Traceback" not in self.log.getvalue(), self.log.getvalue()
        assert not self.complaints, self.complaints

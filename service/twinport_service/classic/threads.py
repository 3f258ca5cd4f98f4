"""One thread for each running transfer, and the way back to the event loop when it ends."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import TypeVar

from twinport_protocol.errors import ErrorCode, Refusal

T = TypeVar("T")


class TransferThreads:
    """Starts threads from the event loop and counts them; there is no cap here, turns are capped before."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._running: set[int] = set()

    @property
    def count(self) -> int:
        """How many run."""
        return len(self._running)

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``work`` in a thread of its own; its result or exception. ``Busy`` when no thread can be had."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        number = next(self._numbers)

        def end(result: T | None, error: BaseException | None) -> None:
            self._running.discard(number)
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type] # None only where T allows it

        def run() -> None:
            outcome: tuple[T | None, BaseException | None]
            try:
                outcome = work(), None
            except Exception as error:
                outcome = None, error
            try:
                loop.call_soon_threadsafe(end, *outcome)
            except RuntimeError:
                return  # the loop is closed: nobody waits for the outcome any more

        try:
            threading.Thread(target=run, name=f"classic-{number}", daemon=True).start()
        except RuntimeError as error:
            raise Refusal(ErrorCode.BUSY, str(error)) from None
        self._running.add(number)
        return future

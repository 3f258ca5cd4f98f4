"""Measures a server and the line to it, step by step, each within its share of the time."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from twinport.connector import is_loopback
from twinport.engine import Policy
from twinport.errors import InterruptError, TwinportError
from twinport.temporary import temporary_directory

from .facts import Measurements
from .plan import Amounts, Room, amounts
from .scratch import PREFIX
from .steps import Steps, Tell, Wish, speed_of

if TYPE_CHECKING:
    from twinport.addresses import Address
    from twinport.client import Client

Connect = Callable[[int, "Policy | None"], "Client"]

ONE_AT_A_TIME = Policy(open_files=1)


def measure(
    connect: Connect,
    wish: Wish | None = None,
    tell: Tell = lambda step, done_bytes: None,
    clock: Callable[[], float] = time.monotonic,
    address: Address | None = None,
) -> Measurements:
    """Measure by real transfers, and take away all that was sent, on both sides and in any case.

    ``connect`` opens a client with so many channels and a policy, more than once; the second time is measured.
    ``address`` is what it connects to. ``tell`` hears of each step, and of the bytes moved in it. What could not be
    removed is in ``left_behind`` of the result, or said by the error.

    ``InterruptError`` for Ctrl-C; ``SpaceError`` where quota, disk or the wish leave too little to measure;
    ``DeniedError`` where the user may not write; and what transfers raise.
    """
    try:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(temporary_directory(PREFIX))
            tell("connecting", 0)
            usual = stack.enter_context(connect(wish.channels if wish else Wish.channels, None))
            found = _Measuring(usual, connect, wish or Wish(), tell, clock, directory).run()
            is_local = address is not None and is_loopback(address.host)
            return replace(found, address=str(address or ""), is_local=is_local)
    except KeyboardInterrupt:
        raise InterruptError("the measurement was interrupted; nothing was left behind") from None


class _Measuring(Steps):
    """One measurement. ``connect`` opens further clients."""

    def __init__(
        self, usual: Client, connect: Connect, wish: Wish, tell: Tell, clock: Callable[[], float], directory: str
    ) -> None:
        super().__init__(usual, wish, tell, clock, directory)
        self._connect = connect

    def run(self) -> Measurements:
        """All steps, then the removal."""
        most = self._amounts()
        try:
            self._remote.make()
            found = self._steps(most)
        except BaseException as error:
            left = self._remove()
            if isinstance(error, KeyboardInterrupt):
                error = InterruptError("the measurement was interrupted")
                if not left:
                    error.add_hint("nothing was left behind")
            if isinstance(error, TwinportError):
                if left:
                    error.add_hint(_say_left(left))
                raise error from None
            raise
        left = self._remove()
        return replace(
            found,
            seconds=self._clock() - self._begun,
            sent_bytes=self._sent_bytes,
            fetched_bytes=self._fetched_bytes,
            left_behind=left,
        )

    def _remove(self) -> tuple[str, ...]:
        self._tell("removing what was sent", 0)
        try:
            return self._remote.remove()
        except KeyboardInterrupt:  # once more: the user has no patience for this
            return (self._remote.name,)

    def _amounts(self) -> Amounts:
        quota = self._usual.quota()
        files = None if quota.max_files is None else max(0, quota.max_files - quota.files - quota.open_uploads)
        try:
            free: int | None = shutil.disk_usage(self._local.directory).free
        except OSError:
            free = None
        return amounts(Room(self._wish.size_bytes, quota.free_bytes, files, self._usual.limits.max_file, free))

    def _steps(self, most: Amounts) -> Measurements:
        began = time.perf_counter()
        with self._connect(1, ONE_AT_A_TIME) as tiny:
            connect_seconds = time.perf_counter() - began
            trips = self._ping()
            self._rtt_seconds = trips.median_seconds
            flush_seconds = self._flush(tiny)
        # So many from the beginning, whatever the line is like: that is the question.
        several = Policy(first_channels=self._channels)
        with self._connect(1, None) as one, self._connect(self._channels, several) as many:
            up_one, one_names = self._up_one(one, most)
            up_many, many_names = self._up_many(many, up_one, most)
            every = {**one_names, **many_names}
            down_one = self._down_flow(one, 1, "down_one", one_names, every)
            down_many = self._down_flow(many, self._channels, "down_many", many_names, every) if up_many else None
            small_up, small_names = self._small_up(speed_of(up_many or up_one), flush_seconds, most)
            small_down = self._small_down(small_names)
            identity = one.identity
        return Measurements(
            address="",
            user=identity.user,
            tls_version=identity.tls_version,
            cores=_cores(),
            seconds=0.0,
            sent_bytes=0,
            fetched_bytes=0,
            round_trips=trips,
            connect_seconds=connect_seconds,
            flush_seconds=flush_seconds,
            local_flush_seconds=self._local.flush_seconds(),
            up_one=up_one,
            up_many=up_many,
            down_one=down_one,
            down_many=down_many,
            small_up=small_up,
            small_down=small_down,
            bounded_by=most.bounded_by,
        )


def _cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _say_left(names: tuple[str, ...]) -> str:
    return f"left on the server, remove it with: twinport rm -r {shlex.join(names)}"

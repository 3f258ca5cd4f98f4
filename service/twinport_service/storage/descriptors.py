"""Descriptors that several threads share, kept open for a bounded number of holders."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar


class SharedDescriptor:
    """A descriptor that is closed when its last holder lets go; it begins with one holder."""

    __slots__ = ("_close", "_holders", "_lock", "fd")

    def __init__(self, close: Callable[[int], None], fd: int) -> None:
        self.fd = fd
        self._close = close
        self._lock = threading.Lock()
        self._holders = 1

    def retain(self) -> bool:
        """Become a holder; False when it is closed already."""
        with self._lock:
            if self._holders == 0:
                return False
            self._holders += 1
            return True

    def release(self) -> None:
        """Let go. The last one gets the error of ``close``."""
        with self._lock:
            self._holders -= 1
            if self._holders > 0:
                return
        self._close(self.fd)


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LeastRecentlyUsed(Generic[K, V]):
    """At most ``capacity`` values by key; the one not used for longest goes first, and is handed to ``on_evict``.

    Not locked: the owner's lock guards it, and ``on_evict`` runs under it.
    """

    def __init__(self, capacity: int, on_evict: Callable[[K, V], None] | None = None) -> None:
        self._capacity = capacity
        self._on_evict = on_evict
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, which then counts as just used."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep a value, in place of an older one under its key."""
        previous = self._values.pop(key, None)
        if previous is not None and self._on_evict is not None:
            self._on_evict(key, previous)
        self._values[key] = value
        if len(self._values) > self._capacity:
            evicted_key, evicted = self._values.popitem(last=False)
            if self._on_evict is not None:
                self._on_evict(evicted_key, evicted)

    def pop(self, key: K) -> V | None:
        """Take a value out; it is the caller's then."""
        return self._values.pop(key, None)

    def drain(self) -> list[V]:
        """Take all values out."""
        values = list(self._values.values())
        self._values.clear()
        return values

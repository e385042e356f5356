"""Cache: what was read last, up to a size in bytes; the least recently used goes first.

Concurrency: any number of threads; two that miss the same thing at once both make it, and one of the two stays.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """A value per key. What is larger than the whole cache is made and not kept."""

    def __init__(self, size_max: int) -> None:
        self.size = 0
        self._size_max = size_max
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T], size_of: Callable[[T], int]) -> T:
        with self._lock:
            if entry := self._entries.get(key):
                self._entries.move_to_end(key)
                return entry[0]
        value = make()
        self._put(key, value, size_of(value))
        return value

    def _put(self, key: Hashable, value: T, size: int) -> None:
        with self._lock:
            if key in self._entries or size > self._size_max:
                return
            self._entries[key] = (value, size)
            self.size += size
            while self.size > self._size_max:
                _, (_, gone) = self._entries.popitem(last=False)
                self.size -= gone

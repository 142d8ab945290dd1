"""`BoundedCache`: remembered results for keys that clients choose."""

from __future__ import annotations

from collections.abc import Sized
from typing import Generic, TypeVar

K = TypeVar("K", bound=Sized)
V = TypeVar("V")


class BoundedCache(dict[K, V], Generic[K, V]):
    """A dict with at most `max_entries` keys of at most `max_key_length` characters or bytes.

    Read it like any dict; write it with `remember`.
    """

    __slots__ = ("_max_entries", "_max_key_length")

    def __init__(self, max_entries: int, max_key_length: int) -> None:
        super().__init__()
        self._max_entries = max_entries
        self._max_key_length = max_key_length

    def remember(self, key: K, value: V) -> V:
        """Store and return `value`. A key that is too long is not stored; a full cache is emptied first."""
        if len(key) <= self._max_key_length:
            # Emptying costs less than an LRU order, and a flood of new keys would defeat the order as well.
            if len(self) >= self._max_entries:
                self.clear()
            self[key] = value
        return value

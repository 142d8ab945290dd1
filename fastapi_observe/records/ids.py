"""`IdSource`: random trace and span ids, generated in batches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.forks import register_at_fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[str, str]

BATCH_SIZE: Final = 64
"""Pairs of ids from one call of `os.urandom`."""

_DIGITS: Final = 48


class IdSource:
    """Generates pairs of a trace id (32 hexadecimal digits) and a span id (16), never all zeros.

    `next(source.pairs, None) or source.refill()` returns the next pair, in any thread.
    """

    __slots__ = ("__weakref__", "pairs")

    def __init__(self) -> None:
        self.pairs: Iterator[Pair] = iter(())
        # Without this, a forked child would use the same ids as its parent.
        register_at_fork(self, IdSource.discard)

    def discard(self) -> None:
        """Discard the pairs that were generated but not used."""
        self.pairs = iter(())

    def refill(self) -> Pair:
        """Generate a batch of pairs and return the first one."""
        text = os.urandom(BATCH_SIZE * _DIGITS // 2).hex()
        self.pairs = pairs = iter(
            [
                (text[at : at + 32], text[at + 32 : at + _DIGITS])
                for at in range(0, len(text), _DIGITS)
                if text[at : at + 32].strip("0") and text[at + 32 : at + _DIGITS].strip("0")
            ]
        )
        return next(pairs)


ID_SOURCE: Final = IdSource()
"""The ids of this process."""

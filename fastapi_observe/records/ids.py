"""`IdSource`: random trace and span ids, generated in batches."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from fastapi_observe.internal.forks import register_at_fork

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[str, str]

BATCH_SIZE: Final = 64
"""Pairs of ids that are generated at a time."""

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8

_ZEROS: Final = frozenset({"0" * 32, "0" * 16})


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
        # `hex` with a separator cuts the digits apart at a third of what slices cost.
        trace_ids = os.urandom(BATCH_SIZE * TRACE_ID_BYTES).hex(" ", TRACE_ID_BYTES).split()
        span_ids = os.urandom(BATCH_SIZE * SPAN_ID_BYTES).hex(" ", SPAN_ID_BYTES).split()
        if not _ZEROS.isdisjoint([*trace_ids, *span_ids]):
            return self.refill()
        self.pairs = pairs = iter([*zip(trace_ids, span_ids, strict=True)])
        return next(pairs)


ID_SOURCE: Final = IdSource()
"""The ids of this process."""

"""How many series there may be, and where their cells stand: `SeriesBudget`."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi_observe.signals.series import Bounded

OVERFLOW: Final = "__overflow__"
"""Every label value of the series that takes what is beyond the bound."""

SERIES_PER_PROCESS: Final = 20_000
"""Most label sets of all metrics of one install together."""

Kept = tuple[dict[str, str], float, float]
"""Exemplar as it is kept: labels, value, timestamp in seconds."""


class Series(Protocol):
    """What one line, or one set of buckets, is made of."""

    pairs: str
    braced: str
    exemplars: dict[int, Kept]

    def read(self) -> Sequence[float]:
        """Return the values of the cells, as of one moment."""


class Store(Protocol):
    """Where cells stand that other processes see."""

    def bind(self, child: Bounded) -> None:
        """Give a new series its cells."""

    def release(self, child: Bounded) -> None:
        """Give up a series that was removed."""


class SeriesBudget:
    """How many label sets there may be, and what came beyond.

    `overflows` counts by metric how often a label set was refused. `lock` guards every value of the install: one
    lock lets a request write all its samples in one go. It is reentrant because a finalizer that runs while it is
    held may count something itself. `store` gives cells that other processes see; None: they are lists.
    """

    __slots__ = ("families", "lock", "overflows", "per_metric", "store", "total")

    def __init__(self, per_metric: int, total: int = SERIES_PER_PROCESS) -> None:
        self.per_metric = per_metric
        self.total = total
        self.lock = threading.RLock()
        self.families: list[Bounded] = []
        self.overflows: dict[str, int] = {}
        self.store: Store | None = None

    def count(self) -> int:
        """Return the number of label sets that are kept."""
        return sum(len(family.children()) for family in self.families)

    def full(self, family: Bounded) -> bool:
        """Tell whether `family` may get no further label set."""
        return len(family.children()) >= self.per_metric or self.count() >= self.total

    def refuse(self, family: Bounded) -> None:
        """Count a label set that found no place; warn at the first one of the metric."""
        name = family.shown_name()
        with self.lock:
            before = self.overflows.get(name, 0)
            self.overflows[name] = before + 1
        # Outside the lock: a logging handler has locks of its own.
        if before == 0:
            logging.getLogger("fastapi_observe").warning(
                "metric %s has reached its bound of label sets (%d); further ones share the series %s. "
                "Its label %s has the most values: use one with few values, or raise series_per_metric",
                name,
                len(family.children()) - 1,
                OVERFLOW,
                family.widest_label(),
            )

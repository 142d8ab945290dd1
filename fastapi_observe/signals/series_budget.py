"""How many series there may be, and where their cells stand: `SeriesBudget`."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Family(Protocol):
    """A metric with label sets."""

    def children(self) -> dict[Sequence[str], Any]:
        """Return the children by their label values."""

    def shown_name(self) -> str:
        """Return the name under which the text format shows the metric."""

    def widest_label(self) -> str:
        """Return the name of the label that has the most values."""


class Store(Protocol):
    """Where cells stand that other processes see."""

    def bind(self, child: Any) -> None:
        """Give a new series its cells."""

    def release(self, child: Any) -> None:
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
        self.families: list[Family] = []
        self.overflows: dict[str, int] = {}
        self.store: Store | None = None

    def count(self) -> int:
        """Return the number of label sets that are kept."""
        return sum(len(family.children()) for family in self.families)

    def full(self, family: Family) -> bool:
        """Tell whether `family` may get no further label set."""
        return len(family.children()) >= self.per_metric or self.count() >= self.total

    def refuse(self, family: Family) -> None:
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

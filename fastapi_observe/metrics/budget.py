"""How many series there may be, and where their cells stand: `SeriesBudget`."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from prometheus_client.metrics_core import InfoMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

OVERFLOW: Final = "__overflow__"
"""Label value of the series that take what is beyond a bound."""

SERIES_PER_PROCESS: Final = 20_000
"""Most label sets of all metrics of one install together."""

VALUES_PER_LABEL: Final = 500
"""Most values of one label of one metric."""

STATIC_LABELS: Final = frozenset({"endpoint", "method", "status_code"})
"""Labels of the library's own metrics whose values are those of a list: the app's routes, known methods, statuses."""

EXAMPLE_LENGTH: Final = 40
"""Characters of a refused label value that are told."""

_WORD: Final = re.compile(r"([\w.~+-]{4})[\w.~+-]{12,}|[^\s@/]++(?=@)")
"""What may be a token, a name or an id of somebody: four characters say enough."""

ExemplarTuple = tuple[dict[str, str], float, float]
"""Exemplar as it is kept: labels, value, timestamp in seconds."""


class Series(Protocol):
    """What one line, or one set of buckets, is made of."""

    pairs: str
    braced: str
    exemplars: dict[int, ExemplarTuple]

    def read(self) -> Sequence[float]:
        """Return the values of the cells, as of one moment."""


class Family(Protocol):
    """A metric with label sets."""

    def children(self) -> dict[Sequence[str], Any]:
        """Return the children by their label values."""

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels."""

    def exposition_name(self) -> str:
        """Return the name under which the text format shows the metric."""

    def widest_label(self) -> str:
        """Return the name of the label that has the most values."""


class CellStore(Protocol):
    """Where cells stand that other processes see."""

    def bind(self, child: Any) -> None:
        """Give a new series its cells."""

    def release(self, child: Any) -> None:
        """Give up a series that was removed."""


class LabelValues:
    """The values that the labels of one metric have, and in how many label sets each of them stands.

    Those of `listed` labels come from a list: they are not counted. `__overflow__` is no value.
    """

    __slots__ = ("counts",)

    def __init__(self, names: Sequence[str], listed: frozenset[str] = frozenset()) -> None:
        self.counts: list[dict[str, int] | None] = [None if name in listed else {} for name in names]

    def within(self, values: tuple[str, ...], most: int) -> tuple[str, ...]:
        """Return the values, `__overflow__` for each that would be one more than `most` of its label."""
        kept = values
        for at, counts in enumerate(self.counts):
            if counts is not None and len(counts) >= most and values[at] not in counts:
                kept = (*kept[:at], OVERFLOW, *kept[at + 1 :])
        return kept

    def add(self, values: Sequence[str]) -> None:
        """Take note of a new label set."""
        for counts, value in zip(self.counts, values, strict=True):
            if counts is not None and value != OVERFLOW:
                counts[value] = counts.get(value, 0) + 1

    def remove(self, values: Sequence[str]) -> None:
        """Forget a label set; a value that stands in no other one makes room."""
        for counts, value in zip(self.counts, values, strict=True):
            if counts is not None and value != OVERFLOW:
                counts[value] -= 1
                if not counts[value]:
                    del counts[value]


class SeriesLimiter:
    """How many label sets there may be, and what came beyond.

    `overflows` counts by metric how often a label set was refused, in whole or in part. `lock` guards every value of
    the install: one lock lets a request write all its samples in one go. It is reentrant because a finalizer that runs
    while it is held may count something itself. `store` gives cells that other processes see; None: they are lists.
    `redact` takes out of a refused value what must not be told.
    """

    __slots__ = ("_redact", "_told", "families", "lock", "overflows", "per_label", "per_metric", "store", "total")

    def __init__(
        self,
        per_metric: int,
        total: int = SERIES_PER_PROCESS,
        per_label: int = VALUES_PER_LABEL,
        redact: Callable[[str], str] = str,
    ) -> None:
        self.per_metric = per_metric
        self.total = total
        self.per_label = per_label
        self.lock = threading.RLock()
        self.families: list[Family] = []
        self.overflows: dict[str, int] = {}
        self.store: CellStore | None = None
        self._redact = redact
        self._told: set[tuple[str, str]] = set()

    def count(self) -> int:
        """Return the number of label sets that are kept."""
        return sum([len(family.children()) for family in self.families])

    def limit_reached(self, family: Family) -> str:
        """Return the name of the setting that lets `family` get no further label set; empty: there is room."""
        if len(family.children()) >= self.per_metric:
            return "max_series_per_metric"
        return "max_series_per_process" if self.count() >= self.total else ""

    def record_overflow(self, family: Family, asked: tuple[str, ...], kept: tuple[str, ...], spent: str) -> None:
        """Count the label set `asked`, which is shown as `kept`; warn at the first one of each bound.

        `spent` is what there was no room by; empty: a label has too many values.
        """
        name = family.exposition_name()
        pairs = zip(family.label_names(), asked, kept, strict=True)
        label = next(label for label, was, now in pairs if was != now)
        bound = (name, label) if not spent else (name, "") if spent == "max_series_per_metric" else ("", "")
        with self.lock:
            self.overflows[name] = self.overflows.get(name, 0) + 1
            told = bound in self._told
            self._told.add(bound)
        # Outside the lock: a logging handler has locks of its own.
        if not told:
            text = self._about_label(family, label, asked) if not spent else self._about_series(family, asked, spent)
            logging.getLogger("fastapi_observe").warning("%s", text)

    def _about_label(self, family: Family, label: str, asked: tuple[str, ...]) -> str:
        return (
            f"label {label} of metric {family.exposition_name()} has reached its bound of values ({self.per_label}); "
            f"further ones are shown as {OVERFLOW}, the first of them was {self._example(family, label, asked)}: "
            "give it few values, none that a client chooses, or raise max_values_per_label"
        )

    def _about_series(self, family: Family, asked: tuple[str, ...], spent: str) -> str:
        if spent == "max_series_per_metric":
            who, bound, widest = f"metric {family.exposition_name()} has reached its", self.per_metric, family
        else:
            who, bound = "all metrics together have reached their", self.total
            widest = max(self.families, key=lambda each: len(each.children()))
        label = widest.widest_label()
        if widest is family:
            culprit = (
                f"Its label {label} has the most values, the first refused was {self._example(family, label, asked)}"
            )
        else:
            culprit = f"Metric {widest.exposition_name()} has the most, and of its labels {label} has the most values"
        return (
            f"{who} bound of label sets ({bound}); further ones share the series {OVERFLOW}. {culprit}: "
            f"use one with few values, none that a client chooses, or raise {spent}"
        )

    def _example(self, family: Family, label: str, asked: tuple[str, ...]) -> str:
        """Return a label value as it may stand in a log line: without what may be a secret, on one line."""
        value = self._redact(asked[family.label_names().index(label)])
        return ascii(_WORD.sub(lambda match: f"{match[1] or ''}...", value)[:EXAMPLE_LENGTH])


class LimitsCollector:
    """Shows the bounds, so that `python -m fastapi_observe cardinality` knows them."""

    def __init__(self, budget: SeriesLimiter) -> None:
        self._family = InfoMetricFamily(
            "fastapi_observe_bounds",
            "How many label sets and label values a process keeps at most.",
            value={
                "max_series_per_metric": str(budget.per_metric),
                "max_series_per_process": str(budget.total),
                "max_values_per_label": str(budget.per_label),
            },
        )

    def collect(self) -> list[InfoMetricFamily]:
        """Return them."""
        return [self._family]

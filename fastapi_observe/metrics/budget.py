"""Limits on the number of label sets and label values, and what happens beyond them."""

from __future__ import annotations

import logging
import re
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol

from prometheus_client.metrics_core import InfoMetricFamily

from fastapi_observe.internal.throttle import LogThrottle
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SERIES_PER_PROCESS: Final = 20_000
"""Default limit of label sets, of all metrics of one install together."""

VALUES_PER_LABEL: Final = 500
"""Default limit of values of one label of one metric."""

STATIC_LABELS: Final = frozenset(
    {"endpoint", "method", "status_code", "http_route", "http_request_method", "http_response_status_code"}
)
"""Labels of our own metrics with a fixed list of values: the app's routes, known methods, status codes."""

WITHIN_LABEL_SET: Final = frozenset({"le", "quantile"})
"""Labels that distinguish series of one label set."""

MAX_EXAMPLE_LENGTH: Final = 40
"""Characters of a label value in a warning."""

_POSSIBLE_SECRET: Final = re.compile(r"([\w.~+-]{4})[\w.~+-]{12,}|[^\s@/]++(?=@)")
"""A long word may be a token, and the word before an @ a user name: a warning shows four characters at most."""


class CellStore(Protocol):
    """Places the values of series where other processes see them.

    The implementation is `metrics.shared.cells.SharedCells`, which imports the modules that use this protocol.
    """

    def bind(self, series: Any) -> None:
        """Give a new series its cells."""

    def release(self, series: Any) -> None:
        """Stop showing a series that was removed."""


class LabelSets:
    """The label sets of one metric with their children, and how many label sets use each label value.

    Values of `static_labels` are neither counted nor replaced. `__overflow__` does not count as a value. Callers hold
    the lock of the `SeriesLimiter`.
    """

    __slots__ = ("_uses", "children", "metric_name", "names")

    def __init__(self, metric_name: str, names: tuple[str, ...], static_labels: frozenset[str] = frozenset()) -> None:
        self.metric_name = metric_name
        self.names = names
        self.children: dict[tuple[str, ...], Any] = {}
        self._uses: list[dict[str, int] | None] = [None if name in static_labels else {} for name in names]

    def limit_values(self, values: tuple[str, ...], max_values: int) -> tuple[str, ...]:
        """Return the label values, with `__overflow__` for each new one of a label that has `max_values` already."""
        limited = values
        for index, uses in enumerate(self._uses):
            if uses is not None and len(uses) >= max_values and values[index] not in uses:
                limited = (*limited[:index], OVERFLOW, *limited[index + 1 :])
        return limited

    def add(self, values: tuple[str, ...], child: Any) -> None:
        """Add a label set that is not there yet."""
        self.children[values] = child
        for uses, value in zip(self._uses, values, strict=True):
            if uses is not None and value != OVERFLOW:
                uses[value] = uses.get(value, 0) + 1

    def remove(self, values: tuple[str, ...]) -> Any | None:
        """Remove a label set and return its child, or None if it is not there."""
        child = self.children.pop(values, None)
        if child is not None:
            for uses, value in zip(self._uses, values, strict=True):
                if uses is not None and value != OVERFLOW:
                    uses[value] -= 1
                    if not uses[value]:
                        del uses[value]
        return child

    def widest_label(self) -> str:
        """Return the name of the label with the most values."""
        columns = zip(*self.children, strict=True)
        widths = {name: len(set(column)) for name, column in zip(self.names, columns, strict=True)}
        return max(widths, key=widths.__getitem__)


class SeriesLimiter:
    """Limits the label sets of one install and counts those beyond.

    `overflows` counts by metric how often a label set was replaced, in whole or in part. `redact` removes secrets from
    a label value that a warning quotes. `constant_labels` are on each series of each metric. `store` is
    set in multiprocess mode; without it, cells are lists.

    `lock` guards every value of the install, so that a request writes all its samples under one lock. It is reentrant
    because a finalizer that runs while it is held may count something itself. It is the innermost lock: no other one
    is taken while it is held, and nothing is logged.
    """

    __slots__ = (
        "_redact",
        "_throttle",
        "constant_labels",
        "label_sets",
        "lock",
        "overflows",
        "per_label",
        "per_metric",
        "store",
        "total",
    )

    def __init__(
        self,
        per_metric: int,
        total: int = SERIES_PER_PROCESS,
        per_label: int = VALUES_PER_LABEL,
        redact: Callable[[str], str] = str,
        constant_labels: Mapping[str, str] | None = None,
    ) -> None:
        self.constant_labels = dict(constant_labels or {})
        self.per_metric = per_metric
        self.total = total
        self.per_label = per_label
        self.lock = threading.RLock()
        self.label_sets: list[LabelSets] = []
        self.overflows: dict[str, int] = {}
        self.store: CellStore | None = None
        self._redact = redact
        self._throttle = LogThrottle()

    def count(self) -> int:
        """Return the number of label sets of all metrics."""
        return sum([len(each.children) for each in self.label_sets])

    def limit_reached(self, label_sets: LabelSets) -> str:
        """Return the name of the setting that forbids another label set of this metric; empty if none does."""
        if len(label_sets.children) >= self.per_metric:
            return "max_series_per_metric"
        return "max_series_per_process" if self.count() >= self.total else ""

    def record_overflow(
        self, label_sets: LabelSets, requested: tuple[str, ...], used: tuple[str, ...], limit: str
    ) -> None:
        """Count a label set that was replaced by `used`, and log a warning at most once a minute for each limit.

        `limit` is the setting that was reached; empty if a label has too many values. The caller does not hold `lock`:
        a logging handler has locks of its own.
        """
        name = label_sets.metric_name
        replaced = (
            label for label, before, after in zip(label_sets.names, requested, used, strict=True) if before != after
        )
        label = next(replaced)
        with self.lock:
            self.overflows[name] = self.overflows.get(name, 0) + 1
        cause = f"{name} {label}" if not limit else name if limit == "max_series_per_metric" else ""
        if self._throttle.allow(cause):
            if limit:
                message = self._describe_series_limit(label_sets, requested, limit)
            else:
                message = (
                    f"Label {label} of metric {name} reached its limit of {self.per_label} values "
                    f"(max_values_per_label); new values are recorded as {OVERFLOW}, the first was "
                    f"{self._example(label_sets, label, requested)}. Use a label with few possible values, never one "
                    "chosen by clients, or raise the limit."
                )
            logging.getLogger("fastapi_observe").warning("%s", message)

    def _describe_series_limit(self, label_sets: LabelSets, requested: tuple[str, ...], limit: str) -> str:
        with self.lock:
            if limit == "max_series_per_metric":
                subject, maximum, widest = f"Metric {label_sets.metric_name} reached its", self.per_metric, label_sets
            else:
                subject, maximum = "All metrics together reached their", self.total
                widest = max(self.label_sets, key=lambda each: len(each.children))
            label = widest.widest_label()
        if widest is label_sets:
            culprit = (
                f"Its label {label} has the most values; the first that was replaced is "
                f"{self._example(label_sets, label, requested)}"
            )
        else:
            culprit = f"Metric {widest.metric_name} has the most label sets, and its label {label} the most values"
        return (
            f"{subject} limit of {maximum} label sets ({limit}); new ones are added to the {OVERFLOW} series. "
            f"{culprit}. Use a label with few possible values, never one chosen by clients, or raise {limit}."
        )

    def _example(self, label_sets: LabelSets, label: str, requested: tuple[str, ...]) -> str:
        """Return a label value for a warning: redacted, shortened, on one line and in ASCII."""
        value = self._redact(requested[label_sets.names.index(label)])
        return ascii(_POSSIBLE_SECRET.sub(lambda match: f"{match[1] or ''}...", value)[:MAX_EXAMPLE_LENGTH])


class LimitsCollector:
    """Collects `fastapi_observe_limits_info`, which `python -m fastapi_observe cardinality` reads."""

    def __init__(self, limiter: SeriesLimiter) -> None:
        self._family = InfoMetricFamily(
            "fastapi_observe_limits",
            "Limits of label sets and label values in one process.",
            value={
                "max_series_per_metric": str(limiter.per_metric),
                "max_series_per_process": str(limiter.total),
                "max_values_per_label": str(limiter.per_label),
            },
        )

    def collect(self) -> list[InfoMetricFamily]:
        """Return the family."""
        return [self._family]

"""Metrics of the user's own: the `Catalogue` that makes each of them once, and the four `Business` metrics."""

from __future__ import annotations

import re
from decimal import Decimal
from math import isfinite
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.metrics.budget import STATIC_LABELS, LabelValues
from fastapi_observe.metrics.series import BoundedMetric, Counter, Histogram
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry

    from fastapi_observe.metrics.budget import SeriesLimiter

M = TypeVar("M", bound=BoundedMetric)

METRIC_NAME: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
LABEL_NAME: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
CURRENCY: Final = re.compile(r"[A-Za-z]{3}")

OWN_PREFIX: Final = "fastapi_observe"
"""Names that begin so are for the library's metrics about itself."""


class MetricFactory:
    """The metrics of one install by name: each is made once and found again."""

    def __init__(self, registry: CollectorRegistry, budget: SeriesLimiter) -> None:
        self.registry = registry
        self.budget = budget
        self.registered: list[Any] = []
        self._made: dict[str, BoundedMetric] = {}
        self._reserved: set[str] = set()
        self._lock = Lock()

    def create_internal(
        self, kind: type[M], name: str, documentation: str, labels: Sequence[str] = (), **options: Any
    ) -> M:
        """Make a metric of the library; its name is not free for others any more."""
        self._reserved.add(_plain(name))
        metric = self._add(kind(name, documentation, tuple(labels), self.budget, **options))
        if labels:
            metric.values = LabelValues(labels, STATIC_LABELS)
        return metric

    def _add(self, metric: M) -> M:
        labelled = bool(metric.label_names())
        self.register(metric)
        if labelled:
            self.budget.families.append(metric)
        return metric

    def reserve(self, *names: str) -> None:
        """Keep names for metrics of the library that are made later."""
        self._reserved.update(_plain(name) for name in names)

    def register(self, collector: Any) -> None:
        """Put a collector into the registry.

        Raises ValueError when one of its names is taken there.
        """
        try:
            self.registry.register(collector)
        except ValueError as exc:
            raise ValueError(
                f"{exc}: the registry holds such a name already. Give each install(app) a registry of its own "
                "(settings.registry=None does), or choose another name for the metric"
            ) from exc
        self.registered.append(collector)

    def get(
        self,
        kind: type[M],
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float] | None = None,
        **options: Any,
    ) -> M:
        """Return the metric `name`, made now or before.

        Raises ValueError for a name or label that is invalid or reserved, and when the metric exists with another
        type, other labels or other buckets (`buckets=None` agrees with any).
        """
        found = self._made.get(name)
        if found is None:
            with self._lock:
                found = self._made.get(name) or self._made.get(_plain(name))
                if found is None:
                    found = self._make(kind, name, documentation, labels, {**options, "buckets": buckets})
                self._made[name] = found
        if type(found) is kind and found.label_names() == tuple(labels) and _same_buckets(found, buckets):
            return found
        asked = _form(kind, tuple(labels), None if buckets is None else _bounds(buckets))
        have = _form(type(found), found.label_names(), found.bounds() if isinstance(found, Histogram) else None)
        raise ValueError(
            f"metric {name} exists as {have}, asked for as {asked}: ask for the same, or choose another name"
        )

    def _make(
        self,
        kind: type[M],
        name: str,
        documentation: str,
        labels: Sequence[str],
        options: dict[str, Any],
    ) -> M:
        self._check(kind, name, labels)
        buckets = options.pop("buckets")
        if buckets is not None:
            options["buckets"] = tuple(_bounds(buckets))
        metric = self._add(kind(name, documentation or name, tuple(labels), self.budget, **options))
        self._made[_plain(name)] = metric
        return metric

    def _check(self, kind: type[BoundedMetric], name: str, labels: Sequence[str]) -> None:
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"metric name {name!r} is invalid: use letters, digits and underscores, no digit first")
        if _plain(name) in self._reserved or name.startswith(OWN_PREFIX):
            raise ValueError(f"metric name {name} belongs to fastapi-observe: choose another, for example myapp_{name}")
        if kind is not Counter and name.endswith("_total"):
            raise ValueError(
                f"metric name {name} ends in _total, which says counter: make a counter, or drop the ending"
            )
        if isinstance(labels, str):
            raise ValueError(f"labels of {name} are the string {labels!r}: give a list of names, [{labels!r}]")  # noqa: TRY004
        for label in labels:
            if not isinstance(label, str) or not LABEL_NAME.fullmatch(label):
                raise ValueError(
                    f"label {label!r} of {name} is invalid: use letters, digits and underscores, "
                    "no digit first, no two underscores first"
                )
        if len(set(labels)) != len(tuple(labels)) or (kind is Histogram and "le" in labels):
            raise ValueError(f"labels {tuple(labels)} of {name} clash: name each once, and not le on a histogram")


def _plain(name: str) -> str:
    """Return the name without the ending that only counters have."""
    return name.removesuffix("_total")


def _bounds(buckets: Sequence[float]) -> list[float]:
    """Return bucket bounds as the metric keeps them: ascending, the last one infinite."""
    bounds = [float(bound) for bound in buckets]
    if not bounds or bounds != sorted(set(bounds)):
        raise ValueError(f"buckets {bounds} must ascend: give each upper bound once, smallest first")
    return bounds if bounds[-1] == float("inf") else [*bounds, float("inf")]


def _same_buckets(metric: BoundedMetric, buckets: Sequence[float] | None) -> bool:
    return buckets is None or (isinstance(metric, Histogram) and metric.bounds() == _bounds(buckets))


def _form(kind: type[BoundedMetric], labels: tuple[str, ...], bounds: list[float] | None) -> str:
    form = f"{kind.__name__.lower()} with labels {labels}"
    return form if bounds is None else f"{form} and buckets {bounds}"


class BusinessMetrics:
    """What the business counts; a metric appears once it is used."""

    def __init__(self, catalogue: MetricFactory) -> None:
        self._catalogue = catalogue
        self._made: dict[str, Counter] = {}
        self._lock = Lock()
        catalogue.reserve(
            "user_registrations_total", "user_logins_total", "orders_created_total", "revenue_generated_total"
        )

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def user_registered(self) -> None:
        """Count a user who has registered."""
        self._counter("user_registrations_total", "Users who have registered.").inc()

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def user_logged_in(self) -> None:
        """Count a successful login."""
        self._counter("user_logins_total", "Successful logins.").inc()

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def order_created(self) -> None:
        """Count an order."""
        self._counter("orders_created_total", "Orders that were created.").inc()

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def revenue(self, amount: Decimal | float, currency: str) -> None:
        """Add `amount`, in units of `currency` (three letters, as in ISO 4217).

        Raises ValueError for a negative, infinite or not-a-number amount and for anything else as currency.
        """
        value = _amount(amount)
        if not isinstance(currency, str) or not CURRENCY.fullmatch(currency):
            raise ValueError(f"currency {currency!r} is not a code of three letters (ISO 4217), for example EUR")
        total = self._counter("revenue_generated_total", "Revenue, in units of the currency.", ("currency",))
        total.labels_or_raise(currency.upper()).inc(value)

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        found = self._made.get(name)
        if found is None:
            with self._lock:
                found = self._made.get(name)
                if found is None:
                    found = self._made[name] = self._catalogue.create_internal(Counter, name, documentation, labels)
        return found


def _amount(amount: Decimal | float) -> float:
    if not isinstance(amount, (Decimal, int, float)):
        raise TypeError(f"revenue is a Decimal, an int or a float, got {type(amount).__name__}")
    try:
        value = float(amount)
    except (OverflowError, ValueError):  # an int beyond any float, a signaling NaN
        value = float("nan")
    if not isfinite(value) or value < 0:
        raise ValueError(f"revenue of {type(amount).__name__} {value} is no amount of money: give a finite one >= 0")
    return value

"""Metrics by name: `MetricFactory` creates each one once; `BusinessMetrics` are four that many apps need."""

from __future__ import annotations

import re
from decimal import Decimal
from math import isfinite
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fastapi_observe.metrics.budget import STATIC_LABELS
from fastapi_observe.metrics.series import BoundedMetric, Counter, Histogram, parse_bounds
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
"""Prefix of the metrics that the library reports about itself; users' metrics cannot have it."""


class MetricFactory:
    """Creates the metrics of one install and returns the same object for the same name."""

    def __init__(self, registry: CollectorRegistry, limiter: SeriesLimiter) -> None:
        self.registry = registry
        self.limiter = limiter
        self.registered: list[Any] = []
        self._by_name: dict[str, BoundedMetric] = {}
        self._reserved: set[str] = set()
        self._lock = Lock()

    def create_internal(
        self, metric_class: type[M], name: str, documentation: str, labels: Sequence[str] = (), **options: Any
    ) -> M:
        """Create a metric of the library and reserve its name."""
        self._reserved.add(_base_name(name))
        return self._create(metric_class, name, documentation, labels, static_labels=STATIC_LABELS, **options)

    def _create(self, metric_class: type[M], name: str, documentation: str, labels: Sequence[str], **options: Any) -> M:
        clashing = self.limiter.constant_labels.keys() & set(labels)
        if clashing:
            raise ValueError(
                f"the label {min(clashing)} of metric {name} is in constant_labels too; rename one of them"
            )
        metric = metric_class(name, documentation, tuple(labels), self.limiter, **options)
        self.register(metric)
        if labels:
            self.limiter.label_sets.append(metric.label_sets)
        return metric

    def reserve(self, *names: str) -> None:
        """Reserve names for metrics of the library that are created later."""
        self._reserved.update(_base_name(name) for name in names)

    def is_reserved(self, name: str) -> bool:
        """Return whether a name belongs to the library."""
        return _base_name(name) in self._reserved or name.startswith(OWN_PREFIX)

    def is_internal(self, collector: Any) -> bool:
        """Return whether the library created a collector for itself."""
        users = self._by_name.values()
        return any(each is collector for each in self.registered) and not any(each is collector for each in users)

    def register(self, collector: Any) -> None:
        """Add a collector to the registry.

        Raises ValueError if the registry has one of its names already.
        """
        try:
            self.registry.register(collector)
        except ValueError as exc:
            raise ValueError(
                f"{exc}. The registry already has such a name: give each install(app) its own registry "
                "(settings.registry=None does), or choose another name for the metric"
            ) from exc
        self.registered.append(collector)

    def get(
        self,
        metric_class: type[M],
        name: str,
        documentation: str,
        labels: Sequence[str],
        buckets: Sequence[float] | None = None,
        **options: Any,
    ) -> M:
        """Return the metric `name`, which is created by the first call.

        Raises ValueError if the name or a label is invalid or reserved, and if the metric exists with another type,
        other labels or other buckets (`buckets=None` accepts any).
        """
        metric = self._by_name.get(name)
        if metric is None:
            with self._lock:
                metric = self._by_name.get(name) or self._by_name.get(_base_name(name))
                if metric is None:
                    self._raise_if_invalid(metric_class, name, labels)
                    if buckets is not None:
                        options["buckets"] = parse_bounds(buckets)
                    metric = self._create(metric_class, name, documentation or name, labels, **options)
                    self._by_name[_base_name(name)] = metric
                self._by_name[name] = metric
        if (
            type(metric) is metric_class
            and metric.label_names() == tuple(labels)
            and (buckets is None or (isinstance(metric, Histogram) and metric.bounds() == parse_bounds(buckets)))
        ):
            return metric
        requested = _signature(metric_class, tuple(labels), None if buckets is None else parse_bounds(buckets))
        existing = _signature(
            type(metric), metric.label_names(), metric.bounds() if isinstance(metric, Histogram) else None
        )
        raise ValueError(
            f"metric {name} exists as {existing} and was requested as {requested}; use the same, or another name"
        )

    def _raise_if_invalid(self, metric_class: type[BoundedMetric], name: str, labels: Sequence[str]) -> None:
        if not METRIC_NAME.fullmatch(name):
            raise ValueError(f"invalid metric name {name!r}; use letters, digits and underscores, no digit first")
        if self.is_reserved(name):
            raise ValueError(
                f"metric name {name} belongs to fastapi-observe; choose another one, for example myapp_{name}"
            )
        if metric_class is not Counter and name.endswith("_total"):
            raise ValueError(
                f"metric name {name} ends in _total, which means counter; use a counter, or drop the suffix"
            )
        if isinstance(labels, str):
            raise ValueError(f"labels of {name} are the string {labels!r}; pass a list of names, [{labels!r}]")  # noqa: TRY004
        for label in labels:
            if not isinstance(label, str) or not LABEL_NAME.fullmatch(label):
                raise ValueError(
                    f"invalid label {label!r} of {name}; use letters, digits and underscores, "
                    "starting with neither a digit nor two underscores"
                )
        if len(set(labels)) != len(tuple(labels)) or (metric_class is Histogram and "le" in labels):
            raise ValueError(f"labels {tuple(labels)} of {name} clash; use each name once, and not le on a histogram")


def _base_name(name: str) -> str:
    """Return the name without the suffix that only counters have."""
    return name.removesuffix("_total")


def _signature(metric_class: type[BoundedMetric], labels: tuple[str, ...], bounds: list[float] | None) -> str:
    text = f"{metric_class.__name__.lower()} with labels {labels}"
    return text if bounds is None else f"{text} and buckets {bounds}"


class BusinessMetrics:
    """Counters for registrations, logins, orders and revenue. Each one is created by its first use."""

    def __init__(self, factory: MetricFactory) -> None:
        self._factory = factory
        self._counters: dict[str, Counter] = {}
        self._lock = Lock()
        factory.reserve(
            "user_registrations_total", "user_logins_total", "orders_created_total", "revenue_generated_total"
        )

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def user_registered(self) -> None:
        """Count a user who has registered."""
        self._counter("user_registrations_total", "Users who have registered.").inc()

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def user_logged_in(self) -> None:
        """Count a successful login."""
        self._counter("user_logins_total", "Successful logins.").inc()

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def order_created(self) -> None:
        """Count an order."""
        self._counter("orders_created_total", "Orders created.").inc()

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def revenue(self, amount: Decimal | float, currency: str) -> None:
        """Add `amount`, in units of `currency` (three letters, as in ISO 4217).

        Raises ValueError if the amount is negative, infinite or not a number, or if the currency is invalid.
        """
        value = _to_amount(amount)
        if not isinstance(currency, str) or not CURRENCY.fullmatch(currency):
            raise ValueError(f"invalid currency {currency!r}; use a code of three letters (ISO 4217), for example EUR")
        total = self._counter("revenue_generated_total", "Revenue, in units of the currency.", ("currency",))
        total.labels_or_raise(currency.upper()).inc(value)

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        counter = self._counters.get(name)
        if counter is None:
            with self._lock:
                counter = self._counters.get(name)
                if counter is None:
                    counter = self._factory.create_internal(Counter, name, documentation, labels)
                    self._counters[name] = counter
        return counter


def _to_amount(amount: Decimal | float) -> float:
    if not isinstance(amount, (Decimal, int, float)):
        raise TypeError(f"revenue must be a Decimal, an int or a float, got {type(amount).__name__}")
    try:
        value = float(amount)
    except (OverflowError, ValueError):  # an int beyond any float, a signaling NaN
        value = float("nan")
    if not isfinite(value) or value < 0:
        raise ValueError(f"invalid revenue {value} ({type(amount).__name__}); use a finite amount, 0 or more")
    return value

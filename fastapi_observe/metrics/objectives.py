"""Events and bad events of objectives, counted from the cells that requests write."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from fastapi_observe.metrics.series import Histogram
from fastapi_observe.records.endpoint import UNMATCHED

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Sequence

    from fastapi_observe.metrics.series import BoundedMetric, Counter
    from fastapi_observe.metrics.shared.sharing import MetricSharing

MAX_CACHED_MATCHES: Final = 20_000
"""Label sets whose objectives are cached."""

RESERVED_SHARE: Final = 2
"""Series start at 0 until one half of a metric's limit is reached; the rest is reserved for series in use."""

V = TypeVar("V")
RouteGroups = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


class ObjectiveSpec(NamedTuple):
    """The requests that one objective counts.

    `groups` are methods with their route templates. Without groups, every template counts except those in
    `excluded_templates`; requests without a matched route count only if they are bad. `bad` matches the status codes
    of bad events; it is None for a latency objective, where a bad event took longer than `threshold` seconds.
    `endpoints` and `codes` are the series that start at 0.
    """

    groups: RouteGroups
    excluded_templates: frozenset[str]
    bad: re.Pattern[str] | None
    threshold: float
    endpoints: tuple[tuple[str, str], ...]
    codes: tuple[str, ...]

    def counts(self, method: str, endpoint: str) -> bool:
        """Return whether the requests of a series are events of this objective."""
        if self.groups:
            return any(method in methods and endpoint in templates for methods, templates in self.groups)
        return endpoint not in self.excluded_templates and endpoint != UNMATCHED

    def classify_status(self, method: str, endpoint: str, status: str) -> tuple[bool, bool]:
        """Return whether the requests of a series are events, and whether they are bad ones."""
        bad = self.bad is not None and self.bad.fullmatch(status) is not None
        event = self.counts(method, endpoint) or (bad and not self.groups and endpoint == UNMATCHED)
        return self.bad is not None and event, event and bad


class ObjectiveCounts:
    """Counts events and bad events of objectives, over all workers in multiprocess mode.

    It creates the series that are missing and reads the cells that requests write anyway. Without a counter of
    `requests` the histogram of durations has the status codes, third among its labels; its series cannot be created
    before the first request, because scheme and cause of failure are labels too.
    """

    def __init__(
        self, requests: Counter | None, duration: Histogram, sharing: MetricSharing, specs: Sequence[ObjectiveSpec]
    ) -> None:
        self._requests = requests
        self._duration = duration
        self._metrics: tuple[BoundedMetric, ...] = (duration,) if requests is None else (requests, duration)
        self._sharing = sharing
        self._specs = tuple(specs)
        self._events: dict[tuple[str, ...], tuple[tuple[int, bool], ...]] = {}
        self._latencies: dict[tuple[str, ...], tuple[int, ...]] = {}
        duration.add_bounds(spec.threshold for spec in specs if spec.bad is None)
        if requests is not None:
            for spec in specs:
                self._create_series(requests, spec)

    def _create_series(self, requests: Counter, spec: ObjectiveSpec) -> None:
        """Start series at 0: a rate needs a sample before it, so the first failure of a route would be invisible."""
        for method, endpoint in spec.endpoints:
            for metric, labels in (
                *((requests, (method, endpoint, code)) for code in spec.codes),
                (self._duration, (method, endpoint)),
            ):
                if len(metric.children()) < metric.limiter.per_metric // RESERVED_SHARE:
                    metric.labels(*labels, *[""] * (len(metric.label_names()) - len(labels)))  # metric_labels: unset

    def __call__(self) -> tuple[tuple[float, float], ...]:
        """Return events and bad events of each objective since the start."""
        events, bad = [0.0] * len(self._specs), [0.0] * len(self._specs)
        for labels, cells, bounds in self._series():
            if bounds is None or self._requests is None:
                count = cells[0] if bounds is None else sum(cells[:-1])
                matches = self._events.get(labels)
                for index, is_bad in self._match_status(labels) if matches is None else matches:
                    events[index] += count
                    bad[index] += count * is_bad
            if bounds is None:
                continue
            latencies = self._latencies.get(labels)
            for index in self._match_latency(labels) if latencies is None else latencies:
                cell = bisect_left(bounds, self._specs[index].threshold)
                if bounds[cell] == self._specs[index].threshold:  # a worker of an earlier deployment may lack it
                    events[index] += sum(cells[:-1])
                    bad[index] += sum(cells[cell + 1 : -1])
        return tuple(zip(events, bad, strict=True))

    def _series(self) -> Iterator[tuple[tuple[str, ...], Sequence[float], Sequence[float] | None]]:
        """Yield label values and cells of each series; for a histogram also its bounds."""
        shared = self._sharing.read()
        if shared is None:
            for metric in self._metrics:
                for labels, child in metric.children().copy().items():
                    yield labels, child.read(), _bounds(child)
            return
        install_id, readers, local_only = shared
        names = {metric.family()[0] for metric in self._metrics}
        for reader in readers:
            families = {
                number: None if family["bounds"] is None else [float(bound) for bound in family["bounds"]]
                for number, family in enumerate(reader.families)
                if family.get("owner") == install_id and family.get("name") in names
            }
            for number, labels, start, count in reader.series:
                if number in families:
                    yield labels, reader.values[start : start + count], families[number]
        for child in local_only:
            if child.family()[0] in names:
                yield child.label_values(), child.read(), _bounds(child)

    def _match_status(self, labels: tuple[str, ...]) -> tuple[tuple[int, bool], ...]:
        method, endpoint, status = labels[:3]
        matches = (
            (index, *spec.classify_status(method, endpoint or UNMATCHED, status))
            for index, spec in enumerate(self._specs)
        )
        return _cache(self._events, labels, tuple((index, bad) for index, event, bad in matches if event))

    def _match_latency(self, labels: tuple[str, ...]) -> tuple[int, ...]:
        matches = (
            index
            for index, spec in enumerate(self._specs)
            if spec.bad is None and spec.counts(labels[0], labels[1] or UNMATCHED)
        )
        return _cache(self._latencies, labels, tuple(matches))


def _bounds(child: BoundedMetric) -> Sequence[float] | None:
    return child.bounds() if isinstance(child, Histogram) else None


def _cache(cache: dict[tuple[str, ...], V], key: tuple[str, ...], value: V) -> V:
    if len(cache) >= MAX_CACHED_MATCHES:
        cache.clear()
    cache[key] = value
    return value

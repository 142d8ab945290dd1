"""What objectives count: series that begin at 0, and events and bad events read from the cells."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from fastapi_observe.records.endpoint import UNMATCHED

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable, Iterator, Sequence

    from fastapi_observe.metrics.series import BoundedMetric, Counter, Histogram
    from fastapi_observe.metrics.shared.sharing import MetricSharing

MAX_CACHED_LABEL_SETS: Final = 20_000
"""Label sets of which it is remembered who counts them."""

SHARE: Final = 2
"""Series begin at 0 until one half of a metric's bound is reached; the rest is for what really comes."""

V = TypeVar("V")
Groups = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]


class ObjectiveSpec(NamedTuple):
    """What one objective counts.

    `groups` are methods with the templates that count for them; without groups all templates count but those in
    `aside`, and requests that no route answered count if they are bad. `bad` finds the status codes of bad events; for
    an objective of latency it is None, and bad is what took longer than `threshold` seconds. `endpoints` and `codes`
    are the series that begin at 0.
    """

    groups: Groups
    excluded_templates: frozenset[str]
    bad: re.Pattern[str] | None
    threshold: float
    endpoints: tuple[tuple[str, str], ...]
    codes: tuple[str, ...]

    def counts(self, method: str, endpoint: str) -> bool:
        """Tell whether it counts the requests of a series."""
        if self.groups:
            return any(method in methods and endpoint in templates for methods, templates in self.groups)
        return endpoint not in self.excluded_templates and endpoint != UNMATCHED

    def of_status(self, method: str, endpoint: str, status: str) -> tuple[bool, bool]:
        """Tell whether the requests of a series are events, and bad ones."""
        bad = self.bad is not None and self.bad.fullmatch(status) is not None
        event = self.counts(method, endpoint) or (bad and not self.groups and endpoint == UNMATCHED)
        return self.bad is not None and event, event and bad


class ObjectiveCounts:
    """Counts for objectives, of all workers where there are several: makes what is missing, then reads it.

    It reads the cells that requests write anyway.
    """

    def __init__(
        self, requests: Counter, duration: Histogram, sharing: MetricSharing, wanted: Sequence[ObjectiveSpec]
    ) -> None:
        self._requests = requests
        self._duration = duration
        self._sharing = sharing
        self._wanted = tuple(wanted)
        self._events: dict[tuple[str, ...], tuple[tuple[int, bool], ...]] = {}
        self._timed: dict[tuple[str, ...], tuple[int, ...]] = {}
        add_bounds(duration, (each.threshold for each in wanted if each.bad is None))
        for each in wanted:
            self._make_series(each)

    def _make_series(self, wanted: ObjectiveSpec) -> None:
        """Without them the first failure of a route is lost: a rate needs a sample before it."""
        for method, endpoint in wanted.endpoints:
            for metric, labels in (
                *((self._requests, (method, endpoint, code)) for code in wanted.codes),
                (self._duration, (method, endpoint)),
            ):
                if len(metric.children()) < metric.budget.per_metric // SHARE:
                    metric.labels(*labels)

    def __call__(self) -> tuple[tuple[float, float], ...]:
        """Return events and bad events of each objective so far."""
        events, bad = [0.0] * len(self._wanted), [0.0] * len(self._wanted)
        for labels, cells, bounds in self._series():
            if bounds is None:
                known = self._events.get(labels)
                for at, is_bad in self._find_events(labels) if known is None else known:
                    events[at] += cells[0]
                    bad[at] += cells[0] * is_bad
                continue
            timed = self._timed.get(labels)
            for at in self._find_timed(labels) if timed is None else timed:
                cell = bisect_left(bounds, self._wanted[at].threshold)
                if bounds[cell] == self._wanted[at].threshold:  # a worker of an earlier version may lack it
                    events[at] += sum(cells[:-1])
                    bad[at] += sum(cells[cell + 1 : -1])
        return tuple(zip(events, bad, strict=True))

    def _series(self) -> Iterator[tuple[tuple[str, ...], Sequence[float], Sequence[float] | None]]:
        """Yield labels and cells of each series, with the bounds if it is one of durations."""
        shared = self._sharing.read()
        if shared is None:
            for metric in (self._requests, self._duration):
                for labels, child in metric.children().copy().items():
                    yield tuple(labels), child.read(), _bounds(child)
            return
        scope, readings, alone = shared
        names = {metric.family()[0] for metric in (self._requests, self._duration)}
        for reading in readings:
            ours = {
                number: None if family["bounds"] is None else [float(bound) for bound in family["bounds"]]
                for number, family in enumerate(reading.families)
                if family.get("scope") == scope and family.get("name") in names
            }
            for number, labels, at, count in reading.series:
                if number in ours:
                    yield labels, reading.values[at : at + count], ours[number]
        for child in alone:
            if child.family()[0] in names:
                yield child.label_values(), child.read(), _bounds(child)

    def _find_events(self, labels: tuple[str, ...]) -> tuple[tuple[int, bool], ...]:
        found = [(at, *each.of_status(*labels)) for at, each in enumerate(self._wanted)]
        return _remember(self._events, labels, tuple((at, bad) for at, event, bad in found if event))

    def _find_timed(self, labels: tuple[str, ...]) -> tuple[int, ...]:
        found = (at for at, each in enumerate(self._wanted) if each.bad is None and each.counts(*labels))
        return _remember(self._timed, labels, tuple(found))


def _bounds(child: BoundedMetric) -> Sequence[float] | None:
    bounds = getattr(child, "bounds", None)
    return None if bounds is None else bounds()


def _remember(kept: dict[tuple[str, ...], V], key: tuple[str, ...], value: V) -> V:
    if len(kept) >= MAX_CACHED_LABEL_SETS:
        kept.clear()
    kept[key] = value
    return value


def add_bounds(histogram: Histogram, bounds: Iterable[float]) -> None:
    """Add upper bounds of buckets, while the cells are this process's own; earlier samples stay above them."""
    for bound in bounds:
        with histogram.guard:
            at = bisect_left(histogram.bounds(), bound)
            if histogram.bounds()[at] == bound:
                continue
            for one in (histogram, *histogram.children().values()):
                one.bounds().insert(at, bound)
                one.exemplars = {cell + (cell >= at): kept for cell, kept in one.exemplars.items()}
                if one.cells:
                    one.cells.insert(at, 0)
            histogram.options["buckets"] = tuple(histogram.bounds())

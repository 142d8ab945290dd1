"""`MergedFamilies`: what all workers have counted, family by family (a metric with all its series)."""

from __future__ import annotations

import os
from math import inf
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.metrics.budget import SeriesLimiter
from fastapi_observe.metrics.series import (
    YIELD_EVERY,
    YIELD_SLEEP,
    BoundedMetric,
    Counter,
    Gauge,
    Histogram,
    join_labels,
)
from fastapi_observe.metrics.shared.samples import ExemplarsBySeries, SampleFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastapi_observe.internal.prometheus_client import ExemplarTuple
    from fastapi_observe.workers.files import ValueFileReader

CellRefs = list[tuple["ValueFileReader", int]]
"""Places of the cells of one series: the reader that has their values, and the offset in them."""

UNLIMITED: Final = 1 << 60
"""No limit: the workers that made the series have applied theirs."""

GAUGE_MODES: Final[dict[str, Any]] = {"sum": sum, "max": max, "min": min}
"""How the gauges of several workers become one. Mode `pid` keeps them apart."""


class MergedFamily:
    """A family with the series of all workers. `template` is a metric without series that renders them."""

    def __init__(self, template: BoundedMetric, mode: str) -> None:
        self.template = template
        self.mode = mode
        self.series: dict[tuple[str, ...], MergedSeries] = {}
        # Number of cells of a series: its buckets and the sum, a value and whether it is exposed, or a count.
        self.width = (
            len(template.bounds()) + 1 if isinstance(template, Histogram) else 2 if isinstance(template, Gauge) else 1
        )
        self._had_exemplars = False

    def add(self, labels: tuple[str, ...], reader: ValueFileReader, offset: int) -> None:
        """Add a series of one worker. Raises ValueError if it has other labels than the family."""
        self._get(labels).refs.append((reader, offset))

    def _get(self, labels: tuple[str, ...]) -> MergedSeries:
        series = self.series.get(labels)
        if series is None:
            joined = join_labels(self.template.limiter.constant_labels, self.template.label_names(), labels)
            series = self.series[labels] = MergedSeries(joined)
        return series

    def merge(self, exemplars: ExemplarsBySeries, local: Iterable[BoundedMetric]) -> Sequence[MergedSeries]:
        """Return the series with their present values. `local` are series that only this worker has."""
        local_by_labels = {series.label_values(): series for series in local}
        for labels in local_by_labels:
            self._get(labels)
        if isinstance(self.template, Gauge):
            return self._merge_gauges(local_by_labels)
        if exemplars or self._had_exemplars:
            for series in self.series.values():
                series.find_exemplars(exemplars)
            self._had_exemplars = bool(exemplars)
        for number, (labels, series) in enumerate(self.series.items()):
            if number % YIELD_EVERY == 0:
                sleep(YIELD_SLEEP)  # lets the event loop have the GIL, as in `BoundedMetric.render`
            series.add_up(self.width, local_by_labels.get(labels))
        return list(self.series.values())

    def _merge_gauges(self, local: dict[tuple[str, ...], BoundedMetric]) -> Sequence[MergedSeries]:
        merged: list[MergedSeries] = []
        for labels, series in self.series.items():
            values = [
                (reader.pid, reader.values[offset])
                for reader, offset in series.refs
                if reader.live and reader.values[offset + 1]
            ]
            if labels in local:
                values.append((os.getpid(), local[labels].read()[0]))
            if self.mode == "pid":
                for pid, value in values:
                    pairs = f'{series.pairs}{"," if series.pairs else ""}pid="{pid}"'
                    merged.append(MergedSeries(pairs, value))
            elif values:
                series.value = GAUGE_MODES.get(self.mode, sum)([value for _, value in values])
                merged.append(series)
        return merged


class MergedSeries:
    """One series, as the rendering of `template` needs it.

    `pairs` are its labels in the text format, `braced` the same in braces. `value` is that of a gauge, `values` are the
    merged cells of any other series.
    """

    __slots__ = ("braced", "exemplars", "pairs", "refs", "value", "values")

    def __init__(self, pairs: str, value: float | None = None) -> None:
        self.pairs = pairs
        self.braced = f"{{{pairs}}}" if pairs else ""
        self.exemplars: dict[int, ExemplarTuple] = {}
        self.refs: CellRefs = []
        self.value = value
        self.values: Sequence[float] = ()

    def read(self) -> Sequence[float]:
        """Return the merged cells."""
        return self.values if self.value is None else (self.value,)

    def add_up(self, width: int, local: BoundedMetric | None) -> None:
        """Add up the cells of all workers, and those of a series that only this worker has."""
        refs = self.refs
        if width == 1:
            total = sum([reader.values[offset] for reader, offset in refs])
            total += local.read()[0] if local is not None else 0
            self.values = (_without_zero(total),)
            return
        cells = [reader.values[offset : offset + width] for reader, offset in refs]
        if local is not None:
            cells.append(local.read())  # type: ignore[arg-type]  # both are sequences of numbers
        *counts, total = cells[0] if len(cells) == 1 else map(sum, zip(*cells, strict=True))
        self.values = [*map(_without_zero, counts), total]

    def find_exemplars(self, exemplars: ExemplarsBySeries) -> None:
        """Set the latest exemplar of each cell."""
        self.exemplars = {}
        for reader, offset in self.refs:
            for cell, exemplar in exemplars.get((reader.name, offset), {}).items():
                if cell not in self.exemplars or self.exemplars[cell][2] < exemplar[2]:
                    self.exemplars[cell] = exemplar


def _without_zero(value: float) -> float:
    """Return a whole number as a single process renders it: without `.0`."""
    return whole if -inf < value < inf and (whole := int(value)) == value else value


class MergedFamilies:
    """Families of all workers, by owner and name, with the series that are in the files of the workers.

    `update` assigns the series to families. Assignments are kept until the set of files changes.

    `mismatched` are descriptions that are invalid, or differ from another worker's metric of the same name.
    `constant_labels` are on each series.
    """

    def __init__(self, constant_labels: Mapping[str, str] | None = None) -> None:
        self._constant_labels = constant_labels
        self.families: dict[tuple[str, str], MergedFamily | SampleFamily] = {}
        self.mismatched: set[tuple[str, str]] = set()
        self._token: object = None
        # By name of the worker: how many of its series are assigned, and its families by their number in its index.
        self._series_seen: dict[str, int] = {}
        self._by_number: dict[str, list[MergedFamily | SampleFamily | None]] = {}

    def update(self, token: object, readers: Iterable[ValueFileReader]) -> None:
        """Add what is new since the last call. Another token means other files: everything is assigned again."""
        if token != self._token:
            self._token = token
            self.families, self._series_seen, self._by_number = {}, {}, {}
        for reader in sorted(readers, key=lambda one: not one.own):  # this process decides what a family looks like
            families = self._by_number.setdefault(reader.name, [])
            for description in reader.families[len(families) :]:
                families.append(self._find(description))
            for number, labels, offset, count in reader.series[self._series_seen.get(reader.name, 0) :]:
                family = families[number]
                if family is not None and family.width == count:
                    try:
                        family.add(labels, reader, offset)
                    except ValueError:  # other labels than the family has
                        self.mismatched.add((reader.name, str(number)))
            self._series_seen[reader.name] = len(reader.series)

    def _find(self, description: dict[str, Any]) -> MergedFamily | SampleFamily | None:
        """Return the family of a description; None if it is invalid or does not match the family of that name."""
        try:
            key = (description["owner"], description["name"])
            family = self.families.get(key)
            made = (
                SampleFamily(description)
                if description["kind"] == "samples"
                else MergedFamily(_make_template(description, self._constant_labels), description["mode"])
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            self.mismatched.add((str(description.get("owner")), str(description.get("name"))))
            return None
        if family is None:
            self.families[key] = made
            return made
        if _comparable(family) != _comparable(made):
            self.mismatched.add(key)
            return None
        return family


def _comparable(family: MergedFamily | SampleFamily) -> object:
    """Return what must be equal in all workers."""
    if isinstance(family, SampleFamily):
        return family.type
    template = family.template
    return type(template), template.label_names(), template.bounds() if isinstance(template, Histogram) else None


def _make_template(description: dict[str, Any], constant_labels: Mapping[str, str] | None) -> BoundedMetric:
    limiter = SeriesLimiter(UNLIMITED, UNLIMITED, constant_labels=constant_labels)
    arguments = description["name"], description["doc"], tuple(description["labels"]), limiter
    if description["kind"] == "histogram":
        return Histogram(*arguments, buckets=tuple(float(bound) for bound in description["bounds"]))
    kinds: dict[str, type[Counter | Gauge]] = {"counter": Counter, "gauge": Gauge}
    return kinds[description["kind"]](*arguments)

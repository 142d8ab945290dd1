"""What all workers of a server have counted, added up family by family."""

from __future__ import annotations

import os
from math import inf
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.metrics.budget import SeriesLimiter
from fastapi_observe.metrics.series import YIELD_EVERY, YIELD_SLEEP, BoundedMetric, Counter, Gauge, Histogram, escape
from fastapi_observe.metrics.shared.samples import ExemplarsBySeries, SampleFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastapi_observe.metrics.budget import ExemplarTuple
    from fastapi_observe.workers.files import ValueFileReader

CellRefs = list[tuple["ValueFileReader", int]]
"""Where the cells of one series stand: in whose values, and from where on."""

UNBOUNDED: Final = 1 << 60
"""The bound has been kept where the series were made."""


class MergedFamily:
    """A family with the series of all workers."""

    def __init__(self, shape: BoundedMetric, mode: str) -> None:
        self.shape = shape
        self.mode = mode
        self.series: dict[tuple[str, ...], MergedSeries] = {}
        self.width = len(shape.bounds()) + 1 if isinstance(shape, Histogram) else 2 if isinstance(shape, Gauge) else 1
        self._with_exemplars = False

    def add(self, labels: tuple[str, ...], reading: ValueFileReader, at: int) -> None:
        """Take note of a series of one worker."""
        series = self.series.get(labels)
        if series is None:
            series = self.series[labels] = _new_series(self.shape, labels)
        series.refs.append((reading, at))

    def family(self) -> tuple[str, str]:
        """Return the name of the family, without the ending of counters, and its type."""
        return self.shape.family()

    def series_of_all(self, exemplars: ExemplarsBySeries, alone: Iterable[BoundedMetric]) -> Sequence[MergedSeries]:
        """Return the series as they are now; `alone` are those that this worker could not share."""
        here = {child.label_values(): child for child in alone}
        for labels in here.keys() - self.series.keys():
            self.series[labels] = _new_series(self.shape, labels)
        if isinstance(self.shape, Gauge):
            return self._gauges(here)
        if exemplars or self._with_exemplars:
            for series in self.series.values():
                series.find_exemplars(exemplars)
            self._with_exemplars = bool(exemplars)
        for number, (labels, series) in enumerate(self.series.items()):
            if number % YIELD_EVERY == 0:
                sleep(YIELD_SLEEP)  # as in `text_of`
            series.add_up(self.width, here.get(labels))
        return list(self.series.values())

    def _gauges(self, here: dict[tuple[str, ...], BoundedMetric]) -> Sequence[MergedSeries]:
        shown: list[MergedSeries] = []
        for labels, series in self.series.items():
            values = [
                (reading.pid, reading.values[at])
                for reading, at in series.refs
                if reading.living and reading.values[at + 1]
            ]
            if labels in here:
                values.append((os.getpid(), here[labels].read()[0]))
            if self.mode == "pid":
                for pid, value in values:
                    pairs = f'{series.pairs}{"," if series.pairs else ""}pid="{pid}"'
                    shown.append(MergedSeries(pairs, value))
            elif values:
                series.value = MODES.get(self.mode, sum)([value for _, value in values])
                shown.append(series)
        return shown


MODES: Final[dict[str, Any]] = {"sum": sum, "max": max, "min": min}
"""How the gauges of several processes become one; besides them `pid`, where they do not."""


class MergedSeries:
    """One series: what its lines are made of."""

    __slots__ = ("braced", "exemplars", "pairs", "refs", "value", "values")

    def __init__(self, pairs: str, value: float | None = None) -> None:
        self.pairs = pairs
        self.braced = f"{{{pairs}}}" if pairs else ""
        self.exemplars: dict[int, ExemplarTuple] = {}
        self.refs: CellRefs = []
        self.value = value
        self.values: Sequence[float] = ()

    def read(self) -> Sequence[float]:
        """Return the cells that were added up."""
        return self.values if self.value is None else (self.value,)

    def add_up(self, width: int, alone: BoundedMetric | None) -> None:
        """Add up the cells of all workers, and those of a series that could not be shared."""
        refs = self.refs
        if width == 1:
            total = sum([reading.values[at] for reading, at in refs])
            total += alone.read()[0] if alone is not None else 0
            self.values = (_whole(total),)
            return
        cells = [reading.values[at : at + width] for reading, at in refs]
        if alone is not None:
            cells.append(alone.read())  # type: ignore[arg-type]  # both are sequences of numbers
        *counts, total = cells[0] if len(cells) == 1 else map(sum, zip(*cells, strict=True))
        self.values = [*map(_whole, counts), total]

    def find_exemplars(self, exemplars: ExemplarsBySeries) -> None:
        """Keep the latest exemplar of each cell."""
        self.exemplars = {}
        for reading, at in self.refs:
            for cell, kept in exemplars.get((reading.name, at), {}).items():
                if cell not in self.exemplars or self.exemplars[cell][2] < kept[2]:
                    self.exemplars[cell] = kept


def _whole(count: float) -> float:
    """Return a count as it would be written in one process."""
    return int(count) if -inf < count < inf else count


def _new_series(shape: BoundedMetric, labels: tuple[str, ...]) -> MergedSeries:
    names = shape.label_names()
    return MergedSeries(",".join(f'{name}="{escape(text)}"' for name, text in zip(names, labels, strict=True)))


class FamilyIndex:
    """Finds in the files of the workers what belongs to which family; what was found is kept until the files change."""

    def __init__(self) -> None:
        self.families: dict[tuple[str, str], MergedFamily | SampleFamily] = {}
        self.strange: set[tuple[str, str]] = set()
        self._token: object = None
        self._taken: dict[str, int] = {}
        self._numbers: dict[str, list[MergedFamily | SampleFamily | None]] = {}

    def update(self, token: object, readings: Iterable[ValueFileReader]) -> None:
        """Take in what has been added since the last time."""
        if token != self._token:
            self._token = token
            self.families, self._taken, self._numbers = {}, {}, {}
        for reading in sorted(readings, key=lambda one: not one.own):  # our own shapes count
            numbers = self._numbers.setdefault(reading.name, [])
            for described in reading.families[len(numbers) :]:
                numbers.append(self._find(described))
            taken = self._taken.get(reading.name, 0)
            for number, labels, at, count in reading.series[taken:]:
                family = numbers[number]
                if family is not None and family.width == count:
                    try:
                        family.add(labels, reading, at)
                    except ValueError:  # other labels than the family has
                        self.strange.add((reading.name, str(number)))
            self._taken[reading.name] = len(reading.series)

    def _find(self, described: dict[str, Any]) -> MergedFamily | SampleFamily | None:
        """Return the family that is described; None if it is none, or has another shape than ours of that name."""
        try:
            key = (described["scope"], described["name"])
            family = self.families.get(key)
            made = (
                SampleFamily(described)
                if described["kind"] == "samples"
                else MergedFamily(_shape(described), described["mode"])
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            self.strange.add((str(described.get("scope")), str(described.get("name"))))
            return None
        if family is None:
            self.families[key] = made
            return made
        if _form(family) != _form(made):
            self.strange.add(key)
            return None
        return family


def _form(family: MergedFamily | SampleFamily) -> object:
    if isinstance(family, SampleFamily):
        return family.type
    shape = family.shape
    return type(shape), shape.label_names(), shape.bounds() if isinstance(shape, Histogram) else None


def _shape(described: dict[str, Any]) -> BoundedMetric:
    """Make a metric that writes the lines of a family, with a place for no series."""
    budget = SeriesLimiter(UNBOUNDED, UNBOUNDED)
    arguments = described["name"], described["doc"], tuple(described["labels"]), budget
    if described["kind"] == "histogram":
        return Histogram(*arguments, buckets=tuple(float(bound) for bound in described["bounds"]))
    kinds: dict[str, type[Counter | Gauge]] = {"counter": Counter, "gauge": Gauge}
    return kinds[described["kind"]](*arguments)

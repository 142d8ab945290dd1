"""Prometheus metrics with a limited number of label sets: `Counter`, `Gauge` and `Histogram`."""

from __future__ import annotations

from bisect import bisect_left
from copy import copy
from itertools import accumulate
from math import inf, isfinite
from time import sleep, time
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from fastapi_observe.internal.prometheus_client import format_float, make_exemplar
from fastapi_observe.metrics.budget import LabelSets
from fastapi_observe.records.guard import CALLER_ERRORS, NO_OP, report_error
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from prometheus_client.samples import Exemplar

    from fastapi_observe.internal.prometheus_client import ExemplarTuple
    from fastapi_observe.metrics.budget import SeriesLimiter

MAX_LABEL_LENGTH: Final = 1024
"""Characters of a label value; the rest is cut off."""

MAX_EXEMPLAR_LENGTH: Final = 128
"""Characters of all labels of an exemplar (OpenMetrics 1.0, "Exemplars")."""

YIELD_EVERY: Final = 32
"""Series that are rendered before other threads get a turn."""

# sleep(0) reacquires the GIL before the event loop's thread wakes up, which then waits a full switch interval (5 ms).
YIELD_SLEEP: Final = 0.00002
"""Seconds of that turn."""


class RenderedSeries(Protocol):
    """A series as `BoundedMetric.render_series` reads it: a child of this process, or one merged of all workers."""

    pairs: str
    braced: str
    exemplars: dict[int, ExemplarTuple]

    def read(self) -> Sequence[float]:
        """Return the values of the cells, as of one moment."""


class SeriesSample(NamedTuple):
    """One sample of a series: suffix of its name, labels beyond those of the series, value, exemplar."""

    suffix: str
    labels: dict[str, str]
    value: float
    exemplar: Exemplar | None = None


def to_label_value(value: object) -> str:
    """Return `value` as a string, whatever its type is. Never raises."""
    try:
        return value if type(value) is str else str(value)
    except Exception:  # noqa: BLE001 - __str__ of any object
        return f"<unprintable {type(value).__name__}>"


def _printable(text: str) -> str:
    """Cut a label value to its limit, and write lone surrogates, which UTF-8 cannot encode, as escapes."""
    text = text[:MAX_LABEL_LENGTH]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _number(value: float) -> str | float:
    return value if isfinite(value) else format_float(value)


def escape_label_value(text: str) -> str:
    """Escape a label value for the text format."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def join_labels(constant: Mapping[str, str], names: Sequence[str], values: Sequence[str]) -> str:
    """Return the labels of a series as the text format writes them, without braces; the constant ones first."""
    pairs = (*constant.items(), *zip(names, values, strict=True))
    return ",".join(f'{name}="{escape_label_value(text)}"' for name, text in pairs)


def parse_bounds(buckets: Sequence[float]) -> list[float]:
    """Return upper bounds of buckets as floats, with infinity as the last one.

    Raises ValueError if they do not ascend.
    """
    bounds = [float(bound) for bound in buckets]
    if not bounds or bounds != sorted(set(bounds)):
        raise ValueError(f"buckets {bounds} must ascend; give each upper bound once, smallest first")
    return bounds if bounds[-1] == inf else [*bounds, inf]


def _render_exemplars(lines: str, exemplars: dict[int, ExemplarTuple]) -> str:
    """Append each exemplar to the line of its cell, as OpenMetrics writes it."""
    split = lines.split("\n")
    for cell, (labels, value, timestamp) in exemplars.items():
        pairs = ",".join(f'{name}="{escape_label_value(text)}"' for name, text in labels.items())
        split[cell] += f" # {{{pairs}}} {format_float(value)} {timestamp:.3f}"
    return "\n".join(split)


class BoundedMetric(MetricWrapperBase):
    """Base of the metrics below: limited label sets, values in `cells`, fast rendering.

    A metric with labels has children, one for each label set; a child, or a metric without labels, has `cells`. A
    child is a shallow copy of its metric with cells of its own. In multiprocess mode the limiter's store replaces the
    list of cells by one in shared memory.

    prometheus_client's state stays unused: isinstance checks, `describe`, decorators and context managers are what is
    inherited. `_created` series are not made; they would double the number of counters.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        limiter: SeriesLimiter,
        static_labels: frozenset[str] = frozenset(),
        **options: Any,
    ) -> None:
        super().__init__(name, documentation, labelnames, registry=None, **options)
        self.limiter = limiter
        self.lock = limiter.lock
        self._family_name = name.removesuffix("_total") if self.kind == "counter" else name
        self._help = documentation
        self._names = tuple(labelnames)
        self.label_sets = LabelSets(self.exposition_name(), self._names, static_labels)
        self.cells: list[float] = []
        self.exemplars: dict[int, ExemplarTuple] = {}
        self._values: tuple[str, ...] = ()
        if not labelnames:
            self._start(())

    def _metric_init(self) -> None:
        """Override prometheus_client's, which would make values that nothing reads."""

    def _raise_if_not_observable(self) -> None:
        """Raise ValueError if this metric has labels; prometheus_client's decorators and context managers call it."""
        if not self.cells:
            raise ValueError(f"{self.exposition_name()} has the labels {self._names}; call .labels(...) first")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.exposition_name()})"

    __str__ = __repr__

    def _start(self, values: tuple[str, ...]) -> None:
        """Start a series with these label values."""
        self._values = values
        self.cells = self._new_cells()
        self.exemplars = {}
        self.pairs = join_labels(self.limiter.constant_labels, self._names, values)
        self.braced = f"{{{self.pairs}}}" if self.pairs else ""
        if self.limiter.store is not None:
            with self.lock:
                self.limiter.store.bind(self)

    def _new_cells(self) -> list[float]:
        return [0]

    # Label sets

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """Return the child with these label values, given by position or by name.

        Beyond a limit it is the child with `__overflow__`. Raises ValueError for wrong or missing labels.
        """
        try:
            return self.labels_or_raise(*labelvalues, **labelkwargs)
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("metrics.labels", exc)
            return NO_OP  # type: ignore[no-any-return]

    def labels_or_raise(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """Return the same as `labels`, but let internal errors pass."""
        if labelkwargs or self._values or len(labelvalues) != len(self._names) or not labelvalues:
            labelvalues = self._in_order(labelvalues, labelkwargs)
        values = tuple([text if type(text) is str else to_label_value(text) for text in labelvalues])
        child: Self | None = self.label_sets.children.get(values)
        return self._find_or_create(values) if child is None else child

    def _in_order(self, values: tuple[object, ...], named: dict[str, object]) -> tuple[object, ...]:
        if not self._names or self._values:
            raise ValueError(f"{self.exposition_name()} takes no (further) labels; call its methods directly")
        if (values and named) or (named and named.keys() != set(self._names)) or not (values or named):
            raise ValueError(
                f"{self.exposition_name()} has the labels {self._names}; "
                "pass all of them, either by position or by name"
            )
        if values and len(values) != len(self._names):
            raise ValueError(
                f"{self.exposition_name()} has the labels {self._names}, got {len(values)} values; pass one for each"
            )
        return values or tuple(named[name] for name in self._names)

    def _find_or_create(self, values: tuple[str, ...]) -> Self:
        requested = tuple([_printable(text) for text in values])
        label_sets, limiter = self.label_sets, self.limiter
        with self.lock:
            limit = ""
            used = label_sets.limit_values(requested, limiter.per_label)
            child: Self | None = label_sets.children.get(used)
            if child is None and (limit := limiter.limit_reached(label_sets)):
                used = (OVERFLOW,) * len(requested)
                child = label_sets.children.get(used)
            if child is None:
                child = copy(self)
                child._start(used)  # noqa: SLF001 - the same class
                label_sets.add(used, child)
        if used != requested:
            limiter.record_overflow(label_sets, requested, used, limit)
        return child

    def remove(self, *labelvalues: Any) -> None:
        """Remove the series with these label values, if there is one.

        In multiprocess mode, the totals of counters and histograms remain.
        """
        self._remove_all([tuple([_printable(to_label_value(value)) for value in self._in_order(labelvalues, {})])])

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Remove every series that has all these labels, by name. Does nothing without labels."""
        if self._values or not labels.keys() <= set(self._names):
            raise ValueError(
                f"{self.exposition_name()} has the labels {self._names}, got {sorted(labels)}; pass some of its own"
            )
        wanted = {self._names.index(name): _printable(to_label_value(value)) for name, value in labels.items()}
        with self.lock:
            label_sets = list(self.label_sets.children) if wanted else []
        self._remove_all(
            [values for values in label_sets if all(values[index] == text for index, text in wanted.items())]
        )

    def clear(self) -> None:
        """Remove every series of a metric with labels."""
        with self.lock:
            label_sets = [] if self._values else list(self.label_sets.children)
        self._remove_all(label_sets)

    def _remove_all(self, label_sets: Iterable[tuple[str, ...]]) -> None:
        with self.lock:
            removed = [child for values in label_sets if (child := self.label_sets.remove(values)) is not None]
        store = self.limiter.store
        if store is not None:
            for child in removed:
                store.release(child)

    def children(self) -> dict[tuple[str, ...], Any]:
        """Return the children by their label values."""
        return self.label_sets.children

    def label_values(self) -> tuple[str, ...]:
        """Return the label values of a child; empty for a metric without labels."""
        return self._values

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels, in the order that `labels` takes their values."""
        return self._names

    # Exemplars

    def set_exemplar(self, cell: int, labels: dict[str, str], value: float) -> None:
        """Store an exemplar for a cell. One that is too long for OpenMetrics is left out; it does not raise."""
        texts = {to_label_value(name): _printable(to_label_value(text)) for name, text in labels.items()}
        if sum(len(name) + len(text) for name, text in texts.items()) <= MAX_EXEMPLAR_LENGTH:
            self.exemplars[cell] = (texts, value, time())

    def get_exemplar(self, cell: int) -> Exemplar | None:
        """Return the exemplar of a cell in prometheus_client's form."""
        return make_exemplar(self.exemplars.get(cell))

    # Output

    def exposition_name(self) -> str:
        """Return the name in the text format, with `_total` for a counter."""
        return f"{self._family_name}_total" if self.kind == "counter" else self._family_name

    def family(self) -> tuple[str, str]:
        """Return the name of the family, without `_total`, and its type."""
        return self._family_name, self.kind

    def documentation(self) -> str:
        """Return the help text."""
        return self._help

    def describe(self) -> list[Metric]:
        """Return the family without samples."""
        return [Metric(self._family_name, self._help, self.kind)]

    def collect(self) -> list[Metric]:
        """Return the family with its samples, as prometheus_client's own exposition needs it."""
        (metric,) = self.describe()
        for child in self._series():
            own = zip(self._names, child._values, strict=True)  # noqa: SLF001 - the same class
            labels = {**self.limiter.constant_labels, **dict(own)}
            for sample in child._own_samples():  # noqa: SLF001 - the same class
                metric.add_sample(
                    self._family_name + sample.suffix, {**labels, **sample.labels}, sample.value, None, sample.exemplar
                )
        return [metric]

    def _series(self) -> list[Self]:
        return [self] if self.cells else list(self.label_sets.children.copy().values())

    def _own_samples(self) -> Iterable[SeriesSample]:
        raise NotImplementedError

    def render(self, *, openmetrics: bool) -> str:
        """Return the metric in the text format, or in OpenMetrics with exemplars; empty without a series."""
        return self.render_series(self._series(), openmetrics=openmetrics)

    def render_series(self, series: Sequence[RenderedSeries], *, openmetrics: bool) -> str:
        """Return the text of this metric with these series."""
        if not series:
            return ""
        name = self._family_name if openmetrics else self.exposition_name()
        documentation = self._help.replace("\\", r"\\").replace("\n", r"\n")
        if openmetrics:
            documentation = documentation.replace('"', r"\"")
        parts = [f"# HELP {name} {documentation}\n# TYPE {name} {self.kind}\n"]
        template = self._template()
        for number, child in enumerate(series):
            if number % YIELD_EVERY == 0:
                sleep(YIELD_SLEEP)
            lines = template % self._arguments(child)
            if openmetrics and child.exemplars:
                lines = _render_exemplars(lines, child.exemplars.copy())
            parts.append(lines)
        return "".join(parts)

    def _template(self) -> str:
        """Return the lines of one series as a %-template, which is filled with `_arguments`."""
        return f"{self.exposition_name()}%s %s\n"

    def _arguments(self, series: RenderedSeries) -> tuple[object, ...]:
        return series.braced, _number(series.read()[0])

    def read(self) -> Sequence[float]:
        """Return the values of the cells, as of one moment."""
        return self.cells


class Counter(BoundedMetric, prometheus_client.Counter):
    """A prometheus_client counter with a limited number of label sets."""

    kind = "counter"

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add `amount`. Raises ValueError if it is negative."""
        if amount < 0:
            raise ValueError(f"{self.exposition_name()} is a counter and cannot go down by {amount}; use a gauge")
        try:
            self._raise_if_not_observable()
            with self.lock:
                self.cells[0] += amount
            if exemplar:
                self.set_exemplar(0, exemplar, amount)
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("metrics.sample", exc)

    def reset(self) -> None:
        """Set the counter to 0."""
        self._raise_if_not_observable()
        with self.lock:
            self.cells[0] = 0

    def _own_samples(self) -> Iterable[SeriesSample]:
        return (SeriesSample("_total", {}, self.cells[0], self.get_exemplar(0)),)


class Gauge(BoundedMetric, prometheus_client.Gauge):
    """A prometheus_client gauge with a limited number of label sets.

    `mode` is how the values of several worker processes are merged: `sum`, `max` or `min` of the live ones, or `pid`:
    each worker's own value, labeled with its process id.
    """

    kind = "gauge"

    def __init__(self, *arguments: Any, mode: str = "sum", **options: Any) -> None:
        self.mode = mode
        self.function: Callable[[], float] | None = None
        super().__init__(*arguments, **options)

    def inc(self, amount: float = 1) -> None:
        """Add `amount`."""
        try:
            self._raise_if_not_observable()
            with self.lock:
                self.cells[0] += amount
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("metrics.sample", exc)

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount`."""
        self.inc(-amount)

    def set(self, value: float) -> None:
        """Set the gauge to `value`."""
        try:
            self._raise_if_not_observable()
            number = float(value)
            with self.lock:
                self.cells[0] = number
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("metrics.sample", exc)

    def set_function(self, f: Callable[[], float]) -> None:
        """Call `f` for the value at each scrape."""
        self._raise_if_not_observable()
        self.function = f

    def value(self) -> float:
        """Return the value now."""
        return self.cells[0] if self.function is None else float(self.function())

    def read(self) -> Sequence[float]:
        """Return the value now."""
        return (self.value(),)

    def _own_samples(self) -> Iterable[SeriesSample]:
        return (SeriesSample("", {}, self.value()),)


class Histogram(BoundedMetric, prometheus_client.Histogram):
    """A prometheus_client histogram with a limited number of label sets.

    `cells` holds the number of samples of each bucket, not cumulative, and then the sum.
    """

    kind = "histogram"

    def __init__(
        self, *arguments: Any, buckets: Sequence[float] = prometheus_client.Histogram.DEFAULT_BUCKETS, **options: Any
    ) -> None:
        self._bounds = parse_bounds(buckets)  # one list for the metric and its children
        super().__init__(*arguments, buckets=self._bounds, **options)

    def _new_cells(self) -> list[float]:
        return [0] * len(self._bounds) + [0.0]

    def bounds(self) -> list[float]:
        """Return the upper bounds of the buckets, ascending; the last one is infinite."""
        return self._bounds

    def add_bounds(self, bounds: Iterable[float]) -> None:
        """Add upper bounds of buckets, before cells are shared with other processes.

        Earlier samples stay in the bucket above a new bound.
        """
        for bound in bounds:
            with self.lock:
                index = bisect_left(self._bounds, bound)
                if self._bounds[index] == bound:
                    continue
                self._bounds.insert(index, bound)
                for series in self._series():
                    series.cells.insert(index, 0)
                    series.exemplars = {cell + (cell >= index): each for cell, each in series.exemplars.items()}

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Record a sample. NaN is ignored, since the sum would stay NaN from then on."""
        try:
            self._raise_if_not_observable()
            if amount != amount:  # noqa: PLR0124 - true for NaN only, and cheaper than isnan
                return
            cell = bisect_left(self._bounds, amount)
            with self.lock:
                self.cells[cell] += 1
                self.cells[-1] += amount
            if exemplar:
                self.set_exemplar(cell, exemplar, amount)
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("metrics.sample", exc)

    def has_sum(self) -> bool:
        """Return whether sum and count are shown; OpenMetrics forbids them where samples may be negative."""
        return self._bounds[0] >= 0

    def snapshot(self) -> tuple[list[float], float]:
        """Return the cumulative buckets and the sum, as of one moment."""
        *counts, total = self.read()
        return list(accumulate(counts)), total

    def read(self) -> Sequence[float]:
        """Return the samples of each bucket, not cumulative, and the sum, as of one moment."""
        with self.lock:
            return [*self.cells]

    def _template(self) -> str:
        name = self._family_name
        buckets = "".join(f'{name}_bucket{{%sle="{format_float(bound)}"}} %s\n' for bound in self._bounds)
        return f"{buckets}{name}_count%s %s\n{name}_sum%s %s\n" if self.has_sum() else buckets

    def _arguments(self, series: RenderedSeries) -> tuple[object, ...]:
        *buckets, total = series.read()
        counts = list(accumulate(buckets))
        filled: list[object] = [f"{series.pairs}," if series.pairs else ""] * (2 * len(counts))
        filled[1::2] = counts
        return (*filled, series.braced, counts[-1], series.braced, _number(total)) if self.has_sum() else tuple(filled)

    def _own_samples(self) -> Iterator[SeriesSample]:
        counts, total = self.snapshot()
        for cell, (bound, count) in enumerate(zip(self._bounds, counts, strict=True)):
            yield SeriesSample("_bucket", {"le": format_float(bound)}, count, self.get_exemplar(cell))
        if self.has_sum():
            yield SeriesSample("_count", {}, counts[-1])
            yield SeriesSample("_sum", {}, total)

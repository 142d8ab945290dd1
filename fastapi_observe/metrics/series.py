"""Prometheus metrics with a bounded number of label sets: `Counter`, `Gauge`, `Histogram` and their `SeriesBudget`."""

from __future__ import annotations

from bisect import bisect_left
from contextlib import contextmanager
from itertools import accumulate
from math import isfinite
from time import sleep, time
from typing import TYPE_CHECKING, Any, Final

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from fastapi_observe.metrics.budget import OVERFLOW, ExemplarTuple, LabelValues, SeriesLimiter
from fastapi_observe.records.guard import CALLER_ERRORS, NO_OP, report_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self

    from fastapi_observe.metrics.budget import Series, SeriesLimiter


class Removable(MetricWrapperBase):
    """Shows series no longer that were removed; in several workers that is so for gauges, totals stay."""

    budget: SeriesLimiter
    guard: Any
    values: Any

    def remove(self, *labelvalues: Any) -> None:
        """Remove the series of these label values."""
        with self._releasing():
            super().remove(*labelvalues)

    def remove_by_labels(self, labels: dict[str, str]) -> None:
        """Remove every series that has these labels, by name."""
        with self._releasing():
            super().remove_by_labels(labels)

    def clear(self) -> None:
        """Remove every series."""
        with self._releasing():
            super().clear()

    @contextmanager
    def _releasing(self) -> Iterator[None]:
        with self.guard:
            before: dict[Any, Any] = dict(self._metrics) if self._labelnames and not self._labelvalues else {}
            yield
            gone = [child for values, child in before.items() if values not in self._metrics]
            for child in gone:
                self.values.remove(child.label_values())
        store = self.budget.store
        if store is not None:
            for child in gone:
                store.release(child)


LABEL_LENGTH: Final = 1024
"""Longest label value, in characters; the rest is cut off."""

EXEMPLAR_LENGTH: Final = 128
"""Longest label set of an exemplar, in characters (OpenMetrics 1.0, "Exemplars")."""

YIELD_EVERY: Final = 32
"""Series that are written before other threads may go on."""

YIELD_SLEEP: Final = 0.00002
"""Seconds for which they may. With 0, who rests takes the interpreter back before anyone who waits for it has woken up:
the event loop would wait the 5 ms after which the interpreter insists."""

format_float: Callable[[float], str] = floatToGoString
"""How Prometheus writes a number."""


def to_label_value(value: object) -> str:
    """Return `value` as text whatever its type is; never raises."""
    try:
        return value if type(value) is str else str(value)
    except Exception:  # noqa: BLE001 - any object may stand here
        return f"<unprintable {type(value).__name__}>"


def _printable(text: str) -> str:
    """Cut `text` to its bound and make it encodable: lone surrogates become escapes."""
    text = text[:LABEL_LENGTH]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _number(value: float) -> str | float:
    return value if isfinite(value) else format_float(value)


def exemplar_text(kept: ExemplarTuple) -> str:
    """Return an exemplar as OpenMetrics writes it behind a sample."""
    labels, value, timestamp = kept
    pairs = ",".join(f'{name}="{escape(text)}"' for name, text in labels.items())
    return f" # {{{pairs}}} {format_float(value)} {timestamp:.3f}"


def escape(text: str) -> str:
    """Write a label value as the text format wants it."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class BoundedMetric(Removable):
    """What the metrics of this module share: bounded `labels`, values in `cells`, a fast `text`.

    Of what is private in prometheus_client this module knows `_metric_init` and `_child_samples` (which its base class
    asks subclasses to define), `_type`, `_name`, `_documentation`, `_labelnames`, `_labelvalues`, `_lock`, `_metrics`
    and `_upper_bounds`; only `collectors` in `exposition.py` knows more.
    `_created` series are not made: they would double the number of counters.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        budget: SeriesLimiter,
        values: tuple[str, ...] = (),
        **options: Any,
    ) -> None:
        self.budget = budget
        self.guard = budget.lock
        self.cells: list[float] = []
        self.exemplars: dict[int, ExemplarTuple] = {}
        self.options = options
        given = {key: value for key, value in options.items() if key != "mode"}
        super().__init__(name, documentation, labelnames, registry=None, _labelvalues=values, **given)
        self.pairs = ",".join(
            f'{label}="{escape(text)}"' for label, text in zip(self._labelnames, values, strict=False)
        )
        self.braced = f"{{{self.pairs}}}" if self.pairs else ""
        if labelnames and not values:
            self._lock = budget.lock  # type: ignore[assignment]  # used in `with` only
            self.values = LabelValues(labelnames)
        elif budget.store is not None:
            with self.guard:
                budget.store.bind(self)

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """Return the child of these label values, or an overflow child when a bound is reached."""
        try:
            return self.labels_or_raise(*labelvalues, **labelkwargs)
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            report_error("metrics.labels", exc)
            return NO_OP  # type: ignore[no-any-return]

    def labels_or_raise(self, *labelvalues: object, **labelkwargs: object) -> Self:
        """Return what `labels` does; a fault raises."""
        if labelkwargs or self._labelvalues or len(labelvalues) != len(self._labelnames) or not labelvalues:
            labelvalues = self._ordered(labelvalues, labelkwargs)
        values = tuple([text if type(text) is str else to_label_value(text) for text in labelvalues])
        child: Self | None = self.children().get(values)
        return self._new_child(values) if child is None else child

    def _ordered(self, values: tuple[object, ...], named: dict[str, object]) -> tuple[object, ...]:
        if not self._labelnames or self._labelvalues:
            raise ValueError(f"{self.exposition_name()} takes no (further) labels: call its methods directly")
        if (values and named) or (named and named.keys() != set(self._labelnames)) or not (values or named):
            raise ValueError(f"{self.exposition_name()} has the labels {self._labelnames}: give all of them in one way")
        if values and len(values) != len(self._labelnames):
            raise ValueError(f"{self.exposition_name()} has the labels {self._labelnames}, got {len(values)} values")
        return values or tuple(named[name] for name in self._labelnames)

    def _new_child(self, values: tuple[str, ...]) -> Self:
        asked = tuple([_printable(text) for text in values])
        with self.guard:
            spent = ""
            kept = self.values.within(asked, self.budget.per_label)
            child: Self | None = self.children().get(kept)
            if child is None and (spent := self.budget.limit_reached(self)):
                kept = (OVERFLOW,) * len(asked)
                child = self.children().get(kept)
            if child is None:
                child = type(self)(self._name, self._documentation, self._labelnames, self.budget, kept, **self.options)
                self.children()[kept] = child
                self.values.add(kept)
        if kept != asked:
            self.budget.record_overflow(self, asked, kept, spent)
        return child

    def _raise_if_not_observable(self) -> None:
        if not self.cells:
            raise ValueError(f"{self.exposition_name()} has the labels {self.label_names()}: call .labels(...) first")

    def children(self) -> dict[Sequence[str], Any]:
        """Return the children by their label values."""
        return self._metrics

    def documentation(self) -> str:
        """Return what the metric says of itself."""
        return self._documentation

    def label_values(self) -> tuple[str, ...]:
        """Return the label values of a child; empty for a metric without labels."""
        return tuple(self._labelvalues)

    def label_names(self) -> tuple[str, ...]:
        """Return the names of the labels, in the order that `labels` takes their values."""
        return tuple(self._labelnames)

    def widest_label(self) -> str:
        """Return the name of the label that has the most values."""
        with self.guard:
            columns = list(zip(*self.children(), strict=True))
        widths = {name: len(set(column)) for name, column in zip(self.label_names(), columns, strict=True)}
        return max(widths, key=widths.__getitem__)

    def set_exemplar(self, cell: int, labels: dict[str, str], value: float) -> None:
        """Keep an exemplar for a cell; one that is too long for OpenMetrics is left out instead of raising."""
        texts = {to_label_value(name): _printable(to_label_value(text)) for name, text in labels.items()}
        if sum(len(name) + len(text) for name, text in texts.items()) <= EXEMPLAR_LENGTH:
            self.exemplars[cell] = (texts, value, time())

    def exposition_name(self) -> str:
        """Return the name under which the text format shows the metric."""
        name: str = self._name
        return f"{name}_total" if self._type == "counter" else name

    def family(self) -> tuple[str, str]:
        """Return the name of the family, without the ending of counters, and its type."""
        return self._name, str(self._type)

    def render(self, *, openmetrics: bool) -> str:
        """Return the metric in the text format, or in OpenMetrics with exemplars; empty without a series."""
        return self.render_series(
            [self] if self.cells else list(self.children().copy().values()), openmetrics=openmetrics
        )

    def render_series(self, series: Sequence[Series], *, openmetrics: bool) -> str:
        """Return the text of this metric with these series."""
        if not series:
            return ""
        name = self._name if openmetrics else self.exposition_name()
        documentation = self._documentation.replace("\\", r"\\").replace("\n", r"\n")
        if openmetrics:
            documentation = documentation.replace('"', r"\"")
        parts = [f"# HELP {name} {documentation}\n# TYPE {name} {self._type}\n"]
        template = self.template()
        for number, child in enumerate(series):
            if number % YIELD_EVERY == 0:
                sleep(YIELD_SLEEP)
            lines = template % self.arguments(child)
            if openmetrics and child.exemplars:
                lines = with_exemplars(lines, child.exemplars.copy())
            parts.append(lines)
        return "".join(parts)

    def get_exemplar(self, cell: int) -> Exemplar | None:
        """Return the exemplar of a cell in prometheus_client's form."""
        kept = self.exemplars.get(cell)
        return None if kept is None else Exemplar(*kept)

    def template(self) -> str:
        """Return the lines of one series, to be filled with `arguments`."""
        return f"{self.exposition_name()}%s %s\n"

    def arguments(self, series: Series) -> tuple[object, ...]:
        """Return what fills `template`."""
        return series.braced, _number(series.read()[0])

    def read(self) -> Sequence[float]:
        """Return the values of the cells, as of one moment."""
        return self.cells


def with_exemplars(lines: str, exemplars: dict[int, ExemplarTuple]) -> str:
    """Put each exemplar behind the line of its cell."""
    split = lines.split("\n")
    for cell, kept in exemplars.items():
        split[cell] += exemplar_text(kept)
    return "\n".join(split)


class Counter(BoundedMetric, prometheus_client.Counter):
    """A prometheus_client counter with a bounded number of label sets."""

    def _metric_init(self) -> None:
        self.cells = [0]

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        """Add `amount`, which may not be negative."""
        if amount < 0:
            raise ValueError(f"{self.exposition_name()} is a counter: it cannot go down by {amount}; use a gauge")
        try:
            self._raise_if_not_observable()
            with self.guard:
                self.cells[0] += amount
            if exemplar:
                self.set_exemplar(0, exemplar, amount)
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            report_error("metrics.sample", exc)

    def reset(self) -> None:
        """Set the counter to 0."""
        self._raise_if_not_observable()
        with self.guard:
            self.cells[0] = 0

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("_total", {}, self.cells[0], None, self.get_exemplar(0)),)


class Gauge(BoundedMetric, prometheus_client.Gauge):
    """A prometheus_client gauge with a bounded number of label sets.

    `mode` is how several workers show it: `sum`, `max` or `min` of those that live, or `pid`, each with its pid.
    """

    @property
    def mode(self) -> str:
        """How several workers show it."""
        mode: str = self.options.get("mode", "sum")
        return mode

    def _metric_init(self) -> None:
        self.cells = [0]
        self.function: Callable[[], float] | None = None

    def inc(self, amount: float = 1) -> None:
        """Add `amount`."""
        try:
            self._raise_if_not_observable()
            with self.guard:
                self.cells[0] += amount
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("metrics.sample", exc)

    def dec(self, amount: float = 1) -> None:
        """Take `amount` away."""
        self.inc(-amount)

    def set(self, value: float) -> None:
        """Set the gauge to `value`."""
        try:
            self._raise_if_not_observable()
            number = float(value)
            with self.guard:
                self.cells[0] = number
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("metrics.sample", exc)

    def set_function(self, f: Callable[[], float]) -> None:
        """Ask `f` for the value at each scrape."""
        self._raise_if_not_observable()
        self.function = f

    def value(self) -> float:
        """Return the value now."""
        return self.cells[0] if self.function is None else float(self.function())

    def read(self) -> Sequence[float]:
        """Return the value now."""
        return (self.value(),)

    def _child_samples(self) -> Iterable[Sample]:
        return (Sample("", {}, self.value(), None, None),)


class Histogram(BoundedMetric, prometheus_client.Histogram):
    """A prometheus_client histogram with a bounded number of label sets.

    `cells` are the buckets, each with what is in it alone, and the sum.
    """

    def _metric_init(self) -> None:
        self.cells = [0] * len(self._upper_bounds) + [0.0]

    def bounds(self) -> list[float]:
        """Return the upper bounds of the buckets, the last one infinite."""
        return self._upper_bounds

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Take a sample; NaN is left out, since it would make the sum NaN for ever."""
        try:
            self._raise_if_not_observable()
            if amount != amount:  # noqa: PLR0124 - true for NaN only, and cheaper than isnan
                return
            cell = bisect_left(self._upper_bounds, amount)
            with self.guard:
                self.cells[cell] += 1
                self.cells[-1] += amount
            if exemplar:
                self.set_exemplar(cell, exemplar, amount)
        except CALLER_ERRORS:
            raise
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("metrics.sample", exc)

    def has_sum(self) -> bool:
        """Tell whether sum and count are shown: a sum of negative samples is no counter (OpenMetrics, "Histogram")."""
        return self._upper_bounds[0] >= 0

    def snapshot(self) -> tuple[list[float], float]:
        """Return the cumulated buckets and the sum, as of one moment."""
        *counts, total = self.read()
        return list(accumulate(counts)), total

    def read(self) -> Sequence[float]:
        """Return the buckets, each with what is in it alone, and the sum, as of one moment."""
        with self.guard:
            return [*self.cells]

    def template(self) -> str:
        """Return the lines of one series, to be filled with `arguments`."""
        name = self._name
        buckets = "".join(f'{name}_bucket{{%sle="{format_float(bound)}"}} %s\n' for bound in self._upper_bounds)
        return f"{buckets}{name}_count%s %s\n{name}_sum%s %s\n" if self.has_sum() else buckets

    def arguments(self, series: Series) -> tuple[object, ...]:
        """Return what fills `template`."""
        *alone, total = series.read()
        counts = list(accumulate(alone))
        filled: list[object] = [f"{series.pairs}," if series.pairs else ""] * (2 * len(counts))
        filled[1::2] = counts
        return (*filled, series.braced, counts[-1], series.braced, _number(total)) if self.has_sum() else tuple(filled)

    def _child_samples(self) -> Iterable[Sample]:
        counts, total = self.snapshot()
        for cell, (bound, count) in enumerate(zip(self._upper_bounds, counts, strict=True)):
            yield Sample("_bucket", {"le": format_float(bound)}, count, None, self.get_exemplar(cell))
        if self.has_sum():
            yield Sample("_count", {}, counts[-1], None, None)
            yield Sample("_sum", {}, total, None, None)

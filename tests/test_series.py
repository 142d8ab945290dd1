"""Metrics with a bounded number of label sets."""

from __future__ import annotations

import gc
import logging
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.signals.series import LABEL_LENGTH, Bounded, Counter, Gauge, Histogram
from fastapi_observe.signals.series_budget import OVERFLOW, SeriesBudget


def _counter(budget: SeriesBudget, *labels: str) -> Counter:
    counter = Counter("jobs_total", "Jobs.", labels, budget)
    budget.families.append(counter)
    return counter


def _samples(metric: Bounded) -> dict[tuple[str, ...], float]:
    """Return the first sample of each series as the text format shows it."""
    families = text_string_to_metric_families(metric.text(openmetrics=False))
    samples = [sample for family in families for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples}


class Unprintable:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


class Color(str, Enum):  # noqa: UP042 - a StrEnum prints as its value
    """A string that prints as something else."""

    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (7, "7"),
        (True, "True"),
        (float("nan"), "nan"),
        (["a"], "['a']"),
        ({"a": 1}, "{'a': 1}"),
        ("\ud800", "\\ud800"),
        ('a"b\\c\nd{e}%s', 'a"b\\c\nd{e}%s'),
        ("größe\u2028", "größe\u2028"),
        ("x" * 5000, "x" * LABEL_LENGTH),
        (Color.RED, "Color.RED"),
        (Unprintable(), "<unprintable Unprintable>"),
    ],
)
def test_any_object_is_a_label_value(value: Any, text: str) -> None:
    """Whatever is given as label value is shown as text, the same each time, positional or by name."""
    counter = _counter(SeriesBudget(10), "kind")
    counter.labels(value).inc()
    counter.labels(kind=value).inc()
    assert list(counter.children()) == [(text,)]
    assert counter.labels(value).cells == [2]
    counter.text(openmetrics=True).encode()


@given(st.text(), st.text())
def test_label_values_come_back_from_the_text_format(first: str, second: str) -> None:
    """Any two texts as label values are read back by prometheus_client's own parser."""
    counter = _counter(SeriesBudget(10), "first", "second")
    counter.labels(first, second).inc(3)
    ((values, count),) = _samples(counter).items()
    assert values == next(iter(counter.children()))
    assert count == 3


def test_wrong_labels_are_told_with_the_right_ones() -> None:
    """Too few, too many, unknown, doubly given or missing labels: ValueError with the names."""
    counter = _counter(SeriesBudget(10), "first", "second")
    for values, named in (
        (("a",), {}),
        (("a", "b", "c"), {}),
        ((), {"first": "a"}),
        ((), {"first": "a", "third": "b"}),
        (("a", "b"), {"first": "a", "second": "b"}),
        ((), {}),
    ):
        with pytest.raises(ValueError, match=r"has the labels \('first', 'second'\)"):
            counter.labels(*values, **named)
    with pytest.raises(ValueError, match="call its methods directly"):
        counter.labels("a", "b").labels("a", "b")
    with pytest.raises(ValueError, match="call its methods directly"):
        _counter(SeriesBudget(10)).labels("a")


def test_a_metric_with_labels_needs_them_first() -> None:
    """Counting on the metric itself instead of on a child is a clear error."""
    budget = SeriesBudget(10)
    metrics: tuple[Any, ...] = (
        _counter(budget, "kind").inc,
        _counter(budget, "kind").reset,
        Gauge("g", "G.", ("kind",), budget).inc,
        lambda: Gauge("g", "G.", ("kind",), budget).set(1),
        lambda: Gauge("g", "G.", ("kind",), budget).set_function(float),
        lambda: Histogram("h", "H.", ("kind",), budget).observe(1),
    )
    for call in metrics:
        with pytest.raises(ValueError, match=r"call .labels\(...\) first"):
            call()


def test_beyond_the_bound_there_is_one_series_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The third and all further label sets share `__overflow__`; refusals are counted, the first one is told."""
    budget = SeriesBudget(2)
    counter = _counter(budget, "shop", "user")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for user in range(10):
            counter.labels("north", user).inc()
    assert _samples(counter) == {("north", "0"): 1, ("north", "1"): 1, (OVERFLOW, OVERFLOW): 8}
    assert budget.overflows == {"jobs_total": 8}
    assert budget.count() == 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert "jobs_total" in told
    assert "Its label user has the most values" in told


def test_all_metrics_together_are_bounded_too() -> None:
    """When the install's total is reached, a metric that has room of its own overflows as well."""
    budget = SeriesBudget(10, total=3)
    first, second = _counter(budget, "kind"), _counter(budget, "kind")
    for number in range(3):
        first.labels(number).inc()
    second.labels("late").inc()
    assert list(second.children()) == [(OVERFLOW,)]


def test_a_removed_label_set_makes_room() -> None:
    """`remove` and `clear` are prometheus_client's, and what they free may be used again."""
    counter = _counter(SeriesBudget(1), "kind")
    counter.labels("a").inc()
    counter.remove("a")
    counter.labels("b").inc()
    assert _samples(counter) == {("b",): 1}
    counter.clear()
    assert counter.text(openmetrics=False) == ""


def test_counters_only_go_up() -> None:
    """A counter adds, refuses to go down, and can be reset; prometheus_client's helpers work on it."""
    counter = _counter(SeriesBudget(10))
    counter.inc()
    counter.inc(0.5)
    with pytest.raises(ValueError, match="use a gauge"):
        counter.inc(-1)
    with pytest.raises(LookupError), counter.count_exceptions():
        raise LookupError
    assert _samples(counter) == {(): 2.5}
    counter.reset()
    assert _samples(counter) == {(): 0}


def test_gauges_go_up_and_down_or_ask_a_function() -> None:
    """A gauge is set, moved, tracked, or read from a function at scrape."""
    gauge = Gauge("g", "G.", (), SeriesBudget(10))
    gauge.set(5)
    gauge.inc()
    gauge.dec(2)
    with gauge.track_inprogress():
        assert _samples(gauge) == {(): 5}
    assert _samples(gauge) == {(): 4}
    gauge.set_to_current_time()
    gauge.set_function(lambda: 42)
    assert _samples(gauge) == {(): 42}
    assert next(iter(gauge.collect())).samples[0].value == 42


def test_a_sample_stands_in_the_bucket_of_its_bound() -> None:
    """Bounds are inclusive, infinity is the last one, and NaN is left out."""
    histogram = Histogram("h", "H.", (), SeriesBudget(10), buckets=(1, 2))
    for amount in (0.5, 1, 1.5, 2, 3, float("nan")):
        histogram.observe(amount)
    with histogram.time():
        pass
    registry = CollectorRegistry()
    registry.register(histogram)
    counts = [registry.get_sample_value("h_bucket", {"le": le}) for le in ("1.0", "2.0", "+Inf")]
    assert counts == [3, 5, 6]
    assert registry.get_sample_value("h_count") == 6
    assert registry.get_sample_value("h_sum") == pytest.approx(8, abs=0.1)


def test_a_histogram_of_negative_samples_has_no_sum() -> None:
    """With a bound below 0 the sum is no counter: it is left out, and the count with it, as OpenMetrics asks."""
    histogram = Histogram("h", "H.", (), SeriesBudget(10), buckets=(-1, 1))
    histogram.observe(-2)
    lines = [line.partition(" ")[0] for line in histogram.text(openmetrics=True).splitlines()[2:]]
    assert lines == ['h_bucket{le="-1.0"}', 'h_bucket{le="1.0"}', 'h_bucket{le="+Inf"}']
    assert {sample.name for sample in next(iter(histogram.collect())).samples} == {"h_bucket"}


@pytest.mark.parametrize(("value", "text"), [(float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN")])
def test_numbers_that_are_not_finite_are_written_prometheus_way(value: float, text: str) -> None:
    """Infinity and NaN are values of a gauge."""
    gauge = Gauge("g", "G.", (), SeriesBudget(10))
    gauge.set(value)
    assert f"\ng {text}\n" in gauge.text(openmetrics=False)


def test_exemplars_of_the_user_are_kept_if_they_fit() -> None:
    """An exemplar stands behind its sample in OpenMetrics; one that is too long is left out and raises nothing."""
    counter = _counter(SeriesBudget(10))
    counter.inc(1, {"order": 'a"b'})
    counter.inc(1, {"order": "x" * 200})
    histogram = Histogram("h", "H.", (), SeriesBudget(10), buckets=(1, 2))
    histogram.observe(1.5, {"order": "7"})
    assert '# {order="a\\"b"} 1.0 ' in counter.text(openmetrics=True).splitlines()[2]
    assert 'le="2.0"} 1 # {order="7"} 1.5 ' in histogram.text(openmetrics=True)
    assert "order" not in counter.text(openmetrics=False) + histogram.text(openmetrics=False)


def test_a_finalizer_may_count_while_the_lock_is_held() -> None:
    """The lock is reentrant: garbage that counts when it is collected cannot block the thread for ever."""
    budget = SeriesBudget(10)
    counter = _counter(budget)

    class Garbage:
        def __del__(self) -> None:
            counter.inc()

    garbage = Garbage()
    garbage.__dict__["self"] = garbage
    del garbage
    with budget.lock:
        gc.collect()
    assert _samples(counter) == {(): 1}

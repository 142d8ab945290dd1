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

from fastapi_observe.metrics.budget import OVERFLOW, STATIC_LABELS, LabelValues, SeriesLimiter
from fastapi_observe.metrics.series import LABEL_LENGTH, BoundedMetric, Counter, Gauge, Histogram


def _counter(budget: SeriesLimiter, *labels: str) -> Counter:
    counter = Counter("jobs_total", "Jobs.", labels, budget)
    budget.families.append(counter)
    return counter


def _samples(metric: BoundedMetric) -> dict[tuple[str, ...], float]:
    """Return the first sample of each series as the text format shows it."""
    families = text_string_to_metric_families(metric.render(openmetrics=False))
    samples = [sample for family in families for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples}


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of."""
    return [record.getMessage() for record in caplog.records]


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
    counter = _counter(SeriesLimiter(10), "kind")
    counter.labels(value).inc()
    counter.labels(kind=value).inc()
    assert list(counter.children()) == [(text,)]
    assert counter.labels(value).cells == [2]
    counter.render(openmetrics=True).encode()


@given(st.text(), st.text())
def test_label_values_come_back_from_the_text_format(first: str, second: str) -> None:
    """Any two texts as label values are read back by prometheus_client's own parser."""
    counter = _counter(SeriesLimiter(10), "first", "second")
    counter.labels(first, second).inc(3)
    ((values, count),) = _samples(counter).items()
    assert values == next(iter(counter.children()))
    assert count == 3


def test_wrong_labels_are_told_with_the_right_ones() -> None:
    """Too few, too many, unknown, doubly given or missing labels: ValueError with the names."""
    counter = _counter(SeriesLimiter(10), "first", "second")
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
        _counter(SeriesLimiter(10)).labels("a")


def test_a_metric_with_labels_needs_them_first() -> None:
    """Counting on the metric itself instead of on a child is a clear error."""
    budget = SeriesLimiter(10)
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


def test_a_label_beyond_its_bound_is_one_value(caplog: pytest.LogCaptureFixture) -> None:
    """The third and all further values of a label are shown as `__overflow__`, the other labels keep theirs."""
    budget = SeriesLimiter(100, per_label=2)
    counter = _counter(budget, "shop", "user")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for user in range(5):
            for shop in ("north", "south"):
                counter.labels(shop, user).inc()
        counter.labels("north", 1).inc()
    assert _samples(counter) == {
        ("north", "0"): 1,
        ("south", "0"): 1,
        ("north", "1"): 2,
        ("south", "1"): 1,
        ("north", OVERFLOW): 3,
        ("south", OVERFLOW): 3,
    }
    assert budget.overflows == {"jobs_total": 6}
    (told,) = _told(caplog)
    assert told == (
        "label user of metric jobs_total has reached its bound of values (2); further ones are shown as __overflow__, "
        "the first of them was '2': give it few values, none that a client chooses, or raise max_values_per_label"
    )
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        counter.labels("west", "y").inc()
    assert _samples(counter)[OVERFLOW, OVERFLOW] == 1
    assert "label shop of metric jobs_total" in _told(caplog)[1]


def test_beyond_the_bound_there_is_one_series_and_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The third and all further label sets share `__overflow__`; refusals are counted, the first one is told."""
    budget = SeriesLimiter(2)
    counter = _counter(budget, "shop", "user")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for user in range(10):
            counter.labels("north", user).inc()
    assert _samples(counter) == {("north", "0"): 1, ("north", "1"): 1, (OVERFLOW, OVERFLOW): 8}
    assert budget.overflows == {"jobs_total": 8}
    assert budget.count() == 3
    (told,) = _told(caplog)
    assert told == (
        "metric jobs_total has reached its bound of label sets (2); further ones share the series __overflow__. "
        "Its label user has the most values, the first refused was '2': "
        "use one with few values, none that a client chooses, or raise max_series_per_metric"
    )


def test_all_metrics_together_are_bounded_too(caplog: pytest.LogCaptureFixture) -> None:
    """At the install's total a metric that has room of its own overflows as well; the largest one is named, once."""
    budget = SeriesLimiter(10, total=3)
    first, second = _counter(budget, "kind"), _counter(budget, "kind")
    second._name = "late"
    for number in range(3):
        first.labels(number).inc()
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        second.labels("late").inc()
        first.labels("late").inc()
    assert list(second.children()) == [(OVERFLOW,)]
    (told,) = _told(caplog)
    assert told == (
        "all metrics together have reached their bound of label sets (3); further ones share the series __overflow__. "
        "Metric jobs_total has the most, and of its labels kind has the most values: "
        "use one with few values, none that a client chooses, or raise max_series_per_process"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("user-17", "'user-17'"),
        ("a\nlevel=error \x1b[2J\u202e\u2028", r"'a\nlevel=error \x1b[2J\u202e\u2028'"),
        ("GET /orders/81734", "'GET /orders/81734'"),
        ("3f2b8a1e-0c77-4c4e-9d6f-5b3f7e6a1c20", "'3f2b...'"),
        ("anna.smith@example.org", "'...@example.org'"),
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc and more", "'sk_l... and more'"),
        ("\u00fc " * 500, "'" + "\\xfc " * 20 + "'"),
        ("word " * 50, "'" + "word " * 8 + "'"),
    ],
)
def test_a_refused_value_is_told_without_harm(value: str, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    """The example forges no line, and shows no token, id or address as a whole."""
    counter = _counter(SeriesLimiter(10, per_label=1), "kind")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        counter.labels("a").inc()
        counter.labels(value).inc()
    (told,) = _told(caplog)
    assert f"the first of them was {shown}: give it" in told


def test_what_the_budget_is_told_to_hide_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """The example goes through `redact` first."""
    counter = _counter(SeriesLimiter(10, per_label=1, redact=lambda text: text.replace("hush", "REDACTED")), "kind")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        counter.labels("a").inc()
        counter.labels("pass hush").inc()
    assert "'pass REDACTED'" in _told(caplog)[0]


def test_a_label_set_that_stays_is_never_refused() -> None:
    """What was there before a bound was reached goes on being counted; a value called `__overflow__` is that series."""
    budget = SeriesLimiter(3, per_label=2)
    counter = _counter(budget, "kind")
    for value in ("a", "b", OVERFLOW, "c", "a", OVERFLOW):
        counter.labels(value).inc()
    assert _samples(counter) == {("a",): 2, ("b",): 1, (OVERFLOW,): 3}
    assert budget.overflows == {"jobs_total": 1}


class Places:
    """Where cells stand, as far as it matters here."""

    def __init__(self) -> None:
        self.held: list[tuple[str, ...]] = []

    def bind(self, child: BoundedMetric) -> None:
        """Hold a place."""
        self.held.append(child.label_values())

    def release(self, child: BoundedMetric) -> None:
        """Give it up."""
        self.held.remove(child.label_values())


@pytest.mark.parametrize("budget", [SeriesLimiter(2), SeriesLimiter(10, per_label=2), SeriesLimiter(10, total=2)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_removed_label_set_makes_room(budget: SeriesLimiter, *, shared: bool) -> None:
    """What `remove`, `remove_by_labels` and `clear` free may be used again, under each bound; elsewhere too."""
    budget.families.clear()
    counter = _counter(budget, "shop", "user")
    places = Places()
    budget.store = places if shared else None
    counter.labels("n", "a").inc()
    counter.labels("n", "b").inc()
    counter.remove("n", "a")
    counter.remove("n", "never")
    counter.labels("n", "c").inc()
    assert _samples(counter) == {("n", "b"): 1, ("n", "c"): 1}
    counter.remove_by_labels({"user": "b"})
    counter.labels("n", "d").inc()
    assert _samples(counter) == {("n", "c"): 1, ("n", "d"): 1}
    assert places.held == ([("n", "c"), ("n", "d")] if shared else [])
    counter.clear()
    assert counter.render(openmetrics=False) == ""
    assert places.held == []
    counter.labels("n", "e").inc()
    counter.labels("n", "f").inc()
    assert _samples(counter) == {("n", "e"): 1, ("n", "f"): 1}
    assert budget.overflows == {}
    plain = _counter(budget)
    plain.clear()
    with pytest.raises(ValueError, match="No label names"):
        plain.remove("a")


def test_labels_from_a_list_have_no_bound_of_values() -> None:
    """What the library takes from a list of its own is held by the bound of label sets alone."""
    counter = _counter(SeriesLimiter(4, per_label=1), "endpoint", "kind")
    counter.values = LabelValues(counter.label_names(), STATIC_LABELS)
    for number in range(3):
        counter.labels(f"/r{number}", number).inc()
    counter.remove("/r0", "0")
    counter.labels("/r0", "b").inc()
    assert [*counter.children()] == [("/r1", OVERFLOW), ("/r2", OVERFLOW), ("/r0", "b")]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans())))
def test_label_values_are_counted_right(steps: list[tuple[str, str, bool]]) -> None:
    """Whatever is added and removed: the values that count are those of the label sets that are there."""
    counter = _counter(SeriesLimiter(6, per_label=2), "first", "second")
    for first, second, add in steps:
        if add:
            counter.labels(first, second).inc()
        else:
            counter.remove(first, second)
        for at, counts in enumerate(counter.values.counts):
            assert counts is not None
            there = {values[at] for values in counter.children()} - {OVERFLOW}
            assert set(counts) == there
            assert len(there) <= 2


def test_counters_only_go_up() -> None:
    """A counter adds, refuses to go down, and can be reset; prometheus_client's helpers work on it."""
    counter = _counter(SeriesLimiter(10))
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
    gauge = Gauge("g", "G.", (), SeriesLimiter(10))
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
    histogram = Histogram("h", "H.", (), SeriesLimiter(10), buckets=(1, 2))
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
    histogram = Histogram("h", "H.", (), SeriesLimiter(10), buckets=(-1, 1))
    histogram.observe(-2)
    lines = [line.partition(" ")[0] for line in histogram.render(openmetrics=True).splitlines()[2:]]
    assert lines == ['h_bucket{le="-1.0"}', 'h_bucket{le="1.0"}', 'h_bucket{le="+Inf"}']
    assert {sample.name for sample in next(iter(histogram.collect())).samples} == {"h_bucket"}


@pytest.mark.parametrize(("value", "text"), [(float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN")])
def test_numbers_that_are_not_finite_are_written_prometheus_way(value: float, text: str) -> None:
    """Infinity and NaN are values of a gauge."""
    gauge = Gauge("g", "G.", (), SeriesLimiter(10))
    gauge.set(value)
    assert f"\ng {text}\n" in gauge.render(openmetrics=False)


def test_exemplars_of_the_user_are_kept_if_they_fit() -> None:
    """An exemplar stands behind its sample in OpenMetrics; one that is too long is left out and raises nothing."""
    counter = _counter(SeriesLimiter(10))
    counter.inc(1, {"order": 'a"b'})
    counter.inc(1, {"order": "x" * 200})
    histogram = Histogram("h", "H.", (), SeriesLimiter(10), buckets=(1, 2))
    histogram.observe(1.5, {"order": "7"})
    assert '# {order="a\\"b"} 1.0 ' in counter.render(openmetrics=True).splitlines()[2]
    assert 'le="2.0"} 1 # {order="7"} 1.5 ' in histogram.render(openmetrics=True)
    assert "order" not in counter.render(openmetrics=False) + histogram.render(openmetrics=False)


def test_a_finalizer_may_count_while_the_lock_is_held() -> None:
    """The lock is reentrant: garbage that counts when it is collected cannot block the thread for ever."""
    budget = SeriesLimiter(10)
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

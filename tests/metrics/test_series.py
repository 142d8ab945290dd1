"""Holds what counters, gauges and histograms record and render, and their limits of label sets."""

from __future__ import annotations

import gc
import logging
from enum import Enum
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.metrics.budget import STATIC_LABELS, SeriesLimiter
from fastapi_observe.metrics.series import MAX_LABEL_LENGTH, BoundedMetric, Counter, Gauge, Histogram
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Callable


def _counter(limiter: SeriesLimiter, *labels: str, name: str = "jobs_total", **options: Any) -> Counter:
    counter = Counter(name, "Jobs.", labels, limiter, **options)
    limiter.label_sets.append(counter.label_sets)
    return counter


def _samples(metric: BoundedMetric) -> dict[tuple[str, ...], float]:
    """Return the first sample of each series, read back from the text format."""
    families = text_string_to_metric_families(metric.render(openmetrics=False))
    samples = [sample for family in families for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples}


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that were logged."""
    return [record.getMessage() for record in caplog.records]


class Unprintable:
    """Has no string form."""

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
        ("x" * 5000, "x" * MAX_LABEL_LENGTH),
        (Color.RED, "Color.RED"),
        (Unprintable(), "<unprintable Unprintable>"),
    ],
)
def test_any_object_is_a_label_value(value: Any, text: str) -> None:
    """Any object is accepted as a label value and rendered as a string, by position and by name."""
    counter = _counter(SeriesLimiter(10), "kind")
    counter.labels(value).inc()
    counter.labels(kind=value).inc()
    assert list(counter.children()) == [(text,)]
    assert counter.labels(value).cells == [2]
    counter.render(openmetrics=True).encode()


@given(st.text(), st.text())
def test_label_values_come_back_from_the_text_format(first: str, second: str) -> None:
    """Any two strings as label values are read back by prometheus_client's own parser."""
    counter = _counter(SeriesLimiter(10), "first", "second")
    counter.labels(first, second).inc(3)
    ((values, count),) = _samples(counter).items()
    assert values == next(iter(counter.children()))
    assert count == 3


def test_wrong_labels_raise_an_error_with_the_right_ones() -> None:
    """Too few, too many, unknown, duplicate or missing labels raise ValueError with the names."""
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
    """Counting on a metric with labels instead of on a child raises a clear error."""
    limiter = SeriesLimiter(10)
    metrics: tuple[Any, ...] = (
        _counter(limiter, "kind").inc,
        _counter(limiter, "kind").reset,
        Gauge("g", "G.", ("kind",), limiter).inc,
        lambda: Gauge("g", "G.", ("kind",), limiter).set(1),
        lambda: Gauge("g", "G.", ("kind",), limiter).set_function(float),
        lambda: Histogram("h", "H.", ("kind",), limiter).observe(1),
    )
    for call in metrics:
        with pytest.raises(ValueError, match=r"call .labels\(...\) first"):
            call()


def test_new_values_beyond_the_limit_of_a_label_are_recorded_as_overflow(caplog: pytest.LogCaptureFixture) -> None:
    """New values beyond the limit of a label become `__overflow__`; the other labels keep their values."""
    limiter = SeriesLimiter(100, per_label=2)
    counter = _counter(limiter, "shop", "user")
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
    assert limiter.overflows == {"jobs_total": 6}
    (warning,) = _warnings(caplog)
    assert warning == (
        "Label user of metric jobs_total reached its limit of 2 values (max_values_per_label); new values are recorded "
        "as __overflow__, the first was '2'. Use a label with few possible values, never one chosen by clients, "
        "or raise the limit."
    )
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        counter.labels("west", "y").inc()
    assert _samples(counter)[OVERFLOW, OVERFLOW] == 1
    assert "Label shop of metric jobs_total" in _warnings(caplog)[1]


def test_label_sets_beyond_the_limit_of_a_metric_share_one_series(caplog: pytest.LogCaptureFixture) -> None:
    """Further label sets share `__overflow__`; each use is counted, and one warning is logged."""
    limiter = SeriesLimiter(2)
    counter = _counter(limiter, "shop", "user")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for user in range(10):
            counter.labels("north", user).inc()
    assert _samples(counter) == {("north", "0"): 1, ("north", "1"): 1, (OVERFLOW, OVERFLOW): 8}
    assert limiter.overflows == {"jobs_total": 8}
    assert limiter.count() == 3
    (warning,) = _warnings(caplog)
    assert warning == (
        "Metric jobs_total reached its limit of 2 label sets (max_series_per_metric); new ones are added to the "
        "__overflow__ series. Its label user has the most values; the first that was replaced is '2'. "
        "Use a label with few possible values, never one chosen by clients, or raise max_series_per_metric."
    )


def test_all_metrics_together_have_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    """At the limit of the install every metric overflows; one warning names the metric with the most label sets."""
    limiter = SeriesLimiter(10, total=3)
    first, second = _counter(limiter, "kind"), _counter(limiter, "kind", name="late_total")
    for number in range(3):
        first.labels(number).inc()
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        second.labels("late").inc()
        first.labels("late").inc()
    assert list(second.children()) == [(OVERFLOW,)]
    (warning,) = _warnings(caplog)
    assert warning == (
        "All metrics together reached their limit of 3 label sets (max_series_per_process); new ones are added to the "
        "__overflow__ series. Metric jobs_total has the most label sets, and its label kind the most values. "
        "Use a label with few possible values, never one chosen by clients, or raise max_series_per_process."
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
def test_the_label_value_in_a_warning_is_harmless(value: str, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot forge a log line, and shows no token, id or address as a whole."""
    counter = _counter(SeriesLimiter(10, per_label=1), "kind")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        counter.labels("a").inc()
        counter.labels(value).inc()
    (warning,) = _warnings(caplog)
    assert f"the first was {shown}. Use" in warning


def test_the_label_value_in_a_warning_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    """It passes through `redact`."""
    counter = _counter(SeriesLimiter(10, per_label=1, redact=lambda text: text.replace("hush", "REDACTED")), "kind")
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        counter.labels("a").inc()
        counter.labels("pass hush").inc()
    assert "'pass REDACTED'" in _warnings(caplog)[0]


def test_an_existing_label_set_is_never_replaced() -> None:
    """Series from before the limit was reached go on counting; the value `__overflow__` means the overflow series."""
    limiter = SeriesLimiter(3, per_label=2)
    counter = _counter(limiter, "kind")
    for value in ("a", "b", OVERFLOW, "c", "a", OVERFLOW):
        counter.labels(value).inc()
    assert _samples(counter) == {("a",): 2, ("b",): 1, (OVERFLOW,): 3}
    assert limiter.overflows == {"jobs_total": 1}


class RecordingStore:
    """A cell store that records which series are bound."""

    def __init__(self) -> None:
        self.held: list[tuple[str, ...]] = []

    def bind(self, child: BoundedMetric) -> None:
        """Record a new series."""
        self.held.append(child.label_values())

    def release(self, child: BoundedMetric) -> None:
        """Forget a removed series."""
        self.held.remove(child.label_values())


@pytest.mark.parametrize("limiter", [SeriesLimiter(2), SeriesLimiter(10, per_label=2), SeriesLimiter(10, total=2)])
@pytest.mark.parametrize("shared", [False, True])
def test_a_removed_label_set_frees_its_place(limiter: SeriesLimiter, *, shared: bool) -> None:
    """`remove`, `remove_by_labels` and `clear` free label sets under each limit, and release them in the store."""
    limiter.label_sets.clear()
    counter = _counter(limiter, "shop", "user")
    store = RecordingStore()
    limiter.store = store if shared else None
    counter.labels("n", "a").inc()
    counter.labels("n", "b").inc()
    counter.remove("n", "a")
    counter.remove("n", "never")
    counter.labels("n", "c").inc()
    assert _samples(counter) == {("n", "b"): 1, ("n", "c"): 1}
    counter.remove_by_labels({"user": "b"})
    counter.labels("n", "d").inc()
    assert _samples(counter) == {("n", "c"): 1, ("n", "d"): 1}
    assert store.held == ([("n", "c"), ("n", "d")] if shared else [])
    counter.clear()
    assert counter.render(openmetrics=False) == ""
    assert store.held == []
    counter.labels("n", "e").inc()
    counter.labels("n", "f").inc()
    assert _samples(counter) == {("n", "e"): 1, ("n", "f"): 1}
    assert limiter.overflows == {}


def test_wrong_labels_cannot_be_removed() -> None:
    """Removing checks the labels as `labels` does; without labels, `clear` has no effect."""
    counter, plain = _counter(SeriesLimiter(10), "kind"), _counter(SeriesLimiter(10))
    counter.labels("a").inc()
    plain.inc()
    plain.clear()
    counter.remove_by_labels({})
    calls: tuple[Callable[[], None], ...] = (
        lambda: plain.remove("a"),
        lambda: counter.remove("a", "b"),
        counter.remove,
        lambda: counter.remove_by_labels({"other": "a"}),
        lambda: counter.labels("a").remove_by_labels({"kind": "a"}),
    )
    for call in calls:
        with pytest.raises(ValueError, match="label"):
            call()
    counter.labels("a").clear()
    assert _samples(counter) == {("a",): 1}
    assert _samples(plain) == {(): 1}


def test_a_value_that_was_cut_can_be_removed() -> None:
    """`remove` converts label values as `labels` does."""
    counter = _counter(SeriesLimiter(10), "kind")
    counter.labels("x" * 5000).inc()
    counter.remove("x" * 5000)
    assert counter.children() == {}


def test_static_labels_have_no_limit_of_values() -> None:
    """Labels with a fixed list of values are limited by the number of label sets alone."""
    counter = _counter(SeriesLimiter(4, per_label=1), "endpoint", "kind", static_labels=STATIC_LABELS)
    for number in range(3):
        counter.labels(f"/r{number}", number).inc()
    counter.remove("/r0", "0")
    counter.labels("/r0", "b").inc()
    assert [*counter.children()] == [("/r1", OVERFLOW), ("/r2", OVERFLOW), ("/r0", "b")]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans())))
def test_the_limit_of_values_counts_those_in_use(steps: list[tuple[str, str, bool]]) -> None:
    """In any sequence of additions and removals, a value is replaced only while two others are in use."""
    counter = _counter(SeriesLimiter(6, per_label=2), "first", "second")
    for first, second, add in steps:
        in_use = [{values[at] for values in counter.children()} - {OVERFLOW} for at in (0, 1)]
        if not add:
            counter.remove(first, second)
            continue
        has_room = all(value in used or len(used) < 2 for value, used in zip((first, second), in_use, strict=True))
        counter.labels(first, second).inc()
        if has_room and len(counter.children()) < 6:
            assert (first, second) in counter.children()
        assert all(len({values[at] for values in counter.children()} - {OVERFLOW}) <= 2 for at in (0, 1))


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


def test_gauges_go_up_and_down_or_call_a_function() -> None:
    """A gauge is set, changed, tracked, or read from a function at scrape."""
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


def test_a_sample_is_in_the_bucket_of_its_bound() -> None:
    """Bounds are inclusive, the last one is infinite, and NaN is ignored."""
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
    """With a bound below 0 the sum may go down: sum and count are left out, as OpenMetrics requires."""
    histogram = Histogram("h", "H.", (), SeriesLimiter(10), buckets=(-1, 1))
    histogram.observe(-2)
    lines = [line.partition(" ")[0] for line in histogram.render(openmetrics=True).splitlines()[2:]]
    assert lines == ['h_bucket{le="-1.0"}', 'h_bucket{le="1.0"}', 'h_bucket{le="+Inf"}']
    assert {sample.name for sample in next(iter(histogram.collect())).samples} == {"h_bucket"}


@pytest.mark.parametrize(("value", "text"), [(float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN")])
def test_infinity_and_nan_are_rendered_as_prometheus_does(value: float, text: str) -> None:
    """They are valid values of a gauge."""
    gauge = Gauge("g", "G.", (), SeriesLimiter(10))
    gauge.set(value)
    assert f"\ng {text}\n" in gauge.render(openmetrics=False)


def test_exemplars_are_rendered_if_they_fit() -> None:
    """An exemplar follows its sample in OpenMetrics. One that is too long is left out and does not raise."""
    counter = _counter(SeriesLimiter(10))
    counter.inc(1, {"order": 'a"b'})
    counter.inc(1, {"order": "x" * 200})
    histogram = Histogram("h", "H.", (), SeriesLimiter(10), buckets=(1, 2))
    histogram.observe(1.5, {"order": "7"})
    assert '# {order="a\\"b"} 1.0 ' in counter.render(openmetrics=True).splitlines()[2]
    assert 'le="2.0"} 1 # {order="7"} 1.5 ' in histogram.render(openmetrics=True)
    assert "order" not in counter.render(openmetrics=False) + histogram.render(openmetrics=False)


def test_a_finalizer_may_count_while_the_lock_is_held() -> None:
    """The lock is reentrant: a finalizer that counts cannot deadlock its thread."""
    limiter = SeriesLimiter(10)
    counter = _counter(limiter)

    class Garbage:
        def __del__(self) -> None:
            counter.inc()

    garbage = Garbage()
    garbage.__dict__["self"] = garbage
    del garbage
    with limiter.lock:
        gc.collect()
    assert _samples(counter) == {(): 1}

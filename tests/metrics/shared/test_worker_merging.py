"""A scrape of several workers: series are added up, gauges merged by mode, invalid files of others skipped."""

from __future__ import annotations

import os
import resource
from array import array
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import prometheus_client
import pytest
from injection import replacing
from tools import limited

from fastapi_observe.workers.locks import is_locked

pytest.importorskip("fcntl")

from members import Member

from fastapi_observe.metrics.shared.merged import MergedSeries
from fastapi_observe.metrics.shared.samples import SampleFamily, describe_samples
from fastapi_observe.metrics.shared.scrape_time import multiprocess_mode
from fastapi_observe.workers.files import ValueFileReader

if TYPE_CHECKING:
    from collections.abc import Callable


def test_gauges_by_mode(tmp_path: Path, member: Callable[..., Member]) -> None:
    """`sum`, `max` and `min` merge live workers, `pid` exposes each with its pid. Functions are called."""
    one = member()
    modes: tuple[Literal["sum", "max", "min", "pid"], ...] = ("sum", "max", "min", "pid")
    for mode in modes:
        one.metrics.gauge(f"{mode}_level", "Level.", ["kind"], mode=mode).labels("a").set(3)
    one.metrics.gauge("asked", "Asked.").set_function(lambda: 7)
    one.metrics.gauge("failing", "Failing.").set_function(lambda: 1 / 0)
    samples = one.samples()
    for mode in ("sum", "max", "min"):
        assert samples[f"{mode}_level"] == {(("kind", "a"),): 3}
    assert samples["pid_level"] == {(("kind", "a"), ("pid", str(os.getpid()))): 3}
    assert samples["asked"] == {(): 7}
    assert one.internal_errors.counts["collect"] >= 1
    gauge = one.metrics.gauge("sum_level", "Level.", ["kind"])
    gauge.remove("a")
    gauge.remove("a")
    assert "sum_level" not in one.samples()
    gauge.labels("a").inc()
    assert one.samples()["sum_level"] == {(("kind", "a"),): 1}
    counter = one.metrics.counter("kept_total", "Kept.", ["kind"])
    counter.labels("a").inc(2)
    counter.remove("a")
    assert one.samples()["kept_total"] == {(("kind", "a"),): 2}


def test_removed_gauges(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Gauges disappear, removed one by one, by a label, or all. Counters stay in the total."""
    one = member()
    gauge = one.metrics.gauge("level", "Level.", ["kind", "place"])
    counter = one.metrics.counter("jobs_total", "Jobs.", ["kind"])
    counter.labels("a").inc()
    for kind in "abc":
        for place in "xy":
            gauge.labels(kind, place).set(1)
    assert len(one.samples()["level"]) == 6
    gauge.remove("a", "x")
    assert len(one.samples()["level"]) == 5
    if hasattr(prometheus_client.Gauge, "remove_by_labels"):
        gauge.remove_by_labels({"kind": "b"})
        assert len(one.samples()["level"]) == 3
    gauge.clear()
    counter.clear()
    one.metrics.gauge("empty", "Empty.", ["kind"]).clear()
    assert "level" not in one.samples()
    assert one.samples()["jobs_total"] == {(("kind", "a"),): 1}


def test_metrics_that_only_other_workers_have(tmp_path: Path, member: Callable[..., Member]) -> None:
    """A metric that one worker has made in a request is in the scrapes of the others."""
    other = Member(tmp_path)
    other.metrics.counter("theirs_total", "Theirs.", ["kind"]).labels('a"b').inc()
    other.metrics.histogram("their_seconds", "Theirs.", buckets=[1.0, 2.0]).observe(1.5)
    other.die()
    samples = member().samples()
    assert samples["theirs_total"] == {(("kind", 'a"b'),): 1}
    assert samples["their_seconds_bucket"][("le", "2.0"),] == 1


def test_fractions_of_counters_are_kept(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Money and seconds are not rounded. Whole numbers are rendered as in a single process."""

    def count(each: Member) -> None:
        each.metrics.business.revenue(Decimal("9.90"), "EUR")
        each.metrics.counter("waited_seconds_total", "Waiting.").inc(0.4)
        each.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("half").inc(1.5)

    other = Member(tmp_path)
    count(other)
    other.die()
    one = member()
    count(one)
    samples = one.samples()
    assert samples["revenue_generated_total"] == {(("currency", "EUR"),): pytest.approx(19.8)}
    assert samples["waited_seconds_total"] == {(): pytest.approx(0.8)}
    assert 'jobs_total{kind="half"} 3\n' in one.text()


def test_a_metric_of_another_shape_is_left_out(tmp_path: Path, member: Callable[..., Member]) -> None:
    """After an update a metric may have other buckets or labels: this worker's are exposed, and an error counted."""
    other = Member(tmp_path)
    other.metrics.histogram("seconds", "Time.", buckets=[1.0]).observe(0.5)
    other.metrics.counter("jobs_total", "Jobs.", ["kind"]).labels("a").inc()
    other.die()
    one = member()
    one.metrics.histogram("seconds", "Time.", buckets=[2.0]).observe(0.5)
    one.metrics.counter("jobs_total", "Jobs.").inc()
    samples = one.samples()
    assert samples["seconds_count"] == {(): 1}
    assert samples["jobs_total"] == {(): 1}
    one.samples()
    assert one.internal_errors.counts == {"workers.mismatch": 1}


def test_increments_of_threads_while_joining(tmp_path: Path, member: Callable[..., Member]) -> None:
    """A thread that still increments the cells from before the worker joined loses nothing."""
    one = member()
    one.metrics.sharing.unshare()
    counter = one.metrics.counter("jobs_total", "Jobs.")
    before = counter.cells
    counter.inc(2)
    one.metrics.sharing.share(one.worker, "0")
    before[0] += 3
    assert one.samples()["jobs_total"] == {(): 5}
    assert one.samples()["jobs_total"] == {(): 5}


def test_merge_modes_of_collectors() -> None:
    """Own families are added up, but times and states; those of a process have a pid, of the host appear once."""
    assert multiprocess_mode("fastapi_observe_exported", "counter") == "sum"
    assert multiprocess_mode("fastapi_observe_queue_bytes", "gauge") == "sum"
    assert multiprocess_mode("fastapi_observe_last_export_success_timestamp_seconds", "gauge") == "max"
    assert multiprocess_mode("process_cpu_seconds", "counter") == "pid"
    assert multiprocess_mode("cpu_usage_percent", "gauge") == "once"
    assert multiprocess_mode("python_info", "gauge") == "once"


def test_exemplars_that_cannot_be_read(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Samples are exposed without exemplars that were not written, for lack of space, or are damaged."""
    one = member()
    one.metrics.counter("jobs_total", "Jobs.").inc(exemplar={"trace_id": "x"})
    assert 'trace_id="x"' in one.text("application/openmetrics-text")
    with limited(resource.RLIMIT_FSIZE, 0):
        assert 'trace_id="x"' in one.text("application/openmetrics-text")
    assert one.worker.degraded
    other = member()
    with replacing(is_locked, lambda *_: True):  # a process does not see its own locks
        assert 'trace_id="x"' in other.text("application/openmetrics-text")
        path = one.worker.file_prefix.with_suffix(".exemplars")
        for content in (b"", b"[1", b"{}"):
            path.write_bytes(content)
            with replacing(one.worker.publish_values, lambda *_, **__: None):
                assert "trace_id" not in other.text("application/openmetrics-text")


def test_a_callback_that_fails_is_counted(tmp_path: Path, member: Callable[..., Member]) -> None:
    """An internal error while a worker publishes values is counted, and the scrape goes on."""
    one = member()
    one.worker.scrape_callbacks.insert(0, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    assert one.samples()["http_requests_in_progress"] == {(): 0}
    assert one.internal_errors.counts == {"workers.publish": 1}


def test_the_latest_exemplar_wins() -> None:
    """Of the exemplars of several workers for a cell the latest is exposed."""
    early, late = {0: ({"a": "1"}, 1.0, 5.0)}, {0: ({"a": "2"}, 1.0, 6.0)}
    readings = [ValueFileReader(Path(name), 1) for name in "abc"]
    series = MergedSeries("")
    series.refs = [(reading, 8) for reading in readings]
    series.find_exemplars({("a", 8): early, ("b", 8): late, ("c", 8): early})
    assert series.exemplars == late
    samples = SampleFamily(describe_samples("0", "n", "counter", "", "sum"))
    for reading in readings:
        reading.values = memoryview(array("d", [0.0] * 8 + [1.0, 1.0]))
        samples.add(("n_total",), reading, 8)
    (sample,) = samples.metric((), {("a", 8): early, ("b", 8): late, ("c", 8): early}).samples
    assert sample.value == 3
    assert sample.exemplar is not None
    assert sample.exemplar.timestamp == 6


def test_invalid_keys_of_other_workers(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Families of unknown kind and series with other labels or of another size are skipped, the rest is exposed."""
    dead = Member(tmp_path)
    counter = orjson.dumps({**_COUNTER, "kind": "counter"})
    dead.worker.allocate(orjson.dumps({**_COUNTER, "kind": "nonsense"}), ("a",), [1.0])
    dead.worker.allocate(counter, ("a",), [1.0])
    dead.worker.allocate(counter, ("a", "b"), [1.0])
    dead.worker.allocate(counter, ("c",), [1.0, 2.0])
    dead.worker.allocate(
        orjson.dumps(describe_samples("0/prometheus_client", "h", "histogram", "", "sum")),
        ("h_bucket", "le", "x"),
        [1, 1],
    )
    dead.die()
    one = member()
    samples = one.samples()
    assert samples["odd_total"] == {(("kind", "a"),): 1}
    assert samples["http_requests_in_progress"] == {(): 0}
    assert one.internal_errors.counts.keys() == {"workers.mismatch", "collect"}


_COUNTER = {
    "owner": "0",
    "name": "odd",
    "doc": "Odd.",
    "labels": ["kind"],
    "bounds": None,
    "mode": "sum",
    "archive_mode": "sum",
}

"""Metrics of prometheus_client and collectors of the app, in several workers."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from injection import replacing
from prometheus_client import CollectorRegistry, values
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from fastapi_observe.workers.files import ValueFileWriter

pytest.importorskip("fcntl")

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack
    from pathlib import Path

    from members import Member


class Reader:
    """A collector of the app."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> list[Metric]:
        """Return the families, or raise if there are none."""
        if not self.families:
            raise RuntimeError
        return self.families


def test_collectors_are_read_for_the_scrape(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Samples of a collector have a pid, and disappear with it. A collector that raises affects no other."""
    registry = CollectorRegistry()
    reader = Reader()
    registry.register(reader)
    prometheus_client.Info("build", "Build.", registry=registry).info({"version": "1"})
    prometheus_client.Enum("state", "State.", states=["on", "off"], registry=registry).state("on")
    one = member(registry=registry)
    level = GaugeMetricFamily("queue_length", "Queue.", labels=["name"])
    level.add_metric(["a"], 4)
    hits = CounterMetricFamily("cache_hits", "Hits.", value=2, created=1.0)
    reader.families = [level, hits]
    pid = ("pid", str(os.getpid()))
    samples = one.samples()
    assert samples["queue_length"] == {(("name", "a"), pid): 4}
    assert samples["cache_hits_total"] == {(pid,): 2}
    assert samples["build_info"] == {(("version", "1"),): 1}
    assert samples["state"] == {(("state", "off"),): 0, (("state", "on"),): 1}
    reader.families = [hits]
    assert "queue_length" not in one.samples()
    reader.families = []
    assert "cache_hits_total" not in one.samples()
    assert one.internal_errors.counts == {"collect": 1}
    assert one.samples()["http_requests_in_progress"] == {(): 0}


def test_the_directory_of_prometheus_client_is_read(
    tmp_path: Path, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PROMETHEUS_MULTIPROC_DIR prometheus_client's files are read, in the registry that has such metrics."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    counter = prometheus_client.Counter("theirs", "Theirs.", registry=registry)
    counter.inc(2)
    assert member(registry=registry).samples()["theirs_total"] == {(): 2}
    counter._value._file.close()
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    registry = CollectorRegistry()
    assert "theirs_total" not in member(registry=registry).samples()


def test_metrics_of_prometheus_client_are_shared(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Metrics made before and after are shared if their registry is exposed. Others are unchanged."""
    registry = CollectorRegistry()
    before = prometheus_client.Counter("before", "Before.", ["kind"], registry=registry)
    before.labels("a").inc(2, exemplar={"trace_id": "abc"})
    recent = prometheus_client.Gauge("recent", "Recent.", multiprocess_mode="mostrecent", registry=registry)
    recent.set(4)
    asked = prometheus_client.Gauge("asked", "Asked.", multiprocess_mode="max", registry=registry)
    asked.set_function(lambda: 9)
    broken = prometheus_client.Gauge("broken", "Broken.", ["kind"], multiprocess_mode="sum", registry=registry)
    broken.labels("a").set_function(lambda: 1 / 0)
    for round_ in (1, 2):
        one = member(registry=registry)
        after = prometheus_client.Summary(f"after{round_}", "After.", ["kind"], registry=registry)
        after.labels("ä\ud800").observe(1.5)
        plain = prometheus_client.Histogram(f"plain{round_}", "Plain.", buckets=[-1, 1], registry=registry)
        plain.observe(0.5, exemplar={"trace_id": "def"})
        low = prometheus_client.Gauge(f"low{round_}", "Low.", multiprocess_mode="livemin", registry=registry)
        low.set(3)
        other = prometheus_client.Counter("before", "Another's.", registry=None)
        other.inc()
        assert isinstance(other._value, values.MutexValue)
        before.labels("a").inc()
        before.labels("b").inc()
        samples = one.samples()
        assert samples["before_total"] == {(("kind", "a"),): 2 + round_, (("kind", "b"),): round_}
        assert samples[f"after{round_}_sum"] == {(("kind", "ä\\ud800"),): 1.5}
        assert samples[f"after{round_}_count"] == {(("kind", "ä\\ud800"),): 1}
        assert samples[f"plain{round_}_bucket"] == {(("le", "-1.0"),): 0, (("le", "1.0"),): 1, (("le", "+Inf"),): 1}
        assert samples[f"plain{round_}_count"] == {(): 1}
        assert f"plain{round_}_sum" not in samples
        assert samples[f"low{round_}"] == {(): 3}
        assert samples["recent"] == {(): 4}
        assert samples["asked"] == {(): 9}
        assert 'trace_id="def"' in one.text("application/openmetrics-text")
        if round_ == 1:
            registry.unregister(plain)
            registry.register(plain)
            assert one.samples()["plain1_count"] == {(): 1}
            one.die()
            one.metrics.close()
            assert values.ValueClass is values.MutexValue
    del low, plain
    gc.collect()


def test_removed_series(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Removed gauges disappear until they are made again. Counts stay, since other workers may have counted too."""
    registry = CollectorRegistry()
    level = prometheus_client.Gauge("level", "Level.", ["kind"], multiprocess_mode="sum", registry=registry)
    jobs = prometheus_client.Counter("jobs", "Jobs.", ["kind"], registry=registry)
    one = member(registry=registry)
    for kind in "abc":
        level.labels(kind).set(1)
        jobs.labels(kind).inc()
    level.remove("a")
    jobs.remove("a")
    samples = one.samples()
    assert samples["level"] == {(("kind", "b"),): 1, (("kind", "c"),): 1}
    assert samples["jobs_total"] == {(("kind", kind),): 1 for kind in "abc"}
    level.clear()
    jobs.clear()
    samples = one.samples()
    assert "level" not in samples
    assert samples["jobs_total"] == {(("kind", kind),): 1 for kind in "abc"}
    level.labels("a").inc()
    jobs.labels("a").inc()
    samples = one.samples()
    assert samples["level"] == {(("kind", "a"),): 1}
    assert samples["jobs_total"][("kind", "a"),] == 2


def test_removed_gauges_that_the_app_holds(tmp_path: Path, member: Callable[..., Member]) -> None:
    """A held gauge is not exposed once it is removed, and has no effect on a later one with the same labels."""
    registry = CollectorRegistry()
    level = prometheus_client.Gauge("level", "Level.", ["kind"], multiprocess_mode="sum", registry=registry)
    one = member(registry=registry)
    held = level.labels("a")
    held.set(5)
    assert one.samples()["level"] == {(("kind", "a"),): 5}
    level.remove("a")
    held.set(6)
    assert "level" not in one.samples()
    assert "level" not in one.samples()
    level.labels("a").inc(7)
    held.set(8)
    assert one.samples()["level"] == {(("kind", "a"),): 7}
    del held
    assert one.samples()["level"] == {(("kind", "a"),): 7}
    registry.unregister(level)
    assert "level" not in one.samples()
    registry.register(level)
    assert one.samples()["level"] == {(("kind", "a"),): 7}


def test_units(tmp_path: Path, member: Callable[..., Member]) -> None:
    """OpenMetrics has the units of metrics and collectors. The text format has none."""
    registry = CollectorRegistry()
    before = prometheus_client.Gauge("temperature", "Degrees.", unit="celsius", registry=registry)
    reader = Reader()
    reader.families = [GaugeMetricFamily("queue", "Queue.", value=1, unit="jobs")]
    registry.register(reader)
    one = member(registry=registry)
    after = prometheus_client.Histogram("parcel", "Parcels.", ["kind"], unit="bytes", registry=registry)
    before.set(20)
    after.labels("big").observe(1)
    text = one.text("application/openmetrics-text")
    units = [line for line in text.splitlines() if line.startswith("# UNIT")]
    assert sorted(units) == [
        "# UNIT parcel_bytes bytes",
        "# UNIT queue_jobs jobs",
        "# UNIT temperature_celsius celsius",
    ]
    assert "# UNIT" not in one.text()


def test_metrics_that_find_no_space(tmp_path: Path, member: Callable[..., Member], during: ExitStack) -> None:
    """Metrics of every kind that find no space are exposed by their own worker, and shared later."""
    registry = CollectorRegistry()
    one = member(registry=registry)
    stuck = False

    def allocate(original: Callable[..., Any], *arguments: Any) -> Any:
        if stuck:
            raise OSError(28, "full")
        return original(*arguments)

    during.enter_context(replacing(ValueFileWriter.allocate, allocate))
    one.samples()
    stuck = True
    prometheus_client.Counter("theirs", "Theirs.", registry=registry).inc(2, exemplar={"a": "b"})
    one.metrics.gauge("ours", "Ours.", ["kind"]).labels("a").set(3)
    each = one.metrics.gauge("each", "Each.", ["kind"], mode="pid")
    each.labels("a").set(4)
    counter = one.metrics.counter("jobs_total", "Jobs.", ["kind"])
    counter.labels("a").inc(exemplar={"trace_id": "x"})
    histogram = one.metrics.histogram("seconds", "Time.", ["kind"])
    histogram.labels("a").observe(1)
    gone = one.metrics.gauge("gone", "Gone.", ["kind"])
    gone.labels("a").set(1)
    gone.remove("a")
    registry.register(Reader())
    reader = Reader()
    reader.families = [GaugeMetricFamily("read", "Read.", value=5)]
    registry.register(reader)
    for stuck in (True, False):  # noqa: B007 - read by `allocate`
        samples = one.samples()
        assert samples["theirs_total"] == {(): 2}
        assert samples["ours"] == {(("kind", "a"),): 3}
        assert samples["jobs_total"] == {(("kind", "a"),): 1}
        assert samples["seconds_count"] == {(("kind", "a"),): 1}
        assert samples["read"] == {(("pid", str(os.getpid())),): 5}
        assert samples["fastapi_observe_metrics_degraded"] == {(): 1}
        assert "gone" not in samples
        one.text("application/openmetrics-text")
    stuck = True
    histogram.labels("b").observe(1)
    histogram.labels("a").observe(1)
    counter.labels("b").inc()
    one.metrics.gauge("ours", "Ours.", ["kind"]).labels("b").set(3)
    each.labels("b").set(4)
    prometheus_client.Counter("more", "More.", ["kind"], registry=registry).labels("a").inc()
    samples = one.samples()
    assert samples["seconds_count"] == {(("kind", "a"),): 2, (("kind", "b"),): 1}
    assert samples["jobs_total"] == {(("kind", "a"),): 1, (("kind", "b"),): 1}
    assert len(samples["each"]) == 2
    assert samples["more_total"] == {(("kind", "a"),): 1}


def test_a_registry_of_another_class_is_not_changed(tmp_path: Path, member: Callable[..., Member]) -> None:
    """Values in a registry of a subclass are not moved."""

    class Own(CollectorRegistry):
        pass

    registry = Own()
    counter = prometheus_client.Counter("theirs", "Theirs.", registry=registry)
    one = member(registry=registry)
    assert isinstance(counter._value, values.MutexValue)
    assert one.samples()["http_requests_in_progress"] == {(): 0}


def test_a_registry_without_metrics_of_prometheus_client(
    tmp_path: Path, member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PROMETHEUS_MULTIPROC_DIR set, such a registry exposes none of the files there."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())  # type: ignore[no-untyped-call]
    counter = prometheus_client.Counter("theirs", "Theirs.", registry=None)
    counter.inc(2)
    one = member()
    assert "theirs_total" not in one.samples()
    one.metrics.sharing.unshare()
    one.metrics.sharing.unshare()
    counter._value._file.close()

"""Log lines and metrics over OTLP: their encoding, their queues, the interval, the URLs and the resource."""

from __future__ import annotations

import json
import os
import threading
from time import time, time_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Summary
from prometheus_client.metrics_core import (
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.multiprocess import MultiProcessCollector
from tools import until

from fastapi_observe import ObserveSettings
from fastapi_observe.export.otlp.logs import MAX_SCOPES, LogEncoder, timestamp_nanoseconds
from fastapi_observe.export.otlp.metrics import MetricEncoder, TimedFamily, read_families
from fastapi_observe.export.push import ProcessResource, make_log_queue, make_metric_loop, signal_url
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.shared.collectors import StaticCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector as Readable

LINE: dict[str, Any] = {
    "timestamp": "2026-03-01T10:00:00.123456Z",
    "level": "error",
    "message": "payment failed",
    "logger": "shop.payments",
    "service": "shop",
    "trace_id": "0af7651916cd43dd8448eb211c80319c",
    "span_id": "b7ad6b7169203331",
    "request_id": "req-12345678",
    "fields": {"order_id": 7, "total": 1.5, "items": ["a", "b"], "nested": {"deep": None}, "yes": True},
    "exception": {"type": "ValueError", "message": "no", "stacktrace": "Traceback"},
}


def resource() -> Resource:
    """Return the resource of the tests."""
    return Resource({"service.name": "shop"})


def settings(collector: Collector | None = None, **options: Any) -> ObserveSettings:
    """Return settings with `otlp_logs` and `otlp_metrics`."""
    endpoint = None if collector is None else collector.url
    return ObserveSettings(
        **{"otlp_endpoint": endpoint, "otlp_logs": True, "otlp_metrics": True, "batch_delay": 0.01, **options}
    )


def plain(value: Any) -> Any:
    """Return the Python value of an AnyValue."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(element) for element in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


# Logs


def test_log_lines() -> None:
    """A record has time, severity, message, ids, typed fields and the exception; the logger is the scope."""
    with Collector() as collector:
        queue = make_log_queue(settings(collector), resource, InternalErrors())
        assert queue is not None
        queue.put(json.dumps(LINE).encode() + b"\n")
        queue.put(b'{"timestamp": "2026-03-01T10:00:00Z", "level": "odd"}')
        assert queue.flush(5)
        queue.close()
        assert collector.paths == ["/v1/logs"]
        request = ExportLogsServiceRequest.FromString(collector.bodies[0])
    (logs,) = request.resource_logs
    assert {pair.key: plain(pair.value) for pair in logs.resource.attributes}["service.name"] == "shop"
    first, second = logs.scope_logs
    assert (first.scope.name, second.scope.name) == ("shop.payments", "")
    record = first.log_records[0]
    assert record.time_unix_nano == 1_772_359_200_123_456_000
    assert (record.severity_number, record.severity_text, record.body.string_value) == (17, "error", "payment failed")
    assert (record.trace_id.hex(), record.span_id.hex()) == (LINE["trace_id"], LINE["span_id"])
    assert {pair.key: plain(pair.value) for pair in record.attributes} == {
        **LINE["fields"],
        "request_id": "req-12345678",
        "exception.type": "ValueError",
        "exception.message": "no",
        "exception.stacktrace": "Traceback",
    }
    assert second.log_records[0].severity_number == 0
    counts = queue.counts()
    assert (counts.produced, counts.exported) == (2, 2)


def test_a_line_that_is_not_json_is_dropped_alone() -> None:
    """The other lines are sent; the error is counted."""
    internal_errors = InternalErrors()
    with Collector() as collector:
        queue = make_log_queue(settings(collector), resource, internal_errors)
        assert queue is not None
        queue.put(b"text for people\n")
        queue.put(json.dumps(LINE).encode())
        assert not queue.flush(5)
        queue.close()
    counts = queue.counts()
    assert (counts.exported, counts.dropped) == (1, {"internal_error": 1})
    assert internal_errors.counts == {"export.encode": 1}


def test_scopes_are_bounded() -> None:
    """Of 1,000 loggers `MAX_SCOPES` have a scope of their own."""
    encoder = LogEncoder(resource)
    scopes = {id(encoder.encode(json.dumps({**LINE, "logger": f"l{at}"}).encode())[0]) for at in range(1000)}
    assert encoder.encode(json.dumps({**LINE, "logger": "l1"}).encode())[0].name == "l1"
    assert len(scopes) == MAX_SCOPES + 1


def test_times_are_exact() -> None:
    """To the microsecond, without rounding by floats."""
    assert timestamp_nanoseconds("2026-03-01T10:00:00.999999Z") % 1_000_000_000 == 999_999_000


# Metrics


def encoded(metrics: Iterable[Metric]) -> dict[str, Any]:
    """Encode families and read them back, by name."""
    encoder = MetricEncoder(resource)
    body = encoder.request(
        [(*encoder.encode(family), 0) for family in read_families(StaticCollector([*metrics]), set())]
    )
    (resource_metrics,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    return {metric.name: metric for scope in resource_metrics.scope_metrics for metric in scope.metrics}


def collectors_of(registry: CollectorRegistry) -> Callable[[], list[Readable]]:
    """Return a function that returns the collectors of a registry."""
    return lambda: [registry]


def labels(point: Any) -> dict[str, str]:
    """Return the labels of a point."""
    return {pair.key: pair.value.string_value for pair in point.attributes}


def test_counters_are_cumulative_sums() -> None:
    """Named without `_total`, with their start times and exemplars."""
    registry = CollectorRegistry()
    counter = Counter("orders", "Orders.", ["shop"], registry=registry)
    ids = {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}
    counter.labels("a").inc(2, ids)
    counter.labels("b").inc(exemplar={"other": "1"})
    metric = encoded(registry.collect())["orders"]
    assert metric.sum.is_monotonic
    assert metric.sum.aggregation_temporality == 2
    assert metric.description == "Orders."
    a, b = metric.sum.data_points
    assert (labels(a), a.as_double, labels(b), b.as_double) == ({"shop": "a"}, 2.0, {"shop": "b"}, 1.0)
    assert abs(a.start_time_unix_nano / 1e9 - time()) < 60
    assert a.time_unix_nano >= a.start_time_unix_nano
    assert (a.exemplars[0].trace_id.hex(), a.exemplars[0].span_id.hex()) == (ids["trace_id"], ids["span_id"])
    assert a.exemplars[0].as_double == 2.0
    assert b.exemplars[0].trace_id == b""


def test_gauges_infos_and_untyped_values() -> None:
    """All of them are gauges named like their samples."""
    registry = CollectorRegistry()
    Gauge("temperature", "Degrees.", unit="celsius", registry=registry).set(-1.5)
    Info("build", "Build.", registry=registry).info({"version": "1"})
    found = encoded([*registry.collect(), UnknownMetricFamily("odd", "Odd.", value=3)])
    assert found["temperature_celsius"].gauge.data_points[0].as_double == -1.5
    assert found["temperature_celsius"].unit == "celsius"
    assert labels(found["build_info"].gauge.data_points[0]) == {"version": "1"}
    assert found["odd"].gauge.data_points[0].as_double == 3


def test_histograms_keep_their_buckets() -> None:
    """A point for each label set has bounds, counts that are not cumulative, sum, count and exemplars."""
    registry = CollectorRegistry()
    histogram = Histogram("seconds", "Seconds.", ["route"], buckets=(0.1, 1), registry=registry)
    for value in (0.05, 0.5, 0.6, 5):
        histogram.labels("/a").observe(value, {"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1"})
    histogram.labels("/b").observe(0.05)
    metric = encoded(registry.collect())["seconds"].histogram
    assert metric.aggregation_temporality == 2
    a, b = metric.data_points
    assert (labels(a), labels(b)) == ({"route": "/a"}, {"route": "/b"})
    assert (list(a.bucket_counts), list(a.explicit_bounds)) == ([1, 2, 1], [0.1, 1.0])
    assert (a.count, a.sum, b.count) == (4, pytest.approx(6.15), 1)
    assert [exemplar.as_double for exemplar in a.exemplars] == [0.05, 0.6, 5]
    bare = HistogramMetricFamily("bare", "Without a beginning.", buckets=[("+Inf", 1)], sum_value=2)
    assert encoded([bare])["bare"].histogram.data_points[0].start_time_unix_nano > 0


def test_summaries() -> None:
    """A point has count, sum and quantiles."""
    registry = CollectorRegistry()
    Summary("bytes", "Bytes.", registry=registry).observe(3)
    family = SummaryMetricFamily("quick", "Quick.")
    family.add_metric([], 2, 5)
    family.add_sample("quick", {"quantile": "0.5"}, 1.5)
    found = encoded([*registry.collect(), family])
    point = found["bytes"].summary.data_points[0]
    assert (point.count, point.sum) == (1, 3.0)
    point = found["quick"].summary.data_points[0]
    assert (point.count, point.sum) == (2, 5.0)
    assert (point.quantile_values[0].quantile, point.quantile_values[0].value) == (0.5, 1.5)


def test_the_start_time_is_the_last_reset() -> None:
    """Otherwise a backend would take the lower value after a reset for lost increments."""
    registry = CollectorRegistry()
    Counter("orders", "Orders.", registry=registry)
    (metric,) = registry.collect()
    for reset_at, expected in ((0, metric.samples[1].value), (time_ns(), None)):
        encoder = MetricEncoder(resource, lambda reset_at=reset_at: reset_at)  # type: ignore[misc]
        body = encoder.request([(*encoder.encode(TimedFamily(metric, time_ns())), 0)])
        (point,) = (
            ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
        )
        assert point.start_time_unix_nano == (reset_at if expected is None else int(expected * 1e9))


def test_families_that_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sums of several processes, names read before, families without samples, and `target_info`."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    registry = CollectorRegistry(target_info={"region": "north"})
    Counter("orders", "Orders.", registry=registry)
    names_read = {"taken"}
    assert read_families(MultiProcessCollector(registry), names_read) == []  # type: ignore[no-untyped-call]
    metrics = [*registry.collect(), GaugeMetricFamily("taken", "Taken.", value=1), GaugeMetricFamily("empty", "None.")]
    assert [family.metric.name for family in read_families(StaticCollector(metrics), names_read)] == ["orders"]
    assert names_read == {"taken", "orders"}


def test_metrics_are_pushed_at_intervals() -> None:
    """From `start` on, and a last time by `close`; nothing before and after."""
    registry = CollectorRegistry()
    counter = Counter("orders", "Orders.", registry=registry)
    internal_errors = InternalErrors()
    with Collector() as collector:
        push = make_metric_loop(
            settings(collector, otlp_metrics_interval=0.02), resource, collectors_of(registry), internal_errors
        )
        assert push is not None
        assert push.flush(1)
        assert collector.paths == []
        push.start()
        push.start()
        until(lambda: len(collector.paths) >= 2)
        counter.inc()
        assert push.flush(30)
        push.close()
        push.close()
        push.start()
        assert set(collector.paths) == {"/v1/metrics"}
        last = ExportMetricsServiceRequest.FromString(collector.bodies[-1])
    points = last.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    assert points[0].as_double == 1.0
    counts = push.queue.counts()
    assert counts.produced == counts.exported + sum(counts.dropped.values())
    assert not internal_errors.counts


def test_a_collector_that_raises_is_skipped() -> None:
    """It is counted, and the families of the others are sent. After `pause` nothing is queued."""
    first, second = CollectorRegistry(), CollectorRegistry()
    Counter("orders", "Orders.", registry=first)
    Counter("more", "More.", registry=second)
    internal_errors = InternalErrors()
    with Collector() as collector:
        waiting = settings(collector, batch_delay=10)  # families that are read slowly are one batch, too
        push = make_metric_loop(waiting, resource, lambda: [first, Failing(), second], internal_errors)
        assert push is not None
        push.push()
        assert push.queue.flush(30)
        push.pause()
        push.push()
        push.close()
        (body,) = collector.bodies
    assert internal_errors.counts == {"metrics.push": 2}
    scopes = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics
    assert [metric.name for metric in scopes[0].metrics] == ["orders", "more"]


class Failing:
    """A collector that raises."""

    def describe(self) -> list[Metric]:
        """Return no families."""
        return []

    def collect(self) -> list[Metric]:
        """Fail."""
        raise RuntimeError


def test_nothing_is_sent_between_pause_and_start() -> None:
    """After a worker process has left its group, its counters are zero until it starts again."""
    registry = CollectorRegistry()
    with Collector() as collector:
        push = make_metric_loop(settings(collector), resource, collectors_of(registry), InternalErrors())
        assert push is not None
        push.start()
        push.pause()
        Counter("orders", "Orders.", registry=registry)
        assert push.flush(30)
        assert collector.paths == []
        push.start()
        assert push.flush(30)
        assert collector.paths == ["/v1/metrics"]
        push.close()


def test_close_before_start() -> None:
    """Nothing is sent."""
    with Collector() as collector:
        push = make_metric_loop(settings(collector), resource, collectors_of(CollectorRegistry()), InternalErrors())
        assert push is not None
        push.close()
        assert collector.connections == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_nothing_before_its_own_start() -> None:
    """The thread of the parent does not exist in the child."""
    with Collector() as collector:
        push = make_metric_loop(settings(collector), resource, collectors_of(CollectorRegistry()), InternalErrors())
        assert push is not None
        push.start()
        child = os.fork()
        if not child:
            before = threading.active_count()
            push.start()
            os._exit(0 if (before, threading.active_count()) == (1, 2) else 1)
        assert os.waitpid(child, 0)[1] == 0
        push.close()


# URLs and resource


@pytest.mark.parametrize(
    ("endpoint", "protocol", "url"),
    [
        ("http://c:4318", "http/protobuf", "http://c:4318/v1/logs"),
        ("http://c:4318/v1/traces", "http/protobuf", "http://c:4318/v1/logs"),
        ("http://c:4318/base/?key=1", "http/protobuf", "http://c:4318/base/v1/logs?key=1"),
        ("c:4317", "grpc", "c:4317"),
        (None, "grpc", None),
    ],
)
def test_signal_urls(endpoint: str | None, protocol: Any, url: str | None) -> None:
    """Another path than for traces over HTTP, the same address over gRPC."""
    assert signal_url(ObserveSettings(otlp_endpoint=endpoint, otlp_protocol=protocol), "logs") == url


def test_no_queue_unless_enabled() -> None:
    """Without the option, or without an endpoint."""
    with Collector() as collector:
        off = settings(collector, otlp_logs=False, otlp_metrics=False)
        for chosen in (off, settings()):
            assert make_log_queue(chosen, resource, InternalErrors()) is None
            assert make_metric_loop(chosen, resource, list, InternalErrors()) is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_resource() -> None:
    """It is that of the tracer provider, also of the user's, else made from the settings. It has an instance id."""
    provider = TracerProvider(resource=Resource({"service.name": "theirs"}))
    theirs = ProcessResource(ObserveSettings(), provider)
    assert theirs().attributes["service.name"] == "theirs"
    assert theirs() is theirs()
    assert theirs().attributes["service.instance.id"] == theirs().attributes["service.instance.id"]
    named = Resource({"service.instance.id": "pod-7"})
    assert ProcessResource(ObserveSettings(), SimpleNamespace(resource=named))() is named
    ours = ProcessResource(ObserveSettings(service_name="ours"), None)
    assert ours().attributes["service.name"] == "ours"
    before = ours()
    assert ours() is before
    if hasattr(os, "fork"):
        child = os.fork()
        if not child:
            os._exit(0 if ours().attributes["service.instance.id"] != before.attributes["service.instance.id"] else 1)
        assert os.waitpid(child, 0)[1] == 0

"""OTLP logs and metrics: what arrives is what was written and what `/metrics` shows."""

from __future__ import annotations

import json
import os
from time import sleep, time, time_ns
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

from fastapi_observe import ObserveSettings
from fastapi_observe.export.otlp.logs import MAX_SCOPES, LogEncoder, nanoseconds
from fastapi_observe.export.otlp.metrics import MetricEncoder, TimedFamily, read_families
from fastapi_observe.export.push import ProcessResource, make_log_queue, make_metric_loop, signal_url
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.shared.shown import StaticCollector

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
    """Say who this is."""
    return Resource({"service.name": "shop"})


def settings(collector: Collector | None = None, **options: Any) -> ObserveSettings:
    """Return settings with both options on."""
    endpoint = None if collector is None else collector.url
    return ObserveSettings(
        **{"otlp_endpoint": endpoint, "otlp_logs": True, "otlp_metrics": True, "batch_delay": 0.01, **options}
    )


def plain(value: Any) -> Any:
    """Turn an AnyValue into what it stands for."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(element) for element in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


# Logs


def test_lines_arrive() -> None:
    """Time, severity, message, ids, fields with their types, the exception; the logger is the scope."""
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


def test_a_line_that_is_none_is_dropped_alone() -> None:
    """And counted."""
    faults = InternalErrors()
    with Collector() as collector:
        queue = make_log_queue(settings(collector), resource, faults)
        assert queue is not None
        queue.put(b"text for people\n")
        queue.put(json.dumps(LINE).encode())
        assert not queue.flush(5)
        queue.close()
    counts = queue.counts()
    assert (counts.exported, counts.dropped) == (1, {"internal_error": 1})
    assert faults.counts == {"export.encode": 1}


def test_names_of_loggers_are_bounded() -> None:
    """However many loggers write, only so many scopes are kept."""
    encoder = LogEncoder(resource)
    scopes = {id(encoder.encode(json.dumps({**LINE, "logger": f"l{at}"}).encode())[0]) for at in range(1000)}
    assert encoder.encode(json.dumps({**LINE, "logger": "l1"}).encode())[0].name == "l1"
    assert len(scopes) == MAX_SCOPES + 1


def test_times_are_exact() -> None:
    """To the microsecond, whatever floats do."""
    assert nanoseconds("2026-03-01T10:00:00.999999Z") % 1_000_000_000 == 999_999_000


# Metrics


def encoded(metrics: Iterable[Metric]) -> dict[str, Any]:
    """Encode families and read them back, by name."""
    encoder = MetricEncoder(resource)
    body = encoder.request(
        [(*encoder.encode(family), 0) for family in read_families(StaticCollector([*metrics]), set())]
    )
    (resource_metrics,) = ExportMetricsServiceRequest.FromString(body).resource_metrics
    return {metric.name: metric for scope in resource_metrics.scope_metrics for metric in scope.metrics}


def each_of(registry: CollectorRegistry) -> Callable[[], list[Readable]]:
    """Return what yields the collectors of a registry."""
    return lambda: list(registry._collector_to_names)


def labels(point: Any) -> dict[str, str]:
    """Return the labels of a point."""
    return {pair.key: pair.value.string_value for pair in point.attributes}


def test_counters_are_cumulative_sums() -> None:
    """Named without `_total`, with when they began, and their exemplars."""
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


def test_gauges_and_the_like() -> None:
    """Gauges, infos and untyped values are gauges under the names of their samples."""
    registry = CollectorRegistry()
    Gauge("temperature", "Degrees.", unit="celsius", registry=registry).set(-1.5)
    Info("build", "Build.", registry=registry).info({"version": "1"})
    found = encoded([*registry.collect(), UnknownMetricFamily("odd", "Odd.", value=3)])
    assert found["temperature_celsius"].gauge.data_points[0].as_double == -1.5
    assert found["temperature_celsius"].unit == "celsius"
    assert labels(found["build_info"].gauge.data_points[0]) == {"version": "1"}
    assert found["odd"].gauge.data_points[0].as_double == 3


def test_histograms_keep_their_buckets() -> None:
    """Counts of each bucket alone, bounds, sum, count, exemplars; label sets are apart."""
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
    """Count, sum and quantiles."""
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


def test_a_stream_begins_when_it_was_set_to_zero() -> None:
    """Who adds up differences takes a lower value for a loss unless the stream began anew."""
    registry = CollectorRegistry()
    Counter("orders", "Orders.", registry=registry)
    (metric,) = registry.collect()
    for zeroed, expected in ((0, metric.samples[1].value), (time_ns(), None)):
        encoder = MetricEncoder(resource, lambda zeroed=zeroed: zeroed)  # type: ignore[misc]
        body = encoder.request([(*encoder.encode(TimedFamily(metric, time_ns())), 0)])
        (point,) = (
            ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
        )
        assert point.start_time_unix_nano == (zeroed if expected is None else int(expected * 1e9))


def test_what_is_no_value_of_this_process_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sums of many processes would be counted once for each; a name is sent once; the resource says the target."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    registry = CollectorRegistry(target_info={"region": "north"})
    Counter("orders", "Orders.", registry=registry)
    taken = {"taken"}
    assert read_families(MultiProcessCollector(registry), taken) == []  # type: ignore[no-untyped-call]
    metrics = [*registry.collect(), GaugeMetricFamily("taken", "Taken.", value=1), GaugeMetricFamily("empty", "None.")]
    assert [family.metric.name for family in read_families(StaticCollector(metrics), taken)] == ["orders"]
    assert taken == {"taken", "orders"}


def test_metrics_are_pushed_by_the_clock() -> None:
    """Every interval once started, and a last time at the end; a collector that raises is counted and left out."""
    registry = CollectorRegistry()
    counter = Counter("orders", "Orders.", registry=registry)
    faults = InternalErrors()
    with Collector() as collector:
        push = make_metric_loop(settings(collector, otlp_metrics_interval=0.02), resource, each_of(registry), faults)
        assert push is not None
        assert push.flush(1)
        assert collector.paths == []
        push.start()
        push.start()
        while len(collector.paths) < 2:
            sleep(0.005)
        counter.inc()
        assert push.flush(5)
        push.close()
        push.close()
        push.start()
        assert set(collector.paths) == {"/v1/metrics"}
        last = ExportMetricsServiceRequest.FromString(collector.bodies[-1])
    points = last.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points
    assert points[0].as_double == 1.0
    counts = push.counts()
    assert counts.produced == counts.exported + sum(counts.dropped.values())
    registry.register(Failing())
    Counter("more", "More.", registry=registry)
    taken: list[str] = []
    push.queue.put = lambda item: taken.append(item.metric.name)  # type: ignore[method-assign]
    push._paused.clear()
    push.push()
    assert faults.counts == {"metrics.push": 1}
    assert taken == ["orders", "more"]
    push.pause()
    push.push()
    assert taken == ["orders", "more"]


class Failing:
    """A collector that raises."""

    def describe(self) -> list[Metric]:
        """Say nothing."""
        return []

    def collect(self) -> list[Metric]:
        """Raise."""
        raise RuntimeError


def test_nothing_is_sent_between_pause_and_start() -> None:
    """What a worker has after it left the others are zeros; then it goes on."""
    registry = CollectorRegistry()
    with Collector() as collector:
        push = make_metric_loop(settings(collector), resource, each_of(registry), InternalErrors())
        assert push is not None
        push.start()
        push.pause()
        Counter("orders", "Orders.", registry=registry)
        assert push.flush(5)
        assert collector.paths == []
        push.start()
        assert push.flush(5)
        assert collector.paths == ["/v1/metrics"]
        push.close()


def test_closed_before_it_was_started() -> None:
    """Nothing is sent."""
    with Collector() as collector:
        push = make_metric_loop(settings(collector), resource, each_of(CollectorRegistry()), InternalErrors())
        assert push is not None
        push.close()
        assert collector.connections == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_sends_nothing_by_itself() -> None:
    """Until it starts its own clock."""
    with Collector() as collector:
        push = make_metric_loop(settings(collector), resource, each_of(CollectorRegistry()), InternalErrors())
        assert push is not None
        push.start()
        child = os.fork()
        if not child:
            alone = push._thread is None
            push.start()
            os._exit(0 if alone and push._thread is not None and push._thread.is_alive() else 1)
        assert os.waitpid(child, 0)[1] == 0
        push.close()


# Where to


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
def test_where_signals_go(endpoint: str | None, protocol: Any, url: str | None) -> None:
    """Beside the traces: another path over HTTP, the same address over gRPC."""
    assert signal_url(ObserveSettings(otlp_endpoint=endpoint, otlp_protocol=protocol), "logs") == url


def test_off_means_nothing() -> None:
    """Without the option, or without an endpoint, there is no queue."""
    with Collector() as collector:
        off = settings(collector, otlp_logs=False, otlp_metrics=False)
        for chosen in (off, settings()):
            assert make_log_queue(chosen, resource, InternalErrors()) is None
            assert make_metric_loop(chosen, resource, list, InternalErrors()) is None


def test_whose_resource_it_is() -> None:
    """That of the tracer provider, the user's too; without one what the settings say. The instance has a name."""
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
    ours._reset_after_fork()  # as in a forked child
    assert ours() is not before

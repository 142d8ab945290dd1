"""Several worker processes that push metrics over OTLP: each sends its own, and their sum is exact."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import worker_forks
from collectors import Collector
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from servers_of_workers import serving_workers
from tools import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="workers do not share metrics here")

Streams = dict[str, list[tuple[int, int, float]]]
"""Start, time and value of every point, by the instance that sent it."""


def instance_id(resource: Any) -> str:
    """Return the `service.instance.id` of a resource."""
    (found,) = [pair.value.string_value for pair in resource.attributes if pair.key == "service.instance.id"]
    return str(found)


def received_metrics(collector: Collector) -> list[tuple[str, Any]]:
    """Return every metric that arrived, with the instance that sent it."""
    return [
        (instance_id(resource.resource), metric)
        for path, body in zip(collector.paths, collector.bodies, strict=True)
        if path == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]


def streams(collector: Collector, name: str) -> Streams:
    """Return what arrived of a counter, or the counts of a histogram, point by point."""
    found: Streams = defaultdict(list)
    for instance, metric in received_metrics(collector):
        if metric.name == name:
            for point in metric.histogram.data_points or metric.sum.data_points:
                value = point.count if metric.HasField("histogram") else point.as_double
                found[instance].append((point.start_time_unix_nano, point.time_unix_nano, value))
    return found


def total(collector: Collector, name: str) -> float:
    """Add up the last points of all streams, as a backend does."""
    return sum(max(points, key=lambda point: point[1])[2] for points in streams(collector, name).values())


COUNTED = ("http_requests", "http_request_duration_seconds", "user_before", "user_after", "user_seconds")
"""Counter and histogram of this package, and metrics of the app that are made before and after `install`."""


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn --preload"])
def test_the_sum_at_the_collector_is_exact(name: str, tmp_path: Path) -> None:
    """Each worker pushes its own values, not the sum of all. The stream of a killed worker ends."""
    if name != "uvicorn":
        pytest.importorskip("uvicorn_worker")
    with Collector() as collector:
        with serving_workers(
            name,
            tmp_path,
            WORKERS_COLLECTOR=collector.url,
            OBSERVE_OTLP_METRICS="true",
            OBSERVE_OTLP_METRICS_INTERVAL="0.1",
        ) as server:
            sent = server.spread(3)
            assert server.total("http_requests_total") == sent  # the sum is exposed, and not pushed
            until(lambda: total(collector, "http_requests") == sent)
            before = streams(collector, "http_requests")
            assert len(before) == 3
            (killed,) = set(server.count(1))
            sent += 1
            until(lambda: all(total(collector, counted) == sent for counted in COUNTED))
            os.kill(killed, signal.SIGKILL)
            until(lambda: live_workers(server) == 3)
            sent += len(server.count(60))
            assert server.total("http_requests_total") == sent
        for counted in COUNTED:
            assert total(collector, counted) == sent, counted
        after = streams(collector, "http_requests")
        assert before.keys() <= after.keys()
        for points in after.values():
            assert len({start for start, _, _ in points}) == 1
            assert [value for *_, value in points] == sorted(value for *_, value in points)
        sent_by = {metric.name for _, metric in received_metrics(collector)}
        assert "process_cpu_seconds" in sent_by
        assert not sent_by & {"fastapi_observe_workers", "fastapi_observe_metrics_degraded", "target_info"}


def live_workers(server: Any) -> float:
    """Scrape the number of workers; 0 if the connection was given to the one that was killed."""
    try:
        return float(server.total("fastapi_observe_workers"))
    except OSError:
        return 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_a_forked_child_is_another_instance() -> None:
    """Spans, log lines and metrics of a child have its own `service.instance.id`, for span processors too."""
    with Collector() as collector:
        found = worker_forks.run("instance", collector.url, 3)
        lines = {
            instance_id(resource.resource)
            for path, body in zip(collector.paths, collector.bodies, strict=True)
            if path == "/v1/logs"
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        }
        spans = {instance_id(resource.resource) for resource in collector.resources}
        counted = streams(collector, "http_requests")
    seen = [found["parent"], *found["children"]]
    assert [len(set(ids)) for ids in seen] == [1] * 4
    names = {ids[0] for ids in seen}
    assert len(names) == 4
    assert names == spans == lines == set(counted)
    assert [points[-1][2] for points in counted.values()] == [1] * 4
    began, *later = [counted[ids[0]][-1][0] for ids in seen]
    assert all(start > began for start in later)

"""Log lines and metrics over OTLP from an installed app."""

from __future__ import annotations

import gzip
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from starlette.requests import Request


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Serve a collector that accepts everything; yield its URL and the paths and bodies it received."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            zipped = self.headers.get("content-encoding") == "gzip"
            received.append((self.path, gzip.decompress(body) if zipped else body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("log_format", ["json", "text", "ecs", "gcp", "datadog"])
def test_lines_and_metrics_are_sent(observed: Callable[..., Seen], log_format: str) -> None:
    """All log lines, request lines included, and all metric families; the log format does not matter."""

    async def page(_: Request) -> PlainTextResponse:
        seen.observe.log.info("hello", order_id=7)
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/x", page)])
    with collector() as (url, received):
        seen = observed(app, otlp_endpoint=url, otlp_logs=True, otlp_metrics=True, log_format=log_format)
        with TestClient(app) as client:
            client.get("/x")
        seen.observe.close()
        records = [
            record
            for path, body in received
            if path == "/v1/logs"
            for resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]
        lines = [record.body.string_value for record in records]
        names = {
            metric.name
            for path, body in received
            if path == "/v1/metrics"
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
    assert [line for line in lines if line in {"hello", "HTTP request completed"}] == [
        "hello",
        "HTTP request completed",
    ]
    hello = next(record for record in records if record.body.string_value == "hello")
    (span,) = seen.server_spans
    position = span.get_span_context()
    assert position is not None
    assert (hello.severity_text, hello.trace_id.hex()) == ("info", f"{position.trace_id:032x}")
    assert [(each.key, each.value.int_value) for each in hello.attributes if each.key == "order_id"] == [
        ("order_id", 7)
    ]
    assert {"http_requests", "http_request_duration_seconds"} <= {name.removesuffix("_total") for name in names}
    assert seen.observe.internal_errors.counts == {}


def test_each_signal_is_a_setting(observed: Callable[..., Seen]) -> None:
    """Without an endpoint nothing is exported."""
    for options, expected in (
        ({"otlp_logs": True, "otlp_metrics": True}, set()),
        ({"otlp_metrics": True}, {"otlp_metrics"}),
    ):
        with collector() as (url, _):
            seen = observed(Starlette(), otlp_endpoint=url if expected else None, **options)
            signals = {dict(labels)["signal"] for labels in seen.samples("fastapi_observe_produced_total")}
            assert signals & {"otlp_logs", "otlp_metrics"} == expected
            seen.observe.close()

"""Holds what the metrics signal records of requests, and the methods that users call."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_fastapi_instrumentator import metrics as instrumentator
from prometheus_fastapi_instrumentator.metrics import Info

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import RequestRecord
from fastapi_observe.records.websocket import WebSocketRecord
from fastapi_observe.settings.model import ObserveSettings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive, Scope, Send

ORDER = {"method": "GET", "endpoint": "/orders/{order_id}"}


class Service:
    """A metrics service alone, and request records that it gets."""

    def __init__(self, **settings: Any) -> None:
        self.internal_errors = InternalErrors()
        self.metrics = MetricsService(
            ObserveSettings(**{"include_default_registry": False, **settings}), self.internal_errors
        )

    def value(self, name: str, **labels: str) -> float | None:
        """Return one sample."""
        return self.metrics.registry.get_sample_value(name, labels)

    def serve(
        self,
        app: Callable[[Scope, Receive, Send], Any],
        *messages: Message,
        endpoint: str = "/orders/{order_id}",
        scope: Scope | None = None,
        prepare: Callable[[Any], None] = lambda record: None,
    ) -> Any:
        """Run an app with a request record as the middleware does, and return the record."""
        scope = {"type": "http", "method": "GET", "path": "/orders/7", "headers": [], **(scope or {})}
        inbox = iter(messages or ({"type": "http.request", "body": b"hello", "more_body": False},))

        async def receive() -> Message:
            return next(inbox)

        async def send(message: Message) -> None:
            return None

        kind = WebSocketRecord if scope["type"] == "websocket" else RequestRecord
        record = kind(scope, receive, send, self.internal_errors, self.metrics.on_request_end)
        record.endpoint = endpoint
        record.on_response_start = self.metrics.on_response_start
        self.metrics.on_request_start(record)
        prepare(record)

        async def run() -> None:
            try:
                await app(scope, record.receive, record.send)
            except Exception as exc:  # noqa: BLE001 - the app of the test may raise anything
                record.finish(exc)
            else:
                record.finish(None)

        asyncio.run(run())
        return record


def answer(status: int = 200, *chunks: bytes) -> Callable[[Scope, Receive, Send], Any]:
    """Return an app that reads the request and responds with the chunks."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": [(b"X-Kind", b"shop")]})
        for chunk in chunks or (b"ok",):
            await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunks)})
        if chunks:
            await send({"type": "http.response.body"})

    return app


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    """Raise an exception."""
    raise LookupError("no such order")


def test_a_request_is_one_count_and_one_sample_of_each_histogram() -> None:
    """A request adds one to the counter, the duration and both sizes, with the actual bytes."""
    service = Service()
    record = service.serve(answer(200))
    assert service.value("http_requests_total", **ORDER, status_code="200") == 1
    assert service.value("http_request_duration_seconds_count", **ORDER) == 1
    assert service.value("http_request_duration_seconds_sum", **ORDER) == record.duration
    assert service.value("http_request_size_bytes_sum", **ORDER) == 5
    assert service.value("http_response_size_bytes_sum", **ORDER) == 2
    assert service.value("http_response_size_bytes_bucket", **ORDER, le="100.0") == 1
    assert service.value("http_requests_in_progress") == 0
    assert service.value("http_time_to_first_byte_seconds_count", **ORDER) is None
    assert service.value("http_request_errors_total", **ORDER, error_type="LookupError") is None


def test_requests_with_the_same_labels_share_their_series() -> None:
    """Two requests with the same method, endpoint and status share their series; another status has its own count."""
    service = Service()
    for status in (200, 200, 404):
        service.serve(answer(status))
    assert service.value("http_requests_total", **ORDER, status_code="200") == 2
    assert service.value("http_requests_total", **ORDER, status_code="404") == 1
    assert service.value("http_request_duration_seconds_count", **ORDER) == 3


def test_an_exception_is_a_500_and_an_error_by_class() -> None:
    """An app that raises counts as 500 and under the class of the exception, and the gauge returns to 0."""
    service = Service()
    seen: list[float | None] = []
    service.serve(fails, prepare=lambda record: seen.append(service.value("http_requests_in_progress")))
    assert service.value("http_requests_total", **ORDER, status_code="500") == 1
    assert service.value("http_request_errors_total", **ORDER, error_type="LookupError") == 1
    assert seen == [1]
    assert service.value("http_requests_in_progress") == 0


def test_the_gauge_returns_to_0_if_recording_fails() -> None:
    """An internal error at the end of a request does not leave it in progress."""
    service = Service()
    record = service.serve(answer(200))
    service.metrics.on_request_start(record)
    record.endpoint = ["unhashable"]
    with pytest.raises(TypeError):
        service.metrics.on_request_end(record)
    assert service.value("http_requests_in_progress") == 0


@pytest.mark.parametrize(("status", "label"), [(99, "_other"), (100, "100"), (599, "599"), (600, "_other")])
def test_invalid_status_codes_share_one_label(status: int, label: str) -> None:
    """Only 100 to 599 are labels; anything else is `_other`."""
    service = Service()
    service.serve(answer(status))
    service.metrics.record_http_request("GET", "/orders/{order_id}", status, 0.1)
    assert service.value("http_requests_total", **ORDER, status_code=label) == 2


def test_a_stream_has_a_time_to_first_byte() -> None:
    """A response of several chunks adds one sample to the time to first byte."""
    service = Service()
    record = service.serve(answer(200, b"a", b"b"))
    assert service.value("http_time_to_first_byte_seconds_sum", **ORDER) == record.ttfb
    assert service.value("http_response_size_bytes_sum", **ORDER) == 2


def test_each_invalid_field_is_counted() -> None:
    """A 422 counts every invalid field, by location and type."""
    service = Service()

    def prepare(record: RequestRecord) -> None:
        record.validation_errors = [("body.amount", "greater_than"), ("query.page", "int_parsing")]

    service.serve(answer(422), prepare=prepare)
    labels = {"endpoint": ORDER["endpoint"]}
    for field, error_type in (("body.amount", "greater_than"), ("query.page", "int_parsing")):
        assert service.value("request_validation_errors_total", **labels, field=field, error_type=error_type) == 1


def test_sizes_can_be_switched_off() -> None:
    """With `size_histograms=False` there are no size series, neither of requests nor of the user's calls."""
    service = Service(size_histograms=False)
    service.serve(answer(200))
    service.metrics.record_http_request("GET", "/jobs", 200, 0.1, 10, 10)
    assert b"size_bytes" not in service.metrics.render("", "")[1]
    assert service.value("http_requests_total", **ORDER, status_code="200") == 1


def _exemplars(service: Service) -> dict[str, Any]:
    text = service.metrics.render("application/openmetrics-text", "")[1].decode()
    parse: Any = parse_openmetrics
    samples = [sample for family in parse(text) for sample in family.samples]
    return {sample.name: sample.exemplar for sample in samples if sample.exemplar is not None}


def _sample(record: RequestRecord) -> None:
    record.sampled, record.trace_id, record.span_id = "head", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_sampled_request_is_an_exemplar() -> None:
    """Counter and duration have the ids of a sampled request, with its duration and its end time."""
    service = Service()
    record = service.serve(answer(200), prepare=_sample)
    found = _exemplars(service)
    assert set(found) == {"http_requests_total", "http_request_duration_seconds_bucket"}
    exemplar = found["http_request_duration_seconds_bucket"]
    assert exemplar.labels == {"trace_id": record.trace_id, "span_id": record.span_id}
    assert exemplar.value == record.duration
    assert float(exemplar.timestamp) == pytest.approx(record.started_ns / 1e9 + record.duration, abs=0.01)


def test_no_exemplar_without_sampling_or_when_switched_off() -> None:
    """An unsampled request is not an exemplar; with `exemplars=False` none is."""
    service = Service()
    service.serve(answer(200))
    assert _exemplars(service) == {}
    service = Service(exemplars=False)
    service.serve(answer(200), prepare=_sample)
    assert _exemplars(service) == {}


def test_requests_beyond_the_limit_share_the_overflow_series(caplog: pytest.LogCaptureFixture) -> None:
    """With a limit of two label sets, further endpoints count as one, with one warning for each metric."""
    service = Service(max_series_per_metric=2)
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for number in range(4):
            service.serve(answer(200), endpoint=f"/r{number}")
    overflow = "__overflow__"
    assert service.value("http_requests_total", method=overflow, endpoint=overflow, status_code=overflow) == 2
    assert service.value("http_request_duration_seconds_count", method=overflow, endpoint=overflow) == 2
    assert service.value("fastapi_observe_series_overflow_total", metric="http_requests_total") == 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == len(set(warnings)) == 4
    assert any("http_requests_total" in line and "label endpoint" in line for line in warnings)


async def talk(scope: Scope, receive: Receive, send: Send) -> None:
    """Accept a WebSocket, read one message and send two."""
    await receive()
    await send({"type": "websocket.accept"})
    await receive()
    await send({"type": "websocket.send", "text": "one"})
    await send({"type": "websocket.send", "text": "two"})
    await receive()


def _websocket(service: Service, app: Callable[[Scope, Receive, Send], Any], *messages: Message) -> WebSocketRecord:
    scope = {"type": "websocket", "path": "/ws"}
    return service.serve(app, {"type": "websocket.connect"}, *messages, scope=scope, endpoint="/ws")  # type: ignore[no-any-return]


def test_a_websocket_has_separate_metrics() -> None:
    """Messages count by direction, the duration by close code, the gauge returns to 0; HTTP metrics do not change."""
    service = Service()
    record = _websocket(
        service, talk, {"type": "websocket.receive", "text": "hi"}, {"type": "websocket.disconnect", "code": 1000}
    )
    assert service.value("websocket_messages_total", endpoint="/ws", direction="received") == 1
    assert service.value("websocket_messages_total", endpoint="/ws", direction="sent") == 2
    assert service.value("websocket_connections_active", endpoint="/ws") == 0
    name = "websocket_connection_duration_seconds_sum"
    assert service.value(name, endpoint="/ws", close_code="1000") == record.duration
    assert service.value("http_requests_in_progress") == 0
    assert service.value("http_requests_total", method="GET", endpoint="/ws", status_code="101") is None


def test_a_denied_websocket_was_never_active() -> None:
    """A denied handshake adds a duration under `denied` and does not change the gauge."""

    async def deny(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.close"})

    service = Service()
    _websocket(service, deny)
    assert service.value("websocket_connection_duration_seconds_count", endpoint="/ws", close_code="denied") == 1
    assert service.value("websocket_connections_active", endpoint="/ws") is None


def test_an_open_websocket_is_active() -> None:
    """Between accept and close the gauge is 1."""
    service = Service()
    seen: list[float | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        seen.append(service.value("websocket_connections_active", endpoint="/ws"))

    _websocket(service, app)
    assert seen == [1]
    assert service.value("websocket_connections_active", endpoint="/ws") == 0


def test_the_start_of_a_response_changes_no_websocket_metric() -> None:
    """`on_response_start` has no effect for an HTTP request."""
    service = Service()
    record = service.serve(answer(200))
    before = service.metrics.render("", "")[1].count(b"websocket")
    service.metrics.on_response_start(record)
    assert service.metrics.render("", "")[1].count(b"websocket") == before


class Reporter:
    """Reports operations to the metrics only."""

    def __init__(self, metrics: MetricsService) -> None:
        self.on_operation_start = metrics.on_operation_start
        self.on_operation_end = metrics.on_operation_end


def test_operations_are_counted_by_kind() -> None:
    """Queries, calls and background tasks have a count and a duration; errors of queries count by class."""
    service = Service()
    reporter = Reporter(service.metrics)
    query = {"operation": "SELECT", "table": "orders"}
    with Operation(reporter, "database", "SELECT orders", query):
        pass
    with pytest.raises(LookupError), Operation(reporter, "database", "SELECT orders", query):
        raise LookupError
    with Operation(reporter, "external", "POST payments", {"service": "payments", "operation": "charge"}):
        pass
    with Operation(reporter, "background", "background mail", {"endpoint": "/orders"}):
        pass
    with Operation(reporter, "step", "price", {}):
        pass
    assert service.value("db_queries_total", **query) == 2
    assert service.value("db_query_duration_seconds_count", **query) == 2
    assert service.value("db_query_errors_total", **query, error_type="LookupError") == 1
    call = {"service": "payments", "operation": "charge"}
    assert service.value("external_requests_total", **call, outcome="ok") == 1
    assert service.value("external_request_duration_seconds_count", **call) == 1
    task = {"endpoint": "/orders", "outcome": "ok"}
    assert service.value("background_tasks_total", **task) == 1
    assert service.value("background_task_duration_seconds_count", **task) == 1


def test_a_request_outside_the_middleware_can_be_recorded() -> None:
    """`record_http_request` adds to the same series; an unknown method is `_OTHER`; sizes are optional."""
    service = Service()
    service.metrics.record_http_request("GET", "/orders/{order_id}", 200, 0.2, 10, 20)
    service.metrics.record_http_request("BREW", "/pot", 418, 0.2)
    assert service.value("http_requests_total", **ORDER, status_code="200") == 1
    assert service.value("http_request_size_bytes_sum", **ORDER) == 10
    assert service.value("http_response_size_bytes_sum", **ORDER) == 20
    assert service.value("http_requests_total", method="_OTHER", endpoint="/pot", status_code="418") == 1
    assert service.value("http_request_size_bytes_count", method="_OTHER", endpoint="/pot") is None


def test_pool_gauges_are_set_one_by_one() -> None:
    """Values that are not passed remain."""
    service = Service()
    service.metrics.set_database_connections(pool="main", active=3, idle=2, max=10, waiting=0)
    service.metrics.set_database_connections(pool="main", active=4)
    service.metrics.set_database_connections(idle=1)
    for name, value in {"active": 4, "idle": 2, "max": 10, "waiting": 0}.items():
        assert service.value(f"db_connections_{name}", pool="main") == value
    assert service.value("db_connections_idle", pool="default") == 1


def test_custom_metrics_are_prometheus_client_metrics() -> None:
    """`counter`, `gauge` and `histogram` return registered metrics of prometheus_client's classes."""
    service = Service()
    counter = service.metrics.counter("carts_total", "Carts.", ["shop"])
    gauge = service.metrics.gauge("queue_length", "Queued jobs.")
    histogram = service.metrics.histogram("cart_value", "Value of a cart.", buckets=(10, 100))
    assert isinstance(counter, prometheus_client.Counter)
    assert isinstance(gauge, prometheus_client.Gauge)
    assert isinstance(histogram, prometheus_client.Histogram)
    counter.labels(shop="north").inc()
    gauge.set(3)
    histogram.observe(50)
    assert service.value("carts_total", shop="north") == 1
    assert service.value("queue_length") == 3
    assert service.value("cart_value_bucket", le="100.0") == 1


def test_internal_errors_are_counted_by_location() -> None:
    """`fastapi_observe_internal_errors_total` shows internal errors, next to version and number of series."""
    service = Service()
    service.internal_errors("traces.on_request_start", RuntimeError())
    service.serve(answer(200))
    assert service.value("fastapi_observe_internal_errors_total", site="traces.on_request_start") == 1
    assert service.value("fastapi_observe_series") == 4
    assert b'fastapi_observe_info{version="' in service.metrics.render("", "")[1]


def test_a_collector_is_read_at_scrape_and_on_demand() -> None:
    """A registered collector is part of a scrape, and `update_system_metrics` calls its `update`."""

    class Collector:
        updates = 0

        def update(self) -> None:
            self.updates += 1

        def describe(self) -> list[Any]:
            return []

        def collect(self) -> list[Any]:
            return [
                prometheus_client.metrics_core.GaugeMetricFamily("collector_updates", "Updates.", value=self.updates)
            ]

    service = Service()
    collector = Collector()
    service.metrics.register_collector(collector)
    service.metrics.update_system_metrics()
    assert collector.updates == 1
    assert b"collector_updates 1.0" in service.metrics.render("", "")[1]


def test_a_registry_of_the_user_is_empty_after_close() -> None:
    """The registry in the settings has all metrics until `close`, and can then be used again."""
    registry = CollectorRegistry()
    for _ in range(2):
        service = Service(registry=registry)
        service.serve(answer(200))
        assert registry.get_sample_value("http_requests_total", {**ORDER, "status_code": "200"}) == 1
        service.metrics.close()
        service.metrics.close()
        assert list(registry.collect()) == []


def test_two_installs_cannot_share_a_registry() -> None:
    """The error names the remedy, and the metrics of the first install remain registered."""
    registry = CollectorRegistry()
    service = Service(registry=registry)
    with pytest.raises(ValueError, match="its own registry"):
        Service(registry=registry)
    service.serve(answer(200))
    assert service.value("http_requests_total", **ORDER, status_code="200") == 1


def test_an_own_registry_stays_readable_after_close() -> None:
    """Metrics in the install's own registry can be read after `close`."""
    service = Service()
    service.serve(answer(200))
    service.metrics.close()
    assert service.value("http_requests_total", **ORDER, status_code="200") == 1


def test_fifty_installs_are_independent() -> None:
    """Every install has its own registry and its own counts."""
    services = [Service() for _ in range(50)]
    services[0].serve(answer(200))
    assert [service.value("http_requests_total", **ORDER, status_code="200") for service in services[:2]] == [1, None]


def test_concurrent_requests_are_all_counted() -> None:
    """Requests that end in eight threads at the same time are all counted."""
    service = Service()
    record = service.serve(answer(200))

    def work() -> None:
        for _ in range(500):
            service.metrics.on_request_start(record)
            service.metrics.on_request_end(record)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.value("http_requests_total", **ORDER, status_code="200") == 4001
    assert service.value("http_request_duration_seconds_count", **ORDER) == 4001
    assert service.value("http_requests_in_progress") == 0


def test_instrumentator_functions_work_unchanged() -> None:
    """Functions of prometheus_fastapi_instrumentator get an Info and fill their own registry."""
    registry = CollectorRegistry()
    functions = (
        instrumentator.latency(metric_name="pfi_latency_seconds", registry=registry),
        instrumentator.request_size(metric_name="pfi_request_bytes", registry=registry),
        instrumentator.response_size(metric_name="pfi_response_bytes", registry=registry),
        instrumentator.combined_size(metric_name="pfi_bytes", registry=registry),
        instrumentator.requests(metric_name="pfi_requests_total", registry=registry),
        None,  # as returned by a factory for a metric that already exists
    )
    service = Service(instrumentator_functions=functions)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"Content-Length", b"2")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    record = service.serve(app, scope={"headers": [(b"content-length", b"5")]})
    labels = {"handler": "/orders/{order_id}", "method": "GET", "status": "201"}
    assert registry.get_sample_value("pfi_requests_total", labels) == 1
    assert registry.get_sample_value("pfi_latency_seconds_sum", labels) == record.duration
    assert registry.get_sample_value("pfi_request_bytes_sum", labels) == 5
    assert registry.get_sample_value("pfi_response_bytes_sum", labels) == 2
    assert service.internal_errors.counts == {}


def test_a_function_gets_request_and_response() -> None:
    """The Info has the request, the status, the response headers and both durations."""
    seen: list[Info] = []
    service = Service(instrumentator_functions=(seen.append,))
    record = service.serve(answer(200, b"a", b"b"), scope={"query_string": b"page=2"})
    (info,) = seen
    assert isinstance(info, Info)
    assert info.request.query_params["page"] == "2"
    assert info.response is not None
    assert (info.response.status_code, info.response.headers["x-kind"]) == (200, "shop")
    assert (info.modified_handler, info.modified_status, info.method) == (record.endpoint, "200", "GET")
    assert (info.modified_duration, info.modified_duration_without_streaming) == (record.duration, record.ttfb)


def test_a_function_that_raises_does_not_affect_the_next_one() -> None:
    """It is counted under `instrumentation`, and the next function is called."""
    seen: list[Info] = []

    def broken(info: Info) -> None:
        raise RuntimeError

    service = Service(instrumentator_functions=(broken, seen.append))
    service.serve(answer(200))
    assert service.internal_errors.counts == {"instrumentation": 1}
    assert len(seen) == 1
    assert seen[0].modified_duration_without_streaming == seen[0].modified_duration


def test_a_coroutine_function_raises_an_error() -> None:
    """A coroutine function cannot be awaited at the end of a request; `install` raises."""

    async def function(info: Info) -> None: ...

    with pytest.raises(SettingsError, match="functions that are neither async"):
        Service(instrumentator_functions=(function,))


def test_the_default_registry_follows_ours() -> None:
    """It is included with `include_default_registry` only, and once if it is also the install's registry."""
    gauge = prometheus_client.Gauge("somewhere_else", "Of another library.")
    try:
        assert b"somewhere_else 0.0" in Service(include_default_registry=True).metrics.render("", "")[1]
        assert b"somewhere_else" not in Service(include_default_registry=False).metrics.render("", "")[1]
        service = Service(include_default_registry=True, registry=REGISTRY)
        try:
            assert service.metrics.render("", "")[1].count(b"# TYPE somewhere_else gauge") == 1
        finally:
            service.metrics.close()
    finally:
        REGISTRY.unregister(gauge)

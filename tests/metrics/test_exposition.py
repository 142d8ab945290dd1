"""Holds the scrape response: its formats, headers and families."""

from __future__ import annotations

import gzip
import logging
import subprocess
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Info, Summary, generate_latest
from prometheus_client import Counter as StockCounter
from prometheus_client import Gauge as StockGauge
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.testclient import TestClient
from tools import needs

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.version import package_version
from fastapi_observe.metrics.exposition import (
    ENCODE_CHUNK_SIZE,
    OPENMETRICS,
    TEXT,
    HiddenFamilyWarning,
    ResponseBody,
    accepts_gzip,
    prefers_openmetrics,
    render,
)
from fastapi_observe.metrics.saturation import Saturation
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.metrics.system import SystemCollector
from fastapi_observe.records.operation import Operation
from fastapi_observe.records.request import RequestRecord
from fastapi_observe.settings.model import ObserveSettings

OPEN = "application/openmetrics-text"


async def _nothing(message: Any = None) -> Any:
    return None


def _used(internal_errors: InternalErrors | None = None, **settings: Any) -> MetricsService:
    """Return a service of which every metric has been used."""
    settings = {"include_default_registry": False, "max_series_per_metric": 3, **settings}
    internal_errors = internal_errors or InternalErrors()
    metrics = MetricsService(ObserveSettings(**settings), internal_errors)
    internal_errors("somewhere", RuntimeError())
    for status in (200, 404, 503):
        record: Any = RequestRecord(
            {"type": "http", "method": "GET", "path": "/"}, _nothing, _nothing, internal_errors, metrics.on_request_end
        )
        record.endpoint, record.status_code, record.duration, record.ttfb = '/o/{"id"}\\%s', status, 0.25, 0.1
        record.error_type = "LookupError" if status == 503 else None
        record.validation_errors = [("body.name", "missing")]
        record.sampled, record.trace_id, record.span_id, record.started_ns = (
            True,
            "a" * 32,
            "b" * 16,
            1_700_000_000_000_000_000,
        )
        metrics.on_request_start(record)
        metrics.on_request_end(record)
    ws: Any = type("WebSocket", (), {"websocket": True, "endpoint": "/ws", "close_code": "1000", "duration": 3.0})()
    metrics.on_response_start(ws)
    ws.count_received()
    ws.count_sent()
    metrics.on_request_end(ws)
    for kind, labels in (
        ("database", {"operation": "SELECT", "table": "orders"}),
        ("external", {"service": "payments", "operation": "charge"}),
        ("background", {"endpoint": "/orders"}),
    ):
        with Operation(metrics, kind, kind, labels):
            pass
    metrics.record_database_query("INSERT", "orders", 0.1, "IntegrityError")
    metrics.set_database_connections(active=1, idle=1, max=2, waiting=0)
    metrics.business.user_registered()
    metrics.business.user_logged_in()
    metrics.business.order_created()
    metrics.business.revenue(12, "EUR")
    custom = metrics.counter("carts_total", 'Carts\nof \\ "any" kind.', ("user",))
    for user in range(5):
        custom.labels(user).inc()
    metrics.gauge("temperature_celsius", "Outside.").set(float("-inf"))
    metrics.histogram("cart_value_euros", "Value.", buckets=(-5, 1e7)).observe(3)
    return metrics


def _body(metrics: MetricsService, accept: str = "") -> str:
    return metrics.render(accept, "")[1].decode()


def _stock_openmetrics(registry: CollectorRegistry) -> str:
    generate: Any = generate_openmetrics
    text: str = generate(registry).decode()
    return text


def _order(sample: Any) -> str:
    return f"{sample.name} {sorted(sample.labels.items())}"


def _parsed(text: str, *, openmetrics: bool) -> dict[str, Any]:
    parse: Any = parse_openmetrics if openmetrics else parse_text
    return {
        family.name: (family.type, family.documentation, sorted(family.samples, key=_order))
        for family in parse(text)
        if family.samples
    }


def test_the_text_format_equals_that_of_prometheus_client() -> None:
    """Parsed, our text format equals `generate_latest` of the same registry."""
    metrics = _used()
    ours, stock = _body(metrics), generate_latest(metrics.registry).decode()
    assert _parsed(ours, openmetrics=False) == _parsed(stock, openmetrics=False)


def test_openmetrics_equals_that_of_prometheus_client() -> None:
    """Parsed by the strict parser, it equals `generate_latest`, exemplars included."""
    metrics = _used()
    ours, stock = _body(metrics, OPEN), _stock_openmetrics(metrics.registry)
    assert ours.endswith("# EOF\n")
    parsed = _parsed(ours, openmetrics=True)
    assert parsed == _parsed(stock, openmetrics=True)
    requests = parsed["http_requests"][2]
    assert requests[0].exemplar.labels == {"trace_id": "a" * 32, "span_id": "b" * 16}


def test_both_formats_have_the_same_series() -> None:
    """Both formats have the same sample names."""
    metrics = _used()
    text = {sample[0] for _, _, samples in _parsed(_body(metrics), openmetrics=False).values() for sample in samples}
    wide = {
        sample[0] for _, _, samples in _parsed(_body(metrics, OPEN), openmetrics=True).values() for sample in samples
    }
    assert text == wide


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("text/plain;version=0.0.4", False),
        (OPEN, True),
        (f"{OPEN};version=1.0.0;q=0.75,{OPEN};version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.25,*/*;q=0.1", True),
        (f"{OPEN}; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        (f"{OPEN};version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4", True),
        (f"{OPEN};version=1.0.0;q=0.3,text/plain;q=0.7", False),
        (f"text/*, {OPEN}", True),
        (f"{OPEN};q=0", False),
        (f"{OPEN};q=0.0, text/plain;q=0", False),
        (f"{OPEN};q=high", False),
        (f"{OPEN};q=nan", False),
        (f'{OPEN.upper()};VERSION="1.0.0"', True),
        (";;;,,=;q=", False),
    ],
)
def test_the_format_is_the_one_that_the_client_prefers(accept: str, expected: bool) -> None:  # noqa: FBT001 - a table
    """OpenMetrics 1.0 is sent if its quality is at least that of the text format, which is the default."""
    assert prefers_openmetrics(accept) is expected


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("*", True),
        ("gzip;q=0, *", False),
        ("gzip;q=0.000", False),
    ],
)
def test_gzip_is_sent_to_clients_that_accept_it(accept_encoding: str, expected: bool) -> None:  # noqa: FBT001 - a table
    """It must be accepted by name or by `*`."""
    assert accepts_gzip(accept_encoding) is expected


def test_headers_describe_the_body() -> None:
    """Headers have content type, encoding, length and `Vary`; the compressed body is the same text."""
    metrics = _used()
    headers, body = metrics.render("", "")
    assert dict(headers) == {
        b"content-type": TEXT,
        b"vary": b"accept, accept-encoding",
        b"content-length": str(len(body)).encode(),
    }
    packed_headers, packed = metrics.render(OPEN, "gzip")
    described = dict(packed_headers)
    assert described[b"content-type"] == OPENMETRICS
    assert described[b"content-encoding"] == b"gzip"
    assert described[b"content-length"] == str(len(packed)).encode()
    assert gzip.decompress(packed) == metrics.render(OPEN, "")[1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_long_text_is_encoded_in_chunks(packed: bool) -> None:  # noqa: FBT001 - a table
    """Wherever a chunk ends, the body is the complete text, with escapes for lone surrogates."""
    text = ("é\ud800" + "x" * 7) * ENCODE_CHUNK_SIZE
    body = ResponseBody(gzip=packed)
    body.add(text[:3])
    body.add(text[3:])
    found = body.end()
    assert (gzip.decompress(found) if packed else found) == text.encode("utf-8", "backslashreplace")
    assert body.size == len(text)


def test_created_series_are_left_out() -> None:
    """`_created` series are left out, ours and those of other libraries."""
    registry = CollectorRegistry()
    StockCounter("elsewhere", "Of another library.", registry=registry).inc()
    stock = generate_latest(registry)
    assert b"elsewhere_created" in stock
    _, body = render([registry, _used().registry], "", "", InternalErrors())
    assert b"elsewhere_total 1.0" in body
    assert b"_created " not in body
    assert b"_created{" not in body
    # The families of the other library are unchanged.
    assert generate_latest(registry) == stock


def test_the_first_family_of_a_name_wins() -> None:
    """A family of a later registry is left out if its name, or a name of its samples, is taken."""
    other = CollectorRegistry()
    StockCounter("http_requests_total", "Of another library.", registry=other).inc(77)
    StockGauge("http_request_size_bytes_count", "Of another library.", registry=other).set(77)
    Summary("waits_seconds", "Of another library.", registry=other).observe(1)
    Info("build", "Of another library.", registry=other).info({"commit": "abc"})
    metrics = _used()
    for accept in ("", OPEN):
        _, body = render([metrics.registry, other], accept, "", InternalErrors())
        assert b" 77" not in body
        assert b"waits_seconds_count 1.0" in body
        assert b'build_info{commit="abc"} 1.0' in body
        assert body.count(b"# TYPE http_requests counter" if accept else b"# TYPE http_requests_total counter") == 1


def test_a_name_is_taken_before_its_first_sample() -> None:
    """A metric without series has its name, so that a family of another library does not come and go."""
    other = CollectorRegistry()
    StockCounter("db_queries_total", "Of another library.", registry=other).inc(77)
    metrics = MetricsService(ObserveSettings(include_default_registry=False), InternalErrors())
    assert b"db_queries" not in render([metrics.registry, other], "", "", InternalErrors())[1]


class _Breaks:
    """Yields one family, then raises."""

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Any:
        yield GaugeMetricFamily("before_it_raises", "Fine.", value=1)
        raise RuntimeError


@pytest.mark.parametrize("accept", ["", OPEN])
def test_a_collector_that_raises_is_left_out(accept: str) -> None:
    """It is skipped and counted; all other families are in the response."""
    internal_errors = InternalErrors()
    metrics = _used(internal_errors)
    metrics.registry.register(_Breaks())
    metrics.gauge("broken", "Raises.").set_function(lambda: 1 // 0)
    strange = GaugeMetricFamily("strange", "No UTF-8.", labels=["path"])
    strange.add_metric(["\ud800"], 1)
    metrics.registry.register(type("Strange", (), {"collect": lambda self: [strange]})())
    body = _body(metrics, accept)
    assert "before_it_raises 1.0" in body
    assert "orders_created_total 1\n" in body
    assert "broken" not in body
    assert "strange" not in body
    assert internal_errors.counts["collect"] == 3


def test_target_info_comes_first() -> None:
    """The target info of a registry is its first family."""
    registry = CollectorRegistry(target_info={"region": "north"})
    assert b'target_info{region="north"} 1.0' in render([registry], "", "", InternalErrors())[1]


def test_another_kind_of_registry_is_read_as_a_whole() -> None:
    """Any object with `collect` works, such as a restricted registry."""
    part = _used().registry.restricted_registry(["orders_created_total"])
    body = render([part], "", "", InternalErrors())[1]
    assert b"orders_created_total 1.0" in body
    assert b"http_requests_total" not in body


async def test_promtool_finds_nothing() -> None:
    """`promtool check metrics` accepts the complete output without a remark."""
    promtool = needs("promtool")
    metrics = _used(include_default_registry=True)
    metrics.register_collector(SystemCollector(ObserveSettings(), InternalErrors()))
    saturation = Saturation()
    metrics.register_collector(saturation)
    saturation.start()
    try:
        body = metrics.render("", "")[1]
    finally:
        saturation.stop()
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)  # noqa: ASYNC221, S603 - promtool's own path
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


CONTRACT = """
http_requests_total http_request_duration_seconds http_request_size_bytes http_response_size_bytes
http_requests_in_progress http_request_errors_total http_time_to_first_byte_seconds websocket_connections_active
websocket_messages_total websocket_connection_duration_seconds background_tasks_total background_task_duration_seconds
request_validation_errors_total db_queries_total db_query_duration_seconds db_query_errors_total db_connections_active
db_connections_idle db_connections_max db_connections_waiting external_requests_total external_request_duration_seconds
user_registrations_total user_logins_total orders_created_total revenue_generated_total memory_usage_bytes
cpu_usage_percent disk_usage_bytes asyncio_tasks asyncio_event_loop_lag_seconds threadpool_threads_busy
threadpool_threads_max threadpool_waiting python_gc_pause_seconds fastapi_observe_internal_errors_total
fastapi_observe_series_overflow_total fastapi_observe_series fastapi_observe_info
"""


async def test_every_documented_family_has_help() -> None:
    """The families of this signal and the process are in the response, each with a help text."""
    metrics = _used()
    metrics.register_collector(SystemCollector(ObserveSettings(), InternalErrors()))
    saturation = Saturation()
    metrics.register_collector(saturation)
    saturation.start()
    try:
        body = _body(metrics)
    finally:
        saturation.stop()
    helped = {line.split(" ")[2] for line in body.splitlines() if line.startswith("# HELP") and line.endswith(".")}
    assert set(CONTRACT.split()) - helped == set()


def test_the_version_is_that_of_the_distribution() -> None:
    """A distribution that is not installed has no version, and no error either."""
    assert package_version("prometheus-client")[0].isdigit()
    assert package_version("no-such-distribution") == "unknown"


def test_hidden_families_of_another_library_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    """The warning names them and the remedy. Families that are not hidden by ours are not in it."""
    app = FastAPI()
    theirs = CollectorRegistry()
    Instrumentator(registry=theirs).instrument(app)
    StockCounter("somewhere_else_total", "Of another library.", registry=theirs).inc()
    TestClient(app).get("/nothing")
    report = HiddenFamilyWarning()
    registries = [_used().registry, theirs, theirs]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fastapi_observe"):
        for accept in ("", OPEN):
            render(registries, accept, "", InternalErrors(), report)
    (warning,) = [record.getMessage() for record in caplog.records]
    for name in ("http_requests_total", "http_request_duration_seconds", "metric_namespace='...'"):
        assert name in warning
    for name in ("highr", "somewhere_else"):
        assert name not in warning


def test_metrics_of_the_process_in_two_registries_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """The default registry has the same `process_*` as ours: nothing is lost, so there is no warning."""
    metrics = _used(include_default_registry=True)
    metrics.register_collector(SystemCollector(ObserveSettings(), InternalErrors()))
    metrics.render("", "")
    assert not [record for record in caplog.records if "another library" in record.getMessage()]

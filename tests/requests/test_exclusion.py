"""An excluded request, and everything inside it, is reported by no signal; the app's own log lines remain."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import BackgroundTasks, FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import get_host_port_url_tuple
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.http import parse_excluded_urls
from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

import fastapi_observe
from fastapi_observe.requests.exclusion import RequestFilter

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

ALL = 7


def scope(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    """Return the scope of a request."""
    return {"type": "http", "method": method, "path": path, "server": ("127.0.0.1", 8000), "scheme": "http", **more}


@pytest.mark.parametrize(
    ("paths", "patterns", "out", "reported"),
    [
        ((), (), (), ("/a",)),
        (("/a", "/b/*"), (), ("/a", "/b/", "/b/c"), ("/a/", "/b", "/c")),
        (("HEAD /a", "get /b*"), (), ("/b", "/bc"), ("/a",)),
        ((), ("/v[0-9]+/health$",), ("/v1/health",), ("/v/health", "/v1/health/x")),
        # As opentelemetry-instrumentation-fastapi reads OTEL_PYTHON_FASTAPI_EXCLUDED_URLS.
        ((), ("^https?://[^/]+/$",), ("/",), ("/healthz",)),
        ((), ("http://127.0.0.1.*/healthz",), ("/healthz",), ("/",)),
        ((), ("healthz$",), ("/x/healthz",), ("/healthz/x",)),
        ((), (":8000/h",), ("/h",), ("/x",)),
    ],
)
def test_paths_and_patterns(paths: Any, patterns: Any, out: Any, reported: Any) -> None:
    """Paths are exact or end with `*`, optionally after a method; patterns are searched in the URL."""
    excluded = RequestFilter({ALL: paths}, patterns, ALL)
    assert bool(excluded) is bool(paths or patterns)
    assert {excluded.excluded_signals(scope(path)) for path in out} <= {ALL}
    assert {excluded.excluded_signals(scope(path)) for path in reported} == {0}


def test_methods_and_single_signals() -> None:
    """A method limits an entry; entries of several signals add up; a WebSocket has no method; port 80 is left out."""
    excluded = RequestFilter({ALL: ["OPTIONS *"], 1: ["/a/*"], 4: ["/a/b"], 2: ["POST /a/b"]}, ["//x/only"], ALL)
    assert excluded.excluded_signals(scope("/any", "OPTIONS")) == ALL
    assert excluded.excluded_signals(scope("/any")) == 0
    assert excluded.excluded_signals(scope("/a/b")) == 5
    assert excluded.excluded_signals(scope("/a/b", "POST")) == 7
    assert excluded.excluded_signals({"type": "websocket", "path": "/a/c"}) == 1
    assert excluded.excluded_signals(scope("/only", server=("x", 80), scheme="https")) == ALL


def test_patterns_match_as_in_contrib() -> None:
    """Patterns of `OTEL_PYTHON_FASTAPI_EXCLUDED_URLS` match what OpenTelemetry's instrumentation matches."""
    host: list[tuple[bytes, bytes]] = [(b"accept", b"*/*"), (b"host", b"shop.example:8000")]
    scopes: list[dict[str, Any]] = [
        {"type": "http", "scheme": scheme, "server": server, "headers": headers, "path": path, "query_string": b"a=b"}
        for scheme in ("http", "https")
        for server in (("127.0.0.1", 80), ("127.0.0.1", 8000), ("::1", 443), None)
        for headers in (host, [])
        for path in ("/", "/healthz", "/client/7/info", "/client/7/info/more")
    ]
    for pattern in (
        "^https?://[^/]+/$",
        "http://127.0.0.1.*/healthz",
        "client/.*/info$,healthz",
        "localhost",
        "shop",
        ":8000/",
        "^/healthz",
        "a=b",
    ):
        contrib, ours = parse_excluded_urls(pattern), RequestFilter({}, pattern.split(","), ALL)
        for each in scopes:
            url = get_host_port_url_tuple(each)[2]  # type: ignore[no-untyped-call]
            assert bool(ours.excluded_signals(each)) == contrib.url_disabled(url), (pattern, url)


def make_app(engine: Any, observe: Callable[[], Any]) -> FastAPI:
    """Make an app whose requests query, call, measure and log."""
    app = FastAPI()

    @app.get("/health")
    @app.get("/orders")
    def orders(tasks: BackgroundTasks) -> int:
        with engine.connect() as connection:
            for _ in range(20):
                connection.execute(text("SELECT 1"))
        with observe().operation("check disk"), observe().tracing.span("own"):
            pass
        with fastapi_observe.operation("from afar"), trace.get_tracer("other").start_as_current_span("direct"):
            logging.getLogger("shop").info("healthy")
        with observe().external.call("billing", "ping") as call:
            call.set_status_code(500)
        tasks.add_task(len, "task")
        return int(is_instrumentation_enabled())

    return app


OPERATIONS = ("db_queries_total", "operations_total", "external_requests_total", "background_tasks_total")


def counts(seen: Seen) -> dict[str, float]:
    """Return the totals that requests and operations are counted in."""
    return {name: seen.total(name) for name in ("http_requests_total", "db_repeated_queries_total", *OPERATIONS)}


@pytest.mark.parametrize("sampler", ["parentbased_traceidratio", "always_on"])
def test_nothing_inside_an_excluded_request_is_reported(observed: Callable[..., Seen], sampler: str) -> None:
    """No span, no line about operations, no metric, whatever the sampler; the app's line is written."""
    engine = create_engine("sqlite://")
    app = make_app(engine, lambda: seen.observe)
    seen = observed(
        app,
        engines=[engine],
        exclude_paths=("/health",),
        sampler=sampler,
        slow_query_threshold=1e-9,
        log_level="debug",
    )
    before = counts(seen)
    assert TestClient(app).get("/health").json() == 0
    assert seen.spans == []
    assert counts(seen) == before
    assert [line["message"] for line in seen.lines if line["logger"].startswith("fastapi_observe")] == []
    assert [line["message"] for line in seen.lines if line["logger"] == "shop"] == ["healthy"]
    assert TestClient(app).get("/orders").json() == 1
    assert len(seen.server_spans) == 1
    assert {name: value for name, value in counts(seen).items() if value == before[name]} == {}
    assert seen.observe.internal_errors.counts == {}


def test_work_of_its_own_is_reported(observed: Callable[..., Seen]) -> None:
    """A job, and a block outside the request, are not part of the excluded request that starts them."""
    app = FastAPI()
    seen = observed(app, exclude_paths=["/excluded"])

    @app.get("/excluded")
    async def start() -> None:
        with seen.observe.operation("inside"):
            pass
        with seen.observe.job("mail"), seen.observe.operation("in job"):
            pass
        with seen.observe.detached(), seen.observe.operation("outside"):
            pass

    assert TestClient(app).get("/excluded").status_code == 200
    assert sorted(span.name for span in seen.spans) == ["in job", "mail", "outside"]


def test_a_provider_with_another_sampler(observed: Callable[..., Seen]) -> None:
    """No spans are made with the user's provider either, although it samples everything."""
    exporter, engine = InMemorySpanExporter(), create_engine("sqlite://")
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app(engine, lambda: seen.observe)
    seen = observed(app, engines=[engine], exclude_paths=("/health",), tracer_provider=provider)
    TestClient(app).get("/health")
    assert [span.name for span in exporter.get_finished_spans()] == []


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_excluded_from_one_signal(observed: Callable[..., Seen], signal: str) -> None:
    """The other two report the request and its operations as usual."""
    engine = create_engine("sqlite://")
    app = make_app(engine, lambda: seen.observe)
    seen = observed(app, engines=[engine], exclude_from={signal: ["GET /heal*"]}, slow_query_threshold=1e-9)
    before = counts(seen)
    TestClient(app).get("/health")
    own_lines = [line for line in seen.lines if line["logger"].startswith("fastapi_observe")]
    assert (len(seen.server_spans), len(seen.spans) > 5) == ((0, False) if signal == "traces" else (1, True))
    assert {name for name, value in counts(seen).items() if value == before[name]} == (
        set(before) if signal == "metrics" else set()
    )
    assert (len(seen.request_lines), len(own_lines) > 20) == ((0, False) if signal == "logs" else (1, True))
    assert [line["message"] for line in seen.lines if line["logger"] == "shop"] == ["healthy"]
    assert (seen.sample("http_requests_in_progress") or 0) == 0
    if signal != "logs":
        (line,) = seen.request_lines
        assert line["trace_id"]
        assert line["request_id"]
    assert seen.observe.internal_errors.counts == {}


def test_the_next_request_of_a_connection_is_reported(observed: Callable[..., Seen]) -> None:
    """The context of an excluded request, inherited by the next one, does not exclude it."""
    app = FastAPI()
    seen = observed(app, exclude_paths=("/health",))
    context = seen.observe.exclude_request()
    assert trace.get_current_span(context).get_span_context().is_valid
    from fastapi_observe.internal.opentelemetry import OTEL_CONTEXT  # noqa: PLC0415 - as a server leaves it

    token = OTEL_CONTEXT.set(context)
    try:
        TestClient(app).get("/x")
    finally:
        OTEL_CONTEXT.reset(token)
    assert len(seen.server_spans) == 1


def test_an_operation_used_in_both_kinds_of_requests(observed: Callable[..., Seen]) -> None:
    """One object, first inside an excluded request, is reported in the next one."""
    app = FastAPI()

    @app.get("/{name}")
    def endpoint(name: str) -> str:
        with shared[0] as operation:
            # Internal errors of an operation are counted for its app, also where signals do not report it.
            assert operation.reporter.internal_errors is seen.observe.internal_errors  # type: ignore[attr-defined]
            return name

    seen = observed(app, exclude_paths=("/out",))
    shared = [seen.observe.operation("shared")]
    client = TestClient(app)
    for path in ("/out", "/in", "/out", "/in"):
        client.get(path)
    assert seen.total("operations_total") == 2
    assert [span.name for span in seen.spans].count("shared") == 2


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ('{"logs": ["/a"]}', {"logs": ("/a",)}),
        ("logs=/a,traces=OPTIONS *,logs=/b/*", {"logs": ("/a", "/b/*"), "traces": ("OPTIONS *",)}),
    ],
)
def test_exclude_from_in_the_environment(monkeypatch: pytest.MonkeyPatch, given: str, read: Any) -> None:
    """`OBSERVE_EXCLUDE_FROM` is JSON or a list of pairs."""
    monkeypatch.setenv("OBSERVE_EXCLUDE_FROM", given)
    assert fastapi_observe.ObserveSettings().exclude_from == read


@pytest.mark.parametrize(
    "wrong", [{"exclude_from": {"spans": ["/a"]}}, {"exclude_paths": ["*"]}, {"exclude_paths": ["GET x"]}]
)
def test_invalid_exclusions(wrong: Any) -> None:
    """An unknown signal, a path without a slash and everything of everything are errors."""
    with pytest.raises(fastapi_observe.SettingsError, match=next(iter(wrong))):
        fastapi_observe.ObserveSettings(**wrong)

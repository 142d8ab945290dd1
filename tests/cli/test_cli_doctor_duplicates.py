"""The check `duplicates` of `doctor`: what reports the same a second time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from collectors import Collector
from fastapi import FastAPI, Request, Response
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_fastapi_instrumentator import Instrumentator
from sqlalchemy import create_engine
from variables import remove_variables

from fastapi_observe import Observability, install
from fastapi_observe.console.api import Api
from fastapi_observe.console.signal import ConsoleProcessor
from fastapi_observe.console.store import Store
from fastapi_observe.doctor.check import Check
from fastapi_observe.doctor.duplicates import check_duplicates
from fastapi_observe.doctor.instrumentation import export_target
from fastapi_observe.internal.version import documentation_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import Seen


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the machine."""
    remove_variables(monkeypatch)


@pytest.fixture
def checked(observed: Callable[..., Seen]) -> Callable[..., Check]:
    """Return a function that installs on an app and returns the check."""

    def check(app: FastAPI | None = None, **options: Any) -> Check:
        app = FastAPI(title="shop") if app is None else app
        install(app, **{"otlp_endpoint": None, "instrument": [], **options})
        return check_one(app.state.observe)

    return check


def check_one(observe: Observability) -> Check:
    """Return the check; the last one if there are several."""
    *_, check = check_duplicates(observe)
    return check


def test_what_is_there_twice(checked: Callable[..., Check]) -> None:
    """Another route of the same path, another middleware and a console handler of one's own are named."""
    app = FastAPI(title="shop")
    Instrumentator().instrument(app).expose(app)
    check = checked(app)
    assert check.verdict == "wrong"
    assert "its own route /metrics" in check.found

    app = FastAPI(title="shop")
    Instrumentator().instrument(app)
    assert "PrometheusInstrumentatorMiddleware of prometheus_fastapi_instrumentator" in checked(app).found

    class Formatter(logging.Formatter):
        """A formatter that is not replaced."""

    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logger = logging.getLogger("shop.orders")
    logger.addHandler(handler)
    try:
        check = checked()
    finally:
        logger.removeHandler(handler)
    assert "'shop.orders' writes to the console itself" in check.found
    assert "(fastapi-observe replaces only handlers with a plain logging.Formatter)" in check.found
    handler.setFormatter(None)
    app = FastAPI(title="shop")
    install(app)
    logger.addHandler(handler)  # in a request, say
    try:
        check = check_one(app.state.observe)
    finally:
        logger.removeHandler(handler)
    assert "(fastapi-observe replaces those that are there when the app starts)" in check.found
    assert check.step == f"see {documentation_url('how-to/logging')}"
    assert checked(capture_logging=False).verdict == "ok"


def test_middleware_of_contrib(checked: Callable[..., Check]) -> None:
    """It adds no span, so there is nothing to remove."""
    app = FastAPI(title="shop")
    app.add_middleware(OpenTelemetryMiddleware)
    found = "the middleware OpenTelemetryMiddleware of opentelemetry adds no span; its hooks and metrics stay"
    assert checked(app) == Check("duplicates", "ok", found)


def test_ddtrace(checked: Callable[..., Check], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named if it traces the app's framework, which its variables prevent; not because it is imported."""
    monkeypatch.setattr("starlette._datadog_patch", True, raising=False)
    assert checked().verdict == "ok"
    monkeypatch.setattr("fastapi._datadog_patch", True, raising=False)
    check = checked(FastAPI(title="shop"))
    assert (check.verdict, check.found) == ("look", "ddtrace makes spans of its own for each request")
    assert check.step == "set DD_TRACE_FASTAPI_ENABLED=false and DD_TRACE_STARLETTE_ENABLED=false"
    assert checked(tracing=False).verdict == "ok"


def test_a_client_that_is_measured_twice(observed: Callable[..., Seen]) -> None:
    """An instrumentor with another provider is named; with ours its spans become one with those of our client."""
    app = FastAPI(title="shop")
    observe = observed(app, instrument=[]).observe
    with httpx.Client() as single, httpx.Client() as doubled:
        for client, provider in ((single, None), (doubled, TracerProvider())):
            observe.instrument_client(client)
            HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
        check = check_one(observe)
        assert (check.verdict, check.step) == ("look", "instrument the client with one of the two only")
        assert check.found == "HTTPXClientInstrumentor makes a second span of each call of 1 instrumented client"
        HTTPXClientInstrumentor.uninstrument_client(doubled)
        assert check_one(observe).verdict == "ok"
        HTTPXClientInstrumentor.uninstrument_client(single)


def test_all_clients_are_measured_twice(observed: Callable[..., Seen]) -> None:
    """An instrumentor of all clients with another provider is named before the app has made a client."""
    names = ("calls of HttpClientDep have two spans", "makes a second span of each call of 1 instrumented client")
    for provider, (before, after) in ((None, ("", "")), (TracerProvider(), names)):
        HTTPXClientInstrumentor().instrument(tracer_provider=provider)
        try:
            observe = observed(FastAPI(title="shop"), instrument=[]).observe
            checks = [check_one(observe)]
            with httpx.Client() as client:
                observe.instrument_client(client)
                checks.append(check_one(observe))
        finally:
            HTTPXClientInstrumentor().uninstrument()
        for check, calls in zip(checks, (before, after), strict=True):
            assert check.verdict == ("look" if calls else "ok")
            assert check.found.endswith(calls) or not calls


def test_an_engine_that_is_measured_twice(observed: Callable[..., Seen]) -> None:
    """Only an engine that both measure is named."""
    engine, other = create_engine("sqlite://"), create_engine("sqlite://")
    app = FastAPI(title="shop")
    observe = observed(app, engines=[engine], instrument=[]).observe
    tracer = TracerProvider().get_tracer("contrib")
    engine_tracer: Any = EngineTracer
    engine_tracer(tracer, other, None)
    assert check_one(observe).verdict == "ok"
    engine_tracer(tracer, engine, None)
    try:
        check = check_one(observe)
    finally:
        engine_tracer.remove_all_event_listeners()
    assert check.found == "SQLAlchemyInstrumentor makes a second span of each call of 1 instrumented engine"


def test_spans_that_are_exported_twice(checked: Callable[..., Check]) -> None:
    """The same exporter in two processors, and one that sends to otlp_endpoint, are named; another target is not."""
    exporter = InMemorySpanExporter()
    twice = [SimpleSpanProcessor(exporter), BatchSpanProcessor(exporter)]
    provider = TracerProvider()
    provider.add_span_processor(twice[0])
    for options in ({"span_processors": twice}, {"span_processors": twice[1:], "tracer_provider": provider}):
        check = checked(**options)
        assert (check.verdict, check.found) == ("look", "each span is exported 2 times (InMemorySpanExporter)")
    with Collector() as collector, Collector() as other:
        for url, verdict in ((collector.url, "look"), (other.url, "ok")):
            processor: Any = BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces"))
            check = checked(span_processors=[processor], otlp_endpoint=collector.url)
            assert check.verdict == verdict
            processor.shutdown()


class ErrorProcessor(BatchSpanProcessor):
    """Exports failed spans only."""


def test_exporters_that_do_not_send_the_same(checked: Callable[..., Check]) -> None:
    """A subclass may choose among the spans, and a header may name a tenant: nothing is to be removed."""
    with Collector() as collector:
        url = f"{collector.url}/v1/traces"

        def exporter(**headers: str) -> OTLPSpanExporter:
            return OTLPSpanExporter(url, headers=headers)

        cases: tuple[tuple[list[Any], str | None, str], ...] = (
            ([ErrorProcessor(exporter()), ErrorProcessor(exporter())], None, "ok"),
            ([ErrorProcessor(exporter())], collector.url, "ok"),
            ([BatchSpanProcessor(exporter(tenant="a")), BatchSpanProcessor(exporter(tenant="b"))], None, "ok"),
            ([BatchSpanProcessor(exporter(tenant="a"))], collector.url, "ok"),
            ([BatchSpanProcessor(exporter(tenant="a")), BatchSpanProcessor(exporter(Tenant="a"))], None, "look"),
        )
        for processors, endpoint, verdict in cases:
            assert checked(span_processors=processors, otlp_endpoint=endpoint).verdict == verdict
            for processor in processors:
                processor.shutdown()


@pytest.mark.parametrize("url", ["localhost:4318", "http://127.0.0.1:4318/v1/traces/", "https://[::1]:4318/v1/traces"])
def test_names_of_the_same_target(url: str) -> None:
    """The loopback address has three names, and the path may be left out."""
    assert export_target(object(), url) == "localhost:4318"
    assert export_target(object(), f"{url}x") != "localhost:4318"


def test_a_second_server_span(observed: Callable[..., Seen]) -> None:
    """In development the running app names what starts one in its requests, on the console and for `doctor`."""
    app = FastAPI(title="shop")

    @app.middleware("http")
    async def trace_again(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        kind = SpanKind.SERVER if request.url.path == "/doubled" else SpanKind.INTERNAL
        with trace.get_tracer("shop").start_as_current_span("mine", kind=kind):
            return await call_next(request)

    seen = observed(app, environment="development", console=True)
    store = Store()
    seen.observe.tracing.add_span_processor(ConsoleProcessor(store))
    api = Api(seen.observe, store, "instance")
    client = TestClient(app)
    for path, problems, verdict in (("/", [], "ok"), ("/doubled", ["mine (shop)"], "look")):
        client.get(path)
        found = [each["detail"].partition(":")[0] for each in api.live(0, "")["problems"] if "server" in each["kind"]]
        assert found == problems
        (check,) = (each for each in api.info()["checks"] if each["subject"] == "duplicates")
        assert check["verdict"] == verdict
    assert check["found"] == "mine (shop) is a second server span of the same request"


def test_a_server_span_with_a_hostile_name(observed: Callable[..., Seen]) -> None:
    """Its name is shortened and escaped on the console and in its summary for terminals."""
    app = FastAPI(title="shop")

    @app.get("/nested")
    async def nested() -> None:
        name = "S\x1b]0;title\x07\x1b[2J\nok    fake" + "y" * 5000
        with trace.get_tracer("evil\x1b[31m\n").start_as_current_span(name, kind=SpanKind.SERVER):
            pass

    seen = observed(app, environment="development", console=True)
    store = Store()
    seen.observe.tracing.add_span_processor(ConsoleProcessor(store))
    api = Api(seen.observe, store, "instance")
    TestClient(app).get("/nested")
    (check,) = (each for each in api.info()["checks"] if each["subject"] == "duplicates")
    summary = api.summary()
    for text in (check["found"], *summary.splitlines()):
        assert text.isprintable()
        assert len(text) < 500
    assert "S\\x1b]0;title\\x07\\x1b[2J" in summary

"""An internal error, or an exception of an object that the user passed in, never reaches the request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest
from comparison import Answer, Server, ask, bare, http_scope, websocket_scope
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from injection import Watched, failing
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from prometheus_client import CollectorRegistry

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.middleware import ObserveMiddleware
from fastapi_observe.observability import Observability
from fastapi_observe.records.signal import is_implemented
from fastapi_observe.traces.processors import GuardedProcessor
from fastapi_observe.traces.user_spans import SpanScope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Seen


# The attribute of `Observability` for each name of a signal.
ATTRIBUTES = {"traces": "tracing", "metrics": "metrics", "logs": "logs"}
METHODS = ("on_request_start", "on_response_start", "on_request_end", "on_operation_start", "on_operation_end")


def make_app() -> FastAPI:
    """Make a small app in which everything that we measure happens."""
    app = FastAPI()

    @app.get("/ok")
    async def ok() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/error")
    async def error() -> None:
        raise ZeroDivisionError("by zero")

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        return StreamingResponse(parts())

    @app.get("/work")
    async def work(request: Request) -> list[int]:
        observe: Observability | None = getattr(request.app.state, "observe", None)
        nothing = contextlib.nullcontext()
        with observe.db.query("SELECT", table="orders") if observe else nothing:
            rows = [1, 2]
        async with observe.external.call("billing", "get") if observe else nothing:
            rows.append(3)
        with observe.tracing.span("step") if observe else nothing:
            rows.append(4)
        return rows

    @app.get("/failing-work")
    async def failing_work(request: Request) -> None:
        observe: Observability | None = getattr(request.app.state, "observe", None)
        with observe.db.query("SELECT", table="orders") if observe else contextlib.nullcontext():
            raise LookupError("no such row")

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(len, "task")
        return "queued"

    @app.websocket("/ws")
    async def websocket(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())
        await ws.close()

    return app


PATHS = ("/ok", "/none", "/error", "/items/x", "/items/7", "/stream", "/work", "/failing-work", "/background", "/ws")


async def _suite(app: Any) -> list[Answer]:
    answers = []
    for path in (*PATHS, *PATHS):
        messages: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]
        headers = [(b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
        scope = http_scope(path, headers=headers)
        if path == "/ws":
            scope = websocket_scope(headers=headers)
            messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}]
        answers.append(await ask(app, scope, Server(messages, leaves=False), []))
    return answers


def assert_served(app: Any) -> None:
    """Every request of the suite gets the response, and the exception, of the bare app."""
    assert asyncio.run(_suite(app)) == asyncio.run(_suite(bare(make_app())))


def fault_lines(seen: Seen) -> list[str]:
    """Return the messages about internal errors, one for each line."""
    messages = [line["message"] for line in seen.lines if line["logger"] == "fastapi_observe"]
    return [message for message in messages if message.startswith("Internal error in fastapi-observe")]


def assert_internal_errors(seen: Seen, *sites: str) -> None:
    """Each site was counted and logged once; no other failed."""
    counts = seen.observe.internal_errors.counts
    assert set(counts) == set(sites)
    assert all(counts.values())
    logged = [line.partition("(")[2].partition(":")[0] for line in fault_lines(seen)]
    assert sorted(logged) == sorted(sites)


def boom(*_: Any, **__: Any) -> Any:
    """Fail as a bug in the package would."""
    raise RuntimeError("internal error")


def test_the_suite_has_no_internal_errors(observed: Callable[..., Seen]) -> None:
    """The requests of this module cause no internal error by themselves."""
    app = make_app()
    seen = observed(app)
    assert_served(app)
    assert_internal_errors(seen)
    assert seen.sample("http_requests_in_progress") == 0
    assert seen.total("http_requests_total") == 18
    assert len(seen.server_spans) == len(seen.request_lines) == 20


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signal", ATTRIBUTES)
def test_a_signal_that_fails_does_not_affect_requests(observed: Callable[..., Seen], signal: str, method: str) -> None:
    """Each method of each signal may raise: the request is served, the other signals report it."""
    app = make_app()
    seen = observed(app)
    function = getattr(getattr(seen.observe, ATTRIBUTES[signal]), method)
    with failing(function):
        assert_served(app)
    is_called = is_implemented(function) or method not in {"on_request_start", "on_operation_start"}
    assert_internal_errors(seen, *([f"{signal}.{method}"] if is_called else []))
    if signal != "traces" or method not in {"on_request_start", "on_request_end"}:
        assert len(seen.server_spans) == 20
    if signal != "logs" or method not in {"on_request_start", "on_request_end"}:
        assert len(seen.request_lines) == 20
    if signal != "metrics" or method not in {"on_request_start", "on_request_end"}:
        assert seen.sample("http_requests_in_progress") == 0
        assert seen.total("http_requests_total") == 18


INSIDE: dict[str, str] = {
    "requests.routing:RouteTemplates.template": "routing",
    "records.request:RequestRecord.__init__": "request.start",
    "records.request:RequestRecord._record_start": "request.send",
    "records.request:RequestRecord._record_chunk": "request.send",
    "records.request:RequestRecord._end": "request.end",
    "records.request:RequestRecord._set_outcome": "request.set_outcome",
    "records.websocket:WebSocketRecord._set_outcome": "request.set_outcome",
    "records.websocket:WebSocketRecord._close": "request.send",
    "requests.response_headers:ResponseHeaders.prepare": "response_headers",
    "observability:Observability._start_response": "request.send",
    "observability:Observability.start_request": "request.start",
    "observability:Observability.on_startup": "request.start",
    "observability:Observability.background_operation": "background",
    "traces.service:TracingService._extract_parent": "traces.on_request_start",
    "requests.validation:validation_error_locations": "validation",
    "requests.routing:mounted_apps": "mounted",
    "install:_warn_shadowed_route": "middleware.outer",
    "internal.fastapi:validation_error_types": "middleware.inner",
}
"""Functions between the middleware and the signals, and what their internal errors are counted as."""


@pytest.mark.parametrize("name", INSIDE)
def test_an_internal_error_does_not_affect_requests(observed: Callable[..., Seen], name: str) -> None:
    """Whatever fails between the middleware and the signals, the request is served and the gauge returns to 0."""
    app = make_app()
    seen = observed(app)
    with failing(name):
        assert_served(app)
    assert_internal_errors(seen, INSIDE[name])
    assert (seen.sample("http_requests_in_progress") or 0) == 0


def test_an_internal_error_at_the_end_of_a_request(observed: Callable[..., Seen]) -> None:
    """If the report itself fails the signals get no report, but the request is served."""
    for name in (
        "records.request:RequestRecord._report",
        "records.request:RequestRecord.finish",
        "observability:Observability._end_request",
        "requests.exclusion:RequestFilter.excluded_signals",
    ):
        app = make_app()
        seen = observed(app, exclude_paths=("/elsewhere",))
        with failing(name):
            assert_served(app)
        assert set(seen.observe.internal_errors.counts) <= {"request.end", "request.finish", "request.start"}
        assert seen.observe.internal_errors.counts
        seen.observe.close()


def test_metrics_that_cannot_be_rendered_are_a_plain_500(observed: Callable[..., Seen]) -> None:
    """An error while rendering is counted; the server sees no exception."""
    app = make_app()
    seen = observed(app)
    with failing(seen.observe.metrics.render):
        answer = asyncio.run(ask(app, http_scope("/metrics"), Server([]), []))
    assert answer.raised is None
    assert answer.messages[0]["status"] == 500
    assert answer.messages[1]["body"] == b"Cannot render the metrics."
    assert_internal_errors(seen, "metrics.render")


def test_a_failing_startup_and_shutdown_do_not_affect_the_lifespan(observed: Callable[..., Seen]) -> None:
    """The app's lifespan is the same as without install."""
    app = make_app()
    seen = observed(app)
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    with failing(Observability.on_startup, Observability.on_shutdown):
        answer = asyncio.run(ask(app, scope, Server(events), []))
    assert [message["type"] for message in answer.messages] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert_internal_errors(seen, "lifespan")


@pytest.mark.parametrize("name", ["flush", "close"])
@pytest.mark.parametrize("signal", ATTRIBUTES)
def test_close_goes_on_where_a_signal_fails(observed: Callable[..., Seen], signal: str, name: str) -> None:
    """A signal that cannot be flushed or closed does not stop the others; the app is restored."""
    app = make_app()
    seen = observed(app)
    failed = getattr(getattr(seen.observe, ATTRIBUTES[signal]), name, None)
    with failing(*filter(None, [failed])), Watched() as watched:
        seen.observe.close()
    for each in set(ATTRIBUTES) - ({signal} if name == "close" else set()):
        assert getattr(seen.observe, ATTRIBUTES[each]).close.__func__.__code__ in watched.called
    assert_served(app)
    seen.observe.logs.close()
    seen.observe.tracing.close()


# What users give us


class HostileProcessor(SpanProcessor):
    """A span processor that raises at one of its calls."""

    def __init__(self, at: str) -> None:
        setattr(self, at, boom)


class HostileSampler(Sampler):
    """A sampler that raises."""

    def should_sample(self, *_: Any, **__: Any) -> Any:
        """Decide nothing."""
        raise RuntimeError("sampler")

    def get_description(self) -> str:
        """Return a name."""
        return "hostile"


class HostileExporter(SpanExporter):
    """An exporter that raises."""

    def export(self, spans: Any) -> Any:
        """Export nothing."""
        raise RuntimeError("exporter")


ON_ENDING = pytest.param(
    "_on_ending",
    marks=pytest.mark.skipif(not hasattr(SpanProcessor, "_on_ending"), reason="older OpenTelemetry has no OnEnding"),
)


@pytest.mark.parametrize("at", ["on_start", ON_ENDING, "on_end"])
@pytest.mark.parametrize("own", [True, False])
def test_a_span_processor_that_raises(observed: Callable[..., Seen], at: str, *, own: bool) -> None:
    """The user's span processor may raise, in our provider and in theirs; the other processors get every span."""
    exporter = InMemorySpanExporter()
    app = make_app()
    seen = observed(
        app,
        span_processors=(HostileProcessor(at), SimpleSpanProcessor(exporter)),
        tracer_provider=None if own else TracerProvider(),
    )
    assert_served(app)
    assert_internal_errors(seen, f"span_processor.{at.removeprefix('_')}")
    assert sum(span.kind.name == "SERVER" for span in exporter.get_finished_spans()) == 20
    assert "step" in {span.name for span in exporter.get_finished_spans()}


def test_a_span_processor_gets_no_span_after_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    """A provider that was shut down may stay the global one: its spans go nowhere, without a warning."""
    exporter, faults = InMemorySpanExporter(), InternalErrors()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(GuardedProcessor(SimpleSpanProcessor(exporter), faults))
    tracer = provider.get_tracer("test")
    tracer.start_span("before").end()
    for _ in range(2):
        provider.shutdown()
        assert provider.force_flush()
    tracer.start_span("after").end()
    assert [span.name for span in exporter.get_finished_spans()] == ["before"]
    assert faults.counts == {}
    assert caplog.records == []


def test_a_sampler_that_raises(observed: Callable[..., Seen]) -> None:
    """The sampler of the user's provider may raise: there are no spans, but metrics and lines."""
    app = make_app()
    seen = observed(app, tracer_provider=TracerProvider(sampler=HostileSampler()))
    assert_served(app)
    assert_internal_errors(seen, "traces.on_request_start", "traces.on_operation_start", "span.start")
    assert seen.sample("http_requests_in_progress") == 0
    assert len(seen.request_lines) == 20


def test_an_exporter_that_raises(observed: Callable[..., Seen]) -> None:
    """The exporter's failure stays in the span processor."""
    app = make_app()
    seen = observed(app, span_processors=(SimpleSpanProcessor(HostileExporter()),))
    assert_served(app)
    assert_internal_errors(seen)
    assert len(seen.request_lines) == 20


def test_repeated_errors_are_logged_once_a_minute(observed: Callable[..., Seen]) -> None:
    """Hooks of the user's that fail with each of 200 requests are counted each time and logged once each."""
    app = make_app()
    seen = observed(
        app,
        span_processors=(HostileProcessor("on_end"),),
        instrumentator_functions=(boom,),
        tracer_provider=TracerProvider(),
    )

    async def ask_often() -> None:
        for _ in range(200):
            await ask(app, http_scope("/ok"), Server([]), [])

    asyncio.run(ask_often())
    assert seen.observe.internal_errors.counts == {"span_processor.on_end": 200, "instrumentation": 200}
    assert len(fault_lines(seen)) == 2


def test_an_instrumentation_that_raises(observed: Callable[..., Seen]) -> None:
    """If one of the user's functions raises, the next one is called."""
    called: list[str] = []
    app = make_app()
    seen = observed(app, instrumentator_functions=(boom, lambda info: called.append(info.modified_handler)))
    assert_served(app)
    assert_internal_errors(seen, "instrumentation")
    assert len(called) == 18
    assert "/items/{item_id}" in called


def test_a_collector_that_raises_affects_its_own_metrics_only(observed: Callable[..., Seen]) -> None:
    """A collector in the user's registry may raise at a scrape: the rest is shown."""

    class Hostile:
        def describe(self) -> list[Any]:
            return []

        collect = boom

    registry = CollectorRegistry()
    registry.register(Hostile())
    app = make_app()
    seen = observed(app, registry=registry, include_default_registry=False)
    assert_served(app)
    assert seen.total("http_requests_total") == 18
    assert_internal_errors(seen, "collect")


def test_a_background_function_that_hides_its_name_still_runs(observed: Callable[..., Seen]) -> None:
    """A callable whose attributes raise is called as without us."""
    called: list[str] = []

    class Hidden:
        def __call__(self, what: str) -> None:
            called.append(what)

        def __getattr__(self, name: str) -> Any:
            if name == "__qualname__":
                raise RuntimeError("no name")
            raise AttributeError(name)

    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(Hidden(), "work")

    seen = observed(app)
    answer = asyncio.run(ask(app, http_scope(), Server([]), []))
    assert answer.raised is None
    assert called == ["work"]
    assert_internal_errors(seen, "background")


def test_an_internal_error_that_cannot_be_logged_is_counted(observed: Callable[..., Seen]) -> None:
    """If logging the error fails too, the request is served."""
    app = make_app()
    seen = observed(app)
    with failing(seen.observe.metrics.on_request_end, logging.Logger.error):
        answer = asyncio.run(ask(app, http_scope("/ok"), Server([]), []))
    assert answer.messages[0]["status"] == 200
    assert seen.observe.internal_errors.counts == {"metrics.on_request_end": 1}


def test_a_span_outside_any_request(capsys: pytest.CaptureFixture[str]) -> None:
    """`@traced` works with a provider whose sampler and span processors raise."""
    sampling, processing = TracerProvider(sampler=HostileSampler()), TracerProvider()
    processing.add_span_processor(HostileProcessor("on_end"))
    for provider in (sampling, processing):
        with SpanScope(provider.get_tracer("test"), "step", {}) as span:
            assert span is not None


async def test_a_request_that_is_closed_from_another_task(observed: Callable[..., Seen]) -> None:
    """A server may close a request's coroutine from elsewhere: nothing is raised there."""

    class Pause:
        def __await__(self) -> Any:
            yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Pause()

    seen = observed(FastAPI())
    coroutine = ObserveMiddleware(app, seen.observe)(http_scope(), Server([]).receive, Server([]).send)
    coroutine.send(None)

    async def elsewhere() -> None:
        coroutine.close()

    await asyncio.create_task(elsewhere())
    assert seen.sample("http_requests_in_progress") == 0
    assert len(seen.request_lines) == 1

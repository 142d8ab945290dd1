"""The tracing service: traces of callers are continued, contexts attached and injected, open server spans adopted."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from driver import ask, http_scope
from fastapi import FastAPI, HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from tools import volume

from fastapi_observe import ObserveSettings, TraceContext, get_observability, traced
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.records.operation import Operation
from fastapi_observe.traces.incoming import is_server_span
from fastapi_observe.traces.service import TracingService
from fastapi_observe.traces.user_spans import ContextScope

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from opentelemetry.sdk.trace import ReadableSpan
    from starlette.requests import Request

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
REMOTE = f"00-{TRACE}-{SPAN}-01"


def make_app() -> Starlette:
    """Return an app that responds with its trace context."""

    async def endpoint(request: Request) -> Response:
        here = TraceContext.current()
        return JSONResponse(None if here is None else here.to_dict())

    return Starlette(routes=[Route("/", endpoint)])


def trace_of(span: ReadableSpan) -> str:
    """Return the trace id of a span."""
    assert span.context is not None
    return format(span.context.trace_id, "032x")


def ask_with(app: Starlette, *headers: tuple[str, str]) -> dict[str, Any]:
    """Send a request with headers, duplicates too."""
    got: dict[str, Any] = TestClient(app).get("/", headers=list(headers)).json()
    return got


# What came with a request


def test_a_remote_trace_is_continued(observed: Callable[..., Seen]) -> None:
    """The server span is a child of the caller's; baggage of several headers and tracestate are kept."""
    app = make_app()
    seen = observed(app)
    here = ask_with(
        app, ("traceparent", REMOTE), ("baggage", "a=1;p=2"), ("baggage", "b=%C3%A9,bad"), ("tracestate", "v=1")
    )
    (span,) = seen.server_spans
    assert trace_of(span) == here["trace_id"] == TRACE
    assert span.parent is not None
    assert (format(span.parent.span_id, "016x"), span.parent.is_remote) == (SPAN, True)
    assert (here["baggage"], here["trace_state"]) == ({"a": "1", "b": "é"}, "v=1")


def test_an_unsampled_remote_trace_has_ids(observed: Callable[..., Seen]) -> None:
    """The caller's decision not to sample is respected; its trace id is on the request line all the same."""
    app = make_app()
    seen = observed(app)
    assert ask_with(app, ("traceparent", f"00-{TRACE}-{SPAN}-00"))["trace_id"] == TRACE
    assert seen.spans == []
    assert seen.request_lines[0]["trace_id"] == TRACE


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        "00-" + "a" * 65_000,
        "\xff\xfe",
    ],
)
def test_a_malformed_traceparent_starts_a_new_trace(observed: Callable[..., Seen], wrong: str) -> None:
    """A malformed `traceparent` starts a new trace."""
    app = make_app()
    seen = observed(app)
    here = TestClient(app).get("/", headers=[(b"traceparent", wrong.encode("latin-1"))]).json()
    (span,) = seen.server_spans
    assert span.parent is None
    assert here["trace_id"] not in {TRACE, "0" * 32}


def test_a_duplicated_traceparent_starts_a_new_trace(observed: Callable[..., Seen]) -> None:
    """Two `traceparent` headers count as none (W3C Trace Context)."""
    app = make_app()
    seen = observed(app)
    ask_with(app, ("traceparent", REMOTE), ("traceparent", REMOTE))
    assert seen.server_spans[0].parent is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=volume(50), deadline=None)
@given(
    values=st.lists(
        st.tuples(
            st.sampled_from([b"traceparent", b"tracestate", b"baggage"]),
            st.binary(max_size=80) | st.sampled_from([REMOTE.encode(), b"a=1", b"a,b", b"=;,"]),
        ),
        max_size=5,
    )
)
async def test_headers_of_any_bytes(
    observed: Callable[..., Seen], caplog: pytest.LogCaptureFixture, values: list[tuple[bytes, bytes]]
) -> None:
    """Any bytes in propagation headers: the request is served, nothing fails and nothing is logged about them."""
    caplog.clear()
    app = make_app()
    seen = observed(app, logs=False)
    assert await _ask_raw(app, values) == 200
    assert len(seen.observe.internal_errors.counts) == 0
    assert [record.name for record in caplog.records if record.name.startswith("opentelemetry")] == []
    assert logging.getLogger("opentelemetry").isEnabledFor(logging.WARNING)
    seen.observe.close()


async def _ask_raw(app: Starlette, values: list[tuple[bytes, bytes]]) -> int:
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = http_scope("/")
    scope["headers"] += values
    await app(scope, receive, send)
    return statuses[0]


# Attach, inject, extract


def test_attach_continues_a_remote_trace(observed: Callable[..., Seen]) -> None:
    """Spans inside `attach` are children of the remote span with its baggage; afterwards the context is restored."""
    seen = observed(Starlette())
    tracing = seen.observe.tracing
    remote = TraceContext("a" * 32, "b" * 16, baggage={"tenant": "acme"})
    with tracing.span("outer"), tracing.attach(remote), tracing.span("job"):
        assert baggage.get_baggage("tenant") == "acme"
        here = tracing.current()
        assert here is not None
        assert (here.trace_id, dict(here.baggage)) == ("a" * 32, {"tenant": "acme"})
    assert baggage.get_baggage("tenant") is None
    assert tracing.current() is None
    job, outer = seen.spans
    assert job.parent is not None
    assert (trace_of(job), format(job.parent.span_id, "016x"), job.parent.is_remote) == ("a" * 32, "b" * 16, True)
    assert trace_of(outer) != "a" * 32


def test_inject_and_extract(observed: Callable[..., Seen]) -> None:
    """`extract` reads what `inject` wrote: the same trace context with its baggage."""
    tracing = observed(Starlette()).observe.tracing
    assert tracing.inject({}) == {}
    assert tracing.extract({}) is None
    with tracing.span("s"), tracing.attach(TraceContext(TRACE, SPAN, baggage={"a": "ü 1"})):
        headers = tracing.inject({"x": "y"})
        assert tracing.extract(headers) == tracing.current()
    assert headers["x"] == "y"


# Adopted spans


@pytest.mark.parametrize("ratio", [1.0, 0.0])
async def test_an_open_server_span_is_adopted(observed: Callable[..., Seen], ratio: float) -> None:
    """An open server span gets route, status and error, and its owner ends it; unsampled ones are adopted too."""
    app = make_app()
    provider = TracerProvider()
    seen = observed(app, tracer_provider=provider, sample_ratio=ratio)
    tracer = provider.get_tracer("agent")
    parent = None
    if not ratio:
        parent = TraceContext(TRACE, SPAN, sampled=False).to_context()
    with tracer.start_as_current_span("raw", parent, kind=SpanKind.SERVER) as span:
        answer = await ask(app, "/")
        assert (answer.status, span.is_recording()) == (200, bool(ratio))
        assert seen.spans == []
    ids = format(span.get_span_context().span_id, "016x")
    assert seen.request_lines[0]["span_id"] == ids
    if ratio:
        (ended,) = seen.spans
        assert ended.name == "GET /"
        assert (ended.attributes or {})["http.route"] == "/"


async def test_an_adopted_span_that_has_ended_is_not_changed(observed: Callable[..., Seen]) -> None:
    """A span that its owner ended before the response started is not changed."""
    app = make_app()
    provider = TracerProvider()
    seen = observed(app, tracer_provider=provider)
    with trace.use_span(provider.get_tracer("agent").start_span("raw", kind=SpanKind.SERVER)) as span:

        async def endpoint(request: Request) -> Response:
            span.end()
            return Response()

        app.router.routes.append(Route("/end", endpoint))
        assert (await ask(app, "/end")).status == 200
    assert [span.name for span in seen.spans] == ["raw"]
    assert seen.observe.internal_errors.counts == {}


async def test_an_open_client_span_is_the_parent(observed: Callable[..., Seen]) -> None:
    """A span of another kind around the app is the parent of the server span."""
    app = make_app()
    seen = observed(app)
    with seen.observe.tracing.tracer.start_as_current_span("call", kind=SpanKind.CLIENT) as span:
        await ask(app, "/")
    (server,) = seen.server_spans
    assert server.parent is not None
    assert server.parent.span_id == span.get_span_context().span_id


def test_spans_that_are_not_open_server_spans() -> None:
    """A remote span, and no span, are not open server spans."""
    assert not is_server_span(trace.INVALID_SPAN)
    remote = TraceContext(TRACE, SPAN).to_context()
    assert not is_server_span(trace.get_current_span(remote))
    ended = TracerProvider().get_tracer("t").start_span("s", kind=SpanKind.SERVER)
    assert is_server_span(ended)
    ended.end()
    assert not is_server_span(ended)


async def test_a_stale_context_is_not_continued(observed: Callable[..., Seen]) -> None:
    """A request in the context of an ended one starts its own trace, or continues its caller's."""
    app = make_app()
    seen = observed(app)
    contexts = []

    async def keeping(scope: Any, receive: Any, send: Any) -> None:
        contexts.append(otel_context.get_current())
        await Response()(scope, receive, send)

    app.router.routes.append(Mount("/keep", keeping))
    await ask(app, "/keep/")
    for headers in ({}, {"traceparent": REMOTE}):
        with ContextScope(contexts[0]):
            await ask(app, "/", headers=headers)
    first, second, third = seen.server_spans
    assert second.parent is None
    assert third.parent is not None
    assert (trace_of(second) != trace_of(first), trace_of(third)) == (True, TRACE)


def test_a_record_without_a_span_can_be_ended() -> None:
    """If starting the span has failed, nothing is left to do at the end."""

    class Record:
        span = None
        span_adopted = True

    tracing = TracingService(ObserveSettings(), InternalErrors())
    tracing.on_response_start(Record())  # type: ignore[arg-type]
    tracing.on_request_end(Record())  # type: ignore[arg-type]
    tracing.close()


# Operations, and the module's own functions


def test_operations_of_another_kind_are_internal(observed: Callable[..., Seen]) -> None:
    """A background operation is an internal span; an error without an exception is an error of the span."""
    seen = observed(Starlette())
    with Operation(seen.observe, "background", "background job", {"endpoint": "/"}, {"size": {1}}) as work:
        work.error_type = "gone"
    (span,) = seen.spans
    assert (span.kind, span.status.status_code) == (SpanKind.INTERNAL, StatusCode.ERROR)
    assert span.attributes == {"size": "{1}", "error.type": "gone"}


def test_operations_of_an_unsampled_trace_of_another_provider(observed: Callable[..., Seen]) -> None:
    """With the user's provider its sampler decides for each operation."""
    seen = observed(Starlette(), tracer_provider=TracerProvider())
    tracing = seen.observe.tracing
    with tracing.attach(TraceContext(TRACE, SPAN, sampled=False)), seen.observe.db.query("SELECT") as query:
        pass
    at = query.span.get_span_context()
    assert (f"{at.trace_id:032x}", seen.spans) == (TRACE, [])
    assert f"{at.span_id:016x}" != SPAN


def test_traced_inside_a_request_uses_its_app(observed: Callable[..., Seen]) -> None:
    """With two apps installed, `@traced` and `get_observability()` find the app that serves the request."""

    @traced("work")
    def work() -> Any:
        return get_observability()

    apps, found = [], []
    for _ in range(2):

        async def endpoint(request: Request) -> Response:
            found.append(work())
            return Response(background=BackgroundTask(lambda: found.append(work())))

        apps.append(Starlette(routes=[Route("/", endpoint)]))
    seens = [observed(app) for app in apps]
    for app in apps:
        TestClient(app).get("/")
    first, second = (seen.observe for seen in seens)
    assert found == [first, first, second, second]
    assert [[span.name for span in seen.spans].count("work") for seen in seens] == [2, 2]
    with pytest.raises(RuntimeError, match=r"2 apps are installed.*app\.state\.observe"):
        get_observability()
    second.close()
    assert get_observability() is first
    first.close()
    with pytest.raises(RuntimeError, match=r"call install\(app\)"):
        get_observability()


def test_traced_in_every_spelling(observed: Callable[..., Seen]) -> None:
    """`@traced`, `@traced()`, `@traced("name")` and `@traced("name", key=value)`."""
    seen = observed(Starlette())

    @traced
    def bare() -> None: ...

    @traced()
    def called() -> None: ...

    @traced("named", tier="gold")
    def named() -> None: ...

    @traced(tier="gold")
    def attributed() -> None: ...

    for function in (bare, called, named, attributed):
        function()
    prefix = "test_traced_in_every_spelling.<locals>."
    assert [span.name.removeprefix(prefix) for span in seen.spans] == ["bare", "called", "named", "attributed"]
    assert [dict(span.attributes or {}) for span in seen.spans] == [{}, {}, {"tier": "gold"}, {"tier": "gold"}]
    with pytest.raises(TypeError, match="expected a function or a span name"):
        traced(7)  # type: ignore[call-overload]


@pytest.mark.parametrize("is_same_app", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 0.0])
async def test_a_call_inside_the_process_has_a_server_span_of_its_own(
    observed: Callable[..., Seen], ratio: float, *, is_same_app: bool
) -> None:
    """It is a child of the caller's, which keeps its name and status; tail sampling decides about it too."""
    outer = FastAPI()
    inner = outer if is_same_app else FastAPI()

    @inner.get("/fails")
    async def fails() -> None:
        raise HTTPException(503)

    @outer.get("/outer")
    async def call() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://inner") as client:
            await client.get("/fails")
        return trace.format_span_id(trace.get_current_span().get_span_context().span_id)

    options = {"sample_ratio": ratio, "tail_sampling": ("errors",)}
    seen = observed(outer, **options)
    seen_inner = seen if is_same_app else observed(inner, **options)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://outer") as client:
        span_id = int((await client.get("/outer")).json(), 16)
    (failed,) = [span for span in seen_inner.server_spans if span.name == "GET /fails"]
    assert failed.parent is not None
    assert failed.parent.span_id == span_id != failed.context.span_id
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes.get("fastapi_observe.tail_sampled") == (None if ratio else "errors")
    callers = [span for span in seen.server_spans if span.context.span_id == span_id]
    assert [(span.name, span.status.status_code) for span in callers] == (
        [("GET /outer", StatusCode.UNSET)] if ratio or is_same_app else []
    )

"""The server span that is made without asking the SDK: it is and does what the SDK's span would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, Tracer, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import ObserveSettings
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.records.request import CONTEXT_KEY
from fastapi_observe.traces import recorded_span
from fastapi_observe.traces.incoming import is_stale_context
from fastapi_observe.traces.processors import GuardedProcessor
from fastapi_observe.traces.provider import ObserveTracerProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

ELSEWHERE = SpanContext(trace_id=1 << 100, span_id=1 << 50, is_remote=True, trace_flags=TraceFlags(1))

made_here = pytest.mark.skipif(
    not hasattr(SpanProcessor, "_on_ending"), reason="older OpenTelemetry has no OnEnding: the SDK makes the span"
)


async def page(_: Any) -> PlainTextResponse:
    """Say something on the server span."""
    span = trace.get_current_span()
    assert isinstance(span, Span)
    span.set_attribute("shop.tenant", "acme")
    for number in range(200):
        span.add_event("step", {"number": number})
        span.add_link(ELSEWHERE)
    return PlainTextResponse("page")


def shape(seen: Seen) -> dict[str, Any]:
    """Return what a server span tells, without ids and times."""
    (span,) = seen.server_spans
    names = {name: value for name, value in (span.attributes or {}).items() if name != "client.port"}
    return {
        "name": span.name,
        "attributes": names,
        "kind": span.kind,
        "status": span.status.status_code,
        "events": [(event.name, dict(event.attributes or {})) for event in span.events],
        "links": len(span.links),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "scope": span.instrumentation_scope,
        "resource": set(span.resource.attributes),
    }


@made_here
def test_it_tells_what_the_sdk_s_own_span_tells(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """A request looks the same whether the span was made here or, with an SDK built otherwise, by the SDK."""
    ours = observed(Starlette(routes=[Route("/a/{b}", page)]))
    TestClient(ours.observe.routes._app).get("/a/7?q=1")
    monkeypatch.setattr(recorded_span, "BoundedAttributes", lambda *_, **__: 1 / 0)
    theirs = observed(Starlette(routes=[Route("/a/{b}", page)]))
    TestClient(theirs.observe.routes._app).get("/a/7?q=1")
    assert shape(ours) == shape(theirs)
    assert shape(ours)["dropped"] == (0, 72, 72)
    assert type(ours.server_spans[0]) is not type(theirs.server_spans[0])


def test_a_dropped_span_of_the_sdk_is_told_nothing(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an SDK built otherwise the SDK decides; what it drops records nothing and has ids all the same."""
    monkeypatch.setattr(recorded_span, "BoundedAttributes", lambda *_, **__: 1 / 0)
    seen = observed(Starlette(routes=[Route("/", lambda _: PlainTextResponse("page"))]), sample_ratio=0.0)
    TestClient(seen.observe.routes._app).get("/")
    assert seen.spans == []
    assert len(seen.request_lines[0]["trace_id"]) == 32


def test_who_ends_it_first_wins(observed: Callable[..., Seen]) -> None:
    """A span that the app has ended is not ended again, and nothing changes it."""

    async def ending(_: Any) -> PlainTextResponse:
        span = trace.get_current_span()
        span.update_name("mine")
        span.end()
        return PlainTextResponse("page")

    seen = observed(Starlette(routes=[Route("/", ending)]))
    TestClient(seen.observe.routes._app).get("/")
    assert [span.name for span in seen.server_spans] == ["mine"]


class Careless(SpanProcessor):
    """A user's span processor that does not keep to the interface."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self._answer = answer

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Answer anything, or raise."""
        answer: bool = self._answer()
        return answer


def test_a_careless_processor_does_not_keep_spans_from_being_flushed() -> None:
    """One that says nothing (as OpenTelemetry's own base class once did) or raises comes before our export."""
    with Collector() as collector:
        faults = InternalErrors()
        settings = ObserveSettings(otlp_endpoint=collector.url, sample_ratio=1.0, batch_delay=60.0)
        provider = ObserveTracerProvider(settings)
        provider.add_span_processor(GuardedProcessor(Careless(lambda: None), faults))
        provider.export_to(settings, faults)
        provider.add_span_processor(GuardedProcessor(Careless(lambda: 1 / 0), faults))
        provider.get_tracer("theirs").start_span("waiting").end()
        assert not provider.force_flush(5000)
        assert set(collector.names) == {"waiting"}
        assert faults.counts == {"span_processor.force_flush": 1}
        provider.shutdown()


def test_spans_of_a_child_are_about_the_child(observed: Callable[..., Seen]) -> None:
    """What the provider says after a fork is what spans say; `test_worker_pushes.py` forks really."""
    tracing = observed(Starlette()).observe.tracing
    assert isinstance(tracing.provider, ObserveTracerProvider)
    before = tracing.provider.resource
    tracing.provider._name_anew()
    if tracing._factory is not None:
        tracing._factory._reset_after_fork()
        assert tracing._factory.resource is tracing.provider.resource
    assert isinstance(tracing.tracer, Tracer)
    assert tracing.tracer.resource.attributes == tracing.provider.resource.attributes
    assert before is not tracing.provider.resource


@made_here
def test_finish_ends_once(observed: Callable[..., Seen]) -> None:
    """A second end changes nothing and is not handed on."""
    seen = observed(Starlette())
    factory = seen.observe.tracing._factory
    assert factory is not None
    span = factory.start("GET", ELSEWHERE, None, Context(), {}, 1)
    span.finish("GET /a", 2)
    span.finish("GET /b", 3)
    assert [(each.name, each.end_time) for each in seen.spans] == [("GET /a", 2)]


def test_an_open_server_span_is_not_left_over(observed: Callable[..., Seen]) -> None:
    """A context of a request that is over counts as current while a server span in it is still being recorded."""
    seen = observed(Starlette())
    exchange = seen.observe.start_request({"type": "http", "path": "/", "headers": []}, None, None)  # type: ignore[arg-type]
    exchange.complete = True
    with TracerProvider().get_tracer("outer").start_as_current_span("outer", kind=SpanKind.SERVER) as span:
        around = trace.set_span_in_context(span, Context({CONTEXT_KEY: exchange.current}))
        assert not is_stale_context(around)
    assert not is_stale_context(around)
    exchange.finish(None)

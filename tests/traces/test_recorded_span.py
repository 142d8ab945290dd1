"""Server spans that are made without the SDK's constructor are, and behave, like the SDK's own spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from collectors import Collector
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import ObserveSettings
from fastapi_observe.internal import opentelemetry as otel_internals
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.opentelemetry import replace_attributes
from fastapi_observe.records.request import CONTEXT_KEY
from fastapi_observe.traces.incoming import is_stale_context
from fastapi_observe.traces.processors import GuardedProcessor
from fastapi_observe.traces.provider import ObserveTracerProvider

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

ELSEWHERE = SpanContext(trace_id=1 << 100, span_id=1 << 50, is_remote=True, trace_flags=TraceFlags(1))


@pytest.fixture
def incompatible_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an SDK whose spans are built in another way."""
    monkeypatch.setattr(otel_internals, "BoundedAttributes", lambda *_, **__: 1 / 0)


async def page(_: Any) -> PlainTextResponse:
    """Add more events and links to the server span than it may have."""
    span = trace.get_current_span()
    assert isinstance(span, Span)
    span.set_attribute("shop.tenant", "acme")
    for number in range(200):
        span.add_event("step", {"number": number})
        span.add_link(ELSEWHERE)
    return PlainTextResponse("page")


def describe(seen: Seen) -> dict[str, Any]:
    """Return everything that a server span exports, without ids and times."""
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


def test_it_exports_what_the_sdks_own_span_exports(
    observed: Callable[..., Seen], request: pytest.FixtureRequest
) -> None:
    """A request has the same span whether it was made here or, with an incompatible SDK, by the SDK."""
    app = Starlette(routes=[Route("/a/{b}", page)])
    ours = observed(app)
    TestClient(app).get("/a/7?q=1")
    request.getfixturevalue("incompatible_sdk")
    app = Starlette(routes=[Route("/a/{b}", page)])
    theirs = observed(app)
    TestClient(app).get("/a/7?q=1")
    assert describe(ours) == describe(theirs)
    assert describe(ours)["dropped"] == (0, 72, 72)
    assert type(ours.server_spans[0]) is not type(theirs.server_spans[0])


@pytest.mark.usefixtures("incompatible_sdk")
def test_an_unsampled_span_of_the_sdk_records_nothing(observed: Callable[..., Seen]) -> None:
    """With an incompatible SDK the SDK's sampler decides; the request line has a trace id all the same."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("page"))])
    seen = observed(app, sample_ratio=0.0)
    TestClient(app).get("/")
    assert seen.spans == []
    assert len(seen.request_lines[0]["trace_id"]) == 32


def test_a_span_that_the_app_ended_stays_as_it_was(observed: Callable[..., Seen]) -> None:
    """A span that the app has ended is not ended again, and keeps its name."""

    async def ending(_: Any) -> PlainTextResponse:
        span = trace.get_current_span()
        span.update_name("mine")
        span.end()
        return PlainTextResponse("page")

    app = Starlette(routes=[Route("/", ending)])
    seen = observed(app)
    TestClient(app).get("/")
    assert [span.name for span in seen.server_spans] == ["mine"]


class CarelessProcessor(SpanProcessor):
    """A user's span processor that does not keep to the interface."""

    def __init__(self, result: Callable[[], Any]) -> None:
        self._result = result

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Return anything, or raise."""
        result: bool = self._result()
        return result


def test_a_careless_processor_does_not_keep_spans_from_being_flushed() -> None:
    """A processor that returns None (as OpenTelemetry's base class once did), and one that raises, hold up no other."""
    with Collector() as collector:
        errors = InternalErrors()
        settings = ObserveSettings(otlp_endpoint=collector.url, sample_ratio=1.0, batch_delay=60.0)
        provider = ObserveTracerProvider(settings)
        provider.add_span_processor(GuardedProcessor(CarelessProcessor(lambda: None), errors))
        provider.export_to(settings, errors)
        provider.add_span_processor(GuardedProcessor(CarelessProcessor(lambda: 1 / 0), errors))
        provider.get_tracer("theirs").start_span("waiting").end()
        assert not provider.force_flush(5000)
        assert set(collector.names) == {"waiting"}
        assert errors.counts == {"span_processor.force_flush": 1}
        provider.shutdown()


def test_a_renamed_resource_is_the_tracers_too(observed: Callable[..., Seen]) -> None:
    """Where the SDK does not rename a forked child, tracers made before the fork get the new attributes as well."""
    provider = observed(Starlette()).observe.tracing.provider
    assert isinstance(provider, ObserveTracerProvider)
    before, other = provider.resource, ObserveTracerProvider(ObserveSettings()).resource
    assert replace_attributes(before, other) is other
    assert before.attributes == other.attributes


def test_finish_ends_once(observed: Callable[..., Seen]) -> None:
    """A second end changes nothing and does not reach the span processors."""
    seen = observed(Starlette())
    factory = seen.observe.tracing._factory
    assert factory is not None
    span = factory.start("GET", ELSEWHERE, None, Context(), {}, 1)
    span.finish("GET /a", 2)
    span.finish("GET /b", 3)
    span.end_operation("GET /c", {"a": 1}, 1.0)
    assert [(each.name, each.end_time, dict(each.attributes or {})) for each in seen.spans] == [("GET /a", 2, {})]


def test_attributes_of_the_app_are_limited(observed: Callable[..., Seen]) -> None:
    """The limits hold for the attributes that the app sets, however the span began, and none is set after its end."""
    seen = observed(Starlette())
    factory = seen.observe.tracing._factory
    assert factory is not None
    factory.max_attributes, factory.max_attribute_length = 2, 4
    span = factory.start("GET", ELSEWHERE, None, Context(), {"trusted": 1}, 1)
    span.set_attribute("tenant", "a long name")
    span.set_attributes({"step": 1})
    span.set_trusted_attributes({"late": "of any length"})
    assert dict(span.attributes or {}) == {"tenant": "a lo", "step": 1, "late": "of any length"}
    assert span.dropped_attributes == 1
    span.finish("GET /a", 2)
    span.set_attribute("after", 1)
    assert "after" not in (seen.spans[0].attributes or {})


def test_a_context_with_an_open_server_span_is_not_stale(observed: Callable[..., Seen]) -> None:
    """The context of a request that has ended is in use as long as a server span in it is recording."""
    seen = observed(Starlette())
    record = seen.observe.start_request({"type": "http", "path": "/", "headers": []}, None, None)  # type: ignore[arg-type]
    record.complete = True
    with TracerProvider().get_tracer("outer").start_as_current_span("outer", kind=SpanKind.SERVER) as span:
        context = trace.set_span_in_context(span, Context({CONTEXT_KEY: record.current}))
        assert not is_stale_context(context)
    assert not is_stale_context(context)
    record.finish(None)

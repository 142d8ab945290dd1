"""Together with other instrumentation: providers that are set later, and contrib's instrumentation of the same app."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import ObserveSettings
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.internal.opentelemetry import GLOBAL_PROVIDER, silence_contrib
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen


def names(exporter: InMemorySpanExporter) -> list[str]:
    """Return the names of the ended spans."""
    return [span.name for span in exporter.get_finished_spans()]


class Memory(TracerProvider):
    """A provider of the user that keeps its spans."""

    def __init__(self) -> None:
        super().__init__()
        self.exporter = InMemorySpanExporter()
        self.add_span_processor(SimpleSpanProcessor(self.exporter))


@pytest.mark.usefixtures("no_global_provider")
def test_a_provider_that_is_set_later_is_joined(observed: Callable[..., Seen]) -> None:
    """From then on all spans are the new provider's; the user's processors get them too."""
    app = Starlette(routes=[Route("/", lambda _: Response())])
    seen = observed(app)
    held = trace.get_tracer("held")
    client = TestClient(app)
    client.get("/")
    provider = Memory()
    trace.set_tracer_provider(provider)
    client.get("/")
    with seen.observe.operation("charge"):
        held.start_span("held").end()
    assert names(provider.exporter) == ["GET /", "held", "charge"]
    assert [span.name for span in seen.spans] == ["GET /", "GET /", "held", "charge"]
    seen.observe.flush()
    assert trace.get_tracer_provider() is provider
    seen.observe.close()
    assert trace.get_tracer_provider() is provider


@pytest.mark.usefixtures("no_global_provider")
def test_a_provider_without_processors_is_not_joined(observed: Callable[..., Seen]) -> None:
    """A provider that takes no span processors, such as a tracer of another make, becomes global and no more."""

    class Foreign(trace.NoOpTracerProvider):
        """Not the SDK's."""

    app = Starlette(routes=[Route("/", lambda _: Response())])
    seen = observed(app)
    trace.set_tracer_provider(Foreign())
    TestClient(app).get("/")
    assert [span.name for span in seen.spans] == ["GET /"]


@pytest.mark.usefixtures("no_global_provider")
def test_a_provider_that_raises_when_it_is_joined(observed: Callable[..., Seen]) -> None:
    """Setting it succeeds; the error is counted and spans stay where they were."""

    class Broken(Memory):
        """Takes no processor after the first."""

        def add_span_processor(self, span_processor: Any) -> None:
            """Raise for every processor but its own."""
            if hasattr(self, "closed"):
                raise RuntimeError("closed")
            self.closed = True

    app = Starlette(routes=[Route("/", lambda _: Response())])
    seen = observed(app)
    trace.set_tracer_provider(Broken())
    TestClient(app).get("/")
    assert seen.observe.internal_errors.counts == {"traces.join": 1}
    assert [span.name for span in seen.spans] == ["GET /"]


@pytest.mark.usefixtures("no_global_provider")
def test_after_close_no_provider_of_ours_is_global(observed: Callable[..., Seen]) -> None:
    """Tracers that were obtained before pass on to the provider that is set later."""
    first, second = observed(Starlette()), observed(Starlette())
    held = trace.get_tracer("held")
    assert trace.get_tracer_provider() is first.observe.tracing.provider
    first.observe.close()
    assert trace.get_tracer_provider() is second.observe.tracing.provider
    second.observe.close()
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert not held.start_span("lost").is_recording()
    provider = Memory()
    trace.set_tracer_provider(provider)
    held.start_span("found").end()
    first.observe.tracing.provider.get_tracer("later").start_span("too").end()
    assert names(provider.exporter) == ["found", "too"]


@pytest.mark.usefixtures("no_global_provider")
def test_an_app_that_was_never_closed_is_not_kept_alive() -> None:
    """The provider of such an app is not joined to a provider that is set later, and its tracing can be freed."""
    settings = ObserveSettings(metrics=False, logs=False)
    kept, dropped = (TracingService(settings, InternalErrors()) for _ in range(2))
    kept.offer_provider()
    dropped.offer_provider()
    reference = weakref.ref(dropped)
    del dropped
    gc.collect()
    assert reference() is None
    third = TracingService(settings, InternalErrors())
    third.offer_provider()
    kept.close()
    assert trace.get_tracer_provider() is third.provider
    trace.set_tracer_provider(provider := Memory())
    assert third.provider is provider
    third.close()


def test_without_the_private_names_the_provider_is_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OpenTelemetry that sets the global provider in another way keeps it until the process ends."""
    given: list[trace.TracerProvider] = []
    monkeypatch.delattr(trace, "_TRACER_PROVIDER_SET_ONCE")
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    monkeypatch.setattr(trace, "set_tracer_provider", given.append)
    provider = TracerProvider()
    GLOBAL_PROVIDER.offer(provider, given.append)()
    assert given == [provider]


@pytest.mark.parametrize("order", ["before", "after", "as middleware"])
def test_contrib_adds_no_span(observed: Callable[..., Seen], order: str) -> None:
    """One server span and one exception, with the user's hook called where contrib is first; metrics stay."""
    hooked: list[Any] = []

    def hook(span: trace.Span, scope: dict[str, Any]) -> None:
        hooked.append(scope["path"])
        span.set_attribute("shop.hooked", value=True)

    app = FastAPI()

    @app.get("/items/{item}")
    def item(item: int) -> float:
        trace.get_current_span().set_attribute("shop.item", item)
        with trace.get_tracer("shop").start_as_current_span("child"):
            return 1 / item

    if order == "before":
        FastAPIInstrumentor.instrument_app(app, server_request_hook=hook)
    if order == "as middleware":
        app.add_middleware(OpenTelemetryMiddleware, server_request_hook=hook)
    seen = observed(app)
    if order == "after":
        FastAPIInstrumentor.instrument_app(app, server_request_hook=hook)
    client = TestClient(app, raise_server_exceptions=False)
    for number, path in enumerate(("/items/1?password=hunter2", "/items/0")):
        client.get(path)
        (span,) = seen.server_spans[number:]
        attributes = dict(span.attributes or {})
        assert span.name == "GET /items/{item}"
        assert attributes["shop.item"] == 1 - number
        assert attributes.get("shop.hooked", False) is (order != "after")
        assert not {"http.url", "http.target", "http.method"} & attributes.keys()
        assert sum(event.name == "exception" for event in span.events) == number
    assert {span.name for span in seen.spans} <= {"GET /items/{item}", "child"}
    assert len(hooked) == (0 if order == "after" else 2)
    assert seen.observe.internal_errors.counts == {}
    seen.observe.close()
    FastAPIInstrumentor.uninstrument_app(app)


@pytest.mark.parametrize("order", ["before", "after"])
def test_contrib_works_alone_without_tracing(
    observed: Callable[..., Seen], caplog: pytest.LogCaptureFixture, order: str
) -> None:
    """With `tracing=False` contrib's spans are left as they are, in both orders, and requests are measured."""
    provider, app = Memory(), FastAPI()
    if order == "before":
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    seen = observed(app, tracing=False, capture_logging=False)
    if order == "after":
        FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    TestClient(app).get("/")
    assert "GET" in names(provider.exporter)
    assert len(seen.request_lines) == 1
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []
    seen.observe.close()
    FastAPIInstrumentor.uninstrument_app(app)


def test_stacks_without_contrib(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cycle of middleware ends the search; where contrib is not imported there is none."""

    class Cycle:
        """Middleware around itself."""

        app: Any

    cycle = Cycle()
    cycle.app = cycle
    silence_contrib(cycle)
    monkeypatch.delitem(sys.modules, "opentelemetry.instrumentation.asgi")
    silence_contrib(cycle)

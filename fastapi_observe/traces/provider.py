"""The OpenTelemetry tracer provider with its sampler, resource and exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, Tracer, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fastapi_observe.export.otlp.spans import SpanEncoder
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.setup import make_resource, make_transport, queue_limits, with_instance_id
from fastapi_observe.internal.forks import register_at_fork
from fastapi_observe.internal.opentelemetry import SpanFactory, replace_attributes
from fastapi_observe.records.request import current_record
from fastapi_observe.settings.environment import without_invalid_variables
from fastapi_observe.traces.calls import CallMeasurement
from fastapi_observe.traces.processors import ExportProcessor, GuardedProcessor
from fastapi_observe.traces.sampling import (
    TRACE_ID_LIMIT,
    RateLimitedSampler,
    TraceRateLimit,
    make_sampler,
    trace_id_bound,
)
from fastapi_observe.traces.tracer import ObserveTracer

if TYPE_CHECKING:
    from opentelemetry.trace import Span
    from opentelemetry.util.types import Attributes

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

MAX_ATTRIBUTE_LENGTH = 2048
"""Characters of a string attribute of a span."""

MAX_EVENT_ATTRIBUTE_LENGTH = 8192
"""Characters of a string attribute of an event, such as a stack trace."""


class HandingOnTracer(Tracer):
    """A tracer whose provider was shut down or replaced. Its spans are those of the app that serves the request.

    Outside requests they are those of the global provider of the moment.
    """

    provider: ObserveTracerProvider
    names: tuple[Any, ...]

    def start_span(self, *arguments: Any, **named: Any) -> Span:
        """Start a span of the provider that is used now."""
        return self.provider.next_tracer(self.names).start_span(*arguments, **named)


class ObserveTracerProvider(TracerProvider):
    """The tracer provider that `install` makes if the user has not set one.

    `bound` and `parent_decides` describe its sampler, so that requests can be sampled without calling it: a trace
    is sampled if its lowest 64 bits are below the bound; with `parent_decides` a parent's decision comes first.
    `rate_limit` limits the traces that callers want sampled. `calls` measures the spans of calls. `hands_on` is whether
    the provider was shut down or replaced.
    """

    def __init__(self, settings: ObserveSettings) -> None:
        self.bound = trace_id_bound(settings)
        self.parent_decides = settings.sampler.startswith("parentbased")
        self.rate_limit = TraceRateLimit(settings.max_traces_per_second)
        self.limits = SpanLimits(
            max_span_attribute_length=MAX_ATTRIBUTE_LENGTH, max_attribute_length=MAX_EVENT_ATTRIBUTE_LENGTH
        )
        super().__init__(
            sampler=RateLimitedSampler(
                make_sampler(settings), self.rate_limit, samples_all=self.bound > TRACE_ID_LIMIT
            ),
            resource=make_resource(settings),
            span_limits=self.limits,
            shutdown_on_exit=False,
        )
        self.queue: ExportQueue | None = None
        self._tracers_out: dict[InstrumentationScope, Any] = {}
        self.hands_on = False
        self.calls = CallMeasurement()
        # After the SDK's own hook, which gives all providers of a forked child the same instance id.
        register_at_fork(self, ObserveTracerProvider._rename_after_fork)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """Return a tracer. With tail sampling its spans of unsampled requests are held until the request ends.

        The spans that it makes of calls to other services are measured.
        """
        names = instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        if self.hands_on:
            return self.next_tracer(names)
        scope = InstrumentationScope(names[0] or "", names[1] or "", schema_url, attributes)
        known = self._tracers_out.get(scope)
        if known is not None:  # older SDKs would make another one, which stays registered for forks
            return cast("trace.Tracer", known[0])
        with without_invalid_variables():
            tracer = super().get_tracer(*names)
        if isinstance(tracer, Tracer):
            self._tracers_out[scope] = tracer, names
        if type(tracer) is Tracer:
            tracer.__class__ = ObserveTracer
            made = cast("ObserveTracer", tracer)
            made.factory, made.calls = SpanFactory(tracer, scope, self, self.limits), self.calls
            made.names, made.tracer_of_request = names, self._tracer_of_request
        return tracer

    def _tracer_of_request(self, names: tuple[Any, ...]) -> trace.Tracer | None:
        """Return the tracer of the app that serves the current request, if another `install` made its provider."""
        provider = _provider_of_request()
        if provider is self or not isinstance(provider, ObserveTracerProvider):
            return None
        return provider.get_tracer(*names)

    def next_tracer(self, names: tuple[Any, ...]) -> trace.Tracer:
        """Return the tracer to use after this provider was shut down or replaced."""
        provider = _provider_of_request() or trace.get_tracer_provider()
        return trace.NoOpTracer() if provider is self else provider.get_tracer(*names)

    def hand_on(self) -> None:
        """Pass on to the provider that is used now, from now on, also in tracers that were made before."""
        self.hands_on = True
        for tracer, names in list(self._tracers_out.values()):
            tracer.names, tracer.provider = names, self
            tracer.__class__ = HandingOnTracer

    def shutdown(self) -> None:
        """Flush and shut down the span processors, and hand on."""
        super().shutdown()
        self.hand_on()

    def _rename_after_fork(self) -> None:
        """Give the app its own instance id in a forked child."""
        self._resource = replace_attributes(self._resource, with_instance_id(self._resource, replace=True))

    def export_to(self, settings: ObserveSettings, internal_errors: InternalErrors) -> None:
        """Export ended spans to the endpoint of the settings. Without an endpoint nothing is queued."""
        if settings.traces_url is not None:
            transport = make_transport(settings, settings.traces_url, "traces")
            encoder = SpanEncoder(lambda: self.resource)
            self.queue = ExportQueue("spans", encoder, transport, queue_limits(settings), internal_errors)
            self.add_span_processor(ExportProcessor(self.queue))


def _provider_of_request() -> TracerProvider | None:
    """Return the provider of the app that serves the current request; None outside requests, or if it was shut down."""
    record = current_record()
    app = None if record is None else record.observability
    provider = None if app is None else app.tracing.provider
    if not isinstance(provider, TracerProvider) or getattr(provider, "hands_on", False):
        return None
    return provider


def make_provider(settings: ObserveSettings, internal_errors: InternalErrors) -> tuple[trace.TracerProvider, bool]:
    """Return the provider to use, and whether `install` made it and has to shut it down.

    A provider in the settings, or a global one that the user has set, is used. Otherwise a new one is made. With
    `tracing=False` the provider is a no-op.
    """
    if not settings.tracing:
        return trace.NoOpTracerProvider(), False
    users = find_user_provider(settings)
    if users is not None:
        for processor in settings.span_processors:
            users.add_span_processor(GuardedProcessor(processor, internal_errors))
        return users, False
    provider = ObserveTracerProvider(settings)
    for processor in settings.span_processors:
        provider.add_span_processor(GuardedProcessor(processor, internal_errors))
    provider.export_to(settings, internal_errors)
    return provider, True


def find_user_provider(settings: ObserveSettings) -> Any:
    """Return the provider of the settings, or the global one if the user has set it. None if there is neither."""
    if settings.tracer_provider is not None:
        return settings.tracer_provider
    current = trace.get_tracer_provider()
    return current if is_user_provider(current) else None


def is_user_provider(provider: Any) -> bool:
    """Return whether a global provider was set by the user and takes span processors: the SDK's, or a proxy of it."""
    own = ObserveTracerProvider, trace.NoOpTracerProvider, trace.ProxyTracerProvider
    return not isinstance(provider, own) and hasattr(provider, "add_span_processor")

"""The OpenTelemetry tracer provider with its sampler, resource and exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, Tracer, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fastapi_observe.export.otlp.spans import SpanEncoder
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.setup import make_resource, make_transport, queue_limits, with_instance_id
from fastapi_observe.internal.forks import register_at_fork
from fastapi_observe.internal.opentelemetry import SpanFactory, renames_forked_children, replace_attributes
from fastapi_observe.traces.pending import TailTracer
from fastapi_observe.traces.processors import ExportProcessor, GuardedProcessor
from fastapi_observe.traces.sampling import RateLimitedSampler, TraceRateLimit, make_sampler, trace_id_bound

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

MAX_ATTRIBUTE_LENGTH = 2048
"""Characters of a string attribute of a span."""

MAX_EVENT_ATTRIBUTE_LENGTH = 8192
"""Characters of a string attribute of an event, such as a stack trace."""


class ObserveTracerProvider(TracerProvider):
    """The tracer provider that `install` makes if the user has not set one.

    `bound` and `parent_decides` describe its sampler, so that requests can be sampled without calling it: a trace
    is sampled if its lowest 64 bits are below the bound; with `parent_decides` a parent's decision comes first.
    `rate_limit` limits the sampled traces.
    """

    def __init__(self, settings: ObserveSettings) -> None:
        self.bound = trace_id_bound(settings)
        self.parent_decides = settings.sampler.startswith("parentbased")
        self.rate_limit = TraceRateLimit(settings.max_traces_per_second)
        self.limits = SpanLimits(
            max_span_attribute_length=MAX_ATTRIBUTE_LENGTH, max_attribute_length=MAX_EVENT_ATTRIBUTE_LENGTH
        )
        super().__init__(
            sampler=RateLimitedSampler(make_sampler(settings), self.rate_limit),
            resource=make_resource(settings),
            span_limits=self.limits,
            shutdown_on_exit=False,
        )
        self.queue: ExportQueue | None = None
        self._tail_sampling = bool(settings.tail_sampling) and settings.sampler != "always_off"
        if not renames_forked_children():  # pragma: no cover - older OpenTelemetry
            register_at_fork(self, ObserveTracerProvider._rename_after_fork)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        """Return a tracer. With tail sampling its spans of unsampled requests are held until the request ends."""
        names = instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        tracer = super().get_tracer(*names)
        if self._tail_sampling and type(tracer) is Tracer:
            scope = InstrumentationScope(names[0] or "", names[1] or "", schema_url, attributes)
            tracer.__class__ = TailTracer
            tracer.factory = SpanFactory(tracer, scope, self, self.limits)  # type: ignore[attr-defined]
        return tracer

    def _rename_after_fork(self) -> None:
        """Give a forked child its own instance id, as newer SDKs do themselves."""
        self._resource = replace_attributes(self._resource, with_instance_id(self._resource, replace=True))

    def export_to(self, settings: ObserveSettings, internal_errors: InternalErrors) -> None:
        """Export ended spans to the endpoint of the settings. Without an endpoint nothing is queued."""
        if settings.traces_url is not None:
            transport = make_transport(settings, settings.traces_url, "traces")
            encoder = SpanEncoder(lambda: self.resource)
            self.queue = ExportQueue("spans", encoder, transport, queue_limits(settings), internal_errors)
            self.add_span_processor(ExportProcessor(self.queue))


def make_provider(settings: ObserveSettings, internal_errors: InternalErrors) -> tuple[trace.TracerProvider, bool]:
    """Return the provider to use, and whether `install` made it and has to shut it down.

    A provider in the settings, or a global one that the user has set, is used. Otherwise a new one is made, which
    becomes the global one if there is none. With `tracing=False` the provider is a no-op and nothing global changes.
    """
    if not settings.tracing:
        return trace.NoOpTracerProvider(), False
    current: Any = settings.tracer_provider or trace.get_tracer_provider()
    if settings.tracer_provider is not None or _is_user_provider(current):
        for processor in settings.span_processors:
            current.add_span_processor(GuardedProcessor(processor, internal_errors))
        return current, False
    provider = ObserveTracerProvider(settings)
    for processor in settings.span_processors:
        provider.add_span_processor(GuardedProcessor(processor, internal_errors))
    provider.export_to(settings, internal_errors)
    if isinstance(current, trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return provider, True


def _is_user_provider(provider: Any) -> bool:
    return isinstance(provider, TracerProvider) and not isinstance(provider, ObserveTracerProvider)

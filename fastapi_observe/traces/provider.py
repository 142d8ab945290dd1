"""Where spans come from and go to: the OpenTelemetry provider, its sampler, its resource and its exporter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from fastapi_observe.export.otlp.spans import SpanEncoder
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.setup import make_resource, make_transport, queue_limits, with_instance_id
from fastapi_observe.internal.forks import register_at_fork
from fastapi_observe.traces.processors import ExportProcessor, GuardedProcessor
from fastapi_observe.traces.sampling import RateLimitedSampler, TraceRateLimit, make_sampler, trace_id_bound

if TYPE_CHECKING:
    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings

MAX_ATTRIBUTE_LENGTH = 2048
"""Characters of a span's string attribute; the rest is cut."""


MAX_EVENT_ATTRIBUTE_LENGTH = 8192
"""Characters of a string attribute of an event: room for a stack trace."""


class ObserveTracerProvider(TracerProvider):
    """A tracer provider made by `install`, told apart from one that the user set.

    `bound` and `parent_decides` say what its sampler does, so that it need not be asked: a trace whose lowest 64 bits
    are below the bound is kept; with `parent_decides` a parent's decision comes first. `quota` bounds what is kept.
    """

    def __init__(self, settings: ObserveSettings) -> None:
        self.bound = trace_id_bound(settings)
        self.parent_decides = settings.sampler.startswith("parentbased")
        self.quota = TraceRateLimit(settings.max_traces_per_second)
        self.limits = SpanLimits(
            max_span_attribute_length=MAX_ATTRIBUTE_LENGTH, max_attribute_length=MAX_EVENT_ATTRIBUTE_LENGTH
        )
        super().__init__(
            sampler=RateLimitedSampler(make_sampler(settings), self.quota),
            resource=make_resource(settings),
            span_limits=self.limits,
            shutdown_on_exit=False,
        )
        self.queue: ExportQueue | None = None
        if not hasattr(TracerProvider, "_handle_fork"):  # pragma: no cover - older OpenTelemetry
            register_at_fork(self, ObserveTracerProvider._name_anew)

    def _name_anew(self) -> None:
        """Name a forked child, as a newer SDK does by itself; tracers have the resource that they were made with."""
        fresh = with_instance_id(self._resource, replace=True)
        self._resource._attributes = fresh._attributes  # noqa: SLF001 - as above
        self._resource = fresh

    def export_to(self, settings: ObserveSettings, faults: InternalErrors) -> None:
        """Send what ends to the endpoint of the settings; without one nothing is sent and nothing waits."""
        if settings.traces_url is not None:
            transport = make_transport(settings, settings.traces_url, "traces")
            encoder = SpanEncoder(lambda: self.resource)
            self.queue = ExportQueue("spans", encoder, transport, queue_limits(settings), faults)
            self.add_span_processor(ExportProcessor(self.queue))


def make_provider(settings: ObserveSettings, faults: InternalErrors) -> tuple[trace.TracerProvider, bool]:
    """Return the provider to use and whether it is ours to shut down.

    The user's own (given, or set globally) is joined; ours becomes the global one if none is set. With
    `tracing=False` there is none: no span is made and nothing global is touched.
    """
    if not settings.tracing:
        return trace.NoOpTracerProvider(), False
    current: Any = settings.tracer_provider or trace.get_tracer_provider()
    if settings.tracer_provider is not None or _is_user_provider(current):
        for processor in settings.span_processors:
            current.add_span_processor(GuardedProcessor(processor, faults))
        return current, False
    provider = ObserveTracerProvider(settings)
    for processor in settings.span_processors:
        provider.add_span_processor(GuardedProcessor(processor, faults))
    provider.export_to(settings, faults)
    if isinstance(current, trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return provider, True


def _is_user_provider(provider: Any) -> bool:
    return isinstance(provider, TracerProvider) and not isinstance(provider, ObserveTracerProvider)

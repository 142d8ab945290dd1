"""Where spans come from and go to: the OpenTelemetry provider, its sampler, its resource and its exporter."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider, sampling

from fastapi_observe.records.package import version_of
from fastapi_observe.signals.export_lifetime import at_fork
from fastapi_observe.signals.export_queue import ExportQueue
from fastapi_observe.signals.export_store import Limits
from fastapi_observe.signals.otlp_spans import SpanEncoder
from fastapi_observe.signals.span_processors import ExportProcessor, GuardedProcessor

if TYPE_CHECKING:
    from fastapi_observe.records.faults import Faults
    from fastapi_observe.settings import ObserveSettings
    from fastapi_observe.signals.export_transport import Transport

TRACE_ID_LIMIT: Final = sampling.TraceIdRatioBased.TRACE_ID_LIMIT
"""The bits of a trace id that decide whether a ratio keeps it."""

LONGEST_VALUE = 2048
"""Characters of a span's string attribute; the rest is cut."""

INSTANCE: Final = "service.instance.id"

LONGEST_EVENT_VALUE = 8192
"""Characters of a string attribute of an event: room for a stack trace."""


class ObserveTracerProvider(TracerProvider):
    """A tracer provider made by `install`, told apart from one that the user set.

    `bound` and `parent_decides` say what its sampler does, so that it need not be asked: a trace whose lowest 64 bits
    are below the bound is kept; with `parent_decides` a parent's decision comes first.
    """

    def __init__(self, settings: ObserveSettings) -> None:
        self.bound = make_bound(settings)
        self.parent_decides = settings.sampler.startswith("parentbased")
        self.limits = SpanLimits(max_span_attribute_length=LONGEST_VALUE, max_attribute_length=LONGEST_EVENT_VALUE)
        super().__init__(
            sampler=make_sampler(settings),
            resource=make_resource(settings),
            span_limits=self.limits,
            shutdown_on_exit=False,
        )
        self.queue: ExportQueue | None = None
        if not hasattr(TracerProvider, "_handle_fork"):  # pragma: no cover - older OpenTelemetry
            at_fork(self, ObserveTracerProvider._name_anew)

    def _name_anew(self) -> None:
        """Name a forked child, as a newer SDK does by itself; tracers have the resource that they were made with."""
        fresh = named(self._resource, anew=True)
        self._resource._attributes = fresh._attributes  # noqa: SLF001 - as above
        self._resource = fresh

    def export_to(self, settings: ObserveSettings, faults: Faults) -> None:
        """Send what ends to the endpoint of the settings; without one nothing is sent and nothing waits."""
        if settings.traces_url is not None:
            transport = make_transport(settings, settings.traces_url, "traces")
            encoder = SpanEncoder(lambda: self.resource)
            self.queue = ExportQueue("spans", encoder, transport, limits_of(settings), faults)
            self.add_span_processor(ExportProcessor(self.queue))


def make_provider(settings: ObserveSettings, faults: Faults) -> tuple[trace.TracerProvider, bool]:
    """Return the provider to use and whether it is ours to shut down.

    The user's own (given, or set globally) is joined; ours becomes the global one if none is set. With
    `tracing=False` there is none: no span is made and nothing global is touched.
    """
    if not settings.tracing:
        return trace.NoOpTracerProvider(), False
    current: Any = settings.tracer_provider or trace.get_tracer_provider()
    if settings.tracer_provider is not None or _is_foreign(current):
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


def _is_foreign(provider: Any) -> bool:
    return isinstance(provider, TracerProvider) and not isinstance(provider, ObserveTracerProvider)


def make_bound(settings: ObserveSettings) -> int:
    """Return below which value of its lowest 64 bits a new trace id is sampled."""
    if settings.sampler.endswith("always_on"):
        return TRACE_ID_LIMIT + 1
    if settings.sampler.endswith("always_off"):
        return 0
    return sampling.TraceIdRatioBased(settings.sample_ratio).bound


def threshold(bound: int) -> str:
    """Return the text below which, as texts are compared, the last 16 digits of a sampled trace id are."""
    return f"{bound:016x}" if bound <= TRACE_ID_LIMIT else "g"


def make_sampler(settings: ObserveSettings) -> sampling.Sampler:
    """Return the sampler that `settings.sampler` names."""
    root: sampling.Sampler
    if settings.sampler.endswith("always_on"):
        root = sampling.ALWAYS_ON
    elif settings.sampler.endswith("always_off"):
        root = sampling.ALWAYS_OFF
    else:
        root = sampling.TraceIdRatioBased(settings.sample_ratio)
    return sampling.ParentBased(root) if settings.sampler.startswith("parentbased") else root


def make_resource(settings: ObserveSettings) -> Resource:
    """Describe this service (OpenTelemetry resource conventions).

    `OTEL_RESOURCE_ATTRIBUTES` adds to it. Every process has an instance id of its own, a fork too.
    """
    attributes: dict[str, Any] = {
        "service.name": settings.service_name,
        "deployment.environment.name": settings.environment,
        "telemetry.distro.name": "fastapi-observe",
        "telemetry.distro.version": version_of("fastapi-observe"),
    }
    if settings.service_version:
        attributes["service.version"] = settings.service_version
    return named(Resource.create(attributes))


def named(resource: Resource, *, anew: bool = False) -> Resource:
    """Return a resource that names the instance; newer SDKs do so by themselves.

    The streams of two processes that have one name would be taken for one (OpenTelemetry, "Single-Writer").
    """
    if INSTANCE in resource.attributes and not anew:
        return resource
    return resource.merge(Resource({INSTANCE: str(uuid.uuid4())}))


def limits_of(settings: ObserveSettings) -> Limits:
    """Return what the export queue of a signal may hold, and how long things may take."""
    return Limits(
        items=settings.queue_size,
        bytes=settings.queue_bytes,
        batch=min(settings.batch_size, settings.queue_size),
        delay=settings.batch_delay,
        timeout=settings.otlp_timeout,
        shutdown=settings.shutdown_timeout,
    )


def make_transport(settings: ObserveSettings, url: str, signal: str) -> Transport:
    """Return what carries `signal` (`traces`, `logs`, `metrics`) to `url`."""
    headers = {name: value.get_secret_value() for name, value in settings.otlp_headers.items()}
    if settings.otlp_protocol == "grpc":
        from fastapi_observe.signals.export_grpc import GrpcTransport  # noqa: PLC0415 - slow to import, rarely used

        return GrpcTransport(url, headers, signal)
    from fastapi_observe.signals.export_http import HttpTransport  # noqa: PLC0415 - not used without an endpoint

    return HttpTransport(url, headers, signal)

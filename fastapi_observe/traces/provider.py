"""Where spans come from and go to: the OpenTelemetry provider, its sampler, its resource and its exporter."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider

from fastapi_observe.export.otlp.spans import SpanEncoder
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.store import Limits
from fastapi_observe.internal.forks import at_fork
from fastapi_observe.internal.networks import is_private_host
from fastapi_observe.internal.version import version_of
from fastapi_observe.settings.model import SettingsError
from fastapi_observe.traces.processors import ExportProcessor, GuardedProcessor
from fastapi_observe.traces.sampling import LimitedSampler, Quota, make_bound, make_sampler

if TYPE_CHECKING:
    from fastapi_observe.export.transport import Transport
    from fastapi_observe.internal.errors import Faults
    from fastapi_observe.settings.model import ObserveSettings

LONGEST_VALUE = 2048
"""Characters of a span's string attribute; the rest is cut."""

INSTANCE: Final = "service.instance.id"

LONGEST_EVENT_VALUE = 8192
"""Characters of a string attribute of an event: room for a stack trace."""


class ObserveTracerProvider(TracerProvider):
    """A tracer provider made by `install`, told apart from one that the user set.

    `bound` and `parent_decides` say what its sampler does, so that it need not be asked: a trace whose lowest 64 bits
    are below the bound is kept; with `parent_decides` a parent's decision comes first. `quota` bounds what is kept.
    """

    def __init__(self, settings: ObserveSettings) -> None:
        self.bound = make_bound(settings)
        self.parent_decides = settings.sampler.startswith("parentbased")
        self.quota = Quota(settings.max_traces_per_second)
        self.limits = SpanLimits(max_span_attribute_length=LONGEST_VALUE, max_attribute_length=LONGEST_EVENT_VALUE)
        super().__init__(
            sampler=LimitedSampler(make_sampler(settings), self.quota),
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
    """Return what carries `signal` (`traces`, `logs`, `metrics`) to `url`.

    Raises `SettingsError` where credentials would travel readable.
    """
    headers = {name: value.get_secret_value() for name, value in settings.otlp_headers.items()}
    transport: Transport
    if settings.otlp_protocol == "grpc":
        from fastapi_observe.export.grpc import GrpcTransport  # noqa: PLC0415 - slow to import, rarely used

        transport = GrpcTransport(url, headers, signal)
    else:
        from fastapi_observe.export.http import HttpTransport  # noqa: PLC0415 - not used without an endpoint

        transport = HttpTransport(url, headers, signal)
    if not transport.encrypted and not settings.insecure:
        _refuse_readable(url, headers)
    return transport


def _refuse_readable(url: str, headers: dict[str, str]) -> None:
    """Refuse to send credentials over a connection that is not encrypted to a public host."""
    target = urlsplit(url if "://" in url else f"//{url}")
    if (headers or "@" in target.netloc or target.query) and not is_private_host(target.hostname or ""):
        told = (
            f"otlp_endpoint: {target.hostname} is no private host, and the credentials (otlp_headers, or user or "
            "query of the URL) would travel readable over plain http; use https://, or insecure=True if that is wanted"
        )
        raise SettingsError([told])

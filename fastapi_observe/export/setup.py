"""What every export queue is made of: the resource, the limits and the transport."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource

from fastapi_observe.export.store import QueueLimits
from fastapi_observe.internal.networks import is_private_host
from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.model import SettingsError

if TYPE_CHECKING:
    from fastapi_observe.export.transport import Transport
    from fastapi_observe.settings.model import ObserveSettings


INSTANCE: Final = "service.instance.id"


def make_resource(settings: ObserveSettings) -> Resource:
    """Describe this service (OpenTelemetry resource conventions).

    `OTEL_RESOURCE_ATTRIBUTES` adds to it. Every process has an instance id of its own, a fork too.
    """
    attributes: dict[str, Any] = {
        "service.name": settings.service_name,
        "deployment.environment.name": settings.environment,
        "telemetry.distro.name": "fastapi-observe",
        "telemetry.distro.version": package_version("fastapi-observe"),
    }
    if settings.service_version:
        attributes["service.version"] = settings.service_version
    return with_instance_id(Resource.create(attributes))


def with_instance_id(resource: Resource, *, anew: bool = False) -> Resource:
    """Return a resource that names the instance; newer SDKs do so by themselves.

    The streams of two processes that have one name would be taken for one (OpenTelemetry, "Single-Writer").
    """
    if INSTANCE in resource.attributes and not anew:
        return resource
    return resource.merge(Resource({INSTANCE: str(uuid.uuid4())}))


def queue_limits(settings: ObserveSettings) -> QueueLimits:
    """Return what the export queue of a signal may hold, and how long things may take."""
    return QueueLimits(
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
    if not transport.encrypted and not settings.otlp_allow_plaintext_credentials:
        _require_tls_for_credentials(url, headers)
    return transport


def _require_tls_for_credentials(url: str, headers: dict[str, str]) -> None:
    """Refuse to send credentials over a connection that is not encrypted to a public host."""
    target = urlsplit(url if "://" in url else f"//{url}")
    if (headers or "@" in target.netloc or target.query) and not is_private_host(target.hostname or ""):
        told = (
            f"otlp_endpoint: {target.hostname} is no private host, and the credentials (otlp_headers, or user or "
            "query of the URL) would travel readable over plain http; use https://, or otlp_allow_plaintext_credentials=True if that is wanted"  # noqa: E501
        )
        raise SettingsError([told])

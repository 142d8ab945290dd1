"""Builds what an export queue needs from the settings: the resource, the limits and the transport."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from opentelemetry.sdk.environment_variables import OTEL_EXPERIMENTAL_RESOURCE_DETECTORS
from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from fastapi_observe.export.buffer import QueueLimits
from fastapi_observe.internal.networks import is_private_host
from fastapi_observe.internal.version import package_version
from fastapi_observe.settings.model import SettingsError

if TYPE_CHECKING:
    from fastapi_observe.export.transport import Transport
    from fastapi_observe.settings.model import ObserveSettings


INSTANCE: Final = "service.instance.id"

AVERAGE_ITEM_BYTES: Final = 2048
"""Bytes of an export queue for each of its items."""

MIN_QUEUE_BYTES: Final = 65_536
"""Bytes of the smallest export queue."""


def make_resource(settings: ObserveSettings) -> Resource:
    """Return the resource that describes this service (OpenTelemetry resource conventions).

    Includes `OTEL_RESOURCE_ATTRIBUTES` and what the detectors of `OTEL_EXPERIMENTAL_RESOURCE_DETECTORS` find; without
    that variable the id of the container, if its detector is installed. Every installed app has its own instance id, in
    every process.
    """
    attributes: dict[str, Any] = {
        "service.name": settings.service_name,
        "deployment.environment.name": settings.environment,
        "telemetry.distro.name": "fastapi-observe",
        "telemetry.distro.version": package_version("fastapi-observe"),
    }
    if settings.service_version:
        attributes["service.version"] = settings.service_version
    try:
        resource = Resource.create(attributes)
    except RuntimeError:  # the SDK runs its detectors in threads, and no thread can start
        sdk = {"language": "python", "name": "opentelemetry", "version": package_version("opentelemetry-sdk")}
        resource = Resource({f"telemetry.sdk.{name}": value for name, value in sdk.items()})
        resource = resource.merge(OTELResourceDetector().detect()).merge(Resource(attributes))
    if not os.environ.get(OTEL_EXPERIMENTAL_RESOURCE_DETECTORS):
        resource = _detect_container().merge(resource)
    # The SDK's own id is that of the process, which several apps may share.
    return with_instance_id(resource, replace=INSTANCE not in OTELResourceDetector().detect().attributes)


def _detect_container() -> Resource:
    """Return the resource of the container if OpenTelemetry's detector for it is installed."""
    try:
        from opentelemetry.resource.detector.containerid import ContainerResourceDetector  # noqa: PLC0415 - optional

        return ContainerResourceDetector().detect()
    except Exception:  # noqa: BLE001 - not installed, of another version, or a detector that raises
        return Resource.get_empty()


def with_instance_id(resource: Resource, *, replace: bool = False) -> Resource:
    """Return a resource with an instance id; `replace` gives it a new one. Newer SDKs add one themselves.

    Streams of two processes under one id would be mixed up (OpenTelemetry metrics data model, "Single-Writer").
    """
    if INSTANCE in resource.attributes and not replace:
        return resource
    return resource.merge(Resource({INSTANCE: str(uuid.uuid4())}))


def queue_limits(settings: ObserveSettings) -> QueueLimits:
    """Return the limits of an export queue."""
    return QueueLimits(
        items=settings.queue_size,
        bytes=max(MIN_QUEUE_BYTES, settings.queue_size * AVERAGE_ITEM_BYTES),
        batch=min(settings.batch_size, settings.queue_size),
        delay=settings.batch_delay,
        timeout=settings.otlp_timeout,
        shutdown=settings.shutdown_timeout,
    )


def make_transport(settings: ObserveSettings, url: str, signal: str) -> Transport:
    """Return the transport of `signal` (`traces`, `logs`, `metrics`) to `url`.

    Raises `SettingsError` if credentials would be sent unencrypted to a public host.
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
    target = urlsplit(url if "://" in url else f"//{url}")
    if (headers or "@" in target.netloc or target.query) and not is_private_host(target.hostname or ""):
        problem = (
            "otlp_endpoint: refusing to send credentials (otlp_headers, or user or query of the URL) unencrypted to "
            f"the public host {target.hostname}; use https:// or set otlp_allow_plaintext_credentials=True"
        )
        raise SettingsError([problem])

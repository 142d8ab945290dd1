"""The traces signal that `server_span` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.redaction.redactor import Redactor
    from fastapi_observe.settings.model import ObserveSettings


def make_tracing(settings: ObserveSettings, internal_errors: InternalErrors, redactor: Redactor) -> TracingService:
    """Return the traces signal for the settings."""
    if settings.server_span == "contrib" and settings.tracing:
        from fastapi_observe.traces.contrib.service import ContribTracingService  # noqa: PLC0415 - slow to import

        return ContribTracingService(settings, internal_errors, redactor)
    return TracingService(settings, internal_errors, redactor)

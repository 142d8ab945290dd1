"""`open_pushes`: sends log lines and metrics to the collector too, where the settings say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastapi_observe.signals.otlp_push import MetricsPush, make_log_queue, make_metrics_push, resource_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from fastapi_observe.records.faults import Faults
    from fastapi_observe.settings import ObserveSettings
    from fastapi_observe.signals.export_queue import ExportQueue
    from fastapi_observe.signals.tracing import TracingService


class Lines(Protocol):
    """Who writes lines (`Logs`)."""

    push: Callable[[bytes], None] | None


def open_pushes(
    settings: ObserveSettings, tracing: TracingService, registry: CollectorRegistry, logs: Lines, faults: Faults
) -> list[ExportQueue | MetricsPush]:
    """Return what sends lines and metrics; each has `flush(timeout)` and `close()`."""
    resource = resource_of(settings, tracing.provider)
    lines = make_log_queue(settings, resource, faults)
    metrics = make_metrics_push(settings, resource, registry.collect, faults)
    if lines is not None:
        logs.push = lines.put
    return [push for push in (lines, metrics) if push is not None]

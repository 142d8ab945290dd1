"""`open_pushes`: sends log lines and metrics to the collector too, where the settings say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastapi_observe.export.push import MetricsPush, ProcessResource, make_log_queue, make_metrics_push

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.registry import Collector

    from fastapi_observe.export.queue import ExportQueue
    from fastapi_observe.internal.errors import Faults
    from fastapi_observe.settings.model import ObserveSettings
    from fastapi_observe.traces.service import TracingService


class Lines(Protocol):
    """Who writes lines (`Logs`)."""

    push: Callable[[bytes], None] | None


class Metrics(Protocol):
    """Who has the metrics (`Sharing`)."""

    def of_this_process(self) -> Iterable[Collector]:
        """Return what shows the values of this process alone."""

    def zeroed(self) -> int:
        """Return when counters were last set to zero, in nanoseconds; 0: they never were."""


def open_pushes(
    settings: ObserveSettings, tracing: TracingService, metrics: Metrics, logs: Lines, faults: Faults
) -> list[ExportQueue | MetricsPush]:
    """Return what sends lines and metrics; each has `flush(timeout)` and `close()`.

    Each worker process sends its own, under an instance id of its own: who receives them adds them up.
    """
    resource = ProcessResource(settings, tracing.provider)
    lines = make_log_queue(settings, resource, faults)
    numbers = make_metrics_push(settings, resource, metrics.of_this_process, faults, metrics.zeroed)
    if lines is not None:
        logs.push = lines.put
    return [push for push in (lines, numbers) if push is not None]

"""Observability for FastAPI and Starlette: `install(app)` adds traces, metrics and logs to an app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# First: this imports OpenTelemetry, and FastAPI imports it too.
from fastapi_observe.settings import environment  # noqa: F401

# isort: split
from fastapi_observe.current import get_observability, job, operation, traced
from fastapi_observe.install import install, install_worker
from fastapi_observe.observability import Observability
from fastapi_observe.records.pool import PoolState
from fastapi_observe.settings.model import ObserveSettings, SettingsError
from fastapi_observe.settings.objectives import Availability, Latency, SLOOptions

# Importing the package `slo` sets this attribute: it has to happen before the function gets the name.
from fastapi_observe.slo.decorator import slo
from fastapi_observe.traces.context import TraceContext

if TYPE_CHECKING:
    from fastapi_observe.dependencies import (
        DatabaseDep,
        ExternalDep,
        HttpClientDep,
        LogDep,
        MetricsDep,
        ObservabilityDep,
        SpanDep,
        TracingDep,
    )
    from fastapi_observe.slo.prometheus.rules import generate_rules

__all__ = [
    "Availability",
    "DatabaseDep",
    "ExternalDep",
    "HttpClientDep",
    "Latency",
    "LogDep",
    "MetricsDep",
    "Observability",
    "ObservabilityDep",
    "ObserveSettings",
    "PoolState",
    "SLOOptions",
    "SettingsError",
    "SpanDep",
    "TraceContext",
    "TracingDep",
    "generate_rules",
    "get_observability",
    "install",
    "install_worker",
    "job",
    "operation",
    "slo",
    "traced",
]


def __getattr__(name: str) -> Any:
    """Import the `...Dep` aliases and `generate_rules` on first use: the aliases require FastAPI."""
    if name == "generate_rules":
        from fastapi_observe.slo.prometheus.rules import generate_rules  # noqa: PLC0415 - not needed by a server

        return generate_rules
    if name in __all__:
        from fastapi_observe import dependencies  # noqa: PLC0415 - see above

        return getattr(dependencies, name)
    raise AttributeError(f"module 'fastapi_observe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

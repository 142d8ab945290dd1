"""Observability for FastAPI and Starlette: `install(app)` gives an app its traces, metrics and logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi_observe.install import install
from fastapi_observe.installed import current, operation, traced
from fastapi_observe.observability import Observability
from fastapi_observe.records.trace_context import TraceContext
from fastapi_observe.settings import ObserveSettings, SettingsError

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

__all__ = [
    "DatabaseDep",
    "ExternalDep",
    "HttpClientDep",
    "LogDep",
    "MetricsDep",
    "Observability",
    "ObservabilityDep",
    "ObserveSettings",
    "SettingsError",
    "SpanDep",
    "TraceContext",
    "TracingDep",
    "current",
    "install",
    "operation",
    "traced",
]


def __getattr__(name: str) -> Any:
    """Import the `...Dep` aliases when they are asked for: plain Starlette has no FastAPI to import."""
    if name in __all__:
        from fastapi_observe import dependencies  # noqa: PLC0415 - see above

        return getattr(dependencies, name)
    raise AttributeError(f"module 'fastapi_observe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

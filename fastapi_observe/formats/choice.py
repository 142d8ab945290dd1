"""The format that `log_format` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi_observe.formats.datadog import DATADOG
from fastapi_observe.formats.ecs import ECS
from fastapi_observe.formats.gcp import make_gcp
from fastapi_observe.formats.line_format import LineFormat

if TYPE_CHECKING:
    from fastapi_observe.settings.model import ObserveSettings

TOP_LEVEL: Final = (
    "timestamp", "level", "message", "logger", "service", "environment", "version", "trace_id", "span_id", "request_id",
)  # fmt: skip

JSON: Final = LineFormat("json", {name: name for name in TOP_LEVEL}, "fields", None, r'"trace_id":"(\w+)"')
"""The lines of this package. Text is for terminals; beside it, the log file has this format."""


def choose_line_format(settings: ObserveSettings) -> LineFormat:
    """Return the format of JSON lines that the settings ask for."""
    if settings.log_format == "gcp":
        return make_gcp(settings.gcp_project)
    return {"ecs": ECS, "datadog": DATADOG}.get(settings.log_format, JSON)

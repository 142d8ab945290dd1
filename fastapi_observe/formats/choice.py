"""The format that `log_format` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastapi_observe.formats.line_format import LineFormat

if TYPE_CHECKING:
    from fastapi_observe.settings.model import ObserveSettings

TOP_LEVEL: Final = (
    "timestamp", "level", "message", "logger", "service", "environment", "version", "trace_id", "span_id", "request_id",
)  # fmt: skip

JSON: Final = LineFormat("json", {name: name for name in TOP_LEVEL}, "fields", None, r'"trace_id":"(\w+)"')
"""The lines of this package. Text is for terminals; the log file then has this format."""


def choose_line_format(settings: ObserveSettings) -> LineFormat:
    """Return the format of JSON lines that the settings ask for."""
    # One of the modules at most is imported.
    if settings.log_format == "ecs":
        from fastapi_observe.formats.ecs import ECS  # noqa: PLC0415 - see above

        return ECS
    if settings.log_format == "gcp":
        from fastapi_observe.formats.gcp import make_gcp  # noqa: PLC0415

        return make_gcp(settings.gcp_project)
    if settings.log_format == "datadog":
        from fastapi_observe.formats.datadog import DATADOG  # noqa: PLC0415

        return DATADOG
    return JSON

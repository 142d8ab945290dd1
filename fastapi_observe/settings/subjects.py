"""The options by subject, for the documentation and the command `settings`."""

from __future__ import annotations

from typing import Final

from fastapi_observe.settings.model import ObserveSettings

SUBJECTS: Final = {
    "env_file": "The service",
    "tracing": "Sampler",
    "otlp_protocol": "Export over OTLP",
    "span_processors": "Spans",
    "trust_incoming": "Trust and tail sampling",
    "capture_query_parameters": "Redaction",
    "metrics": "Metrics",
    "max_series_per_metric": "Names and limits of metrics",
    "logs": "Log lines",
    "engines": "Databases and other services",
    "console": "Development",
    "slos": "Objectives",
    "exclude_paths": "Requests",
}
"""Subjects by their first option: an option belongs to the subject that begins last before it."""


def options_by_subject() -> dict[str, list[str]]:
    """Return the names of the options of each subject, in the order of `ObserveSettings`."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for name in ObserveSettings.model_fields:
        if name in SUBJECTS:
            names = found[SUBJECTS[name]] = []
        names.append(name)
    return found

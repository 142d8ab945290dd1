"""Former names of options, methods, fields and flags, each with its current name."""

from __future__ import annotations

from typing import Final, NamedTuple

RENAMED_OPTIONS: Final = {
    "workers": "multiprocess",
    "workers_directory": "multiprocess_directory",
    "query_allow": "capture_query_parameters",
    "slow_query": "slow_query_threshold",
    "repeated_queries": "repeated_query_threshold",
    "series_per_metric": "max_series_per_metric",
    "series_per_process": "max_series_per_process",
    "values_per_label": "max_values_per_label",
    "insecure": "otlp_allow_plaintext_credentials",
    "instrumentations": "instrumentator_functions",
    "default_registry": "include_default_registry",
}
"""Options of `ObserveSettings` by their former name. A former name raises `SettingsError`."""


class Renamed(NamedTuple):
    """A name that users had in their code, dashboards or scripts."""

    kind: str
    old: str
    new: str


RENAMED_NAMES: Final = (
    Renamed("function", "current()", "get_observability()"),
    Renamed("method", "call.status(201)", "call.set_status_code(201)"),
    Renamed("method", "query.rows(1)", "query.set_row_count(1)"),
    Renamed("method", "operation.detail(...)", "operation.add_details(...)"),
    Renamed("method", "tracing.event(...)", "tracing.add_event(...)"),
    Renamed("method", "tracing.keep_all()", "tracing.sample_all()"),
    Renamed("testing", "watch(app)", "capture(app)"),
    Renamed("testing", "Watch", "CapturedTelemetry"),
    Renamed("objective", "Availability(bad=...)", "Availability(bad_statuses=...)"),
    Renamed("objective", 'Budget.burn["5m"]', 'ErrorBudget.burn_rates["5m"]'),
    Renamed("log field, span attribute", "own_ms", "self_ms"),
    Renamed("log field, span attribute", "pool_ms", "pool_wait_ms"),
    Renamed("log field, span attribute", "pool_count", "pool_wait_count"),
    Renamed("metric", "fastapi_observe_bounds_info", "fastapi_observe_limits_info"),
    Renamed("metric", "fastapi_observe_traces_refused_total", "fastapi_observe_traces_rate_limited_total"),
    Renamed("command", "rules", "slo bundle --only rules"),
    Renamed("command", "dashboard", "slo bundle --only dashboard"),
    Renamed("command", "alertmanager", "slo bundle --only alertmanager"),
    Renamed("command", "runbooks", "slo bundle --only runbooks"),
    Renamed("command", "bundle", "slo bundle"),
    Renamed("command", "verify", "slo verify"),
    Renamed("flag", "--with, --without", "--include, --exclude"),
    Renamed("flag", "cardinality --watch", "cardinality --compare-after"),
    Renamed("flag", "--insecure", "--allow-http-token"),
)
"""Everything else that was renamed, as docs/configuration.md lists it."""


def renames_table() -> str:
    """Return all renames as a Markdown table."""
    options = [Renamed("option", old, new) for old, new in RENAMED_OPTIONS.items()]
    rows = [f"| {each.kind} | `{each.old}` | `{each.new}` |" for each in (*options, *RENAMED_NAMES)]
    return "\n".join(("| Kind | Old name | New name |", "| --- | --- | --- |", *rows, ""))

"""Former names of options, commands and flags, each with its current name.

docs/reference/configuration.md lists all renames.
"""

from __future__ import annotations

from typing import Final

RENAMED_OPTIONS: Final = {
    "workers": "multiprocess",
    "native": "server_span",
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

REMOVED_OPTIONS: Final = {
    "queue_bytes": "queue_size limits the bytes too, to 2 KiB for each item on average",
}
"""Options that were removed, each with what there is instead. The name of one raises `SettingsError`."""

RENAMED_COMMANDS: Final = {
    "rules": "slo bundle --only rules",
    "dashboard": "slo bundle --only dashboard",
    "alertmanager": "slo bundle --only alertmanager",
    "runbooks": "slo bundle --only runbooks",
    "bundle": "slo bundle",
    "verify": "slo verify",
}
"""Commands by their former name. A former name is an error."""

REMOVED_COMMANDS: Final = {
    "simulate": "slo bundle writes tests of the rules; run promtool test rules on them",
}
"""Commands that were removed, each with what there is instead. The name of one is an error."""

RENAMED_FLAGS: Final = {
    "--with": "--include",
    "--without": "--exclude",
    "--watch": "--compare-after",
    "--insecure": "--allow-http-token",
}
"""Flags of commands by their former name. A former name is an error."""

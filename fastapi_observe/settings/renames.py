"""Former names of options, each with its current name; docs/configuration.md lists all renames."""

from __future__ import annotations

from typing import Final

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

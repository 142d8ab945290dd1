"""`Options`: the keyword arguments of `install`, for type checkers and editors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry
    from pydantic import SecretStr
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from fastapi_observe.settings.objectives import Objective, SLOOptions

FileName = str | os.PathLike[str]
Peers = str | Sequence[str] | Callable[[MutableMapping[str, Any]], bool]

Level = Literal[
    "trace", "debug", "info", "success", "warn", "warning", "error", "critical", "fatal",
    "TRACE", "DEBUG", "INFO", "SUCCESS", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL",
]  # fmt: skip


class Options(TypedDict, total=False):
    """Options as `install` and `ObserveSettings.load` accept them. `ObserveSettings` describes and validates them.

    A test compares the names with those of `ObserveSettings`.
    """

    env_file: FileName | None
    service_name: str
    service_version: str
    environment: str
    tracing: bool
    sample_ratio: float
    sampler: Literal[
        "parentbased_traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "traceidratio",
        "always_on",
        "always_off",
    ]
    otlp_protocol: Literal["http/protobuf", "grpc"]
    otlp_endpoint: str | None
    otlp_headers: Mapping[str, str | SecretStr] | str
    otlp_timeout: float
    batch_delay: float
    batch_size: int
    queue_size: int
    otlp_logs: bool
    otlp_metrics: bool
    otlp_metrics_interval: float
    shutdown_timeout: float
    otlp_allow_plaintext_credentials: bool
    span_processors: Sequence[SpanProcessor]
    tracer_provider: TracerProvider | None
    server_span: Literal["observe", "contrib", "fastapi"]
    contrib_options: Mapping[str, Any]
    response_trace_header: bool
    capture_request_headers: Sequence[str]
    capture_response_headers: Sequence[str]
    trust_incoming: Peers
    max_traces_per_second: float | None
    tail_sampling: Sequence[Literal["errors", "slow", "first", "repeated_queries"]] | None
    tail_samples_per_second: float
    slow_request_threshold: float
    capture_query_parameters: Sequence[str]
    capture_pii: bool
    redact_names: Sequence[str]
    redact_patterns: Sequence[str]
    redact: Callable[[str], str] | None
    metrics: bool
    metrics_path: str
    metrics_access: Peers
    metrics_token: str | SecretStr | None
    metrics_dependency: Any
    metrics_port: int | None
    metrics_host: str
    registry: CollectorRegistry | None
    include_default_registry: bool
    multiprocess: Literal["auto", "off"]
    multiprocess_directory: str | None
    duration_buckets: Sequence[float]
    size_histograms: bool
    exemplars: bool
    max_series_per_metric: int
    max_series_per_process: int
    max_values_per_label: int
    metric_names: Literal["prometheus", "semconv"]
    metric_labels: Sequence[str]
    constant_labels: Mapping[str, str]
    disk_paths: Sequence[str]
    instrumentator_functions: Sequence[Callable[[Any], Any]]
    logs: bool
    log_level: Level | int
    log_format: Literal["auto", "json", "text", "ecs", "gcp", "datadog"]
    gcp_project: str | None
    print_traces: bool
    log_requests: bool
    capture_logging: bool
    quiet_loggers: Sequence[str]
    log_file: FileName | None
    log_rotation: str | None
    log_retention: str | None
    log_compression: Literal["gz"] | None
    engines: Sequence[Engine | AsyncEngine]
    slow_query_threshold: float
    repeated_query_threshold: int
    instrument: str | Sequence[str] | None
    propagate_to: Sequence[str]
    propagate_baggage: Sequence[str]
    console: Literal["auto"] | bool
    console_path: str
    console_token: str | SecretStr | None
    blocked_loop_threshold: float | None
    slos: Sequence[Objective]
    slo_options: SLOOptions | None
    exclude_paths: Sequence[str]
    exclude_from: Mapping[Literal["traces", "metrics", "logs"], Sequence[str]]
    exclude_urls: Sequence[str]
    request_id_header: str

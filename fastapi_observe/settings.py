"""Every option of fastapi-observe, written once: `ObserveSettings`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Names = Annotated[tuple[str, ...], NoDecode]
"""Several strings; in the environment separated by commas."""


def option(default: Any, doc: str, *, otel: tuple[str, ...] = (), **limits: Any) -> Any:
    """Describe one option: its default, its line of documentation and the `OTEL_*` variables it honours."""
    return Field(default, description=doc, json_schema_extra={"otel": list(otel)}, **limits)


class ObserveSettings(BaseSettings):
    """All options, frozen. An explicit argument wins over `OBSERVE_*`, that over `OTEL_*`, that over the default."""

    model_config = SettingsConfigDict(
        env_prefix="OBSERVE_", frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=False
    )

    # Who this is
    service_name: str = option("unknown_service", "Name of this service.", otel=("OTEL_SERVICE_NAME",), min_length=1)
    service_version: str = option("", "Version of this service.")
    environment: str = option("production", "Deployment environment; `development` makes the terminal readable.")

    # Tracing
    tracing: bool = option(True, "Make spans.")
    sample_ratio: float = option(0.1, "Part of new traces that is kept, 0 to 1.", ge=0, le=1)
    sampler: Literal[
        "parentbased_traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "traceidratio",
        "always_on",
        "always_off",
    ] = option("parentbased_traceidratio", "Who decides that a trace is kept.", otel=("OTEL_TRACES_SAMPLER",))
    otlp_endpoint: str | None = option(None, "Where spans go, for example http://127.0.0.1:4318; None: nowhere.")
    otlp_protocol: Literal["http/protobuf", "grpc"] = option("http/protobuf", "How spans travel.")
    otlp_headers: dict[str, SecretStr] = option({}, "Headers of each export.")
    otlp_timeout: float = option(10.0, "Longest time one export may take, in seconds.", gt=0)
    batch_delay: float = option(1.0, "Longest time a finished span waits for its batch, in seconds.", gt=0)
    batch_size: int = option(256, "Most spans in one export.", ge=1)
    queue_size: int = option(4096, "Most finished spans waiting for export; more are dropped.", ge=1)
    span_processors: tuple[Any, ...] = option((), "Further OpenTelemetry span processors.")
    tracer_provider: Any = option(None, "Use this OpenTelemetry tracer provider; None: the global one, else our own.")
    native: Literal["own", "ride"] = option("own", "FastAPI's native telemetry: take it over, or ride on its span.")
    response_trace_header: bool = option(True, "Send `traceresponse` (W3C) on sampled responses.")
    capture_request_headers: Names = option((), "Request headers put on the span, by exact name.")
    capture_response_headers: Names = option((), "Response headers put on the span, by exact name.")
    query_allow: Names = option((), "Query parameters whose values may be shown; all others read REDACTED.")

    # Metrics
    metrics: bool = option(True, "Take measurements and answer `metrics_path`.")
    metrics_path: str = option("/metrics", "Path that the door answers with the metrics.", pattern=r"^/.+")
    registry: Any = option(None, "Prometheus registry to fill; None: one of our own.")
    default_registry: bool = option(True, "Also show what stands in prometheus_client's default registry.")
    duration_buckets: Annotated[tuple[float, ...], NoDecode] = option(
        (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        "Bucket bounds of request durations, in seconds.",
    )
    size_histograms: bool = option(True, "Measure request and response sizes.")
    exemplars: bool = option(True, "Put the ids of sampled traces on samples (OpenMetrics only).")
    series_per_metric: int = option(2000, "Most label sets of one metric; more share one overflow series.", ge=1)
    disk_paths: Names = option(("/",), "Paths whose file systems `disk_usage_bytes` measures.")
    instrumentations: tuple[Any, ...] = option((), "prometheus-fastapi-instrumentator closures: called with `Info`.")

    # Logs
    logs: bool = option(True, "Write log lines.")
    log_level: Literal["debug", "info", "warn", "error", "fatal"] = option("info", "Lowest level that is written.")
    log_format: Literal["auto", "json", "text"] = option("auto", "auto: text on a terminal in development, else JSON.")
    log_requests: bool = option(True, "Write one line for each request.")
    capture_logging: bool = option(True, "Write records of the standard library's logging and of uvicorn too.")
    quiet_loggers: Names = option(("httpx", "httpcore"), "Standard library loggers heard from `warn` on only.")
    log_file: str | None = option(None, "Also write to this file; `{pid}` in it makes one file for each process.")
    log_rotation: str | None = option("100 MB", "Start a new file at this size (`100 MB`) or age (`1 day`).")
    log_retention: str | None = option("10 files", "Keep so many rotated files (`10 files`) or so long (`7 days`).")
    log_compression: Literal["gz"] | None = option("gz", "How rotated files are compressed.")

    # The door
    exclude_paths: Names = option((), "Paths that no signal reports: exact, or a prefix that ends in `*`.")
    request_id_header: str = option("x-request-id", "Header that carries the request id.", pattern=r"^[A-Za-z0-9-]+$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the sources: argument, `OBSERVE_*`, `OTEL_*`."""
        return init_settings, env_settings

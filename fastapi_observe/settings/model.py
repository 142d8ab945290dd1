"""Every option of fastapi-observe, written once: `ObserveSettings`."""
# ruff: noqa: FBT003 - the first argument of option() is its default, whatever its type

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from fastapi_observe.settings.sources import (
    PREFIX,
    UNPARSABLE,
    SettingsError,
    SourcedValue,
    VariablesSource,
    check_combinations,
    describe_error,
    mask,
    sourced,
)
from fastapi_observe.settings.types import (
    PEERS_HELP,
    RETENTION_PATTERN,
    BucketBounds,
    HeaderNames,
    Headers,
    ObjectiveList,
    ObjectiveOptions,
    Paths,
    PeerPolicy,
    Regexes,
    StringList,
    Token,
    is_endpoint,
    option,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import ModelWrapValidatorHandler

__all__ = ["ObserveSettings", "SettingsError"]

TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
TRACES_PATH: Final = "/v1/traces"


class ObserveSettings(BaseSettings):
    """All options, frozen. An explicit argument wins over `OBSERVE_*`, that over `OTEL_*`, that over the default."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=False,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )

    # Who this is
    service_name: str = option(
        "unknown_service",
        "Name of this service.",
        otel=("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES:service.name"),
        min_length=1,
    )
    service_version: str = option("", "Version of this service.", otel=("OTEL_RESOURCE_ATTRIBUTES:service.version",))
    environment: str = option(
        "production",
        "Deployment environment; `development` makes the terminal readable.",
        aliases=("OBSERVE_ENV", "FASTAPI_ENV"),
        otel=(
            "OTEL_RESOURCE_ATTRIBUTES:deployment.environment.name",
            "OTEL_RESOURCE_ATTRIBUTES:deployment.environment",
        ),
    )

    # Tracing
    tracing: bool = option(True, "Make spans.", otel=("OTEL_SDK_DISABLED",))
    sample_ratio: float = option(
        0.1,
        "Part of new traces that is kept, 0 to 1.",
        otel=("OTEL_TRACES_SAMPLER_ARG", "OTEL_TRACES_SAMPLER"),
        ge=0,
        le=1,
    )
    sampler: Literal[
        "parentbased_traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "traceidratio",
        "always_on",
        "always_off",
    ] = option("parentbased_traceidratio", "Who decides that a trace is kept.", otel=("OTEL_TRACES_SAMPLER",))
    otlp_protocol: Literal["http/protobuf", "grpc"] = option(
        "http/protobuf",
        "How spans travel.",
        otel=("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    )
    otlp_endpoint: str | None = option(
        None,
        "Where spans go, for example http://127.0.0.1:4318; None: nowhere.",
        otel=("OTEL_TRACES_EXPORTER", TRACES_ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        accepts="a URL such as http://127.0.0.1:4318 (grpc: host:port too), or None",
    )
    otlp_headers: Headers = option(
        {},
        "Headers of each export.",
        otel=("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
        accepts="names with values; as text name=value,name2=value2 (percent-encoded) or a JSON object",
    )
    otlp_timeout: float = option(
        10.0,
        "Longest time one export may take, in seconds.",
        otel=("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
        accepts="a number of seconds above 0",
        gt=0,
    )
    batch_delay: float = option(
        1.0,
        "Longest time a finished span waits for its batch, in seconds.",
        otel=("OTEL_BSP_SCHEDULE_DELAY",),
        accepts="a number of seconds above 0 (OTEL_BSP_SCHEDULE_DELAY: of milliseconds)",
        gt=0,
    )
    batch_size: int = option(256, "Most spans in one export.", otel=("OTEL_BSP_MAX_EXPORT_BATCH_SIZE",), ge=1)
    queue_size: int = option(
        4096, "Most finished spans waiting for export; the oldest are dropped.", otel=("OTEL_BSP_MAX_QUEUE_SIZE",), ge=1
    )
    queue_bytes: int = option(8_388_608, "Most bytes of what waits for export, of each signal.", ge=65_536)
    otlp_logs: bool = option(False, "Also send log lines to the OTLP endpoint.")
    otlp_metrics: bool = option(False, "Also send metrics to the OTLP endpoint, every `otlp_metrics_interval`.")
    otlp_metrics_interval: float = option(
        60.0,
        "Seconds between two exports of metrics.",
        otel=("OTEL_METRIC_EXPORT_INTERVAL",),
        accepts="a number of seconds above 0 (OTEL_METRIC_EXPORT_INTERVAL: of milliseconds)",
        gt=0,
    )
    shutdown_timeout: float = option(2.0, "Seconds that flushing may take at shutdown, all signals together.", gt=0)
    otlp_allow_plaintext_credentials: bool = option(
        False, "Send `otlp_headers` and passwords over plain http to a public host too."
    )
    span_processors: tuple[Any, ...] = option((), "Further OpenTelemetry span processors.", code_only=True)
    tracer_provider: Any = option(
        None, "Use this OpenTelemetry tracer provider; None: the global one, else our own.", code_only=True
    )
    native: Literal["own", "ride"] = option("own", "FastAPI's native telemetry: take it over, or ride on its span.")
    response_trace_header: bool = option(True, "Send `traceresponse` (W3C) on sampled responses.")
    capture_request_headers: HeaderNames = option(
        (),
        "Request headers put on the span, by exact name.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",),
        accepts="header names, separated by commas; patterns are not supported",
    )
    capture_response_headers: HeaderNames = option(
        (),
        "Response headers put on the span, by exact name.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",),
        accepts="header names, separated by commas; patterns are not supported",
    )

    # What may come in and what may be shown
    trust_incoming: PeerPolicy = option(
        "private",
        "Whose trace, baggage and request id are taken over; a trace of others is linked.",
        accepts=PEERS_HELP,
    )
    max_traces_per_second: float | None = option(
        100.0,
        "Most traces that a worker keeps in one second, whoever decided so; None: no bound.",
        accepts="a number above 0, or None",
        gt=0,
    )
    capture_query_parameters: StringList = option(
        (), "Query parameters whose values may be shown; all others read REDACTED."
    )
    capture_pii: bool = option(False, "Show client addresses whole; else their network (/24, /48) only.")
    redact_names: StringList = option(
        (), "Further names whose values are secret: of parameters, fields, headers, columns."
    )
    redact_patterns: Regexes = option(
        (),
        "Further regular expressions: what they find in any text is redacted.",
        accepts="regular expressions, separated by commas",
    )
    redact: Any = option(None, "Function that is given each text after all else and returns it.", code_only=True)

    # Metrics
    metrics: bool = option(True, "Take measurements and answer `metrics_path`.")
    metrics_path: str = option(
        "/metrics", "Path that the door answers with the metrics.", pattern=r"^/.+", accepts="a path such as /metrics"
    )
    metrics_access: PeerPolicy = option(
        "private", "Who may read `metrics_path`; others are answered with 404.", accepts=PEERS_HELP
    )
    metrics_token: Token | None = option(
        None,
        "Bearer token that `metrics_path` asks for, instead of looking at the address.",
        accepts="at least 8 visible ASCII characters, or None",
    )
    metrics_dependency: Any = option(
        None, "FastAPI dependency that guards `metrics_path`, instead of the address.", code_only=True
    )
    metrics_port: int | None = option(
        None,
        "Answer on this port of `metrics_host` instead of the app's; 0: any free one.",
        accepts="a port from 0 to 65535, or None",
        ge=0,
        le=65_535,
    )
    metrics_host: str = option("127.0.0.1", "Address that `metrics_port` is opened on.", min_length=1)
    registry: Any = option(None, "Prometheus registry to fill; None: one of our own.", code_only=True)
    include_default_registry: bool = option(True, "Also show what stands in prometheus_client's default registry.")
    multiprocess: Literal["auto", "off"] = option(
        "auto", "Show one sum for all worker processes of a server; off: each process for itself."
    )
    multiprocess_directory: str | None = option(
        None, "Where worker processes share their metrics; None: /dev/shm, else the temporary directory.", min_length=1
    )
    duration_buckets: BucketBounds = option(
        (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        "Bucket bounds of request durations, in seconds.",
        accepts="positive, finite numbers, separated by commas",
        min_length=1,
    )
    size_histograms: bool = option(True, "Measure request and response sizes.")
    exemplars: bool = option(True, "Put the ids of sampled traces on samples (OpenMetrics only).")
    max_series_per_metric: int = option(2000, "Most label sets of one metric; more share one overflow series.", ge=1)
    max_series_per_process: int = option(20_000, "Most label sets of all metrics together.", ge=1)
    max_values_per_label: int = option(
        500, "Most values of one label of one metric, `endpoint` aside; more are shown as one.", ge=1
    )
    disk_paths: StringList = option(("/",), "Paths whose file systems `disk_usage_bytes` measures.")
    instrumentator_functions: tuple[Any, ...] = option(
        (), "prometheus-fastapi-instrumentator closures: called with `Info`.", code_only=True
    )

    # Logs
    logs: bool = option(True, "Write log lines.")
    log_level: Literal["debug", "info", "warn", "error", "fatal"] = option("info", "Lowest level that is written.")
    log_format: Literal["auto", "json", "text"] = option("auto", "auto: text on a terminal in development, else JSON.")
    log_requests: bool = option(True, "Write one line for each request.")
    capture_logging: bool = option(True, "Write records of the standard library's logging and of uvicorn too.")
    quiet_loggers: StringList = option(
        ("httpx", "httpcore", "httpx2", "httpcore2", "aiosqlite"), "Standard library loggers heard from `warn` on only."
    )
    log_file: str | None = option(
        None,
        "Also write to this file, which all worker processes share; `{pid}` in it makes one file for each.",
        min_length=1,
        accepts="the path of a file, such as logs/app.log, or None",
    )
    log_rotation: str | None = option(
        "100 MB",
        "Start a new file at this size (`100 MB`) or age (`1 day`).",
        pattern=r"^[1-9][0-9]{0,8} (B|KB|MB|GB|seconds?|minutes?|hours?|days?|weeks?)$",
        accepts="a size or an age, such as 500 KB, 100 MB, 12 hours or 1 day, or None",
    )
    log_retention: str | None = option(
        "10 files, 7 days, 1 GB",
        "Keep so many rotated files, so long, so much with the file that is written: all that are named hold.",
        pattern=rf"^{RETENTION_PATTERN}(, ?{RETENTION_PATTERN}){{0,2}}$",
        accepts="a number of files, an age, a total size or several, such as 10 files, 7 days, 1 GB, or None",
    )
    log_compression: Literal["gz"] | None = option("gz", "How rotated files are compressed.")

    # Databases and other services
    engines: tuple[Any, ...] = option((), "SQLAlchemy engines to measure, sync or async.", code_only=True)
    slow_query_threshold: float = option(
        0.5, "Seconds from which on a query is told as slow, on a line of level `warn`.", gt=0
    )
    repeated_query_threshold: int = option(
        10, "How often one request may send the same statement before it is told (N+1).", ge=1
    )
    propagate_to: StringList = option(
        (), "Hosts beyond private ones that get `traceparent`: exact, or `*.example.com`; `*` stands for all."
    )
    propagate_baggage: StringList = option((), "Keys of baggage that go along to those hosts; `*` stands for all.")

    # Objectives
    slos: ObjectiveList = option(
        (),
        "What the service promises: `Availability(...)`, `Latency(...)`.",
        code_only=True,
        accepts="a list of `Availability(...)` and `Latency(...)`, in code only",
    )
    slo_options: ObjectiveOptions = option(
        None,
        "How rules and alerts are made of them.",
        code_only=True,
        accepts="`SLOOptions(...)` or None, in code only",
    )

    # The door
    exclude_paths: Paths = option(
        (),
        "Paths that no signal reports: exact, or a prefix that ends in `*`.",
        accepts="paths that begin with /, separated by commas, `*` at most at the end",
    )
    exclude_urls: Regexes = option(
        (),
        "Regular expressions; a path in which one is found is reported by no signal.",
        otel=("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"),
        accepts="regular expressions, separated by commas",
    )
    request_id_header: str = option(
        "x-request-id", "Header that carries the request id.", pattern=r"^[A-Za-z0-9-]+$", accepts="a header name"
    )

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    # hidden from type checkers and editors, so that they keep the signature that the fields give
    if not TYPE_CHECKING:  # pragma: no branch

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise error.errors()[0]["ctx"]["error"] from None

    @classmethod
    def load(cls, settings: ObserveSettings | None = None, **overrides: Any) -> ObserveSettings:
        """Return `settings` (None: those of the environment) with `overrides` on top, all checked again.

        Raises SettingsError with a line for every wrong one.
        """
        if settings is None:
            return cls(**overrides)
        if not isinstance(settings, ObserveSettings):
            raise TypeError(
                f"settings is a {type(settings).__name__}; pass ObserveSettings(...), or single options by name"
            )
        sources = settings.sources()
        kept = {name: SourcedValue(source, getattr(settings, name)) for name, source in sources.items()}
        return type(settings)(**{**kept, **overrides}) if overrides else settings

    def sources(self) -> dict[str, str]:
        """Say for each option where its value came from: `argument`, the name of a variable, or `default`."""
        return {name: self._sources.get(name, "default") for name in type(self).model_fields}

    def masked(self) -> dict[str, Any]:
        """Return every option with its value, secrets masked: what may be shown."""
        return {name: mask(name, getattr(self, name)) for name in type(self).model_fields}

    @property
    def traces_url(self) -> str | None:
        """Where spans are sent in the end; None: nowhere. May hold a password, as `otlp_endpoint` may."""
        if not self.tracing or self.otlp_endpoint is None:
            return None
        if self.otlp_protocol == "grpc" or self._sources.get("otlp_endpoint") == TRACES_ENDPOINT:
            return self.otlp_endpoint
        base, mark, query = self.otlp_endpoint.partition("?")
        return base.removesuffix("/").removesuffix(TRACES_PATH).removesuffix("/") + TRACES_PATH + mark + query

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from self.masked().items()

    @field_validator("*", mode="before")
    @classmethod
    def _unpack(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, SourcedValue):
            return value
        if value.value is UNPARSABLE:
            raise ValueError(f"{info.field_name} cannot be read")
        return value.value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not is_endpoint(value, grpc=info.data.get("otlp_protocol") == "grpc"):
            raise ValueError("not a URL")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _remember(cls, values: dict[str, Any], handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Note where each value came from; turn what pydantic found into lines for people."""
        try:
            settings = handler(values)
        except ValidationError as error:
            wrong: dict[str, list[Any]] = {}
            for found in error.errors():
                if not found["loc"]:  # model_validate: __init__ has said it already, or it is no mapping
                    raise
                items = wrong.setdefault(str(found["loc"][0]), [])
                if len(found["loc"]) > 1:
                    items.append(found["input"])
            raise SettingsError(
                [describe_error(cls, name, values[name], items) for name, items in wrong.items()]
            ) from None
        check_combinations(settings)
        if not settings._sources:  # noqa: SLF001 - model_validate passes here again after __init__, knowing less
            sources = {name: sourced(value).source for name, value in values.items()}
            settings._sources.update((name, source) for name, source in sources.items() if source != "default")  # noqa: SLF001
        return settings

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - VariablesSource reads `OBSERVE_*` too
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - files are the deployment's business
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Rank the sources: argument, then the variables of each option in their order."""
        return init_settings, VariablesSource(settings_cls)

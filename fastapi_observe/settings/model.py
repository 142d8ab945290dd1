"""`ObserveSettings`: declares every option of fastapi-observe, with its type, default, variables and description."""
# ruff: noqa: FBT003 - the first argument of option() is its default, of any type

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from fastapi_observe.settings.base import SourcedSettings
from fastapi_observe.settings.development import is_development, is_reloaded
from fastapi_observe.settings.objects import (  # noqa: TC001 - pydantic reads the annotations
    Dependency,
    Engines,
    Function,
    Provider,
    Redact,
    Registry,
    SpanProcessors,
)
from fastapi_observe.settings.opentelemetry import (
    describe_ignored,
    describe_left_out,
    describe_unmatched_urls,
    describe_unread,
    describe_unsupported_exporters,
)
from fastapi_observe.settings.sources import (
    SettingsError,
    SourcedValue,
    check_combinations,
    env_file_of,
    read_environment,
    sourced,
)
from fastapi_observe.settings.types import (
    PEERS_HELP,
    RETENTION_LIMIT,
    ROTATION_PATTERN,
    BucketBounds,
    ConstantLabels,
    ExcludedFrom,
    ExcludedPaths,
    FilePath,
    HeaderNames,
    Headers,
    Instruments,
    LogLevel,
    MetricLabels,
    ObjectiveList,
    ObjectiveOptions,
    PeerPolicy,
    Regexes,
    StringList,
    TailReasons,
    Token,
    is_endpoint,
    option,
)
from fastapi_observe.settings.validation import read_iterators, validate

if TYPE_CHECKING:
    from pydantic import ModelWrapValidatorHandler

    from fastapi_observe.settings.options import Options

__all__ = ["ObserveSettings", "SettingsError"]

TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
TRACES_PATH: Final = "/v1/traces"


class ObserveSettings(SourcedSettings):
    """All options. Immutable.

    An argument takes precedence over the `OBSERVE_*` variable, that over `OTEL_*` variables, those over the default.
    Raises `SettingsError` with a line for each invalid option. An invalid `OTEL_*` variable is ignored instead; see
    `warnings`.
    """

    env_file: FilePath | None = option(
        None,
        "File with variables, such as .env. A variable of the process takes precedence over that of the file.",
        min_length=1,
        accepts="the path of a file, or None",
        subject="The service",
    )

    service_name: str = option(
        "unknown_service",
        "Name of the service.",
        otel=("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES:service.name"),
        min_length=1,
    )
    service_version: str = option("", "Version of the service.", otel=("OTEL_RESOURCE_ATTRIBUTES:service.version",))
    environment: str = option(
        "production",
        "Deployment environment. `development` turns the console on; it is the default under uvicorn with `--reload` "
        "or `reload=True`.",
        aliases=("OBSERVE_ENV", "FASTAPI_ENV"),
        otel=(
            "OTEL_RESOURCE_ATTRIBUTES:deployment.environment.name",
            "OTEL_RESOURCE_ATTRIBUTES:deployment.environment",
        ),
    )

    tracing: bool = option(True, "Record spans.", otel=("OTEL_SDK_DISABLED",), subject="Sampler")
    sample_ratio: float = option(
        0.1,
        "Fraction of new traces that is sampled, from 0 to 1.",
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
    ] = option("parentbased_traceidratio", "OpenTelemetry sampler.", otel=("OTEL_TRACES_SAMPLER",))
    otlp_protocol: Literal["http/protobuf", "grpc"] = option(
        "http/protobuf",
        "OTLP transport. `grpc` needs the extra `fastapi-observe[grpc]`.",
        otel=("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
        subject="Export over OTLP",
    )
    otlp_endpoint: str | None = option(
        None,
        "URL of the OpenTelemetry Collector, such as http://127.0.0.1:4318. None: do not export.",
        otel=("OTEL_TRACES_EXPORTER", TRACES_ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        accepts="a URL such as http://127.0.0.1:4318 (grpc: host:port too), or None",
    )
    otlp_headers: Headers = option(
        {},
        "Headers of each export request.",
        otel=("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
        accepts="a mapping; in a variable name=value,name2=value2 (percent-encoded) or a JSON object",
    )
    otlp_timeout: float = option(
        10.0,
        "Timeout of one export request, in seconds.",
        otel=("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"),
        accepts="a number of seconds above 0",
        gt=0,
    )
    batch_delay: float = option(
        1.0,
        "Maximum time between the end of a span and its export, in seconds.",
        otel=("OTEL_BSP_SCHEDULE_DELAY",),
        accepts="a number of seconds above 0 (OTEL_BSP_SCHEDULE_DELAY: milliseconds)",
        gt=0,
    )
    batch_size: int = option(
        256, "Maximum number of spans in one export request.", otel=("OTEL_BSP_MAX_EXPORT_BATCH_SIZE",), ge=1
    )
    queue_size: int = option(
        4096,
        "Maximum number of queued items of each signal, and of 2 KiB for each on average. The oldest are dropped.",
        otel=("OTEL_BSP_MAX_QUEUE_SIZE",),
        ge=1,
    )
    otlp_logs: bool = option(False, "Export log lines over OTLP too.")
    otlp_metrics: bool = option(False, "Export metrics over OTLP too, every `otlp_metrics_interval`.")
    otlp_metrics_interval: float = option(
        60.0,
        "Interval between two exports of metrics, in seconds.",
        otel=("OTEL_METRIC_EXPORT_INTERVAL",),
        accepts="a number of seconds above 0 (OTEL_METRIC_EXPORT_INTERVAL: milliseconds)",
        gt=0,
    )
    shutdown_timeout: float = option(2.0, "Maximum time to flush all signals at shutdown, in seconds.", gt=0)
    otlp_allow_plaintext_credentials: bool = option(
        False, "Allow `otlp_headers` and passwords to be sent to a public host over plain http."
    )
    span_processors: SpanProcessors = option(
        (),
        "Additional OpenTelemetry span processors.",
        code_only=True,
        accepts="a list of span processors such as `BatchSpanProcessor(exporter)`: objects with `on_start`, `on_end`, "
        "`force_flush` and `shutdown`",
        subject="Spans",
    )
    tracer_provider: Provider = option(
        None,
        "OpenTelemetry tracer provider. None: the global one if it is set, else a new one.",
        code_only=True,
        accepts="a tracer provider such as `TracerProvider()`: an object with `get_tracer`; or None",
    )
    server_span: Literal["observe", "contrib", "fastapi"] = option(
        "observe",
        "Who describes the server span. observe: this package; contrib: opentelemetry-instrumentation-asgi; fastapi: "
        "FastAPI's native telemetry, whose span is used.",
        accepts='observe, contrib or fastapi (formerly native="own" for observe, native="ride" for fastapi)',
    )
    contrib_options: dict[str, Any] = option(
        {},
        'Arguments of contrib\'s `OpenTelemetryMiddleware`, with `server_span="contrib"`: hooks, captured headers, '
        "`exclude_spans` and others.",
        code_only=True,
        accepts="a dict of arguments by name",
    )
    response_trace_header: bool = option(True, "Send `traceresponse` (W3C) with the responses of sampled requests.")
    capture_request_headers: HeaderNames = option(
        (),
        "Request headers to record on the server span, by exact name.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",),
        accepts="header names, separated by commas; patterns are not supported",
    )
    capture_response_headers: HeaderNames = option(
        (),
        "Response headers to record on the server span, by exact name.",
        otel=("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",),
        accepts="header names, separated by commas; patterns are not supported",
    )

    trust_incoming: PeerPolicy = option(
        "private",
        "Peers whose trace context and request id are accepted. The trace of another peer is linked.",
        accepts=PEERS_HELP,
        subject="Trust and tail sampling",
    )
    max_traces_per_second: float | None = option(
        100.0,
        "Maximum number of traces per second and worker that are sampled because callers say so. None: no limit.",
        accepts="a number above 0, or None",
        gt=0,
    )
    tail_sampling: TailReasons = option(
        ("errors", "slow", "first", "repeated_queries"),
        "Also export the whole trace of an unsampled request for these reasons: it failed, was slow, was the first of "
        "its route and status class, or repeated a query. None: export sampled traces only.",
        accepts="errors, slow, first and repeated_queries, separated by commas, or None",
    )
    tail_samples_per_second: float = option(
        10.0,
        "Refill rate of all allowances of traces that a worker may export because of `tail_sampling`: 200 for errors, "
        "100 for each other reason.",
        accepts="a number of traces per second above 0",
        gt=0,
    )
    slow_request_threshold: float = option(
        1.0,
        "Seconds from which a request is slow: `tail_sampling` exports it. A `Latency` objective replaces it for its "
        "routes; a stream is measured by its time to first byte.",
        accepts="a number of seconds above 0",
        gt=0,
    )
    capture_query_parameters: StringList = option(
        (),
        "Query parameters whose values are recorded; the others are redacted. `*`: all but secret names.",
        subject="Redaction",
    )
    capture_pii: bool = option(
        False, "Record whole client addresses, `user.email` and `enduser.id`. Otherwise the network (/24, /48) only."
    )
    redact_names: StringList = option(
        (), "Additional secret names of parameters, fields, headers and columns. Their values are redacted."
    )
    redact_patterns: Regexes = option(
        (),
        "Additional regular expressions. Every match in a recorded string is redacted.",
        accepts="regular expressions, separated by commas",
    )
    redact: Redact = option(
        None,
        "Function called with each recorded string after all other redaction. Returns the string to record.",
        accepts="a function that is neither async nor a generator, or None; for regular expressions use "
        "redact_patterns",
        code_only=True,
    )

    metrics: bool = option(True, "Record metrics and serve them at `metrics_path`.", subject="Metrics")
    metrics_path: str = option(
        "/metrics", "Path of the scrape endpoint.", pattern=r"^/.+", accepts="a path such as /metrics"
    )
    metrics_access: PeerPolicy = option(
        "private", "Peers that can read `metrics_path`. Other clients get the app's own response.", accepts=PEERS_HELP
    )
    metrics_token: Token | None = option(
        None,
        "Bearer token required by `metrics_path`. Replaces `metrics_access`.",
        accepts="at least 8 visible ASCII characters, or None",
    )
    metrics_dependency: Dependency = option(
        None,
        "FastAPI dependency that protects `metrics_path`. Replaces `metrics_access`.",
        code_only=True,
        accepts="a dependency such as `Depends(check)`, its function, or None",
    )
    metrics_port: int | None = option(
        None,
        "Port of `metrics_host` that serves the metrics instead of the app. 0: any free port.",
        accepts="a port from 0 to 65535, or None",
        ge=0,
        le=65_535,
    )
    metrics_host: str = option("127.0.0.1", "Address that `metrics_port` is bound to.", min_length=1)
    registry: Registry = option(
        None,
        "Prometheus registry that receives the metrics. None: a new registry.",
        code_only=True,
        accepts="a registry such as `CollectorRegistry()`: an object with `register`, `unregister` and `collect`; or "
        "None",
    )
    include_default_registry: bool = option(True, "Serve the metrics of prometheus_client's default registry too.")
    multiprocess: Literal["auto", "off"] = option(
        "auto", "auto: each scrape shows the sum of all worker processes of a server; off: one worker process."
    )
    multiprocess_directory: str | None = option(
        None,
        "Directory in which worker processes share their metrics. None: in /dev/shm, else in the temporary directory.",
        min_length=1,
    )
    duration_buckets: BucketBounds = option(
        (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        "Bucket bounds of request durations, in seconds.",
        accepts="positive, finite numbers, separated by commas",
        min_length=1,
    )
    size_histograms: bool = option(True, "Record request and response sizes.")
    exemplars: bool = option(True, "Attach the ids of sampled traces to samples as exemplars (OpenMetrics only).")
    max_series_per_metric: int = option(
        2000,
        "Maximum number of label sets of one metric. Further ones share one overflow series.",
        ge=1,
        subject="Names and limits of metrics",
    )
    max_series_per_process: int = option(
        20_000, "Maximum number of label sets of all metrics of a worker process.", ge=1
    )
    max_values_per_label: int = option(
        500,
        "Maximum number of values of one label of one metric, except `endpoint`. Further ones are `__overflow__`.",
        ge=1,
    )
    metric_names: Literal["prometheus", "semconv"] = option(
        "prometheus",
        "Names of the HTTP request metrics. semconv: those of OpenTelemetry's semantic conventions, such as "
        "`http_server_request_duration_seconds`, with their attributes as labels.",
    )
    metric_labels: MetricLabels = option(
        (),
        "Fields of the request (`observe.set`) that are labels of the request metrics. Empty where a request did not "
        "set the field; at most `max_values_per_label` values.",
        accepts="label names other than those of the request metrics and le, separated by commas",
    )
    constant_labels: ConstantLabels = option(
        {},
        "Labels with the same value on every metric of this package and of `observe.metrics`.",
        accepts="a mapping of label names; in a variable name=value,name2=value2",
    )
    disk_paths: StringList = option(("/",), "Paths whose file systems `disk_usage_bytes` reports.")
    instrumentator_functions: tuple[Function, ...] = option(
        (),
        "Functions of prometheus-fastapi-instrumentator, called with `Info` for each request.",
        code_only=True,
        accepts="a list of functions that are neither async nor generators",
    )

    logs: bool = option(True, "Write log lines.", subject="Log lines")
    log_level: LogLevel = option(
        "info",
        "Lowest level to write. Also accepts the names that `logging`, uvicorn and loguru use, and their numbers.",
    )
    log_format: Literal["auto", "json", "text", "ecs", "gcp", "datadog"] = option(
        "auto",
        "auto: text for people if standard output is a terminal, else JSON. ecs, gcp, datadog: JSON with the keys of "
        "Elastic Common Schema, Google Cloud Logging, Datadog.",
    )
    gcp_project: str | None = option(
        None,
        'Google Cloud project of the traces, which `log_format="gcp"` puts into the names of traces.',
        aliases=("GOOGLE_CLOUD_PROJECT",),
        pattern=r"^[A-Za-z0-9.:_-]{1,128}$",
        accepts="the id of a project, or None",
    )
    print_traces: bool = option(
        False,
        "Print the tree of spans of each sampled trace on standard output. Without it, text lines show those of "
        "requests that failed or were slow.",
        otel=("OTEL_TRACES_EXPORTER",),
    )
    log_requests: bool = option(True, "Write one line for each request.")
    capture_logging: bool = option(True, "Write records of `logging`, uvicorn's included, as log lines.")
    quiet_loggers: StringList = option(
        ("httpx", "httpcore", "httpx2", "httpcore2", "aiosqlite", "watchfiles"),
        "Loggers whose records below `warn` are dropped.",
    )
    log_file: FilePath | None = option(
        None,
        "File to write log lines to, in addition to standard output. All worker processes share it; `{pid}` in the "
        "name makes one file for each.",
        min_length=1,
        accepts="the path of a file, such as logs/app.log, or None",
    )
    log_rotation: str | None = option(
        "100 MB",
        "Size or age at which a new log file is started.",
        pattern=ROTATION_PATTERN,
        accepts="a size or an age, such as 500 KB, 100 MB, 12 hours or 1 day, or None",
    )
    log_retention: str | None = option(
        "10 files, 7 days, 1 GB",
        "Limits on rotated files: number, age, total size. All given limits apply.",
        pattern=rf"^{RETENTION_LIMIT}(, ?{RETENTION_LIMIT}){{0,2}}$",
        accepts="a number of files, an age, a total size or several, such as 10 files, 7 days, 1 GB, or None",
    )
    log_compression: Literal["gz"] | None = option("gz", "Compression of rotated files.")

    engines: Engines = option(
        (),
        "SQLAlchemy engines to instrument, sync or async.",
        code_only=True,
        accepts="a list of engines made by `create_engine(...)` or `create_async_engine(...)` (of a session: "
        "`session.get_bind()`)",
        subject="Databases and other services",
    )
    slow_query_threshold: float = option(
        0.5, "Log a warning for each database query that takes longer than this, in seconds.", gt=0
    )
    repeated_query_threshold: int = option(
        10, "Log a warning if one request sends the same statement at least this many times (N+1).", ge=1
    )
    instrument: Instruments = option(
        "auto",
        "OpenTelemetry instrumentors to switch on, whose spans become operations. auto: all that are installed, except "
        "those of server frameworks, logging, system metrics and `engines`; or their names, such as `redis`.",
        accepts="auto, names separated by commas, or None",
    )
    propagate_to: StringList = option(
        (), "Public hosts that receive the trace context: exact, or `*.example.com`. `*`: all. Private hosts always do."
    )
    propagate_baggage: StringList = option((), "Baggage keys that are sent to those hosts. `*`: all.")

    console: Literal["auto"] | bool = option(
        "auto",
        "Serve the development console. auto: in development only (`FASTAPI_ENV` or `OBSERVE_ENV` is `development`, or "
        "uvicorn runs with `--reload` or `reload=True`). True outside development needs `console_token`.",
        accepts="auto, true or false",
        subject="Development",
    )
    console_path: str = option(
        "/observe", "Path of the development console.", pattern=r"^/.*[^/]$", accepts="a path such as /observe"
    )
    console_token: Token | None = option(
        None,
        "Token for the console: from another machine, and always outside development. None: a new one for each start "
        "of the server, the same for all its workers, which is logged at startup in a container.",
        accepts="at least 8 visible ASCII characters, or None",
    )

    blocked_loop_threshold: float | None = option(
        0.1,
        "Log a warning, with the line of your code, when the event loop is blocked for longer than this, in seconds. "
        "None: do not look for the code.",
        accepts="a number of seconds above 0, or None",
        gt=0,
    )

    slos: ObjectiveList = option(
        (),
        "Objectives of the service: `Availability(...)`, `Latency(...)`.",
        code_only=True,
        accepts="a list of `Availability(...)` and `Latency(...)`",
        subject="Objectives",
    )
    slo_options: ObjectiveOptions = option(
        None,
        "How rules, alerts and dashboards are made from the objectives.",
        code_only=True,
        accepts="`SLOOptions(...)` or None",
    )

    exclude_paths: ExcludedPaths = option(
        (),
        "Requests that no signal reports, including everything inside them: a path within the app (without "
        "`root_path`), or a prefix that ends in `*`. A method before it limits the entry to that method (`OPTIONS *`).",
        accepts="paths that begin with /, separated by commas, `*` at most at the end; optionally a method before each",
        subject="Requests",
    )
    exclude_from: ExcludedFrom = option(
        {},
        'Requests that single signals do not report: `{"logs": ["/internal/*"]}`. Entries as in `exclude_paths`.',
        accepts="traces=/path, metrics=/path or logs=/path, separated by commas; in code a dict of lists",
    )
    exclude_urls: Regexes = option(
        (),
        "Regular expressions, searched in the whole URL without its query, such as http://127.0.0.1:8000/health. A "
        "request with a match is reported by no signal.",
        otel=("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "OTEL_PYTHON_EXCLUDED_URLS"),
        accepts="regular expressions, separated by commas",
    )
    request_id_header: str = option(
        "x-request-id", "Header that carries the request id.", pattern=r"^[A-Za-z0-9-]+$", accepts="a header name"
    )

    _reloaded: bool = PrivateAttr(default_factory=is_reloaded)

    @classmethod
    def load(cls, settings: ObserveSettings | None = None, **overrides: Unpack[Options]) -> ObserveSettings:
        """Return `settings`, or those of the environment for None, with `overrides` applied and validated.

        Raises `SettingsError` with a line for each invalid option.
        """
        if settings is None:
            return cls(**overrides)
        if not isinstance(settings, ObserveSettings):
            raise TypeError(
                f"settings must be ObserveSettings, got {type(settings).__name__}; pass single options by name"
            )
        if not overrides:
            return settings
        values: dict[str, Any] = {
            name: SourcedValue(source, getattr(settings, name)) for name, source in settings.sources().items()
        }
        loaded = type(settings)(**values | dict(overrides))
        loaded._warnings = settings._warnings  # noqa: SLF001 - of the same class
        return loaded

    @property
    def development(self) -> bool:
        """Whether this process is known to run in development."""
        return self.environment == "development" or self._reloaded

    @property
    def serves_console(self) -> bool:
        """Whether the development console is switched on."""
        return self.console is True or (self.console == "auto" and self.development)

    @property
    def traces_url(self) -> str | None:
        """The URL that spans are sent to; None if they are not exported. May contain a password."""
        if not self.tracing or self.otlp_endpoint is None:
            return None
        if self.otlp_protocol == "grpc" or self._sources.get("otlp_endpoint") == TRACES_ENDPOINT:
            return self.otlp_endpoint
        base, mark, query = self.otlp_endpoint.partition("?")
        return base.removesuffix("/").removesuffix(TRACES_PATH).removesuffix("/") + TRACES_PATH + mark + query

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not is_endpoint(value, grpc=info.data.get("otlp_protocol") == "grpc"):
            raise ValueError("not a URL")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _record_sources(cls, values: dict[str, Any], handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Validate all options. Store the source of each value, and turn pydantic's errors into `SettingsError`."""
        if isinstance(values, dict):
            values = read_iterators(values)
            if "environment" not in values and is_reloaded():
                values = {**values, "environment": SourcedValue("development", "development")}
            if "sample_ratio" not in values and is_development(str(sourced(values.get("environment", "")).value)):
                values = {**values, "sample_ratio": SourcedValue("development", 1.0)}
        environment = read_environment(env_file_of(values))
        settings, values, ignored = validate(cls, values, handler, environment)
        check_combinations(settings)
        if not settings._sources:  # noqa: SLF001 - model_validate arrives here again after __init__, without sources
            sources = {name: sourced(value).source for name, value in values.items()}
            settings._sources.update((name, source) for name, source in sources.items() if source != "default")  # noqa: SLF001
            settings._warnings = (  # noqa: SLF001
                *describe_ignored(cls, ignored),
                *describe_left_out(),
                *describe_unsupported_exporters(environment),
                *describe_unread(cls, environment),
                *describe_unmatched_urls(settings.exclude_urls),
            )
        return settings

"""Every option of fastapi-observe, written once: `ObserveSettings`."""
# ruff: noqa: FBT003 - the first argument of option() is its default, whatever its type

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, cast, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic import ModelWrapValidatorHandler
    from pydantic.fields import FieldInfo

PREFIX: Final = "OBSERVE_"
RESOURCE_ATTRIBUTES: Final = "OTEL_RESOURCE_ATTRIBUTES"
TRACES_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
LONGEST_SHOWN: Final = 100
"""Characters of a wrong value that an error repeats."""
MASK: Final = "**********"
SECRET: Final = frozenset({"otlp_headers", "otlp_endpoint"})
"""Options that may hold a password."""
TYPO: Final = 0.85
"""How like an option an unknown `OBSERVE_*` variable must be to be an error: other tools use the prefix too."""


class SettingsError(ValueError):
    """Some settings are wrong; `problems` has one line for each of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 setting is" if len(self.problems) == 1 else f"{len(self.problems)} settings are"
        super().__init__("\n  ".join((f"{count} wrong:", *self.problems)))


# How text from the environment becomes values; what cannot be read raises ValueError.


def _split(value: Any) -> Any:
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


def _pairs(text: str) -> dict[str, str]:
    """Read `k=v,k2=v2`, percent-encoded, as the OpenTelemetry SDK does."""
    pairs = [item.partition("=") for item in text.split(",") if item.strip()]
    if not all(name.strip() and separator for name, separator, _ in pairs):
        raise ValueError("not a list of name=value")
    return {unquote(name).strip(): unquote(value).strip() for name, _, value in pairs}


def _headers(value: Any) -> Any:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("{") else _pairs(value)
    # gRPC refuses header names that are not lower case
    return {str(name).lower(): text for name, text in value.items()} if isinstance(value, Mapping) else value


def _one_line(value: SecretStr) -> SecretStr:
    if re.search(r"[\r\n]", value.get_secret_value()):
        raise ValueError("a header is one line")
    return value


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error:
        raise ValueError("not a regular expression") from None
    return value


def _ascending(value: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(set(value)))


HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Several strings; in the environment separated by commas."""
HeaderNames = Annotated[tuple[HeaderName, ...], BeforeValidator(_split)]
Paths = Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^/[^*]*\*?$")], ...], BeforeValidator(_split)]
Regexes = Annotated[tuple[Annotated[str, AfterValidator(_regex)], ...], BeforeValidator(_split)]
Bounds = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...],
    BeforeValidator(_split),
    AfterValidator(_ascending),
]
Headers = Annotated[dict[HeaderName, Annotated[SecretStr, AfterValidator(_one_line)]], BeforeValidator(_headers)]


def option(  # noqa: PLR0913 - each is one thing to say about an option
    default: Any,
    doc: str,
    *,
    otel: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    accepts: str = "",
    code_only: bool = False,
    **limits: Any,
) -> Any:
    """Describe one option: its default, its line of documentation and the `OTEL_*` variables it honours.

    A variable written `OTEL_X:key` is the pair `key` in the list that `OTEL_X` holds. `also` are further variables that
    rank between `OBSERVE_*` and `otel`. `accepts` says in words what the type does not; `code_only` options have no
    variable.
    """
    extra = {"otel": list(otel), "also": list(also), "accepts": accepts, "code_only": code_only}
    return Field(default, description=doc, json_schema_extra=cast("Any", extra), **limits)


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
        also=("OBSERVE_ENV", "FASTAPI_ENV"),
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
        4096, "Most finished spans waiting for export; more are dropped.", otel=("OTEL_BSP_MAX_QUEUE_SIZE",), ge=1
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
    query_allow: Names = option((), "Query parameters whose values may be shown; all others read REDACTED.")

    # Metrics
    metrics: bool = option(True, "Take measurements and answer `metrics_path`.")
    metrics_path: str = option(
        "/metrics", "Path that the door answers with the metrics.", pattern=r"^/.+", accepts="a path such as /metrics"
    )
    registry: Any = option(None, "Prometheus registry to fill; None: one of our own.", code_only=True)
    default_registry: bool = option(True, "Also show what stands in prometheus_client's default registry.")
    duration_buckets: Bounds = option(
        (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
        "Bucket bounds of request durations, in seconds.",
        accepts="positive, finite numbers, separated by commas",
        min_length=1,
    )
    size_histograms: bool = option(True, "Measure request and response sizes.")
    exemplars: bool = option(True, "Put the ids of sampled traces on samples (OpenMetrics only).")
    series_per_metric: int = option(2000, "Most label sets of one metric; more share one overflow series.", ge=1)
    disk_paths: Names = option(("/",), "Paths whose file systems `disk_usage_bytes` measures.")
    instrumentations: tuple[Any, ...] = option(
        (), "prometheus-fastapi-instrumentator closures: called with `Info`.", code_only=True
    )

    # Logs
    logs: bool = option(True, "Write log lines.")
    log_level: Literal["debug", "info", "warn", "error", "fatal"] = option("info", "Lowest level that is written.")
    log_format: Literal["auto", "json", "text"] = option("auto", "auto: text on a terminal in development, else JSON.")
    log_requests: bool = option(True, "Write one line for each request.")
    capture_logging: bool = option(True, "Write records of the standard library's logging and of uvicorn too.")
    quiet_loggers: Names = option(("httpx", "httpcore"), "Standard library loggers heard from `warn` on only.")
    log_file: str | None = option(
        None, "Also write to this file; `{pid}` in it makes one file for each process.", min_length=1
    )
    log_rotation: str | None = option(
        "100 MB",
        "Start a new file at this size (`100 MB`) or age (`1 day`).",
        pattern=r"^[1-9][0-9]{0,8} (B|KB|MB|GB|seconds?|minutes?|hours?|days?|weeks?)$",
        accepts="a size or an age, such as 500 KB, 100 MB, 12 hours or 1 day, or None",
    )
    log_retention: str | None = option(
        "10 files",
        "Keep so many rotated files (`10 files`) or so long (`7 days`).",
        pattern=r"^[1-9][0-9]{0,8} (files?|seconds?|minutes?|hours?|days?|weeks?)$",
        accepts="a number of files or an age, such as 10 files, 12 hours or 7 days, or None",
    )
    log_compression: Literal["gz"] | None = option("gz", "How rotated files are compressed.")

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
        kept = {name: Given(source, getattr(settings, name)) for name, source in sources.items()}
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
        return f"{self.otlp_endpoint.removesuffix('/')}/v1/traces"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield from self.masked().items()

    @field_validator("*", mode="before")
    @classmethod
    def _unpack(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, Given):
            return value
        if value.value is UNREADABLE:
            raise ValueError(f"{info.field_name} cannot be read")
        return value.value

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not _is_endpoint(value, grpc=info.data.get("otlp_protocol") == "grpc"):
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
            raise SettingsError([_problem(cls, name, values[name], items) for name, items in wrong.items()]) from None
        if not settings._sources:  # noqa: SLF001 - model_validate passes here again after __init__, knowing less
            sources = {name: _given(value).source for name, value in values.items()}
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


UNREADABLE: Final = object()
"""Value of a variable whose text could not be converted."""
UNSAID: Final = object()
"""Value of a variable that says nothing about the option it was asked for."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value with where it came from; `text` is how the variable spelled it."""

    source: str
    value: Any = field(repr=False)
    text: str | None = field(default=None, repr=False)


def _given(value: Any) -> Given:
    return value if isinstance(value, Given) else Given("argument", value)


class VariablesSource(PydanticBaseSettingsSource):
    """Reads for each option `OBSERVE_<NAME>`, then `also`, then the `OTEL_*` variables that the option names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return what the first variable that is set says, as `Given`; None if none is."""
        for variable in variables(field_name, field):
            name, _, key = variable.partition(":")
            text = os.environ.get(name, "").strip()
            # only our own variable can be set to nothing: an empty OTEL_* is an unset one (OpenTelemetry specification)
            if text or (name == variable_of(field_name) and name in os.environ):
                value = _convert(field_name, field, name, key, text)
                if value is not UNSAID:
                    return Given(name, value, text), field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return the options that the environment sets, and its variables that look like a misspelt option."""
        fields = self.settings_cls.model_fields
        read = {name: self.get_field_value(field, name)[0] for name, field in fields.items()}
        found: dict[str, Any] = {name: given for name, given in read.items() if given is not None}
        known = {variable for name, field in fields.items() for variable in variables(name, field)}
        for variable in sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
            name = variable.removeprefix(PREFIX).lower()
            if difflib.get_close_matches(name, fields, n=1, cutoff=TYPO):
                found.setdefault(name, Given(variable, UNREADABLE, os.environ[variable]))
        return found


def _convert(option_name: str, field: FieldInfo, variable: str, key: str, text: str) -> Any:
    """Turn the text of a variable into what the option takes; pydantic does the rest."""
    try:
        if key:
            return _pairs(text).get(key) or UNSAID
        if special := _SPECIAL.get((option_name, variable)):
            return special(text)
    except ValueError:
        return UNREADABLE
    kinds = (field.annotation, *get_args(field.annotation))
    if not text and NoneType in kinds:
        return None
    return text.lower() if any(get_origin(kind) is Literal for kind in kinds) else text


def _enabled(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("neither true nor false")
    return text.lower() == "false"


_SPECIAL: Final[dict[tuple[str, str], Callable[[str], Any]]] = {
    ("tracing", "OTEL_SDK_DISABLED"): _enabled,
    # a ratio sampler without argument keeps everything (OpenTelemetry specification)
    ("sample_ratio", "OTEL_TRACES_SAMPLER"): lambda text: 1.0 if text.lower().endswith("traceidratio") else UNSAID,
    # the list names where spans go: without otlp, not to us
    ("otlp_endpoint", "OTEL_TRACES_EXPORTER"): lambda text: (
        UNSAID if any(name.startswith("otlp") for name in _split(text)) else None
    ),
    ("batch_delay", "OTEL_BSP_SCHEDULE_DELAY"): lambda text: float(text) / 1000,
}
"""Variables that say it in another unit or another way than the option does."""


def _is_endpoint(value: str, *, grpc: bool) -> bool:
    if not value or re.search(r"\s", value):
        return False
    if grpc and not value.startswith(("http://", "https://")):
        return True
    try:
        url = urlsplit(value)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


# What people read: the documentation of an option, and the line about a wrong one.


def spec(field: FieldInfo) -> dict[str, Any]:
    """Return what `option` noted beside pydantic's own: `otel`, `also`, `accepts`, `code_only`."""
    return cast("dict[str, Any]", field.json_schema_extra)


def variable_of(name: str) -> str:
    """Return the name of the option's own variable."""
    return PREFIX + name.upper()


def variables(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Return the variables that can set the option, first the one that wins."""
    noted = spec(field)
    return () if noted["code_only"] else (variable_of(name), *noted["also"], *noted["otel"])


def accepted(field: FieldInfo) -> str:
    """Say in words what the option takes."""
    noted, kind = spec(field), field.annotation
    if noted["accepts"]:
        return str(noted["accepts"])
    if noted["code_only"]:
        return "an object, in code only" if kind is Any else "a list of objects, in code only"
    kinds = (kind, *get_args(kind))
    ending = " or None" if NoneType in kinds else ""
    choices = [choice for each in kinds if get_origin(each) is Literal for choice in get_args(each)]
    if choices:
        return ", ".join(choices) + ending
    if kind is bool:
        return "true or false"
    if kind in {int, float}:
        return ("a whole number" if kind is int else "a number") + _range(field)
    return "texts, separated by commas" if get_origin(kind) is tuple else f"text{ending}"


def _range(field: FieldInfo) -> str:
    limits = {
        name: getattr(each, name) for each in field.metadata for name in ("ge", "gt", "le") if hasattr(each, name)
    }
    if "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    return f" above {limits['gt']}" if "gt" in limits else f", at least {limits['ge']}"


def mask(name: str, value: Any) -> Any:
    """Return the option's value with its secrets hidden: header values, the user part of the endpoint."""
    if name == "otlp_headers" and isinstance(value, Mapping):
        return dict.fromkeys(value, MASK)
    if name == "otlp_endpoint" and isinstance(value, str):
        return re.sub(r"^([a-z][a-z0-9+.-]*://)?.*@", rf"\1{MASK}@", value, flags=re.IGNORECASE | re.DOTALL)
    return MASK if name in SECRET and value is not None else value


def _shown(name: str, value: Any) -> str:
    """Return a wrong value as an error may repeat it: one line, short, no secrets."""
    if name == "otlp_headers":
        return MASK
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = LONGEST_SHOWN
    text = shortener.repr(mask(name, value)).replace("\n", " ")
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def _problem(settings_cls: type[ObserveSettings], name: str, value: Any, items: list[Any]) -> str:
    """Write the line about one wrong option: what it got, from where, what it accepts, what to do."""
    given, fields = _given(value), settings_cls.model_fields
    in_code = given.source == "argument"
    if name not in fields:
        near = [each if in_code else variable_of(each) for each in difflib.get_close_matches(name, fields, n=1)]
        step = f"did you mean {near[0]!r}?" if near else "see all with `python -m fastapi_observe settings`"
        return f"{name if in_code else given.source}: no such option; {step}"
    got = _shown(name, given.value if given.text is None else given.text)
    if items and name not in SECRET:
        got += f" (wrong: {', '.join(_shown(name, item) for item in items[:3])})"
    unpaired = given.value is UNREADABLE and given.source == RESOURCE_ATTRIBUTES
    accepts = "name=value,name2=value2 (percent-encoded)" if unpaired else accepted(fields[name])
    origin, step = (
        ("an argument", f"pass another {name}") if in_code else (given.source, f"correct or unset {given.source}")
    )
    return f"{name}: got {got} from {origin}; accepts {accepts}; {step}"

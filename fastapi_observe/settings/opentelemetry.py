"""Messages about `OTEL_*` variables that have no effect: invalid values, and variables that are not read.

Injectors and base images set these variables for all services of a platform. As the OpenTelemetry specification
demands, an invalid value is reported and ignored; it does not keep the app from starting.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fastapi_observe.settings.environment import invalid_variables
from fastapi_observe.settings.sources import MAX_SHOWN_LENGTH, OTEL_PREFIX, describe_value, split, variables
from fastapi_observe.settings.validation import GRPC_EXTRA

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pydantic_settings import BaseSettings

    from fastapi_observe.settings.sources import SourcedValue

READ_ELSEWHERE: Final = re.compile(
    r"OTEL_(?:"
    r"EXPORTER_OTLP_(?:(?:TRACES|LOGS|METRICS)_)?(?:CERTIFICATE|CLIENT_CERTIFICATE|CLIENT_KEY|INSECURE)"  # export/
    r"|INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS"  # traces/server_span.py
    r"|PROPAGATORS"  # opentelemetry.propagate
    r"|PYTHON_TRACER_PROVIDER"  # opentelemetry.trace
    r")"
)
"""Variables that are read, but set no option."""

CONCERNED: Final = re.compile(
    r"OTEL_(?:"
    r"(?:BLRP|BSP|EXPORTER|LOGRECORD|LOGS|METRICS?|TRACES)_\w+"
    r"|(?:SPAN_)?ATTRIBUTE_VALUE_LENGTH_LIMIT"
    r"|(?:EXPERIMENTAL_)?CONFIG_FILE|LOG_LEVEL|SEMCONV_STABILITY_OPT_IN"
    r"|INSTRUMENTATION_HTTP_CAPTURE_\w+"
    r"|PYTHON_(?:FASTAPI_\w+|ID_GENERATOR|TRACER_PROVIDER)"
    r")"
)
"""Variables that the specification or contrib's FastAPI instrumentation defines for what this package does.

Others are left alone: they may be for another instrumentation, or Kubernetes' variables of a service called `otel-*`.
"""

DEFAULT_VALUES: Final[Mapping[str, frozenset[str]]] = {
    "OTEL_LOGS_EXPORTER": frozenset({"none"}),
    "OTEL_METRICS_EXPORTER": frozenset({"none", "prometheus"}),
    "OTEL_EXPORTER_OTLP_COMPRESSION": frozenset({"gzip"}),
    "OTEL_SEMCONV_STABILITY_OPT_IN": frozenset({"http", "http,database", "database,http"}),
}
"""Values of variables that are not read, but ask for what happens anyway."""

LOCAL_TRACES: Final = (
    "To see traces locally, set otlp_endpoint to a local Jaeger (docker run -p 16686:16686 -p 4318:4318 "
    "jaegertracing/jaeger), or OTEL_TRACES_EXPORTER=console to print them"
)


MAX_PATTERNS: Final = 5
"""Maximum number of patterns that a message repeats."""


def describe_ignored(
    settings_cls: type[BaseSettings], ignored: Mapping[tuple[str, str], SourcedValue]
) -> Iterator[str]:
    """Yield one message for each `OTEL_*` variable with an invalid value, by option and variable."""
    seen = set()
    for (name, variable), value in ignored.items():
        if variable not in seen:  # a list such as OTEL_RESOURCE_ATTRIBUTES sets several options
            seen.add(variable)
            invalid, expected = describe_value(name, settings_cls.model_fields[name], value)
            if name == "otlp_protocol" and value.value == "grpc":
                yield f"Ignored {variable}={invalid}: it {GRPC_EXTRA}. Exporting over HTTP, usually on port 4318."
                continue
            yield f"Ignored {variable}={invalid} (for {name}): expected {expected}."


def describe_left_out() -> Iterator[str]:
    """Yield one message for each `OTEL_*` variable with a value for which OpenTelemetry would raise."""
    for variable in invalid_variables():
        yield f"Ignored {variable.name}={variable.invalid[:MAX_SHOWN_LENGTH]!r}: expected {variable.expected}."


def describe_unsupported_exporters(environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for exporters in `OTEL_TRACES_EXPORTER` that do not exist here."""
    names = split(environment.get("OTEL_TRACES_EXPORTER", "").lower())
    if "zipkin" in names:
        yield f"OTEL_TRACES_EXPORTER=zipkin is not supported; otlp, console and none are. {LOCAL_TRACES}."


def describe_unread(settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> Iterator[str]:
    """Yield one message that names the `OTEL_*` variables that are set but not read. Values are not repeated."""
    known = {
        variable.partition(":")[0]
        for name, field in settings_cls.model_fields.items()
        for variable in variables(name, field)
    }
    unread = [
        name
        for name, value in sorted(environment.items())
        if name.startswith(OTEL_PREFIX)
        and value.strip()
        and CONCERNED.fullmatch(name)
        and name not in known
        and not READ_ELSEWHERE.fullmatch(name)
        and value.strip().lower() not in DEFAULT_VALUES.get(name, ())
    ]
    if unread:
        yield (
            f"fastapi-observe does not read {', '.join(unread)}. "
            "Run `python -m fastapi_observe settings --markdown` to list the variables that it reads."
        )


def describe_unmatched_urls(patterns: Collection[str]) -> Iterator[str]:
    """Yield one message for patterns of `exclude_urls` that cannot match, because they are anchored to the path."""
    anchored = [pattern for pattern in patterns if pattern.startswith("^/")]
    if anchored:
        yield (
            f"exclude_urls: {', '.join(map(repr, anchored[:MAX_PATTERNS]))} cannot match: a URL starts with its "
            "scheme. Remove the ^, or use exclude_paths."
        )

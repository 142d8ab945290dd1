"""Types of options, and `option`, which declares one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints

from fastapi_observe.settings.objectives import Availability, Latency, SLOOptions
from fastapi_observe.settings.objects import is_function
from fastapi_observe.settings.sources import OptionMetadata, pairs, split


def _parse_headers(value: Any) -> Any:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("{") else pairs(value)
    # gRPC rejects header names that are not lower case.
    return {str(name).lower(): text for name, text in value.items()} if isinstance(value, Mapping) else value


def _group_pairs(value: Any) -> Any:
    """Parse `logs=/a,logs=/b` into lists by name. Other types are returned unchanged."""
    if not isinstance(value, str):
        return value
    if value.startswith("{"):
        return json.loads(value)
    grouped: dict[str, list[str]] = {}
    for item in split(value):
        name, _, entry = item.partition("=")
        grouped.setdefault(name.strip(), []).append(entry.strip())
    return grouped


def _parse_labels(value: Any) -> Any:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("{") else pairs(value)
    return {str(name): str(text) for name, text in value.items()} if isinstance(value, Mapping) else value


def _without_repetition(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


def _check_header(value: SecretStr) -> SecretStr:
    if re.search(r"[\r\n]", value.get_secret_value()):
        raise ValueError("a header is one line")
    return value


def _check_token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{8,}", value.get_secret_value()):
        raise ValueError("not a bearer token")
    return value


def _check_regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error:
        raise ValueError("not a regular expression") from None
    return value


def _sort_bounds(value: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(set(value)))


def _parse_peers(value: Any) -> Any:
    """Return a keyword, a function, or a tuple of networks that may include `private`."""
    if is_function(value):
        return value
    items = split(value)
    if not isinstance(items, tuple | list) or not items:
        raise ValueError("neither a keyword nor networks")
    names = tuple(str(each).strip().lower() for each in items)
    if len(names) == 1 and names[0] in {"private", "always", "never"}:
        return names[0]
    for name in names:
        if name != "private":
            ip_network(name, strict=False)
    return names


def _check_objectives(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not all(isinstance(each, Availability | Latency) for each in value):
        raise ValueError("not objectives")
    return value


def _check_objective_options(value: Any) -> Any:
    if not isinstance(value, SLOOptions | None):
        raise ValueError("not SLOOptions")  # noqa: TRY004 - pydantic reports a ValueError
    return value


LEVEL_NAMES: Final = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "success": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "critical": "fatal",
    "fatal": "fatal",
}
"""Levels as `logging`, uvicorn and loguru call them. The values are the levels of OpenTelemetry, which lines show."""
LEVEL_NUMBERS: Final = ((50, "fatal"), (40, "error"), (30, "warn"), (20, "info"))
"""The first number of each level, as `logging` and loguru count. Lower numbers are `debug`."""


def parse_level(value: Any) -> Any:
    """Return the log level for a name in any case, or for a number of `logging` or loguru.

    A number gives the level that contains it, such as `info` for 25. Returns any other value unchanged.
    """
    text = str(value).strip().lower() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if text.isdecimal():
        return next((name for first, name in LEVEL_NUMBERS if int(text[:6]) >= first), "debug")
    return LEVEL_NAMES.get(text, value)


LogLevel = Annotated[Literal["debug", "info", "warn", "error", "fatal"], BeforeValidator(parse_level)]

_AGE = r"(?i:seconds?|minutes?|hours?|days?|weeks?)"
_SIZE = r"(?i:B|KB|MB|GB)"
ROTATION_PATTERN: Final = rf"^[1-9][0-9]{{0,8}} ?({_SIZE}|{_AGE})$"
RETENTION_LIMIT: Final = rf"[1-9][0-9]{{0,8}} ?((?i:files?)|{_SIZE}|{_AGE})"
"""One limit of `log_retention`."""

HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
FilePath = Annotated[str, BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)]
StringList = Annotated[tuple[str, ...], BeforeValidator(split)]
"""Several strings, separated by commas in a variable."""
TailReasons = (
    Annotated[tuple[Literal["errors", "slow", "first", "repeated_queries"], ...], BeforeValidator(split)] | None
)


def _parse_instruments(value: Any) -> Any:
    if isinstance(value, str):
        return value.lower() if value.lower() == "auto" else None if value.lower() == "none" else split(value)
    return value


Instruments = Annotated[Literal["auto"] | tuple[str, ...] | None, BeforeValidator(_parse_instruments)]
"""`auto`, names of OpenTelemetry instrumentors, or None."""
HeaderNames = Annotated[tuple[HeaderName, ...], BeforeValidator(split)]
ExcludedPaths = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^([A-Za-z]+ +)?/[^* ]*\*?$|^[A-Za-z]+ +\*$")], ...],
    BeforeValidator(split),
]
SignalName = Annotated[str, StringConstraints(pattern=r"^(traces|metrics|logs)$")]
ExcludedFrom = Annotated[dict[SignalName, ExcludedPaths], BeforeValidator(_group_pairs)]
Regexes = Annotated[tuple[Annotated[str, AfterValidator(_check_regex)], ...], BeforeValidator(split)]
BucketBounds = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...],
    BeforeValidator(split),
    AfterValidator(_sort_bounds),
]
PEERS_HELP: Final = (
    "private, always, never, or networks such as 203.0.113.0/24, separated by commas; in code a function too, if it is "
    "neither async nor a generator"
)
PeerPolicy = Annotated[Any, BeforeValidator(_parse_peers)]
"""Trusted peers: `private`, `always`, `never`, networks, or a function of the ASGI scope."""
ObjectiveList = Annotated[tuple[Any, ...], AfterValidator(_check_objectives)]
ObjectiveOptions = Annotated[Any, AfterValidator(_check_objective_options)]
_LABEL: Final = r"^_?[a-zA-Z][a-zA-Z0-9_]*$"
_OWN_LABELS: Final = frozenset(
    {
        "method",
        "endpoint",
        "status_code",
        "error_type",
        "le",
        "http_request_method",
        "http_route",
        "http_response_status_code",
        "url_scheme",
        "network_protocol_version",
    }
)


def _check_label(value: str) -> str:
    if value in _OWN_LABELS:
        raise ValueError("a label of the request metrics")
    return value


LabelName = Annotated[str, StringConstraints(pattern=_LABEL), AfterValidator(_check_label)]
MetricLabels = Annotated[tuple[LabelName, ...], BeforeValidator(split), AfterValidator(_without_repetition)]
ConstantLabels = Annotated[
    dict[LabelName, Annotated[str, StringConstraints(max_length=256)]], BeforeValidator(_parse_labels)
]
Token = Annotated[SecretStr, AfterValidator(_check_token)]
Headers = Annotated[
    dict[HeaderName, Annotated[SecretStr, AfterValidator(_check_header)]], BeforeValidator(_parse_headers)
]


def is_endpoint(value: str, *, grpc: bool) -> bool:
    """Return whether OTLP data can be sent to `value`."""
    if not value or re.search(r"\s", value):
        return False
    if grpc and not value.startswith(("http://", "https://")):
        return True
    try:
        url = urlsplit(value)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def option(  # noqa: PLR0913 - each is one fact about an option
    default: Any,
    doc: str,
    *,
    otel: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    accepts: str = "",
    code_only: bool = False,
    subject: str = "",
    **limits: Any,
) -> Any:
    """Declare an option: its default, its line of documentation and the `OTEL_*` variables that set it.

    A variable written `OTEL_X:key` is the pair `key` in the list that `OTEL_X` holds. `aliases` are further variables
    that rank between `OBSERVE_*` and `otel`. `accepts` describes the accepted values where the type does not suffice.
    A `code_only` option has no variable, and needs `accepts`. `subject` starts a subject: this option and those below
    it, up to the next.
    """
    metadata = OptionMetadata(otel, aliases, accepts, code_only, subject)
    return Field(default, description=doc, json_schema_extra=cast("Any", {"option": metadata}), **limits)

"""The types of options, and `option`, which describes one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints

from fastapi_observe.settings.sources import pairs, split


def _headers(value: Any) -> Any:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("{") else pairs(value)
    # gRPC refuses header names that are not lower case
    return {str(name).lower(): text for name, text in value.items()} if isinstance(value, Mapping) else value


def _one_line(value: SecretStr) -> SecretStr:
    if re.search(r"[\r\n]", value.get_secret_value()):
        raise ValueError("a header is one line")
    return value


def _token(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]{8,}", value.get_secret_value()):
        raise ValueError("no bearer token")
    return value


def _regex(value: str) -> str:
    try:
        re.compile(value)
    except re.error:
        raise ValueError("not a regular expression") from None
    return value


def _ascending(value: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(set(value)))


def _peers(value: Any) -> Any:
    """Check who is trusted: a word, a function, or networks, among which `private` may stand."""
    if callable(value):
        return value
    given = split(value)
    if not isinstance(given, tuple | list) or not given:
        raise ValueError("neither a word nor networks")
    names = tuple(str(each).strip().lower() for each in given)
    if len(names) == 1 and names[0] in {"private", "always", "never"}:
        return names[0]
    for name in names:
        if name != "private":
            ip_network(name, strict=False)
    return names


def _objectives(value: tuple[Any, ...]) -> tuple[Any, ...]:
    from fastapi_observe.settings.objectives import Availability, Latency  # noqa: PLC0415 - few apps have any

    if not all(isinstance(each, Availability | Latency) for each in value):
        raise ValueError("no objectives")
    return value


def _objective_options(value: Any) -> Any:
    from fastapi_observe.settings.objectives import SLOOptions  # noqa: PLC0415 - as above

    if not isinstance(value, SLOOptions | None):
        raise ValueError("no SLOOptions")  # noqa: TRY004 - pydantic tells a ValueError
    return value


RETENTION_PATTERN = r"[1-9][0-9]{0,8} (files?|seconds?|minutes?|hours?|days?|weeks?|B|KB|MB|GB)"
"""One limit of `log_retention`."""
HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
StringList = Annotated[tuple[str, ...], BeforeValidator(split)]
"""Several strings; in the environment separated by commas."""
HeaderNames = Annotated[tuple[HeaderName, ...], BeforeValidator(split)]
Paths = Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^/[^*]*\*?$")], ...], BeforeValidator(split)]
Regexes = Annotated[tuple[Annotated[str, AfterValidator(_regex)], ...], BeforeValidator(split)]
BucketBounds = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...],
    BeforeValidator(split),
    AfterValidator(_ascending),
]
PEERS_HELP = "private, always, never, or networks such as 203.0.113.0/24, separated by commas; in code a function too"
"""What says who is trusted."""
PeerPolicy = Annotated[Any, BeforeValidator(_peers)]
"""Who is trusted: `private`, `always`, `never`, networks, or a function of the ASGI scope."""
ObjectiveList = Annotated[tuple[Any, ...], AfterValidator(_objectives)]
Token = Annotated[SecretStr, AfterValidator(_token)]
ObjectiveOptions = Annotated[Any, AfterValidator(_objective_options)]
Headers = Annotated[dict[HeaderName, Annotated[SecretStr, AfterValidator(_one_line)]], BeforeValidator(_headers)]


def is_endpoint(value: str, *, grpc: bool) -> bool:
    """Tell whether spans can be sent to `value`."""
    if not value or re.search(r"\s", value):
        return False
    if grpc and not value.startswith(("http://", "https://")):
        return True
    try:
        url = urlsplit(value)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def option(  # noqa: PLR0913 - each is one thing to say about an option
    default: Any,
    doc: str,
    *,
    otel: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    accepts: str = "",
    code_only: bool = False,
    **limits: Any,
) -> Any:
    """Describe one option: its default, its line of documentation and the `OTEL_*` variables it honours.

    A variable written `OTEL_X:key` is the pair `key` in the list that `OTEL_X` holds. `also` are further variables that
    rank between `OBSERVE_*` and `otel`. `accepts` says in words what the type does not; `code_only` options have no
    variable.
    """
    extra = {"otel": list(otel), "also": list(aliases), "accepts": accepts, "code_only": code_only}
    return Field(default, description=doc, json_schema_extra=cast("Any", extra), **limits)

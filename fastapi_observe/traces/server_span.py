"""What a server span says: the stable HTTP semantic conventions of OpenTelemetry, read from an `Exchange`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.records.endpoint import REDIRECT, UNMATCHED
from fastapi_observe.redaction.patterns import REDACTED
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR, MARGIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Scope

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.time_breakdown import TimeBreakdown
    from fastapi_observe.redaction.redactor import Redactor

MAX_PATH_LENGTH: Final = 512
MAX_METHOD_LENGTH: Final = 32
MAX_HEADER_LENGTH: Final = 1024

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_NO_ROUTE: Final = frozenset({UNMATCHED, REDIRECT})


def span_name(exchange: RequestRecord) -> str:
    """Return `{method} {route}`, or the method alone where no route answered."""
    method = "HTTP" if exchange.method == "_OTHER" else exchange.method
    return method if exchange.endpoint in _NO_ROUTE else f"{method} {exchange.endpoint}"


def request_attributes(exchange: RequestRecord, redactor: Redactor) -> dict[str, Any]:
    """Return what is known when the request arrives."""
    scope = exchange.scope
    scheme = scope.get("scheme") or ("ws" if exchange.websocket else "http")
    attributes: dict[str, Any] = {
        "http.request.method": exchange.method,
        "url.scheme": scheme,
        "url.path": redactor.unmatched_path(exchange.path)[:MAX_PATH_LENGTH],
    }
    if exchange.method == "_OTHER":
        attributes["http.request.method_original"] = redactor.text(str(scope.get("method")))[:MAX_METHOD_LENGTH]
    query = scope.get("query_string")
    if query:
        attributes["url.query"] = redactor.query(query)
    address, port = server_address(scope, exchange.headers, scheme, redactor)
    if address is not None:
        attributes["server.address"] = address
        if port is not None:
            attributes["server.port"] = port
    client = scope.get("client")
    if client:
        attributes["client.address"] = redactor.address(client[0])
        if client[1]:
            attributes["client.port"] = client[1]
    agent = exchange.headers.get(b"user-agent")
    if agent:
        attributes["user_agent.original"] = redactor.user_agent(agent)
    http_version = scope.get("http_version")
    if http_version:
        attributes["network.protocol.version"] = http_version
    if exchange.websocket:
        attributes["network.protocol.name"] = "websocket"
    return attributes


def server_address(
    scope: Scope, headers: dict[bytes, bytes], scheme: str, redactor: Redactor = DEFAULT_REDACTOR
) -> tuple[str | None, int | None]:
    """Return host and port as the client named them (`Host`), else those of the socket.

    A `Host` that is not a plain host and port (user and password, say), or looks like a secret, is not believed.
    """
    named = redactor.host(headers.get(b"host", b""))
    if named is not None:
        return named[0], named[1] or _PORTS.get(scheme)
    server = scope.get("server")
    return (server[0], server[1]) if server else (None, None)


def response_attributes(
    exchange: RequestRecord, repeat_limit: int, redactor: Redactor = DEFAULT_REDACTOR
) -> dict[str, Any]:
    """Return what is known when the response has ended."""
    attributes: dict[str, Any] = {
        "http.response.status_code": exchange.status_code,
        "http.request.body.size": exchange.request_size,
        "http.response.body.size": exchange.response_size,
    }
    if exchange.endpoint not in _NO_ROUTE:
        attributes["http.route"] = exchange.endpoint
        if redactor.has_secret_routes() or redactor.has_secret_parameter(exchange.endpoint):
            attributes["url.path"] = redactor.route_path(exchange.path, exchange.endpoint)[:MAX_PATH_LENGTH]
    if exchange.error_type is not None:
        attributes["error.type"] = exchange.error_type
    if exchange.work is not None:
        attributes.update(time_attributes(exchange, exchange.work, repeat_limit))
    return attributes


def time_attributes(exchange: RequestRecord, work: TimeBreakdown, repeat_limit: int) -> dict[str, Any]:
    """Return where the time of a request went, in milliseconds, and the statements that it repeated."""
    attributes: dict[str, Any] = {
        f"fastapi_observe.{name}": value for name, value in work.as_fields(exchange.started, exchange.duration).items()
    }
    repeated = work.repeated(repeat_limit)
    if repeated:
        attributes["fastapi_observe.repeated_queries"] = tuple(each.statement for each in repeated)
    return attributes


class HeaderCapture:
    """Reads the wanted headers as `http.{side}.header.{name}`; false if none is wanted.

    `names` are exact names in any case; `side` is `request` or `response`. The values of secret headers, and of those
    that `OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS` names, read `REDACTED`; the others are redacted.
    """

    __slots__ = ("_redactor", "_wanted")

    def __init__(self, names: tuple[str, ...], side: str, redactor: Redactor = DEFAULT_REDACTOR) -> None:
        self._redactor = redactor
        self._wanted: dict[bytes, tuple[str, str]] = {}
        if not names:
            return
        from opentelemetry.util.http import (  # noqa: PLC0415 - slow to import, seldom used
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS,
            SanitizeValue,
            get_custom_headers,
        )

        more = get_custom_headers(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS)
        sanitise = SanitizeValue(more).sanitize_header_value
        for name in map(str.lower, names):
            secret = bool(more) and bool(sanitise(name, ""))
            self._wanted[name.encode()] = (f"http.{side}.header.{name}", "" if secret else name)

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, tuple[str, ...]]:
        """Return the attributes; a header that was sent twice has two values."""
        found: dict[str, tuple[str, ...]] = {}
        for name, value in headers:
            wanted = self._wanted.get(name.lower())
            if wanted is not None:
                key, secret = wanted[0], not wanted[1]
                text = value[: MAX_HEADER_LENGTH + MARGIN].decode("latin-1")
                shown = REDACTED if secret else self._redactor.header(wanted[1], text)[:MAX_HEADER_LENGTH]
                found[key] = (*found.get(key, ()), shown)
        return found

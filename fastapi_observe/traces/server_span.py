"""Attributes of the server span: OpenTelemetry's stable HTTP semantic conventions, from a `RequestRecord`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.records.endpoint import REDIRECT, UNMATCHED
from fastapi_observe.records.request import MAX_METHOD_LENGTH
from fastapi_observe.redaction.patterns import REDACTED
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR, MARGIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Scope

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.time_breakdown import TimeBreakdown
    from fastapi_observe.redaction.redactor import Redactor

MAX_SPAN_PATH_LENGTH: Final = 512
MAX_HEADER_LENGTH: Final = 1024
"""Characters of the path and of a captured header."""

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_NO_ROUTE: Final = frozenset({UNMATCHED, REDIRECT})


def span_name(record: RequestRecord) -> str:
    """Return `{method} {route}`, or only the method if no route matched, or the name of a job."""
    if record.job:
        return record.endpoint
    method = "HTTP" if record.method == "_OTHER" else record.method
    return method if record.endpoint in _NO_ROUTE else f"{method} {record.endpoint}"


def request_attributes(record: RequestRecord, redactor: Redactor) -> dict[str, Any]:
    """Return the attributes that are known when the request starts."""
    scope = record.scope
    scheme = scope.get("scheme") or ("ws" if record.websocket else "http")
    attributes: dict[str, Any] = {
        "http.request.method": record.method,
        "url.scheme": scheme,
        "url.path": redactor.unmatched_path(record.path)[:MAX_SPAN_PATH_LENGTH],
    }
    if record.method == "_OTHER":
        attributes["http.request.method_original"] = redactor.text(str(scope.get("method")))[:MAX_METHOD_LENGTH]
    query = scope.get("query_string")
    if query:
        attributes["url.query"] = redactor.query(query)
    address, port = server_address(scope, record.headers, scheme, redactor)
    if address is not None:
        attributes["server.address"] = address
        if port is not None:
            attributes["server.port"] = port
    client = scope.get("client")
    if client:
        attributes["client.address"] = redactor.address(client[0])
        if client[1]:
            attributes["client.port"] = client[1]
    agent = record.headers.get(b"user-agent")
    if agent:
        attributes["user_agent.original"] = redactor.user_agent(agent)
    http_version = scope.get("http_version")
    if http_version:
        attributes["network.protocol.version"] = http_version
    if record.websocket:
        attributes["network.protocol.name"] = "websocket"
    return attributes


def server_address(
    scope: Scope, headers: dict[bytes, bytes], scheme: str, redactor: Redactor = DEFAULT_REDACTOR
) -> tuple[str | None, int | None]:
    """Return host and port of the `Host` header, or of the socket if the header is missing or not plain.

    A `Host` with user and password, or that looks like a secret, is not plain.
    """
    host = redactor.host(headers.get(b"host", b""))
    if host is not None:
        return host[0], host[1] or _PORTS.get(scheme)
    server = scope.get("server")
    return (server[0], server[1]) if server else (None, None)


def response_attributes(
    record: RequestRecord, repeated_query_threshold: int, redactor: Redactor = DEFAULT_REDACTOR
) -> dict[str, Any]:
    """Return the attributes that are known when the response, or the job, has ended."""
    if record.job:
        return _job_attributes(record, repeated_query_threshold)
    attributes: dict[str, Any] = {
        "http.response.status_code": record.status_code,
        "http.request.body.size": record.request_size,
        "http.response.body.size": record.response_size,
    }
    if record.current.fields is not None:
        attributes = {**record.current.fields.attributes, **attributes}
    if record.endpoint not in _NO_ROUTE:
        attributes["http.route"] = record.endpoint
        # At the start the route was not known, so the path was compared with all secret templates of the app.
        if redactor.has_secret_routes() or redactor.has_secret_parameter(record.endpoint):
            attributes["url.path"] = redactor.route_path(record.path, record.endpoint)[:MAX_SPAN_PATH_LENGTH]
    if record.request_id != record.trace_id:
        attributes["fastapi_observe.request_id"] = record.request_id
    if record.error_type is not None:
        attributes["error.type"] = record.error_type
    if record.validation_errors:
        attributes["fastapi_observe.validation_errors"] = tuple(
            f"{name}: {reason}" for name, reason in record.validation_errors
        )
    if record.work is not None:
        attributes.update(time_attributes(record, record.work, repeated_query_threshold))
    return attributes


def _job_attributes(record: RequestRecord, repeated_query_threshold: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"fastapi_observe.outcome": record.outcome}
    if record.current.fields is not None:
        attributes = {**record.current.fields.attributes, **attributes}
    if record.error_type is not None:
        attributes["error.type"] = record.error_type
    if record.work is not None:
        attributes.update(time_attributes(record, record.work, repeated_query_threshold))
    return attributes


def time_attributes(
    record: RequestRecord, time_breakdown: TimeBreakdown, repeated_query_threshold: int
) -> dict[str, Any]:
    """Return the time breakdown of a request, in milliseconds, and the statements that it repeated."""
    attributes: dict[str, Any] = {
        f"fastapi_observe.{name}": value for name, value in time_breakdown.as_fields(record.duration).items()
    }
    repeated = time_breakdown.repeated(repeated_query_threshold)
    if repeated:
        attributes["fastapi_observe.repeated_queries"] = tuple(each.statement for each in repeated)
    return attributes


class _CapturedHeader(NamedTuple):
    name: str
    attribute: str
    is_secret: bool


class HeaderCapture:
    """Reads the captured headers as `http.{side}.header.{name}`. False if no header is captured.

    `names` are exact names in any case; `side` is `request` or `response`. Values of secret headers, and of headers
    that `OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS` matches, are `REDACTED`; other values are redacted.
    """

    __slots__ = ("_captured", "_redactor")

    def __init__(self, names: tuple[str, ...], side: str, redactor: Redactor = DEFAULT_REDACTOR) -> None:
        self._redactor = redactor
        self._captured: dict[bytes, _CapturedHeader] = {}
        if not names:
            return
        from opentelemetry.util.http import (  # noqa: PLC0415 - slow to import, rarely used
            OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS,
            SanitizeValue,
            get_custom_headers,
        )

        patterns = get_custom_headers(OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS)
        sanitize = SanitizeValue(patterns).sanitize_header_value
        for name in map(str.lower, names):
            is_secret = bool(patterns) and bool(sanitize(name, ""))
            self._captured[name.encode()] = _CapturedHeader(name, f"http.{side}.header.{name}", is_secret)

    def __bool__(self) -> bool:
        return bool(self._captured)

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, tuple[str, ...]]:
        """Return the attributes. A header that occurs twice has two values."""
        attributes: dict[str, tuple[str, ...]] = {}
        for name, value in headers:
            header = self._captured.get(name.lower())
            if header is not None:
                text = REDACTED
                if not header.is_secret:
                    text = self._redactor.header(header.name, value[: MAX_HEADER_LENGTH + MARGIN].decode("latin-1"))
                attributes[header.attribute] = (
                    *attributes.get(header.attribute, ()),
                    text[:MAX_HEADER_LENGTH],
                )
        return attributes

"""The request line: built from an exchange, and for the usual ones encoded without building it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from fastapi_observe.logs.line import describe_exception, encode_text, truncate
from fastapi_observe.redaction.addresses import MAX_ADDRESS_LENGTH

if TYPE_CHECKING:
    from fastapi_observe.logs.line import Timestamps
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.time_breakdown import RepeatedStatement, TimeBreakdown
    from fastapi_observe.redaction.redactor import Redactor

OPERATION_LOGGER: Final = "fastapi_observe.operation"
"""Logger of these lines."""

KIND_TITLES: Final = {
    "database": "database query",
    "external": "external call",
    "background": "background task",
    "operation": "operation",
}


def level_of_operation(operation: Operation, slow_query_threshold: float) -> str:
    """Return the level of an operation's line: `error` if it failed, `warn` if it was refused or slow, else `debug`."""
    if operation.outcome == "ok":
        return "warn" if operation.kind == "database" and operation.duration >= slow_query_threshold else "debug"
    return "warn" if operation.outcome == "client_error" else "error"


def operation_message(operation: Operation, level: str) -> str:
    """Return what the line of an operation says."""
    name = KIND_TITLES.get(operation.kind, operation.kind)
    if operation.outcome != "ok":
        return f"{name} failed"
    return f"{name} completed" if level == "debug" else f"slow {name}"


def fields_of_operation(operation: Operation) -> dict[str, Any]:
    """Return everything that is known of an operation."""
    fields: dict[str, Any] = {
        **{name: value for name, value in operation.details.items() if value is not None},
        **operation.labels,
        "outcome": operation.outcome,
        "duration_ms": round(operation.duration * 1000, 3),
    }
    if operation.error_type is not None:
        fields["error_type"] = operation.error_type
    return fields


def repeated_statement_fields(repeated: RepeatedStatement, exchange: RequestRecord) -> dict[str, Any]:
    """Return what is told of a statement that one request repeated."""
    return {
        "endpoint": exchange.endpoint,
        "db.query.text": repeated.statement,
        "count": repeated.times,
        "duration_ms": round(repeated.seconds * 1000, 3),
    }


REQUEST_MESSAGE: Final = "HTTP request completed"
WEBSOCKET_MESSAGE: Final = "WebSocket connection closed"
REQUEST_LOGGER: Final = "fastapi_observe.request"
"""Messages and logger of the request line."""

MAX_PATH_LENGTH: Final = 1024
"""Most characters of a path."""

MAX_CACHED_PARTS: Final = 1024
"""Most routes, and most clients, with a prepared piece of their lines; then all are made anew."""

MAX_CACHED_BYTES: Final = 512
"""Most bytes of a user agent that is kept for the next line: a client chooses it, and the address behind a proxy."""


RouteKey = tuple[str, str, int, str]
RequestLineParts = tuple[RouteKey, str, str, bytes | None, str | None, str, str, str, int, float, int, int, str]
"""Method, endpoint, status and outcome; then level, path, user agent, client, the three ids, start, duration, sizes,
and where the time went."""


class RequestLineEncoder:
    """Makes request lines; `resource` are the keys that say who writes them, `now` is in nanoseconds."""

    def __init__(self, resource: dict[str, str], redactor: Redactor, timestamps: Timestamps) -> None:
        self._resource = resource
        self._redactor = redactor
        self._timestamps = timestamps
        head = {"message": REQUEST_MESSAGE, "logger": REQUEST_LOGGER, **resource}
        self._head = orjson.dumps(head)[1:-1].decode()
        self._routes: dict[RouteKey, tuple[str, str, bool]] = {}
        self._client_parts: dict[tuple[bytes | None, str | None], str] = {}

    def build(self, exchange: RequestRecord, level: str, now: int) -> dict[str, Any]:
        """Return the line with whatever this exchange has to say."""
        scope = exchange.scope
        client, query = scope.get("client"), scope.get("query_string")
        redactor = self._redactor
        url = truncate(redactor.route_path(exchange.path, exchange.endpoint), MAX_PATH_LENGTH)
        if query:
            url = f"{url}?{redactor.query(query)}"
        agent = exchange.headers.get(b"user-agent")
        fields: dict[str, Any] = {
            "method": exchange.method,
            "url": url,
            "endpoint": exchange.endpoint,
            "status_code": exchange.status_code,
            "outcome": exchange.outcome,
            "duration_ms": round(exchange.duration * 1000, 3),
            "request_size": exchange.request_size,
            "response_size": exchange.response_size,
            "user_agent": None if agent is None else redactor.user_agent(agent),
            "remote_addr": redactor.address(client[0]) if client else None,
        }
        if exchange.work is not None:
            fields.update(exchange.work.as_fields(exchange.started, exchange.duration))
        if exchange.ttfb is not None:
            fields["ttfb_ms"] = round(exchange.ttfb * 1000, 3)
        if exchange.error_type is not None:
            fields["error_type"] = exchange.error_type
        if exchange.websocket:
            fields["close_code"] = exchange.close_code  # type: ignore[attr-defined]
            fields["messages_received"] = exchange.messages_received  # type: ignore[attr-defined]
            fields["messages_sent"] = exchange.messages_sent  # type: ignore[attr-defined]
        ids = {"trace_id": exchange.trace_id, "span_id": exchange.span_id} if exchange.trace_id else {}
        if exchange.request_id:
            ids["request_id"] = exchange.request_id
        line: dict[str, Any] = {
            "timestamp": self._timestamps(now),
            "level": level,
            "message": WEBSOCKET_MESSAGE if exchange.websocket else REQUEST_MESSAGE,
            "logger": REQUEST_LOGGER,
            **self._resource,
            **ids,
            "fields": fields,
        }
        if exchange.exception is not None:
            line["exception"] = describe_exception(exchange.exception, redactor)
        return line

    def capture(self, exchange: RequestRecord, level: str) -> RequestLineParts | None:
        """Take down all that the line of this exchange will say; None if it is not one of the usual ones.

        Values only: what waits in the queue must neither change nor keep the request alive.
        """
        scope = exchange.scope
        if (
            exchange.error_type is not None
            or exchange.ttfb is not None
            or exchange.websocket
            or scope.get("query_string")
        ):
            return None
        client, agent = scope.get("client"), exchange.headers.get(b"user-agent")
        address = client[0] if client else None
        if type(address) is str and len(address) > MAX_ADDRESS_LENGTH:
            address = address[: MAX_ADDRESS_LENGTH + 1]  # one more: it is seen to be too long, so not kept
        if agent is not None and len(agent) > MAX_CACHED_BYTES:
            agent = agent[: MAX_CACHED_BYTES + 1]
        return (
            (exchange.method, exchange.endpoint, exchange.status_code, exchange.outcome),
            level,
            exchange.path,
            agent,
            address,
            exchange.trace_id,
            exchange.span_id,
            exchange.request_id,
            exchange.started_ns,
            exchange.duration,
            exchange.request_size,
            exchange.response_size,
            "" if exchange.work is None else encode_time_fields(exchange, exchange.work),
        )

    def encode(self, record: RequestLineParts) -> bytes:
        """Return the line that was taken down as bytes, its newline included."""
        route, level, path, agent, address, trace_id, span_id, request_id, started, duration, received, sent, work = (
            record
        )
        before, between, has_secret = self._routes.get(route) or self._prepare(route, level)
        asker = self._client_parts.get((agent, address)) or self._prepare_asker(agent, address)
        if not has_secret and len(path) <= MAX_PATH_LENGTH and self._redactor.is_plain_path(path):
            url = f'"{path}"'
        else:
            url = encode_text(truncate(self._redactor.route_path(path, route[1]), MAX_PATH_LENGTH))
        ids = f'"trace_id":"{trace_id}","span_id":"{span_id}",' if trace_id else ""
        asked = f'"request_id":"{request_id}",' if request_id else ""
        return (
            f'{{"timestamp":"{self._timestamps(started + int(duration * 1e9))}",{before}{ids}{asked}"fields":{{'
            f'"method":"{route[0]}","url":{url},{between}"duration_ms":{duration * 1000:.3f},'
            f'"request_size":{received},"response_size":{sent},{asker}{work}}}}}\n'
        ).encode()

    def _prepare_asker(self, agent: bytes | None, address: str | None) -> str:
        """Keep what is the same in all lines about one client."""
        if len(self._client_parts) >= MAX_CACHED_PARTS:
            self._client_parts.clear()
        shown = [
            "null" if text is None else encode_text(text)
            for text in (
                None if agent is None else self._redactor.user_agent(agent),
                None if address is None else self._redactor.address(address),
            )
        ]
        kept = f'"user_agent":{shown[0]},"remote_addr":{shown[1]}'
        if len(agent or b"") <= MAX_CACHED_BYTES and len(str(address)) <= MAX_ADDRESS_LENGTH:
            self._client_parts[agent, address] = kept
        return kept

    def _prepare(self, route: RouteKey, level: str) -> tuple[str, str, bool]:
        """Keep what is the same in all lines of a route that end alike."""
        if len(self._routes) >= MAX_CACHED_PARTS:
            self._routes.clear()
        _, endpoint, status_code, outcome = route
        kept = (
            f'"level":"{level}",{self._head},',
            f'"endpoint":{encode_text(endpoint)},"status_code":{status_code},"outcome":"{outcome}",',
            self._redactor.has_secret_parameter(endpoint),
        )
        self._routes[route] = kept
        return kept


def encode_time_fields(exchange: RequestRecord, work: TimeBreakdown) -> str:
    """Return where the time of a request went, as it follows other fields of a line."""
    return "".join(f',"{name}":{value}' for name, value in work.as_fields(exchange.started, exchange.duration).items())

"""The fields of request and operation lines, and a fast encoder for ordinary request lines."""

from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.internal import json
from fastapi_observe.logs.line import DIGITS, encode_text, exception_object, truncate
from fastapi_observe.records.time_breakdown import FIELD_PREFIXES
from fastapi_observe.redaction.addresses import MAX_ADDRESS_LENGTH
from fastapi_observe.redaction.redactor import MAX_PATH_LENGTH, MAX_SCANNED_QUERY

if TYPE_CHECKING:
    from fastapi_observe.logs.line import Timestamps
    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.time_breakdown import RepeatedStatement, TimeBreakdown
    from fastapi_observe.redaction.redactor import Redactor

OPERATION_LOGGER: Final = "fastapi_observe.operation"

KIND_TITLES: Final = {
    "database": "database query",
    "external": "external call",
    "background": "background task",
    "operation": "operation",
}


def level_of_operation(operation: Operation, slow_query_threshold: float) -> str:
    """Return the level of an operation's line: `error` if it failed, `warn` if rejected or slow, else `debug`."""
    if operation.outcome == "ok":
        return "warn" if operation.kind == "database" and operation.duration >= slow_query_threshold else "debug"
    return "warn" if operation.outcome == "client_error" else "error"


def operation_message(operation: Operation, level: str) -> str:
    """Return the message of an operation's line."""
    name = KIND_TITLES.get(operation.kind, operation.kind)
    if operation.outcome != "ok":
        return f"{name} failed"
    return f"{name} completed" if level == "debug" else f"slow {name}"


def operation_fields(operation: Operation) -> dict[str, Any]:
    """Return the fields of an operation's line. Labels replace details of the same name."""
    fields: dict[str, Any] = {
        **{name: value for name, value in operation.details.items() if value is not None},
        **operation.labels,
        "outcome": operation.outcome,
        "duration_ms": round(operation.duration * 1000, 3),
    }
    if operation.error_type is not None:
        fields["error_type"] = operation.error_type
    return fields


def repeated_statement_fields(repeated: RepeatedStatement, record: RequestRecord) -> dict[str, Any]:
    """Return the fields of the warning about a statement that one request has repeated."""
    return {
        "endpoint": record.endpoint,
        "db.query.text": repeated.statement,
        "count": repeated.times,
        "duration_ms": round(repeated.seconds * 1000, 3),
    }


JOB_LOGGER: Final = "fastapi_observe.job"


def job_fields(record: JobRecord) -> dict[str, Any]:
    """Return the fields of a job's line. They replace fields of `observe.set` of the same name."""
    fields: dict[str, Any] = {
        "job": record.endpoint,
        "outcome": record.outcome,
        "sampled": record.sampled,
        "duration_ms": round(record.duration * 1000, 3),
    }
    if record.work is not None:
        fields.update(record.work.as_fields(record.duration))
    if record.error_type is not None:
        fields["error_type"] = record.error_type
    if record.current.fields is not None:
        return fields | {name: value for name, value in record.current.fields.fields.items() if name not in fields}
    return fields


REQUEST_LOGGER: Final = "fastapi_observe.request"
REQUEST_MESSAGE: Final = "HTTP request completed"
WEBSOCKET_MESSAGE: Final = "WebSocket connection closed"

MAX_CACHED_PARTS: Final = 1024
"""Maximum of routes, and of clients, for which an encoded part is cached. Then the cache is emptied."""

MAX_CACHED_BYTES: Final = 512
"""Maximum size of a user agent that is cached. Clients choose it, and behind a proxy their address as well."""


# Named tuples would be easier to read, but each costs every request a thousand instructions more.
RouteKey = tuple[str, str, int, str, "str | bool"]
"""What the cached part of a route's lines depends on: method, endpoint, status code, outcome and `sampled`."""

RequestLineParts = tuple[
    RouteKey, str, str, bytes, "bytes | None", "str | None", str, str, str, int, float, int, int, str
]
"""The values of an ordinary request line, copied from the record; `encode` names them. The last, time fields, is JSON.
"""


class RequestLineEncoder:
    """Builds and encodes request lines. `resource` are the keys that describe the service."""

    def __init__(self, resource: dict[str, str], redactor: Redactor, timestamps: Timestamps) -> None:
        self._resource = resource
        self._redactor = redactor
        # Bound, because calling the object itself costs twice as much.
        self._timestamp = timestamps.__call__
        head = {"message": REQUEST_MESSAGE, "logger": REQUEST_LOGGER, **resource}
        self._head = json.dumps(head)[1:-1].decode()
        self._route_parts: dict[RouteKey, tuple[str, str, bool]] = {}
        self._client_parts: dict[tuple[bytes | None, str | None], str] = {}

    def build(self, record: RequestRecord, level: str, end_ns: int) -> dict[str, Any]:
        """Return the line of any request; it ended `end_ns` nanoseconds after the epoch."""
        scope = record.scope
        client, query = scope.get("client"), scope.get("query_string")
        redactor = self._redactor
        url = truncate(redactor.route_path(record.path, record.endpoint), MAX_PATH_LENGTH)
        if query:
            url = f"{url}?{redactor.query(query)}"
        user_agent = record.headers.get(b"user-agent")
        fields: dict[str, Any] = {
            "method": record.method,
            "url": url,
            "endpoint": record.endpoint,
            "status_code": record.status_code,
            "outcome": record.outcome,
            "sampled": record.sampled,
            "duration_ms": round(record.duration * 1000, 3),
            "request_size": record.request_size,
            "response_size": record.response_size,
            "user_agent": None if user_agent is None else redactor.user_agent(user_agent),
            "remote_addr": redactor.address(client[0]) if client else None,
        }
        if record.work is not None:
            fields.update(record.work.as_fields(record.duration))
        if record.ttfb is not None:
            fields["ttfb_ms"] = round(record.ttfb * 1000, 3)
        if record.error_type is not None:
            fields["error_type"] = record.error_type
        if record.validation_errors:
            fields["validation_errors"] = [f"{name}: {reason}" for name, reason in record.validation_errors]
        if record.websocket:
            fields["close_code"] = record.close_code  # type: ignore[attr-defined]
            fields["messages_received"] = record.messages_received  # type: ignore[attr-defined]
            fields["messages_sent"] = record.messages_sent  # type: ignore[attr-defined]
        if record.current.fields is not None:
            of_request = record.current.fields.fields
            fields.update({name: value for name, value in of_request.items() if name not in fields})
        ids = {"trace_id": record.trace_id, "span_id": record.span_id} if record.trace_id else {}
        if record.request_id:
            ids["request_id"] = record.request_id
        line: dict[str, Any] = {
            "timestamp": self._timestamp(end_ns),
            "level": level,
            "message": WEBSOCKET_MESSAGE if record.websocket else REQUEST_MESSAGE,
            "logger": REQUEST_LOGGER,
            **self._resource,
            **ids,
            "fields": fields,
        }
        if record.exception is not None:
            line["exception"] = exception_object(record.exception, redactor)
        return line

    def capture(self, record: RequestRecord, level: str) -> RequestLineParts | None:
        """Copy the values of an ordinary request line, or return None for any other request.

        Values only: what is in the queue must neither change nor keep the request alive.
        """
        scope = record.scope
        if (
            record.error_type is not None
            or record.ttfb is not None
            or record.websocket
            or record.validation_errors
            or record.current.fields is not None
        ):
            return None
        query = scope.get("query_string") or b""
        if query:
            if self._redactor.has_function:  # it is called where the request runs
                return None
            if len(query) > MAX_SCANNED_QUERY:
                query = query[:MAX_SCANNED_QUERY]
        client, user_agent = scope.get("client"), record.headers.get(b"user-agent")
        address = client[0] if client else None
        if type(address) is str and len(address) > MAX_ADDRESS_LENGTH:
            address = address[: MAX_ADDRESS_LENGTH + 1]  # still too long, so it is not cached
        if user_agent is not None and len(user_agent) > MAX_CACHED_BYTES:
            user_agent = user_agent[: MAX_CACHED_BYTES + 1]
        return (
            (record.method, record.endpoint, record.status_code, record.outcome, record.sampled),
            level,
            record.path,
            query,
            user_agent,
            address,
            record.trace_id,
            record.span_id,
            record.request_id,
            record.started_ns,
            record.duration,
            record.request_size,
            record.response_size,
            "" if record.work is None else encode_time_fields(record, record.work),
        )

    def encode(self, parts: RequestLineParts) -> bytes:
        """Return the line of captured values, with its newline."""
        (
            route,
            level,
            path,
            query,
            user_agent,
            address,
            trace_id,
            span_id,
            request_id,
            started_ns,
            duration,
            request_size,
            response_size,
            time_fields,
        ) = parts
        before, between, has_secret = self._route_parts.get(route) or self._encode_route(route, level)
        client = self._client_parts.get((user_agent, address)) or self._encode_client(user_agent, address)
        if not has_secret and len(path) <= MAX_PATH_LENGTH and self._redactor.is_plain_path(path):
            url = path
        else:
            url = encode_text(truncate(self._redactor.route_path(path, route[1]), MAX_PATH_LENGTH))[1:-1]
        if query:
            url = f"{url}?{encode_text(self._redactor.query(query))[1:-1]}"
        microseconds = floor(duration * 1e6 + 0.5)  # at a third of the cost of `int`
        ids = f'"trace_id":"{trace_id}","span_id":"{span_id}",' if trace_id else ""
        request = f'"request_id":"{request_id}",' if request_id else ""
        return (
            f'{{"timestamp":"{self._timestamp(started_ns + floor(duration * 1e9))}",{before}{ids}{request}"fields":{{'
            f'"method":"{route[0]}","url":"{url}",{between}'
            f'"duration_ms":{microseconds // 1000}.{DIGITS[microseconds % 1000]},'
            f'"request_size":{request_size},"response_size":{response_size},{client}{time_fields}}}}}\n'
        ).encode()

    def _encode_client(self, user_agent: bytes | None, address: str | None) -> str:
        """Encode and cache the part that all lines of one client have."""
        if len(self._client_parts) >= MAX_CACHED_PARTS:
            self._client_parts.clear()
        values = [
            "null" if text is None else encode_text(text)
            for text in (
                None if user_agent is None else self._redactor.user_agent(user_agent),
                None if address is None else self._redactor.address(address),
            )
        ]
        part = f'"user_agent":{values[0]},"remote_addr":{values[1]}'
        if len(user_agent or b"") <= MAX_CACHED_BYTES and len(str(address)) <= MAX_ADDRESS_LENGTH:
            self._client_parts[user_agent, address] = part
        return part

    def _encode_route(self, route: RouteKey, level: str) -> tuple[str, str, bool]:
        """Encode and cache the parts that all lines of a route with one outcome have."""
        if len(self._route_parts) >= MAX_CACHED_PARTS:
            self._route_parts.clear()
        _, endpoint, status_code, outcome, decision = route
        sampled = f'"{decision}"' if decision else "false"
        parts = (
            f'"level":"{level}",{self._head},',
            (
                f'"endpoint":{encode_text(endpoint)},"status_code":{status_code},'
                f'"outcome":"{outcome}","sampled":{sampled},'
            ),
            self._redactor.has_secret_parameter(endpoint),
        )
        self._route_parts[route] = parts
        return parts


class ImmediateRequestLineEncoder(RequestLineEncoder):
    """Leaves no request line to the writer's thread, so that a test sees it as soon as the request has ended."""

    def capture(self, record: RequestRecord, level: str) -> None:
        """Return None: each line is built where the request ends."""


def encode_time_fields(record: RequestRecord, work: TimeBreakdown) -> str:
    """Return `TimeBreakdown.as_fields` encoded, to be appended to other fields."""
    encoded, counts, seconds = "", work.counts, work.seconds
    for kind in counts:
        if count := counts[kind]:
            prefix = FIELD_PREFIXES[kind]
            encoded += f',"{prefix}_ms":{encode_milliseconds(seconds[kind])},"{prefix}_count":{count}'
    return encoded and f'{encoded},"self_ms":{encode_milliseconds(work.self_time(record.duration))}'


def encode_milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three decimals. A table of the decimals costs less than formatting."""
    microseconds = floor(seconds * 1e6 + 0.5)
    return f"{microseconds // 1000}.{DIGITS[microseconds % 1000]}"

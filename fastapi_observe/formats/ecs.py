"""Lines for Elasticsearch: the Elastic Common Schema."""

from __future__ import annotations

from typing import Any, Final

from fastapi_observe.formats.line_format import FIELD_TYPES, Line, LineFormat, duration_nanoseconds, take_field
from fastapi_observe.internal import json

ECS_VERSION: Final = "8.11.0"

OUTCOMES: Final = {"ok": "success", "client_error": "success", "client_disconnect": "unknown"}
"""`event.outcome` of each outcome, as seen by the server. Others are failures."""

NAMESPACE: Final = "fastapi_observe"
"""Object with the fields of this package for which the schema has no name."""

KEYS: Final = {
    "timestamp": "@timestamp",
    "level": "log.level",
    "message": "message",
    "logger": "log.logger",
    "service": "service.name",
    "environment": "service.environment",
    "version": "service.version",
    "trace_id": "trace.id",
    "span_id": "span.id",
    "request_id": "http.request.id",
    "method": "http.request.method",
    "request_size": "http.request.body.bytes",
    "status_code": "http.response.status_code",
    "response_size": "http.response.body.bytes",
    "url": "url.original",
    "user_agent": "user_agent.original",
    "remote_addr": "client.address",
    "duration_ms": "event.duration",
    "error_type": "error.type",
    **{
        name: f"{NAMESPACE}.{name}"
        for name in FIELD_TYPES
        if name.endswith(("_ms", "_count", "_sent", "_received")) and name != "duration_ms"
    },
    **{
        name: f"{NAMESPACE}.{name}"
        for name in ("endpoint", "outcome", "sampled", "job", "close_code", "validation_errors")
    },
}


def convert(line: Line) -> Line:
    """Return a line with the keys of the Elastic Common Schema.

    The other fields become `labels`, which the schema wants flat and of strings.
    """
    fields = dict(line.get("fields") or {})
    # `log.level` is not nested, so that the start of every line has it: specification of ECS logging libraries.
    result: Line = {
        "@timestamp": line["timestamp"],
        "log.level": line["level"],
        "message": line["message"],
        "ecs": {"version": ECS_VERSION},
        "log": {"logger": line.get("logger", "")},
        "service": {
            name: line[key]
            for name, key in (("name", "service"), ("environment", "environment"), ("version", "version"))
            if line.get(key)
        },
    }
    for name, key in (("trace", "trace_id"), ("span", "span_id")):
        if key in line:
            result[name] = {"id": line[key]}
    _add_http(result, line, fields)
    _add_outcome(result, line, fields)
    own: Line = {}
    for name in FIELD_TYPES:
        if KEYS[name].startswith(NAMESPACE):
            value = take_field(fields, name)
            if value is not None:
                own[name] = str(value).lower() if name == "sampled" else value
    if own:
        result[NAMESPACE] = own
    if fields:
        result["labels"] = {_label_name(name): _label(value) for name, value in fields.items() if value is not None}
    return result


def _add_http(result: Line, line: Line, fields: Line) -> None:
    """Add what the schema says about a request."""
    method, sent = take_field(fields, "method"), take_field(fields, "request_size")
    request = {"id": line.get("request_id"), "method": method, "body": None if sent is None else {"bytes": sent}}
    received = take_field(fields, "response_size")
    response = {
        "status_code": take_field(fields, "status_code"),
        "body": None if received is None else {"bytes": received},
    }
    http = {"request": _without_none(request), "response": _without_none(response)}
    http = {name: part for name, part in http.items() if part}
    if http:
        result["http"] = http
    url = take_field(fields, "url")
    if url is not None:
        path, _, query = url.partition("?")
        result["url"] = {"original": url, "path": path} | ({"query": query} if query else {})
    for name, key, part in (("user_agent", "user_agent", "original"), ("client", "remote_addr", "address")):
        value = take_field(fields, key)
        if value is not None:
            result[name] = {part: value}
        elif key in fields and fields[key] is None:
            del fields[key]


def _add_outcome(result: Line, line: Line, fields: Line) -> None:
    """Add duration, outcome and error. `outcome` stays a field: it says more than the schema can."""
    event: Line = {}
    duration = take_field(fields, "duration_ms")
    if duration is not None:
        event["duration"] = duration_nanoseconds(duration)
    outcome = fields.get("outcome")
    if isinstance(outcome, str):
        event["outcome"] = OUTCOMES.get(outcome, "failure")
    if event:
        result["event"] = event
    error_type, exception = take_field(fields, "error_type"), line.get("exception")
    if exception is not None:
        result["error"] = {
            "type": exception["type"],
            "message": exception["message"],
            "stack_trace": exception["stacktrace"],
        }
    elif error_type is not None:
        result["error"] = {"type": error_type}


def _without_none(part: Line) -> Line:
    return {name: value for name, value in part.items() if value is not None}


def _label_name(name: str) -> str:
    """Return the name of a label. A dot would make it an object."""
    return name.replace(".", "_")


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).decode()


ECS: Final = LineFormat("ecs", KEYS, "labels", convert, r'"trace":\{"id":"(\w+)"')

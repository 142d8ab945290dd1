"""Lines for Datadog: its reserved and standard attributes."""

from __future__ import annotations

from typing import Final

from fastapi_observe.formats.line_format import Line, LineFormat, duration_nanoseconds, take_field

STATUSES: Final = {"debug": "debug", "info": "info", "warn": "warn", "error": "error", "fatal": "critical"}

KEYS: Final = {
    "timestamp": "timestamp",
    "level": "status",
    "message": "message",
    "logger": "logger.name",
    "service": "service",
    "environment": "env",
    "version": "version",
    "trace_id": "trace_id",
    "span_id": "span_id",
    "request_id": "http.request_id",
    "method": "http.method",
    "url": "http.url",
    "status_code": "http.status_code",
    "user_agent": "http.useragent",
    "request_size": "network.bytes_read",
    "response_size": "network.bytes_written",
    "duration_ms": "duration",
    "error_type": "error.kind",
}
"""Paths of keys. `remote_addr` is `network.client.ip` if it is an address, and a field if it is a network."""


def convert(line: Line) -> Line:
    """Return a line with Datadog's attributes. Other fields stay below `fields`, away from reserved attributes."""
    fields = dict(line.get("fields") or {})
    result: Line = {
        "timestamp": line["timestamp"],
        "status": STATUSES.get(line["level"], "info"),
        "message": line["message"],
        "logger": {"name": line.get("logger", "")},
        "service": line.get("service", ""),
        "env": line.get("environment", ""),
        "version": line.get("version", ""),
    }
    if "trace_id" in line:
        # Datadog's ids are decimal numbers of 64 bits; those of OpenTelemetry are kept in addition.
        result["dd.trace_id"] = str(int(line["trace_id"][-16:], 16))
        result["dd.span_id"] = str(int(line["span_id"], 16))
        result["trace_id"], result["span_id"] = line["trace_id"], line["span_id"]
    _add_http(result, line, fields)
    duration = take_field(fields, "duration_ms")
    if duration is not None:
        result["duration"] = duration_nanoseconds(duration)
    error_type, exception = take_field(fields, "error_type"), line.get("exception")
    if exception is not None:
        result["error"] = {
            "kind": exception["type"],
            "message": exception["message"],
            "stack": exception["stacktrace"],
        }
    elif error_type is not None:
        result["error"] = {"kind": error_type}
    if fields:
        result["fields"] = fields
    return result


def _add_http(result: Line, line: Line, fields: Line) -> None:
    http: Line = {"request_id": line["request_id"]} if "request_id" in line else {}
    network: Line = {}
    for target, name, key in (
        (http, "method", "method"),
        (http, "url", "url"),
        (http, "status_code", "status_code"),
        (http, "user_agent", "useragent"),
        (network, "request_size", "bytes_read"),
        (network, "response_size", "bytes_written"),
    ):
        value = take_field(fields, name)
        if value is not None:
            target[key] = value
        elif name in fields and fields[name] is None:
            del fields[name]
    if "/" not in str(fields.get("remote_addr") or "/"):
        network["client"] = {"ip": take_field(fields, "remote_addr")}
    if http:
        result["http"] = http
    if network:
        result["network"] = network


DATADOG: Final = LineFormat("datadog", KEYS, "fields", convert, r'"trace_id":"(\w{32})"')

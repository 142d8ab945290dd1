"""Lines for Google Cloud Logging: the special fields of its structured logs."""

from __future__ import annotations

from typing import Final

from fastapi_observe.formats.line_format import Line, LineFormat, take_field

TRACE: Final = "logging.googleapis.com/trace"
SPAN: Final = "logging.googleapis.com/spanId"
SAMPLED: Final = "logging.googleapis.com/trace_sampled"

SEVERITIES: Final = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR", "fatal": "CRITICAL"}

KEYS: Final = {
    "timestamp": "time",
    "level": "severity",
    "message": "message",
    "logger": "logger",
    "service": "serviceContext.service",
    "version": "serviceContext.version",
    "environment": "environment",
    "trace_id": TRACE,
    "span_id": SPAN,
    "request_id": "request_id",
    "sampled": SAMPLED,
    "method": "httpRequest.requestMethod",
    "url": "httpRequest.requestUrl",
    "status_code": "httpRequest.status",
    "request_size": "httpRequest.requestSize",
    "response_size": "httpRequest.responseSize",
    "user_agent": "httpRequest.userAgent",
}
"""Paths of keys. `remote_addr` is `httpRequest.remoteIp` if it is an address, and a field if it is a network."""

REQUEST_KEYS: Final = (
    ("method", "requestMethod"),
    ("url", "requestUrl"),
    ("status_code", "status"),
    ("request_size", "requestSize"),
    ("response_size", "responseSize"),
    ("user_agent", "userAgent"),
)


def make_gcp(project: str | None) -> LineFormat:
    """Return the format. Trace ids become resource names of `project`; without one they stay as they are."""
    prefix = f"projects/{project}/traces/" if project else ""

    def convert(line: Line) -> Line:
        fields = dict(line.get("fields") or {})
        result: Line = {
            "severity": SEVERITIES.get(line["level"], "DEFAULT"),
            "time": line["timestamp"],
            "message": line["message"],
            "logger": line.get("logger", ""),
            "environment": line.get("environment", ""),
            "serviceContext": {
                "service": line.get("service", ""),
                **({"version": line["version"]} if line.get("version") else {}),
            },
        }
        if "trace_id" in line:
            result[TRACE] = prefix + line["trace_id"]
            result[SPAN] = line["span_id"]
        if "request_id" in line:
            result["request_id"] = line["request_id"]
        _add_request(result, fields)
        if "exception" in line:  # Error Reporting reads `stack_trace`
            result["stack_trace"] = line["exception"]["stacktrace"]
            fields.setdefault("error_type", line["exception"]["type"])
        result["fields"] = fields
        return result

    pattern = r'"logging\.googleapis\.com/trace":"(?:projects/[^/"]+/traces/)?(\w+)"'
    return LineFormat("gcp", KEYS, "fields", convert, pattern, trace_id_is_suffix=True)


def _add_request(result: Line, fields: Line) -> None:
    """Add `httpRequest` and the sampling decision of a request line."""
    if not isinstance(fields.get("method"), str) or not isinstance(fields.get("url"), str):
        return
    request: Line = {}
    for name, key in REQUEST_KEYS:
        value = take_field(fields, name)
        if value is not None:  # sizes are strings: they are int64 in the API
            request[key] = str(value) if name.endswith("_size") else value
        elif name in fields and fields[name] is None:
            del fields[name]
    duration = fields.get("duration_ms")
    if isinstance(duration, int | float) and not isinstance(duration, bool):
        request["latency"] = f"{duration / 1000:.6f}s"
    if "/" not in str(fields.get("remote_addr") or "/"):
        request["remoteIp"] = take_field(fields, "remote_addr")
    sampled = take_field(fields, "sampled")
    if sampled is not None:
        result[SAMPLED] = bool(sampled)
    result["httpRequest"] = request

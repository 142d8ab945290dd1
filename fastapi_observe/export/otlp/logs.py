"""`LogEncoder`: JSON log lines as OTLP LogRecords, with the ids of their spans."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from fastapi_observe.export.otlp.wire import (
    FIXED64,
    RequestEncoder,
    encode_any_value,
    encode_string,
    length_prefixed,
    varint,
)
from fastapi_observe.internal import json

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource

SEVERITY_NUMBERS: Final = {"debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
"""SeverityNumber of each level of a log line."""

MAX_SCOPES: Final = 256
"""Logger names with a scope of their own. Others share the scope without a name."""


class LogEncoder(RequestEncoder):
    """Encodes JSON log lines, and requests of them.

    The logger's name becomes the scope. Service, environment and version are in the resource already.
    """

    def __init__(self, resource: Callable[[], Resource]) -> None:
        super().__init__(resource)
        self._scopes_by_name: dict[str, InstrumentationScope] = {}

    def encode(self, line: bytes) -> tuple[InstrumentationScope, bytes]:
        """Return the scope of a JSON line, and the line as a field of ScopeLogs."""
        record: dict[str, Any] = json.loads(line)
        level = record.get("level", "")
        parts = [
            b"\x09" + FIXED64(timestamp_nanoseconds(record["timestamp"])),
            b"\x10" + varint(SEVERITY_NUMBERS.get(level, 0)),
            b"\x1a" + length_prefixed(encode_string(level)),
            b"\x2a" + length_prefixed(encode_any_value(record.get("message", ""))),
            self.attributes.encode(b"\x32", line_attributes(record)),
        ]
        trace_id, span_id = record.get("trace_id"), record.get("span_id")
        if trace_id:
            parts += (b"\x4a\x10", bytes.fromhex(trace_id))
        if span_id:
            parts += (b"\x52\x08", bytes.fromhex(span_id))
        return self._scope(record.get("logger", "")), b"\x12" + length_prefixed(b"".join(parts))

    def _scope(self, name: str) -> InstrumentationScope:
        scope = self._scopes_by_name.get(name)
        if scope is None:
            if len(self._scopes_by_name) >= MAX_SCOPES:
                name = ""
            scope = self._scopes_by_name.setdefault(name, InstrumentationScope(name))
        return scope


def timestamp_nanoseconds(timestamp: str) -> int:
    """Return the nanoseconds since the epoch of an RFC 3339 timestamp. Exact: a float would lose microseconds."""
    at = datetime.fromisoformat(timestamp)
    seconds = int(at.replace(microsecond=0).timestamp())
    return seconds * 1_000_000_000 + at.microsecond * 1000


def line_attributes(record: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a line: its fields, the request id and the exception."""
    attributes = dict(record.get("fields") or {})
    if "request_id" in record:
        attributes["request_id"] = record["request_id"]
    for name, value in (record.get("exception") or {}).items():
        attributes[f"exception.{name}"] = value
    return attributes

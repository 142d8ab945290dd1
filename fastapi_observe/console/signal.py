"""The console as a signal: each request and operation becomes a summary in the store."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import SpanProcessor

from fastapi_observe.console.store import MAX_RUNNING, Point
from fastapi_observe.records.frames import describe_exception
from fastapi_observe.records.request import current_record
from fastapi_observe.records.signal import no_op
from fastapi_observe.terminal.spans import MAX_PRINTED_LENGTH

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from fastapi_observe.console.store import Store
    from fastapi_observe.metrics.loop_monitor import BlockedLoop
    from fastapi_observe.records.frames import OwnCode
    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.redaction.redactor import Redactor

_FAILED = frozenset({"server_error", "cancelled", "incomplete_response", "error", "timeout"})
_UNKNOWN = "0" * 32


class ConsoleSignal:
    """Puts what ends into the store. `repeat_limit` is how often one request may send the same statement."""

    def __init__(
        self, store: Store, redactor: Redactor, own_code: OwnCode, repeat_limit: int, slow_query: float
    ) -> None:
        self._store = store
        self._redactor = redactor
        self._own_code = own_code
        self._repeat_limit = repeat_limit
        self._slow_query = slow_query

    def on_request_start(self, record: RequestRecord, /) -> None:
        """Show the request as running."""
        if len(self._store.running) < MAX_RUNNING:
            self._store.running[id(record)] = {
                "trace_id": record.trace_id,
                "kind": _kind(record),
                "method": record.method,
                "path": _target(record),
                "time": record.started_ns // 1_000_000,
            }

    @no_op
    def on_response_start(self, record: RequestRecord, /) -> None:
        """Nothing changes on the page."""

    def on_request_end(self, record: RequestRecord, /) -> None:
        """Take the summary of a request."""
        self._store.running.pop(id(record), None)
        failed = record.outcome in _FAILED
        exception = record.exception
        summary: dict[str, Any] = {
            "trace_id": record.trace_id or _UNKNOWN,
            "span_id": record.span_id,
            "kind": _kind(record),
            "time": record.started_ns // 1_000_000,
            "method": record.method,
            "endpoint": record.endpoint,
            "path": _target(record),
            "status": record.status_code,
            "outcome": record.outcome,
            "error": record.error_type,
            "failed": failed,
            "sampled": bool(record.sampled),
            "request_id": record.request_id,
            "fields": {} if record.current.fields is None else record.current.fields.fields,
            "duration_ms": round(record.duration * 1000, 3),
            "ttfb_ms": None if record.ttfb is None else round(record.ttfb * 1000, 3),
            "exception": self._describe(exception),
        }
        database = external = 0.0
        if record.work is not None:
            summary.update(record.work.as_fields(record.duration))
            database, external = record.work.seconds["database"], record.work.seconds["external"]
            summary["repeated"] = [
                {"statement": each.statement, "times": each.times, "ms": round(each.seconds * 1000, 3)}
                for each in record.work.repeated(self._repeat_limit)
            ]
        point = Point(
            0,
            time(),
            record.duration if record.ttfb is None else record.ttfb,
            record.endpoint,
            record.method,
            record.status_code,
            failed,
            record.trace_id,
            database,
            external,
        )
        self._store.add_summary(summary, None if record.websocket or record.job else point)

    def on_job_start(self, record: JobRecord, /) -> None:
        """Show the job as running."""
        self.on_request_start(record)

    def on_job_end(self, record: JobRecord, /) -> None:
        """Take the summary of a job."""
        self.on_request_end(record)

    def on_operation_start(self, operation: Operation, /) -> None:
        """Add where in the user's code the operation was started."""
        location = self._own_code.caller_location()
        if location is not None:
            operation.add_details(
                **{
                    "code.file.path": location[0],
                    "code.line.number": location[1],
                    "code.function.name": location[2],
                }
            )

    def on_operation_end(self, operation: Operation, /) -> None:
        """Take a slow statement, and the summary of a background task or of an operation outside any request."""
        if operation.kind == "database" and operation.duration >= self._slow_query:
            self._store.slow_statements.append(_slow_statement(operation))
        if operation.kind != "background" and (operation.parent is not None or current_record() is not None):
            return
        context = operation.span.get_span_context() if operation.span is not None else None
        if context is None or not context.is_valid:
            return
        exception = operation.exception
        self._store.add_summary(
            {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "kind": operation.kind,
                "time": int((time() - operation.duration) * 1000),
                "method": "",
                "endpoint": operation.name,
                "path": operation.name,
                "status": 0,
                "outcome": operation.outcome,
                "error": operation.error_type,
                "failed": operation.outcome not in {"ok", "client_error"},
                "sampled": context.trace_flags.sampled,
                "request_id": "",
                "duration_ms": round(operation.duration * 1000, 3),
                "ttfb_ms": None,
                "exception": self._describe(exception),
            },
            None,
        )

    def _describe(self, exception: BaseException | None) -> list[dict[str, Any]] | None:
        return None if exception is None else describe_exception(exception, self._redactor, self._own_code)

    def on_blocked_loop(self, blocked: BlockedLoop, method: str, endpoint: str) -> None:
        """Take a time that the event loop was blocked."""
        record, location = blocked.record, blocked.location
        self._store.blocked.append(
            {
                "place": "unknown code" if location is None else f"{location.file}:{location.line}",
                "function": "" if location is None else location.function,
                "ms": round(blocked.seconds * 1000),
                "route": f"{method} {endpoint}".strip(),
                "trace_id": "" if record is None else record.trace_id,
            }
        )


class ConsoleProcessor(SpanProcessor):
    """Puts the spans that end into the store."""

    def __init__(self, store: Store) -> None:
        self._store: Store | None = store

    def on_end(self, span: ReadableSpan) -> None:
        """Take a span."""
        if self._store is not None:
            self._store.add_span(span)

    def shutdown(self) -> None:
        """Take no more."""
        self._store = None


def _slow_statement(operation: Operation) -> dict[str, Any]:
    context = operation.span.get_span_context() if operation.span is not None else None
    details = operation.details
    return {
        "statement": operation.repetition_key[:MAX_PRINTED_LENGTH],
        "ms": round(operation.duration * 1000, 1),
        "file": details.get("code.file.path", ""),
        "line": details.get("code.line.number", 0),
        "trace_id": "" if context is None else f"{context.trace_id:032x}",
    }


def _kind(record: RequestRecord) -> str:
    return "job" if record.job else "websocket" if record.websocket else "http"


def _target(record: RequestRecord) -> str:
    """Return path and query as the client sent them: the page is the developer's own."""
    query = record.scope.get("query_string") or b""
    text = record.path if not query else f"{record.path}?{query.decode('latin-1')}"
    return text[:MAX_PRINTED_LENGTH]

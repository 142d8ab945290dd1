"""Lines about operations: one that failed, one that was slow, and the statements that a request repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import Exchange
    from fastapi_observe.records.time_breakdown import Repeated

OPERATION_LOGGER: Final = "fastapi_observe.operation"
"""Logger of these lines."""

NAMES: Final = {
    "database": "database query",
    "external": "external call",
    "background": "background task",
    "operation": "operation",
}


def level_of_operation(operation: Operation, slow_query: float) -> str:
    """Return the level of an operation's line: `error` if it failed, `warn` if it was refused or slow, else `debug`."""
    if operation.outcome == "ok":
        return "warn" if operation.kind == "database" and operation.duration >= slow_query else "debug"
    return "warn" if operation.outcome == "client_error" else "error"


def message_of_operation(operation: Operation, level: str) -> str:
    """Return what the line of an operation says."""
    name = NAMES.get(operation.kind, operation.kind)
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


def fields_of_repeated(repeated: Repeated, exchange: Exchange) -> dict[str, Any]:
    """Return what is told of a statement that one request repeated."""
    return {
        "endpoint": exchange.endpoint,
        "db.query.text": repeated.statement,
        "count": repeated.times,
        "duration_ms": round(repeated.seconds * 1000, 3),
    }

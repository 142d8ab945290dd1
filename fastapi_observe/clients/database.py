"""`db.query(...)`: one query is one operation with a span, a count, a duration and a log line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi_observe.clients.statements import sanitise
from fastapi_observe.records.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi_observe.records.operation import OperationReporter


class DatabaseClient:
    """Measures database queries."""

    __slots__ = ("_reporter",)

    def __init__(self, reporter: OperationReporter) -> None:
        self._reporter = reporter

    def query(
        self,
        operation: str,
        *,
        table: str | None = None,
        statement: object = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        system: str = "other_sql",
    ) -> Operation:
        """Measure one query: `async with db.query("SELECT", table="orders", statement=sql):`, or plain `with`.

        `operation` and `table` become metric labels (`db_queries_total`, `db_query_duration_seconds`,
        `db_query_errors_total`) and the span's name. `statement` (text, or what becomes text, as SQLAlchemy's
        constructs do) is shown with `?` for every literal; of `parameters` only the number is. `system` is the
        `db.system.name` of the semantic conventions.
        """
        name = f"{operation} {table}" if table else operation
        details: dict[str, Any] = {
            "db.system.name": system,
            "db.operation.name": operation,
            "db.collection.name": table,
        }
        if statement is not None:
            details["db.query.text"] = sanitise(str(statement), system)
        if parameters is not None:
            details["db.query.parameter_count"] = len(parameters)
        return Operation(
            self._reporter, "database", name, {"operation": operation, "table": table or "unknown"}, details
        )

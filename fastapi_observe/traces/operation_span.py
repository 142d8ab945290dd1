"""What the span of an operation says about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry.trace import StatusCode

from fastapi_observe.internal.opentelemetry import RecordedSpan
from fastapi_observe.traces.user_spans import record_exception, to_otel_attributes

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from fastapi_observe.records.operation import Operation
    from fastapi_observe.redaction.redactor import Redactor

MAX_UNCHECKED_DETAILS: Final = 64
"""Details of an operation that are set on its span without checking the span's limits."""


def describe_operation(span: Span, operation: Operation, redactor: Redactor) -> None:
    """Set details and outcome of an operation on its span."""
    are_checked = operation.has_otel_details  # it may depend on who reads the details first
    details = operation.details if are_checked else to_otel_attributes(operation.details, redactor)
    if isinstance(span, RecordedSpan) and len(details) < MAX_UNCHECKED_DETAILS:
        span.set_trusted_attributes(details)
    else:
        span.set_attributes(details)
    is_client_error = operation.outcome == "client_error"
    if operation.exception is not None and not is_client_error:
        record_exception(span, operation.exception, redactor)
    elif operation.error_type is not None or not (is_client_error or operation.outcome == "ok"):
        span.set_attribute("error.type", operation.error_type or operation.outcome)
        if not is_client_error:
            span.set_status(StatusCode.ERROR)

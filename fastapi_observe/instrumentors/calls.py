"""`SpanCalls`: turns the spans that instrumentors make of calls into operations, each call into one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Literal

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from fastapi_observe.instrumentors.conventions import STATEMENTS, Call, QueryDescription, layer_of, read_call
from fastapi_observe.internal.opentelemetry import current_context, unwrap_attributes
from fastapi_observe.records.exceptions import is_cancellation
from fastapi_observe.records.guard import report_error
from fastapi_observe.records.operation import CURRENT_OPERATION, Operation, current_operation
from fastapi_observe.records.request import current_record, excluded_signals
from fastapi_observe.records.time_breakdown import AWAITED_KINDS
from fastapi_observe.redaction.patterns import redact_database_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span
    from opentelemetry.util.types import Attributes

    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.redaction.redactor import Redactor
    from fastapi_observe.traces.calls import SpanStart

MAX_REMOTE_NAMES: Final = 200
"""Names of services, methods and destinations that become label values. Further ones have the label `other`."""

MAX_REMOTE_NAME_LENGTH: Final = 200
"""Characters of such a name."""

MAX_NESTED_CALLS: Final = 32
"""Calls inside calls that are looked at. Spans that are never ended would make an endless chain."""

_DETAILS: Final = {
    "http.request.method": ("http.request.method", "http.method"),
    "http.response.status_code": ("http.response.status_code", "http.status_code"),
    "url.full": ("url.full", "http.url"),
    "server.address": ("server.address", "net.peer.name"),
    "server.port": ("server.port", "net.peer.port"),
    "rpc.system": ("rpc.system.name", "rpc.system"),
    "rpc.method": ("rpc.method",),
    "rpc.grpc.status_code": ("rpc.grpc.status_code",),
    "messaging.system": ("messaging.system",),
    "messaging.destination.name": ("messaging.destination.name", "messaging.destination"),
}
"""Attributes on the line of a call, with the names that they have in the span."""


class SpanCall(Operation):
    """The call that a span describes. What kind of operation it is, its attributes say at its end.

    While it is open it is the current operation, so that a call inside it is found to be the same one, seen by another
    layer: the HTTP request of an SDK, the driver of an ORM. Only the outermost counts, unless an
    instrumented client of fastapi-observe is inside, which has more details.
    """

    __slots__ = (
        "__weakref__",
        "_handled",
        "calls",
        "depth",
        "excluded",
        "failed",
        "is_direct",
        "observability",
        "record",
        "scope",
        "span_kind",
        "superseded",
        "within",
    )

    def __init__(self, calls: SpanCalls, span: Span, start: SpanStart) -> None:
        super().__init__(calls, "span", start.name, {})
        self.calls = calls
        self.span = span
        self.span_kind = start.kind
        self.scope = start.scope
        self.failed = self.superseded = False
        handled = sys.exc_info()[1]
        self._handled = id(handled)
        self.record: RequestRecord | None = current_record()
        self.observability = calls.observability if self.record is None else self.record.observability
        self.excluded = excluded_signals(current_context())
        self._find_outer(start)
        self.started = perf_counter()
        if start.kind is not SpanKind.CONSUMER:  # what is done with a message is not a part of its receipt
            CURRENT_OPERATION.set(self)

    @property
    def redactor(self) -> Redactor:
        """The redactor of the app."""
        redactor: Redactor = self.observability.redactor
        return redactor

    def _find_outer(self, start: SpanStart) -> None:
        """Find the open call that this one may be part of: `within`. `is_direct` if its span is around this one's."""
        outer = current_operation()
        while outer is not None and outer.ended:
            outer = outer.parent
        self.within: Operation | None = None
        self.is_direct = False
        self.depth = getattr(outer, "depth", 0) + 1
        if self.depth > MAX_NESTED_CALLS:
            return
        self.parent = outer
        current = trace.get_current_span(start.context)
        if getattr(current, "kind", None) is SpanKind.CONSUMER:
            return  # in the handling of a message, which may run while the message is still being sent
        while outer is not None and not _is_around_request(outer, self.record):
            if isinstance(outer, SpanCall):
                self.is_direct = outer.is_around(current)
                if self.is_direct or outer.scope != self.scope:
                    self.within = outer
                    return
            elif outer.kind in AWAITED_KINDS and not outer.ended:
                self.within, self.is_direct = outer, True
                return
            outer = outer.parent

    def is_around(self, current: Span) -> bool:
        """Return whether a span is that of this call, or directly in it."""
        parent = getattr(current, "parent", None)
        return current is self.span or (
            parent is not None and self.span is not None and parent == self.span.get_span_context()
        )

    def attributes(self) -> Mapping[str, Any]:
        """Return the attributes of the span."""
        attributes: Any = unwrap_attributes(getattr(self.span, "attributes", None) or {})
        return attributes if isinstance(attributes, Mapping) else {}

    def redact_description(self, text: str) -> str:
        """Return the description of an error status, such as the message of an exception, without secrets."""
        text = self.redactor.text(text)
        return redact_database_error(text) if self.call_layer() == "database" else text

    def call_layer(self) -> Literal["database", "http", "external"] | None:
        """Return whether this is a query, an HTTP request or another call. None is not known yet."""
        return layer_of(self.attributes(), self.span_kind)

    def includes(self, layer: str | None, *, is_direct: bool) -> bool:
        """Return whether a call of this layer, started inside this one, is the same call seen from below.

        A library that does not make its span the current one (SQLAlchemy) is recognized among queries only: two other
        calls may overlap.
        """
        own = self.call_layer()
        if is_direct:
            return own is not None and (layer == "http" or (layer == "database") == (own == "database"))
        return own == layer == "database"

    def is_part_of_another(self) -> bool:
        """Return whether an outer operation reports this call already."""
        outer, layer = self.within, self.call_layer()
        if isinstance(outer, SpanCall):
            return outer.includes(layer, is_direct=self.is_direct)
        if outer is None:
            return False
        return layer == "http" or (layer == "database") == (outer.kind == "database")

    def end(self, name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Report the call. Returns the attributes of the span that have to be replaced, because of secrets."""
        if self.ended:
            return {}
        self.duration = perf_counter() - self.started
        raised = sys.exc_info()[1]
        if self.exception is None and raised is not None and id(raised) != self._handled and is_cancellation(raised):
            self.exception = raised
        is_counted = not (self.superseded or self.is_part_of_another())
        self.ended = True
        if current_operation() is self:
            CURRENT_OPERATION.set(self.parent)
        self.parent = self.within = None
        # A copy of plain values: what is reported is not what a library changes later.
        attributes = {str(key): value for key, value in attributes.items()}
        call = read_call(name, self.span_kind, attributes, self.scope)
        replaced = self._redact(attributes, call)
        if is_counted and call is not None:
            self._report(self.calls.make_operation(self.observability, call, {**attributes, **replaced}), call)
        return replaced

    def _redact(self, attributes: dict[str, Any], call: QueryDescription | Call | None) -> dict[str, Any]:
        redacted = self.redactor.fields(attributes)
        replaced = {
            key: redacted[key] for key, value in attributes.items() if key in redacted and redacted[key] is not value
        }
        if isinstance(call, QueryDescription) and call.statement is not None:
            text = self.observability.db.sanitize(call.statement, call.system)
            replaced.update({key: text for key in STATEMENTS if key in attributes and attributes[key] != text})
        return replaced

    def _report(self, operation: Operation, call: QueryDescription | Call) -> None:
        operation.span, exception = self.span, self.exception
        if isinstance(call, Call):
            operation.outcome, operation.error_type = call.outcome, call.error_type
            if call.status is not None:
                operation.outcome_for_status(call.status)  # type: ignore[attr-defined]
            if call.outcome or call.status is not None:
                exception = None  # it says the same
        if exception is None and self.failed and not operation.outcome:
            operation.outcome, operation.error_type = "error", self._error_type()
        operation.set_result(self.started, self.duration, exception)
        self.observability.report_operation(operation, self.record, self.excluded)

    def _error_type(self) -> str:
        error_type = self.attributes().get("error.type")
        return self.redactor.name(error_type[:MAX_REMOTE_NAME_LENGTH]) if isinstance(error_type, str) else "_OTHER"


class SpanCalls:
    """Measures the spans of calls of one app, whichever library makes them."""

    def __init__(
        self, observability: Any, is_responsible: Callable[[], bool], on_first_call: Callable[[], None]
    ) -> None:
        self.observability = observability
        self._is_responsible = is_responsible
        self._on_first_call: Callable[[], None] | None = on_first_call
        self._names: set[str] = set()

    def has_span_of(self, parent: Span, attributes: Attributes, /) -> bool:
        """Return whether `parent`, the span of one of our clients, describes the call already. Never raises.

        An instrumentor that sees the same engine, pool or HTTP client would add a second span.
        """
        outer = current_operation()
        if outer is None or outer.ended or outer.span is not parent or isinstance(outer, SpanCall):
            return False
        try:
            layer = layer_of(attributes or {})
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the measured code
            report_error("instrumentors.start", exc)
            return False
        return layer == "http" if outer.sends_http else outer.kind == "database" and layer != "http"

    def start(self, span: Span, start: SpanStart, /) -> SpanCall | None:
        """Start to measure the call of a span; None if another app does."""
        if not self._is_responsible():
            return None
        if self._on_first_call is not None:
            on_first_call, self._on_first_call = self._on_first_call, None
            on_first_call()
        return SpanCall(self, span, start)

    def make_operation(
        self, observability: Any, call: QueryDescription | Call, attributes: Mapping[str, Any]
    ) -> Operation:
        """Return the operation for a call that has ended."""
        operation: Operation
        if isinstance(call, QueryDescription):
            operation = observability.db.query(
                call.command, table=call.table, statement=call.statement, system=call.system
            )
            return operation
        external = observability.external
        service = self._bounded(call.service) if call.host is None else external.service_label(call.host)
        details = {
            name: value
            for name, names in _DETAILS.items()
            if (value := next((attributes[each] for each in names if each in attributes), None)) is not None
        }
        operation = external.call(service, self._bounded(call.operation), **details)
        return operation

    def _bounded(self, name: str) -> str:
        """Return a name that becomes a label value; `other` if it is too long, or one too many."""
        if name in self._names:
            return name
        if len(name) > MAX_REMOTE_NAME_LENGTH or len(self._names) >= MAX_REMOTE_NAMES:
            return "other"
        self._names.add(name)
        return name

    # A `SpanCall` is reported by itself.

    def on_operation_start(self, operation: Operation, /) -> None:
        """Do nothing."""

    def on_operation_end(self, operation: Operation, /) -> None:
        """Do nothing."""


def supersede_outer(operation: Operation) -> None:
    """Let an operation of our own clients, about to start, replace the calls that instrumentors see around it."""
    if operation.kind not in AWAITED_KINDS:
        return
    current, record, outer = trace.get_current_span(), current_record(), operation.parent
    layer = "database" if operation.kind == "database" else "http"
    while outer is not None and not _is_around_request(outer, record):
        if isinstance(outer, SpanCall) and outer.includes(layer, is_direct=outer.is_around(current)):
            outer.superseded = True
        outer = outer.parent


def _is_around_request(operation: Operation, record: RequestRecord | None) -> bool:
    """Return whether an operation has started before the request: it has called this app, in the same process."""
    return record is not None and operation.started < record.started

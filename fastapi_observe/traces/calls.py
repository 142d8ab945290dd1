"""Spans of calls that another library makes, which are measured from their start to their end, sampled or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import NonRecordingSpan, SpanKind, Status, StatusCode

from fastapi_observe.internal.opentelemetry import span_contents, unwrap_attributes
from fastapi_observe.records.guard import report_error
from fastapi_observe.traces.pending import MAX_TEXT_LENGTH, PendingSpan
from fastapi_observe.traces.user_spans import record_exception

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.context import Context
    from opentelemetry.util.types import Attributes, AttributeValue

    from fastapi_observe.redaction.redactor import Redactor

CALL_KINDS: Final = frozenset({SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.CONSUMER})
"""Kinds of the spans of calls."""

OWN_SCOPE: Final = "fastapi_observe"
"""Instrumentation scope of the spans of our own operations, which are measured already."""

MAX_HELD_ATTRIBUTES: Final = 64
"""Attributes that a span holds that is not recorded."""


class SpanStart(NamedTuple):
    """What is known of a span when it starts. `context` None: the current one."""

    name: str
    kind: SpanKind
    scope: str
    context: Context | None
    attributes: Attributes


class MeasuredCall(Protocol):
    """The call of one span. `failed` is whether its status is ERROR."""

    exception: BaseException | None
    failed: bool

    @property
    def redactor(self) -> Redactor:
        """The redactor of the app."""

    def redact_description(self, text: str) -> str:
        """Return the description of an error status without secrets."""

    def end(self, name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Report the call. Returns the attributes of the span that have to be replaced, because of secrets."""


class CallObserver(Protocol):
    """Measures the calls of spans."""

    def has_span_of(self, parent: trace.Span, attributes: Attributes, /) -> bool:
        """Return whether `parent`, the span of one of our clients, describes the call already. Never raises."""

    def start(self, span: trace.Span, start: SpanStart, /) -> MeasuredCall | None:
        """Start to measure the call of a span; None if it is not to be measured."""


class CallMeasurement:
    """Holds what measures the calls of one provider, for its tracers. None: nothing does."""

    __slots__ = ("observer",)

    def __init__(self) -> None:
        self.observer: CallObserver | None = None


class _CallSpan(trace.Span):
    """Reports the call of a span when the span ends. Exceptions and the status are recorded without secrets.

    Its subclasses replace the class of a span. For Python they have the same layout as that one, because the first base
    is the same, and none has slots.
    """

    call: MeasuredCall

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status."""
        if not isinstance(status, Status):
            status = Status(status, description)
        if status.status_code is StatusCode.ERROR:
            self.call.failed = True
            if status.description:
                status = Status(StatusCode.ERROR, self.call.redact_description(str(status.description)))
        super().set_status(status)  # type: ignore[safe-super]

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,  # noqa: ARG002 - OpenTelemetry's signature
        escaped: bool = False,  # noqa: FBT001, FBT002, ARG002 - as above
    ) -> None:
        """Record an exception."""
        self.call.exception = exception
        record_exception(self, exception, self.call.redactor)
        if attributes:
            self.set_attributes(attributes)

    def end(self, end_time: int | None = None) -> None:
        """End the span, and report its call. Idempotent."""
        self._report()
        super().end(end_time)  # type: ignore[safe-super]

    def _report(self) -> None:
        span: Any = self  # one of the classes below
        try:
            replaced = self.call.end(span.name, unwrap_attributes(span.attributes or {}))
            if replaced:
                span.set_attributes(replaced)
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the measured code
            report_error("instrumentors.end", exc)


class RecordedCallSpan(_CallSpan, Span):
    """The SDK's span of a call in a sampled trace."""


class PendingCallSpan(_CallSpan, PendingSpan):
    """The span of a call whose request may be tail-sampled."""


class UnrecordedCallSpan(_CallSpan, NonRecordingSpan):
    """The span of a call in a trace that is not recorded. It holds its attributes until it ends."""

    end_time: int | None = None

    def __init__(self, span: trace.Span, start: SpanStart) -> None:
        NonRecordingSpan.__init__(self, span.get_span_context())
        self.name = start.name
        self.kind = start.kind
        self.attributes: dict[str, Any] = {}
        if start.attributes:
            self.set_attributes(start.attributes)

    def is_recording(self) -> bool:
        """Return whether attributes still matter."""
        return self.end_time is None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one attribute."""
        self.set_attributes({key: value})

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            if key in self.attributes or len(self.attributes) < MAX_HELD_ATTRIBUTES:
                self.attributes[key] = value[:MAX_TEXT_LENGTH] if isinstance(value, str) else value

    def update_name(self, name: str) -> None:
        """Change the name."""
        self.name = name

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,  # noqa: ARG002 - OpenTelemetry's signature
        timestamp: int | None = None,  # noqa: ARG002 - as above
        escaped: bool = False,  # noqa: FBT001, FBT002, ARG002 - as above
    ) -> None:
        """Note an exception."""
        self.call.exception = exception
        self.call.failed = True

    def end(self, end_time: int | None = None) -> None:
        """End the span, and report its call. Idempotent."""
        super().end(end_time)
        self.end_time = end_time or -1


def measure_span(span: trace.Span, observer: CallObserver, start: SpanStart) -> trace.Span:
    """Return the span, or one in its place, whose call is measured."""
    measured: Any = span
    try:
        if not span.is_recording():
            measured = UnrecordedCallSpan(span, start)
        call = observer.start(measured, start)
        if call is None:
            return span
        if isinstance(span, PendingSpan):
            measured.__class__ = PendingCallSpan
        elif isinstance(span, Span):
            measured.__class__ = RecordedCallSpan
        measured.call = call
    except Exception as exc:  # noqa: BLE001 - an internal error never reaches the measured code
        report_error("instrumentors.start", exc)
        return span
    return measured  # type: ignore[no-any-return]


class CallProcessor(SpanProcessor):
    """Measures the calls of the spans that a user's own provider records."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer
        # The span that ends is a copy of the one that started, which holds its call.
        self._calls: WeakValueDictionary[int, Any] = WeakValueDictionary()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Start to measure the call of a span."""
        scope = span.instrumentation_scope
        name = "" if scope is None else scope.name
        if span.kind in CALL_KINDS and name != OWN_SCOPE:
            call = self._observer.start(span, SpanStart(span.name, span.kind, name, parent_context, None))
            if call is not None:
                span.__dict__["fastapi_observe_call"] = call
                self._calls[span.context.span_id] = call

    def _on_ending(self, span: Span) -> None:
        """Report the call before other processors see its end: OpenTelemetry's `OnEnding`, not yet a public name."""
        self._report(span)

    def on_end(self, span: ReadableSpan) -> None:
        """Report the call, if the SDK does not report that a span is about to end."""
        self._report(span)

    def _report(self, span: ReadableSpan) -> None:
        call = self._calls.pop(span.context.span_id, None) if span.context is not None else None
        if call is not None:
            attributes = span_contents(span)[0]
            call.failed = span.status.status_code is StatusCode.ERROR
            replaced = call.end(span.name, attributes)
            if isinstance(attributes, dict):  # the span itself cannot be changed any more
                attributes.update(replaced)

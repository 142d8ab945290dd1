"""Spans of the user's own code: around a block, a function or a generator."""

from __future__ import annotations

from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, StatusCode

from fastapi_observe.internal.opentelemetry import SPAN_KEY, attach_context, current_context, detach_context
from fastapi_observe.records.exceptions import error_type_of, exception_message, exception_stacktrace
from fastapi_observe.records.guard import NO_OP, report_error
from fastapi_observe.records.request import ORIGIN_KEY, excluded_signals
from fastapi_observe.records.signal import SIGNAL_BITS
from fastapi_observe.records.wrapping import AsyncWith, callable_name, wrap_calls
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.traces.pending import PendingSpan

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from fastapi_observe.redaction.redactor import Redactor

MAX_MESSAGE_LENGTH = 1024
MAX_STACKTRACE_LENGTH = 8192
MAX_VALUE_LENGTH = 2048
MAX_KEY_LENGTH = 256
MAX_USER_SPAN_NAME_LENGTH = 256
MAX_ITEMS = 128

_OTEL_TYPES = (str, bool, int, float)
_MAX_INT64 = 2**63


def record_exception(span: Span, exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> None:
    """Record an exception on a span: event `exception`, `error.type`, status ERROR.

    The message is cut to its first 1,024 characters, the stack trace to its last 8,192.
    """
    if isinstance(span, PendingSpan) and span.pending.holds_exception():
        at = time_ns()
        span.change(lambda recorded: _record_exception(recorded, exc, redactor, at))
    else:
        _record_exception(span, exc, redactor)


def _record_exception(span: Span, exc: BaseException, redactor: Redactor, timestamp: int | None = None) -> None:
    name = error_type_of(exc)
    span.add_event(
        "exception",
        {
            "exception.type": name,
            "exception.message": well_formed(exception_message(exc, redactor)[:MAX_MESSAGE_LENGTH]),
            "exception.stacktrace": well_formed(exception_stacktrace(exc, redactor)[-MAX_STACKTRACE_LENGTH:]),
        },
        timestamp,
    )
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR)


def to_otel_attributes(attributes: dict[str, Any], redactor: Redactor = DEFAULT_REDACTOR) -> dict[str, Any]:
    """Return attributes redacted and of OTLP's types. None is left out; other types become their string."""
    redacted = redactor.fields(attributes)
    return {name[:MAX_KEY_LENGTH]: _to_otel_value(value) for name, value in redacted.items() if value is not None}


def _to_otel_value(value: Any) -> Any:
    if type(value) is str and len(value) <= MAX_VALUE_LENGTH and value.isascii():  # the usual case
        return value
    if isinstance(value, str):
        return well_formed(value[:MAX_VALUE_LENGTH])
    if isinstance(value, list | tuple) and len({type(item) for item in value}) == 1:
        if isinstance(value[0], _OTEL_TYPES):
            return [_to_otel_value(item) for item in value[:MAX_ITEMS]]
    elif isinstance(value, float) or (isinstance(value, int) and -_MAX_INT64 <= value < _MAX_INT64):
        return value
    return safe_text(value)


def safe_text(value: Any) -> str:
    """Return `str(value)`, or a placeholder if it raises."""
    try:
        return well_formed(str(value))
    except Exception:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"


def well_formed(text: str) -> str:
    """Escape lone surrogates. A string without a UTF-8 form would make the whole batch of spans fail to encode."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def links_to_origin(context: Context) -> tuple[Link, ...]:
    """Return the link of a trace that starts outside the request that caused it."""
    origin = context.get(ORIGIN_KEY)
    return (Link(origin),) if isinstance(origin, SpanContext) and SPAN_KEY not in context else ()


class ContextScope:
    """Makes an OpenTelemetry context the current one, for `with` or by `open`, `suspend`, `resume` and `close`."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        self._token = attach_context(self._context)

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            try:
                detach_context(token)
            except ValueError:  # the block was left in another task, whose context needs no restoring
                return

    def open(self) -> None:
        """Make the context the current one."""
        self.__enter__()

    def suspend(self) -> None:
        """Restore the previous context. `resume` continues with the present one, which may be of a span inside."""
        self._context = current_context()
        self.__exit__()

    def resume(self) -> None:
        """Make the suspended context the current one again."""
        self.__enter__()

    def close(self, exc: BaseException | None = None) -> None:  # noqa: ARG002 - the interface of every scope
        """Restore the previous context. Does nothing if that has been done."""
        self.__exit__()


class SpanScope(AsyncWith):
    """A span around a block, for `with` and `async with`.

    An exception of the user's sampler or span processor is reported and never reaches the block.
    """

    __slots__ = ("_attributes", "_context_scope", "_name", "_redactor", "_span", "_started", "_tracer")

    def __init__(
        self, tracer: Tracer, name: str, attributes: dict[str, Any], redactor: Redactor = DEFAULT_REDACTOR
    ) -> None:
        self._tracer = tracer
        self._redactor = redactor
        self._name = name
        self._attributes = attributes

    def open(self) -> Span:
        """Start the span and make it the current one. If that fails, return a non-recording span instead."""
        span: Span
        self._started = perf_counter()
        try:
            if excluded_signals(current_context()) & SIGNAL_BITS["traces"]:
                self._span, self._context_scope = trace.get_current_span(), NO_OP
                return self._span
            name = self._redactor.text(self._name)[:MAX_USER_SPAN_NAME_LENGTH]
            span = self._tracer.start_span(
                well_formed(name),
                attributes=to_otel_attributes(self._attributes, self._redactor),
                links=links_to_origin(current_context()),
            )
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("span.start", exc)
            span = trace.NonRecordingSpan(trace.get_current_span().get_span_context())
        self._span = span
        self._context_scope = NO_OP
        try:
            self._context_scope = ContextScope(trace.set_span_in_context(span))
            self._context_scope.open()
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("span.start", exc)
        return span

    def suspend(self) -> None:
        """Make the previous span the current one."""
        try:
            self._context_scope.suspend()
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("span.suspend", exc)

    def resume(self) -> None:
        """Make this span the current one again."""
        try:
            self._context_scope.resume()
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("span.resume", exc)

    def close(self, exc: BaseException | None = None) -> None:
        """End the span; record the exception that left the block."""
        try:
            self._context_scope.close()
        except Exception as error:  # noqa: BLE001 - as above
            report_error("span.end", error)
        finish(self._span, exc, perf_counter() - self._started, self._redactor)

    def __enter__(self) -> Span:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        self.close(exc)


def finish(span: Span, exc: BaseException | None, seconds: float, redactor: Redactor = DEFAULT_REDACTOR) -> None:
    """End a span `seconds` after its start. An exception that left its block is recorded and makes it an error."""
    try:
        if exc is not None and not isinstance(exc, GeneratorExit) and span.is_recording():
            record_exception(span, exc, redactor)
    except Exception as error:  # noqa: BLE001 - an internal error never reaches the user's code
        report_error("span.exception", error)
    try:
        # Measured with the monotonic clock: the wall clock may have been set in between.
        started = getattr(span, "start_time", None)
        span.end(None if started is None else started + int(seconds * 1e9))
    except Exception as error:  # noqa: BLE001 - as above
        report_error("span.end", error)


def make_traced(
    owner: Callable[[], tuple[Tracer, Redactor]], name: str | None, attributes: dict[str, Any]
) -> Callable[[Any], Any]:
    """Return the decorator of `@traced`. `owner` is called for each call of the decorated function."""

    def decorate(function: Any) -> Any:
        try:
            label = name or callable_name(getattr(function, "__func__", function))

            def scope() -> SpanScope:
                tracer, redactor = owner()
                return SpanScope(tracer, label, attributes, redactor)

            return wrap_calls(function, scope)
        except TypeError:  # it cannot be decorated
            raise
        except Exception as exc:  # noqa: BLE001 - an internal error never reaches the user's code
            report_error("traced", exc)
            return function

    return decorate

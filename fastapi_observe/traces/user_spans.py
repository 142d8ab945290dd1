"""Spans around the user's own code: a block, a function, a generator, a call in an executor."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import StatusCode

from fastapi_observe.records.exceptions import error_type_of, exception_message, exception_stacktrace
from fastapi_observe.records.guard import NO_OP, report_error
from fastapi_observe.records.request import OTEL_CONTEXT
from fastapi_observe.records.wrapping import callable_name, wrap_calls
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from fastapi_observe.redaction.redactor import Redactor

MAX_MESSAGE_LENGTH = 1024
MAX_STACKTRACE_LENGTH = 8192
MAX_VALUE_LENGTH = 2048
MAX_KEY_LENGTH = 256
MAX_NAME_LENGTH = 256
MAX_ITEMS = 128

_PLAIN = (str, bool, int, float)
_MAX_INT64 = 2**63


def record_exception(span: Span, exc: BaseException, redactor: Redactor = DEFAULT_REDACTOR) -> None:
    """Record an exception on a span: event `exception`, `error.type`, status ERROR.

    The message is cut at 1,024 characters, the stack trace at its last 8,192.
    """
    name = error_type_of(exc)
    span.add_event(
        "exception",
        {
            "exception.type": name,
            "exception.message": well_formed(exception_message(exc, redactor)[:MAX_MESSAGE_LENGTH]),
            "exception.stacktrace": well_formed(exception_stacktrace(exc, redactor)[-MAX_STACKTRACE_LENGTH:]),
        },
    )
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR)


def to_otel_attributes(attributes: dict[str, Any], redactor: Redactor = DEFAULT_REDACTOR) -> dict[str, Any]:
    """Keep what OTLP has a type for, redacted; leave None out; turn the rest into text."""
    shown = redactor.fields(attributes)
    return {name[:MAX_KEY_LENGTH]: _plain_value(value) for name, value in shown.items() if value is not None}


def _plain_value(value: Any) -> Any:
    if type(value) is str and len(value) <= MAX_VALUE_LENGTH and value.isascii():  # the usual
        return value
    if isinstance(value, str):
        return well_formed(value[:MAX_VALUE_LENGTH])
    if isinstance(value, list | tuple) and len({type(item) for item in value}) == 1 and isinstance(value[0], _PLAIN):
        return [_plain_value(item) for item in value[:MAX_ITEMS]]
    if isinstance(value, float) or (isinstance(value, int) and -_MAX_INT64 <= value < _MAX_INT64):
        return value
    return safe_text(value)


def safe_text(value: Any) -> str:
    """Return `str(value)`, or a stand-in if that raises."""
    try:
        return well_formed(str(value))
    except Exception:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"


def well_formed(text: str) -> str:
    """Escape lone surrogates: one name that has no UTF-8 form would lose the whole batch of spans."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class ContextScope:
    """Makes an OpenTelemetry context the current one inside a `with` block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        self._token = OTEL_CONTEXT.set(self._context)

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            try:
                OTEL_CONTEXT.reset(token)
            except ValueError:  # left from another task: there is nothing to restore there
                return

    def open(self) -> None:
        """Make the context the current one."""
        self.__enter__()

    def suspend(self) -> None:
        """Leave the context; `resume` comes back to what was current: spans may be open inside."""
        self._context = OTEL_CONTEXT.get()
        self.__exit__()

    def resume(self) -> None:
        """Come back to the context."""
        self.__enter__()

    def close(self, exc: BaseException | None = None) -> None:  # noqa: ARG002 - as every scope
        """Leave the context, if that has not happened."""
        self.__exit__()


class SpanScope:
    """A span around a block, for `with` and `async with`."""

    __slots__ = ("_attributes", "_began", "_name", "_redactor", "_scope", "_span", "_tracer")

    def __init__(
        self, tracer: Tracer, name: str, attributes: dict[str, Any], redactor: Redactor = DEFAULT_REDACTOR
    ) -> None:
        self._tracer = tracer
        self._redactor = redactor
        self._name = name
        self._attributes = attributes

    def open(self) -> Span:
        """Start the span and make it the current one.

        Where a sampler or span processor of the user's raises, a span that records nothing stands for it.
        """
        span: Span
        self._began = perf_counter()
        try:
            name = self._redactor.text(self._name)[:MAX_NAME_LENGTH]
            span = self._tracer.start_span(
                well_formed(name), attributes=to_otel_attributes(self._attributes, self._redactor)
            )
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            report_error("span.start", exc)
            span = trace.NonRecordingSpan(trace.get_current_span().get_span_context())
        self._span = span
        self._scope = NO_OP
        try:
            self._scope = ContextScope(trace.set_span_in_context(span))
            self._scope.open()
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("span.start", exc)
        return span

    def suspend(self) -> None:
        """Let what was current before be current again."""
        try:
            self._scope.suspend()
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("span.suspend", exc)

    def resume(self) -> None:
        """Be the current span again."""
        try:
            self._scope.resume()
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("span.resume", exc)

    def close(self, exc: BaseException | None = None) -> None:
        """End the span with what was raised."""
        try:
            self._scope.close()
        except Exception as fault:  # noqa: BLE001 - as above
            report_error("span.end", fault)
        finish(self._span, exc, perf_counter() - self._began, self._redactor)

    def __enter__(self) -> Span:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        self.close(exc)

    async def __aenter__(self) -> Span:
        return self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        self.close(exc)


def finish(span: Span, exc: BaseException | None, seconds: float, redactor: Redactor = DEFAULT_REDACTOR) -> None:
    """End a span after `seconds`; an exception that left its block is recorded and makes it an error."""
    try:
        if exc is not None and not isinstance(exc, GeneratorExit) and span.is_recording():
            record_exception(span, exc, redactor)
    except Exception as fault:  # noqa: BLE001 - a fault of ours never reaches the user's code
        report_error("span.exception", fault)
    try:
        began = getattr(span, "start_time", None)
        span.end(None if began is None else began + int(seconds * 1e9))  # the wall clock may have jumped
    except Exception as fault:  # noqa: BLE001 - as above
        report_error("span.end", fault)


def _instrumentation_scope(tracer: Tracer, redactor: Redactor, name: str, attributes: dict[str, Any]) -> SpanScope:
    return SpanScope(tracer, name, attributes, redactor)


def make_traced(
    owner: Callable[[], tuple[Tracer, Redactor]], name: str | None, attributes: dict[str, Any]
) -> Callable[[Any], Any]:
    """Return the decorator behind `@traced`; `owner` is asked at each call."""

    def decorate(function: Any) -> Any:
        try:
            label = name or callable_name(getattr(function, "__func__", function))
            return wrap_calls(function, lambda: _instrumentation_scope(*owner(), label, attributes))
        except TypeError:  # it cannot be decorated
            raise
        except Exception as exc:  # noqa: BLE001 - as above
            report_error("traced", exc)
            return function

    return decorate


async def run_in_executor(executor: Executor | None, function: Callable[..., Any], /, *args: Any) -> Any:
    """Run `function(*args)` in an executor of threads, with a copy of the caller's context."""
    call = functools.partial(contextvars.copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(executor, call)

"""Spans around the user's own code: a block, a function, a generator, a call in an executor."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import traceback
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from fastapi_observe.records.exchange import current_exchange
from fastapi_observe.records.faults import Faults
from fastapi_observe.records.operation import error_name
from fastapi_observe.records.redaction import redact_text

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from concurrent.futures import Executor
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

LONGEST_MESSAGE = 1024
LONGEST_STACK = 8192
LONGEST_VALUE = 2048

_PLAIN = (str, bool, int, float)
_LARGEST = 2**63


def note_exception(span: Span, exc: BaseException) -> None:
    """Record an exception on a span: event `exception`, `error.type`, status ERROR.

    The message is cut at 1,024 characters, the stack trace at its last 8,192.
    """
    name = error_name(exc)
    span.add_event(
        "exception",
        {
            "exception.type": name,
            "exception.message": redact_text(safe_text(exc)[:LONGEST_MESSAGE]),
            "exception.stacktrace": redact_text(well_formed(safe_stack(exc)[-LONGEST_STACK:])),
        },
    )
    span.set_attribute("error.type", name)
    span.set_status(StatusCode.ERROR)


def plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Keep what OTLP has a type for; leave None out; turn the rest into text."""
    return {name: _plain_value(value) for name, value in attributes.items() if value is not None}


def _plain_value(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value[:LONGEST_VALUE])
    if isinstance(value, list | tuple) and len({type(item) for item in value}) == 1 and isinstance(value[0], _PLAIN):
        return [_plain_value(item) for item in value]
    if isinstance(value, float) or (isinstance(value, int) and -_LARGEST <= value < _LARGEST):
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


def safe_stack(exc: BaseException) -> str:
    """Return the stack trace of an exception, or a stand-in if its class cannot be shown."""
    try:
        return "".join(traceback.format_exception(exc))
    except Exception:  # noqa: BLE001 - exception classes may override anything
        return "<unprintable stacktrace>"


class ContextScope:
    """Makes an OpenTelemetry context the current one inside a `with` block."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, *_: object) -> None:
        try:
            self._token.var.reset(self._token)
        except ValueError:  # left from another task: there is nothing to restore there
            return


class SpanScope:
    """A span around a block, for `with` and `async with`."""

    __slots__ = ("_attributes", "_name", "_scope", "_span", "_tracer")

    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, Any]) -> None:
        self._tracer = tracer
        self._name = name
        self._attributes = attributes

    def start(self) -> tuple[Span, Context]:
        """Start the span; return it with the context in which it is the current one.

        Where a sampler or span processor of the user's raises, a span that records nothing stands for it.
        """
        span: Span
        try:
            span = self._tracer.start_span(well_formed(self._name), attributes=plain(self._attributes))
        except Exception as exc:  # noqa: BLE001 - a fault of ours never reaches the user's code
            _tell("span.start", exc)
            span = trace.NonRecordingSpan(trace.get_current_span().get_span_context())
        return span, trace.set_span_in_context(span)

    def __enter__(self) -> Span:
        self._span, context = self.start()
        self._scope = ContextScope(context)
        self._scope.__enter__()
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        self._scope.__exit__()
        finish(self._span, exc)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        self.__exit__(kind, exc, trace_back)


def finish(span: Span, exc: BaseException | None) -> None:
    """End a span; an exception that left its block is recorded and makes it an error."""
    try:
        if exc is not None and not isinstance(exc, GeneratorExit) and span.is_recording():
            note_exception(span, exc)
        span.end()
    except Exception as fault:  # noqa: BLE001 - a fault of ours never reaches the user's code
        _tell("span.end", fault)


def _tell(site: str, exc: Exception) -> None:
    exchange = current_exchange()
    faults = Faults() if exchange is None else exchange.observability.faults
    faults(site, exc)


def traced_with(tracer: Callable[[], Tracer], name: str | None, attributes: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the decorator behind `@traced`; `tracer` is asked at each call."""

    def decorate(function: Any) -> Any:
        if isinstance(function, staticmethod | classmethod):
            return type(function)(decorate(function.__func__))
        label, code = _describe(function)
        wrap = (
            _traced_async_generator
            if inspect.isasyncgenfunction(code)
            else _traced_generator
            if inspect.isgeneratorfunction(code)
            else _traced_coroutine
            if inspect.iscoroutinefunction(code)
            else _traced_call
        )
        return wrap(function, lambda: SpanScope(tracer(), name or label, attributes))

    return decorate


def _describe(function: Any) -> tuple[str, Any]:
    """Return the name of a callable and the function that tells its kind, through partials and `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    label = getattr(function, "__qualname__", type(function).__name__)
    return label, function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__


def _traced_call(function: Any, scope: Callable[[], SpanScope]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with scope():
            return function(*args, **kwargs)

    return call


def _traced_coroutine(function: Any, scope: Callable[[], SpanScope]) -> Any:
    @functools.wraps(function)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with scope():
            return await function(*args, **kwargs)

    return coroutine


def _traced_generator(function: Any, scope: Callable[[], SpanScope]) -> Any:
    """Run a generator step by step inside its span; between the steps the caller's context is the current one."""

    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Any:
        inner = function(*args, **kwargs)
        span, context = scope().start()
        sent = thrown = None
        try:
            while True:
                with ContextScope(context):
                    item = inner.send(sent) if thrown is None else inner.throw(thrown)
                    context = otel_context.get_current()  # the generator may hold spans of its own across a yield
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as exc:  # noqa: BLE001 - GeneratorExit too: it is the generator's to answer
                    thrown = exc
        except StopIteration as stop:
            finish(span, None)
            return stop.value
        except BaseException as exc:
            finish(span, exc)
            raise
        finally:
            thrown = None  # else the exception and this frame would hold each other

    return generator


def _traced_async_generator(function: Any, scope: Callable[[], SpanScope]) -> Any:
    """Do for an async generator what `_traced_generator` does for a plain one."""

    @functools.wraps(function)
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        span, context = scope().start()
        sent = thrown = None
        try:
            while True:
                with ContextScope(context):
                    item = await (inner.asend(sent) if thrown is None else inner.athrow(thrown))
                    context = otel_context.get_current()
                sent = thrown = None
                try:
                    sent = yield item
                except BaseException as exc:  # noqa: BLE001 - as above
                    thrown = exc
        except StopAsyncIteration:
            finish(span, None)
        except BaseException as exc:
            finish(span, exc)
            raise
        finally:
            thrown = None

    return async_generator


async def run_in_executor(executor: Executor | None, function: Callable[..., Any], /, *args: Any) -> Any:
    """Run `function(*args)` in an executor of threads, with a copy of the caller's context."""
    call = functools.partial(contextvars.copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(executor, call)

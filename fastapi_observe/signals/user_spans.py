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

from fastapi_observe.records.operation import error_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from concurrent.futures import Executor
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

LONGEST_MESSAGE = 1024
LONGEST_STACK = 8192

_PLAIN = (str, bool, int, float)


def note_exception(span: Span, exc: BaseException) -> None:
    """Record an exception on a span: event `exception`, `error.type`, status ERROR.

    The message is cut at 1,024 characters, the stack trace at its last 8,192.
    """
    span.add_event(
        "exception",
        {
            "exception.type": error_name(exc),
            "exception.message": safe_text(exc)[:LONGEST_MESSAGE],
            "exception.stacktrace": "".join(traceback.format_exception(exc))[-LONGEST_STACK:],
        },
    )
    span.set_attribute("error.type", error_name(exc))
    span.set_status(StatusCode.ERROR)


def plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Keep what OpenTelemetry has a type for; leave None out; turn the rest into text."""
    return {
        name: value if isinstance(value, _PLAIN) or _is_plain_list(value) else safe_text(value)
        for name, value in attributes.items()
        if value is not None
    }


def _is_plain_list(value: Any) -> bool:
    kinds = {type(item) for item in value} if isinstance(value, list | tuple) else set()
    return len(kinds) == 1 and kinds <= set(_PLAIN)


def safe_text(value: Any) -> str:
    """Return `str(value)`, or a stand-in if that raises."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"


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

    def __enter__(self) -> Span:
        self._span = self._tracer.start_span(self._name, attributes=plain(self._attributes))
        self._scope = ContextScope(trace.set_span_in_context(self._span))
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
    if exc is not None and not isinstance(exc, GeneratorExit) and span.is_recording():
        note_exception(span, exc)
    span.end()


def traced_with(tracer: Callable[[], Tracer], name: str | None, attributes: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the decorator behind `@traced`; `tracer` is asked at each call."""

    def decorate(function: Any) -> Any:
        label = name or getattr(function, "__qualname__", type(function).__name__)

        def scope() -> SpanScope:
            return SpanScope(tracer(), label, attributes)

        if inspect.isasyncgenfunction(function):
            return _traced_async_generator(function, tracer, label, attributes)
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def generator(*args: Any, **kwargs: Any) -> Any:
                return (yield from _drive(function(*args, **kwargs), tracer(), label, attributes))

            return generator
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with scope():
                    return await function(*args, **kwargs)

            return coroutine

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with scope():
                return function(*args, **kwargs)

        return call

    return decorate


def _drive(
    inner: Generator[Any, Any, Any], tracer: Tracer, name: str, attributes: dict[str, Any]
) -> Generator[Any, Any, Any]:
    """Run a generator step by step inside its span; between the steps the caller's context is the current one."""
    span = tracer.start_span(name, attributes=plain(attributes))
    context = trace.set_span_in_context(span)
    step: Callable[[Any], Any] = inner.send
    value: Any = None
    failure: BaseException | None = None
    try:
        while True:
            try:
                with ContextScope(context):
                    item = step(value)
            except StopIteration as stop:
                return stop.value
            try:
                step, value = inner.send, (yield item)
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as exc:  # noqa: BLE001 - thrown in by the caller, handed on to the generator
                step, value = inner.throw, exc
    except BaseException as exc:
        failure = exc
        raise
    finally:
        finish(span, failure)


def _traced_async_generator(
    function: Any, tracer: Callable[[], Tracer], name: str, attributes: dict[str, Any]
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Do for an async generator function what `_drive` does for a plain one."""

    @functools.wraps(function)
    async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        span = tracer().start_span(name, attributes=plain(attributes))
        context = trace.set_span_in_context(span)
        step: Callable[[Any], Any] = inner.asend
        value: Any = None
        failure: BaseException | None = None
        try:
            while True:
                try:
                    with ContextScope(context):
                        item = await step(value)
                except StopAsyncIteration:
                    return
                try:
                    step, value = inner.asend, (yield item)
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as exc:  # noqa: BLE001 - thrown in by the caller, handed on to the generator
                    step, value = inner.athrow, exc
        except BaseException as exc:
            failure = exc
            raise
        finally:
            finish(span, failure)

    return async_generator


async def run_in_executor(executor: Executor | None, function: Callable[..., Any], /, *args: Any) -> Any:
    """Run `function(*args)` in an executor of asyncio, with a copy of the caller's context."""
    call = functools.partial(contextvars.copy_context().run, function, *args)
    return await asyncio.get_running_loop().run_in_executor(executor, call)

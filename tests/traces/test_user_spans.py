"""The user's own spans: blocks, decorated functions of every kind, exceptions, executors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
from driver import ask
from fastapi import BackgroundTasks, Depends, FastAPI
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import ObserveSettings, TracingDep, traced
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.redaction.redactor import DEFAULT_REDACTOR
from fastapi_observe.traces.service import TracingService
from fastapi_observe.traces.user_spans import (
    MAX_MESSAGE_LENGTH,
    MAX_STACKTRACE_LENGTH,
    ContextScope,
    SpanScope,
    make_traced,
    safe_text,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator

    from conftest import Seen


class Spans:
    """A tracing service with its own provider and the spans that have ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = TracingService(ObserveSettings(tracer_provider=provider), InternalErrors())

    @property
    def ended(self) -> tuple[ReadableSpan, ...]:
        """Every ended span, in the order of their ends."""
        return self.exporter.get_finished_spans()

    def one(self) -> ReadableSpan:
        """Return the only ended span."""
        (span,) = self.ended
        return span

    def named(self, name: str) -> ReadableSpan:
        """Return the only ended span of this name."""
        (span,) = [span for span in self.ended if span.name == name]
        return span


@pytest.fixture
def spans() -> Spans:
    """Give each test a provider of its own."""
    return Spans()


def parent_of(span: ReadableSpan) -> int | None:
    """Return the id of a span's parent."""
    return span.parent and span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    """Return the id of a span."""
    assert span.context is not None
    return int(span.context.span_id)


# Blocks


class Colour(StrEnum):
    """A string enumeration."""

    RED = "red"


class Level(IntEnum):
    """An integer enumeration."""

    HIGH = 3


class Unprintable:
    """An object without a string."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_attributes_keep_their_types(spans: Spans) -> None:
    """Strings, numbers, booleans and lists of one type keep their type."""
    values: dict[str, Any] = {
        "text": "a",
        "number": 3,
        "ratio": 0.5,
        "yes": True,
        "enum": Colour.RED,
        "level": Level.HIGH,
        "list": ["a", "b"],
        "tuple": (1, 2),
    }
    with spans.tracing.span("price order", **values):
        pass
    attributes = dict(spans.one().attributes or {})
    assert attributes == {**values, "list": ("a", "b")}
    assert {type(attributes[name]) for name in ("number", "ratio", "yes")} == {int, float, bool}


def test_other_attributes_become_text(spans: Spans) -> None:
    """Other types become strings; None is left out; a value without a string is named by its type."""
    with spans.tracing.span(
        "s", none=None, map={"a": 1}, mixed=[1, "a"], empty=[], big=2**63, odd=Unprintable(), data=b"x", bigs=[2**64]
    ):
        pass
    assert dict(spans.one().attributes or {}) == {
        "map": "{'a': 1}",
        "mixed": "[1, 'a']",
        "empty": "[]",
        "big": "9223372036854775808",
        "odd": "<unprintable Unprintable>",
        "data": "b'x'",
        "bigs": ("18446744073709551616",),
    }


def test_text_without_utf8_form_is_escaped(spans: Spans) -> None:
    """A lone surrogate in a name, a value or a message is escaped: the whole batch would fail to encode."""
    with contextlib.suppress(ValueError), spans.tracing.span("file \udce4", path="\udce4", paths=["\udce4", "ä"]):
        spans.tracing.add_event("read \udce4", line="\udce4")
        raise ValueError("\udce4")
    span = spans.one()
    attributes = dict(span.attributes or {})
    assert (span.name, attributes["path"], attributes["paths"]) == ("file \\udce4", "\\udce4", ("\\udce4", "ä"))
    assert [event.name for event in span.events] == ["read \\udce4", "exception"]
    for event in span.events:
        for value in (event.attributes or {}).values():
            str(value).encode()


def test_success_leaves_the_status_unset(spans: Spans) -> None:
    """A block that succeeds leaves the status unset."""
    with spans.tracing.span("s") as span:
        assert trace.get_current_span() is span
    assert spans.one().status.status_code is StatusCode.UNSET
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_span_works_with_async_with(spans: Spans) -> None:
    """`async with tracing.span(...)` is the same as `with`."""

    async def work() -> None:
        async with spans.tracing.span("s") as span:
            assert trace.get_current_span() is span
            raise KeyError(7)

    with pytest.raises(KeyError):
        await work()
    assert (spans.one().attributes or {})["error.type"] == "KeyError"


def test_exception_is_recorded_and_propagates_unchanged(spans: Spans) -> None:
    """The span has the event, ERROR and error.type; the same exception object propagates."""
    given = LookupError("no such order")
    with pytest.raises(LookupError) as caught, spans.tracing.span("s"):
        raise given
    assert caught.value is given
    assert given.__context__ is None
    span = spans.one()
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "LookupError"
    (event,) = span.events
    seen = dict(event.attributes or {})
    assert (event.name, seen["exception.type"], seen["exception.message"]) == (
        "exception",
        "LookupError",
        "no such order",
    )
    assert "raise given" in str(seen["exception.stacktrace"])


def test_long_exceptions_are_cut(spans: Spans) -> None:
    """A message is cut at 1,024 characters, a stack trace keeps its last 8,192."""
    with pytest.raises(ValueError, match="aaa"), spans.tracing.span("s"):
        raise ValueError("a" * 8100 + "end")
    seen = dict(spans.one().events[0].attributes or {})
    assert len(str(seen["exception.message"])) == MAX_MESSAGE_LENGTH
    assert 8100 < len(str(seen["exception.stacktrace"])) <= MAX_STACKTRACE_LENGTH
    assert str(seen["exception.stacktrace"]).endswith("end\n")


class HostileError(Exception):
    """An exception without a string."""

    __notes__ = 7  # type: ignore[assignment]

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_exception_without_a_string_propagates(spans: Spans) -> None:
    """An exception whose string cannot be made is recorded with its type."""
    with pytest.raises(HostileError), spans.tracing.span("s"):
        raise HostileError
    seen = dict(spans.one().events[0].attributes or {})
    assert seen["exception.message"] == "<unprintable HostileError>"
    assert str(seen["exception.type"]).endswith("HostileError")


def test_event_and_attributes_go_to_the_current_span(spans: Spans) -> None:
    """`add_event` and `set_attributes` keep types; outside any span they do nothing."""
    tracing = spans.tracing
    tracing.add_event("nowhere", key=1)
    tracing.set_attributes(key=1)
    tracing.record_error(ValueError())
    with tracing.span("s"):
        tracing.add_event("cache miss", key="k", size=3, none=None)
        tracing.set_attributes(tier="gold", none=None)
    span = spans.one()
    assert span.attributes == {"tier": "gold"}
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("cache miss", {"key": "k", "size": 3})
    ]


def test_record_error_marks_the_current_span(spans: Spans) -> None:
    """A handled exception can be recorded."""
    with spans.tracing.span("s"):
        spans.tracing.record_error(TimeoutError("too slow"))
    span = spans.one()
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, "TimeoutError")


def test_scope_left_in_another_context_is_harmless(spans: Spans) -> None:
    """A block that ends in another context than it started in ends its span and does not change that context."""
    scope = spans.tracing.span("s")
    copy_context().run(scope.__enter__)
    scope.__exit__(None, None, None)
    assert spans.one().name == "s"
    assert trace.get_current_span() is trace.INVALID_SPAN


class Hidden(type):
    """A metaclass whose attributes cannot be read."""

    def __getattribute__(cls, name: str) -> Any:
        if name in {"__module__", "__qualname__"}:
            raise RuntimeError("hidden")
        return super().__getattribute__(name)


class HiddenError(Exception, metaclass=Hidden):
    """An exception whose stack trace cannot be made."""


def test_exception_without_a_stack_trace_propagates(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that Python cannot format is recorded without its stack trace."""
    # Other packages that are installed may have made it safe, for the whole process.
    bare = getattr(traceback.format_exception, "__wrapped__", traceback.format_exception)
    monkeypatch.setattr(traceback, "format_exception", bare)
    with pytest.raises(HiddenError), spans.tracing.span("s"):
        raise HiddenError
    seen = dict(spans.one().events[0].attributes or {})
    assert seen["exception.stacktrace"] == "<unprintable stacktrace>"
    assert str(seen["exception.type"]).endswith("HiddenError")


class BrokenSampler(Sampler):
    """A sampler that raises."""

    def should_sample(self, *_: Any, **__: Any) -> Any:
        """Raise."""
        raise RuntimeError("broken")

    def get_description(self) -> str:
        """Name it."""
        return "broken"


class BrokenProcessor(SpanProcessor):
    """A span processor that raises at the end of a span."""

    def on_end(self, span: ReadableSpan) -> None:
        """Raise."""
        raise RuntimeError("broken")


@pytest.mark.parametrize("where", ["in a request", "outside"])
async def test_a_broken_sampler_or_processor_never_reaches_the_block(
    observed: Callable[..., Seen], caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """An exception of the user's sampler or processor is counted and logged; the block runs."""
    start, end = TracerProvider(sampler=BrokenSampler()), TracerProvider()
    end.add_span_processor(BrokenProcessor())
    ran: list[bool] = []

    async def endpoint(request: Request) -> Response:
        for provider in (start, end):
            with SpanScope(provider.get_tracer("t"), "s", {}) as span:
                ran.append(span.is_recording())
        return Response()

    app = Starlette(routes=[Route("/", endpoint)])
    seen = observed(app, capture_logging=False)
    if where == "outside":
        await endpoint(Request({"type": "http"}))
        assert "span.start" in caplog.text
    else:
        await ask(app, "/")
        assert seen.observe.internal_errors.counts == {"span.start": 1, "span.end": 1}
    assert ran == [False, True]


# Decorated functions


class Work:
    """Methods of every kind."""

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    @traced
    def method(self, number: int) -> int:
        """Multiply."""
        return number * self.factor

    @traced("static")
    @staticmethod
    def static(number: int) -> int:
        """Return the number."""
        return number

    @staticmethod
    @traced("static inside")
    def static_inside(number: int) -> int:
        """Return the number."""
        return number

    @traced
    @classmethod
    async def make(cls, factor: int) -> Work:
        """Make one."""
        return cls(factor)


class Adder:
    """A callable object."""

    def __call__(self, number: int) -> int:
        """Add one."""
        return number + 1


class AsyncCallable:
    """A callable object that must be awaited."""

    async def __call__(self) -> str:
        """Name the current span."""
        await asyncio.sleep(0)
        return name_now()


def name_now() -> str:
    """Return the name of the current span."""
    return getattr(trace.get_current_span(), "name", "")


def test_traced_function(spans: Spans) -> None:
    """Each call of a decorated function is a span with the function's name, or the given one."""

    @spans.tracing.traced()
    def price(amount: int, *, tax: int = 0) -> int:
        """Add tax."""
        assert name_now().endswith("price")
        return amount + tax

    @spans.tracing.traced("other", tier="gold")
    def other() -> None: ...

    assert price(1, tax=2) == 3
    other()
    first, second = spans.ended
    assert (first.name, first.attributes) == ("test_traced_function.<locals>.price", {})
    assert (second.name, second.attributes) == ("other", {"tier": "gold"})
    assert (price.__name__, price.__doc__) == ("price", "Add tax.")
    assert list(inspect.signature(price).parameters) == ["amount", "tax"]


async def test_traced_coroutine_function(spans: Spans) -> None:
    """The span of a coroutine function lasts until it returns; its exception is recorded and propagates."""
    given = ValueError("no")

    @spans.tracing.traced("work")
    async def work(fail: bool) -> str:  # noqa: FBT001
        await asyncio.sleep(0)
        if fail:
            raise given
        return name_now()

    assert inspect.iscoroutinefunction(work)
    assert await work(fail=False) == "work"
    with pytest.raises(ValueError, match="no") as caught:
        await work(fail=True)
    assert caught.value is given
    assert [span.status.status_code for span in spans.ended] == [StatusCode.UNSET, StatusCode.ERROR]


async def test_traced_callables_of_every_kind(spans: Spans) -> None:
    """Partials, callable objects, classes and built-in functions keep their kind and get a name."""
    deco = spans.tracing.traced()

    async def add(a: int, b: int) -> int:
        return a + b

    added = deco(functools.partial(functools.partial(add, 1), 2))
    awaited = deco(AsyncCallable())
    assert inspect.iscoroutinefunction(added)
    assert inspect.iscoroutinefunction(awaited)
    assert await added() == 3
    assert await awaited() == "AsyncCallable"
    assert deco(Adder())(1) == 2
    assert deco(functools.partial(Adder(), 4))() == 5
    assert deco(Work)(3).factor == 3
    assert deco(len)([1]) == 1
    assert deco(functools.lru_cache(Work().method))(4) == 8
    assert [span.name for span in spans.ended] == [
        "test_traced_callables_of_every_kind.<locals>.add",
        "AsyncCallable",
        "Adder",
        "Adder",
        "Work",
        "len",
        "Work.method",
    ]


async def test_traced_methods(observed: Callable[..., Seen]) -> None:
    """Methods, static methods and class methods can be decorated, in either order; the class gets what it expects."""
    seen = observed(FastAPI())
    assert Work(3).method(2) == 6
    assert Work.static(1) == Work().static(1) == Work.static_inside(1) == 1
    assert (await Work.make(5)).factor == 5
    assert [span.name for span in seen.spans] == ["Work.method", "static", "static", "static inside", "Work.make"]
    assert inspect.iscoroutinefunction(Work.make)


# Generators


def echo(log: list[Any]) -> Generator[Any, Any, str]:
    """Yield what is sent in and survive one KeyError."""
    log.append(name_now())
    got = yield "first"
    while got != "stop":
        try:
            log.append(name_now())
            got = yield got
        except KeyError as exc:
            got = f"caught {exc.args[0]}"
    return "result"


def test_traced_generator_delegates(spans: Spans) -> None:
    """`send`, `throw` and the returned value pass through; the caller's current span never changes between steps."""
    log: list[Any] = []
    work = spans.tracing.traced("work")(echo)
    assert inspect.isgeneratorfunction(work)
    generator = work(log)
    with spans.tracing.span("outer") as outer:
        assert next(generator) == "first"
        assert trace.get_current_span() is outer
        assert generator.send("a") == "a"
        assert generator.throw(KeyError(7)) == "caught 7"
        assert trace.get_current_span() is outer
        with pytest.raises(StopIteration) as stopped:
            generator.send("stop")
    assert stopped.value.value == "result"
    assert set(log) == {"work"}
    work_span, outer_span = spans.ended
    assert parent_of(work_span) == id_of(outer_span)
    assert work_span.status.status_code is StatusCode.UNSET


def test_traced_generator_records_its_exception(spans: Spans) -> None:
    """An exception thrown in and not caught is recorded and comes out as the same object."""
    generator = spans.tracing.traced("work")(echo)([])
    next(generator)
    given = LookupError("in")
    with pytest.raises(LookupError) as caught:
        generator.throw(given)
    assert caught.value is given
    assert spans.one().status.status_code is StatusCode.ERROR


def test_traced_generator_can_be_closed(spans: Spans) -> None:
    """`close` runs the generator's cleanup inside its span and is not an error; ignoring it is one."""
    cleaned: list[str] = []

    @spans.tracing.traced("tidy")
    def tidy() -> Iterator[int]:
        try:
            yield 1
        finally:
            cleaned.append(name_now())

    @spans.tracing.traced("stubborn")
    def stubborn() -> Iterator[int]:
        with contextlib.suppress(GeneratorExit):
            yield 1
        yield 2

    generator = tidy()
    assert next(generator) == 1
    generator.close()
    assert cleaned == ["tidy"]
    refusing = stubborn()
    assert next(refusing) == 1
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        refusing.close()
    refusing.close()
    assert {span.status.status_code for span in spans.ended} == {StatusCode.UNSET}
    assert [span.name for span in spans.ended] == ["tidy", "stubborn"]


def test_unstarted_generator_has_no_span(spans: Spans) -> None:
    """A generator that is never started has no span."""
    spans.tracing.traced("work")(echo)([]).close()
    assert spans.ended == ()


def test_generator_keeps_its_own_spans_across_yield(spans: Spans) -> None:
    """A span that the generator opens around a `yield` is current again at its next step, and only there."""

    @spans.tracing.traced("work")
    def work() -> Iterator[str]:
        with spans.tracing.span("inner"):
            yield name_now()
            yield name_now()
        yield name_now()

    seen = []
    for name in work():
        seen.append(name)
        assert name_now() == ""
    assert seen == ["inner", "inner", "work"]
    assert parent_of(spans.named("inner")) == id_of(spans.named("work"))


def test_traced_generator_works_as_context_manager(spans: Spans) -> None:
    """`@contextmanager` over `@traced`: an exception of the block may be suppressed, StopIteration too passes."""

    @contextlib.contextmanager
    @spans.tracing.traced("cm")
    def manage() -> Iterator[str]:
        with contextlib.suppress(KeyError):
            yield "value"

    def fail(exc: BaseException) -> None:
        with manage() as value:
            assert value == "value"
            raise exc

    fail(KeyError())
    with pytest.raises(StopIteration):
        fail(StopIteration())
    assert [span.status.status_code for span in spans.ended] == [StatusCode.UNSET, StatusCode.ERROR]


def test_traced_generator_leaves_no_cycle(spans: Spans) -> None:
    """A failed generator is freed at once: exception and frame form no cycle."""

    class Failure(Exception):  # noqa: N818
        """One of its own."""

    generator = spans.tracing.traced("work")(echo)([])
    next(generator)
    gc.disable()
    try:
        gone = None
        try:
            generator.throw(Failure())
        except Failure as exc:
            gone = weakref.ref(exc)
        del generator
        assert gone is not None
        assert gone() is None
    finally:
        gc.enable()


async def echo_async(log: list[Any]) -> AsyncGenerator[Any, Any]:
    """Yield what is sent in and survive one KeyError."""
    log.append(name_now())
    got = yield "first"
    try:
        while got != "stop":
            try:
                await asyncio.sleep(0)
                log.append(name_now())
                got = yield got
            except KeyError as exc:
                got = f"caught {exc.args[0]}"
    finally:
        log.append(name_now())


async def test_traced_async_generator_delegates(spans: Spans) -> None:
    """`asend` and `athrow` pass through; the caller's current span never changes between steps."""
    log: list[Any] = []
    work = spans.tracing.traced("work")(echo_async)
    assert inspect.isasyncgenfunction(work)
    generator = work(log)
    with spans.tracing.span("outer") as outer:
        assert await anext(generator) == "first"
        assert trace.get_current_span() is outer
        assert await generator.asend("a") == "a"
        assert await generator.athrow(KeyError(7)) == "caught 7"
        assert trace.get_current_span() is outer
        with pytest.raises(StopAsyncIteration):
            await generator.asend("stop")
    assert set(log) == {"work"}
    work_span, outer_span = spans.ended
    assert parent_of(work_span) == id_of(outer_span)
    assert work_span.status.status_code is StatusCode.UNSET


async def test_traced_async_generator_ends(spans: Spans) -> None:
    """`aclose` runs the cleanup inside the span and is not an error; an exception propagates unchanged."""
    log: list[Any] = []
    work = spans.tracing.traced("work")(echo_async)
    closed, failed = work(log), work(log)
    await anext(closed)
    await closed.asend("a")
    await closed.aclose()
    await anext(failed)
    await failed.asend("a")
    given = LookupError("in")
    with pytest.raises(LookupError) as caught:
        await failed.athrow(given)
    assert caught.value is given
    assert log.count("work") == len(log) == 6
    assert [span.status.status_code for span in spans.ended] == [StatusCode.UNSET, StatusCode.ERROR]


async def test_traced_async_callable_object_generator(spans: Spans) -> None:
    """An object whose `__call__` is an async generator can be decorated."""

    class Source:
        """Yields once."""

        async def __call__(self) -> AsyncIterator[str]:
            """Name the current span."""
            yield name_now()

    assert [name async for name in spans.tracing.traced()(Source())()] == ["Source"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_traced_dependency_with_yield(observed: Callable[..., Seen], kind: str) -> None:
    """A decorated dependency with `yield` works in FastAPI; its teardown sees the exception of the endpoint."""
    app, torn_down = FastAPI(), []

    @traced("dependency sync")
    def sync() -> Iterator[str]:
        try:
            yield "session"
        except KeyError as exc:
            torn_down.append(repr(exc))
            raise

    @traced("dependency async")
    async def asynchronous() -> AsyncIterator[str]:
        try:
            yield "session"
        except KeyError as exc:
            torn_down.append(repr(exc))
            raise

    dependency = Depends(sync if kind == "sync" else asynchronous)

    @app.get("/{fail}")
    async def endpoint(fail: int, tracing: TracingDep, session: str = dependency) -> str:
        with tracing.span("in endpoint"):
            if fail:
                raise KeyError("gone")
        return session

    seen = observed(app)
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/0").json() == "session"
    assert client.get("/1").status_code == 500
    assert torn_down == ["KeyError('gone')"]
    names = [span.name for span in seen.spans]
    assert names.count(f"dependency {kind}") == names.count("in endpoint") == 2
    servers = {id_of(span) for span in seen.server_spans}
    assert {parent_of(span) for span in seen.spans if span.name == "in endpoint"} == servers
    assert {parent_of(span) for span in seen.spans if span.name.startswith("dependency")} == servers


# Other tasks and threads


async def test_threads_and_tasks_are_children_of_their_caller(spans: Spans) -> None:
    """`to_thread` of asyncio and anyio, `run_in_executor`, tasks and gather continue the caller's span."""
    tracing = spans.tracing

    def work(name: str) -> str:
        with tracing.span(name):
            return name

    async def task(name: str) -> None:
        work(name)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool, tracing.span("outer"):
        await asyncio.to_thread(work, "asyncio.to_thread")
        await anyio.to_thread.run_sync(work, "anyio.to_thread")
        assert await tracing.run_in_executor(pool, work, "pool") == "pool"
        assert await tracing.run_in_executor(None, work, "default pool") == "default pool"
        await asyncio.gather(task("gather 1"), task("gather 2"))
        async with asyncio.TaskGroup() as group:
            group.create_task(task("task group"))
        await loop.run_in_executor(pool, work, "asyncio alone")
    outer = id_of(spans.named("outer"))
    parents = {span.name: parent_of(span) for span in spans.ended}
    assert parents.pop("outer") is None
    assert parents.pop("asyncio alone") is None
    assert len(parents) == 7
    assert set(parents.values()) == {outer}


async def test_concurrent_tasks_do_not_mix(spans: Spans) -> None:
    """A span inside one task is never the parent of a span in its sibling."""

    async def task(number: int) -> None:
        with spans.tracing.span(f"outer {number}"):
            await asyncio.sleep(0)
            with spans.tracing.span(f"inner {number}"):
                await asyncio.sleep(0)

    await asyncio.gather(*(task(number) for number in range(20)))
    for number in range(20):
        assert parent_of(spans.named(f"inner {number}")) == id_of(spans.named(f"outer {number}"))


def test_background_task_continues_the_trace(observed: Callable[..., Seen]) -> None:
    """A span in a background task belongs to the trace of its request, below the span of the task."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks, tracing: TracingDep) -> None:
        def mail() -> None:
            with tracing.span("send mail"):
                pass

        tasks.add_task(mail)

    seen = observed(app)
    TestClient(app).get("/")
    by_name = {span.name: span for span in seen.spans}
    (task,) = [span for name, span in by_name.items() if name.startswith("background ")]
    assert parent_of(by_name["send mail"]) == id_of(task)
    assert parent_of(task) == id_of(by_name["GET /"])


def test_context_scope_restores(spans: Spans) -> None:
    """The previous context is current again after the block."""
    before = otel_context.get_current()
    with ContextScope(otel_context.set_value("key", 1)):
        assert otel_context.get_value("key") == 1
    assert otel_context.get_current() is before


def test_an_object_without_a_string_form() -> None:
    """An object whose `__str__` raises is shown by its class."""

    class Silent:
        def __str__(self) -> str:
            raise RuntimeError("broken")

    assert safe_text(Silent()) == "<unprintable Silent>"


def test_only_callables_can_be_traced() -> None:
    """Decorating something that is not callable is a TypeError."""
    decorate = make_traced(lambda: (trace.get_tracer("test"), DEFAULT_REDACTOR), None, {})
    with pytest.raises(TypeError):
        decorate(5)

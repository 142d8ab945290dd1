"""`log.contextualize`: its fields are on every line of the block, on no other, and it never raises."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.testclient import TestClient
from loguru import logger
from sqlalchemy import create_engine, text
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from fastapi_observe.internal import loguru
from fastapi_observe.logs import context as log_context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from conftest import Seen


def fields(seen: Seen, message: str) -> list[dict[str, Any]]:
    """Return the fields of all lines with this message."""
    return [line["fields"] for line in seen.lines if line["message"] == message]


def test_the_fields_are_on_every_line_of_the_block(observed: Callable[..., Seen]) -> None:
    """Those of our logger, loguru, `logging`, the server, operations and slow queries; fields of a line win."""
    engine = create_engine("sqlite://")
    seen = observed(FastAPI(), engines=[engine], slow_query_threshold=1e-6, redact=None)
    log = seen.observe.log
    with log.contextualize(job="nightly", part=1), log.contextualize(part=2):
        log.with_fields(part=3).info("ours")
        log.info("given", part=4)
        logger.bind(part=5).info("loguru")
        logging.getLogger("lib").warning("logging", extra={"part": 6})
        logging.getLogger("uvicorn.error").info("server")
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        with pytest.raises(ValueError, match="x"), seen.observe.operation("step"):
            raise ValueError("x")
        with seen.observe.external.call("billing", "get") as call:
            call.set_status_code(503)
    log.info("after")
    lines = {line["message"]: line["fields"] for line in seen.lines}
    parts = {message: (line.get("job"), line.get("part")) for message, line in lines.items()}
    assert parts == {
        "ours": ("nightly", 3),
        "given": ("nightly", 4),
        "loguru": ("nightly", 5),
        "logging": ("nightly", 6),
        "server": ("nightly", 2),
        "slow database query": ("nightly", 2),
        "operation failed": ("nightly", 2),
        "external call failed": ("nightly", 2),
        "after": (None, None),
    }
    engine.dispose()


def test_lines_of_logging_have_the_fields_of_loguru(observed: Callable[..., Seen]) -> None:
    """A block of loguru's own `contextualize` adds its fields to all lines."""
    seen = observed(FastAPI())
    with logger.contextualize(job="nightly"):
        logging.getLogger("lib").warning("inside")
    assert fields(seen, "inside") == [{"job": "nightly"}]


def make_app(seen: Callable[[], Seen]) -> FastAPI:  # noqa: C901 - one function for each way
    """Build an app with every way to open a block in a request."""
    app = FastAPI()

    def log(message: str) -> None:
        seen().observe.log.info(message)

    def sync_dependency() -> Iterator[None]:
        with seen().observe.log.contextualize(tenant="acme"):
            log("in dependency")
            yield
            log("in dependency")

    @contextmanager
    def helper() -> Iterator[None]:
        with seen().observe.log.contextualize(tenant="acme"):
            yield

    def helped_dependency() -> Iterator[None]:
        with helper():
            yield

    def stacked_dependency() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(seen().observe.log.contextualize(tenant="acme"))
            yield

    async def async_dependency() -> AsyncIterator[None]:
        with seen().observe.log.contextualize(tenant="acme"):
            yield

    dependencies = (sync_dependency, helped_dependency, stacked_dependency, async_dependency)
    for dependency in dependencies:
        name = dependency.__name__

        @app.get(f"/{name}/sync", dependencies=[Depends(dependency)])
        def sync_path() -> None:
            log("inside")

        @app.get(f"/{name}/async", dependencies=[Depends(dependency)])
        async def async_path(tasks: BackgroundTasks) -> None:
            log("inside")
            await asyncio.gather(
                asyncio.create_task(asyncio.to_thread(log, "inside")), run_in_threadpool(log, "inside")
            )
            tasks.add_task(log, "in background")

    @app.get("/none")
    def none() -> None:
        log("outside")

    @app.middleware("http")
    async def middleware(request: Any, call_next: Any) -> Any:
        with seen().observe.log.contextualize(middleware="yes"):
            return await call_next(request)

    return app


def test_a_block_of_a_dependency_is_around_the_path_operation(observed: Callable[..., Seen]) -> None:
    """In a `def` or an `async def` dependency, by a helper or an exit stack; and never around the next request."""
    made: list[Seen] = []
    app = make_app(lambda: made[0])
    made.append(observed(app))
    with TestClient(app) as client:
        for name in ("sync_dependency", "helped_dependency", "stacked_dependency", "async_dependency"):
            for kind in ("sync", "async"):
                before = len(fields(made[0], "inside"))
                assert client.get(f"/{name}/{kind}").status_code == 200
                assert client.get("/none").status_code == 200
                inside = fields(made[0], "inside")[before:]
                assert inside == [{"tenant": "acme", "middleware": "yes"}] * (1 if kind == "sync" else 3), (name, kind)
    assert fields(made[0], "in dependency") == [{"tenant": "acme", "middleware": "yes"}] * 4
    assert fields(made[0], "outside") == [{"middleware": "yes"}] * 8
    assert len(fields(made[0], "in background")) == 4
    assert all(line["outcome"] == "ok" for line in fields(made[0], "HTTP request completed"))
    assert not log_context._GENERATOR_BLOCKS


def test_a_block_of_a_dependency_under_trio(observed: Callable[..., Seen]) -> None:
    """The threads of another event loop are the same to a block."""
    made: list[Seen] = []
    app = make_app(lambda: made[0])
    made.append(observed(app))
    with TestClient(app, backend="trio") as client:
        for name in ("sync_dependency", "helped_dependency", "async_dependency"):
            assert client.get(f"/{name}/sync").status_code == 200
    assert fields(made[0], "inside") == [{"tenant": "acme", "middleware": "yes"}] * 3


def test_a_thread_of_an_executor(observed: Callable[..., Seen]) -> None:
    """`tracing.run_in_executor` takes the fields along, and so does a thread that runs in a copy of the context."""
    app = FastAPI()
    seen = observed(app)
    log, tracing = seen.observe.log, seen.observe.tracing

    @app.get("/")
    async def run() -> None:
        with log.contextualize(tenant="acme"):
            await tracing.run_in_executor(None, log.info, "in executor")
            thread = threading.Thread(target=copy_context().run, args=(log.info, "in thread"))
            thread.start()
            thread.join()

    assert TestClient(app).get("/").status_code == 200
    for message in ("in executor", "in thread"):
        assert fields(seen, message) == [{"tenant": "acme"}]


def test_siblings_do_not_see_the_fields(observed: Callable[..., Seen]) -> None:
    """Tasks and threads of one request, each in a block of its own, have their own fields only."""
    app = FastAPI()
    seen = observed(app)
    log = seen.observe.log
    barrier = threading.Barrier(2)

    @contextmanager
    def helper(item: int) -> Iterator[None]:
        with log.contextualize(item=item):
            yield

    def in_thread(item: int) -> None:
        with helper(item):
            barrier.wait(30)
            message = f"thread {item}"
            log.info(message)
            barrier.wait(30)

    async def in_task(item: int) -> None:
        with log.contextualize(item=item):
            await asyncio.sleep(0)
            message = f"task {item}"
            log.info(message)
            await asyncio.sleep(0)

    @app.get("/")
    async def gathered() -> None:
        await asyncio.gather(run_in_threadpool(in_thread, 1), run_in_threadpool(in_thread, 2), in_task(3), in_task(4))
        log.info("after")

    assert TestClient(app).get("/").status_code == 200
    for number, name in enumerate(("thread 1", "thread 2", "task 3", "task 4"), 1):
        assert fields(seen, name) == [{"item": number}]
    assert fields(seen, "after") == [{}]


def test_a_block_in_a_streamed_body(observed: Callable[..., Seen]) -> None:  # noqa: C901 - three bodies
    """A generator runs in one thread after another: all its lines have the fields, and the response is whole."""
    app = FastAPI()
    seen = observed(app)
    log = seen.observe.log
    barrier = threading.Barrier(2)

    def rows(export: int) -> Iterator[bytes]:
        with log.contextualize(export=export):
            for number in range(3):
                message = f"row {export}"
                log.info(message)
                yield b"%d" % number

    def meeting_rows(export: int) -> Iterator[bytes]:
        with log.contextualize(export=export):
            yield b""
            barrier.wait(30)
            message = f"row {export}"
            log.info(message)
            barrier.wait(30)
            yield b"."

    async def async_rows() -> AsyncIterator[bytes]:
        with log.contextualize(export=9):
            for number in range(3):
                log.info("row 9")
                yield b"%d" % number

    @app.get("/sync")
    def sync_body() -> StreamingResponse:
        return StreamingResponse(rows(1))

    @app.get("/async")
    def async_body() -> StreamingResponse:
        return StreamingResponse(async_rows())

    @app.get("/two")
    async def two_bodies() -> None:
        async def consume(export: int) -> None:
            async for _ in StreamingResponse(meeting_rows(export)).body_iterator:
                pass

        await asyncio.gather(consume(2), consume(3))

    client = TestClient(app)
    assert client.get("/sync").text == client.get("/async").text == "012"
    assert client.get("/two").status_code == 200
    assert fields(seen, "row 1") == [{"export": 1}] * 3
    assert fields(seen, "row 9") == [{"export": 9}] * 3
    assert (fields(seen, "row 2"), fields(seen, "row 3")) == ([{"export": 2}], [{"export": 3}])


def test_a_request_inside_a_block_is_in_it(observed: Callable[..., Seen]) -> None:
    """A request to an app of the same process has the fields of the block it is made in, while that request runs."""
    app = FastAPI()
    seen = observed(app)
    log = seen.observe.log

    @app.get("/inner")
    async def inner() -> None:
        log.info("inner")

    @app.get("/outer")
    async def outer() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            with log.contextualize(outer=1):
                await client.get("/inner")
            await client.get("/inner")

    assert TestClient(app).get("/outer").status_code == 200
    assert fields(seen, "inner") == [{"outer": 1}, {}]


@pytest.mark.parametrize("excluded", [(), ("/first",), ("/second",), ("/*",)])
def test_the_fields_end_with_the_request(observed: Callable[..., Seen], excluded: tuple[str, ...]) -> None:
    """A server may run the next request of a connection in the context of the last: it has none of its fields."""
    app = FastAPI()
    seen = observed(app, exclude_paths=excluded)
    log = seen.observe.log
    kept: list[contextvars.Context] = []

    @app.get("/first")
    async def first() -> None:
        with log.contextualize(tenant="acme"), logger.contextualize(user="ann"):
            log.info("first")
            kept.append(contextvars.copy_context())

    @app.get("/second")
    async def second() -> None:
        with log.contextualize(order=1):
            log.info("second")
            kept.append(contextvars.copy_context())

    async def get(path: str) -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            await client.get(path)

    asyncio.run(get("/first"))
    for _ in range(3):
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(loop.create_task(get("/second"), context=kept[-1]))
            kept[-1].run(log.info, "left over")
        finally:
            loop.close()
    assert fields(seen, "first") == [{"user": "ann", "tenant": "acme"}]
    second_lines = fields(seen, "second")
    assert [{**each, "user": None} for each in second_lines] == [{"order": 1, "user": None}] * 3
    assert excluded or second_lines == [{"order": 1}] * 3  # loguru's own fields are dropped where a record starts
    assert len(kept[-1].run(log_context.LOG_BLOCKS.get)) == 1
    assert all("tenant" not in each for each in fields(seen, "left over"))


def test_no_use_raises(observed: Callable[..., Seen]) -> None:
    """A block left twice, in another order, in another context, never or without having been entered."""
    seen = observed(FastAPI())
    log = seen.observe.log
    first, second = log.contextualize(a=1), log.contextualize(b=2, self=3)
    first.__exit__(None, None, None)
    with first, first:
        log.info("twice")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    log.info("second only")
    second.__exit__(None, None, None)
    second.__exit__(None, None, None)
    other = contextvars.copy_context()
    other.run(first.__enter__)
    first.__exit__(None, None, None)
    log.info("outside")

    def generator() -> Iterator[None]:
        with log.contextualize(c=3):
            yield

    started = generator()
    other.run(next, started)
    del started
    log.info("outside")
    assert fields(seen, "twice") == [{"a": 1}]
    assert fields(seen, "second only")[0]["b"] == 2
    assert fields(seen, "outside") == [{}, {}]
    assert seen.observe.internal_errors.counts == {}


def test_a_block_decorates_a_function(observed: Callable[..., Seen]) -> None:
    """Each call is a block, also one inside another."""
    seen = observed(FastAPI())
    log = seen.observe.log

    @log.contextualize(job="nightly")
    def work(depth: int) -> None:
        log.info("inside")
        if depth:
            work(depth - 1)

    work(2)
    log.info("outside")
    assert fields(seen, "inside") == [{"job": "nightly"}] * 3
    assert fields(seen, "outside") == [{}]


async def test_a_block_decorates_coroutines_and_generators(observed: Callable[..., Seen]) -> None:
    """The fields are on the lines of the call, not on those of siblings and consumers. `async with` works too."""
    seen = observed(FastAPI())
    log = seen.observe.log

    @log.contextualize(job="nightly")
    async def work(number: int) -> int:
        await asyncio.sleep(0)
        log.info("inside")
        await asyncio.sleep(0)
        log.info("inside")
        return number

    @log.contextualize(job="nightly")
    def steps() -> Generator[int, None, None]:
        log.info("inside")
        yield 1
        log.info("inside")

    @log.contextualize(job="nightly")
    async def async_steps() -> AsyncIterator[int]:
        log.info("inside")
        yield 1
        log.info("inside")

    async def sibling() -> None:
        await asyncio.sleep(0)
        log.info("outside")

    assert [*await asyncio.gather(work(1), sibling(), work(2))] == [1, None, 2]
    for _ in steps():
        log.info("outside")
    async for _ in async_steps():
        log.info("outside")
    abandoned = steps()
    next(abandoned)
    log.info("outside")
    abandoned.close()
    async with log.contextualize(job="nightly"):
        log.info("inside")
    log.info("outside")
    assert fields(seen, "inside") == [{"job": "nightly"}] * 10
    assert fields(seen, "outside") == [{}] * 5
    assert seen.observe.internal_errors.counts == {}


def test_sinks_of_the_user_get_the_fields(observed: Callable[..., Seen]) -> None:
    """Outside a request a block is one of loguru's, too; in a request, lines of our logger have the fields."""
    app = FastAPI()
    seen = observed(app)
    log = seen.observe.log
    extras: list[dict[str, Any]] = []
    number = logger.add(lambda message: extras.append(message.record["extra"]), level="INFO", format="")

    @app.get("/")
    async def get() -> None:
        with log.contextualize(tenant="acme"):
            log.info("in a request")

    try:
        with log.contextualize(job=1):
            logger.info("loguru")
        TestClient(app).get("/")
    finally:
        logger.remove(number)
    assert extras == [{"job": 1}, {"tenant": "acme"}]


def test_generators_that_are_never_finished_are_forgotten(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that were never left are not kept for longer than their requests, but for a few."""
    monkeypatch.setattr(log_context, "MIN_PURGE", 2)
    app = FastAPI()
    seen = observed(app)
    stuck: list[Iterator[None]] = []

    def steps() -> Iterator[None]:
        with seen.observe.log.contextualize(tenant="acme"):
            yield

    async def start() -> None:
        stuck.append(steps())
        await run_in_threadpool(next, stuck[-1])

    @app.get("/", dependencies=[Depends(start)])
    async def get() -> None:
        pass

    client = TestClient(app)
    for _ in range(6):
        client.get("/")
    assert len(log_context._GENERATOR_BLOCKS) <= 2
    for each in stuck:
        each.close()  # type: ignore[attr-defined]
    assert not log_context._GENERATOR_BLOCKS


def test_without_the_private_names_of_loguru(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of our blocks are on all lines; those of loguru's own blocks on loguru's lines."""
    monkeypatch.setattr(loguru, "CONTEXT", None)
    app = FastAPI()
    seen = observed(app)

    @app.get("/")
    async def get() -> None:
        with seen.observe.log.contextualize(ours=1), logger.contextualize(theirs=2):
            logger.info("loguru")
            logging.getLogger("lib").warning("logging")

    assert TestClient(app).get("/").status_code == 200
    assert fields(seen, "loguru") == [{"ours": 1, "theirs": 2}]
    assert fields(seen, "logging") == [{"ours": 1}]


async def test_an_object_that_several_tasks_enter(observed: Callable[..., Seen]) -> None:
    """Each task leaves its own block: after it no field is on its lines."""
    seen = observed(FastAPI())
    log = seen.observe.log
    shared = log.contextualize(shared="yes")
    entered, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with shared:
            entered.set()
            await leave.wait()
        log.info("after the first")

    async def second() -> None:
        await entered.wait()
        with shared:
            leave.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        log.info("after the second")

    await asyncio.gather(first(), second())
    lines = {line["message"]: line["fields"] for line in seen.lines}
    assert "shared" not in lines["after the first"]
    assert "shared" not in lines["after the second"]


def test_a_generator_that_is_closed_in_another_task(observed: Callable[..., Seen]) -> None:
    """Its block has ended then, in the context of its consumer too."""
    app = FastAPI()

    @app.get("/")
    async def root() -> None:
        log = app.state.observe.log

        async def numbers() -> AsyncIterator[int]:
            with log.contextualize(inside="yes"):
                yield 1
                yield 2

        generator: Any = numbers()
        async for _ in generator:
            break
        await asyncio.create_task(generator.aclose())
        log.info("after the generator")

    seen = observed(app)
    TestClient(app).get("/")
    assert fields(seen, "after the generator") == [{}]

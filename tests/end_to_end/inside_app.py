"""An app in which everything happens that we measure, and that calls every helper of this package from its handlers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import httpx
import sqlalchemy
from comparison import Answer, Server, ask, http_scope, websocket_scope
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from fastapi_observe import TraceContext, get_observability, operation, traced
from fastapi_observe.dependencies import get_request_observability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from fastapi_observe import Observability

PARENT: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SELECT: Final = "SELECT id FROM orders WHERE name = 'x'"


class Chunks(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A response in two parts."""

    def __iter__(self) -> Iterator[bytes]:
        yield from (b"one", b"two")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


class Parts:
    """What the app works with: engines of SQLAlchemy and httpx clients, made before `install`."""

    def __init__(self) -> None:
        anywhere = {"check_same_thread": False}
        self.engine = sqlalchemy.create_engine("sqlite://", poolclass=StaticPool, connect_args=anywhere)
        self.async_engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Chunks()))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://billing")
        self.sync_client = httpx.Client(transport=transport, base_url="http://billing")

    def observe(self, observe: Observability) -> None:
        """Have them measured."""
        observe.instrument_engine(self.engine)
        observe.instrument_engine(self.async_engine)
        observe.instrument_client(self.client, "billing", ["/invoices/{id}"])
        observe.instrument_client(self.sync_client)

    async def close(self) -> None:
        """Close them."""
        self.engine.dispose()
        await self.async_engine.dispose()
        await self.client.aclose()
        self.sync_client.close()


# Helpers: each calls a part of the API as users do, and returns what does not depend on it.


def use_database(observe: Observability) -> None:
    """Measure queries by hand."""
    with observe.db.query("SELECT", table="orders", statement=SELECT, parameters=[1], pool="main") as query:
        query.set_row_count(3)
        query.add_details(cached=False)
    with observe.db.query(statement="UPDATE orders SET name = 'y'"):
        pass
    query = observe.db.query("DELETE", table="orders").open()
    query.suspend()
    query.resume()
    query.close()


def use_external(observe: Observability) -> None:
    """Measure calls by hand."""
    with observe.external.call("billing", "get_invoice", number=7) as call:
        headers = call.inject({"x": "y"})
        assert headers["x"] == "y"
        call.set_status_code(503)


def use_operation(observe: Observability) -> None:
    """Measure steps of our own: as blocks, again, nested, as decorators."""
    step = observe.operation("charge card", provider="acme")
    with step as op:
        op.add_details(order_id=7)
        with step, step.copy():
            pass

    @observe.operation("decorated")
    def decorated(number: int) -> int:
        return number + 1

    @operation("of a module")
    def counted() -> Iterator[int]:
        yield from (1, 2, 3)

    assert decorated(1) == 2
    assert list(counted()) == [1, 2, 3]
    assert get_observability() is observe


def use_tracing(observe: Observability) -> None:
    """Make spans, events and carried contexts."""
    tracing = observe.tracing
    with tracing.span("step", items=3, odd=object()) as span:
        span.set_attribute("more", 1)
        tracing.add_event("cache miss", key="k")
        tracing.set_attributes(tenant="acme")
        tracing.record_error(ValueError("handled"))
    assert tracing.inject({"x": "y"})["x"] == "y"
    tracing.current()
    context = tracing.extract({"traceparent": PARENT}) or TraceContext.from_headers({"traceparent": PARENT})
    if context is not None:
        with tracing.attach(context):
            context.to_headers()

    @traced("priced", tier="gold")
    def priced() -> str:
        return "9.99"

    @tracing.traced()
    def steps() -> Iterator[int]:
        yield 1

    assert priced() == "9.99"
    assert list(steps()) == [1]


def use_metrics(observe: Observability) -> None:
    """Count, set and observe."""
    metrics = observe.metrics
    metrics.counter("carts_total", "Carts.", ["kind"]).labels("new").inc()
    metrics.counter("plain_total", "Plain.").inc(2)
    metrics.gauge("level", "Level.").set(3)
    metrics.gauge("levels", "Levels.", ["tank"]).labels(tank="a").dec()
    metrics.histogram("seconds", "Seconds.", buckets=[1, 2]).observe(1.5)
    with metrics.histogram("block_seconds", "Seconds.", ["of"]).labels("x").time():
        pass
    metrics.business.user_registered()
    metrics.business.user_logged_in()
    metrics.business.order_created()
    metrics.business.revenue(9.99, "EUR")
    metrics.record_http_request("GET", "/other", 200, 0.1, 1, 2)
    metrics.record_database_query("SELECT", "orders", 0.1, "Timeout")
    metrics.set_database_connections(active=1)


def use_log(observe: Observability) -> None:
    """Write lines."""
    observe.log.debug("debug", n=1)
    observe.log.info("info {braces}", order_id=7)
    observe.log.warn("warn")  # noqa: G010 - ours
    observe.log.with_fields(tenant="a").error("error")
    with observe.log.contextualize(tenant="b"):
        observe.log.fatal("fatal")
    try:
        raise LookupError("handled")  # noqa: TRY301 - to be caught
    except LookupError:
        observe.log.exception("caught")


async def use_async(observe: Observability) -> None:
    """Do what is awaited."""
    async with observe.db.query("SELECT", table="orders"), observe.external.call("billing", "get"):
        await asyncio.sleep(0)
    async with observe.operation("async step"), observe.tracing.span("async span"):
        await asyncio.sleep(0)

    @observe.operation("async decorated")
    async def decorated(number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    @traced
    async def numbers() -> AsyncIterator[int]:
        yield 1
        yield 2

    assert await decorated(1) == 2
    assert [number async for number in numbers()] == [1, 2]
    assert await observe.tracing.run_in_executor(None, len, "four") == 4


HELPERS: Final[dict[str, Callable[[Any], Any]]] = {
    each.__name__.removeprefix("use_"): each
    for each in (use_database, use_external, use_operation, use_tracing, use_metrics, use_log)
}


# The app


def make_app(parts: Parts) -> FastAPI:
    """Make the app; without `install` its responses are the same."""
    app = FastAPI()
    _add_plain(app)
    _add_helpers(app)
    _add_parts(app, parts)
    app.mount("/sub", Starlette(routes=[Route("/{name}", _sub)]))
    app.router.routes.append(Mount("/deep/{tenant}", app=_seamed()))
    return app


def _sub(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.path_params["name"])


def _seamed() -> FastAPI:
    """Make an app with middleware and a handler of every exception, so that it gets `InnerMiddleware`."""
    app = FastAPI()

    class Base(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            return await call_next(request)

    @app.get("/fails")
    async def fails() -> None:
        raise KeyError("deep")

    @app.exception_handler(KeyError)
    async def handle(request: Request, exc: KeyError) -> PlainTextResponse:
        return PlainTextResponse("handled", 418)

    app.add_middleware(Base)
    return app


def _add_plain(app: FastAPI) -> None:
    app.get("/sync")(lambda: "sync")

    @app.get("/error")
    async def error() -> None:
        raise ZeroDivisionError("by zero")

    @app.get("/items/{item_id}")
    async def item(item_id: int) -> int:
        return item_id

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"one"
            yield b"two"

        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(len, "task")
        return "queued"

    @app.get("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    @app.websocket("/ws")
    async def websocket(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text(await ws.receive_text())
        await ws.close()


def _add_helpers(app: FastAPI) -> None:  # noqa: C901 - a list of endpoints
    @app.get("/helpers/{name}")
    async def helpers(request: Request, name: str) -> str:
        observe = getattr(request.app.state, "observe", None)
        if observe is not None:
            HELPERS[name](observe)
        return name

    @app.get("/threaded/{name}")
    def threaded(request: Request, name: str) -> str:
        observe = getattr(request.app.state, "observe", None)
        if observe is not None:
            HELPERS[name](observe)
        return name

    @app.get("/async-helpers")
    async def async_helpers(request: Request) -> str:
        observe = getattr(request.app.state, "observe", None)
        if observe is not None:
            await use_async(observe)
        return "async"

    def depends(request: Request) -> None:
        if getattr(request.app.state, "observe", None) is not None:
            get_request_observability(request)

    @app.get("/failing-helpers", dependencies=[Depends(depends)])
    async def failing_helpers(request: Request) -> None:
        observe = getattr(request.app.state, "observe", None)
        if observe is None:
            raise LookupError("no such row")
        async with observe.operation("outer"), observe.external.call("billing", "get"):
            with observe.tracing.span("inner"), observe.db.query("SELECT", table="orders"):
                raise LookupError("no such row")


def _add_parts(app: FastAPI, parts: Parts) -> None:
    @app.get("/engine")
    def engine() -> list[int]:
        with parts.engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS orders (id INTEGER)"))
            connection.execute(sqlalchemy.text("DELETE FROM orders"))
            connection.execute(sqlalchemy.text("INSERT INTO orders VALUES (:id)"), [{"id": 1}, {"id": 2}])
            return list(connection.execute(sqlalchemy.text("SELECT id FROM orders")).scalars())

    @app.get("/engine-fails")
    async def engine_fails() -> str:
        async with parts.async_engine.connect() as connection:
            assert (await connection.execute(sqlalchemy.text("SELECT 1"))).scalar() == 1
            try:
                await connection.execute(sqlalchemy.text("SELECT id FROM nowhere"))
            except sqlalchemy.exc.OperationalError as exc:
                return str(exc.orig)
        return "no error"

    @app.get("/calls")
    async def calls() -> list[str]:
        answer = await parts.client.get("/invoices/7")
        async with parts.client.stream("GET", "/streamed") as streamed:
            return [answer.text, (await streamed.aread()).decode()]

    @app.get("/sync-calls")
    def sync_calls() -> str:
        with parts.sync_client.stream("POST", "/posted", content=b"x") as answer:
            return answer.read().decode()


PATHS: Final = (
    *("/sync", "/none", "/error", "/items/x", "/items/7", "/stream", "/background", "/body", "/ws"),
    *("/sub/x", "/sub", "/deep/acme/fails", "/deep/acme/none", "/docs"),
    *(f"/helpers/{name}" for name in HELPERS),
    *("/threaded/database", "/async-helpers", "/failing-helpers"),
    *("/engine", "/engine-fails", "/calls", "/sync-calls"),
)


async def run(app: Any, times: int) -> list[Answer]:
    """Ask for everything; some requests come with a trace."""
    answers = []
    for at, path in enumerate(PATHS * times):
        headers = [(b"host", b"shop"), *([(b"traceparent", PARENT.encode())] if at % 2 else [])]
        messages: list[Any] = [{"type": "http.request", "body": b"", "more_body": False}]
        scope = http_scope(path, headers=headers)
        if path == "/ws":
            scope = websocket_scope(headers=headers)
            messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}]
        answers.append(await ask(app, scope, Server(messages, leaves=False), []))
    return answers


async def live(app: Any, times: int = 1) -> list[Answer]:
    """Start the app, ask for everything `times`, and shut it down; return the responses, that of the lifespan last."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    sent: list[Any] = []
    started = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message["type"])
        started.set()

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    lifespan = asyncio.ensure_future(app(scope, inbox.get, send))
    await inbox.put({"type": "lifespan.startup"})
    await asyncio.wait_for(started.wait(), 30)
    answers = await run(app, times)
    await inbox.put({"type": "lifespan.shutdown"})
    done, _ = await asyncio.wait([lifespan], timeout=60)
    raised = lifespan.exception() if done else "hangs"
    return [*answers, Answer(sent, raised, [])]

"""Every kind of request has one span, one count, one sample and one line, and they agree."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from agreement import Facts, assert_agreement, by_labels, span_ids
from driver import ask
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount, Route
from zoo import BROKEN, JSON, ROWS, BaseMiddleware, BrokenError, Row, hostile_item, make_zoo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Seen

# BaseHTTPMiddleware of old Starlette leaves a stream open when the app fails.
pytestmark = pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning")


@pytest.mark.parametrize(("row", "base"), [(row, base) for row in ROWS for base in (False, True)], ids=str)
async def test_the_zoo(observed: Callable[..., Seen], row: Row, base: bool) -> None:  # noqa: FBT001 - a parameter
    """Whatever kind of request it is: span, count, sample and line say the same, and the gauge is back at 0."""
    bare = await ask(make_zoo(base=base), row.path, row.method, headers=row.headers, body=row.body)
    seen = observed(app := make_zoo(base=base))
    answer = await ask(app, row.path, row.method, headers=row.headers, body=row.body)
    facts = row.facts
    if isinstance(bare.raised, ExceptionGroup):  # old Starlette's streams raise one
        facts = facts._replace(error_type="ExceptionGroup")
    (line,) = assert_agreement(seen, facts)
    assert answer.status == row.facts.status
    assert answer.headers["x-request-id"] == line["request_id"]
    assert line["fields"]["response_size"] == (0 if row.method == "HEAD" else len(answer.body))
    assert line["fields"]["request_size"] == len(row.body)
    assert type(answer.raised) is type(bare.raised)


async def test_one_after_another(observed: Callable[..., Seen]) -> None:
    """All kinds of requests through one app add up: no request leaves anything behind for the next."""
    seen = observed(app := make_zoo())
    answers = [await ask(app, row.path, row.method, headers=row.headers) for row in ROWS if not row.body]
    lines = assert_agreement(seen, *(row.facts for row in ROWS if not row.body))
    assert [line["request_id"] for line in lines] == [answer.headers["x-request-id"] for answer in answers]


async def test_keys_of_clients_do_not_become_labels(observed: Callable[..., Seen]) -> None:
    """A 422 is counted by location and type in declared names; the keys that the client chose read `*`."""
    seen = observed(app := make_zoo())
    await ask(app, "/item", "POST", headers=JSON, body=hostile_item())
    await ask(app, "/validated/seven")
    assert_agreement(seen)
    assert by_labels(seen, "request_validation_errors_total", "endpoint", "field", "error_type") == {
        ("/item", "body.name", "missing"): 1,
        ("/item", "body.prices.*", "int_parsing"): 2,
        ("/validated/{number}", "path.number", "int_parsing"): 1,
    }
    assert "evil" not in seen.text


async def test_background_tasks_are_not_latency(observed: Callable[..., Seen]) -> None:
    """A background task has a count and a child span in the same trace; its time is not part of the request's."""
    app = FastAPI()

    @app.get("/work")
    async def work(tasks: BackgroundTasks) -> str:
        tasks.add_task(asyncio.sleep, 0.3)
        return "soon"

    seen = observed(app)
    await ask(app, "/work")
    (line,) = assert_agreement(seen, Facts("/work", 200))
    assert by_labels(seen, "background_tasks_total", "endpoint", "outcome") == {("/work", "ok"): 1}
    (server,) = seen.server_spans
    (child,) = (span for span in seen.spans if span is not server)
    assert child.name == "background sleep"
    assert server.start_time is not None
    assert child.end_time is not None
    assert line["fields"]["duration_ms"] + 290 < (child.end_time - server.start_time) / 1e6
    assert span_ids(child)[0] == span_ids(server)[0] == line["trace_id"]
    assert child.parent is not None
    assert format(child.parent.span_id, "016x") == line["span_id"]
    assert (seen.sample("background_task_duration_seconds_sum", endpoint="/work", outcome="ok") or 0) >= 0.29


async def test_background_tasks_that_fail(observed: Callable[..., Seen]) -> None:
    """A task that fails is counted as failed; the request, served long before, stays as it was."""
    seen = observed(app := make_zoo(base=False))
    answer = await ask(app, "/background/broken")
    assert isinstance(answer.raised, BrokenError)
    assert_agreement(seen, Facts("/background/broken", 200))
    assert by_labels(seen, "background_tasks_total", "endpoint", "outcome") == {("/background/broken", "error"): 1}


@pytest.mark.parametrize(("status", "handled"), [(500, 500), (418, 418), (200, 200)])
async def test_a_handler_of_every_exception(observed: Callable[..., Seen], status: int, handled: int) -> None:
    """`@exception_handler(Exception)` may respond as it likes: the status is what it sent, the request failed."""
    app = FastAPI()

    @app.exception_handler(Exception)
    async def answer_all(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse("sorry", status)

    @app.get("/broken")
    async def broken() -> None:
        raise BrokenError

    seen = observed(app)
    answer = await ask(app, "/broken")
    assert isinstance(answer.raised, BrokenError)
    assert answer.status == handled
    (line,) = assert_agreement(seen, Facts("/broken", handled, "server_error", BROKEN))
    assert line["exception"]["type"] == BROKEN
    assert answer.headers["x-request-id"] == line["request_id"]


async def test_middleware_that_handles_an_exception(observed: Callable[..., Seen]) -> None:
    """A middleware that turns an exception into a response decides the outcome."""
    app = FastAPI()

    @app.middleware("http")
    async def forgive(request: Request, call_next: Any) -> Any:
        try:
            return await call_next(request)
        except BrokenError:
            return PlainTextResponse("forgiven", int(request.query_params["status"]))

    @app.get("/broken")
    async def broken() -> None:
        raise BrokenError

    seen = observed(app)
    for status in (200, 409, 503):
        answer = await ask(app, f"/broken?status={status}")
        assert answer.raised is None
    assert_agreement(
        seen,
        Facts("/broken", 200),
        Facts("/broken", 409, "client_error"),
        Facts("/broken", 503, "server_error", BROKEN),
    )


async def test_middleware_that_fails_after_the_answer(observed: Callable[..., Seen]) -> None:
    """An error after the last message does not change the outcome of the request."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("ok"))])

    def failing(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await app(scope, receive, send)
            raise BrokenError

        return middleware

    app.add_middleware(failing)
    seen = observed(app)
    assert isinstance((await ask(app, "/")).raised, BrokenError)
    assert_agreement(seen, Facts("/", 200))


async def test_dependencies_that_fail_when_they_are_left(observed: Callable[..., Seen]) -> None:
    """A dependency with `yield` that fails after the response: the request is what was sent before it."""
    app = FastAPI()

    async def leaving() -> AsyncIterator[None]:
        yield
        raise BrokenError

    app.get("/left", dependencies=[Depends(leaving)])(lambda: "ok")
    seen = observed(app)
    answer = await ask(app, "/left")
    assert isinstance(answer.raised, BrokenError)
    # FastAPI from 0.106 to 0.117 leaves dependencies before it sends the response.
    assert answer.status in {200, 500}
    assert_agreement(seen, Facts("/left", 200) if answer.status == 200 else Facts("/left", 500, "server_error", BROKEN))


async def test_compressed_sizes(observed: Callable[..., Seen]) -> None:
    """Sizes are those of the transferred bytes."""
    app = FastAPI()
    app.add_middleware(GZipMiddleware, minimum_size=10)
    app.get("/much")(lambda: "x" * 10_000)
    seen = observed(app)
    answer = await ask(app, "/much", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    (line,) = assert_agreement(seen, Facts("/much", 200))
    assert line["fields"]["response_size"] == len(answer.body) < 1000


async def test_files_that_the_server_sends(observed: Callable[..., Seen]) -> None:
    """A file that the server sends by itself (ASGI extension pathsend) counts with its length, once."""
    app = FastAPI()
    app.get("/file")(lambda: FileResponse(__file__))
    seen = observed(app)
    answer = await ask(app, "/file", extensions={"http.response.pathsend": {}})
    if answer.messages[1]["type"] == "http.response.body":
        pytest.skip("this Starlette does not know the extension")
    assert [message["type"] for message in answer.messages] == ["http.response.start", "http.response.pathsend"]
    (line,) = assert_agreement(seen, Facts("/file", 200))
    assert line["fields"]["response_size"] == Path(__file__).stat().st_size  # noqa: ASYNC240 - a test


async def test_trailers_end_the_request(observed: Callable[..., Seen]) -> None:
    """With trailers announced, the request ends with the last of them."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"abc"})
        await send({"type": "http.response.trailers", "headers": [], "more_trailers": True})
        assert seen.server_spans == []
        await send({"type": "http.response.trailers", "headers": []})
        assert len(seen.server_spans) == 1

    app = Starlette()
    app.router.routes.append(Mount("/raw", app=answer))
    seen = observed(app)
    assert (await ask(app, "/raw/x")).raised is None
    assert_agreement(seen, Facts("/raw/{path}", 200))


@pytest.mark.parametrize("messages", [0, 1, 2])
async def test_responses_that_do_not_end(observed: Callable[..., Seen], messages: int) -> None:
    """An app that returns before its response is complete: 500 if nothing was sent, and incomplete in any case."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        legal = (
            {"type": "http.response.start", "status": 200, "headers": []},
            {"type": "http.response.body", "body": b"abc", "more_body": True},
        )
        for message in legal[:messages]:
            await send(message)

    app = Starlette()
    app.router.routes.append(Mount("/raw", app=answer))
    seen = observed(app)
    await ask(app, "/raw/x")
    status = 200 if messages else 500
    assert_agreement(seen, Facts("/raw/{path}", status, "incomplete_response", "incomplete_response"))


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("server", ["", "/api"])
@pytest.mark.parametrize("own", ["", "/api"])
async def test_root_path(observed: Callable[..., Seen], server: str, own: str) -> None:
    """The root path of the app or the server does not change the route template."""
    app = FastAPI(root_path=own)
    sub = FastAPI()
    app.mount("/sub", sub)
    for each in (app, sub):
        each.get("/items/{item_id}")(lambda item_id: item_id)
    seen = observed(app)
    # Starlette finds what is mounted under the full path only, once the app has a root path of its own.
    for path in (f"{server}/items/1", f"{server or own}/sub/items/2"):
        assert (await ask(app, path, root_path=server)).status == 200
    assert_agreement(seen, Facts("/items/{item_id}", 200), Facts("/sub/items/{item_id}", 200))


async def test_contextvars_through_base_middleware(observed: Callable[..., Seen]) -> None:
    """Around an endpoint in a thread below `BaseHTTPMiddleware` the current span is the server span."""
    app = FastAPI()
    app.add_middleware(BaseMiddleware)
    app.get("/sync")(lambda: format(trace.get_current_span().get_span_context().span_id, "016x"))
    seen = observed(app)
    answer = await ask(app, "/sync")
    (line,) = assert_agreement(seen, Facts("/sync", 200))
    assert json.loads(answer.body) == line["span_id"]


async def test_base_middleware_that_fails(observed: Callable[..., Seen]) -> None:
    """An exception in `BaseHTTPMiddleware`, before and after the endpoint, is a 500 of its type."""
    app = FastAPI()
    app.get("/sync")(lambda: "ok")

    @app.middleware("http")
    async def fail(request: Request, call_next: Any) -> Any:
        if request.url.query == "after":
            await call_next(request)
        raise BrokenError

    seen = observed(app)
    await ask(app, "/sync?before")
    await ask(app, "/sync?after")
    assert_agreement(seen, Facts("unmatched", 500, "server_error", BROKEN), Facts("/sync", 500, "server_error", BROKEN))

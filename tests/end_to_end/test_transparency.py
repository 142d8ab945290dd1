"""With and without install: the same messages, the same order, the same headers but ours, the same exceptions."""

from __future__ import annotations

import asyncio
import copy
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from comparison import OURS, Answer, Server, ask, bare, http_scope, websocket_scope
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from tools import volume

from fastapi_observe.middleware import ObserveMiddleware
from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from conftest import Seen
    from fastapi.routing import APIRoute

ADDED_TO_SCOPE = {
    "fastapi_observe.observability",
    "fastapi_observe.record",
    "fastapi.telemetry",
    "starlette.opentelemetry",
}

backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# Any sequence of messages

EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("wrong", 7),
    "http": lambda: HTTPException(418, "teapot", {"x-tea": "green"}),
    "base": lambda: BaseException("base"),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": lambda: asyncio.CancelledError("stop"),
    "disconnect": ClientDisconnect,
    "os": lambda: OSError(104, "reset"),
    "stop": lambda: StopIteration(5),
    "generator": GeneratorExit,
    "group": lambda: ExceptionGroup("many", [ValueError("a"), KeyError("b")]),
    "base group": lambda: BaseExceptionGroup("many", [SystemExit(1), ValueError("a")]),
}

TYPES = (
    "http.response.start",
    "http.response.body",
    "http.response.trailers",
    "http.response.pathsend",
    "http.response.zerocopysend",
    "http.response.debug",
    "http.response.early_hint",
    "http.response.push",
    "websocket.accept",
    "websocket.send",
    "websocket.close",
    "websocket.http.response.start",
    "websocket.http.response.body",
    "lifespan.startup.complete",
    "nonsense",
)

odd_values: st.SearchStrategy[Any] = st.sampled_from(
    [None, "text", 7, -1, 3.5, b"bytes", [], {}, ("a",), [1, 2], object]
)
header_pairs = st.sampled_from(
    [
        (b"content-type", b"text/plain"),
        (b"Content-Length", b"12"),
        [b"content-length", b"99999999999999999999999999"],
        (b"x-\xff", b"\x00\xfe"),
        (b"content-type", b"text/event-stream"),
    ]
)
odd_pairs = st.sampled_from([("content-length", "3"), (b"alone",), (1, 2), None, (bytearray(b"a"), b"b"), ()])
headers = st.one_of(
    st.lists(header_pairs, max_size=4),
    st.lists(header_pairs, max_size=4).map(tuple),
    st.lists(header_pairs, max_size=3).map(lambda pairs: ("iterator", pairs)),
    st.lists(st.one_of(header_pairs, odd_pairs), min_size=1, max_size=3),
    odd_values,
)
statuses = st.one_of(st.sampled_from([200, 204, 304, 404, 500, 503, "200", 0, -5, 10**30, True]), odd_values)
bodies = st.one_of(st.binary(max_size=8), st.just(bytearray(b"ab")), st.just(memoryview(b"abc")), odd_values)
flags = st.one_of(st.booleans(), odd_values)

legal_messages = st.one_of(
    st.fixed_dictionaries(
        {
            "type": st.just("http.response.start"),
            "status": st.sampled_from([200, 404, 500]),
            "headers": st.lists(header_pairs, max_size=3),
        }
    ),
    st.fixed_dictionaries(
        {
            "type": st.just("http.response.body"),
            "body": st.binary(max_size=8),
            "more_body": st.booleans(),
        }
    ),
)
any_messages = st.one_of(
    legal_messages,
    st.fixed_dictionaries(
        {"type": st.sampled_from(TYPES)},
        optional={
            "status": statuses,
            "headers": headers,
            "trailers": flags,
            "body": bodies,
            "more_body": flags,
            "more_trailers": flags,
            "path": odd_values,
            "count": odd_values,
            "code": odd_values,
            "text": odd_values,
            "bytes": bodies,
            "info": odd_values,
        },
    ),
    st.fixed_dictionaries({}, optional={"type": odd_values, "status": statuses}),
    odd_values,
)
steps = st.one_of(
    st.tuples(st.just("send"), any_messages),
    st.tuples(st.just("send"), legal_messages),
    st.tuples(st.just("receive"), st.none()),
    st.tuples(st.just("raise"), st.sampled_from(sorted(EXCEPTIONS))),
)
incoming = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("http.request")}, optional={"body": bodies, "more_body": flags}),
        st.fixed_dictionaries({"type": st.sampled_from(["http.disconnect", "websocket.connect"])}),
        st.fixed_dictionaries({"type": st.just("websocket.receive")}, optional={"text": odd_values, "bytes": bodies}),
        st.fixed_dictionaries({"type": st.just("websocket.disconnect")}, optional={"code": odd_values}),
        odd_values,
    ),
    max_size=4,
)
odd_scopes = st.fixed_dictionaries(
    {},
    optional={
        "headers": st.one_of(st.none(), st.lists(header_pairs, max_size=3), st.just([(b"traceparent", b"\xff")])),
        "client": st.sampled_from([None, ("1.2.3.4", 0), ("\ud800", 5)]),
        "server": st.sampled_from([None, ("/run/app.sock", None)]),
        "http_version": st.sampled_from(["3", "", "9.9", "x"]),
        "scheme": st.sampled_from(["", "h2c", "\ud800"]),
        "query_string": st.binary(max_size=8),
    },
)
missing = st.sets(st.sampled_from(["headers", "client", "server", "http_version", "scheme", "query_string"]))

COMPLETE: list[tuple[str, Any]] = [
    ("send", {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}),
    ("send", {"type": "http.response.body", "body": b"all"}),
]
"""A response that has ended: what follows comes too late."""


class Script(NamedTuple):
    """What an app does, what its client sends, and where its server fails."""

    where: str
    steps: list[tuple[str, Any]]
    swallows: bool
    incoming: list[Any]
    fail_at: int | None
    failure: str
    scope: dict[str, Any]
    missing: set[str]


scripts = st.builds(
    Script,
    st.sampled_from(["/route", "/mount/deep", "/middleware", "/ws", "/raw", "/nowhere"]),
    st.one_of(st.lists(steps, max_size=7), st.lists(steps, max_size=4).map(lambda more: [*COMPLETE, *more])),
    st.booleans(),
    incoming,
    st.one_of(st.none(), st.integers(0, 4)),
    st.sampled_from(sorted(EXCEPTIONS)),
    odd_scopes,
    missing,
)


def made(message: Any) -> Any:
    """Return a message to send: a fresh copy, with a real iterator where one is asked for."""
    if isinstance(message, dict) and isinstance(message.get("headers"), tuple):
        given_headers = message["headers"]
        if len(given_headers) == 2 and given_headers[0] == "iterator":
            return {**message, "headers": iter(given_headers[1])}
    return copied(message)


def copied(value: Any) -> Any:
    """Return a deep copy; a memoryview has none, and needs none."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [copied(each) for each in value]
    return value if isinstance(value, memoryview) else copy.deepcopy(value)


class Player:
    """An ASGI app that does what the script in its scope says, and notes what it receives."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Play the script."""
        script: Script = scope["script"]
        noted: list[Any] = scope["noted"]
        for kind, value in script.steps:
            try:
                if kind == "receive":
                    noted.append(await receive())
                elif kind == "raise":
                    _raise(EXCEPTIONS[value](), noted)
                else:
                    await self._send(value, send)
            except BaseException as exc:
                if kind == "raise" or not script.swallows:
                    raise
                noted.append(exc)

    async def _send(self, value: Any, send: Any) -> None:
        message = made(value)
        before = copied(value)
        try:
            await send(message)
        finally:
            if not (isinstance(message, dict) and hasattr(message.get("headers"), "__next__")):
                assert message == before, "the message of the app was changed"


def _raise(exc: BaseException, noted: list[Any]) -> None:
    noted.append(exc)
    raise exc


class PlayingMiddleware:
    """Plays the script itself on one path, instead of the app inside."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Play, or pass on."""
        await (Player() if scope.get("path") == "/middleware" else self._app)(scope, receive, send)


def playing_app() -> Starlette:
    """Make an app that plays scripts in every place where an ASGI app can be."""
    return Starlette(
        routes=[
            Route("/route", Player()),
            Mount("/mount", routes=[Mount("/deep", Player())]),
            WebSocketRoute("/ws", Player()),
        ],
        middleware=[Middleware(PlayingMiddleware)],
    )


def play(app: Any, script: Script, backend: str) -> Answer:
    """Play a script once, on a fresh event loop."""
    kind = websocket_scope if script.where == "/ws" else http_scope
    noted: list[Any] = []
    scope = kind(script.where, **copied(script.scope), script=script, noted=noted)
    for name in script.missing:
        scope.pop(name, None)
    server = Server(copied(script.incoming), script.fail_at, EXCEPTIONS[script.failure]())
    return anyio.run(ask, app, scope, server, noted, backend=backend)


@backends
def test_any_sequence_of_messages_passes_as_without_install(observed: Callable[..., Seen], backend: str) -> None:
    """Legal or not: what an app sends, receives and raises is the same, and no message object is changed."""
    without, app = playing_app(), playing_app()
    observe = observed(app, log_level="fatal").observe
    raw = ObserveMiddleware(Player(), observe)

    @settings(max_examples=volume(250), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(scripts)
    def check(script: Script) -> None:
        alone, ours = (Player(), raw) if script.where == "/raw" else (without, app)
        assert play(ours, script, backend) == play(alone, script, backend)

    check()


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"a", b"1"), (b"b", b"2")],
        [(b"a", b"1"), None],
        [(b"content-length", "12"), ("x", 3)],
        [(b"content-type", b"x"), (bytearray(b"odd"), b"2")],
    ],
)
def test_headers_that_are_an_iterator_reach_the_server(observed: Callable[..., Seen], pairs: list[Any]) -> None:
    """Headers may be any iterable: one that ends is not used up by us, even if it cannot be understood."""

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": iter(pairs)})
        await send({"type": "http.response.body"})

    door = ObserveMiddleware(endpoint, observed(Starlette()).observe)
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append([pair for pair in message.get("headers", ()) if pair is None or pair[0] not in OURS])

    asyncio.run(door(http_scope(), Server([]).receive, send))
    assert got[0] == pairs


def test_request_headers_that_are_an_iterator_reach_the_app(observed: Callable[..., Seen]) -> None:
    """The scope's headers may be any iterable: the app reads all of them after us."""

    async def endpoint(request: Request) -> Response:
        return JSONResponse(dict(request.headers))

    app = Starlette(routes=[Route("/", endpoint)])
    seen = observed(app)
    scope = http_scope(headers=iter([(b"x-tenant", b"a"), (b"user-agent", b"me")]))
    answer = asyncio.run(ask(app, scope, Server([]), []))
    assert answer.messages[1]["body"] == b'{"x-tenant":"a","user-agent":"me"}'
    assert seen.request_lines[0]["fields"]["user_agent"] == "me"


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "path", ["", "*", "no-slash", pytest.param("/" * 5000, id="long"), "/\ud800", "/%", "//metrics", "/metrics/"]
)
@pytest.mark.parametrize("root_path", ["", "/root", "/metrics"])
def test_odd_paths_are_served_as_without_install(
    observed: Callable[..., Seen], kind: str, path: str, root_path: str
) -> None:
    """A path of any form gets the same response."""

    def answer(app: Any) -> Answer:
        make = http_scope if kind == "http" else websocket_scope
        scope = make(path, root_path=root_path)
        return asyncio.run(ask(app, scope, Server([]), []))

    app = rich_app()
    observed(app)
    assert answer(app) == answer(bare(rich_app()))


@pytest.mark.parametrize("make", [http_scope, websocket_scope])
def test_a_scope_without_a_path_fails_as_without_install(
    observed: Callable[..., Seen], make: Callable[..., dict[str, Any]]
) -> None:
    """The app fails because of the missing path, not the middleware."""

    def answer(app: Any) -> Answer:
        scope = make()
        del scope["path"], scope["raw_path"]
        return asyncio.run(ask(app, scope, Server([]), []))

    app = playing_app()
    observed(app)
    alone = answer(playing_app())
    assert alone.raised[0] is KeyError
    assert answer(app) == alone


def test_the_scope_gains_our_keys_only(observed: Callable[..., Seen]) -> None:
    """The scope of the app has four more keys than without install."""
    scopes: list[dict[str, Any]] = []

    def make() -> Starlette:
        async def endpoint(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(dict(scope))
            await PlainTextResponse("ok")(scope, receive, send)

        return Starlette(routes=[Mount("/", endpoint)])

    app = make()
    observed(app)
    for each in (app, make()):
        asyncio.run(ask(each, http_scope(), Server([]), []))
    ours, alone = scopes
    assert ours.keys() - alone.keys() <= ADDED_TO_SCOPE
    same = alone.keys() - {"app", "endpoint", "route", "router", "starlette.exception_handlers"}
    assert {name: ours[name] for name in same} == {name: alone[name] for name in same}


# Whole apps


class Tagging(BaseHTTPMiddleware):
    """A middleware of the kind that copies the response."""

    async def dispatch(self, request: Request, call_next: Any) -> Response:
        """Add a header."""
        response: Response = await call_next(request)
        response.headers["x-tag"] = "tagged"
        return response


async def tenant(request: Request) -> AsyncIterator[str]:
    """Return the client."""
    yield request.headers.get("x-tenant", "none")


def user(name: Annotated[str, Depends(tenant)]) -> str:
    """Return the client, once more."""
    return f"user of {name}"


@asynccontextmanager
async def with_state(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Give the requests a state."""
    yield {"pool": "ready"}


def rich_app(file: Path | None = None) -> FastAPI:
    """Make an app with one path for each way to respond."""
    app = FastAPI(lifespan=with_state)
    app.add_middleware(Tagging)
    app.add_middleware(GZipMiddleware, minimum_size=200)
    app.state.shared = JSONResponse({"shared": True}, headers={"x-own": "1"})
    add_plain(app, file)
    add_streams(app)
    add_failures(app)
    add_connections(app)
    app.mount("/sub", Starlette(routes=[Route("/inner", lambda _: PlainTextResponse("inner"))]))
    return app


def add_plain(app: FastAPI, file: Path | None) -> None:
    """Add what responds in one piece."""

    @app.get("/dependencies")
    def dependencies(who: Annotated[str, Depends(user)]) -> dict[str, str]:
        return {"who": who}

    @app.get("/large")
    async def large() -> dict[str, str]:
        return {"text": "x" * 5000}

    @app.get("/shared")
    async def return_shared() -> Response:
        shared: Response = app.state.shared
        return shared

    @app.get("/items/{item_id}")
    async def item(item_id: int, q: int = 0) -> dict[str, int]:
        return {"item": item_id, "q": q}

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body(), 201)

    @app.get("/file")
    async def send_file() -> FileResponse:
        assert file is not None
        return FileResponse(file)

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        tasks.add_task(len, "task")
        return "queued"


def add_streams(app: FastAPI) -> None:
    """Add what responds in pieces."""

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for part in (b"a", b"", b"b" * 300):
                yield part

        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.get("/broken-stream")
    async def broken_stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"a" * 400
            raise LookupError("mid-stream")

        return StreamingResponse(parts())


def add_failures(app: FastAPI) -> None:
    """Add what fails."""

    @app.get("/background-error")
    async def background_error(tasks: BackgroundTasks) -> str:
        tasks.add_task({"present": 1}.__getitem__, "absent")
        return "queued"

    @app.get("/error")
    async def error() -> None:
        raise ZeroDivisionError("by zero")

    @app.get("/refused")
    async def refused() -> None:
        raise HTTPException(403, "no", {"x-why": "because"})


def add_connections(app: FastAPI) -> None:
    """Add WebSockets."""

    @app.websocket("/ws")
    async def websocket(ws: WebSocket) -> None:
        await ws.accept(headers=[(b"x-ws", b"1")])
        await ws.send_text(await ws.receive_text())
        await ws.close(4001)

    @app.websocket("/ws/error")
    async def websocket_error(ws: WebSocket) -> None:
        await ws.accept()
        raise ZeroDivisionError("in a connection")

    @app.websocket("/ws/denied")
    async def websocket_denied(ws: WebSocket) -> None:
        await ws.send_denial_response(PlainTextResponse("no", 401))


def requests() -> list[tuple[dict[str, Any], list[Any]]]:
    """Return a request for every way to respond, with what its client sends."""
    gets = (
        *("/dependencies", "/large", "/stream", "/broken-stream", "/background", "/background-error", "/error"),
        *("/refused", "/shared", "/shared", "/items/7", "/items/x?q=y", "/items/7/", "/nowhere", "/file", "/docs"),
        *("/openapi.json", "/sub/inner", "/sub/none", "/sub"),
    )
    body = {"type": "http.request", "body": b"", "more_body": False}
    gzip = [(b"host", b"shop.example"), (b"accept-encoding", b"gzip"), (b"x-tenant", b"a")]
    asked: list[tuple[dict[str, Any], list[Any]]] = []
    for path in gets:
        plain, _, query = path.partition("?")
        asked += [(http_scope(plain, query_string=query.encode(), headers=gzip), [body])]
    asked += [(http_scope(path, "HEAD"), [body]) for path in ("/large", "/items/7")]
    asked += [(http_scope("/items/7", method), [body]) for method in ("POST", "OPTIONS", "BREW", "get")]
    chunks = [{"type": "http.request", "body": b"ab", "more_body": True}, {"type": "http.request", "body": b"cd"}]
    asked += [(http_scope("/echo", "POST"), chunks), (http_scope("/echo", "POST"), [{"type": "http.disconnect"}])]
    connect, text = {"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}
    denial: dict[str, Any] = {"extensions": {"websocket.http.response": {}}}
    for path in ("/ws", "/ws/error", "/ws/denied", "/ws/none"):
        asked.append((websocket_scope(path, **denial), [connect, text, {"type": "websocket.disconnect", "code": 1001}]))
    return asked


@backends
def test_an_app_answers_as_without_install(observed: Callable[..., Seen], backend: str, tmp_path: Path) -> None:
    """Dependencies, middleware, streams, files, errors, mounts, connections: message by message the same."""
    file = tmp_path / "file.txt"
    file.write_text("content")
    app, without = rich_app(file), bare(rich_app(file))
    observed(app, log_level="fatal")
    for (scope, messages), (same_scope, same_messages) in zip(requests(), requests(), strict=True):
        ours = anyio.run(ask, app, scope, Server(messages, leaves=False), [], backend=backend)
        alone = anyio.run(ask, without, same_scope, Server(same_messages, leaves=False), [], backend=backend)
        assert ours == alone, scope["path"]


@backends
def test_the_lifespan_is_that_of_the_app(observed: Callable[..., Seen], backend: str) -> None:
    """Start, state and end pass through; so does a failing start."""

    def failing() -> FastAPI:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            if not app.routes:
                yield
            raise RuntimeError("no database")

        return FastAPI(lifespan=lifespan)

    for make in (rich_app, failing):
        app = make()
        observed(app)
        answers = []
        for each in (app, bare(make())):
            scope: dict[str, Any] = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
            events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
            answer = anyio.run(ask, each, scope, Server(events), [], backend=backend)
            sent = [{**message, "message": ""} for message in answer.messages]  # a traceback has our frames in it
            answers.append((sent, answer.raised, scope["state"]))
        assert answers[0] == answers[1]


def test_a_shared_response_object_collects_no_headers(observed: Callable[..., Seen]) -> None:
    """An app may return one Response object for every request: our headers do not stay on it."""
    app = FastAPI()
    response = app.state.shared = JSONResponse({"shared": True}, headers={"x-own": "1"})
    add_plain(app, None)
    observed(app)
    before = list(response.raw_headers)
    ids: list[bytes] = []

    async def send(message: Any) -> None:
        ids.extend(value for name, value in message.get("headers", ()) if name == b"x-request-id")

    for _ in range(3):
        asyncio.run(app(http_scope("/shared"), Server([{"type": "http.request"}]).receive, send))
    assert response.raw_headers == before
    assert len(set(ids)) == len(ids) == 3


def test_install_leaves_routes_and_openapi_alone(observed: Callable[..., Seen]) -> None:
    """No route is added: a `generate_unique_id_function` that reads `route.tags[0]` works, OpenAPI is the same."""

    def unique_id(route: APIRoute) -> str:
        return f"{route.tags[0]}-{route.name}"

    def make() -> FastAPI:
        app = FastAPI(generate_unique_id_function=unique_id)

        @app.get("/orders", tags=["orders"])
        async def orders() -> list[int]:
            return []

        return app

    app, without = make(), make()
    before = list(app.routes)
    observed(app)
    asyncio.run(ask(app, http_scope("/orders"), Server([]), []))
    assert app.routes == before
    assert app.openapi() == without.openapi()
    assert app.user_middleware == without.user_middleware
    assert app.exception_handlers.keys() == without.exception_handlers.keys()


def test_an_app_mounted_in_itself_still_answers(observed: Callable[..., Seen]) -> None:
    """Circular mounts are walked once."""
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("ok"))])
    app.mount("/again", app)
    observed(app)
    answer = asyncio.run(ask(app, http_scope("/again/again/"), Server([]), []))
    assert answer.messages[0]["status"] == 200


def test_an_exception_gains_two_attributes_only(observed: Callable[..., Seen]) -> None:
    """The same exception object reaches the server, with two more attributes."""
    error = ValueError("mine")

    async def endpoint(request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", endpoint)])
    seen = observed(app)
    with pytest.raises(ValueError, match="mine") as caught:
        asyncio.run(app(http_scope(), Server([]).receive, Server([]).send))
    assert caught.value is error
    assert vars(error).keys() == {EXCEPTION_IDS_ATTRIBUTE}
    line = seen.request_lines[0]
    assert getattr(error, EXCEPTION_IDS_ATTRIBUTE) == (line["trace_id"], line["span_id"], line["request_id"])
    assert error.__cause__ is None

"""Hostile clients, exceptions and log values: responses as without install, one valid line, no new series."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import threading
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from comparison import Answer, Server, ask, bare, http_scope, websocket_scope
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse

from fastapi_observe import LogDep  # noqa: TC001 - FastAPI reads the annotations
from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen

LONGEST_LINE = 16_384
HUGE = 64 * 1024
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01".encode()


def assert_agreed(seen: Seen, count: int = 1) -> None:
    """Each request has one span, one count and one line, and no internal error occurred."""
    assert seen.observe.internal_errors.counts == {}
    assert len(seen.server_spans) == count
    assert len(seen.request_lines) == count
    assert seen.total("http_requests_total") == count
    assert seen.sample("http_requests_in_progress") == 0


# What handlers raise


class WithSlots(Exception):  # noqa: N818 - named after what is odd
    """An exception without settable attributes."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in {"__cause__", "__context__", "__traceback__"}:
            raise AttributeError(f"{name} is not mine")
        super().__setattr__(name, value)


class Mute(Exception):  # noqa: N818
    """An exception whose `str` raises."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Wordless(Exception):  # noqa: N818
    """An exception whose `str` does not return a string."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307 - that is what is odd


class Homeless(Exception):  # noqa: N818
    """An exception without a module."""

    __module__ = None  # type: ignore[assignment]


class Anonymous(type):
    """A metaclass that hides the module."""

    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no module")


class Hidden(Exception, metaclass=Anonymous):  # noqa: N818
    """An exception without a name."""


class Falsy(Exception):  # noqa: N818
    """An exception that is false and equals nothing."""

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        raise TypeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


def circular() -> Exception:
    """Return two exceptions that are each other's cause."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def deep_group() -> Exception:
    """Return a deeply nested exception group."""
    group: Exception = ValueError("innermost")
    for depth in range(200):
        group = ExceptionGroup(f"level {depth}", [group])
    return group


def wide_group() -> BaseException:
    """Return a large exception group."""
    return BaseExceptionGroup("wide", [SystemExit(code) for code in range(2000)])


def noted() -> Exception:
    """Return an exception with invalid notes."""
    error = ValueError("noted")
    error.__notes__ = [object(), 7]  # type: ignore[list-item]
    return error


RAISED: dict[str, Callable[[], BaseException]] = {
    "base": lambda: BaseException("base"),
    "exit": lambda: SystemExit(1),
    "interrupt": KeyboardInterrupt,
    "slots": WithSlots,
    "mute": Mute,
    "wordless": Wordless,
    "homeless": Homeless,
    "hidden": Hidden,
    "falsy": Falsy,
    "huge": lambda: ValueError("x" * 5_000_000),
    "surrogates": lambda: ValueError("\ud800 \x00 \x1b[2J {} {0} {missing} %s"),
    "bytes": lambda: ValueError(b"\xff\xfe"),
    "circular": circular,
    "deep group": deep_group,
    "wide group": wide_group,
    "noted": noted,
    "recursion": lambda: RecursionError("deep"),
    "memory": MemoryError,
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "named tuple": lambda: OSError(2, "No such file", "/etc/none"),
}


def raising_app(make: Callable[[], BaseException]) -> FastAPI:
    """Return an app that raises in an endpoint and in a WebSocket."""
    app = FastAPI()

    @app.get("/")
    async def endpoint() -> None:
        raise make()

    @app.websocket("/ws")
    async def connection(ws: WebSocket) -> None:
        await ws.accept()
        raise make()

    return app


def without_args(answer: Answer) -> Any:
    """Return a response without the reprs of nested exceptions, which differ from object to object."""
    return answer.messages, answer.raised[0]


@pytest.mark.parametrize("name", sorted(RAISED))
def test_any_exception_of_a_handler_propagates_unchanged(observed: Callable[..., Seen], name: str) -> None:
    """Messages and exception equal the bare app's; there is one line, within its length."""
    app, alone_app = raising_app(RAISED[name]), bare(raising_app(RAISED[name]))
    seen = observed(app)
    for make in (http_scope, websocket_scope):
        connect = [{"type": "websocket.connect"}]
        ours = asyncio.run(ask(app, make(), Server(connect), []))
        alone = asyncio.run(ask(alone_app, make(), Server(connect), []))
        assert without_args(ours) == without_args(alone)
    assert seen.observe.internal_errors.counts == {}
    assert len(seen.server_spans) == len(seen.request_lines) == 2
    assert seen.total("http_requests_total") == 1
    assert seen.sample("http_requests_in_progress") == 0
    for line in seen.request_lines:
        assert line["fields"]["outcome"] == "server_error"
        assert len(json.dumps(line)) <= LONGEST_LINE
        assert isinstance(line["exception"]["message"], str)


@pytest.mark.parametrize("name", sorted(RAISED))
def test_any_exception_of_an_operation_propagates_unchanged(observed: Callable[..., Seen], name: str) -> None:
    """The same exception object leaves a query, a call and a span."""
    app = FastAPI()
    seen = observed(app)
    observe = seen.observe
    for scope in (
        observe.db.query("SELECT", table="orders"),
        observe.external.call("billing", "get"),
        observe.tracing.span("step"),
    ):
        error = RAISED[name]()
        with pytest.raises(BaseException) as caught, scope:  # noqa: PT011 - any exception there is
            raise error
        assert caught.value is error
    assert observe.internal_errors.counts == {}
    assert len(seen.spans) == 3
    assert seen.total("db_query_errors_total") == 1


def test_an_exception_without_attributes_is_not_changed(observed: Callable[..., Seen]) -> None:
    """The ids are left out if they cannot be set."""
    error = WithSlots()
    app = raising_app(lambda: error)
    observed(app)
    with pytest.raises(WithSlots) as caught:
        asyncio.run(app(http_scope(), Server([]).receive, Server([]).send))
    assert caught.value is error
    assert not hasattr(error, EXCEPTION_IDS_ATTRIBUTE)


# What clients send


def echoing_app() -> FastAPI:
    """Return an app that reads the request."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: str, request: Request, q: str = "") -> dict[str, Any]:
        return {"item": item_id, "q": q, "agent": request.headers.get("user-agent")}

    @app.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    @app.websocket("/ws")
    async def connection(ws: WebSocket) -> None:
        await ws.accept()
        await ws.close()

    return app


ODD_HEADERS: dict[str, list[tuple[bytes, bytes]]] = {
    "bytes": [(bytes([each]), bytes([each])) for each in range(256)],
    "user agent": [(b"user-agent", bytes(range(256)))],
    "long agent": [(b"user-agent", b"x" * HUGE)],
    "long name": [(b"x" * HUGE, b"1")],
    "many": [(b"x-%d" % each, b"1") for each in range(5000)],
    "host": [(b"host", b"user:pass@[::1]:99999/../?x#\xff")],
    "long host": [(b"host", b"a" * HUGE)],
    "empty host": [(b"host", b"")],
    "host port": [(b"host", b"shop.example:99999999999999999999")],
    "two hosts": [(b"host", b"a"), (b"host", b"b")],
    "length": [(b"content-length", b"99999999999999999999999999")],
    "negative length": [(b"content-length", b"-1")],
    "length text": [(b"content-length", b"\xff")],
    "request id": [(b"x-request-id", b"a\r\nset-cookie: x=1")],
    "long request id": [(b"x-request-id", b"a" * HUGE)],
    "request id bytes": [(b"x-request-id", b"\xff\x00\xfe" * 5)],
    "empty request id": [(b"x-request-id", b"")],
    "accept": [(b"accept", b"\xff;q=x,,;;="), (b"accept-encoding", b"gzip;q=\xff")],
    "forwarded": [(b"x-forwarded-for", b"\xff" * 1000), (b"forwarded", b"for=\xff")],
}

ODD_TRACES: dict[str, list[tuple[bytes, bytes]]] = {
    "empty": [(b"traceparent", b"")],
    "short": [(b"traceparent", PARENT[:-1])],
    "shorter": [(b"traceparent", b"00-1-1-1")],
    "long": [(b"traceparent", PARENT + b"-extra")],
    "uppercase": [(b"traceparent", PARENT.upper())],
    "zero trace": [(b"traceparent", b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01")],
    "zero span": [(b"traceparent", f"00-{TRACE}-0000000000000000-01".encode())],
    "version ff": [(b"traceparent", b"ff" + PARENT[2:])],
    "no hex": [(b"traceparent", PARENT.replace(b"4bf", b"xyz"))],
    "spaces": [(b"traceparent", PARENT.replace(b"-", b" "))],
    "bytes": [(b"traceparent", b"\xff" * 55)],
    "digits of others": [(b"traceparent", PARENT.replace(b"4", b"\xb2"))],
    "huge": [(b"traceparent", PARENT * (HUGE // len(PARENT)))],
    "dashes": [(b"traceparent", b"-" * HUGE)],
    "twice": [(b"traceparent", PARENT), (b"traceparent", PARENT)],
    "two": [(b"traceparent", PARENT), (b"traceparent", PARENT[:-2] + b"00")],
    "joined": [(b"traceparent", PARENT + b"," + PARENT)],
    "flags": [(b"traceparent", PARENT[:-2] + b"xx")],
    "flags sign": [(b"traceparent", PARENT[:-2] + b"+1")],
    "state alone": [(b"tracestate", b"a=1"), (b"baggage", b"b=2")],
}

BOMBS: dict[str, list[tuple[bytes, bytes]]] = {
    "tracestate": [(b"tracestate", b"a=1," * (HUGE // 4))],
    "tracestate commas": [(b"tracestate", b"," * HUGE)],
    "tracestate spaces": [(b"tracestate", b" " * HUGE + b"\xff")],
    "tracestate keys": [(b"tracestate", b",".join(b"k%d=v" % each for each in range(5000)))],
    "tracestate long": [(b"tracestate", b"k=" + b"v" * HUGE)],
    "tracestates": [(b"tracestate", b"a%d=1" % each) for each in range(3000)],
    "baggage": [(b"baggage", b",".join(b"k%d=v" % each for each in range(8000)))],
    "baggage percent": [(b"baggage", b"k=%FF%00%0A%ED%A0%80,%=%,=,;;;,k;p=1;=")],
    "baggage bytes": [(b"baggage", b"\xff\xfe=\x00")],
    "baggage long": [(b"baggage", b"k=" + b"v" * HUGE)],
    "baggages": [(b"baggage", b"a%d=1" % each) for each in range(3000)],
}


def both(observed: Callable[..., Seen], scopes: Callable[[], list[dict[str, Any]]]) -> Seen:
    """Serve requests with and without install; the responses are the same, and the three signals agree."""
    app, alone_app = echoing_app(), bare(echoing_app())
    seen = observed(app)
    for ours, alone in zip(scopes(), scopes(), strict=True):
        body = [{"type": "http.request", "body": b"x" * 10, "more_body": False}]
        assert asyncio.run(ask(app, ours, Server(body), [])) == asyncio.run(ask(alone_app, alone, Server(body), []))
    assert_agreed(seen, len(scopes()))
    return seen


@pytest.mark.parametrize("name", sorted(ODD_HEADERS))
def test_any_header_is_served(observed: Callable[..., Seen], name: str) -> None:
    """Header names and values may be any bytes of any length."""
    headers = ODD_HEADERS[name]
    seen = both(
        observed,
        lambda: [http_scope("/items/7", headers=list(headers)), http_scope("/echo", "POST", headers=list(headers))],
    )
    for line in seen.request_lines:
        assert line["request_id"] == line["trace_id"]
        assert len(json.dumps(line)) <= LONGEST_LINE
    for span in seen.server_spans:
        assert "user:pass" not in str(span.attributes)


@pytest.mark.parametrize("name", sorted(ODD_TRACES))
def test_a_malformed_trace_context_starts_a_new_trace(observed: Callable[..., Seen], name: str) -> None:
    """With a malformed `traceparent` the request is the root of its own trace."""
    headers = ODD_TRACES[name]
    seen = both(observed, lambda: [http_scope("/items/7", headers=list(headers))])
    span = seen.server_spans[0]
    assert span.parent is None
    assert seen.request_lines[0]["trace_id"] != TRACE


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_a_bomb_next_to_a_valid_traceparent_is_harmless(observed: Callable[..., Seen], name: str) -> None:
    """The trace is continued with any `tracestate` and `baggage`."""
    headers = [(b"traceparent", PARENT), *BOMBS[name]]
    seen = both(observed, lambda: [http_scope("/items/7", headers=list(headers))])
    assert seen.request_lines[0]["trace_id"] == TRACE
    assert len(str(seen.server_spans[0].to_json())) < 3 * LONGEST_LINE


def test_a_later_version_of_traceparent_is_read(observed: Callable[..., Seen]) -> None:
    """A later version of `traceparent` may have more after the flags (W3C Trace Context)."""
    seen = both(observed, lambda: [http_scope(headers=[(b"traceparent", b"cc" + PARENT[2:] + b"-more")])])
    assert seen.request_lines[0]["trace_id"] == TRACE


@pytest.mark.parametrize("query", [b"\xff=\xfe", b"&&==;;", b"q=" + b"%ff" * 20000, b"token=secret", b"=", b"q=\x00\n"])
def test_any_query_string_is_served(observed: Callable[..., Seen], query: bytes) -> None:
    """Query strings may be raw bytes; the line and the span show no value."""
    seen = both(observed, lambda: [http_scope("/items/7", query_string=query), websocket_scope(query_string=query)][:1])
    shown = json.dumps(seen.request_lines[0]["fields"]) + str(seen.server_spans[0].attributes)
    assert "secret" not in shown
    assert len(json.dumps(seen.request_lines[0])) <= LONGEST_LINE


@pytest.mark.parametrize(
    "method", ["get", "BREW", "G\u00cbT", "", "X" * HUGE, "PROPFIND", "GET ", "\ud800", "constructor"]
)
@pytest.mark.parametrize("version", ["1.1", "9", "", "\ud800", "2"])
def test_any_method_and_version_is_served(observed: Callable[..., Seen], method: str, version: str) -> None:
    """An unknown method or version is served as without install, and reported as `_OTHER`."""
    seen = both(
        observed,
        lambda: [http_scope(path, method, http_version=version) for path in ("/items/7", "/echo", "/none")],
    )
    assert {dict(labels)["method"] for labels in seen.samples("http_requests_total")} == {"_OTHER"}
    assert {line["fields"]["method"] for line in seen.request_lines} == {"_OTHER"}


@pytest.mark.parametrize("client", [None, (), ("only-host",), ("\ud800", -1), ["10.0.0.1", 5], ("h" * HUGE, 10**30)])
@pytest.mark.parametrize("server", [None, ("/run/app.sock", None), ("\ud800", "x")])
def test_any_client_and_server_is_served(observed: Callable[..., Seen], client: Any, server: Any) -> None:
    """The socket's addresses may be missing or odd."""
    app, alone_app = echoing_app(), bare(echoing_app())
    seen = observed(app)
    scope = http_scope("/items/7", client=client, server=server, headers=[])
    assert asyncio.run(ask(app, dict(scope), Server([]), [])) == asyncio.run(
        ask(alone_app, dict(scope), Server([]), [])
    )
    assert len(seen.request_lines) == 1
    assert seen.sample("http_requests_in_progress") == 0


# What handlers log


class Unprintable:
    """An object without a string."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Endless(dict[str, Any]):
    """A dict whose items never end."""

    def items(self) -> Any:
        """Raise, as a view of something that is gone."""
        raise RuntimeError("gone")


def cycle() -> list[Any]:
    """Return a list that contains itself."""
    ring: list[Any] = [1]
    ring.append({"ring": ring})
    return ring


def deep() -> Any:
    """Return deeply nested lists."""
    value: Any = []
    for _ in range(5000):
        value = [value]
    return value


LOGGED: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "nan": lambda: math.nan,
    "infinite": lambda: -math.inf,
    "big": lambda: 10**400,
    "surrogate": lambda: "\ud800\udfff",
    "control": lambda: "\x00\x1b[2J\r\n\u2028\u2029\x85",
    "braces": lambda: "{} {0} {missing} {{ }} {a.b[c]!r:>{w}} %s %(x)d",
    "tags": lambda: "<red>not a colour</red> </> \\<",
    "bytes": lambda: b"\xff\x00",
    "memoryview": lambda: memoryview(b"ab"),
    "object": object,
    "unprintable": Unprintable,
    "class": lambda: Unprintable,
    "function": lambda: test_any_header_is_served,
    "cycle": cycle,
    "deep": deep,
    "set": lambda: {1, "a", None, frozenset({2})},
    "odd keys": lambda: {None: 1, 2: 3, ("a",): 4, b"\xff": 5, Unprintable(): 6, "\ud800": 7},
    "dict that raises": lambda: Endless(a=1),
    "generator": lambda: (each for each in range(3)),
    "deque": lambda: deque([1]),
    "exception": lambda: ValueError("logged"),
    "mute exception": Mute,
    "long": lambda: "x" * 1_000_000,
    "many": lambda: {f"key {each}": "v" * 100 for each in range(10_000)},
    "complex": lambda: 1 + 2j,
    "ellipsis": lambda: ...,
    "lock": threading.Lock,
    "socket": socket.socketpair,
}


@pytest.mark.parametrize("name", sorted(LOGGED))
def test_any_logged_value_is_one_valid_line(
    observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """As message, as field, as bound field and as exception: each call gives one line of JSON with the ids."""
    app = FastAPI()
    value = LOGGED[name]()

    @app.get("/")
    async def endpoint(log: LogDep, request: Request) -> str:
        log.info(value)
        log.info("field {} %s", value=value, message="mine", level=value, trace_id=value, exception=None)
        log.with_fields(bound=value, fields=value).warn("bound")
        request.app.state.observe.log.error("exception", exception=ValueError(value), nested={"value": [value]})
        with log.contextualize(context=value):
            log.debug("context")
        return "done"

    seen = observed(app)
    answer = asyncio.run(ask(app, http_scope(), Server([]), []))
    for each in value if name == "socket" else ():
        each.close()
    assert answer.raised is None
    assert answer.messages[0]["status"] == 200
    seen.observe.flush()
    text = capsys.readouterr().out
    lines = [json.loads(line) for line in text.split("\n") if line and "asyncio" not in line]
    assert [line["level"] for line in lines] == ["info", "info", "warn", "error", "debug", "info"]
    assert [line["message"] for line in lines[1:5]] == ["field {} %s", "bound", "exception", "context"]
    assert {line["trace_id"] for line in lines} == {lines[-1]["trace_id"]}
    assert max(len(line.encode()) for line in text.split("\n")) < LONGEST_LINE
    assert "\u2028" not in text
    assert lines[1]["fields"]["message"] == "mine"
    assert seen.observe.internal_errors.counts == {}


@pytest.mark.parametrize("name", sorted(set(LOGGED) - {"socket"}))
def test_a_label_value_may_be_anything(observed: Callable[..., Seen], name: str) -> None:
    """Custom metrics take label values of any type; `/metrics` stays readable."""
    app = FastAPI()
    value = LOGGED[name]()
    seen = observed(app)
    seen.observe.metrics.counter("things_total", "Things.", ["kind"]).labels(value).inc()
    seen.observe.metrics.gauge("level", "Level.", ["kind"]).labels(kind=value).set(2)
    seen.observe.metrics.histogram("size", "Size.", ["kind"]).labels(value).observe(1)
    assert seen.total("things_total") == 1
    assert seen.total("level") == 2
    assert seen.total("size_count") == 1


# A real server


@contextmanager
def served(app: FastAPI) -> Iterator[int]:
    """Serve an app with uvicorn and h11 in a thread; yield its port."""
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, http="h11", log_config=None, access_log=False, h11_max_incomplete_event_size=200_000
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def raw(port: int, data: bytes) -> tuple[bytes, bytes]:
    """Send bytes; return the status line and the body of the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0], body


def request(method: bytes = b"GET", target: bytes = b"/items/7", *lines: bytes, host: bytes = b"shop.example") -> bytes:
    """Return the bytes of a request."""
    return b"\r\n".join(
        [method + b" " + target + b" HTTP/1.1", b"host: " + host, b"connection: close", *lines, b"", b""]
    )


RAW: dict[str, bytes] = {
    "plain": request(),
    "header of 64 KB": request(b"GET", b"/items/7", b"x-bomb: " + b"x" * HUGE),
    "traceparent of 64 KB": request(b"GET", b"/items/7", b"traceparent: " + b"0" * HUGE),
    "baggage of 64 KB": request(b"GET", b"/items/7", b"traceparent: " + PARENT, b"baggage: " + b"a=b," * (HUGE // 4)),
    "a thousand headers": request(b"GET", b"/items/7", *(b"x-%d: 1" % each for each in range(1000))),
    "bytes": request(b"GET", b"/items/7", b"user-agent: \xff\xfe\x80"),
    "lower case": request(b"get"),
    "odd method": request(b"BREW"),
    "metrics oddly": request(b"BREW", b"/metrics"),
    "long method": request(b"X" * 5000),
    "broken method": request(b"G(T"),
    "target": request(b"GET", b"/%ff%00%0a/../..//?\xff=%zz"),
    "star": request(b"OPTIONS", b"*"),
    "absolute": request(b"GET", b"http://elsewhere.example/items/7"),
    "huge length": request(b"POST", b"/echo", b"content-length: 99999999999999999999999"),
    "negative length": request(b"POST", b"/echo", b"content-length: -5"),
    "length of no number": request(b"POST", b"/echo", b"content-length: abc"),
    "two lengths": request(b"POST", b"/echo", b"content-length: 3", b"content-length: 4") + b"abcd",
    "chunks": request(b"POST", b"/echo", b"transfer-encoding: chunked") + b"2\r\nab\r\n0\r\n\r\n",
    "broken chunks": request(b"POST", b"/echo", b"transfer-encoding: chunked") + b"zz\r\nab\r\n0\r\n\r\n",
    "odd host": request(host=b"user:pass@[::1]:999999"),
    "odd version": request().replace(b"HTTP/1.1", b"HTTP/9.9"),
    "no http": b"\x16\x03\x01\x00\xff hello\r\n\r\n",
}


def test_raw_requests_to_a_real_server_are_answered_as_without_install(observed: Callable[..., Seen]) -> None:
    """Header bombs, odd methods, targets, lengths and versions: the same status and body from uvicorn and h11."""
    app = echoing_app()
    seen = observed(app)
    hopeless = {"huge length", "two lengths"}
    with served(app) as ours, served(bare(echoing_app())) as alone:
        for name, data in RAW.items():
            if name not in hopeless:
                assert raw(ours, data) == raw(alone, data), name
    assert seen.observe.internal_errors.counts == {}
    assert seen.sample("http_requests_in_progress") == 0
    assert seen.total("http_requests_total") == len(seen.request_lines)


def test_hostile_clients_make_no_series(observed: Callable[..., Seen]) -> None:
    """Random methods, paths, hosts, queries and headers do not change the number of series."""
    app = echoing_app()
    seen = observed(app)
    chance = random.Random(7)  # noqa: S311 - nothing to keep secret

    def word(length: int) -> bytes:
        return bytes(chance.choice(b"abcdefghijklmnopqrstuvwxyzABCDEF") for _ in range(length))

    def hostile() -> bytes:
        method = chance.choice((b"GET", b"POST", word(5)))
        target = chance.choice((b"/" + word(8), b"/items/" + word(8), b"/" + word(3) + b"/" + word(3)))
        return request(
            method,
            target + b"?" + word(4) + b"=" + word(4),
            b"user-agent: " + word(9),
            word(6) + b": " + word(6),
            b"x-request-id: " + word(12),
            host=word(10) + b".example",
        )

    def series() -> set[str]:
        names = (line.rsplit(" ", 1)[0] for line in seen.text.splitlines() if line.startswith(("http_", "request_")))
        return set(names)

    with served(app) as port:
        for method in (b"GET", b"POST", b"BREW"):
            for target in (b"/none", b"/items/7"):
                raw(port, request(method, target))
        before = series()
        statuses = {raw(port, hostile())[0].split(b" ")[1] for _ in range(300)}
    assert statuses == {b"200", b"404", b"405"}
    assert series() == before
    assert seen.total("http_requests_total") == 306

"""Holds who can read the metrics: by address, by token, by dependency, and on a separate port."""

from __future__ import annotations

import asyncio
import http.client
import socket
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import pytest
from comparison import Server, ask, http_scope
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from injection import failing, replacing
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from servers import serving
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import install
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics import server as metrics_server
from fastapi_observe.metrics_endpoint import has_own_route
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

TOKEN = "correct-horse-battery"  # noqa: S105 - of a test
BEARER = (b"authorization", f"Bearer {TOKEN}".encode())
LOCAL, PRIVATE, PUBLIC = ("127.0.0.1", 5000), ("10.1.2.3", 5000), ("203.0.113.9", 5000)


def make_app() -> FastAPI:
    """Return an app with one path."""
    app = FastAPI()

    @app.get("/items")
    async def items() -> str:
        return "items"

    return app


def get(app: Any, client: Any, *headers: tuple[bytes, bytes], path: str = "/metrics", method: str = "GET") -> Any:
    """Send a request as `client`. Returns status, headers and body."""
    scope = http_scope(path, method, client=client, headers=[(b"host", b"shop.example"), *headers])
    server = Server([{"type": "http.request", "body": b"", "more_body": False}])
    answer = asyncio.run(ask(app, scope, server, []))
    start = answer.messages[0]
    body = b"".join(message.get("body", b"") for message in answer.messages[1:])
    return start["status"], dict(start["headers"]), body


# By address


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (LOCAL, (), 200),
        (PRIVATE, (), 200),
        (None, (), 200),
        (PUBLIC, (), 404),
        (PUBLIC, ((b"x-forwarded-for", b"127.0.0.1"),), 404),
        (PUBLIC, ((b"forwarded", b"for=127.0.0.1"),), 404),
        (PUBLIC, ((b"x-real-ip", b"10.0.0.1"),), 404),
        (PUBLIC, (BEARER,), 404),
        (PRIVATE, ((b"x-forwarded-for", b"203.0.113.9"),), 404),
        (PRIVATE, ((b"x-forwarded-for", b"10.9.9.9"),), 200),
    ],
)
def test_by_default_private_peers_can_read(
    observed: Callable[..., Seen], client: Any, headers: Any, status: int
) -> None:
    """Other peers get the app's response to an unknown path, and are counted as such."""
    seen = observed(app := make_app())
    got, _, body = get(app, client, *headers)
    assert got == status
    assert (b"http_requests_in_progress" in body) is (status == 200)
    if status == 404:
        assert body == get(app, PUBLIC, path="/nothing")[2]
        assert [line["fields"]["endpoint"] for line in seen.request_lines] == ["unmatched"] * 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_only_get_and_head_are_served(observed: Callable[..., Seen], method: str) -> None:
    """The app responds to every other method; HEAD has no body."""
    observed(app := make_app())
    assert get(app, LOCAL, method=method)[0] == 404
    status, _, body = get(app, LOCAL, method="HEAD")
    assert (status, body) == (200, b"")


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_route_of_the_app_for_the_metrics_is_not_reached(observed: Callable[..., Seen], order: str) -> None:
    """A client without access gets 404 where the app serves metrics at the same path, as the warning says."""
    app = make_app()
    prometheus = Instrumentator(registry=CollectorRegistry())
    if order == "before":
        prometheus.instrument(app).expose(app)
    seen = observed(app)
    if order == "after":  # also where the number of routes is the same
        app.get("/other")(lambda: None)
        assert get(app, PUBLIC)[0] == 404
        app.router.routes.pop()
        prometheus.expose(app)
    for client, method, status in ((LOCAL, "GET", 200), (PUBLIC, "GET", 404), (PUBLIC, "HEAD", 404)):
        answer = get(app, client, method=method)
        assert answer[0] == status
        assert (b"http_requests_in_progress" in answer[2]) is (status == 200)
        if status == 404:
            assert answer[2] == (b"Not Found" if method == "GET" else b"")
    scope = http_scope("/metrics", "GET", client=PUBLIC) | {"raw_path": b"/%6detrics"}
    answer = asyncio.run(ask(app, scope, Server([{"type": "http.request", "body": b"", "more_body": False}]), []))
    assert answer.messages[0]["status"] == 404
    assert ("unreachable" in str(seen.lines)) is (order == "before")


def test_a_route_for_any_path_gets_requests_without_access(observed: Callable[..., Seen]) -> None:
    """Only a route of exactly this path, for GET, is unreachable; others get what they got before."""
    app = make_app()
    app.post("/metrics")(lambda: "posted")
    app.get("/{path:path}")(lambda path: path)
    seen = observed(app)
    assert get(app, PUBLIC)[::2] == (200, b'"metrics"')
    assert get(app, PUBLIC, method="POST")[::2] == (200, b'"posted"')
    assert "unreachable" not in str(seen.lines)


def test_routes_that_cannot_be_listed(observed: Callable[..., Seen]) -> None:
    """An internal error is counted, and a client without access gets 404: the app may serve metrics there."""
    app = make_app()
    app.get("/metrics")(lambda: "metrics")
    seen = observed(app)
    assert get(app, LOCAL)[0] == 200
    with failing(has_own_route):
        assert get(app, PUBLIC)[0] == 404
    assert seen.observe.internal_errors.counts == {"metrics.access": 1}


def test_the_users_function_decides(observed: Callable[..., Seen]) -> None:
    """If it raises, access is denied and the error is counted."""
    observed(app := make_app(), metrics_access=lambda scope: scope["client"] == PUBLIC)
    assert [get(app, client)[0] for client in (PUBLIC, PRIVATE)] == [200, 404]
    seen = observed(failing := make_app(), metrics_access=lambda scope: scope["nothing"])
    assert get(failing, LOCAL)[0] == 404
    assert seen.observe.internal_errors.counts == {"metrics.access": 1}


# By token


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        (BEARER, 200),
        ((b"authorization", b"bearer " + TOKEN.encode()), 200),
        ((b"authorization", b"Bearer " + TOKEN.encode() + b"x"), 401),
        ((b"authorization", b"Bearer " + TOKEN.encode()[:-1]), 401),
        ((b"authorization", b"Bearer "), 401),
        ((b"authorization", b"Basic " + TOKEN.encode()), 401),
        ((b"authorization", TOKEN.encode()), 401),
        ((b"authorization", b"Bearer \xff\xfe"), 401),
    ],
)
@pytest.mark.parametrize("client", [LOCAL, PUBLIC])
def test_the_token_is_required(observed: Callable[..., Seen], header: Any, status: int, client: Any) -> None:
    """It is required from every peer; a wrong or missing one is a 401."""
    seen = observed(app := make_app(), metrics_token=TOKEN)
    got, headers, body = get(app, client, *([header] if header else []))
    assert got == status
    assert (b"http_requests_in_progress" in body) is (status == 200)
    if status == 401:
        assert (headers[b"www-authenticate"], body) == (b"Bearer", b"Unauthorized")
        assert headers[b"content-length"] == b"12"
        assert get(app, client, method="HEAD")[2] == b""
    assert seen.request_lines == []
    assert TOKEN not in repr(seen.observe.settings)


# By dependency


class Refused(Exception):  # noqa: N818 - a user's exception
    """An exception that the app has a handler for."""


async def check(request: Request, x_key: Annotated[str, Header()] = "") -> None:
    """Allow clients with the key in the app's state."""
    if x_key == "raise":
        raise Refused
    if x_key != request.app.state.key:
        raise HTTPException(403, "no")


@pytest.mark.parametrize("given", [check, Depends(check)])
def test_a_dependency_decides(observed: Callable[..., Seen], given: Any) -> None:
    """It is resolved as in the app: with its state, exception handlers and overrides."""
    app = make_app()
    app.state.key = "open"

    @app.exception_handler(Refused)
    async def refuse(_: Request, __: Refused) -> JSONResponse:
        return JSONResponse({"refused": True}, 418)

    seen = observed(app, metrics_dependency=given)
    assert get(app, PUBLIC)[0] == 403
    assert get(app, LOCAL)[0] == 403
    assert get(app, LOCAL, (b"x-key", b"raise"))[0] == 418
    status, headers, body = get(app, PUBLIC, (b"x-key", b"open"), (b"accept", b"text/plain"))
    assert (status, b"http_requests_in_progress" in body) == (200, True)
    assert headers[b"content-type"].startswith(b"text/plain; version=")
    assert get(app, LOCAL, (b"x-key", b"open"), method="HEAD")[2] == b""
    app.dependency_overrides[check] = lambda: None
    assert get(app, PUBLIC)[0] == 200
    assert seen.request_lines == []
    assert seen.spans == []
    assert "/metrics" not in TestClient(app).get("/openapi.json").text


def test_a_dependency_needs_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FastAPI, `install` raises."""
    monkeypatch.setitem(sys.modules, "fastapi", None)
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("x"))])
    with pytest.raises(TypeError, match="metrics_dependency requires FastAPI"):
        install(app, metrics_dependency=check)


# On a separate port


def ask_port(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Send a request to the metrics port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_the_metrics_can_have_a_separate_port(observed: Callable[..., Seen]) -> None:
    """It is open while the app runs, and the app's port does not serve metrics."""
    seen = observed(app := make_app(), metrics_port=0)
    server = seen.observe.metrics_server
    with serving(app) as app_port:
        port = server.port
        assert port is not None
        assert ask_port(app_port, "/items")[0] == 200
        assert ask_port(app_port)[0] == 404
        status, body = ask_port(port)
        assert status == 200
        assert b'http_requests_total{method="GET",endpoint="/items",status_code="200"} 1\n' in body
        assert ask_port(port, "/metrics?name=x")[0] == 200
        assert ask_port(port, method="HEAD") == (200, b"")
        assert ask_port(port, "/")[0] == 404
        assert ask_port(port, method="POST")[0] == 501
        assert ask_port(port, **{"X-Forwarded-For": "8.8.8.8"})[0] == 404
    assert server.port is None
    with pytest.raises(OSError, match="refused"):
        ask_port(port)
    assert "fastapi-observe-metrics" not in {thread.name for thread in threading.enumerate()}


def test_the_metrics_port_requires_the_token(observed: Callable[..., Seen]) -> None:
    """It works as on the app's port; a failure while rendering is a 500."""
    seen = observed(app := make_app(), metrics_port=0, metrics_token=TOKEN)
    with serving(app):
        port = seen.observe.metrics_server.port
        assert port is not None
        assert ask_port(port)[0] == 401
        assert ask_port(port, Authorization=f"Bearer {TOKEN}")[0] == 200
        with failing(seen.observe.metrics.render):
            assert ask_port(port, Authorization=f"Bearer {TOKEN}")[0] == 500
    assert seen.observe.internal_errors.counts == {"metrics.render": 1}


def test_a_port_in_use_is_logged(observed: Callable[..., Seen]) -> None:
    """One line names the next step, and the app runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        seen = observed(app := make_app(), metrics_port=number)
        with TestClient(app) as client:
            assert client.get("/items").status_code == 200
            assert client.get("/items").status_code == 200
    messages = [line["message"] for line in seen.lines if "metrics_port" in line["message"]]
    assert len(messages) == 1
    assert f"Cannot listen on 127.0.0.1:{number} (metrics_port)" in messages[0]


@pytest.mark.parametrize("said", [b"", b"GET /metrics HTTP/1.1\r\nHost: x\r\n"])
def test_connections_without_a_request_are_closed_for_new_ones(observed: Callable[..., Seen], said: bytes) -> None:
    """At the limit the oldest one is closed: slow connections never keep a scraper out."""
    seen = observed(app := make_app(), metrics_port=0)
    with serving(app), ExitStack() as stack:
        port = seen.observe.metrics_server.port
        assert port is not None
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            for _ in range(metrics_server.MAX_CONNECTIONS)
        ]
        for each in connections:
            each.sendall(said)
        assert [ask_port(port)[0] for _ in range(3)] == [200] * 3
        assert connections[0].recv(10) == b""
        connections[-1].sendall(b"Host: y\r\n")


def test_a_connection_has_a_deadline(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time counts from the start, however often a client sends a little."""
    monkeypatch.setattr(metrics_server, "REQUEST_TIMEOUT", 0.0)
    seen = observed(app := make_app(), metrics_port=0)
    with serving(app):
        port = seen.observe.metrics_server.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), 3) as slow:  # less than the timeout of the socket
            slow.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
            assert slow.recv(10) == b""


def test_connections_with_a_request_are_not_closed(observed: Callable[..., Seen]) -> None:
    """Beyond the limit a new one is closed. One closed while its request arrives gets no response."""
    seen = observed(app := make_app(), metrics_port=0)
    requested, go = threading.Semaphore(0), threading.Event()

    def render(*_: object) -> tuple[list[tuple[bytes, bytes]], bytes]:
        requested.release()
        assert go.wait(30)
        return [], b"late"

    with serving(app), ExitStack() as stack:
        port = seen.observe.metrics_server.port
        assert port is not None
        stack.enter_context(replacing(seen.observe.metrics.render, render))
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            for _ in range(metrics_server.MAX_CONNECTIONS)
        ]
        for each in connections:
            each.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert requested.acquire(timeout=30)
        with socket.create_connection(("127.0.0.1", port), 30) as refused:
            assert refused.recv(10) == b""
        go.set()
        for each in connections:
            assert each.makefile("rb").read().endswith(b"late")
        with (
            replacing("metrics.server:_Server.mark_request_read", lambda *_: False),
            pytest.raises(http.client.RemoteDisconnected),
        ):
            ask_port(port)


def raw(port: int, *lines: str) -> bytes:
    """Send a request as it is; return the status line."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall("\r\n".join((*lines, "Host: x", "", "")).encode())
        return connection.makefile("rb").readline().strip()


def test_the_metrics_port_is_as_strict_as_the_apps_port(observed: Callable[..., Seen]) -> None:
    """Duplicate headers are all read, and paths are compared literally."""
    seen = observed(app := make_app(), metrics_port=0)
    get_it = "GET /metrics HTTP/1.1"
    with serving(app):
        port = seen.observe.metrics_server.port
        assert port is not None
        assert raw(port, get_it).endswith(b"200 OK")
        twice = ("X-Forwarded-For: 8.8.8.8", "X-Forwarded-For: 10.0.0.1")
        assert raw(port, get_it, *twice).endswith(b"404 Not Found")
        assert raw(port, get_it, *reversed(twice)).endswith(b"404 Not Found")
        assert raw(port, "GET //metrics HTTP/1.1").endswith(b"404 Not Found")
    seen = observed(app := make_app(), metrics_port=0, metrics_token=TOKEN)
    with serving(app):
        port = seen.observe.metrics_server.port
        assert port is not None
        right, wrong = f"Authorization: Bearer {TOKEN}", "Authorization: Bearer x"
        assert raw(port, get_it, right).endswith(b"200 OK")
        for given in ((right, wrong), (wrong, right), (right, right)):
            assert raw(port, get_it, *given).endswith(b"401 Unauthorized")


def test_two_tokens_are_denied(observed: Callable[..., Seen]) -> None:
    """On the app's port, too: a proxy may have checked the other one."""
    observed(app := make_app(), metrics_token=TOKEN)
    wrong = (b"authorization", b"Bearer x")
    assert [get(app, LOCAL, *given)[0] for given in ((BEARER,), (BEARER, wrong), (wrong, BEARER))] == [200, 401, 401]


@pytest.mark.parametrize("allowed", ["*", "127.0.0.1"])
def test_a_server_that_trusts_all_forwarding_headers_is_denied(observed: Callable[..., Seen], allowed: str) -> None:
    """Uvicorn replaces the peer by the address in X-Forwarded-For, so the real peer is unknown."""
    observed(app := make_app())
    with serving(app, proxy_headers=True, forwarded_allow_ips=allowed) as port:
        for forged in ("127.0.0.1", "10.0.0.1", "10.0.0.1:4711", "[::1]:4711", "::1", "10.0.0.1, 8.8.8.8"):
            assert ask_port(port, **{"X-Forwarded-For": forged})[0] == 404, forged
        assert ask_port(port)[0] == 200


def test_a_scraper_that_disconnects_is_not_logged(
    observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a request and half a response leave no line and no traceback."""
    seen = observed(app := make_app(), metrics_port=0)
    with serving(app, log_level="error"):
        port = seen.observe.metrics_server.port
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), 5) as half:
            half.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
        with socket.create_connection(("127.0.0.1", port), 5) as gone:
            gone.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        assert ask_port(port)[0] == 200
    assert "Traceback" not in capsys.readouterr().err


def test_a_forked_child_opens_a_separate_port(observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch) -> None:
    """The child neither uses nor closes the port of its parent."""
    seen = observed(app := make_app(), metrics_port=0)
    with serving(app):
        server = seen.observe.metrics_server
        before, parents = server.port or 0, server._server
        with monkeypatch.context() as child:
            child.setattr("os.getpid", lambda: -1)
            assert not server.port
            server.start(shared=True)
            assert server.port != before
            server.stop()
        assert ask_port(before)[0] == 200
        assert parents is not None
        parents.shutdown()
        parents.server_close()


def test_without_threads_the_port_stays_closed(no_threads: None) -> None:
    """Nothing raises, and stopping is possible."""
    server = metrics_server.MetricsServer(ObserveSettings(metrics_port=0), lambda *_: ([], b""), InternalErrors())
    server.start(shared=False)
    assert server.port is None
    server.stop()

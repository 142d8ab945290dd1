"""The server span has contrib's attributes, and follows the semantic conventions where contrib does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from driver import ask
from fastapi import FastAPI, HTTPException
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from fastapi_observe.records.request import MAX_METHOD_LENGTH
from fastapi_observe.redaction.redactor import MAX_USER_AGENT_LENGTH
from fastapi_observe.traces.server_span import (
    MAX_SPAN_PATH_LENGTH,
    HeaderCapture,
    server_address,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from starlette.requests import Request

CONTRIB = """
import asyncio, json, sys
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from driver import ask
from test_server_span import REQUESTS, make_app
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
app = OpenTelemetryMiddleware(make_app(), tracer_provider=provider, exclude_spans=["receive", "send"])
for request in REQUESTS:
    asyncio.run(ask(app, **request))
print(json.dumps([[span.name, dict(span.attributes), span.status.status_code.name]
                  for span in exporter.get_finished_spans()]))
"""

REQUESTS: list[dict[str, Any]] = [
    {"path": "/items/7", "headers": {"host": "shop.example.org"}},
    {"path": "/items/7?token=secret&page=2", "headers": {"host": "shop.example.org:8443"}, "scheme": "https"},
    {"path": "/items/7", "method": "POST", "body": b"12345", "headers": {"host": "127.0.0.1:8000"}},
    {"path": "/status/404"},
    {"path": "/status/503"},
    {"path": "/crash"},
    {"path": "/nowhere"},
    {"path": "/items/7", "method": "BREW"},
    {"path": "/items/7", "headers": {"user-agent": "curl/8.5 é"}, "http_version": "2"},
    {"path": "/items/7", "client": None, "server": None},
]


def make_app() -> Starlette:
    """Return an app for the requests above."""

    async def item(request: Request) -> Response:
        await request.body()
        return Response(b"hello")

    async def status(request: Request) -> Response:
        return Response(status_code=int(request.path_params["code"]))

    async def crash(request: Request) -> Response:
        raise LookupError("gone")

    methods = ["GET", "POST", "BREW"]
    return Starlette(
        routes=[Route("/items/{item}", item, methods=methods), Route("/status/{code}", status), Route("/crash", crash)]
    )


def own(request: dict[str, Any], contrib: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of our span where contrib's has `contrib`. Each difference is deliberate."""
    path, status = request["path"].partition("?")[0], contrib["http.response.status_code"]
    answers = {"items": 5, "status": 0, "crash": 21, "nowhere": 9}
    # The conventions: the host that the client asked for (contrib gives that of the socket, with the port in it,
    # and invents 0.0.0.0:80 where there is none).
    host, _, port = request.get("headers", {}).get("host", "shop.example.org").partition(":")
    more: dict[str, Any] = {
        "server.address": host,
        "server.port": int(port or 80),
        # The conventions recommend sizes; contrib has them in metrics only.
        "http.request.body.size": len(request.get("body", b"")),
        "http.response.body.size": answers[path.split("/")[1]],
    }
    # The conventions require the route where there is one; contrib's middleware, outside a framework, knows none.
    route = {"items": "/items/{item}", "status": "/status/{code}", "crash": "/crash"}.get(path.split("/")[1])
    if route:
        more["http.route"] = route
    if "url.query" in contrib:  # values of a query may be secrets: contrib shows all of them
        more["url.query"] = "token=REDACTED&page=REDACTED"
    if path == "/crash":  # the exception says more than the status, and the conventions prefer it
        more["error.type"] = "LookupError"
    elif status >= 500:
        more["error.type"] = str(status)
    if "é" in contrib["user_agent.original"]:  # header bytes are latin-1 (RFC 9110): contrib guesses UTF-8
        more["user_agent.original"] = contrib["user_agent.original"].encode().decode("latin-1")
    return {**contrib, **more}


async def test_equal_to_contrib(observed: Callable[..., Seen]) -> None:
    """Attributes and status equal those of contrib's middleware in stable mode, except for what `own` lists."""
    env = {**os.environ, "OTEL_SEMCONV_STABILITY_OPT_IN": "http", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CONTRIB], env=env, capture_output=True, check=True)  # noqa: S603, ASYNC221
    theirs = json.loads(done.stdout.splitlines()[-1])
    app = make_app()
    seen = observed(app)
    for request in REQUESTS:
        await ask(app, **request)
    ours = [(dict(span.attributes or {}), span.status.status_code.name) for span in seen.server_spans]
    assert len(ours) == len(theirs) == len(REQUESTS)
    for request, (attributes, status), (_, contrib, their_status) in zip(REQUESTS, ours, theirs, strict=True):
        assert attributes == own(request, contrib), request
        assert status == their_status
        for name, value in attributes.items():
            assert type(value) is type(contrib.get(name, value)), name


# The rules of the HTTP semantic conventions


@pytest.mark.parametrize(
    ("path", "method", "name"),
    [
        ("/items/7", "GET", "GET /items/{item}"),
        ("/in/items/7", "POST", "POST /in/items/{item}"),
        ("/nowhere", "GET", "GET"),
        ("/items/7", "BREW", "HTTP /items/{item}"),
        ("/nowhere", "BREW", "HTTP"),
        ("/items/7", "DELETE", "DELETE /items/{item}"),
    ],
)
async def test_span_name(observed: Callable[..., Seen], path: str, method: str, name: str) -> None:
    """A server span is named `{method} {route}`, without a route `{method}`; an unknown method is called HTTP."""
    app = Starlette(routes=[Mount("/in", routes=make_app().routes), *make_app().routes])
    seen = observed(app)
    await ask(app, path, method)
    (span,) = seen.server_spans
    assert (span.name, span.kind) == (name, SpanKind.SERVER)


async def test_unknown_method_keeps_its_original(observed: Callable[..., Seen]) -> None:
    """An unknown method is `_OTHER`; the original is an attribute of at most 32 characters."""
    app = make_app()
    seen = observed(app)
    await ask(app, "/items/7", "X" * 9000)
    attributes = seen.server_spans[0].attributes or {}
    assert attributes["http.request.method"] == "_OTHER"
    assert attributes["http.request.method_original"] == "X" * MAX_METHOD_LENGTH


@pytest.mark.parametrize(
    ("path", "status", "error_type", "code"),
    [
        ("/status/200", 200, None, StatusCode.UNSET),
        ("/status/302", 302, None, StatusCode.UNSET),
        ("/status/404", 404, None, StatusCode.UNSET),
        ("/status/503", 503, "503", StatusCode.ERROR),
        ("/crash", 500, "LookupError", StatusCode.ERROR),
    ],
)
async def test_error_status(
    observed: Callable[..., Seen], path: str, status: int, error_type: str | None, code: StatusCode
) -> None:
    """Only 5xx and exceptions are errors, and only they have an error.type; an exception is recorded."""
    app = make_app()
    seen = observed(app)
    await ask(app, path)
    (span,) = seen.server_spans
    attributes = span.attributes or {}
    assert (attributes["http.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert span.status.status_code is code
    assert [event.name for event in span.events] == (["exception"] if path == "/crash" else [])


async def test_handled_http_exceptions_are_not_errors(observed: Callable[..., Seen]) -> None:
    """An HTTPException of 4xx leaves the status unset; nothing is recorded."""
    app = FastAPI()

    @app.get("/")
    async def teapot() -> None:
        raise HTTPException(418)

    seen = observed(app)
    await ask(app, "/")
    (span,) = seen.server_spans
    assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())


async def test_long_values_are_cut(observed: Callable[..., Seen]) -> None:
    """Path, user agent and query of 64 KB become short attributes."""
    app = make_app()
    seen = observed(app)
    await ask(app, "/" + "p" * 65_536 + "?" + "q" * 65_536, headers={"user-agent": "u" * 65_536, "host": "h" * 65_536})
    attributes = seen.server_spans[0].attributes or {}
    assert len(str(attributes["url.path"])) == MAX_SPAN_PATH_LENGTH
    assert len(str(attributes["user_agent.original"])) == MAX_USER_AGENT_LENGTH
    assert len(str(attributes["url.query"])) <= 1024
    assert attributes["server.address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (b"shop.example.org", ("shop.example.org", 443)),
        (b"shop.example.org:8443", ("shop.example.org", 8443)),
        (b"[2001:db8::1]:8443", ("2001:db8::1", 8443)),
        (b"[::1]", ("::1", 443)),
        (b"user:password@evil.example", ("10.0.0.1", 8000)),
        (b"evil.example/path", ("10.0.0.1", 8000)),
        (b"evil example", ("10.0.0.1", 8000)),
        (b"evil.example:99999", ("10.0.0.1", 8000)),
        (b"evil.example:80:80", ("10.0.0.1", 8000)),
        (b"evil.example\r\nx: y", ("10.0.0.1", 8000)),
        (b"\xff\xfe", ("10.0.0.1", 8000)),
        (b"a" * 254, ("10.0.0.1", 8000)),
        (b"", ("10.0.0.1", 8000)),
    ],
)
def test_hostile_hosts_are_not_used(host: bytes, expected: tuple[str, int]) -> None:
    """A `Host` of a plain host, with or without a port, is used; otherwise the socket's address."""
    assert server_address({"server": ("10.0.0.1", 8000)}, {b"host": host}, "https") == expected


def test_server_address_without_a_host() -> None:
    """Without `Host` the socket's address is used; a UNIX socket has no port; a scope may have no server."""
    assert server_address({"server": ("/run/app.sock", None)}, {}, "http") == ("/run/app.sock", None)
    assert server_address({"server": None}, {}, "http") == (None, None)
    assert server_address({}, {b"host": b"shop:80"}, "h2c") == ("shop", 80)
    assert server_address({}, {b"host": b"shop"}, "h2c") == ("shop", None)


async def test_no_address_at_all(observed: Callable[..., Seen]) -> None:
    """Without `Host` and server there is no address."""
    app = make_app()
    seen = observed(app)
    await ask(app, "/items/7", headers={"host": "@"}, server=None)
    assert "server.address" not in (seen.server_spans[0].attributes or {})


async def test_a_bare_scope_is_enough(observed: Callable[..., Seen]) -> None:
    """A scope without query, client, server, version and scheme gives the other attributes."""
    app = make_app()
    seen = observed(app)
    bare: dict[str, Any] = {
        "query_string": b"",
        "client": ["10.0.0.9", 0],
        "server": ("/run/app.sock", None),
        "scheme": "",
    }
    await ask(app, "/items/7", headers={"host": "@", "user-agent": ""}, http_version="", **bare)
    assert dict(seen.server_spans[0].attributes or {}) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/items/7",
        "server.address": "/run/app.sock",
        "client.address": "10.0.0.0/24",
        "http.response.status_code": 200,
        "http.request.body.size": 0,
        "http.response.body.size": 5,
        "http.route": "/items/{item}",
    }


def test_websocket_span(observed: Callable[..., Seen]) -> None:
    """A WebSocket connection is one server span `GET {route}` with status 101."""

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws/{room}", socket)])
    seen = observed(app)
    with TestClient(app).websocket_connect("/ws/7") as connection, pytest.raises(WebSocketDisconnect):
        connection.receive_text()
    (span,) = seen.server_spans
    attributes = span.attributes or {}
    assert span.name == "GET /ws/{room}"
    assert (attributes["url.scheme"], attributes["http.response.status_code"]) == ("ws", 101)
    assert attributes["network.protocol.name"] == "websocket"


# Captured headers


async def test_captured_headers(observed: Callable[..., Seen]) -> None:
    """Captured headers are on the span under their own names (contrib turns `-` into `_`); secret ones are redacted."""

    async def endpoint(request: Request) -> Response:
        response = Response(headers={"x-shop": "s", "x-session-id": "secret"})
        response.set_cookie("a", "secret")
        return response

    app = Starlette(routes=[Route("/", endpoint)])
    seen = observed(
        app,
        capture_request_headers=["X-Tenant", "Authorization", "x-absent"],
        capture_response_headers=["x-shop", "set-cookie", "x-session-id"],
    )
    await ask(app, "/", headers={"x-tenant": "acme", "authorization": "Bearer secret", "x-other": "o"})
    attributes = seen.server_spans[0].attributes or {}
    assert {name: value for name, value in attributes.items() if ".header." in name} == {
        "http.request.header.x-tenant": ("acme",),
        "http.request.header.authorization": ("REDACTED",),
        "http.response.header.x-shop": ("s",),
        "http.response.header.set-cookie": ("REDACTED",),
        "http.response.header.x-session-id": ("REDACTED",),
    }


@pytest.mark.parametrize(
    "name",
    ["authorization", "proxy-authorization", "Cookie", "x-api-key", "X-ApiKey", "x-amz-security-token", "x-csrf-token"],
)
def test_secret_headers_are_always_redacted(name: str) -> None:
    """A captured secret header shows only that it was sent."""
    capture = HeaderCapture((name,), "request")
    assert list(capture.read([(name.encode(), b"hunter2")]).values()) == [("REDACTED",)]


def test_more_headers_can_be_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's variable lists further secret headers; a header sent twice has two values, in latin-1."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "x-internal-.*")
    capture = HeaderCapture(("x-internal-id", "x-tag"), "request")
    sent = [(b"x-internal-id", b"7"), (b"x-tag", b"a"), (b"X-Tag", b"\xe9"), (b"x-else", b"b")]
    assert capture.read(sent) == {
        "http.request.header.x-internal-id": ("REDACTED",),
        "http.request.header.x-tag": ("a", "é"),
    }
    assert capture
    assert not HeaderCapture((), "request")

"""The clients: one query or call is one span, one sample and one line; statements without values; httpx."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode
from servers import serving
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import HttpClientDep, TraceContext
from fastapi_observe.clients.external import MOST_SERVICES, ExternalClient
from fastapi_observe.clients.statements import LONGEST, sanitise
from fastapi_observe.records.exchange import KNOWN_METHODS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Seen
    from starlette.requests import Request


@pytest.fixture
def seen(observed: Callable[..., Seen]) -> Seen:
    """Install on an app without routes."""
    return observed(Starlette())


# Queries


async def test_query_gives_three_signals(seen: Seen) -> None:
    """A query is a client span, two samples and a line; the details are on span and line only."""
    statement = "SELECT * FROM orders WHERE id = 7 AND name = 'secret'"
    async with seen.observe.db.query(
        "SELECT", table="orders", statement=statement, parameters=[7, "secret"], system="postgresql"
    ) as query:
        query.detail(**{"db.response.returned_rows": 3})
    (span,) = seen.spans
    assert (span.name, span.kind, span.status.status_code) == ("SELECT orders", SpanKind.CLIENT, StatusCode.UNSET)
    details = {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.collection.name": "orders",
        "db.query.text": "SELECT * FROM orders WHERE id = ? AND name = ?",
        "db.query.parameter_count": 2,
        "db.response.returned_rows": 3,
    }
    assert span.attributes == details
    assert seen.sample("db_queries_total", operation="SELECT", table="orders") == 1
    assert seen.sample("db_query_duration_seconds_count", operation="SELECT", table="orders") == 1
    assert seen.samples("db_query_errors_total") == {}
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert span.context is not None
    assert (line["level"], line["span_id"]) == ("debug", format(span.context.span_id, "016x"))
    assert details.items() <= line["fields"].items()
    assert "secret" not in seen.text + str(seen.lines)


def test_query_without_a_table(seen: Seen) -> None:
    """`with` works too; without a table the label is `unknown` and the span says less."""
    with seen.observe.db.query("BEGIN"):
        pass
    (span,) = seen.spans
    assert (span.name, span.attributes) == ("BEGIN", {"db.system.name": "other_sql", "db.operation.name": "BEGIN"})
    assert seen.sample("db_queries_total", operation="BEGIN", table="unknown") == 1


def test_failed_query(seen: Seen) -> None:
    """A failed query is counted by its error, an ERROR span and an error line; the exception goes on unchanged."""
    exc = LookupError("no such table")
    with pytest.raises(LookupError) as caught, seen.observe.db.query("SELECT", table="orders"):
        raise exc
    assert caught.value is exc
    (span,) = seen.spans
    assert (span.status.status_code, (span.attributes or {})["error.type"]) == (StatusCode.ERROR, "LookupError")
    assert [event.name for event in span.events] == ["exception"]
    labels = {"operation": "SELECT", "table": "orders", "error_type": "LookupError"}
    assert seen.sample("db_query_errors_total", **labels) == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["level"], line["fields"]["outcome"], line["exception"]["type"]) == ("error", "error", "LookupError")


def test_statement_may_be_an_object(seen: Seen) -> None:
    """A statement that becomes text, as SQLAlchemy's constructs do, is shown without values too."""

    class Text:
        def __str__(self) -> str:
            return "DELETE FROM orders WHERE id = 7"

    with seen.observe.db.query("DELETE", table="orders", statement=Text()):
        pass
    assert (seen.spans[0].attributes or {})["db.query.text"] == "DELETE FROM orders WHERE id = ?"


# Statements


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT -1.5e-3, .5, 0xFF, 1_000", "SELECT -?-?, .?, ?, ?"),
        ("SELECT t1.col2, a$1 FROM t1 WHERE id=$1 OR id=:id2 OR id=%s", None),
        ("SELECT 'a', 'it''s', ''", "SELECT ?, ?, ?"),
        (r"SELECT 'a\nb', 'c\\', 7", "SELECT ?, ?, ?"),
        ("SELECT N'a', x'AB', E'a'", "SELECT N?, x?, E?"),
        ("SELECT `col'umn`, `plain`", "SELECT ?, `plain`"),
        ("SELECT $$it's$$, $tag$a $$ b$tag$, 1", "SELECT ?, ?, ?"),
        ("SELECT foo$bar$baz", None),
        ("SELECT 1 -- it's\n, 'a'", "SELECT ?  \n, ?"),
        ("SELECT /* it's */ 'a' /* 7", "SELECT   ?"),
        ("SELECT/**/x/*/ */", "SELECT x"),
        ("SELECT /* /* */ ' */ 'secret'", "SELECT"),
        ("SELECT 'open", "SELECT ?"),
        ("SELECT q'[it's]' FROM dual", "SELECT ?"),
        ("SELECT `open", "SELECT ?"),
        ("", ""),
    ],
)
def test_literals_are_hidden(statement: str, shown: str | None) -> None:
    """Literals become `?` and comments go, whatever the system; names and placeholders stay (None: all of it)."""
    for system in ("other_sql", "postgresql"):
        assert sanitise(statement, system) == (statement if shown is None else shown)


@pytest.mark.parametrize(
    ("statement", "anywhere", "standard"),
    [
        ('SELECT "name" FROM "t"', "SELECT ? FROM ?", 'SELECT "name" FROM "t"'),
        ("""SELECT "it's", 'secret'""", "SELECT ?, ?", "SELECT ?, ?"),
        (r"SELECT 'C:\', 'secret'", "SELECT ?", "SELECT ?"),
        (r"SELECT 'it\'s secret'", "SELECT ?", "SELECT ?"),
        (r'SELECT "a\"b secret"', "SELECT ?", "SELECT ?"),
        ('SELECT "open secret', "SELECT ?", "SELECT ?"),
        ("SELECT 1 # why\n, 2", "SELECT ?  \n, ?", "SELECT ? # why\n, ?"),
        ("SELECT 1 # it's\n, 'secret'", "SELECT ?", "SELECT ? # it?secret?"),
        ("SELECT a #>> '{b}' FROM t", "SELECT a", "SELECT a #>> ? FROM t"),
    ],
)
def test_what_systems_read_differently_is_hidden(statement: str, anywhere: str, standard: str) -> None:
    """Where the dialect decides, more is hidden, unless the system is known to follow the standard."""
    assert sanitise(statement) == anywhere
    assert sanitise(statement, "mysql") == anywhere
    assert sanitise(statement, "postgresql") == standard


LITERALS = ["'{}'", "$${}$$", "$t${}$t$", "E'{}'", "'it''s {}'", "'\\\\{}'", "/* {} */", "-- {}\n", "'{}\n'"]
NAMES = ["SELECT", " col1 ", ",", "(", ")", ' "name" ', " t.x = ", " $1 ", "\n", " `b` ", " IN "]


@given(
    st.lists(st.sampled_from(NAMES) | st.sampled_from(LITERALS).map(lambda each: each.format("secret")), max_size=30)
)
def test_no_value_is_ever_shown(parts: list[str]) -> None:
    """Whatever stands beside it, a value inside a literal or a comment is not shown."""
    for system in ("other_sql", "postgresql"):
        assert "secret" not in sanitise(" ".join(parts), system)


@given(st.text(st.sampled_from("'\"`$#-/*\\ab1 \n[(é\udc80")) | st.text(), st.sampled_from(["", "postgresql"]))
def test_any_text_is_taken(text: str, system: str) -> None:
    """Any text at all is sanitised, to at most 2,048 characters."""
    assert len(sanitise(text, system)) <= LONGEST


@pytest.mark.parametrize(
    "part", ["'", "''", "$a", "$a$", "/*", "/", "#", '"', "\\'", "-", "1", "1.", "q'", "`", "$", "a"]
)
def test_only_the_first_2048_characters_are_read(part: str) -> None:
    """The work is bounded whatever the length: what stands behind 2,048 characters changes nothing."""
    long = part * 1_000_000
    assert sanitise(long) == sanitise(long[:LONGEST])
    assert sanitise(long, "sqlite") == sanitise(long[:LONGEST], "sqlite")


# Calls


@pytest.mark.parametrize(
    ("status", "outcome", "error_type"),
    [(200, "ok", None), (302, "ok", None), (404, "client_error", None), (503, "server_error", "503")],
)
async def test_call_gives_three_signals(seen: Seen, status: int, outcome: str, error_type: str | None) -> None:
    """A call is a client span, two samples and a line; the status decides the outcome."""
    async with seen.observe.external.call("billing", "get_invoice", invoice=7) as call:
        call.status(status)
    (span,) = seen.spans
    attributes = dict(span.attributes or {})
    assert (span.name, span.kind) == ("get_invoice billing", SpanKind.CLIENT)
    assert (attributes["peer.service"], attributes["invoice"]) == ("billing", 7)
    assert (attributes["http.response.status_code"], attributes.get("error.type")) == (status, error_type)
    assert span.status.status_code is (StatusCode.ERROR if error_type else StatusCode.UNSET)
    labels = {"service": "billing", "operation": "get_invoice"}
    assert seen.sample("external_requests_total", **labels, outcome=outcome) == 1
    assert seen.sample("external_request_duration_seconds_count", **labels) == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["fields"]["outcome"], line["fields"]["service"]) == (outcome, "billing")


class Timeout(Exception):  # noqa: N818 - the name that requests has
    """A time-out of another library."""


@pytest.mark.parametrize(
    ("exc", "outcome"),
    [
        (TimeoutError(), "timeout"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.ConnectTimeout("slow"), "timeout"),
        (Timeout(), "timeout"),
        (ConnectionRefusedError(), "connect_error"),
        (httpx.ConnectError("refused"), "connect_error"),
        (asyncio.CancelledError(), "cancelled"),
        (ValueError("not JSON"), "error"),
    ],
)
def test_call_outcomes(seen: Seen, exc: BaseException, outcome: str) -> None:
    """Time-outs and failed connections are told apart, of httpx too; the exception goes on unchanged."""
    with pytest.raises(type(exc)) as caught, seen.observe.external.call("billing", "get"):
        raise exc
    assert caught.value is exc
    assert seen.sample("external_requests_total", service="billing", operation="get", outcome=outcome) == 1
    assert seen.spans[0].status.status_code is StatusCode.ERROR


def test_last_status_counts(seen: Seen) -> None:
    """A call that was tried again has the outcome of its last answer."""
    with seen.observe.external.call("billing", "get") as call:
        call.status(503)
        call.status(200)
    assert seen.sample("external_requests_total", service="billing", operation="get", outcome="ok") == 1
    assert seen.spans[0].status.status_code is StatusCode.UNSET


def test_unsampled_parent(observed: Callable[..., Seen]) -> None:
    """Below an unsampled parent no spans are made, but ids flow on: to the line, and into the next service."""
    seen = observed(Starlette(), sample_ratio=0.0)
    tracing = seen.observe.tracing
    with tracing.attach(TraceContext("a" * 32, "b" * 16, sampled=False)):
        with seen.observe.db.query("SELECT", table="orders"):
            carried = tracing.inject({})
        with tracing.span("own") as span:
            assert not span.is_recording()
    assert carried["traceparent"] == f"00-{'a' * 32}-{'b' * 16}-00"
    assert seen.spans == []
    assert seen.total("db_queries_total") == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.operation"]
    assert (line["trace_id"], line["span_id"]) == ("a" * 32, "b" * 16)


# httpx


async def echo(request: Request) -> Response:
    """Say what was received."""
    if request.url.path == "/redirect":
        return Response(status_code=307, headers={"location": "/echo"})
    return JSONResponse(dict(request.headers), status_code=int(request.query_params.get("status", "200")))


async def stream(request: Request) -> Response:
    """Answer in parts."""

    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number

    return StreamingResponse(parts())


def callee() -> Starlette:
    """Make the other service."""
    return Starlette(
        routes=[Route("/echo", echo, methods=["GET", "BREW"]), Route("/redirect", echo), Route("/s", stream)]
    )


async def test_one_trace_crosses_to_a_real_service(observed: Callable[..., Seen]) -> None:
    """The injected client passes the trace on: the other service's server span is a child of the client span."""
    other_app, app = callee(), FastAPI()

    @app.get("/")
    async def endpoint(http: HttpClientDep, port: int) -> dict[str, str]:
        answer = await http.get(f"http://user:secret@127.0.0.1:{port}/echo?card=4111#part")
        return dict(answer.json())

    there = observed(other_app, service_name="other")
    here = observed(app)
    with serving(other_app) as port, TestClient(app) as client:
        got = client.get(f"/?port={port}", headers={"baggage": "tenant=acme"}).json()
    server_here = here.server_spans[0]
    (call,) = [span for span in here.spans if span.kind is SpanKind.CLIENT]
    (server_there,) = there.server_spans
    assert server_here.context is not None
    assert call.parent is not None
    assert call.context is not None
    assert server_there.parent is not None
    assert call.parent.span_id == server_here.context.span_id
    assert server_there.parent.span_id == call.context.span_id
    assert server_there.parent.trace_id == server_here.context.trace_id
    assert got["baggage"] == "tenant=acme"
    assert call.name == "GET 127.0.0.1"
    assert call.attributes == {
        "peer.service": "127.0.0.1",
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.full": f"http://127.0.0.1:{port}/echo?card=REDACTED",
        "http.response.status_code": 200,
    }
    assert here.sample("external_requests_total", service="127.0.0.1", operation="GET", outcome="ok") == 1


async def test_http_client_works_with_a_transport_of_the_user(seen: Seen) -> None:
    """`transport`, `base_url` and the other options are httpx's own; streaming and redirects work."""
    http = seen.observe.http_client("payments", transport=httpx.ASGITransport(callee()), base_url="https://pay.example")
    assert "traceparent" in (await http.get("/echo", params={"status": "404"})).json()
    assert (await http.get("/redirect", follow_redirects=True)).status_code == 200
    async with http.stream("GET", "/s") as answer:
        assert await answer.aread() == b"012"
    attributes = [dict(span.attributes or {}) for span in seen.spans]
    assert [each["url.full"] for each in attributes] == [
        "https://pay.example/echo?status=REDACTED",
        "https://pay.example/redirect",
        "https://pay.example/s",
    ]
    assert {each["server.port"] for each in attributes} == {443}
    counts = {
        outcome: seen.sample("external_requests_total", service="payments", operation="GET", outcome=outcome)
        for outcome in ("ok", "client_error")
    }
    assert counts == {"ok": 2, "client_error": 1}
    await http.aclose()


async def test_a_streamed_answer_is_not_read_ahead(seen: Seen) -> None:
    """A streamed call ends with the headers: its parts are read when the user asks, even if more are to come."""
    may_end = threading.Event()

    async def slow(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.to_thread(may_end.wait, 5)
            yield b"last"

        return StreamingResponse(parts())

    with serving(Starlette(routes=[Route("/", slow)])) as port:
        async with seen.observe.http.stream("GET", f"http://127.0.0.1:{port}/") as answer:
            assert len(seen.spans) == 1
            parts = answer.aiter_bytes()
            assert await anext(parts) == b"first"
            may_end.set()
            assert await anext(parts) == b"last"
        await seen.observe.http.aclose()


async def test_failed_connection(seen: Seen) -> None:
    """A connection that is refused is a `connect_error`, and httpx's own exception."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(httpx.ConnectError):
            await seen.observe.http.get(f"http://127.0.0.1:{closed.getsockname()[1]}/")
    labels = {"service": "127.0.0.1", "operation": "GET", "outcome": "connect_error"}
    assert seen.sample("external_requests_total", **labels) == 1
    await seen.observe.http.aclose()


async def test_unknown_methods_are_no_labels(seen: Seen) -> None:
    """A method that our own client may have chosen does not become a label."""
    async with seen.observe.http_client("x", transport=httpx.ASGITransport(callee())) as http:
        await http.request("BREW", "http://x/echo")
    assert "BREW" not in KNOWN_METHODS
    assert seen.sample("external_requests_total", service="x", operation="_OTHER", outcome="ok") == 1
    assert seen.spans[0].name == "_OTHER x"


def test_many_hosts_are_one_service(seen: Seen) -> None:
    """The first hundred hosts become labels, for all clients together; the others are called `other`."""
    external = ExternalClient(seen.observe)
    services = {external.service_of(f"host{number}.example") for number in range(MOST_SERVICES * 3)}
    assert len(services) == MOST_SERVICES + 1
    assert "other" in services
    assert external.service_of("host0.example") == "host0.example"


async def test_clients_are_closed_at_shutdown(seen: Seen) -> None:
    """Every client that was made is closed at shutdown; the shared one is made anew when it is asked for again."""
    observe = seen.observe
    shared, own, forgotten = observe.http, observe.http_client("a"), observe.http_client("b")
    assert observe.http is shared
    await forgotten.aclose()
    del forgotten
    assert list(observe._more_clients) == [own]
    await observe.stop()
    assert (shared.is_closed, own.is_closed) == (True, True)
    assert observe.http is not shared
    await observe.http.aclose()


def test_client_has_the_proxies_of_the_environment(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies that httpx reads from the environment are used, as by a client that is not observed."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    plain, ours = httpx.AsyncClient(), seen.observe.http_client()
    assert [str(pattern.pattern) for pattern in ours._mounts] == [str(pattern.pattern) for pattern in plain._mounts]

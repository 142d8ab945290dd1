"""`observe.set`: the fields of a request are on everything that it reports from then on, and on nothing else."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse
from injection import failing
from loguru import logger
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.testclient import TestClient

from fastapi_observe import DatabaseDep, ObservabilityDep, get_observability
from fastapi_observe.records.fields import MAX_FIELD_VALUE_LENGTH, MAX_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from opentelemetry.sdk.trace import ReadableSpan

NAMES = ("tenant", "user_id", "user.id", "plan", "step")


def of_line(seen: Seen, message: str) -> list[dict[str, Any]]:
    """Return the fields of the request on each line with this message."""
    lines = [line["fields"] for line in seen.lines if line["message"] == message]
    return [{name: fields[name] for name in NAMES if name in fields} for fields in lines]


def of_span(span: ReadableSpan) -> dict[str, Any]:
    """Return the fields of the request on a span."""
    return {name: span.attributes[name] for name in NAMES if name in (span.attributes or {})}  # type: ignore[index]


def make_app() -> FastAPI:
    """Return an app that sets fields in a dependency, and reports in every way there is afterwards."""
    app = FastAPI()

    async def identify(observe: ObservabilityDep, tenant: str = "acme") -> None:
        with observe.operation("before"):
            logger.info("before")
        observe.set(tenant=tenant, user_id=7)

    def in_thread() -> None:
        logging.getLogger("lib").warning("from a thread")

    async def later() -> None:
        logger.info("from a background task")
        get_observability().set(step="background")
        logger.info("after the response")

    @app.exception_handler(LookupError)
    async def on_lookup(request: Request, exc: LookupError) -> JSONResponse:
        logger.info("from a handler")
        return JSONResponse({}, 409)

    @app.get("/work", dependencies=[Depends(identify)])
    async def work(observe: ObservabilityDep, db: DatabaseDep, tasks: BackgroundTasks) -> None:
        async with db.query("SELECT", table="orders"):
            pass
        with trace.get_tracer("library").start_as_current_span("by a library"), observe.tracing.span("mine"):
            await asyncio.to_thread(in_thread)
        tasks.add_task(later)

    @app.get("/fails", dependencies=[Depends(identify)])
    async def fails(observe: ObservabilityDep) -> None:
        with pytest.raises(ValueError, match="x"), observe.operation("step"):
            raise ValueError("x")
        raise HTTPException(503)

    @app.get("/handled", dependencies=[Depends(identify)])
    async def handled() -> None:
        raise LookupError

    @app.get("/plain")
    async def plain() -> None:
        logger.info("plain")

    return app


@pytest.mark.usefixtures("no_global_provider")
@pytest.mark.parametrize("sample_ratio", [1.0, 0.0])
def test_the_fields_are_on_everything_later(observed: Callable[..., Seen], sample_ratio: float) -> None:
    """On lines of threads, background tasks and handlers, all kinds of spans; at both sampling decisions."""
    seen = observed(make_app(), sample_ratio=sample_ratio, tail_sampling=("first",))
    fields = {"tenant": "acme", "user_id": 7}
    with TestClient(seen.observe.app) as client:
        client.get("/work")
        assert client.get("/handled").status_code == 409
        client.get("/plain")
    assert of_line(seen, "before") == [{}, {}]
    assert of_line(seen, "database query completed") == [fields]
    assert of_line(seen, "from a thread") == [fields]
    assert of_line(seen, "from a background task") == [fields]
    assert of_line(seen, "after the response") == [{**fields, "step": "background"}]
    assert of_line(seen, "from a handler") == [fields]
    assert of_line(seen, "plain") == [{}]
    assert of_line(seen, "HTTP request completed") == [fields, fields, {}]
    spans = {span.name: of_span(span) for span in seen.spans}
    mapped = {"tenant": "acme", "user.id": 7}
    assert spans.pop("before") == spans.pop("GET /plain") == {}
    background = next(name for name in spans if name.startswith("background"))
    assert spans == dict.fromkeys(
        ("GET /work", "GET /handled", "SELECT orders", "by a library", "mine", background), mapped
    )
    assert seen.observe.internal_errors.counts == {}


def test_the_server_logs_a_crash_with_the_fields_of_its_request(observed: Callable[..., Seen]) -> None:
    """It does so after the request, and also in the context of an earlier one of the connection."""
    app = FastAPI()

    @app.get("/{name}")
    def crash(name: str) -> None:
        seen.observe.set(tenant=name)
        raise ValueError(name)

    seen = observed(app)
    caught = []
    with TestClient(app) as client:
        for name in ("acme", "other"):
            with pytest.raises(ValueError, match=name) as raised:
                client.get(f"/{name}")
            caught.append(raised.value)
    for exc in caught:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=exc)
    of_server = [line for line in seen.lines if line["logger"] == "uvicorn.error"]
    of_requests = [line for line in seen.lines if line["logger"] == "fastapi_observe.request"]
    assert [line["fields"] for line in of_server] == [
        {"tenant": name, "error_type": "ValueError"} for name in ("acme", "other")
    ]
    assert [line["request_id"] for line in of_server] == [line["request_id"] for line in of_requests]


def test_failed_operations_and_repeated_queries(observed: Callable[..., Seen]) -> None:
    """The warnings and errors of a request have its fields, too."""
    app = make_app()

    @app.get("/many")
    async def many(observe: ObservabilityDep, db: DatabaseDep) -> None:
        observe.set(tenant="b")
        for _ in range(12):
            async with db.query("SELECT", table="orders", statement="SELECT 1"):
                pass

    seen = observed(app)
    with TestClient(app) as client:
        client.get("/fails?tenant=a")
        client.get("/many")
    assert of_line(seen, "operation failed") == [{"tenant": "a", "user_id": 7}]
    assert of_line(seen, "database query repeated in one request") == [{"tenant": "b"}]
    assert of_line(seen, "HTTP request completed") == [{"tenant": "a", "user_id": 7}, {"tenant": "b"}]


def test_before_the_route_is_known(observed: Callable[..., Seen]) -> None:
    """Middleware of both kinds sets fields; also of a request that no route matches, and of a WebSocket."""
    app = make_app()

    class Inner(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Any:
            seen.observe.set(tenant=request.url.path)
            return await call_next(request)

    class Outer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.observe.set(plan="free")
            await self.app(scope, receive, send)

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()
        seen.observe.set(step="open")
        await socket.close()

    app.add_middleware(Inner)
    app.add_middleware(Outer)
    seen = observed(app)
    with TestClient(app) as client:
        client.get("/plain")
        client.get("/nowhere")
        with client.websocket_connect("/ws"):
            pass
    assert of_line(seen, "plain") == [{"tenant": "/plain", "plan": "free"}]
    expected = [{"tenant": path, "plan": "free"} for path in ("/plain", "/nowhere")]
    assert of_line(seen, "HTTP request completed") == expected
    assert of_line(seen, "WebSocket connection closed") == [{"plan": "free", "step": "open"}]
    assert [of_span(span) for span in seen.server_spans] == [*expected, {"plan": "free", "step": "open"}]


async def test_no_other_request_has_them(observed: Callable[..., Seen]) -> None:
    """Concurrent requests have their own; a request inside another one does not inherit; a detached task has none."""
    app = make_app()
    done = asyncio.Event()

    async def detached() -> None:
        await asyncio.sleep(0)
        logger.info("detached")
        done.set()

    @app.get("/outer")
    async def outer(observe: ObservabilityDep) -> None:
        observe.set(tenant="outer")
        await client.get("/plain")
        logger.info("outside again")
        with observe.detached():
            app.state.task = asyncio.create_task(detached())

    seen = observed(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await asyncio.gather(*(client.get(f"/work?tenant={number}") for number in range(20)))
        seen.observe.set(tenant="nowhere")
        await client.get("/outer")
        await done.wait()
        logger.info("outside")
    assert sorted(int(each["tenant"]) for each in of_line(seen, "from a thread")) == list(range(20))
    spans = [span for span in seen.spans if span.name in {"mine", "GET /work"}]
    by_trace: dict[int, set[str]] = {}
    for span in spans:
        by_trace.setdefault(span.context.trace_id, set()).add(str(of_span(span)["tenant"]))
    assert [len(tenants) for tenants in by_trace.values()] == [1] * 20
    assert of_line(seen, "plain") == of_line(seen, "detached") == of_line(seen, "outside") == [{}]
    assert of_line(seen, "outside again") == [{"tenant": "outer"}]
    assert [of_span(span) for span in seen.server_spans if span.name == "GET /plain"] == [{}]


def test_a_thread_that_outlives_its_request(observed: Callable[..., Seen]) -> None:
    """The fields end with the request, also in a context that is still in use."""
    app, release, ended = FastAPI(), threading.Event(), threading.Event()

    @app.get("/")
    async def start(observe: ObservabilityDep) -> None:
        observe.set(tenant="acme")
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, __import__("contextvars").copy_context().run, wait)

    def wait() -> None:
        release.wait(10)
        logger.info("late")
        ended.set()

    seen = observed(app)
    with TestClient(app) as client:
        client.get("/")
        release.set()
        assert ended.wait(10)
    assert of_line(seen, "late") == [{}]


def test_an_excluded_request(observed: Callable[..., Seen]) -> None:
    """Lines that the user writes in it remain, with the fields of the request, and only in it."""
    seen = observed(make_app(), exclude_paths=["/work"])
    with TestClient(seen.observe.app) as client:
        client.get("/work")
        client.get("/plain")
    assert of_line(seen, "from a thread") == [{"tenant": "acme", "user_id": 7}]
    assert of_line(seen, "plain") == [{}]
    assert {span.name for span in seen.spans} == {"GET /plain"}


def test_values_are_redacted_and_bounded(observed: Callable[..., Seen]) -> None:
    """Secret names, personal data and tokens; objects of any type; too many fields. Nothing raises."""
    app = FastAPI()

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    cycle: list[Any] = []
    cycle.append(cycle)
    secret = "Bearer abcdef0123456789abcdef0123456789"  # noqa: S105 - an example

    @app.get("/")
    async def read(observe: ObservabilityDep) -> None:
        observe.set(password="hunter2hunter2", user_email="ada@example.org", enduser_id="ada", note=secret)  # noqa: S106
        observe.set(hostile=Hostile(), cycle=cycle, big="x" * 10_000_000, surrogate="\ud800", nan=float("nan"))
        observe.set(huge=10**30, flags=[1, True, None], gone=1, url="chosen by the app", **{"line\nbreak": 1})
        observe.set(gone=None, never=None)
        observe.set(**{f"n{number}": number for number in range(100)})
        observe.set(n0="again")

    seen = observed(app)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    fields = seen.request_lines[0]["fields"]
    attributes = dict(seen.server_spans[0].attributes or {})
    assert {fields[name] for name in ("password", "user_email", "enduser_id")} == {"REDACTED"}
    assert {attributes[name] for name in ("password", "user.email", "enduser.id")} == {"REDACTED"}
    assert "abcdef0123456789" not in f"{fields}{attributes}"
    assert fields["hostile"] == "<unprintable Hostile>"
    assert len(fields["big"]) == len(attributes["big"]) == MAX_FIELD_VALUE_LENGTH  # type: ignore[arg-type]
    assert fields["surrogate"] == attributes["surrogate"] == "\\ud800"
    assert fields["nan"] == attributes["nan"] == "nan"
    assert fields["flags"] == list(attributes["flags"]) == ["1", "True", "None"]  # type: ignore[arg-type]
    assert {"gone", "never"}.isdisjoint({*fields, *attributes})
    assert fields["url"] == "/"
    assert fields["n0"] == attributes["n0"] == "again"
    numbered = [name for name in fields if name.startswith("n") and name[1:].isdigit()]
    assert len(numbered) == MAX_FIELDS - 13
    warnings = [line["message"] for line in seen.lines if line["level"] == "warn"]
    assert [each.partition(":")[0] for each in warnings] == ["observe.set left out 81 fields (n19, n20, n21, n22, n23)"]
    assert seen.observe.internal_errors.counts == {}


def test_nested_values_are_redacted_by_their_names(observed: Callable[..., Seen]) -> None:
    """Before they become strings, which would not distinguish names and values."""
    app = FastAPI()

    class Login(NamedTuple):
        user: str
        api_key: str

    @app.get("/")
    async def read(observe: ObservabilityDep) -> None:
        observe.set(login=Login("ada", "hunter2"), pair={"name": "password", "since": 1, "value": "hunter2"})
        observe.set(listed=[{"Name": "ApiKey", "Type": "x", "Value": "hunter2"}], command=["run", "--token", "hunter2"])
        observe.set(plain=("a", "b"), nested={"a": [1]})

    seen = observed(app)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    fields = seen.request_lines[0]["fields"]
    attributes = dict(seen.server_spans[0].attributes or {})
    assert "hunter2" not in f"{fields}{attributes}"
    assert fields["login"] == attributes["login"] == "{'user': 'ada', 'api_key': 'REDACTED'}"
    assert fields["command"] == list(attributes["command"]) == ["run", "--token", "REDACTED"]  # type: ignore[arg-type]
    assert (fields["plain"], fields["nested"]) == (["a", "b"], "{'a': [1]}")


def test_outside_a_request(observed: Callable[..., Seen]) -> None:
    """It has no effect, and a warning says so, once a minute."""
    seen = observed(FastAPI())
    for _ in range(3):
        seen.observe.set(tenant="acme")
    warnings = [line["message"] for line in seen.lines if line["level"] == "warn"]
    assert len(warnings) == 1
    assert warnings[0].startswith("observe.set(tenant) has no effect: it was called outside a request")


def test_an_internal_error_never_raises(observed: Callable[..., Seen]) -> None:
    """An internal error is counted."""
    seen = observed(make_app())
    with failing("records.fields:add_fields"), TestClient(seen.observe.app) as client:
        assert client.get("/work").status_code == 200
    assert seen.observe.internal_errors.counts == {"set": 2}


def test_with_the_provider_of_the_user(observed: Callable[..., Seen]) -> None:
    """Its spans have the fields too, and a server span of an outer instrumentation that we adopt."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    app = make_app()
    seen = observed(app, tracer_provider=provider, span_processors=())

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        with provider.get_tracer("outer").start_as_current_span("outer", kind=SpanKind.SERVER):
            await app(scope, receive, send)

    with TestClient(outer) as client:
        client.get("/work")
    with TestClient(app) as client:
        client.get("/work?tenant=b")
    spans = [(span.name, of_span(span).get("tenant")) for span in exporter.get_finished_spans()]
    servers = [tenant for name, tenant in spans if name == "GET /work"]
    assert servers == ["acme", "b"]
    assert [tenant for name, tenant in spans if name == "mine"] == ["acme", "b"]
    assert [tenant for name, tenant in spans if name == "before"] == [None, None]
    assert seen.observe.internal_errors.counts == {}

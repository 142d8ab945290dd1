"""The `...Dep` aliases and `get_observability()` find the `Observability` of the request, in every kind of app."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from injection import failing
from opentelemetry.trace import INVALID_SPAN, Span
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

import fastapi_observe
from fastapi_observe import (
    DatabaseDep,
    ExternalDep,
    HttpClientDep,
    LogDep,
    MetricsDep,
    ObservabilityDep,
    SpanDep,
    TracingDep,
    dependencies,
    get_observability,
)
from fastapi_observe.dependencies import get_request_observability
from fastapi_observe.records.request import current_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from starlette.requests import Request

ALIASES = (
    "DatabaseDep",
    "ExternalDep",
    "HttpClientDep",
    "LogDep",
    "MetricsDep",
    "ObservabilityDep",
    "SpanDep",
    "TracingDep",
)


class Given:
    """What endpoints were given."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def check(self, seen: Seen) -> None:
        """Hold that each endpoint was given the very objects of the installed app, and the server span."""
        observe = seen.observe
        spans = {span.context.span_id for span in seen.server_spans if span.context}
        assert self.all
        for one in self.all:
            assert one["tracing"] is observe.tracing
            assert one["metrics"] is observe.metrics
            assert one["log"] is observe.log
            assert one["db"] is observe.db
            assert one["external"] is observe.external
            assert one["observe"] is observe
            assert isinstance(one["http"], httpx.AsyncClient)
            assert one["current"] is observe
            assert one["span"].get_span_context().span_id in spans


def router_for(given: Given) -> APIRouter:
    """Build a router whose endpoints ask for everything: async, sync and over a WebSocket."""
    router = APIRouter()

    @router.get("/async/{name}")
    async def is_async(  # noqa: PLR0913, PLR0917 - one of each
        name: str,
        tracing: TracingDep,
        metrics: MetricsDep,
        log: LogDep,
        db: DatabaseDep,
        external: ExternalDep,
        http: HttpClientDep,
        span: SpanDep,
        observe: ObservabilityDep,
    ) -> None:
        given.all.append({**locals(), "current": get_observability()})

    @router.get("/sync/{name}")
    def is_sync(  # noqa: PLR0913, PLR0917 - one of each
        name: str,
        tracing: TracingDep,
        metrics: MetricsDep,
        log: LogDep,
        db: DatabaseDep,
        external: ExternalDep,
        http: HttpClientDep,
        span: SpanDep,
        observe: ObservabilityDep,
    ) -> None:
        given.all.append({**locals(), "current": get_observability()})

    @router.websocket("/talk/{name}")
    async def talks(  # noqa: PLR0913, PLR0917 - one of each
        websocket: WebSocket,
        name: str,
        tracing: TracingDep,
        metrics: MetricsDep,
        log: LogDep,
        db: DatabaseDep,
        external: ExternalDep,
        http: HttpClientDep,
        span: SpanDep,
        observe: ObservabilityDep,
    ) -> None:
        given.all.append({**locals(), "current": get_observability()})
        await websocket.accept()
        await websocket.close()

    return router


def ask(client: TestClient, prefix: str) -> None:
    """Send a request to each endpoint of the router."""
    assert client.get(f"{prefix}/async/x").status_code == 200
    assert client.get(f"{prefix}/sync/x").status_code == 200
    with client.websocket_connect(f"{prefix}/talk/x"):
        pass


def test_in_routers_and_mounted_apps(observed: Callable[..., Seen]) -> None:
    """Every alias works in an included router and in a plain app mounted below the installed one."""
    given = Given()
    plain = FastAPI()
    plain.include_router(router_for(given))
    app = FastAPI()
    app.include_router(router_for(given), prefix="/v1")
    app.mount("/plain", plain)
    seen = observed(app)
    client = TestClient(app)
    ask(client, "/v1")
    ask(client, "/plain")
    assert len(given.all) == 6
    given.check(seen)


def test_the_outermost_installed_app_is_given(observed: Callable[..., Seen]) -> None:
    """A mounted installed app gets the outer app's objects, and its own if it is called directly."""
    given = Given()
    inner_app, outer_app = FastAPI(), FastAPI()
    inner_app.include_router(router_for(given))
    outer_app.mount("/inner", inner_app)
    inner, outer = observed(inner_app), observed(outer_app, exclude_paths=("/inner/async/excluded",))
    ask(TestClient(outer_app), "/inner")
    given.check(outer)
    given.all.clear()
    ask(TestClient(inner_app), "")
    given.check(inner)
    given.all.clear()
    TestClient(outer_app).get("/inner/async/excluded")
    assert given.all[0]["observe"] is given.all[0]["current"] is inner.observe


def test_on_excluded_paths(observed: Callable[..., Seen]) -> None:
    """A request that is not reported gets its objects; its span is the invalid span."""
    given = Given()
    app = FastAPI()
    app.include_router(router_for(given))
    seen = observed(app, exclude_paths=("/async/*",))
    TestClient(app).get("/async/x")
    assert given.all[0]["observe"] is given.all[0]["current"] is seen.observe
    assert given.all[0]["span"] is INVALID_SPAN


def test_without_tracing_the_span_records_nothing(observed: Callable[..., Seen]) -> None:
    """With the signal switched off an endpoint works unchanged."""
    app = FastAPI()
    given: list[Span] = []

    @app.get("/")
    async def endpoint(span: SpanDep) -> None:
        span.set_attribute("shop.tenant", "a")
        given.append(span)

    observed(app, tracing=False)
    assert TestClient(app).get("/").status_code == 200
    assert not given[0].is_recording()


def test_attributes_set_on_the_server_span_are_exported(observed: Callable[..., Seen]) -> None:
    """An attribute set through `SpanDep` is on the exported server span."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(span: SpanDep) -> None:
        span.set_attribute("shop.tenant", "a")

    seen = observed(app)
    TestClient(app).get("/")
    assert (seen.server_spans[0].attributes or {})["shop.tenant"] == "a"


@pytest.mark.parametrize("name", ALIASES)
def test_in_modules_with_and_without_future_annotations(observed: Callable[..., Seen], name: str) -> None:
    """An alias works with annotations as strings and as objects, from the package and from its module."""
    for future in ("from __future__ import annotations\n", ""):
        for source in ("fastapi_observe", "fastapi_observe.dependencies"):
            module = types.ModuleType("user_module")
            text = (
                f"{future}from fastapi import FastAPI\nfrom {source} import {name}\napp = FastAPI()\nseen = []\n"
                f"@app.get('/')\nasync def endpoint(given: {name}):\n    seen.append(given)\n"
            )
            exec(compile(text, "user_module", "exec", dont_inherit=True), vars(module))  # noqa: S102 - our own text
            observed(module.app)
            assert TestClient(module.app).get("/").status_code == 200
            assert len(module.seen) == 1


def test_overrides(observed: Callable[..., Seen]) -> None:
    """`dependency_overrides` replaces what an alias gives, by the function in the alias."""
    app = FastAPI()
    given: list[Any] = []

    @app.get("/")
    async def endpoint(db: DatabaseDep) -> None:
        given.append(db)

    seen = observed(app)
    app.dependency_overrides[DatabaseDep.__metadata__[0].dependency] = lambda: "a fake"  # type: ignore[attr-defined]
    TestClient(app).get("/")
    app.dependency_overrides.clear()
    TestClient(app).get("/")
    assert given == ["a fake", seen.observe.db]


@pytest.mark.parametrize("name", ALIASES)
def test_without_install(name: str) -> None:
    """Without `install`, a request that uses an alias raises an error with the next step."""

    async def endpoint(given: Any) -> None:
        """Ask for it."""

    endpoint.__annotations__["given"] = getattr(fastapi_observe, name)
    app = FastAPI()
    app.get("/")(endpoint)
    with pytest.raises(RuntimeError, match=r"call install\(app\) where the app is created"):
        TestClient(app).get("/")
    assert TestClient(app, raise_server_exceptions=False).get("/").status_code == 500


def test_far_from_requests(observed: Callable[..., Seen]) -> None:
    """`get_observability()` returns the only install; with none or several it raises an error with the next step."""
    with pytest.raises(RuntimeError, match=r"call install\(app\) where the app is created"):
        get_observability()
    app = FastAPI()
    first = observed(app)
    assert get_observability() is first.observe is app.state.observe
    second = observed(FastAPI())
    with pytest.raises(RuntimeError, match=r"2 apps are installed .* use app.state.observe"):
        get_observability()
    second.observe.close()
    assert get_observability() is first.observe


def test_the_openapi_schema_is_unchanged() -> None:
    """OpenAPI is the same with and without the aliases."""
    schemas = []
    for parameters in ("name: str", "name: str, " + ", ".join(f"a{n}: {alias}" for n, alias in enumerate(ALIASES))):
        space: dict[str, Any] = {alias: getattr(fastapi_observe, alias) for alias in ALIASES}
        exec(f"async def endpoint({parameters}) -> None: ...", space)  # noqa: S102 - our own text
        app = FastAPI()
        app.get("/items/{name}")(space["endpoint"])
        schemas.append(app.openapi())
    assert schemas[0] == schemas[1]


def test_plain_starlette_asks_by_function(observed: Callable[..., Seen]) -> None:
    """`get_request_observability` is for endpoints that FastAPI does not call, in mounted apps too."""
    given: list[Any] = []

    async def page(request: Request) -> PlainTextResponse:
        given.append(get_request_observability(request))
        return PlainTextResponse("page")

    app = Starlette(routes=[Mount("/sub", Starlette(routes=[Route("/x", page)]))])
    seen = observed(app)
    TestClient(app).get("/sub/x")
    assert given == [seen.observe]


def test_a_name_that_is_not_there() -> None:
    """The lazy names do not hide a misspelt one."""
    with pytest.raises(AttributeError, match="no attribute 'HttpDep'"):
        _ = dependencies.HttpDep


def test_get_observability_without_a_known_request(observed: Callable[..., Seen]) -> None:
    """Without a current request, it is the only installed app."""
    seen = observed(FastAPI())
    with failing(current_record):
        assert get_observability() is seen.observe

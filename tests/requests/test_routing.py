"""The endpoint of a request is a route template with all prefixes, never the path that the client sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from hypothesis import given, settings
from hypothesis import strategies as st
from injection import failing, replacing
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from tools import held, volume

from fastapi_observe.requests.routing import (
    MAX_CACHED_TEMPLATES,
    RouteTemplates,
    list_endpoints,
    matched_route,
    mounted_apps,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.types import ASGIApp, Receive, Scope, Send


async def page(request: Any) -> PlainTextResponse:
    """Answer any Starlette request."""
    return PlainTextResponse("page")


async def other(request: Any) -> PlainTextResponse:
    """Answer any Starlette request, as another function."""
    return PlainTextResponse("other")


async def item() -> str:
    """Answer any FastAPI request."""
    return "item"


class Named:
    """An app served bare, with the template that `Routes` gives each of its requests."""

    def __init__(self, app: Starlette, root_path: str = "") -> None:
        self._app = app
        self.routes = RouteTemplates(app)
        self.client = TestClient(self._serve, root_path=root_path, raise_server_exceptions=False)
        self.client.follow_redirects = False
        self.last = ""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 101

        async def noting(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self.last = self.routes.template(scope, status)

    def __call__(self, path: str, method: str = "GET", **options: Any) -> str:
        """Name a request."""
        self.client.request(method, path, **options)
        return self.last

    def websocket(self, path: str) -> str:
        """Name a WebSocket connection."""
        with self.client.websocket_connect(path):
            pass
        return self.last


def three_deep() -> FastAPI:
    """Build an app whose route is in three routers, each with its own prefix."""
    cases, shops, regions = APIRouter(), APIRouter(), APIRouter(prefix="/regions")
    cases.get("/cases/{case}")(item)
    shops.include_router(cases, prefix="/shops/{shop}")
    regions.include_router(shops, prefix="/{region}")
    app = FastAPI()
    app.include_router(regions, prefix="/v1")
    return app


def test_included_routers_nested_three_deep() -> None:
    """Every prefix of every router is in the template, parameters by name."""
    template = Named(three_deep())
    assert template("/v1/regions/north/shops/7/cases/9") == "/v1/regions/{region}/shops/{shop}/cases/{case}"


def test_one_router_included_twice() -> None:
    """The same function under two prefixes has two templates, also when each is asked for again."""
    router = APIRouter()
    router.get("/{name}")(item)
    app = FastAPI()
    app.include_router(router, prefix="/a")
    app.include_router(router, prefix="/b")
    template = Named(app)
    assert [template(path) for path in ("/a/1", "/b/1", "/a/2", "/b/2")] == ["/a/{name}", "/b/{name}"] * 2


def test_websocket_routes() -> None:
    """A WebSocket is named like a request, in an app and in an included router."""

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    router = APIRouter()
    router.websocket("/talk/{name}")(talk)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.router.routes.append(WebSocketRoute("/plain/{name}", talk))
    template = Named(app)
    assert template.websocket("/v1/talk/ann") == "/v1/talk/{name}"
    assert template.websocket("/plain/ann") == "/plain/{name}"


def test_mounts_in_mounts() -> None:
    """Each mount's own template is in the name; a mount's parameter reads as its name, not as its value."""
    inner = Starlette(routes=[Route("/x/{y}", page)])
    middle = FastAPI()
    middle.mount("/inner", inner)
    middle.get("/own/{id}")(item)
    app = Starlette(routes=[Mount("/t/{tenant}", Router([Mount("/middle", middle)]))])
    template = Named(app)
    assert template("/t/acme/middle/inner/x/1") == "/t/{tenant}/middle/inner/x/{y}"
    assert template("/t/other/middle/own/1") == "/t/{tenant}/middle/own/{id}"
    assert template("/t/other/middle/docs") == "/t/{tenant}/middle/docs"
    assert template("/t/other/middle/nothing") == "/t/{tenant}/middle/{path}"
    assert template("/t/other/nothing") == "/t/{tenant}/{path}"


def test_a_mount_that_spans_slashes() -> None:
    """A mount with a path parameter of several parts is one name."""
    app = Starlette(routes=[Mount("/files/{where:path}/raw", Router([Route("/{name}", page)]))])
    assert Named(app)("/files/a/b/c/raw/x") == "/files/{where}/raw/{name}"


def test_mounts_with_a_common_prefix() -> None:
    """Of two mounts with the same prefix, the one that has the route is used."""
    app = Starlette(
        routes=[
            Route("/first", page),
            Mount("/a", Router([Mount("/b", Router([Route("/x", page)]))])),
            Mount("/a/{name}", Router([Route("/y", page)])),
            Mount("/{any}", Router([Route("/z", page)])),
        ]
    )
    template = Named(app)
    assert template("/a/b/x") == "/a/b/x"
    assert template("/c/z") == "/{any}/z"


def test_a_mount_at_the_root() -> None:
    """`Mount("/")` adds nothing to the path, and what it does not find is below it."""
    inner = Starlette(routes=[Mount("/deep", Router([Route("/x/{y}", page)])), Route("/z", page)])
    template = Named(Starlette(routes=[Mount("/", inner)]))
    assert template("/deep/x/1") == "/deep/x/{y}"
    assert template("/z") == "/z"
    assert template("/nothing") == "/{path}"


def test_a_mount_in_middleware() -> None:
    """Middleware around a mounted app hides neither its mounts nor its routes."""
    deep = Starlette(routes=[Route("/x/{y}", page)])
    sub = FastAPI()
    sub.mount("/deep", deep)
    sub.add_route("/plain/{z}", page)
    app = Starlette(
        routes=[
            Mount("/wrapped", GZipMiddleware(GZipMiddleware(sub))),
            Mount("/listed", sub, middleware=[Middleware(GZipMiddleware)]),
        ]
    )
    template = Named(app)
    assert template("/wrapped/deep/x/1") == "/wrapped/deep/x/{y}"
    assert template("/listed/deep/x/1") == "/listed/deep/x/{y}"
    assert template("/listed/plain/1") == "/listed/plain/{z}"
    assert template("/wrapped/404") == "/wrapped/{path}"


def test_an_app_that_lists_no_routes() -> None:
    """The path below a mounted app without routes is `{path}`; its inner template is used if there is one."""
    inner = Starlette(routes=[Mount("/secret", Router([Route("/x/{y}", page)]))])

    async def opaque(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)

    template = Named(Starlette(routes=[Mount("/opaque", opaque)]))
    assert template("/opaque/404") == "/opaque/{path}"
    assert template("/opaque/secret/404") == "/opaque/{path}"
    assert template("/opaque/secret/x/1") in {"/opaque/{path}/x/{y}", "/opaque/{path}"}


def test_an_included_router_that_contains_a_mount() -> None:
    """The router's prefix precedes the mount's path."""
    sub = FastAPI()
    sub.get("/items/{id}")(item)
    router = APIRouter()
    router.mount("/sub", sub)
    router.get("/{name}")(item)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    template = Named(app)
    assert template("/v1/x") == "/v1/{name}"
    if any(
        hasattr(route, "effective_route_contexts") for route in app.routes
    ):  # FastAPI 0.137 and later include mounts
        assert template("/v1/sub/items/3") == "/v1/sub/items/{id}"
        assert template("/v1/sub/openapi.json") == "/v1/sub/openapi.json"
        assert template("/v1/sub/nothing") == "/v1/sub/{path}"


def test_a_host_adds_nothing_to_the_path() -> None:
    """Routes and mounts below a Host are named by their path alone."""
    routes = [Mount("/m", Router([Route("/x/{y}", page)])), Route("/z", page)]
    app = Starlette(routes=[Host("api.example.org", Router(routes)), Mount("/n", Router([Route("/w", other)]))])
    template = Named(app)
    api = {"host": "api.example.org"}
    assert template("/m/x/1", headers=api) == "/m/x/{y}"
    assert template("/z", headers=api) == "/z"
    assert template("/nothing", headers=api) == "/{path}"
    assert template("/n/w") == "/n/w"
    assert template("/z") == "unmatched"


def test_static_files(tmp_path: Path) -> None:
    """A file and a missing file have the template of the mount."""
    (tmp_path / "a.txt").write_text("a")
    template = Named(Starlette(routes=[Mount("/static", StaticFiles(directory=tmp_path))]))
    assert {template("/static/a.txt"), template("/static/none.txt")} == {"/static/{path}"}
    template = Named(Starlette(routes=[Mount("/", StaticFiles(directory=tmp_path))]))
    assert template("/a.txt") == "/{path}"


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="FastAPI has app.frontend() since 0.138")
def test_a_front_end(tmp_path: Path) -> None:
    """A front end has one template for all its files, with and without a server's root_path."""
    (tmp_path / "index.html").write_text("<html></html>")
    app: Any = FastAPI()
    app.frontend("/shop", directory=str(tmp_path))
    app.get("/items")(item)
    template = Named(app)
    assert {template("/shop"), template("/shop/"), template("/shop/a/b.js")} == {"/shop/{path}"}
    assert template("/items") == "/items"
    assert Named(app, root_path="/api")("/api/shop/x.js") == "/shop/{path}"
    root: Any = FastAPI()
    root.frontend("/", directory=str(tmp_path))
    assert Named(root)("/any/thing.js") == "/{path}"


def test_add_route() -> None:
    """A route that puts only its function into the scope is found by that function."""
    router = APIRouter()
    router.add_route("/in/{x}", page)
    app = FastAPI()
    app.add_route("/plain/{x}", other)
    app.include_router(router, prefix="/v1")
    template = Named(app)
    assert template("/plain/1") == "/plain/{x}"
    assert template("/v1/in/1") == "/v1/in/{x}"
    starlette = Starlette()
    starlette.router.routes.append(Route("/plain/{x}", other))
    assert Named(starlette)("/plain/1") == "/plain/{x}"


@pytest.mark.parametrize("root_path", ["", "/api"])
def test_one_function_on_two_paths(root_path: str) -> None:
    """The path decides which of a function's templates is meant; the mount's prefix comes before it."""
    sub = FastAPI()
    sub.add_route("/one/{x}", page)
    sub.add_route("/two", page)
    app = FastAPI()
    app.mount("/t/{tenant}", sub)
    template = Named(app, root_path=root_path)
    for _ in range(2):
        assert template(f"{root_path}/t/a/one/1") == "/t/{tenant}/one/{x}"
        assert template(f"{root_path}/t/a/two") == "/t/{tenant}/two"


def test_docs_of_an_app_and_of_a_mounted_one() -> None:
    """`/docs` is a route like any other, in the app that serves it."""
    app = FastAPI()
    app.mount("/sub", FastAPI())
    template = Named(app)
    assert [template("/docs"), template("/sub/docs"), template("/openapi.json")] == [
        "/docs",
        "/sub/docs",
        "/openapi.json",
    ]


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
def test_root_path_of_the_app() -> None:
    """`FastAPI(root_path=...)` is not part of a template."""
    sub = FastAPI()
    sub.get("/items/{id}")(item)
    app = FastAPI(root_path="/api")
    app.get("/items/{id}")(item)
    app.mount("/sub", sub)
    template = Named(app)
    assert template("/items/1") == "/items/{id}"
    assert template("/api/items/1") == "/items/{id}"
    assert template("/api/sub/items/1") == "/sub/items/{id}"


def test_root_path_of_the_server() -> None:
    """A server's root_path is not part of a template, whether the path contains it or not."""
    app = three_deep()
    app.mount("/t/{tenant}", Router([Route("/x", page)]))
    template = Named(app, root_path="/api")
    assert template("/api/v1/regions/n/shops/7/cases/9") == "/v1/regions/{region}/shops/{shop}/cases/{case}"
    assert template("/v1/regions/n/shops/7/cases/9") == "/v1/regions/{region}/shops/{shop}/cases/{case}"
    assert template("/api/t/acme/x") == "/t/{tenant}/x"
    assert template("/apish") == "unmatched"


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
def test_a_mounted_app_with_a_root_path_of_its_own() -> None:
    """Its root_path is that of its mount: where they agree the template is whole, else nothing matches there."""
    sub = FastAPI(root_path="/sub")
    sub.get("/items/{id}")(item)
    app = FastAPI()
    app.mount("/sub", sub)
    assert Named(app)("/sub/items/1") == "/sub/items/{id}"
    strange = FastAPI(root_path="/elsewhere")
    strange.get("/items/{id}")(item)
    app = FastAPI()
    app.mount("/sub", strange)
    assert Named(app)("/sub/items/1") == "/{path}"


def test_redirect_and_unmatched() -> None:
    """Without an endpoint there are two names: `redirect` and `unmatched`."""
    app = FastAPI()
    app.get("/items/")(item)
    template = Named(app)
    assert template("/items") == "redirect"
    assert template("/nothing") == "unmatched"
    assert template("/items/", method="DELETE") == "/items/"


def test_a_route_of_a_class_of_the_users_own() -> None:
    """A route without a template has a fixed name, not the client's path."""

    class Any7(BaseRoute):
        endpoint = staticmethod(page)

        def matches(self, scope: Scope) -> Any:
            from starlette.routing import Match  # noqa: PLC0415 - beside its use

            return Match.FULL, {"endpoint": self.endpoint}

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("any")(scope, receive, send)

    assert Named(Starlette(routes=[Any7()]))("/who/knows") == "/{path}"


def test_a_path_that_no_template_fits() -> None:
    """A path that a middleware changed after the routing gets the first template of its function."""
    app = FastAPI()
    app.add_route("/one", page)
    app.add_route("/two", page)
    scope = {"endpoint": page, "path": "/changed", "app": app}
    assert RouteTemplates(app).template(scope, 200) == "/one"


def test_a_template_is_cached() -> None:
    """The second request on a route costs one look-up; another value of a parameter is the same route."""
    app = three_deep()
    app.mount("/sub", Router([Route(f"/{n}", page if n == 7 else other) for n in range(9)]))
    template = Named(app)
    first = [template("/v1/regions/n/shops/7/cases/9"), template("/sub/7"), template("/docs")]
    with failing("requests.routing:RouteTemplates._find_template"):
        assert [template("/v1/regions/x/shops/1/cases/2"), template("/sub/7"), template("/docs")] == first


def counting(base: type[Any], calls: list[str]) -> type[Any]:
    """Derive a route class that notes each time it is asked whether it matches."""

    class Counting(base):  # type: ignore[misc]  # it is one of several
        def matches(self, scope: Scope) -> Any:
            calls.append(self.path)
            return super().matches(scope)

    return Counting


@pytest.mark.parametrize("target", ["/r199/1", "/m199/x/1", "/none"])
def test_no_route_is_matched_a_second_time(target: str) -> None:
    """Finding a template calls no route's `matches`: the cost does not grow with the number of routes."""
    calls: list[str] = []
    route, mount = counting(Route, calls), counting(Mount, calls)
    app = Starlette(
        routes=[
            *(route(f"/r{n}/{{x}}", page) for n in range(200)),
            *(mount(f"/m{n}", Router([Route("/x/{y}", page)])) for n in range(200)),
        ]
    )
    scopes: list[Scope] = []

    async def keeping(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    TestClient(keeping).get(target)
    assert calls
    calls.clear()
    assert RouteTemplates(app).template(scopes[0], 200) in {"/r199/{x}", "/m199/x/{y}", "unmatched"}
    assert calls == []


def test_the_cache_is_bounded() -> None:
    """However many tenants a client invents, the number of entries is limited; very long paths are not cached."""
    app = Starlette(routes=[Mount("/t/{tenant}", Router([Route("/x", page)]))])
    routes = RouteTemplates(app)
    route = app.routes[0].app.routes[0]  # type: ignore[attr-defined]

    def scope(tenant: str) -> Scope:
        return {
            "path": f"/t/{tenant}/x",
            "root_path": f"/t/{tenant}",
            "app_root_path": "",
            "endpoint": page,
            "route": route,
        }

    full = 0
    for number in range(MAX_CACHED_TEMPLATES + 10):
        assert routes.template(scope(str(number)), 200) == "/t/{tenant}/x"
        full = max(full, held(routes) if number == MAX_CACHED_TEMPLATES - 1 else 0)
    few = held(routes)
    assert few < full / 2
    assert routes.template(scope("long" * 100), 200) == "/t/{tenant}/x"
    assert held(routes) == few


def test_a_route_of_an_outer_router_is_ignored() -> None:
    """Only the route of the endpoint in the scope is the matched route."""
    route = SimpleNamespace(endpoint=page)
    assert matched_route({"endpoint": page, "route": route}) is route
    assert matched_route({"endpoint": other, "route": route}) is None
    assert matched_route({"route": route}) is None


def test_mounted_apps_are_found_once() -> None:
    """Apps are found below mounts, hosts, routers, included routers and middleware; circles are walked once."""
    one, two, three, four = Starlette(), FastAPI(), FastAPI(), Starlette()
    one.mount("/again", two)
    router = APIRouter()
    router.mount("/four", four)
    app = FastAPI()
    app.mount("/one", one)
    app.mount("/two", GZipMiddleware(two))
    app.mount("/three", Router([Host("x.example.org", three)]))
    app.mount("/self", app)
    app.include_router(router)
    app.get("/items")(item)
    wanted = [one, two, three]
    if any(hasattr(route, "effective_route_contexts") for route in app.routes):
        wanted.append(four)
    assert mounted_apps(app) == wanted


def test_endless_middleware() -> None:
    """An app that wraps itself is unwrapped a fixed number of times."""

    class Loop:
        @property
        def app(self) -> ASGIApp:
            return self

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("loop")(scope, receive, send)

    assert mounted_apps(Starlette(routes=[Mount("/loop", Loop())])) == []
    assert Named(Starlette(routes=[Mount("/loop", Loop())]))("/loop/x") == "/loop/{path}"


def test_older_starlette_without_a_route() -> None:
    """If no router stores a route, the function is searched below mounts and hosts."""
    inner = Router([Route("/x/{y}", page)])
    app = Starlette(
        routes=[Mount("/m", inner), Host("h.example.org", Router([Route("/h/{z}", other)])), Route("/o", item)]
    )
    template = Named(app)
    with replacing(matched_route, lambda *_: None):
        assert template("/m/x/1") == "/m/x/{y}"
        assert template("/h/1", headers={"host": "h.example.org"}) == "/h/{z}"


def wide_app() -> FastAPI:
    """Build an app with every kind of route."""
    app = three_deep()
    sub = FastAPI()
    sub.get("/items/{id}")(item)
    sub.add_route("/raw/{x}", page)
    app.mount("/t/{tenant}", sub)
    app.mount("/s/{name:path}/end", Starlette(routes=[Route("/{x}/{y}", page)]))
    app.add_route("/twice/{a}", other)
    app.add_route("/second/{a}/{b}", other)
    app.router.routes.append(Host("{who}.example.org", Router([Route("/host/{x}", page)])))
    return app


WIDE = Named(wide_app())
TEMPLATES = {
    "/v1/regions/{region}/shops/{shop}/cases/{case}",
    "/t/{tenant}/items/{id}",
    "/t/{tenant}/raw/{x}",
    "/t/{tenant}/docs",
    "/t/{tenant}/{path}",
    "/s/{name}/end/{x}/{y}",
    "/s/{name}/end/{path}",
    "/twice/{a}",
    "/second/{a}/{b}",
    "/host/{x}",
    "/{path}",
    "/docs",
    "redirect",
    "unmatched",
}
PARTS = st.one_of(
    st.sampled_from(["v1", "regions", "shops", "cases", "t", "items", "raw", "s", "end", "twice", "second", "docs"]),
    st.text(max_size=8),
)


@given(parts=st.lists(PARTS, max_size=8), host=st.sampled_from(["testserver", "me.example.org"]))
@settings(max_examples=volume(300), deadline=None)
def test_no_path_becomes_a_template(parts: list[str], host: str) -> None:
    """Whatever path a client sends, the endpoint is one of the declared templates."""
    path = "/" + "/".join(parts)
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", host.encode())],
        "scheme": "http",
        "server": (host, 80),
        "client": None,
    }
    run(WIDE._serve, scope, sent)
    assert WIDE.last in TEMPLATES


def run(app: Callable[..., Any], scope: Any, sent: list[Any]) -> None:
    """Serve one request in process."""
    import asyncio  # noqa: PLC0415 - beside its use

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))


def test_a_route_without_a_path() -> None:
    """A route without a path is not listed."""
    assert list_endpoints(SimpleNamespace(routes=[SimpleNamespace(endpoint=len)])) == []

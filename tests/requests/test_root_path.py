"""Below a `root_path` or in a mount, labels, objectives and exclusions have the paths of the app itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from driver import ask
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Host, Mount
from starlette.testclient import TestClient

from fastapi_observe import Availability
from fastapi_observe.doctor.lines import check_exclusions
from fastapi_observe.requests.exclusion import RequestFilter
from fastapi_observe.requests.routing import path_in_app
from fastapi_observe.slo.plan import make_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

ALL = 7

pytestmark = pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")


def shop(root_path: str = "") -> FastAPI:
    """Return an app with a route that fails for one order, a health check and a mounted app."""
    app, sub = FastAPI(root_path=root_path), FastAPI()
    app.get("/orders/{number}")(lambda number: 1 // int(number))
    app.get("/health")(lambda: "healthy")
    sub.get("/items/{name}")(lambda name: name)
    app.mount("/sub", sub)
    return app


def mounted_at(path: str) -> Callable[[FastAPI], FastAPI]:
    """Return a function that mounts an app in one without `install`."""

    def mount(app: FastAPI) -> FastAPI:
        parent = FastAPI()
        parent.mount(path, app)
        return parent

    return mount


PLACES: dict[str, tuple[str, Callable[[FastAPI], Any], str, str]] = {
    "plain": ("", lambda app: app, "", ""),
    "root_path of the server": ("", lambda app: app, "/svc", "/svc"),
    "root_path of the server that a proxy removes": ("", lambda app: app, "/svc", ""),
    "root_path of the app": ("/svc", lambda app: app, "", "/svc"),
    "root_path of the app that a proxy removes": ("/svc", lambda app: app, "", ""),
    "mount": ("", mounted_at("/api"), "", "/api"),
    "mount with a parameter": ("", mounted_at("/{tenant}"), "", "/health"),
    "mount below a root_path": ("", mounted_at("/api"), "/svc", "/svc/api"),
    "mount of an app with the same root_path": ("/api", mounted_at("/api"), "", "/api"),
    "mount of everything": ("", mounted_at("/"), "", ""),
    "two mounts and a middleware": (
        "",
        lambda app: Starlette(routes=[Mount("/a", routes=[Mount("/b", GZipMiddleware(app))])]),
        "",
        "/a/b",
    ),
    "host": ("", lambda app: Starlette(routes=[Host("testserver", app)]), "", ""),
}
"""`root_path` of the app, what it is mounted in, `root_path` of the server and the path that clients add."""


@pytest.mark.parametrize("place", PLACES)
def test_an_app_measures_the_same_wherever_it_is_served(observed: Callable[..., Seen], place: str) -> None:
    """Templates are those of `slo check` and `doctor`: the objective sees the failure, the exclusion applies."""
    own, within, server, prefix = PLACES[place]
    app = shop(own)
    objective = Availability("orders", 99, routes=["GET /orders/{number}"])
    seen = observed(app, slos=[objective], exclude_paths=["/health"], metrics_access="always")
    client = TestClient(within(app), root_path=server, raise_server_exceptions=False, follow_redirects=False)
    paths = {"/orders/1": 200, "/orders/0": 500, "/orders/1/": 307, "/health": 200, "/nowhere": 404, "/metrics": 200}
    assert {path: client.get(prefix + path).status_code for path in paths} == paths
    counted = {
        (labels["endpoint"], labels["status_code"])
        for labels, number in ((dict(labels), number) for labels, number in seen.samples("http_requests_total").items())
        if number
    }
    assert counted == {
        *(("/orders/{number}", "200"), ("/orders/{number}", "500")),
        *(("redirect", "307"), ("unmatched", "404")),
    }
    assert (seen.sample("slo_error_budget_remaining_ratio", slo="orders") or 0) < 0
    assert {line["fields"]["endpoint"] for line in seen.request_lines} == {template for template, _ in counted}
    (slo,) = make_plan(app, seen.observe.settings).slos
    assert slo.groups == ((("GET",), ("/orders/{number}",)),)
    (check,) = check_exclusions(seen.observe)
    assert check.found == "excluded routes (1 of 2): GET /health"
    assert seen.observe.internal_errors.counts == {}


@pytest.mark.parametrize("place", [name for name in PLACES if "proxy removes" not in name])
def test_an_app_in_the_installed_app(observed: Callable[..., Seen], place: str) -> None:
    """The template begins with the mount inside the installed app, also where no route matched there."""
    own, within, server, prefix = PLACES[place]
    seen = observed(app := shop(own), exclude_paths=["/sub/items/secret"])
    client = TestClient(within(app), root_path=server)
    for path in ("/sub/items/1", "/sub/items/secret", "/sub/nowhere"):
        client.get(prefix + path)
    endpoints = {dict(labels)["endpoint"] for labels in seen.samples("http_requests_total")}
    assert endpoints == {"/sub/items/{name}", "/sub/{path}"}


def test_an_installed_app_mounted_twice_in_another(observed: Callable[..., Seen]) -> None:
    """Both mounts count for the same route, and what a client chooses is in no label."""
    seen, parent = observed(app := shop()), FastAPI()
    parent.mount("/v1", app)
    parent.mount("/{version}", app)
    client = TestClient(parent)
    for prefix in ("/v1", "/v2", "/any"):
        client.get(f"{prefix}/orders/1")
    assert {dict(labels)["endpoint"]: n for labels, n in seen.samples("http_requests_total").items()} == {
        "/orders/{number}": 3
    }


def test_a_websocket_below_a_root_path(observed: Callable[..., Seen]) -> None:
    """A WebSocket is excluded by its path within the app too."""
    app = FastAPI()

    @app.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    seen = observed(app, exclude_paths=["/live"])
    with TestClient(mounted_at("/api")(app)).websocket_connect("/api/live"):
        pass
    assert seen.request_lines == []
    assert seen.total("websocket_messages_total") == 0


@pytest.mark.parametrize(
    ("entry", "is_excluded"),
    [
        ("/health", True),
        ("GET /health", True),
        ("POST /health", False),
        ("/heal*", True),
        ("/svc/health", True),  # the whole path
        ("/svc/*", True),
        ("/svc", False),
    ],
)
def test_entries_below_a_root_path(observed: Callable[..., Seen], entry: str, *, is_excluded: bool) -> None:
    """An entry is the path within the app; one with the root path applies as well."""
    seen = observed(app := shop(), exclude_paths=[entry])
    asyncio.run(ask(app, "/svc/health", root_path="/svc"))
    assert bool(seen.request_lines) is not is_excluded


def test_patterns_see_the_whole_url() -> None:
    """`exclude_urls` is searched in the URL with the root path only, as OpenTelemetry's instrumentation does."""
    scope = {"method": "GET", "path": "/svc/health", "root_path": "/svc", "server": ("x", 80)}
    for pattern, is_excluded in (("/svc/health$", True), ("//x/health$", False)):
        request_filter = RequestFilter({ALL: ["/other"]}, [pattern], ALL)
        assert bool(request_filter.excluded_signals(scope)) is is_excluded
        assert request_filter.excluded_below_root(scope) == 0
    assert RequestFilter({ALL: ["/health"]}, ["/none"], ALL).excluded_below_root(scope) == ALL


@pytest.mark.parametrize(
    ("path", "root_path", "within"),
    [
        ("/svc/health", "/svc", "/health"),
        ("/svc", "/svc", ""),
        ("/svc/", "/svc", "/"),
        ("/svc-two/health", "/svc", "/svc-two/health"),
        ("/health", "/svc", "/health"),
        ("/svc//health", "/svc/", "/health"),
        ("/health", "", "/health"),
        ("", "/svc", ""),
    ],
)
def test_the_path_within_the_app(path: str, root_path: str, within: str) -> None:
    """It is what Starlette's router matches."""
    from starlette._utils import get_route_path  # noqa: PLC0415 - private: what is compared

    scope = {"path": path, "root_path": root_path}
    assert path_in_app(scope) == get_route_path(scope) == within

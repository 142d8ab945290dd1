"""`install` wraps an app, whatever is added to it before or after, and `close` reverts everything."""

from __future__ import annotations

import contextvars
import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from injection import replacing
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_observe import SettingsError, get_observability, install
from fastapi_observe.middleware import InnerMiddleware, ObserveMiddleware
from fastapi_observe.records.request import EXCEPTION_IDS_ATTRIBUTE, RECORD_SCOPE_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen
    from starlette.types import Receive, Scope, Send


async def page(request: Any) -> PlainTextResponse:
    """Respond to any Starlette request."""
    return PlainTextResponse("page")


async def fails(request: Any) -> PlainTextResponse:
    """Raise what no handler expects."""
    raise KeyError("secret")


def served(seen: Seen) -> dict[str, float]:
    """Count the requests of each endpoint."""
    return {dict(labels)["endpoint"]: n for labels, n in seen.samples("http_requests_total").items()}


@pytest.mark.parametrize("wrong", [None, object(), GZipMiddleware(FastAPI()), "app"])
def test_only_an_app_can_be_installed_on(wrong: Any) -> None:
    """Anything else is an error with the next step."""
    with pytest.raises(TypeError, match="pass the app itself"):
        install(wrong)


def test_a_second_install_is_an_error(observed: Callable[..., Seen]) -> None:
    """It raises and changes nothing."""
    app = FastAPI()
    first = observed(app)
    with pytest.raises(RuntimeError, match="called twice on the same app"):
        install(app)
    assert app.state.observe is first.observe


def test_after_the_first_request_is_too_late() -> None:
    """It raises an error that states where to call it."""
    app = FastAPI()
    TestClient(app).get("/")
    with pytest.raises(RuntimeError, match="after the first request; call it where the app is created"):
        install(app)


def test_an_app_that_another_instrumentation_has_built(observed: Callable[..., Seen]) -> None:
    """Contrib's instrumentor builds the stack early and marks the app; this does not count as a first request."""
    app: Any = FastAPI()
    app.add_route("/x", page)
    app.middleware_stack = app.build_middleware_stack()
    app._is_instrumented_by_opentelemetry = True
    seen = observed(app)
    TestClient(app).get("/x")
    assert served(seen) == {"/x": 1}


def test_wrong_settings_leave_the_app_alone() -> None:
    """A settings error comes before anything is touched."""
    app = FastAPI()
    before = dict(vars(app))
    with pytest.raises(SettingsError):
        install(app, sample_ratio=7)
    assert vars(app) == before
    with pytest.raises(RuntimeError, match="not installed"):
        get_observability()


def test_the_title_is_the_service(observed: Callable[..., Seen]) -> None:
    """Without a service name the app's title is it, unless it is FastAPI's own default."""
    assert observed(FastAPI(title="shop")).observe.settings.service_name == "shop"
    assert observed(FastAPI(title="shop"), service_name="given").observe.settings.service_name == "given"
    assert observed(FastAPI()).observe.settings.service_name != "FastAPI"
    assert observed(Starlette()).observe.settings.service_name


def test_the_order_of_writing_does_not_matter(observed: Callable[..., Seen]) -> None:
    """Middleware and handlers added after `install` are inside `ObserveMiddleware` like those added before."""
    app = FastAPI()
    seen = observed(app)
    app.add_middleware(GZipMiddleware)
    app.add_exception_handler(KeyError, lambda _, exc: PlainTextResponse("handled", 418))
    app.add_route("/fails", fails)
    sub = FastAPI()
    sub.add_route("/page", page)
    app.mount("/sub", sub)
    client = TestClient(app)
    assert client.get("/fails").status_code == 418
    assert client.get("/sub/page").text == "page"
    assert served(seen) == {"/fails": 1, "/sub/page": 1}
    assert seen.sample("http_requests_total", method="GET", endpoint="/fails", status_code="418") == 1


def test_the_lists_of_the_app_are_unchanged(observed: Callable[..., Seen]) -> None:
    """Routes, user middleware and handlers are the user's, before and after the stack is built."""
    app = FastAPI()
    app.add_middleware(GZipMiddleware)
    before = ([*app.routes], [*app.user_middleware], dict(app.exception_handlers))
    observed(app)
    TestClient(app).get("/")
    assert ([*app.routes], [*app.user_middleware], dict(app.exception_handlers)) == before


def test_a_stack_that_cannot_be_built_leaves_the_lists_unchanged(observed: Callable[..., Seen]) -> None:
    """The exception of a middleware's constructor is raised, and the app's lists are restored."""

    class Broken:
        def __init__(self, app: Any) -> None:
            raise ValueError("no")

    app: Any = FastAPI()
    app.add_middleware(Broken)
    observed(app)
    with pytest.raises(ValueError, match="no"):
        TestClient(app).get("/")
    assert [middleware.cls for middleware in app.user_middleware] == [Broken]


def test_an_installed_app_in_an_installed_app(observed: Callable[..., Seen]) -> None:
    """The outermost measures: one span, one count, one line; the inner one reports what does not come through it."""
    inner_app, outer_app = FastAPI(), FastAPI()
    inner_app.add_route("/x", page)
    inner, outer = observed(inner_app), observed(outer_app)
    outer_app.mount("/inner", inner_app)
    TestClient(outer_app).get("/inner/x")
    assert (served(outer), served(inner)) == ({"/inner/x": 1}, {})
    assert (len(outer.server_spans), len(inner.server_spans)) == (1, 0)
    assert len(outer.request_lines) == 1
    TestClient(inner_app).get("/x")
    assert (served(outer), served(inner)) == ({"/inner/x": 1}, {"/x": 1})


def test_exceptions_of_mounted_apps_are_recorded(observed: Callable[..., Seen]) -> None:
    """A mounted app responds with 500 before it raises; its own `InnerMiddleware` records the exception."""
    sub, below, included = FastAPI(), Starlette(routes=[Route("/fails", fails)]), FastAPI()
    sub.mount("/below", below)
    included.add_route("/fails", fails)
    router = APIRouter()
    router.mount("/included", included)
    app = FastAPI()
    app.mount("/sub", GZipMiddleware(sub))
    app.include_router(router)
    app.mount("/self", app)
    seen = observed(app)
    client = TestClient(app, raise_server_exceptions=False)
    for path in ("/sub/below/fails", "/included/fails"):
        client.get(path)
    errors = {dict(labels)["error_type"] for labels in seen.samples("http_request_errors_total")}
    assert errors <= {"KeyError"}
    assert vars(below)["__observe_wrapped__"]


def test_close_reverts_everything(observed: Callable[..., Seen]) -> None:
    """The app can be installed on again; `close` is idempotent; a subclass's builder is kept."""

    class Own(FastAPI):
        pass

    sub = FastAPI()
    app: Any = Own()
    app.mount("/sub", sub)
    built: list[str] = []
    original = app.build_middleware_stack

    def build() -> Any:
        built.append("own")
        return original()

    app.build_middleware_stack = build
    for _ in range(2):
        seen = observed(app)
        TestClient(app).get("/sub/x")
        assert type(app.middleware_stack) is ObserveMiddleware
        seen.observe.close()
        seen.observe.close()
        assert app.build_middleware_stack is build
        assert "build_middleware_stack" not in vars(sub)
        assert not hasattr(app.state, "observe")
        assert app.middleware_stack is None
    assert built == ["own", "own"]
    TestClient(app).get("/sub/x")
    assert built == ["own"] * 3


def test_an_app_that_served_requests_after_close(observed: Callable[..., Seen]) -> None:
    """It can be installed on again, as a test suite does, and its mounted apps are observed again, too."""
    sub = FastAPI()
    sub.add_route("/x", page)
    app = FastAPI()
    app.mount("/sub", sub)
    for _ in range(3):
        seen = observed(app)
        with TestClient(app) as client:
            client.get("/sub/x")
        assert served(seen) == {"/sub/x": 1}
        assert vars(sub)["__observe_wrapped__"]
        seen.observe.close()
        assert TestClient(app).get("/sub/x").status_code == 200


def test_a_step_of_close_that_fails(observed: Callable[..., Seen]) -> None:
    """The other steps are run, and the internal error is counted."""
    app = FastAPI()
    seen = observed(app)
    del app.state.observe
    seen.observe.close()
    assert seen.observe.internal_errors.counts == {"close": 1}
    assert "build_middleware_stack" not in vars(app)


@pytest.mark.skipif(not hasattr(FastAPI(), "_telemetry"), reason="FastAPI has telemetry of its own since 0.142")
def test_native_telemetry_is_switched_off_until_close(observed: Callable[..., Seen]) -> None:
    """FastAPI's own telemetry is off while installed, unless `server_span="fastapi"`."""
    app: Any = FastAPI()
    before = dict(app._telemetry)
    seen = observed(app)
    assert {app._telemetry[name] for name in ("tracing", "metrics", "logs") if name in before} == {False}
    seen.observe.close()
    assert app._telemetry == before
    observed(app, server_span="fastapi")
    assert app._telemetry == before


class Calls:
    """A handler that is an object."""

    async def __call__(self, request: Any, exc: Any) -> PlainTextResponse:
        """Answer like a function."""
        return PlainTextResponse("object", 422)


async def handles(prefix: str, request: Any, exc: Any) -> PlainTextResponse:
    """Answer as a coroutine function."""
    return PlainTextResponse(prefix, 422)


def handles_sync(request: Any, exc: Any) -> PlainTextResponse:
    """Answer as a plain function."""
    return PlainTextResponse("sync", 422)


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (functools.partial(handles, "partial"), "partial"),
        (handles_sync, "sync"),
        (Calls(), "object"),
        (functools.partial(Calls()), "object"),
    ],
)
def test_handlers_of_validation_errors_work_as_before(observed: Callable[..., Seen], handler: Any, text: str) -> None:
    """A handler of any kind is called, and the errors are counted."""

    async def endpoint(number: int) -> None:
        """Take a number."""

    app = FastAPI()
    app.get("/{number}")(endpoint)
    app.exception_handler(RequestValidationError)(handler)
    seen = observed(app, exclude_paths=("/silent",))
    client = TestClient(app)
    assert client.get("/x").text == text
    assert client.get("/silent").text == text
    assert seen.total("request_validation_errors_total") == 1


def test_validation_errors_without_locations(observed: Callable[..., Seen]) -> None:
    """An error that the user raises without locations is handled; reading it is an internal error, which is counted."""

    async def endpoint() -> None:
        raise RequestValidationError([{"msg": "no location"}])

    app = FastAPI()
    app.get("/")(endpoint)
    app.exception_handler(RequestValidationError)(handles_sync)
    seen = observed(app)
    assert TestClient(app).get("/").text == "sync"
    assert seen.observe.internal_errors.counts == {"validation": 1}


def test_without_fastapi_there_are_no_validation_errors(
    observed: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain Starlette app is served in a process that never imported FastAPI."""
    monkeypatch.setitem(sys.modules, "fastapi.exceptions", None)
    app = Starlette(routes=[Route("/x", page)], exception_handlers={KeyError: handles_sync})
    seen = observed(app)
    assert TestClient(app).get("/x").text == "page"
    assert served(seen) == {"/x": 1}


# The outer middleware


def test_the_middleware_serves_the_metrics(observed: Callable[..., Seen]) -> None:
    """It responds to GET and HEAD of the metrics path; other methods and paths reach the app."""
    app = FastAPI()
    observed(app)
    client = TestClient(app)
    assert "fastapi_observe_info" in client.get("/metrics").text
    head = client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert client.post("/metrics").status_code == 404
    assert "/metrics" not in {getattr(route, "path", "") for route in app.routes}
    below = TestClient(app, root_path="/api")
    assert below.get("/api/metrics").status_code == 200
    assert below.get("/api/other").status_code == 404
    off = FastAPI()
    observed(off, metrics=False)
    assert TestClient(off).get("/metrics").status_code == 404


def test_excluded_paths_are_served_and_not_reported(observed: Callable[..., Seen]) -> None:
    """They reach the app unchanged; exceptions are raised."""
    app = FastAPI()
    app.add_route("/health", page)
    app.add_route("/fails", fails)
    seen = observed(app, exclude_paths=("/health", "/fails"))
    client = TestClient(app)
    assert client.get("/health").text == "page"
    with pytest.raises(KeyError):
        client.get("/fails")
    assert (served(seen), seen.spans, seen.request_lines) == ({}, [], [])


async def test_an_unknown_kind_of_scope_reaches_the_app(observed: Callable[..., Seen]) -> None:
    """A scope that is not a request, a connection or the lifespan is passed through."""
    app = FastAPI()
    seen = observed(app)
    scopes: list[Any] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    scope = {"type": "tcp"}
    await ObserveMiddleware(inner, seen.observe)(scope, None, None)  # type: ignore[arg-type]
    assert scopes == [{"type": "tcp"}]


async def test_an_exception_carries_the_ids(observed: Callable[..., Seen]) -> None:
    """The ids are set on the exception for the server's crash log, unless it forbids attributes."""

    class Closed(Exception):  # noqa: N818 - it is about attributes
        def __setattr__(self, name: str, value: Any) -> None:
            raise AttributeError(name)

    app = Starlette()
    seen = observed(app)

    async def raising(scope: Scope, receive: Receive, send: Send) -> None:
        raise scope["error"]

    door = ObserveMiddleware(raising, seen.observe)
    for error in (KeyError("x"), Closed()):
        with pytest.raises(type(error)) as caught:
            await door({"type": "http", "path": "/", "error": error}, None, None)  # type: ignore[arg-type]
        assert caught.value is error
        assert hasattr(error, EXCEPTION_IDS_ATTRIBUTE) is isinstance(error, KeyError)


def test_a_lifespan_that_fails(observed: Callable[..., Seen]) -> None:
    """The exception of an app that cannot start is raised unchanged."""

    class Lifespan:
        def __init__(self, app: Any) -> None:
            """Take the app as Starlette gives it."""

        async def __aenter__(self) -> None:
            raise ValueError("no database")

        async def __aexit__(self, *_: object) -> None:
            """Do nothing."""

    seen = observed(Starlette(lifespan=Lifespan))
    with pytest.raises(ValueError, match="no database"):
        TestClient(seen.observe.app).__enter__()
    assert seen.observe.internal_errors.counts == {}


async def test_a_request_that_ends_in_another_context(observed: Callable[..., Seen]) -> None:
    """Closing a request in another task, as servers do at shutdown, is not an error."""
    seen = observed(Starlette())

    class Waits:
        def __await__(self) -> Any:
            yield

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await Waits()

    served_by = ObserveMiddleware(waiting, seen.observe)({"type": "http", "path": "/"}, None, None)  # type: ignore[arg-type]
    contextvars.copy_context().run(served_by.send, None)
    with pytest.raises(StopIteration):
        served_by.send(None)
    assert seen.observe.internal_errors.counts == {}


async def test_the_inner_middleware_passes_unmeasured_requests_on() -> None:
    """Without a record the request is passed on unchanged."""
    scopes: list[Any] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)

    await InnerMiddleware(inner)({"type": "http"}, None, None)  # type: ignore[arg-type]
    assert scopes == [{"type": "http"}]
    assert RECORD_SCOPE_KEY not in scopes[0]


def test_a_shadowed_route_is_logged(observed: Callable[..., Seen]) -> None:
    """A route of the app at the path of the metrics is unreachable; one warning states the remedy."""
    app = FastAPI()

    @app.get("/metrics")
    @app.get("/observe")
    def own() -> str:
        return "mine"

    seen = observed(app)
    client = TestClient(app)
    assert "http_requests_in_progress" in client.get("/metrics").text
    client.get("/metrics")
    messages = [line["message"] for line in seen.lines if "/metrics" in line["message"]]
    assert [message.partition(" because")[0] for message in messages] == [
        "The route /metrics of this app is unreachable"
    ]


@pytest.mark.parametrize("path", ["/observe", "/observe/api/{name}", "mounted"])
def test_a_route_below_the_console_is_logged(observed: Callable[..., Seen], path: str) -> None:
    """An app's own route that the development console hides; one warning names the option that moves the console."""
    app = FastAPI()
    router = APIRouter(prefix="" if path == "mounted" else path)
    router.get("/x" if path == "mounted" else "")(lambda: "mine")
    if path == "mounted":
        app.mount("/observe", Starlette(routes=[Route("/x", lambda _: None)]))
    app.include_router(router)
    app.get("/observed")(lambda: "mine")
    for options in ({}, {"console_path": "/_console"}):
        seen = observed(app, environment="development", **options)
        client = TestClient(app)
        client.get("/observed")
        client.get("/observed")
        warnings = [line["message"] for line in seen.lines if "unreachable" in line["message"]]
        seen.observe.close()
        if options:
            assert warnings == []
        else:
            (warning,) = warnings
            assert "The route /observe" in warning
            assert "/observed" not in warning
            assert "console_path" in warning


def test_close_ends_within_the_shutdown_timeout(observed: Callable[..., Seen]) -> None:
    """An exporter that hangs does not delay `close` any longer; its error is counted."""
    seen = observed(Starlette(), shutdown_timeout=0.05)
    held = threading.Event()
    with replacing(seen.observe.tracing.close, lambda *_: held.wait(20) and 1 / 0):
        seen.observe.close()
    assert not held.is_set()
    held.set()
    seen.observe.tracing.close()
    ended = [thread for thread in threading.enumerate() if thread.name == "fastapi-observe-close"]
    for thread in ended:
        thread.join(5)
    assert seen.observe.internal_errors.counts == {"close": 1}

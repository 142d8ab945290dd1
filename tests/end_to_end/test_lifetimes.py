"""Holds that install and close can be repeated, and that close leaves nothing behind."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY, CollectorRegistry
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from tools import HOST_WARNINGS, until

import fastapi_observe
from fastapi_observe import ObserveSettings, SettingsError, get_observability, install
from fastapi_observe.internal.loguru import handlers
from fastapi_observe.internal.prometheus_client import list_collectors

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

SERVERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error", "hypercorn.access", "httpx", "httpcore")


def make_app() -> FastAPI:
    """Return an app with one endpoint and a mounted app."""
    app = FastAPI()

    @app.get("/orders/{order_id}")
    async def order(order_id: int) -> int:
        return order_id

    app.mount("/sub", Starlette(routes=[Route("/", lambda _: PlainTextResponse("sub"))]))
    return app


def plain_app() -> Starlette:
    """Return the same app without FastAPI."""
    return Starlette(
        routes=[
            Route("/orders/7", lambda _: PlainTextResponse("7")),
            Mount("/sub", Starlette(routes=[Route("/", lambda _: PlainTextResponse("sub"))])),
        ]
    )


def process() -> dict[str, Any]:
    """Return the state of the process that install may change."""
    gc.collect()
    loggers = {
        name: (found.level, list(found.handlers), list(found.filters), found.propagate)
        for name in ("", *SERVERS)
        for found in (logging.getLogger(name),)
    }
    return {
        "threads": {each for each in threading.enumerate() if each.is_alive() and not each.name.startswith("Trio")},
        "loguru": [handler._levelno for handler in (handlers() or {}).values()],
        "loggers": loggers,
        "gc": list(gc.callbacks),
        "background": BackgroundTask.__call__,
        "excepthook": (sys.excepthook, threading.excepthook),
        "stdout": (sys.stdout, sys.stderr),
        "registry": set(list_collectors(REGISTRY)),
    }


def assert_is_as(before: dict[str, Any]) -> None:
    """Assert that the process is as before; threads of an earlier test may have ended meanwhile."""
    now = process()
    assert now["threads"] <= before["threads"]
    for name in now.keys() - {"threads"}:
        assert now[name] == before[name], name


def use(app: Any) -> None:
    """Start the app, send a request and end it."""
    with TestClient(app) as client:
        assert client.get("/orders/7").json() == 7
        assert client.get("/sub/").text == "sub"


def test_fifty_apps_in_one_process_are_independent() -> None:
    """`/metrics` of each has its own requests, without duplicate series; after the last close nothing is left."""
    before = process()
    apps = [make_app() for _ in range(50)]
    observed = [install(app, service_name=f"app {at}") for at, app in enumerate(apps)]
    for at, app in enumerate(apps[:10]):
        with TestClient(app) as client:
            for _ in range(at):
                client.get("/orders/7")
            text = client.get("/metrics").text
            wanted = f'http_requests_total{{method="GET",endpoint="/orders/{{order_id}}",status_code="200"}} {at}'
            assert (wanted in text) == (at > 0)
            assert text.count("# TYPE http_requests_total counter") <= 1
    with pytest.raises(RuntimeError, match="50 apps are installed"):
        get_observability()
    for observe in observed:
        observe.close()
    assert_is_as(before)
    for app in apps:
        assert "build_middleware_stack" not in vars(app)
        assert not hasattr(app.state, "observe")
        assert not [name for name in vars(app) if "observe" in name]


def test_a_closed_app_is_bare_again(observed: Callable[..., Seen]) -> None:
    """It responds without our headers, and so does its mounted app."""
    app = make_app()
    telemetry = dict(getattr(app, "_telemetry", {}))
    builder = app.build_middleware_stack
    seen = observed(app)
    use(app)
    seen.observe.close()
    assert app.build_middleware_stack == builder
    assert getattr(app, "_telemetry", {}) == telemetry
    assert not [name for mount in app.routes for name in vars(getattr(mount, "app", app)) if "observe" in name]
    with TestClient(app) as client:
        for path in ("/orders/7", "/sub/"):
            assert "x-request-id" not in client.get(path).headers
        assert client.get("/metrics").status_code == 404
    with pytest.raises(RuntimeError, match="not installed"):
        get_observability()


def test_the_app_can_be_installed_again_after_close(observed: Callable[..., Seen]) -> None:
    """The second install counts from 0 and reports each request once."""
    app = make_app()
    first = observed(app)
    use(app)
    first.observe.close()
    second = observed(app)
    use(app)
    assert second.total("http_requests_total") == 2
    assert len(second.server_spans) == 2
    assert len(first.server_spans) == 2


def test_close_can_be_called_twice(observed: Callable[..., Seen]) -> None:
    """The second call has no effect, even after a new install."""
    app = make_app()
    first = observed(app)
    first.observe.close()
    first.observe.close()
    second = observed(app)
    first.observe.close()
    use(app)
    assert second.total("http_requests_total") == 2


def test_close_before_the_first_request_leaves_no_trace() -> None:
    """Closing does not depend on a start."""
    before = process()
    app = make_app()
    install(app).close()
    assert_is_as(before)
    use(app)


def test_close_works_without_app_state() -> None:
    """A missing `app.state.observe` is not an error."""
    app = make_app()
    before = process()
    observe = install(app)
    del app.state.observe
    observe.close()
    assert_is_as(before)


def test_a_hundred_lifespans_keep_threads_and_files_constant(observed: Callable[..., Seen]) -> None:
    """Repeated starts and ends of an app leave nothing open."""
    app = make_app()
    seen = observed(app, log_level="fatal")

    def open_things() -> tuple[int, int, int]:
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/fd")), len(gc.callbacks)  # noqa: PTH208 - names only

    for _ in range(3):
        use(app)
    before = open_things()
    for _ in range(100):
        use(app)
    # What a thread of the last lifespan closes, it may close a moment later.
    until(lambda: all(after <= one for after, one in zip(open_things(), before, strict=True)), 10)
    assert seen.total("http_requests_total") == 206
    assert len(seen.server_spans) == 206


def test_http_clients_are_closed_with_the_app(observed: Callable[..., Seen]) -> None:
    """The shared client and further ones are closed at shutdown and reopened at the next start."""
    app = FastAPI()
    clients = []

    @app.get("/")
    async def endpoint() -> None:
        observe = app.state.observe
        clients.extend([observe.http, observe.http_client("billing")])

    observed(app)
    for _ in range(2):
        with TestClient(app) as client:
            client.get("/")
    assert all(each.is_closed for each in clients)
    assert len({id(each) for each in clients}) == 4


# What cannot be installed


def test_a_second_install_raises(observed: Callable[..., Seen]) -> None:
    """The error names the remedy; the first install is not affected."""
    app = make_app()
    seen = observed(app)
    before = process()
    with pytest.raises(RuntimeError, match=r"called twice.*call it once"):
        install(app)
    assert_is_as(before)
    use(app)
    assert seen.total("http_requests_total") == 2


@pytest.mark.parametrize("make", [make_app, plain_app])
def test_install_after_the_first_request_raises(make: Callable[[], Starlette]) -> None:
    """The middleware stack exists by then; the error says where to call install, and nothing is left behind."""
    app = make()
    use(app)
    before = process()
    with pytest.raises(RuntimeError, match=r"after the first request.*where the app is created"):
        install(app)
    assert_is_as(before)
    use(app)


@pytest.mark.parametrize(
    "thing",
    [
        GZipMiddleware(FastAPI()),
        APIRouter(),
        None,
        "app:app",
        FastAPI,
        Mount("/", FastAPI()),
        lambda scope, receive, send: None,
    ],
)
def test_install_requires_an_app(thing: Any) -> None:
    """For a wrapped app, a router or a string, the error says what is required."""
    before = process()
    with pytest.raises(TypeError, match=f"expected a FastAPI or Starlette app, got {type(thing).__name__}"):
        install(thing)
    assert_is_as(before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"sample_ratio": 2},
        {"nonsense": 1},
        {"metrics_path": "metrics", "log_level": "loud"},
        {"exclude_urls": ("(",)},
        {"duration_buckets": ("often",)},
        {"log_rotation": "sometimes"},
    ],
)
def test_invalid_settings_leave_nothing_behind(wrong: dict[str, Any]) -> None:
    """The error names every invalid setting; the app can be installed afterwards."""
    app = make_app()
    before = process()
    with pytest.raises(SettingsError) as caught:
        install(app, **wrong)
    assert isinstance(caught.value, ValueError)
    for name in wrong:
        assert name in str(caught.value)
    assert_is_as(before)
    install(app).close()
    use(app)


def test_an_install_that_fails_late_leaves_nothing_behind() -> None:
    """An error that only construction detects leaves no thread, handler or collector."""

    class BrokenProvider:
        def get_tracer(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("broken")

    app = make_app()
    engine = sa.create_engine("sqlite://")
    engine.dialect = None  # type: ignore[assignment]  # accepted as an option, but it has no dialect to instrument
    registry = CollectorRegistry()
    before = process()
    for wrong in ({"tracer_provider": BrokenProvider()}, {"engines": [engine]}):
        with pytest.raises((RuntimeError, AttributeError)):
            install(app, otlp_endpoint="http://127.0.0.1:9", registry=registry, **wrong)
        assert_is_as(before)
        assert not list(registry.collect())
    observe = install(app, registry=registry)
    use(app)
    observe.close()


def test_a_registry_can_be_used_again_after_close() -> None:
    """After close the user's registry is unchanged."""
    registry = CollectorRegistry()
    for _ in range(3):
        app = make_app()
        observe = install(app, registry=registry)
        use(app)
        observe.close()
        assert not list(registry.collect())


def test_two_apps_cannot_share_a_registry() -> None:
    """The second install raises and does not affect the first."""
    registry = CollectorRegistry()
    app, other = make_app(), make_app()
    observe = install(app, registry=registry)
    before = process()
    with pytest.raises(ValueError, match="registry"):
        install(other, registry=registry)
    assert_is_as(before)
    assert not hasattr(other.state, "observe")
    use(app)
    observe.close()
    use(other)


def test_settings_may_be_shared_by_many_installs() -> None:
    """A settings object is frozen, so apps that share it are independent."""
    exporter = InMemorySpanExporter()
    settings = ObserveSettings(sample_ratio=1.0, span_processors=(SimpleSpanProcessor(exporter),))
    observed = [install(make_app(), settings) for _ in range(3)]
    for observe in observed:
        observe.close()


# A process of its own


def run(code: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that turns warnings into errors."""
    root = str(Path(__file__).parents[2])
    warns = [f"-W{line}" for line in ("error", *HOST_WARNINGS)]
    return subprocess.run(  # noqa: S603 - our own interpreter and our own code
        [sys.executable, "-X", "dev", *warns, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": root, **environment},
    )


def test_the_import_warns_of_nothing() -> None:
    """`import fastapi_observe` is silent in developer mode with warnings as errors."""
    done = run("import fastapi_observe; from fastapi_observe import *; print('imported')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "imported\n", "")


def test_a_whole_life_warns_of_nothing() -> None:
    """Install, serve, close and exit leave no warning, no open file and no output on standard error."""
    done = run("""
        import sys
        from fastapi import FastAPI
        from starlette.testclient import TestClient
        from fastapi_observe import install

        app = FastAPI()
        app.get("/")(lambda: 1)
        observe = install(app)
        with TestClient(app) as client:
            assert client.get("/").status_code == 200
            assert b"http_requests_total" in client.get("/metrics").content
        if len(sys.argv) > 1:
            observe.close()
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"message":"HTTP request completed"' in done.stdout


def test_plain_starlette_needs_no_fastapi() -> None:
    """Without FastAPI, a Starlette app can be instrumented."""
    done = run("""
        import sys
        sys.modules["fastapi"] = None
        from starlette.applications import Starlette
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route
        from starlette.testclient import TestClient
        from fastapi_observe import get_observability, install

        app = Starlette(routes=[Route("/orders/{order_id}", lambda request: PlainTextResponse("ok"))])
        observe = install(app, sample_ratio=1.0)
        with TestClient(app) as client:
            assert client.get("/orders/7").text == "ok"
            assert 'endpoint="/orders/{order_id}"' in client.get("/metrics").text
        assert get_observability() is observe
        observe.close()
        assert not [name for name in sys.modules if name.startswith("fastapi.")]
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"endpoint":"/orders/{order_id}"' in done.stdout


@pytest.mark.parametrize("name", ["DatabaseDep", "HttpClientDep", "LogDep"])
def test_the_dependency_aliases_require_fastapi(name: str) -> None:
    """Without FastAPI, the `...Dep` aliases raise an `ImportError` that names it; everything else works."""
    done = run(f"import sys; sys.modules['fastapi'] = None; from fastapi_observe import {name}")
    assert done.returncode == 1
    assert "ModuleNotFoundError: import of fastapi halted" in done.stderr


def test_the_package_has_exactly_its_public_names() -> None:
    """An unknown name is an `AttributeError`."""
    assert dir(fastapi_observe) == sorted(fastapi_observe.__all__)
    with pytest.raises(AttributeError, match="module 'fastapi_observe' has no attribute 'nonsense'"):
        _ = fastapi_observe.nonsense

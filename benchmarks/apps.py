"""The measured apps: one FastAPI app in several variants, bare and with each tool."""
# ruff: noqa: PLC0415 - a worker imports only the tools it measures, since each affects the process

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel
from starlette.responses import StreamingResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from opentelemetry.sdk.trace import TracerProvider

CHUNK = b"x" * 4096
CHUNKS = 16
BODY = b'{"name":"lamp","price":12.5,"tags":["a","b"]}'


class Item(BaseModel):
    """A body that is validated."""

    name: str
    price: float
    tags: list[str] = []


def request(method: str, path: str, body: bytes = b"", **headers: str) -> dict[str, Any]:
    """Return one request, as the driver takes it."""
    return {"method": method, "path": path, "body": body, "headers": headers}


REQUESTS: dict[str, dict[str, Any]] = {
    "trivial": request("GET", "/items/7"),
    "body": request("POST", "/items", BODY, **{"content-type": "application/json"}),
    "routes-10": request("GET", "/r/9"),
    "routes-1000": request("GET", "/r/9"),
    "routes-1000-last": request("GET", "/r/999"),
    "nested": request("GET", "/a/b/c/items/7"),
    "mount": request("GET", "/sub/items/7"),
    "404": request("GET", "/nothing/here"),
    "stream": request("GET", "/stream"),
    "traceparent": request("GET", "/items/7", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
}
"""The request of each variant."""

VARIANTS = tuple(name for name in REQUESTS if not name.startswith("routes-"))
"""Variants measured against bare; the others are measured against each other."""


def plain_app(variant: str = "trivial", **options: Any) -> FastAPI:
    """Create the app. FastAPI's native telemetry is off unless set in `options`."""
    if "telemetry" in inspect.signature(FastAPI.__init__).parameters:
        options.setdefault("telemetry", {"tracing": False, "metrics": False, "logs": False})
    app = FastAPI(**options)
    if variant.startswith("routes-"):
        for number in range(int(variant.split("-")[1])):
            app.get(f"/r/{number}")(_endpoint(number))
    _add_items(app)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(CHUNKS):
                yield CHUNK

        return StreamingResponse(chunks())

    inner = APIRouter(prefix="/c")
    _add_items(inner)
    middle = APIRouter(prefix="/b")
    middle.include_router(inner)
    outer = APIRouter(prefix="/a")
    outer.include_router(middle)
    app.include_router(outer)
    sub = FastAPI(**{name: value for name, value in options.items() if name == "telemetry"})
    _add_items(sub)
    app.mount("/sub", sub)
    return app


def _endpoint(number: int) -> Callable[[], Any]:
    async def numbered() -> dict[str, int]:
        return {"number": number}

    return numbered


def _add_items(app: FastAPI | APIRouter) -> None:
    @app.get("/items/{item_id}")
    async def read_item(item_id: str) -> dict[str, str]:
        return {"id": item_id}

    @app.post("/items")
    async def create_item(item: Item) -> dict[str, Any]:
        return {"name": item.name, "price": item.price}


def refuse_telemetry(app: Any) -> None:
    """Raise RuntimeError if the app is observed: if it has middleware, or FastAPI's native telemetry is on."""
    native = getattr(app, "_telemetry", None)
    switches = [native.get(name) for name in ("tracing", "metrics", "logs")] if isinstance(native, dict) else []
    if any(switches) or app.user_middleware or "build_middleware_stack" in vars(app):
        raise RuntimeError(f"the bare app is not bare: {native}, {app.user_middleware}")


def provider(ratio: float) -> TracerProvider:
    """Return a tracer provider for the OpenTelemetry peers: with our sampler, without an exporter."""
    from opentelemetry.sdk.trace import TracerProvider as Provider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    return Provider(sampler=ParentBased(TraceIdRatioBased(ratio)))


def bare(variant: str, ratio: float) -> Any:  # noqa: ARG001 - one signature for all
    """Return the app alone."""
    return plain_app(variant)


def nothing(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """Return an ASGI app that does nothing, to measure the cost of the driver."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Send nothing."""

    return app


def ours(variant: str, ratio: float, **options: Any) -> Any:
    """Return the app with fastapi-observe: all signals, default settings except for the ratio."""
    from fastapi_observe import install

    app = plain_app(variant)
    # The default rate limit would leave most of these requests without a trace.
    install(app, sample_ratio=ratio, max_traces_per_second=None, **options)
    return app


def ours_exporting(variant: str, ratio: float) -> Any:
    """Return the app with fastapi-observe that exports spans to `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    return ours(variant, ratio)


def ours_worker(variant: str, ratio: float) -> Any:
    """Return the app with fastapi-observe in multiprocess mode: values are in a shared file."""
    import tempfile

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.workers.worker import Worker

    app = ours(variant, ratio)
    app.state.directory = tempfile.TemporaryDirectory(dir=shared_memory())  # removed when the process ends
    worker = Worker(Path(app.state.directory.name) / "0-1-1", InternalErrors())
    app.state.observe.metrics.sharing.share(worker, "0")
    return app


def shared_memory() -> str | None:
    """Return the directory of shared memory on Linux; None for the default temporary directory."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a private directory is created there


def native(variant: str, ratio: float) -> Any:
    """Return the app with FastAPI's native tracing, without operation spans."""
    telemetry = {"tracer_provider": provider(ratio), "metrics": False, "logs": False, "operation_spans": False}
    return plain_app(variant, telemetry=telemetry)


def native_operations(variant: str, ratio: float) -> Any:
    """Return the app with FastAPI's native tracing at its defaults: with operation spans."""
    return plain_app(variant, telemetry={"tracer_provider": provider(ratio), "metrics": False, "logs": False})


def contrib_asgi(variant: str, ratio: float) -> Any:
    """Return the app with contrib's OpenTelemetryMiddleware at its defaults."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app = plain_app(variant)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider(ratio))
    return app


def contrib_asgi_lean(variant: str, ratio: float) -> Any:
    """Return the app with contrib's OpenTelemetryMiddleware, without receive and send spans."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app = plain_app(variant)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider(ratio), exclude_spans=["receive", "send"])
    return app


def contrib_fastapi(variant: str, ratio: float) -> Any:
    """Return the app with contrib's FastAPI instrumentor at its defaults."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    app = plain_app(variant)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider(ratio))
    return app


def starlette_otel(variant: str, ratio: float) -> Any:
    """Return the app with Starlette's own OpenTelemetry middleware."""
    app = plain_app(variant)
    middleware = import_module("starlette.middleware.opentelemetry").OpenTelemetryMiddleware
    app.add_middleware(middleware, tracer_provider=provider(ratio))
    return app


def instrumentator(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """Return the app with prometheus-fastapi-instrumentator at its defaults."""
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    app = plain_app(variant)
    Instrumentator(registry=CollectorRegistry()).instrument(app)
    return app


def starlette_exporter(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """Return the app with starlette_exporter at its defaults."""
    app = plain_app(variant)
    app.add_middleware(import_module("starlette_exporter").PrometheusMiddleware)
    return app


def correlation_id(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """Return the app with asgi-correlation-id at its defaults: an id for each request, no log line."""
    app = plain_app(variant)
    app.add_middleware(import_module("asgi_correlation_id").CorrelationIdMiddleware)
    return app


def loguru_json() -> Any:
    """Configure loguru to write JSON to standard output, and return its logger."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stdout, serialize=True)
    return logger


def loguru_base(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """Return the app with a loguru line in a BaseHTTPMiddleware, `serialize=True`, as in most tutorials."""
    logger = loguru_json()
    app = plain_app(variant)

    @app.middleware("http")
    async def log(request: Any, call_next: Any) -> Any:
        started = perf_counter()
        response = await call_next(request)
        logger.bind(
            method=request.method,
            path=request.url.path,
            status=response.status_code,
            duration=perf_counter() - started,
        ).info("request")
        return response

    return app


def loguru_asgi(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """Return the app with a loguru line in a pure ASGI middleware, `serialize=True`."""
    logger = loguru_json()

    class Log:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            started, status = perf_counter(), 0

            async def send_and_record(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            await self.app(scope, receive, send_and_record)
            logger.bind(
                method=scope["method"], path=scope["path"], status=status, duration=perf_counter() - started
            ).info("request")

    app = plain_app(variant)
    app.add_middleware(Log)
    return app


def logfire(variant: str, ratio: float) -> Any:
    """Return the app with Pydantic Logfire, without sending."""
    fire = import_module("logfire")
    sampling = fire.SamplingOptions(head=ratio)
    fire.configure(send_to_logfire=False, console=False, metrics=False, sampling=sampling, inspect_arguments=False)
    app = plain_app(variant)
    fire.instrument_fastapi(app)
    return app


def sentry(variant: str, ratio: float) -> Any:
    """Return the app with sentry-sdk and tracing, with a transport that drops everything."""
    sentry_sdk = import_module("sentry_sdk")
    transport: Any = import_module("sentry_sdk.transport").Transport

    class NoTransport(transport):  # type: ignore[misc]
        def capture_envelope(self, envelope: Any) -> None:
            """Drop it."""

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=NoTransport, traces_sample_rate=ratio)
    return plain_app(variant)


def stack(variant: str, ratio: float) -> Any:
    """Return the app with a stack wired by hand: contrib's ASGI middleware, the instrumentator and a loguru line."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    app = loguru_base(variant, ratio)
    Instrumentator(registry=CollectorRegistry()).instrument(app)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider(ratio), exclude_spans=["receive", "send"])
    return app


PEERS: dict[str, tuple[Any, str, bool]] = {
    "native": (native, "traces", True),
    "native_operations": (native_operations, "traces", True),
    "contrib_asgi_lean": (contrib_asgi_lean, "traces", True),
    "contrib_asgi": (contrib_asgi, "traces", True),
    "contrib_fastapi": (contrib_fastapi, "traces", True),
    "starlette_otel": (starlette_otel, "traces", True),
    "instrumentator": (instrumentator, "metrics", False),
    "starlette_exporter": (starlette_exporter, "metrics", False),
    "correlation_id": (correlation_id, "an id", False),
    "loguru_asgi": (loguru_asgi, "logs", False),
    "loguru_base": (loguru_base, "logs", False),
    "logfire": (logfire, "traces", True),
    "sentry": (sentry, "traces, errors", True),
    "stack": (stack, "all three, by hand", True),
}
"""Each peer: how to create its app, what it provides, whether its cost depends on the sampling ratio."""

MAKERS: dict[str, Callable[[str, float], Any]] = {
    "nothing": nothing,
    "bare": bare,
    "bare_again": bare,
    "ours": ours,
    "ours_again": ours,
    "ours_exporting": ours_exporting,
    "ours_worker": ours_worker,
    **{name: maker for name, (maker, _, _) in PEERS.items()},
}
PROCESS_WIDE = frozenset({"logfire", "sentry"})
"""Peers that patch the whole process, so that their bare app runs in another one."""

LINES = frozenset({"ours", "ours_exporting", "loguru_asgi", "loguru_base", "stack"})
"""Apps that write one line for each request to standard output."""

"""The measured apps: one FastAPI app in several variants, bare and under each tool."""
# ruff: noqa: PLC0415 - a worker imports only the tools that it measures: each changes the process a little

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
    """A body worth validating."""

    name: str
    price: float
    tags: list[str] = []


def request(method: str, path: str, body: bytes = b"", **headers: str) -> dict[str, Any]:
    """Describe one request as the driver sends it."""
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
"""Those that are measured by themselves; the others are measured against each other."""


def plain_app(variant: str = "trivial", **options: Any) -> FastAPI:
    """Build the app itself; FastAPI's native telemetry is off unless `options` say otherwise."""
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
    """Raise RuntimeError unless nothing observes the app: no middleware, FastAPI's native telemetry off."""
    native = getattr(app, "_telemetry", None)
    switches = [native.get(name) for name in ("tracing", "metrics", "logs")] if isinstance(native, dict) else []
    if any(switches) or app.user_middleware or "build_middleware_stack" in vars(app):
        raise RuntimeError(f"the bare app is not bare: {native}, {app.user_middleware}")


def provider(ratio: float) -> TracerProvider:
    """Build the tracer provider that the OpenTelemetry peers get: ours' sampler, no exporter."""
    from opentelemetry.sdk.trace import TracerProvider as Provider
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    return Provider(sampler=ParentBased(TraceIdRatioBased(ratio)))


def bare(variant: str, ratio: float) -> Any:  # noqa: ARG001 - one signature for all
    """The app and nothing else."""
    return plain_app(variant)


def nothing(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """An ASGI app that does nothing: what the driver itself costs."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Answer nothing."""

    return app


def ours(variant: str, ratio: float, **options: Any) -> Any:
    """fastapi-observe, all three signals, at its defaults but for the ratio."""
    from fastapi_observe import install

    app = plain_app(variant)
    # A bound on traces a second would make most of those that are asked for here no traces.
    install(app, sample_ratio=ratio, max_traces_per_second=None, **options)
    return app


def ours_exporting(variant: str, ratio: float) -> Any:
    """fastapi-observe that sends its spans to a receiver: `OTEL_EXPORTER_OTLP_ENDPOINT` names it."""
    return ours(variant, ratio)


def ours_worker(variant: str, ratio: float) -> Any:
    """fastapi-observe in one of several workers: its counters stand in a file that the others read."""
    import tempfile

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.workers.worker import Worker

    app = ours(variant, ratio)
    app.state.directory = tempfile.TemporaryDirectory(dir=shared_memory())  # removed when the process ends
    worker = Worker(Path(app.state.directory.name) / "0-1-1", InternalErrors())
    app.state.observe.metrics.sharing.share(worker, "0")
    return app


def shared_memory() -> str | None:
    """Return where workers meet on Linux; None for the usual place of temporary files."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a directory of its own is made there


def native(variant: str, ratio: float) -> Any:
    """FastAPI's native tracing without operation spans."""
    telemetry = {"tracer_provider": provider(ratio), "metrics": False, "logs": False, "operation_spans": False}
    return plain_app(variant, telemetry=telemetry)


def native_operations(variant: str, ratio: float) -> Any:
    """FastAPI's native tracing as it comes: with operation spans."""
    return plain_app(variant, telemetry={"tracer_provider": provider(ratio), "metrics": False, "logs": False})


def contrib_asgi(variant: str, ratio: float) -> Any:
    """Contrib's OpenTelemetryMiddleware as it comes."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app = plain_app(variant)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider(ratio))
    return app


def contrib_asgi_lean(variant: str, ratio: float) -> Any:
    """Contrib's OpenTelemetryMiddleware without receive and send spans."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    app = plain_app(variant)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider(ratio), exclude_spans=["receive", "send"])
    return app


def contrib_fastapi(variant: str, ratio: float) -> Any:
    """Contrib's FastAPI instrumentor as it comes."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    app = plain_app(variant)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider(ratio))
    return app


def starlette_otel(variant: str, ratio: float) -> Any:
    """Starlette's own OpenTelemetry middleware."""
    app = plain_app(variant)
    middleware = import_module("starlette.middleware.opentelemetry").OpenTelemetryMiddleware
    app.add_middleware(middleware, tracer_provider=provider(ratio))
    return app


def instrumentator(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """prometheus-fastapi-instrumentator as it comes."""
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    app = plain_app(variant)
    Instrumentator(registry=CollectorRegistry()).instrument(app)
    return app


def starlette_exporter(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """starlette_exporter as it comes."""
    app = plain_app(variant)
    app.add_middleware(import_module("starlette_exporter").PrometheusMiddleware)
    return app


def correlation_id(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """asgi-correlation-id as it comes: an id for each request, no line."""
    app = plain_app(variant)
    app.add_middleware(import_module("asgi_correlation_id").CorrelationIdMiddleware)
    return app


def loguru_json() -> Any:
    """Have loguru write JSON to standard output as it comes; return its logger."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stdout, serialize=True)
    return logger


def loguru_base(variant: str, ratio: float) -> Any:  # noqa: ARG001
    """A loguru line in a BaseHTTPMiddleware, `serialize=True`: what most tutorials show."""
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
    """A loguru line in a pure ASGI middleware, `serialize=True`."""
    logger = loguru_json()

    class Log:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await self.app(scope, receive, send)
                return
            started, status = perf_counter(), 0

            async def noting(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            await self.app(scope, receive, noting)
            logger.bind(
                method=scope["method"], path=scope["path"], status=status, duration=perf_counter() - started
            ).info("request")

    app = plain_app(variant)
    app.add_middleware(Log)
    return app


def logfire(variant: str, ratio: float) -> Any:
    """Pydantic Logfire, sending nothing."""
    fire = import_module("logfire")
    sampling = fire.SamplingOptions(head=ratio)
    fire.configure(send_to_logfire=False, console=False, metrics=False, sampling=sampling, inspect_arguments=False)
    app = plain_app(variant)
    fire.instrument_fastapi(app)
    return app


def sentry(variant: str, ratio: float) -> Any:
    """sentry-sdk with tracing, its transport going nowhere."""
    sentry_sdk = import_module("sentry_sdk")
    transport: Any = import_module("sentry_sdk.transport").Transport

    class Nowhere(transport):  # type: ignore[misc]
        def capture_envelope(self, envelope: Any) -> None:
            """Drop it."""

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Nowhere, traces_sample_rate=ratio)
    return plain_app(variant)


def stack(variant: str, ratio: float) -> Any:
    """What people wire by hand: contrib's ASGI middleware, the instrumentator and a loguru line."""
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
"""Each peer: how to make it, what it gives, whether its cost depends on the sampling ratio."""

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
"""Peers that patch the whole process: their bare app lives in another one."""

LINES = frozenset({"ours", "ours_exporting", "loguru_asgi", "loguru_base", "stack"})
"""Who writes one line for each request to standard output."""

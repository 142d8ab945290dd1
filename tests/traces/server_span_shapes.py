"""One set of requests with each `server_span`, and with contrib's middleware alone; run in a new process.

`python server_span_shapes.py observe|contrib|fastapi|reference RATIO` prints the spans of each request.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from driver import with_client
from fastapi import FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fastapi_observe import install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXPORTER = InMemorySpanExporter()
OPTIONS: dict[str, Any] = {
    "http_capture_headers_server_request": ["x-shop-.*"],
    "server_request_hook": lambda span, scope: span.set_attribute("shop.hook", scope["type"]),
    "client_response_hook": lambda span, scope, message: span.set_attribute("shop.sent", message["type"]),
}


def shop() -> FastAPI:
    """Return an app with one route of each kind."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def read_item(item_id: int) -> int:
        return item_id

    @app.get("/raises")
    async def fail() -> None:
        raise LookupError("no such thing")

    @app.get("/refuses")
    async def refuse() -> None:
        raise HTTPException(503)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            yield "b"

        return StreamingResponse(parts())

    @app.get("/slash/")
    async def slash() -> None: ...

    @app.websocket("/ws/{room}")
    async def talk(socket: WebSocket, room: str) -> None:
        await socket.accept()
        await socket.send_text(room)
        await socket.close()

    return app


def describe(span: Any) -> dict[str, Any]:
    """Return what distinguishes two spans, without ids and times."""
    return {
        "name": span.name,
        "kind": span.kind.name,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes),
        "events": [event.name for event in span.events],
        "scope": span.instrumentation_scope.name,
    }


def send(client: TestClient, kind: str) -> None:
    """Send one request."""
    paths = {
        "ok": "/items/7?page=2",
        "unmatched": "/nowhere",
        "raises": "/raises",
        "refuses": "/refuses",
        "stream": "/stream",
        "redirect": "/slash",
    }
    if kind == "websocket":
        with client.websocket_connect("/ws/1") as socket:
            socket.receive_text()
    else:
        client.get(paths[kind], headers={"x-shop-plan": "free"}, follow_redirects=False)


def main(mode: str, ratio: float) -> None:
    """Print the spans of each request."""
    app: Any = shop()
    observe = None
    if mode == "reference":
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(EXPORTER))
        app = OpenTelemetryMiddleware(app, tracer_provider=provider, **OPTIONS)
    else:
        observe = install(
            app,
            server_span=mode,  # type: ignore[arg-type]
            contrib_options=OPTIONS if mode == "contrib" else {},
            sample_ratio=ratio,
            logs=False,
            span_processors=(SimpleSpanProcessor(EXPORTER),),
        )
        assert isinstance(trace.get_tracer_provider(), TracerProvider)
    # The test client of old Starlette always has the same address, which is not one.
    client = TestClient(with_client(app, "10.1.2.3", 4711), raise_server_exceptions=False)
    found: dict[str, Any] = {}
    for kind in ("ok", "unmatched", "raises", "refuses", "stream", "redirect", "websocket"):
        EXPORTER.clear()
        send(client, kind)
        if observe is not None:
            observe.flush()
        spans = [describe(span) for span in EXPORTER.get_finished_spans()]
        found[kind] = {
            "server": [span for span in spans if span["kind"] == "SERVER"],
            "inside": [span for span in spans if span["kind"] != "SERVER"],
        }
    faults = {} if observe is None else observe.internal_errors.counts
    sys.stdout.write(json.dumps({"requests": found, "faults": faults}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

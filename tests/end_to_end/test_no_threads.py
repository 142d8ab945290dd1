"""Holds that an app is installed, serves and ends where no thread can start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI

from fastapi_observe import install

if TYPE_CHECKING:
    import pytest


async def test_without_threads_everything_is_degraded_with_warnings(
    no_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests and scrapes are served, startup and shutdown complete, and no internal error is counted."""
    app = FastAPI()

    @app.get("/items")
    async def items() -> str:
        return "items"

    observe = install(
        app, sample_ratio=1.0, otlp_endpoint="http://127.0.0.1:9", otlp_metrics=True, shutdown_timeout=0.1
    )
    inbox: list[Any] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Any:
        if sent:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
                assert (await client.get("/items")).status_code == 200
                assert b"http_requests_total" in (await client.get("/metrics")).content
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "state": {}}, receive, send)
    observe.close()
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert observe.internal_errors.counts == {}
    output = capsys.readouterr().out
    for consequence in (
        "No spans are exported.",
        "No metrics are exported.",
        "Metrics are rendered in the event loop",
        "Telemetry is flushed",
    ):
        assert f"No thread can start: can't start new thread. {consequence}" in output

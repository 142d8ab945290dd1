"""Holds that scrapes work in any event loop, in several of them, and without threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import httpx
import pytest
from fastapi import FastAPI

from fastapi_observe.metrics.scrapes import ScrapeRenderer, SharedScrapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Seen

    from fastapi_observe.metrics.exposition import ScrapeResponse


def test_an_app_can_run_under_asyncio_and_trio_in_turn(observed: Callable[..., Seen]) -> None:
    """Each event loop has its own state; concurrent scrapes of each are all served."""
    seen = observed(app := FastAPI())

    async def scrape() -> list[int]:
        statuses: list[int] = []

        async def get(client: httpx.AsyncClient) -> None:
            statuses.append((await client.get("/metrics")).status_code)

        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
            anyio.create_task_group() as group,
        ):
            for _ in range(3):
                group.start_soon(get, client)
        return statuses

    for backend in ("asyncio", "trio", "asyncio", "trio"):
        assert anyio.run(scrape, backend=backend) == [200] * 3, backend
    assert seen.observe.internal_errors.counts == {}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_threads_metrics_are_rendered_in_the_loop(
    no_threads: None, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    """The response is complete; an exception of the renderer is not mistaken for a missing thread."""
    responses: list[ScrapeResponse | Exception] = [([], b"metrics"), RuntimeError("renderer")]

    def render(accept: str, accept_encoding: str) -> ScrapeResponse:
        response = responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    async def scrape() -> None:
        scrapes = SharedScrapes(ScrapeRenderer(render))
        assert (await scrapes(render, "", ""))[1] == b"metrics"
        with pytest.raises(RuntimeError, match="renderer"):
            await scrapes(render, "", "")

    anyio.run(scrape, backend=backend)
    assert all("No thread can start" in record.getMessage() for record in caplog.records)

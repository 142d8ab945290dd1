"""Holds how many Python functions of the package run for one request, which noise of the machine does not change."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from comparison import Server, ask, http_scope
from fastapi import FastAPI

import fastapi_observe

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from conftest import Seen

PACKAGE = str(Path(fastapi_observe.__file__).parent)
REQUESTS = 10


@pytest.mark.parametrize(("ratio", "max_calls"), [(0.0, 30), (1.0, 50)])
def test_a_request_costs_few_calls(observed: Callable[..., Seen], ratio: float, max_calls: int) -> None:
    """All three signals together; a call that is added to every request has to be worth it."""
    app = FastAPI()

    @app.get("/items/{item_id}")
    async def item(item_id: str) -> str:
        return item_id

    observed(app, sample_ratio=ratio, max_traces_per_second=None)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            calls[f"{frame.f_code.co_filename.removeprefix(PACKAGE)} {frame.f_code.co_qualname}"] += 1

    async def send_requests() -> None:
        for _ in range(REQUESTS):
            server = Server([{"type": "http.request", "body": b"", "more_body": False}])
            await ask(app, http_scope("/items/7"), server, [])

    async def measure() -> None:
        await send_requests()  # the first ones fill caches
        sys.setprofile(count)
        try:
            await send_requests()
        finally:
            sys.setprofile(None)

    asyncio.run(measure())
    each = calls.total() // REQUESTS  # what runs now and then, such as a refill of ids, is a part of a call
    assert 10 <= each <= max_calls, calls

"""A process that serves many requests and measures its memory: `python -m benchmarks.memory <app> <requests>`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.apps import BODY, MAKERS, request
from benchmarks.process import answers
from benchmarks.worker import WARM_UP, caller, flusher

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = 40
"""Number of memory samples."""


def mixed(count: int) -> Iterator[dict[str, Any]]:
    """Yield requests of all kinds. Ids and unknown paths never repeat."""
    kinds = (
        lambda n: request("GET", f"/items/{n}"),
        lambda _: request("POST", "/items", BODY, **{"content-type": "application/json"}),
        lambda n: request("GET", f"/a/b/c/items/{n}"),
        lambda n: request("GET", f"/sub/items/{n}"),
        lambda n: request("GET", f"/nothing/{n}"),
        lambda n: request("GET", f"/r/{n % 50}"),
        lambda n: request("GET", f"/items/{n}", traceparent=f"00-{n + 1:032x}-{n + 1:016x}-00"),
        lambda _: request("POST", "/items", b'{"name": 1}', **{"content-type": "application/json"}),
    )
    for number in range(count):
        if number % 1000 == 999:  # noqa: PLR2004 - an occasional scrape
            yield request("GET", "/metrics")
        elif number % 100 == 99:  # noqa: PLR2004 - an occasional stream
            yield request("GET", "/stream")
        else:
            yield kinds[number % len(kinds)](number)


async def main() -> None:
    """Report resident memory in bytes before the first request, after the warm-up, and over all requests."""
    name, count = sys.argv[1], int(sys.argv[2])
    process = psutil.Process()
    app = MAKERS[name]("routes-50", 0.1)
    flush = flusher(app)
    rest = process.memory_info().rss
    for one in mixed(WARM_UP):
        await caller(app, one)()
    await asyncio.sleep(0.05)
    warm = process.memory_info().rss
    points: list[tuple[int, int]] = []
    for number, one in enumerate(mixed(count), start=1):
        await caller(app, one)()
        if number % 50 == 0:
            await asyncio.sleep(0)
        if number % (count // SAMPLES) == 0:
            flush()
            points.append((number, process.memory_info().rss))
    observe = getattr(app.state, "observe", None)
    dropped = None if observe is None else observe.logs.dropped
    internal_errors = None if observe is None else dict(observe.internal_errors.counts)
    found = {"rest": rest, "warm": warm, "points": points, "dropped_lines": dropped, "internal_errors": internal_errors}
    answers().write(json.dumps(found) + "\n")


if __name__ == "__main__":
    asyncio.run(main())

"""Scheduling of scrapes: one response is rendered at a time and shared by all scrapes that wait for it."""

from __future__ import annotations

import threading
from time import sleep, thread_time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import log_no_thread
from fastapi_observe.metrics.exposition import accepts_gzip, prefers_openmetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Send

    from fastapi_observe.metrics.exposition import ScrapeResponse

    Render = Callable[[str, str], ScrapeResponse]
    Variant = tuple[bool, bool]

VARIANTS: Final = 4
"""Variants of a response: two formats, compressed or not."""

MAX_DELAY: Final = 1.0
"""Seconds by which a scrape is delayed when there are too many."""

MAX_CPU_SHARE: Final = 0.05
"""Fraction of one core that rendering may use before scrapes are delayed."""

FREE_CPU_SECONDS: Final = 0.25
"""CPU seconds of rendering that are allowed before that."""

SEND_CHUNK_SIZE: Final = 65_536
"""Bytes that are sent before other requests get a turn."""


class ScrapeRenderer:
    """Renders one scrape response at a time. Scrapes that wait meanwhile share the next one.

    A response is never older than its request: a total that one worker has shown is not lower in a later response of
    another worker. If rendering takes more than its share of CPU time, scrapes are delayed.
    """

    def __init__(self, render: Render) -> None:
        self._render = render
        self._lock = threading.Lock()
        self._last: dict[Variant, tuple[float, ScrapeResponse]] = {}
        self._cpu_used = 0.0
        self._cpu_updated = monotonic()

    def __call__(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Return headers and body. Blocks for milliseconds, so call it in a worker thread."""
        variant = variant_of(accept, accept_encoding)
        requested = monotonic()
        with self._lock:
            response = self.response_since(variant, requested)
            if response is not None:
                return response
            self._delay()
            started, cpu_started = monotonic(), thread_time()
            try:
                response = self._render(accept, accept_encoding)
            finally:
                self._cpu_used += thread_time() - cpu_started
            self._last[variant] = started, response
            return response

    def response_since(self, variant: Variant, requested: float) -> ScrapeResponse | None:
        """Return the last response of a variant if its rendering started at `requested` (`time.monotonic`) or later."""
        started, response = self._last.get(variant, (0.0, None))
        return response if started >= requested else None

    def _delay(self) -> None:
        now = monotonic()
        self._cpu_used = max(0.0, self._cpu_used - MAX_CPU_SHARE * (now - self._cpu_updated))
        self._cpu_updated = now
        if self._cpu_used > FREE_CPU_SECONDS:
            sleep(min(MAX_DELAY, (self._cpu_used - FREE_CPU_SECONDS) / MAX_CPU_SHARE))

    def after_fork(self) -> None:
        """Replace the lock in a forked child, since another thread of the parent may have held it."""
        self._lock = threading.Lock()
        self._last = {}


def variant_of(accept: str, accept_encoding: str) -> Variant:
    """Return whether the response is OpenMetrics, and whether it is compressed."""
    return prefers_openmetrics(accept), accepts_gzip(accept_encoding)


class SharedScrapes:
    """Shares one worker thread among all concurrent scrapes of one variant.

    With a thread for each scrape, all of them would compete for the GIL. Each event loop has its own state, since
    anyio's primitives belong to one loop: an app may run under asyncio and then under trio, or in several loops.
    """

    def __init__(self, renderer: ScrapeRenderer) -> None:
        self._renderer = renderer
        self._of_loop = anyio.lowlevel.RunVar[_LoopScrapes]("fastapi_observe_scrapes")

    async def __call__(self, render: Render, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Return headers and body, rendered after this call; `render` is called in a thread."""
        scrapes = self._of_loop.get(None)
        if scrapes is None:
            scrapes = _LoopScrapes(self._renderer)
            self._of_loop.set(scrapes)
        return await scrapes(render, accept, accept_encoding)


class _LoopScrapes:
    """The concurrent scrapes of one event loop."""

    def __init__(self, renderer: ScrapeRenderer) -> None:
        self._renderer = renderer
        self._rendering: dict[Variant, anyio.Event] = {}
        # Not the app's own limiter: a scrape must not wait until its threads, which it reports on, are free.
        self._limiter = anyio.CapacityLimiter(VARIANTS)
        self._turn = anyio.Lock()

    async def __call__(self, render: Render, accept: str, accept_encoding: str) -> ScrapeResponse:
        variant, requested = variant_of(accept, accept_encoding), monotonic()
        while variant in self._rendering:
            await self._rendering[variant].wait()
            response = self._renderer.response_since(variant, requested)
            if response is not None:
                async with self._turn:  # one scrape in each round of the loop; all at once would delay requests
                    await anyio.lowlevel.checkpoint()
                return response
        done = self._rendering[variant] = anyio.Event()
        try:
            return await self._render_in_thread(render, accept, accept_encoding)
        finally:
            del self._rendering[variant]
            done.set()

    async def _render_in_thread(self, render: Render, accept: str, accept_encoding: str) -> ScrapeResponse:
        started = False

        def run() -> ScrapeResponse:
            nonlocal started
            started = True
            return render(accept, accept_encoding)

        try:
            return await anyio.to_thread.run_sync(run, limiter=self._limiter)
        except RuntimeError as exc:
            if started:
                raise
            log_no_thread(exc, "Metrics are rendered in the event loop, which delays requests.")
            return render(accept, accept_encoding)


async def send_body(send: Send, body: bytes) -> None:
    """Send a response body in chunks, so that other requests get a turn in between."""
    for start in range(0, len(body) - SEND_CHUNK_SIZE, SEND_CHUNK_SIZE):
        await send({"type": "http.response.body", "body": body[start : start + SEND_CHUNK_SIZE], "more_body": True})
        await anyio.lowlevel.checkpoint()
    last = (len(body) - 1) // SEND_CHUNK_SIZE * SEND_CHUNK_SIZE if body else 0
    await send({"type": "http.response.body", "body": body[last:]})

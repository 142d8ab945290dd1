"""Who asks for `/metrics`, and when: one answer is made at a time, and everybody who waits for it gets it."""

from __future__ import annotations

import threading
from time import monotonic, sleep, thread_time
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from fastapi_observe.metrics.exposition import accepts_gzip, prefers_openmetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Send

    from fastapi_observe.metrics.exposition import ScrapeResponse

VARIANTS: Final = 4
"""Kinds of answers: two formats, compressed or not."""

MAX_DELAY: Final = 1.0
"""Seconds that a scrape waits at most when there are too many of them."""

MAX_CPU_SHARE: Final = 0.05
"""Part of one core that answering may take before scrapes wait."""

FREE_CPU_SECONDS: Final = 0.25
"""Seconds of answering that are free before that."""

SEND_CHUNK_SIZE: Final = 65_536
"""Bytes that are sent before other requests have their turn."""


class ScrapeRenderer:
    """Answers scrapes one at a time; who waits for the one before gets the answer of the next, together with others.

    Each answer is of a moment after it was asked for: a total that one worker has shown is never shown lower by
    another. Once answering takes more than its share of the time, scrapes wait, a second at most.
    """

    def __init__(self, render: Callable[[str, str], ScrapeResponse]) -> None:
        self._render = render
        self._lock = threading.Lock()
        self._last: dict[tuple[bool, bool], tuple[float, ScrapeResponse]] = {}
        self._spent = 0.0
        self._ended = monotonic()

    def __call__(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Return headers and body."""
        key = variant_of(accept, accept_encoding)
        asked = monotonic()
        with self._lock:
            answer = self.response_since(key, asked)
            if answer is not None:
                return answer
            self._wait()
            began, cost = monotonic(), thread_time()
            try:
                answer = self._render(accept, accept_encoding)
            finally:
                self._spent += thread_time() - cost
            self._last[key] = began, answer
            return answer

    def response_since(self, key: tuple[bool, bool], asked: float) -> ScrapeResponse | None:
        """Return the last answer of this kind if it was begun at `asked` (`time.monotonic`) or later."""
        began, answer = self._last.get(key, (0.0, None))
        return answer if began >= asked else None

    def _wait(self) -> None:
        now = monotonic()
        self._spent = max(0.0, self._spent - MAX_CPU_SHARE * (now - self._ended))
        self._ended = now
        if self._spent > FREE_CPU_SECONDS:
            sleep(min(MAX_DELAY, (self._spent - FREE_CPU_SECONDS) / MAX_CPU_SHARE))

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._lock = threading.Lock()
        self._last = {}


def variant_of(accept: str, accept_encoding: str) -> tuple[bool, bool]:
    """Return the kind of answer that is wanted: OpenMetrics or not, compressed or not."""
    return prefers_openmetrics(accept), accepts_gzip(accept_encoding)


class SharedScrapes:
    """Those who wait for an answer in one event loop: one of them sends a thread for it, the others get it from there.

    A thread for each would have all of them take turns with the interpreter.
    """

    def __init__(self, scrapes: ScrapeRenderer) -> None:
        self._scrapes = scrapes
        self._under_way: dict[tuple[bool, bool], anyio.Event] = {}
        self._limiter = anyio.CapacityLimiter(VARIANTS)  # not the app's: its threads may be busy, that is what is asked
        self._turn = anyio.Lock()

    async def __call__(
        self, render: Callable[[str, str], ScrapeResponse], accept: str, accept_encoding: str
    ) -> ScrapeResponse:
        """Return headers and body, of a moment after the call; `render` is called in a thread."""
        key, asked = variant_of(accept, accept_encoding), monotonic()
        while key in self._under_way:
            await self._under_way[key].wait()
            answer = self._scrapes.response_since(key, asked)
            if answer is not None:
                async with self._turn:  # one in each round of the loop: all at once would hold up the requests
                    await anyio.lowlevel.checkpoint()
                return answer
        done = self._under_way[key] = anyio.Event()
        try:
            return await anyio.to_thread.run_sync(render, accept, accept_encoding, limiter=self._limiter)
        finally:
            del self._under_way[key]
            done.set()


async def send_body(send: Send, body: bytes) -> None:
    """Send a body piece by piece; requests have their turn in between."""
    for at in range(0, len(body) - SEND_CHUNK_SIZE, SEND_CHUNK_SIZE):
        await send({"type": "http.response.body", "body": body[at : at + SEND_CHUNK_SIZE], "more_body": True})
        await anyio.lowlevel.checkpoint()
    rest = (len(body) - 1) // SEND_CHUNK_SIZE * SEND_CHUNK_SIZE if body else 0
    await send({"type": "http.response.body", "body": body[rest:]})

"""Scrapes are rendered one at a time: shared responses, a pause if there are too many, a limit on their size."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.metrics import exposition, scrapes
from fastapi_observe.metrics.scrapes import SEND_CHUNK_SIZE, ScrapeRenderer, SharedScrapes, send_body
from fastapi_observe.metrics.service import MetricsService
from fastapi_observe.settings.model import ObserveSettings

if TYPE_CHECKING:
    from fastapi_observe.metrics.exposition import ScrapeResponse


def test_waiting_scrapes_share_the_next_response() -> None:
    """Scrapes that arrive while one is rendered share the next response. None gets an older one."""
    begun, go_on = threading.Event(), threading.Event()
    rendered: list[float] = []

    def render(accept: str, accept_encoding: str) -> ScrapeResponse:
        rendered.append(monotonic())
        begun.set()
        go_on.wait(10)
        return [], str(len(rendered)).encode()

    share = ScrapeRenderer(render)
    answers: list[tuple[float, bytes]] = []
    arrived = threading.Semaphore(0)

    def scrape() -> None:
        asked = monotonic()
        arrived.release()
        answers.append((asked, share("", "")[1]))

    first = threading.Thread(target=scrape)
    first.start()
    begun.wait(10)
    others = [threading.Thread(target=scrape) for _ in range(20)]
    for thread in others:
        thread.start()
    for _ in range(21):
        arrived.acquire()
    go_on.set()
    for thread in (first, *others):
        thread.join(10)
    assert len(answers) == 21
    assert len(rendered) <= 21
    assert all(rendered[int(number) - 1] >= asked for asked, number in answers)


def test_too_many_scrapes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape that would exceed the CPU share waits, a second at most."""
    waited: list[float] = []
    monkeypatch.setattr(scrapes, "sleep", waited.append)
    monkeypatch.setattr(scrapes, "FREE_CPU_SECONDS", -1.0)
    share = ScrapeRenderer(lambda *_: ([], b""))
    share("", "")
    share("", "")
    assert waited == [scrapes.MAX_DELAY] * 2


class Rendering:
    """A renderer that waits for `go_on` and counts its calls. The first `failing` calls raise."""

    def __init__(self, failing: int = 0) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.times = 0
        self.threads: set[int] = set()
        self.most_at_once = 0
        self._at_once = 0
        self._failing = failing

    def __call__(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Return the number of the call as body."""
        self.times += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        self.begun.release()
        self.go_on.wait(10)
        self._at_once -= 1
        if self.times <= self._failing:
            raise RuntimeError("this one fails")
        return [], str(self.times).encode()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_thread_renders_for_all_that_wait(backend: str) -> None:
    """Fifty scrapes in one loop are served by two renderings, in one thread at a time."""
    rendering = Rendering()
    share = ScrapeRenderer(rendering)
    answers: list[bytes] = []

    async def main() -> None:
        waiting = SharedScrapes(share)

        async def scrape() -> None:
            answers.append((await waiting(share, "", ""))[1])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(scrape)
            await anyio.to_thread.run_sync(rendering.begun.acquire)
            for _ in range(49):
                tasks.start_soon(scrape)
            await anyio.wait_all_tasks_blocked()
            rendering.go_on.set()

    anyio.run(main, backend=backend)
    assert answers == [b"1"] + [b"2"] * 49
    assert rendering.most_at_once == 1


async def test_a_scrape_that_fails_or_is_cancelled() -> None:
    """A failure affects one scrape only. One that is cancelled leaves its response to the others."""
    rendering = Rendering(failing=1)
    share = ScrapeRenderer(rendering)
    waiting = SharedScrapes(share)
    tasks = [asyncio.create_task(waiting(share, "", "")) for _ in range(3)]
    await anyio.to_thread.run_sync(rendering.begun.acquire)
    rendering.go_on.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[0], RuntimeError)
    assert found[1:] == [([], b"2")] * 2
    rendering.go_on.clear()
    leaving, *staying = (asyncio.create_task(waiting(share, "", "")) for _ in range(3))
    for _ in range(2):  # the second one had begun too
        await anyio.to_thread.run_sync(rendering.begun.acquire)
    leaving.cancel()
    rendering.go_on.set()
    answers = {body for _, body in await asyncio.gather(*staying)}
    assert answers <= {b"3", b"4"}  # the thread may have begun before they asked
    with pytest.raises(asyncio.CancelledError):
        await leaving


def test_a_rendering_that_fails_counts_as_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A renderer that always fails does not keep a processor busy."""
    times = iter([0.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(scrapes, "thread_time", lambda: next(times))
    waited: list[float] = []
    monkeypatch.setattr(scrapes, "sleep", waited.append)
    rendering = Rendering(failing=1)
    rendering.go_on.set()
    share = ScrapeRenderer(rendering)
    with pytest.raises(RuntimeError):
        share("", "")
    assert share("", "")[1] == b"2"
    assert waited == [scrapes.MAX_DELAY]


@pytest.mark.parametrize(
    "size",
    [0, 1, SEND_CHUNK_SIZE - 1, SEND_CHUNK_SIZE, SEND_CHUNK_SIZE + 1, 3 * SEND_CHUNK_SIZE, 3 * SEND_CHUNK_SIZE + 5],
)
async def test_a_body_is_sent_in_chunks(size: int) -> None:
    """The chunks are the body, no chunk is too long, and only the last one ends the response."""
    body = bytes(range(256)) * (size // 256 + 1)
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await send_body(send, body[:size])
    assert b"".join(message["body"] for message in messages) == body[:size]
    assert [message.get("more_body", False) for message in messages] == [True] * (len(messages) - 1) + [False]
    assert max(len(message["body"]) for message in messages) <= SEND_CHUNK_SIZE
    assert len(messages) == max(1, -(-size // SEND_CHUNK_SIZE))


def test_a_family_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as an internal error. Smaller families after it are exposed."""
    faults = InternalErrors()
    metrics = MetricsService(ObserveSettings(include_default_registry=False), faults)
    large = metrics.counter("large_total", "Large.", ["number"])
    for number in range(200):
        large.labels(number).inc()
    metrics.counter("small_total", "Small.").inc()
    monkeypatch.setattr(exposition, "MAX_SCRAPE_BYTES", 4000)
    text = metrics.render("", "")[1].decode()
    assert "small_total 1" in text
    assert "large_total" not in text
    assert len(text) <= 4000
    assert faults.counts == {"metrics.too_large": 1}

"""Scrapes one at a time: shared answers, a pause when there are too many, a bound on their size."""

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


def test_who_waits_shares_the_next_answer() -> None:
    """Of many scrapes that arrive during one, all get the answer of the next; none gets one from before it asked."""
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
    """Beyond its share of the time a scrape waits, a second at most."""
    waited: list[float] = []
    monkeypatch.setattr(scrapes, "sleep", waited.append)
    monkeypatch.setattr(scrapes, "FREE_CPU_SECONDS", -1.0)
    share = ScrapeRenderer(lambda *_: ([], b""))
    share("", "")
    share("", "")
    assert waited == [scrapes.MAX_DELAY] * 2


class Rendering:
    """A renderer that waits to be let go on, and counts; `failing` times it raises."""

    def __init__(self, failing: int = 0) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.times = 0
        self.threads: set[int] = set()
        self.most_at_once = 0
        self._at_once = 0
        self._failing = failing

    def __call__(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Answer with the number of this answer."""
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
def test_one_thread_answers_all_who_wait(backend: str) -> None:
    """Of fifty scrapes in one loop one is rendered for the first and one for all others, in one thread at a time."""
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


async def test_who_waits_takes_over_from_one_that_fails_or_leaves() -> None:
    """A failure is the failure of one; one that is cancelled leaves its answer to the others."""
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


def test_an_answer_that_fails_takes_its_share_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time spent on what fails counts: a broken renderer keeps no processor busy."""
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
async def test_a_body_is_sent_in_pieces(size: int) -> None:
    """What is sent is the body; only the last message is the end of it, and none is longer than a piece."""
    body = bytes(range(256)) * (size // 256 + 1)
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    await send_body(send, body[:size])
    assert b"".join(message["body"] for message in messages) == body[:size]
    assert [message.get("more_body", False) for message in messages] == [True] * (len(messages) - 1) + [False]
    assert max(len(message["body"]) for message in messages) <= SEND_CHUNK_SIZE
    assert len(messages) == max(1, -(-size // SEND_CHUNK_SIZE))


def test_an_answer_is_cut_at_whole_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that does not fit is left out, the smaller ones after it are not, and it is counted."""
    faults = InternalErrors()
    metrics = MetricsService(ObserveSettings(include_default_registry=False), faults)
    large = metrics.counter("large_total", "Large.", ["number"])
    for number in range(200):
        large.labels(number).inc()
    metrics.counter("small_total", "Small.").inc()
    monkeypatch.setattr(exposition, "MAX_RESPONSE_BYTES", 4000)
    text = metrics.render("", "")[1].decode()
    assert "small_total 1" in text
    assert "large_total" not in text
    assert len(text) <= 4000
    assert faults.counts == {"metrics.too_large": 1}

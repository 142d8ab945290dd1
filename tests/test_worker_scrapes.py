"""Scrapes one at a time: shared answers, a pause when there are too many, a bound on their size."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING

from fastapi_observe.records.faults import Faults
from fastapi_observe.settings import ObserveSettings
from fastapi_observe.signals import exposition
from fastapi_observe.signals.exposition import Scrapes
from fastapi_observe.signals.metrics import MetricsService

if TYPE_CHECKING:
    import pytest

    from fastapi_observe.signals.exposition import Answer


def test_who_waits_shares_the_next_answer() -> None:
    """Of many scrapes that arrive during one, all get the answer of the next; none gets one from before it asked."""
    begun, go_on = threading.Event(), threading.Event()
    rendered: list[float] = []

    def render(accept: str, accept_encoding: str) -> Answer:
        rendered.append(monotonic())
        begun.set()
        go_on.wait(10)
        return [], str(len(rendered)).encode()

    scrapes = Scrapes(render)
    answers: list[tuple[float, bytes]] = []
    arrived = threading.Semaphore(0)

    def scrape() -> None:
        asked = monotonic()
        arrived.release()
        answers.append((asked, scrapes("", "")[1]))

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
    monkeypatch.setattr(exposition, "sleep", waited.append)
    monkeypatch.setattr(exposition, "BURST", -1.0)
    scrapes = Scrapes(lambda *_: ([], b""))
    scrapes("", "")
    scrapes("", "")
    assert waited == [exposition.LONGEST_WAIT] * 2


def test_an_answer_is_cut_at_whole_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that does not fit is left out, the smaller ones after it are not, and it is counted."""
    faults = Faults()
    metrics = MetricsService(ObserveSettings(default_registry=False), faults)
    large = metrics.counter("large_total", "Large.", ["number"])
    for number in range(200):
        large.labels(number).inc()
    metrics.counter("small_total", "Small.").inc()
    monkeypatch.setattr(exposition, "MOST_BYTES", 4000)
    text = metrics.render("", "")[1].decode()
    assert "small_total 1" in text
    assert "large_total" not in text
    assert len(text) <= 4000
    assert faults.counts == {"metrics.too_large": 1}

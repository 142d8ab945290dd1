"""Export queue: every span is counted, time and memory are bounded, and each cause of a failure is logged once.

`OBSERVE_SOAK=1` runs the long forms.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from collectors import Collector, Mode
from fastapi import FastAPI
from injection import failing
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, StatusCode
from tools import no_thread_starts, until, volume

from fastapi_observe import ObserveSettings, install
from fastapi_observe.export import buffer as export_buffer
from fastapi_observe.export import queue as export_queue
from fastapi_observe.export.buffer import ENCODE_BATCH, ExportBuffer, QueueLimits
from fastapi_observe.export.http import HttpTransport
from fastapi_observe.export.queue import CollectorOutage, ExportQueue
from fastapi_observe.export.transport import ExportResult
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.traces.processors import ExportProcessor
from fastapi_observe.traces.provider import ObserveTracerProvider
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.export.counts import Counts

MEGABYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon, so that the tests need not wait. `test_backoff` covers the real seconds."""
    monkeypatch.setattr(export_queue, "INITIAL_BACKOFF", 0.02)
    monkeypatch.setattr(export_queue, "PROBE_INTERVAL", 0.05)


class Exporting:
    """A tracing service that exports to a collector, and its queue."""

    def __init__(self, collector: Collector, **options: Any) -> None:
        self.internal_errors = InternalErrors()
        defaults = {"otlp_endpoint": collector.url, "sampler": "always_on", "batch_delay": 0.01, "otlp_timeout": 0.3}
        self.tracing = TracingService(ObserveSettings(**{**defaults, **options}), self.internal_errors)
        assert isinstance(self.tracing.provider, ObserveTracerProvider)
        queue = self.tracing.provider.queue
        assert queue is not None
        self.queue = queue

    def spans(self, number: int, name: str = "s", **attributes: Any) -> None:
        """Make spans."""
        for at in range(number):
            with self.tracing.span(f"{name}{at}", **attributes):
                pass

    @property
    def counts(self) -> Counts:
        """The counts. Whenever they are read, produced = exported + dropped + queued."""
        counts = self.queue.counts()
        assert counts.produced == counts.exported + sum(counts.dropped.values()) + counts.queued
        return counts

    @property
    def failures(self) -> int:
        """Number of failed requests."""
        return sum((self.counts.failures or {}).values())

    def until(self, condition: Callable[[Counts], object]) -> Counts:
        """Wait until a condition of the counts holds; return them."""
        until(lambda: condition(self.counts))
        return self.counts


@pytest.fixture
def exporting() -> Iterator[Callable[..., Exporting]]:
    """Make exporting services, which are closed after the test."""
    made: list[Exporting] = []

    def make(collector: Collector, **options: Any) -> Exporting:
        made.append(Exporting(collector, **options))
        return made[-1]

    yield make
    for one in made:
        one.queue.close(0)
        one.tracing.close()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages that were logged."""
    return [record.getMessage() for record in caplog.records if record.name == "fastapi_observe"]


# Every kind of failure


MODES: dict[Mode, tuple[int, str]] = {
    "ok": (70, ""),
    "drip_body": (70, ""),
    "huge": (70, ""),
    "reset_body": (70, ""),
    "partial": (67, "rejected"),
    "302": (0, "rejected"),
    "400": (0, "rejected"),
    "503": (0, "shutdown"),
    "429": (0, "shutdown"),
    "reset": (0, "export_failed"),
    "close": (0, "export_failed"),
    "garbage": (0, "export_failed"),
    "hang": (0, "export_failed"),
    "drip": (0, "export_failed"),
}
"""How many of 70 spans are exported in each mode of the collector, and why the others are dropped."""


@pytest.mark.parametrize("mode", MODES)
def test_every_span_is_counted(
    mode: Mode, exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts agree with what the collector received, whatever it does; nothing is queued after `close`."""
    monkeypatch.setattr("fastapi_observe.export.http.BODY_TIMEOUT", 0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exported, reason = MODES[mode]
    with Collector(mode) as collector:
        one = exporting(collector, batch_size=25, batch_delay=60)
        one.spans(70)
        one.tracing.flush(1.0)
        one.tracing.close()
        counts = one.counts
        received = len(collector.spans)
    assert (counts.produced, counts.exported, counts.queued, counts.queued_bytes) == (70, exported, 0, 0)
    if reason:
        assert counts.dropped[reason] >= min(25, 70 - exported)
    assert received == exported + (counts.dropped["rejected"] if mode == "partial" else 0)
    assert bool(counts.failures) == (exported == 0)
    assert not one.internal_errors.counts
    messages = warnings_of(caplog)
    # At most: the failure, the failure of a shorter attempt during the flush, and what the flush left.
    assert len({*messages}) == len(messages) <= 3
    assert bool(messages) == (exported < 70)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_an_outage_keeps_the_newest_spans(
    exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture
) -> None:
    """While no collector listens, the newest spans are queued. They are sent once it does, and a line sums it up."""
    collector = Collector(listens=False)
    one = exporting(collector, queue_size=50, batch_size=10)
    one.spans(80)
    counts = one.until(lambda _: one.failures >= 4)
    assert counts.failures == {"connect": one.failures}
    assert counts.exported == 0
    assert counts.dropped == {"queue_full": 30}
    assert counts.queued == 50
    collector.listen()
    one.until(lambda counts: counts.exported == 50)
    one.tracing.close()
    with collector:
        assert set(collector.names) == {f"s{at}" for at in range(30, 80)}
    messages = warnings_of(caplog)
    assert ["Connection refused" in line for line in messages if "Cannot export" in line] == [True]
    assert len([line for line in messages if "Dropped 30 spans" in line]) <= 1
    assert messages[-1].startswith(f"Export of spans to {collector.url}/v1/traces recovered after")
    assert messages[-1].endswith("30 were dropped.")
    assert one.counts.last_success


def test_probes_carry_no_spans(exporting: Callable[..., Exporting]) -> None:
    """After three failures only empty requests are sent, until one gets a response."""
    with Collector("reset") as collector:
        one = exporting(collector, batch_size=10)
        one.spans(40)
        counts = one.until(lambda _: one.failures >= 6)
        assert counts.dropped == {"export_failed": 10}  # the first batch was sent twice, the second once
        collector.mode = "ok"
        one.until(lambda counts: counts.exported == 30)
        assert b"" in collector.bodies


@pytest.mark.parametrize("mode", ["503", "429"])
def test_spans_that_are_wanted_later_stay_queued(mode: Mode, exporting: Callable[..., Exporting]) -> None:
    """While the collector responds with 503 or 429, no span is dropped if there is room. Each arrives once."""
    with Collector(mode) as collector:
        collector.retry_after = ""
        one = exporting(collector, batch_size=25)
        one.spans(70)
        counts = one.until(lambda _: one.failures >= 8)
        for _ in range(3):
            assert not one.tracing.flush(0.05)
        assert (counts.dropped, one.counts.queued) == ({}, 70)
        failures = one.failures
        one.until(lambda _: one.failures > failures + 1)  # what a flush has given up is refused by now as well
        collector.mode = "ok"
        one.until(lambda counts: counts.exported == 70)
        assert len(collector.names) == len(collector.spans) == 70


def test_the_oldest_deferred_spans_are_dropped_first(exporting: Callable[..., Exporting]) -> None:
    """Spans that were sent and deferred are the oldest: a full queue drops them before newer ones."""
    with Collector("503") as collector:
        collector.retry_after = ""
        one = exporting(collector, queue_size=30, batch_size=10)
        one.spans(20, "old")
        one.until(lambda counts: counts.failures)
        one.spans(25, "new")
        one.until(lambda counts: counts.dropped == {"queue_full": 15})
        collector.mode = "ok"
        one.until(lambda counts: counts.exported == 30)
        assert {*collector.names} == {*(f"old{at}" for at in range(15, 20)), *(f"new{at}" for at in range(25))}


class DefersItems(Collector):
    """A collector that responds with 503 to requests with items while it is `busy`, and accepts probes."""

    busy = True

    def _respond(self, sock: Any, path: str, headers: dict[str, str], body: bytes) -> bool:
        self.mode = "503" if body and self.busy else "ok"
        return super()._respond(sock, path, headers, body)


def test_a_batch_that_is_always_deferred_is_dropped_alone(
    exporting: Callable[..., Exporting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `MAX_DEFERRAL` it is dropped, because it would block the other batches."""
    with DefersItems() as collector:
        collector.retry_after = ""
        one = exporting(collector, batch_size=10)
        one.spans(30)
        counts = one.until(lambda _: one.failures >= 6)
        assert (counts.dropped, one.counts.queued) == ({}, 30)
        monkeypatch.setattr(export_buffer, "MAX_DEFERRAL", 0.0)
        one.until(lambda counts: counts.dropped)
        monkeypatch.setattr(export_buffer, "MAX_DEFERRAL", 300.0)
        collector.busy = False
        counts = one.until(lambda counts: not counts.queued)
        assert counts.dropped["export_failed"] % 10 == 0
        assert counts.exported == len(collector.spans) == 30 - counts.dropped["export_failed"]


def test_each_batch_is_deferred_for_five_minutes() -> None:
    """The time starts when a batch is first deferred, and again once one was accepted or dropped; not with a probe."""
    now = 0.0
    buffer = ExportBuffer(QueueLimits(10, 65_536, 1, 1.0, 1.0, 1.0), clock=lambda: now)
    later = ExportResult("http_5xx", retry=True, retry_later=True)
    buffer.raw.extend("abcd")
    buffer.take_slice()
    buffer.add([(None, item.encode(), 0) for item in "abcd"], 4)

    def send(at: float, result: ExportResult) -> int:
        nonlocal now
        now = at
        buffer.take_batch()
        buffer.apply_result(result)
        return buffer.counts().dropped.get("export_failed", 0)

    buffer.apply_result(later)  # a probe: it has no items
    assert [send(at, later) for at in (400.0, 699.0)] == [0, 0]
    assert send(699.5, ExportResult()) == 0
    assert [send(at, later) for at in (700.0, 999.0, 1000.0)] == [0, 0, 1]
    assert [send(at, later) for at in (1001.0, 1300.0, 1301.0)] == [1, 1, 2]
    counts = buffer.counts()
    assert (counts.exported, counts.dropped, counts.queued) == (1, {"export_failed": 2}, 1)


def test_a_rejected_probe_counts_as_an_answer(exporting: Callable[..., Exporting]) -> None:
    """A collector that rejects an empty request runs: spans are sent again."""
    with Collector("400") as collector:
        one = exporting(collector, batch_size=5)
        one.spans(25)
        counts = one.until(lambda counts: counts.dropped.get("rejected") == 25)
        assert counts.failures == {"http_4xx": one.failures}
        assert counts.queued == 0


def test_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits are 1 s, 2 s, then 5 s between probes, each 20 % more or less; a response ends them."""
    monkeypatch.undo()  # the real seconds
    now = 1000.0
    outage = CollectorOutage("spans", "http://collector", clock=lambda: now)
    for number, seconds in enumerate((1, 2, 5, 5)):
        assert outage.probing == (number > 2)
        outage.record_failure(ExportResult("connect", retry=True), probe=outage.probing)
        assert 0.8 * seconds <= outage.retry_at - now <= 1.2 * seconds
        now = outage.retry_at
    outage.record_probe_reply()
    assert (outage.probing, outage.retry_at) == (False, 0.0)
    outage.record_failure(ExportResult("http_5xx", retry=True, retry_after=20.0), probe=False)
    assert (outage.retry_at, outage.retry_after_set, outage.probing) == (now + 20.0, True, True)
    outage.record_success(0)
    assert (outage.failures, outage.retry_after_set, outage.probing) == (0, False, False)


def test_retry_after_is_respected(exporting: Callable[..., Exporting]) -> None:
    """While the collector asks to wait, nothing is sent, and a flush that would end too early returns at once."""
    with Collector("503") as collector:
        collector.retry_after = "20"
        one = exporting(collector)
        one.spans(3)
        one.until(lambda counts: counts.failures)
        collector.mode = "ok"
        started = monotonic()
        assert not one.tracing.flush(15)
        assert not one.tracing.flush(15)
        assert monotonic() - started < 15
        assert one.counts.failures == {"http_5xx": 1}
        assert one.counts.queued == 3


def test_each_cause_is_logged_once_a_minute(
    exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture
) -> None:
    """Many failures of one cause are one line, another cause is another. Nothing that the peer sent is in them."""
    with Collector("garbage") as collector:
        one = exporting(collector, batch_size=1)
        one.spans(20)
        one.until(lambda counts: (counts.failures or {}).get("broken", 0) >= 5)
        collector.mode = "302"
        one.until(lambda counts: (counts.failures or {}).get("http_3xx", 0) >= 3)
    messages = warnings_of(caplog)
    assert len(messages) == 2
    assert "SSH" not in "".join(messages)
    assert "set otlp_endpoint to the final URL" in messages[1]


def test_warnings_contain_no_secret(exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture) -> None:
    """User, password and query of the endpoint are left out."""
    with Collector("400") as collector:
        one = exporting(collector, otlp_endpoint=f"http://me:hunter2@127.0.0.1:{collector.port}/v1/traces?key=hunter3")
        one.spans(1)
        one.until(lambda counts: counts.dropped and warnings_of(caplog))  # the batch is counted first
    assert f"http://127.0.0.1:{collector.port}/v1/traces:" in caplog.text
    assert "hunter" not in caplog.text


async def test_requests_do_not_wait_for_the_collector() -> None:
    """Requests are served while the collector hangs and the queue is full."""
    with Collector("hang") as collector:
        app = FastAPI()

        @app.get("/x")
        async def x() -> str:
            return "y"

        observe = install(app, otlp_endpoint=collector.url, sampler="always_on", logs=False, queue_size=5,
                          shutdown_timeout=0.1, batch_delay=0.01)  # fmt: skip
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            async with asyncio.timeout(30):
                answers = [await client.get("/x") for _ in range(50)]
        assert {(answer.status_code, answer.text) for answer in answers} == {(200, '"y"')}
        await asyncio.to_thread(observe.close)


# Limits


def test_memory_is_bounded_with_long_values(exporting: Callable[..., Exporting]) -> None:
    """Of spans with 60 KB values, names and errors, at most 8 MiB are queued while no collector listens."""
    one = exporting(Collector(listens=False))

    def make(number: int) -> None:
        for _ in range(number):
            with one.tracing.span("n" * 60_000, url="u" * 60_000) as span:
                span.add_event("e" * 60_000, {"text": "t" * 60_000})
                span.set_status(StatusCode.ERROR, "d" * 60_000)

    make(1200)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    number = volume(5000)
    make(number)
    counts = one.counts
    assert counts.dropped["queue_bytes"] >= number * 0.8
    assert counts.queued_bytes is not None
    assert counts.queued_bytes <= 8 * MEGABYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_the_queue_is_bounded_at_every_moment(exporting: Callable[..., Exporting]) -> None:
    """At most `queue_size` spans are queued, the newest, however many threads make them; plus those being sent."""
    one = exporting(Collector(listens=False), queue_size=100, batch_size=10, batch_delay=60)
    number = volume(500)
    threads = [threading.Thread(target=one.spans, args=(number, f"{name}-")) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert one.counts.queued <= 100 + 10 + 5 * ENCODE_BATCH  # queued, being sent, being encoded
    for thread in threads:
        thread.join()
    counts = one.until(lambda counts: counts.queued == 100)
    assert counts.produced == 4 * number
    assert counts.dropped == {"queue_full": 4 * number - 100}


def test_a_span_that_is_too_large_is_dropped(exporting: Callable[..., Exporting]) -> None:
    """A span of more than an eighth of the bytes that `queue_size` allows is dropped alone."""
    with Collector() as collector:
        one = exporting(collector, queue_size=32)
        one.spans(1, "large", **{f"k{at}": "x" * 2000 for at in range(10)})
        one.spans(1, "small")
        one.tracing.flush(5)
        assert one.counts.dropped == {"too_large": 1}
        assert set(collector.names) == {"small0"}


def test_a_request_is_bounded(exporting: Callable[..., Exporting], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of large spans is sent in several requests."""
    monkeypatch.setattr("fastapi_observe.export.buffer.MAX_BODY_BYTES", 5000)
    with Collector() as collector:
        one = exporting(collector, batch_delay=60)
        one.spans(10, text="x" * 2000)
        assert one.tracing.flush(5)
        assert len(collector.requests) == 5
        assert len(collector.spans) == 10


def test_a_full_batch_is_sent_at_once(exporting: Callable[..., Exporting]) -> None:
    """The rest follows after `batch_delay`, or with a flush."""
    with Collector() as collector:
        one = exporting(collector, batch_size=32, batch_delay=60)
        one.spans(40)
        one.until(lambda counts: counts.exported == 32)
        assert one.counts.queued == 8
        assert one.tracing.flush(5)
        assert set(collector.names.values()) == {1}
        assert len(collector.names) == 40


def test_one_connection_is_kept(exporting: Callable[..., Exporting]) -> None:
    """Batches share a connection. One that the collector has closed meanwhile is replaced without a failure."""
    with Collector() as collector:
        one = exporting(collector)
        for _ in range(3):
            one.spans(1)
            assert one.tracing.flush(5)
        assert collector.connections == 1
        collector.drop_connections()
        one.spans(1)
        assert one.tracing.flush(5)
        assert collector.connections == 2
        assert not one.counts.failures


def test_unsampled_spans_are_not_exported() -> None:
    """A span that is recorded but not sampled, as a user's sampler may decide, is not exported."""
    with Collector() as collector:
        one = Exporting(collector)
        ExportProcessor(one.queue).on_end(ReadableSpan("s", SpanContext(1, 2, is_remote=False)))
        assert one.counts.produced == 0
        one.tracing.close()


# Internal errors


class Broken:
    """An encoder of strings that fails for the item `on`, or to build a request if that is "request"."""

    def __init__(self, *, on: str) -> None:
        self.on = on

    def encode(self, item: Any) -> tuple[None, bytes]:
        """Encode a string."""
        if item == self.on:
            raise ValueError(item)
        return None, item.encode()

    def request(self, items: list[Any]) -> bytes:
        """Join strings."""
        if self.on == "request":
            raise ValueError
        return b"".join(data for _, data, _ in items)


def queue_of(collector: Collector, encoder: Any, internal_errors: InternalErrors) -> ExportQueue:
    """Make a queue of strings, whose thread touches none of them before the queue is flushed."""
    transport = HttpTransport(f"{collector.url}/v1/texts", {}, "traces")
    limits = QueueLimits(items=10, bytes=65_536, batch=5, delay=600.0, timeout=1.0, shutdown=1.0)
    return ExportQueue("texts", encoder, transport, limits, internal_errors)


def test_an_item_that_cannot_be_encoded_is_dropped_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The other items are sent; the error is counted."""
    internal_errors = InternalErrors()
    with Collector() as collector:
        queue = queue_of(collector, Broken(on="b"), internal_errors)
        for item in "abc":
            queue.put(item)
        assert not queue.flush(5)
        queue.close()
        assert b"".join(collector.bodies) == b"ac"
    assert queue.counts().dropped == {"internal_error": 1}
    assert internal_errors.counts == {"export.encode": 1}
    assert "Dropped 1 texts since start (internal_error)" in caplog.text


def test_a_request_that_cannot_be_built_is_dropped() -> None:
    """The batch is dropped, and the thread goes on."""
    internal_errors = InternalErrors()
    with Collector() as collector:
        encoder = Broken(on="request")
        queue = queue_of(collector, encoder, internal_errors)
        queue.put("a")
        assert not queue.flush(0.5)
        encoder.on = ""
        queue.put("b")
        assert queue.flush(5)
        queue.close()
        assert collector.bodies[-1] == b"b"
    assert queue.counts().dropped == {"internal_error": 1}
    assert internal_errors.counts == {"export.send": 1}


def test_a_thread_that_cannot_start(exporting: Callable[..., Exporting]) -> None:
    """As at interpreter exit: the span stays queued, and the next span tries again."""
    with Collector() as collector:
        one = exporting(collector)
        with no_thread_starts():
            one.spans(1)
        assert one.internal_errors.counts == {}
        assert one.counts.queued == 1
        one.spans(1)
        assert one.tracing.flush(5)


def test_an_internal_error_does_not_end_the_thread(exporting: Callable[..., Exporting]) -> None:
    """It is counted, and the thread goes on."""
    with Collector() as collector:
        one = exporting(collector)
        with failing(ExportBuffer.mark_due):
            one.spans(1)
            until(lambda: one.internal_errors.counts)
        assert one.tracing.flush(5)
        assert set(one.internal_errors.counts) == {"export.run"}


def test_a_log_handler_that_raises_does_not_stop_the_export(exporting: Callable[..., Exporting]) -> None:
    """A warning that cannot be logged is given up."""

    class Raises(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError

    handler = Raises()
    logging.getLogger("fastapi_observe").addHandler(handler)
    try:
        with Collector("400") as collector:
            one = exporting(collector)
            one.spans(1)
            one.until(lambda counts: counts.dropped == {"rejected": 1})
            collector.mode = "ok"
            one.spans(1)
            one.until(lambda counts: counts.exported == 1)
    finally:
        logging.getLogger("fastapi_observe").removeHandler(handler)


def test_an_incomplete_flush_is_logged(exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture) -> None:
    """Once, with the number of spans and the URL: if the process ends next, its counters are gone too."""
    with Collector("hang") as collector:
        one = exporting(collector, otlp_timeout=5)
        one.spans(7)
        assert not one.tracing.flush(0.1)
        assert not one.tracing.flush(0.1)
        messages = [text for text in warnings_of(caplog) if "were not exported" in text]
        assert len(messages) == 1
        assert f"7 spans were not exported to {collector.url}/v1/traces in time" in messages[0]

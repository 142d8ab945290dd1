"""Export: whatever the collector does, every span is counted, time and memory are bounded, the loss is told once."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from collectors import Collector, Mode
from fastapi import FastAPI

from fastapi_observe import ObserveSettings, install
from fastapi_observe.export import buffer as export_buffer
from fastapi_observe.export import queue as export_queue
from fastapi_observe.export.buffer import ENCODE_BATCH, ExportBuffer, QueueLimits
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.transport import ExportResult
from fastapi_observe.internal.errors import InternalErrors
from fastapi_observe.traces.provider import ObserveTracerProvider
from fastapi_observe.traces.service import TracingService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastapi_observe.export.counts import Counts

MEGABYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a failing collector be tried again soon, so that the tests need not wait."""
    monkeypatch.setattr(export_queue, "INITIAL_BACKOFF", 0.02)
    monkeypatch.setattr(export_queue, "PROBE_INTERVAL", 0.05)


class Exporting:
    """A tracing service that exports to a collector."""

    def __init__(self, collector: Collector, **options: Any) -> None:
        self.faults = InternalErrors()
        defaults = {"otlp_endpoint": collector.url, "sampler": "always_on", "batch_delay": 0.01, "otlp_timeout": 0.3}
        self.tracing = TracingService(ObserveSettings(**{**defaults, **options}), self.faults)
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
        """Read the counts; the identity holds whenever they are read."""
        counts = self.queue.counts()
        assert counts.produced == counts.exported + sum(counts.dropped.values()) + counts.queued
        return counts

    def until(self, condition: Callable[[Counts], object]) -> Counts:
        """Wait until the counts are so."""
        end = monotonic() + 5
        while not condition(self.counts):
            assert monotonic() < end, self.counts
            sleep(0.002)
        return self.counts


@pytest.fixture
def exporting() -> Iterator[Callable[..., Exporting]]:
    """Make exporting services; closed after the test."""
    made: list[Exporting] = []

    def make(collector: Collector, **options: Any) -> Exporting:
        made.append(Exporting(collector, **options))
        return made[-1]

    yield make
    for one in made:
        one.queue.close(0)
        one.tracing.close()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was told."""
    return [record.getMessage() for record in caplog.records if record.name == "fastapi_observe"]


# Every fault


FAULTS: dict[Mode, tuple[int, str]] = {
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


@pytest.mark.parametrize("mode", FAULTS)
def test_every_span_is_counted(
    mode: Mode, exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every fault produced = exported + dropped + queued; what went is what the collector has; time is bounded."""
    monkeypatch.setattr("fastapi_observe.export.http.BODY_TIMEOUT", 0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exported, reason = FAULTS[mode]
    with Collector(mode) as collector:
        one = exporting(collector, batch_size=25, batch_delay=60)
        one.spans(70)
        started = monotonic()
        one.tracing.flush(1.0)
        one.tracing.close()
        assert monotonic() - started < 2.5
        counts = one.counts
        taken = len(collector.spans)
    assert (counts.produced, counts.exported, counts.queued, counts.queued_bytes) == (70, exported, 0, 0)
    if reason:
        assert counts.dropped[reason] >= min(25, 70 - exported)
    assert taken == exported + (counts.dropped["rejected"] if mode == "partial" else 0)
    assert bool(counts.failures) == (exported == 0)
    assert not one.faults.counts
    told = warnings_of(caplog)
    assert len({*told}) == len(told) <= 3  # what fails, what fails when time is short, what a flush leaves behind
    assert bool(told) == (exported < 70)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def test_nobody_listens_and_then_somebody_does(
    exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture
) -> None:
    """While nobody is there the newest spans are kept; then they go, and one line tells how many were lost."""
    collector = Collector(listens=False)
    one = exporting(collector, queue_size=50, batch_size=10)
    one.spans(80)
    counts = one.until(lambda counts: counts.failures["connect"] >= 4 if counts.failures else False)
    assert counts.exported == 0
    assert counts.dropped == {"queue_full": 30}
    assert counts.queued == 50
    collector.listen()
    one.until(lambda counts: counts.exported == 50)
    one.tracing.close()
    with collector:
        assert set(collector.names) == {f"s{at}" for at in range(30, 80)}
    told = warnings_of(caplog)
    assert ["Connection refused" in line for line in told if "Cannot export" in line] == [True]
    assert len([line for line in told if "Dropped 30 spans" in line]) <= 1
    assert told[-1].endswith("30 were dropped.")
    assert one.counts.last_success


def test_a_dead_collector_is_only_probed(exporting: Callable[..., Exporting]) -> None:
    """After three failures empty requests find out whether it is back: spans are not spent on it."""
    with Collector("reset") as collector:
        one = exporting(collector, batch_size=10)
        one.spans(40)
        counts = one.until(lambda counts: (counts.failures or {}).get("broken", 0) >= 6)
        assert counts.dropped == {"export_failed": 10}  # of the first batch, sent twice; the second was sent once
        collector.mode = "ok"
        one.until(lambda counts: counts.exported == 30)
        assert b"" in collector.bodies


@pytest.mark.parametrize("mode", ["503", "429"])
def test_a_collector_that_asks_for_spans_later_gets_them(mode: Mode, exporting: Callable[..., Exporting]) -> None:
    """However often it answers 503 or 429, no span is lost while the queue has room; each then arrives once."""
    with Collector(mode) as collector:
        collector.retry_after = ""
        one = exporting(collector, batch_size=25)
        one.spans(70)
        counts = one.until(lambda counts: sum((counts.failures or {}).values()) >= 8)
        for _ in range(3):
            assert not one.tracing.flush(0.05)
        assert (counts.dropped, one.counts.queued) == ({}, 70)
        collector.mode = "ok"
        one.until(lambda counts: counts.exported == 70)
        assert len(collector.names) == len(collector.spans) == 70


def test_the_newest_are_kept_for_a_collector_that_wants_them_later(exporting: Callable[..., Exporting]) -> None:
    """What was sent and put off is the oldest, and the first to go where the queue is full."""
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


class Choosy(Collector):
    """Answers 503 to requests with items while it is busy, and takes probes."""

    busy = True

    def _answer(self, sock: Any, path: str, headers: dict[str, str], body: bytes) -> bool:
        self.mode = "503" if body and self.busy else "ok"
        return super()._answer(sock, path, headers, body)


def test_a_batch_that_is_never_taken_goes_after_five_minutes(
    exporting: Callable[..., Exporting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is put off for longer than PUT_OFF_FOR is dropped alone: it must not stop the others for ever."""
    assert export_buffer.MAX_DEFERRAL == 300
    with Choosy() as collector:
        collector.retry_after = ""
        one = exporting(collector, batch_size=10)
        one.spans(30)
        counts = one.until(lambda counts: (counts.failures or {}).get("http_5xx", 0) >= 6)
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


def test_a_probe_that_is_disliked_has_been_answered(exporting: Callable[..., Exporting]) -> None:
    """A collector that refuses an empty request is there: spans are sent again."""
    with Collector("400") as collector:
        one = exporting(collector, batch_size=5)
        one.spans(25)
        counts = one.until(lambda counts: counts.dropped.get("rejected") == 25)
        assert counts.failures == {"http_4xx": counts.failures and counts.failures["http_4xx"]}
        assert counts.queued == 0


def test_retry_after_is_honoured(exporting: Callable[..., Exporting]) -> None:
    """While the collector asks to wait nothing is sent, and a flush does not wait for what cannot come in time."""
    with Collector("503") as collector:
        collector.retry_after = "20"
        one = exporting(collector)
        one.spans(3)
        one.until(lambda counts: counts.failures)
        collector.mode = "ok"
        started = monotonic()
        assert not one.tracing.flush(5)
        assert not one.tracing.flush(5)
        assert monotonic() - started < 1
        assert one.counts.failures == {"http_5xx": 1}
        assert one.counts.queued == 3


def test_warnings_come_once_a_minute_for_each_cause(
    exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture
) -> None:
    """Many failures of one cause are one line, another cause is another, and nothing the peer sent is in them."""
    with Collector("garbage") as collector:
        one = exporting(collector, batch_size=1)
        one.spans(20)
        one.until(lambda counts: (counts.failures or {}).get("broken", 0) >= 5)
        collector.mode = "302"
        one.until(lambda counts: (counts.failures or {}).get("http_3xx", 0) >= 3)
    told = warnings_of(caplog)
    assert len(told) == 2
    assert "SSH" not in "".join(told)
    assert "set otlp_endpoint to the final URL" in told[1]


def test_a_warning_names_no_secret(exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture) -> None:
    """User, password and query of the endpoint are not told."""
    with Collector("400") as collector:
        one = exporting(collector, otlp_endpoint=f"http://me:hunter2@127.0.0.1:{collector.port}/v1/traces?key=hunter3")
        one.spans(1)
        one.until(lambda counts: counts.dropped)
    assert f"http://127.0.0.1:{collector.port}/v1/traces:" in caplog.text
    assert "hunter" not in caplog.text


async def test_requests_do_not_wait_for_the_collector() -> None:
    """A request is answered while the collector hangs with a full queue; /metrics and responses are as always."""
    with Collector("hang") as collector:
        app = FastAPI()

        @app.get("/x")
        async def x() -> str:
            return "y"

        observe = install(app, otlp_endpoint=collector.url, sampler="always_on", logs=False, queue_size=5,
                          shutdown_timeout=0.1, batch_delay=0.01)  # fmt: skip
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            async with asyncio.timeout(10):
                answers = [await client.get("/x") for _ in range(50)]
        assert {(answer.status_code, answer.text) for answer in answers} == {(200, '"y"')}
        await asyncio.to_thread(observe.close)


# Bounds


def test_memory_is_flat_with_long_urls(exporting: Callable[..., Exporting]) -> None:
    """Spans with 60 KB values, names and errors, and nobody who takes them: at most 8 MiB are kept."""
    collector = Collector(listens=False)
    one = exporting(collector, queue_size=100_000)

    def make(number: int) -> None:
        for _ in range(number):
            with one.tracing.span("n" * 60_000, url="u" * 60_000) as span:
                span.add_event("e" * 60_000, {"text": "t" * 60_000})
                span.set_status(export_queue_status(), "d" * 60_000)

    make(500)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    make(5000)
    counts = one.counts
    assert counts.dropped["queue_bytes"] > 4000
    assert counts.queued_bytes is not None
    assert counts.queued_bytes <= 8 * MEGABYTE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


def export_queue_status() -> Any:
    """Return the status of a failed span."""
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    return StatusCode.ERROR


def test_the_queue_is_bounded_at_every_moment(exporting: Callable[..., Exporting]) -> None:
    """No more than `queue_size` spans wait, the newest, however many threads make them; a batch may be under way."""
    one = exporting(Collector(listens=False), queue_size=100, batch_size=10, batch_delay=60)
    threads = [threading.Thread(target=one.spans, args=(500, f"{name}-")) for name in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert one.counts.queued <= 100 + 10 + 5 * ENCODE_BATCH  # beside those that wait: being sent, being encoded
    for thread in threads:
        thread.join()
    counts = one.until(lambda counts: counts.queued == 100)
    assert counts.produced == 2000
    assert counts.dropped == {"queue_full": 1900}


def test_a_span_that_is_too_large_is_dropped(exporting: Callable[..., Exporting]) -> None:
    """A single span of more than an eighth of the queue's bytes is dropped alone."""
    with Collector() as collector:
        one = exporting(collector, queue_bytes=65_536)
        one.spans(1, "large", **{f"k{at}": "x" * 2000 for at in range(10)})
        one.spans(1, "small")
        one.tracing.flush(5)
        assert one.counts.dropped == {"too_large": 1}
        assert set(collector.names) == {"small0"}


def test_a_request_is_bounded(exporting: Callable[..., Exporting], monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of large spans goes in several requests."""
    monkeypatch.setattr("fastapi_observe.export.buffer.MAX_BODY_BYTES", 5000)
    with Collector() as collector:
        one = exporting(collector, batch_delay=60)
        one.spans(10, text="x" * 2000)
        assert one.tracing.flush(5)
        assert len(collector.requests) == 5
        assert len(collector.spans) == 10


def test_a_full_batch_does_not_wait(exporting: Callable[..., Exporting]) -> None:
    """A batch that is full goes at once, the rest when it is due or flushed."""
    with Collector() as collector:
        one = exporting(collector, batch_size=32, batch_delay=60)
        one.spans(40)
        one.until(lambda counts: counts.exported == 32)
        assert one.counts.queued == 8
        assert one.tracing.flush(5)
        assert set(collector.names.values()) == {1}
        assert len(collector.names) == 40


def test_one_connection_is_kept(exporting: Callable[..., Exporting]) -> None:
    """Batches share a connection; one that the collector has closed meanwhile is replaced without a loss."""
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
    """A span that only records, as a sampler of the user's may decide, stays here."""
    with Collector() as collector:
        one = Exporting(collector)
        from opentelemetry.trace import SpanContext  # noqa: PLC0415

        span: Any = one.tracing.tracer.start_span("s")
        span._context = SpanContext(1, 2, is_remote=False)
        span.end()
        assert one.counts.produced == 0
        one.tracing.close()


# A fault of ours


class Broken:
    """An encoder that fails."""

    def __init__(self, *, on: str) -> None:
        self.on = on

    def encode(self, item: Any) -> tuple[None, bytes]:
        """Encode a text."""
        if item == self.on:
            raise ValueError(item)
        return None, item.encode()

    def request(self, entries: list[Any]) -> bytes:
        """Join texts."""
        if self.on == "request":
            raise ValueError
        return b"".join(data for _, data, _ in entries)


def queue_of(collector: Collector, encoder: Any, faults: InternalErrors) -> ExportQueue:
    """Make a queue of texts."""
    from fastapi_observe.export.http import HttpTransport  # noqa: PLC0415

    transport = HttpTransport(f"{collector.url}/v1/texts", {}, "traces")
    return ExportQueue("texts", encoder, transport, QueueLimits(10, 65_536, 5, 0.01, 1.0, 1.0), faults)


def test_an_item_that_cannot_be_encoded_is_dropped_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The others go; the fault is counted."""
    faults = InternalErrors()
    with Collector() as collector:
        queue = queue_of(collector, Broken(on="b"), faults)
        for item in "abc":
            queue.put(item)
        assert not queue.flush(5)
        queue.close()
        assert b"".join(collector.bodies) == b"ac"
    assert queue.counts().dropped == {"internal_error": 1}
    assert faults.counts == {"export.encode": 1}
    assert "Dropped 1 texts since start (internal_error)" in caplog.text


def test_a_request_that_cannot_be_built_is_dropped() -> None:
    """And the thread lives on."""
    faults = InternalErrors()
    with Collector() as collector:
        encoder = Broken(on="request")
        queue = queue_of(collector, encoder, faults)
        queue.put("a")
        assert not queue.flush(0.5)
        encoder.on = ""
        queue.put("b")
        assert queue.flush(5)
        queue.close()
        assert collector.bodies[-1] == b"b"
    assert queue.counts().dropped == {"internal_error": 1}
    assert faults.counts == {"export.send": 1}


def test_a_thread_that_cannot_start_harms_nobody(
    exporting: Callable[..., Exporting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while the interpreter ends: the span waits, the fault is counted."""
    with Collector() as collector:
        one = exporting(collector)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("too late")))
            one.spans(1)
        assert one.faults.counts == {"export.put": 1}
        assert one.counts.queued == 1
        one.spans(1)
        assert one.tracing.flush(5)


def test_a_fault_of_the_thread_does_not_end_it(
    exporting: Callable[..., Exporting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and the thread goes on."""
    with Collector() as collector:
        one = exporting(collector)
        with monkeypatch.context() as patch:
            patch.setattr(ExportQueue, "_encode_rest", lambda _: (_ for _ in ()).throw(RuntimeError("ours")))
            one.spans(1)
            while not one.faults.counts:
                sleep(0.001)
        assert one.tracing.flush(5)
        assert set(one.faults.counts) == {"export.run"}


def test_a_log_handler_that_raises_does_not_stop_the_export(exporting: Callable[..., Exporting]) -> None:
    """Telling is best effort."""

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


def test_what_a_flush_leaves_behind_is_told(
    exporting: Callable[..., Exporting], caplog: pytest.LogCaptureFixture
) -> None:
    """The process may end next, and its counters with it: how many spans wait, and for whom; once."""
    with Collector("hang") as collector:
        exporter = exporting(collector, otlp_timeout=5)
        exporter.spans(7)
        assert not exporter.tracing.flush(0.1)
        assert not exporter.tracing.flush(0.1)
        told = [text for text in warnings_of(caplog) if "were not exported" in text]
        assert len(told) == 1
        assert f"7 spans were not exported to {collector.url}/v1/traces in time" in told[0]

"""`observe.job`: work outside requests has a trace, metrics, a line, operations and fields as a request has."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from fastapi import FastAPI
from injection import failing
from loguru import logger
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from fastapi_observe import ObservabilityDep, job
from fastapi_observe.jobs import MAX_HEADERS, HeaderReader
from fastapi_observe.records.job import JobRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


class UnreadableHeaders(dict[str, str]):
    """Headers of a client that fails to decode them."""

    def items(self) -> NoReturn:
        """Fail."""
        raise RuntimeError("cannot decode")


def test_unreadable_headers_are_named(observed: Callable[..., Seen]) -> None:
    """One warning a minute says what to pass."""
    seen = observed(FastAPI())
    unreadable: tuple[Any, ...] = (3, UnreadableHeaders(), 3)
    for headers in unreadable:
        with seen.observe.job("send mail", headers=headers):
            pass
    assert len(job_lines(seen)) == 3
    warnings = [line["message"] for line in seen.lines if line["level"] == "warn"]
    assert [each for each in warnings if "headers of a message could not be read" in each] == warnings
    assert len(warnings) == 1


def job_lines(seen: Seen) -> list[dict[str, Any]]:
    """Return the lines of jobs."""
    return [line for line in seen.lines if line["logger"] == "fastapi_observe.job"]


async def test_a_job_is_a_trace_with_a_line_and_metrics(observed: Callable[..., Seen]) -> None:
    """Operations below it count as in a request, lines in it have its ids, and fields are on all of them."""
    seen = observed(FastAPI())
    with seen.observe.job("send mail"):
        seen.observe.set(tenant="acme")
        for _ in range(11):
            async with seen.observe.db.query("SELECT", table="mails", statement="SELECT 1"):
                pass
        logger.info("inside")
    logger.info("outside")
    (line,) = job_lines(seen)
    root = next(span for span in seen.spans if span.name == "send mail")
    assert root.parent is None
    assert root.kind.name == "INTERNAL"
    assert line["trace_id"] == f"{root.context.trace_id:032x}"
    assert line["message"] == "job completed"
    assert "request_id" not in line
    fields = line["fields"]
    assert (fields["job"], fields["outcome"], fields["tenant"], fields["db_count"]) == ("send mail", "ok", "acme", 11)
    attributes = dict(root.attributes or {})
    assert attributes["fastapi_observe.job"] == "send mail"
    assert attributes["fastapi_observe.outcome"] == "ok"
    assert attributes["tenant"] == "acme"
    assert attributes["fastapi_observe.db_count"] == 11
    assert {name for name in attributes if name.startswith(("http", "url"))} == set()
    children = [span for span in seen.spans if span.name.startswith("SELECT")]
    assert {span.parent.span_id for span in children if span.parent} == {root.context.span_id}
    by_message = {each["message"]: each for each in seen.lines}
    assert by_message["inside"]["trace_id"] == line["trace_id"]
    assert by_message["inside"]["fields"] == {"tenant": "acme"}
    assert by_message["database query repeated in one request"]["fields"]["endpoint"] == "send mail"
    assert "trace_id" not in by_message["outside"]
    assert seen.sample("jobs_total", job="send mail", outcome="ok") == 1
    assert seen.sample("job_duration_seconds_count", job="send mail") == 1
    assert seen.total("http_requests_total") == seen.total("http_requests_in_progress") == 0
    assert seen.observe.internal_errors.counts == {}


@pytest.mark.parametrize(
    "headers",
    [
        {"TraceParent": PARENT},
        {b"traceparent": PARENT.encode()},
        [("traceparent", PARENT.encode()), ("other", None)],
        (("traceparent", [PARENT]), ("n", 3)),
    ],
)
def test_a_message_continues_its_trace(observed: Callable[..., Seen], headers: Any) -> None:
    """Headers as the clients of queues have them; the span is a CONSUMER below the sender's."""
    seen = observed(FastAPI())
    with seen.observe.job("send mail", headers=headers):
        pass
    (span,) = seen.spans
    assert span.kind.name == "CONSUMER"
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:52]
    assert job_lines(seen)[0]["trace_id"] == PARENT[3:35]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "nonsense"},
        {"traceparent": "\ud800"},
        {"traceparent": "x" * 10_000_000},
        [("traceparent", PARENT), ("traceparent", PARENT)],
        "text",
        3,
        [1, 2],
        ({"a"} for _ in range(10)),
        {3: 4, None: None},
        UnreadableHeaders(),
    ],
)
def test_hostile_headers(observed: Callable[..., Seen], headers: Any) -> None:
    """Headers without a valid trace context start a new trace, and never raise."""
    seen = observed(FastAPI())
    with seen.observe.job("send mail", headers=headers):
        pass
    (span,) = seen.spans
    assert span.kind.name == "INTERNAL"
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != PARENT[3:35]
    assert seen.observe.internal_errors.counts == {}


def test_many_headers_are_bounded() -> None:
    """Only so many are looked at."""
    assert len(HeaderReader()((f"n{number}", "v") for number in range(100_000))) == MAX_HEADERS


def test_from_a_request_through_a_queue(observed: Callable[..., Seen]) -> None:
    """A job that a request causes is in its trace; one that runs within it is a trace of its own, linked to it."""
    app, queue = FastAPI(), []

    @app.post("/send")
    async def send(observe: ObservabilityDep) -> None:
        observe.set(tenant="acme")
        queue.append(observe.tracing.inject({}))
        with observe.job("at once"):
            logger.info("in the job")
        logger.info("in the request")

    seen = observed(app)
    with TestClient(app) as client:
        client.post("/send")
    with seen.observe.job("later", headers=queue[0]):
        pass
    spans = {span.name: span for span in seen.spans}
    server = spans["POST /send"]
    assert spans["later"].context.trace_id == server.context.trace_id
    assert spans["later"].parent is not None
    assert spans["later"].parent.span_id == server.context.span_id
    at_once = spans["at once"]
    assert at_once.context.trace_id != server.context.trace_id
    assert [link.context.span_id for link in at_once.links] == [server.context.span_id]
    by_message = {line["message"]: line for line in seen.lines}
    assert "request_id" not in by_message["in the job"]
    assert by_message["in the job"]["fields"] == {}
    assert by_message["in the request"]["fields"] == {"tenant": "acme"}
    assert by_message["in the request"]["span_id"] == f"{server.context.span_id:016x}"


async def test_outcomes(observed: Callable[..., Seen]) -> None:
    """Exceptions leave the job unchanged, are recorded once with their stack, and have an outcome each."""
    seen = observed(FastAPI())

    async def cancelled() -> None:
        async with seen.observe.job("c"):
            task.cancel()
            await asyncio.sleep(10)

    with pytest.raises(ValueError, match="x") as caught, seen.observe.job("a"):
        raise ValueError("x")
    assert caught.value.args == ("x",)
    with pytest.raises(TimeoutError), seen.observe.job("b"):
        raise TimeoutError
    task = asyncio.create_task(cancelled())
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(KeyboardInterrupt), seen.observe.job("d"):
        raise KeyboardInterrupt
    for name, code in (("e", 0), ("f", None), ("g", 1), ("h", "disk full")):
        with pytest.raises(SystemExit), seen.observe.job(name):
            sys.exit(code)
    outcomes = [(line["fields"]["job"], line["fields"]["outcome"], line["level"]) for line in job_lines(seen)]
    assert outcomes == [
        ("a", "error", "error"),
        ("b", "timeout", "error"),
        ("c", "cancelled", "error"),
        ("d", "error", "error"),
        ("e", "ok", "info"),
        ("f", "ok", "info"),
        ("g", "error", "error"),
        ("h", "error", "error"),
    ]
    first = job_lines(seen)[0]
    assert first["message"] == "job failed"
    assert first["exception"]["type"] == first["fields"]["error_type"] == "ValueError"
    span = next(span for span in seen.spans if span.name == "a")
    assert span.status.status_code.name == "ERROR"
    assert [event.name for event in span.events] == ["exception"]
    assert seen.sample("jobs_total", job="a", outcome="error") == 1
    assert not trace.get_current_span().get_span_context().is_valid


async def test_every_kind_of_function(observed: Callable[..., Seen]) -> None:
    """Each call of a decorated function is a job; a generator's consumer does not run in it."""
    seen = observed(FastAPI())

    @seen.observe.job("plain")
    def plain(number: int) -> int:
        logger.info("in plain")
        return number

    @seen.observe.job("coroutine")
    async def coroutine() -> int:
        await asyncio.sleep(0)
        return 2

    @seen.observe.job("generator")
    def generator() -> Iterator[int]:
        logger.info("in generator")
        yield 1
        logger.info("in generator")

    @seen.observe.job("async generator")
    async def async_generator() -> AsyncIterator[int]:
        yield 1

    assert plain(1) + await coroutine() == 3
    for _ in generator():
        logger.info("consumer")
    async for _ in async_generator():
        logger.info("consumer")
    jobs = {line["fields"]["job"]: line["trace_id"] for line in job_lines(seen)}
    assert [*jobs] == ["plain", "coroutine", "generator", "async generator"]
    ids = [(line["message"], line.get("trace_id")) for line in seen.lines if line["message"].startswith(("in ", "con"))]
    assert ids == [
        ("in plain", jobs["plain"]),
        ("in generator", jobs["generator"]),
        ("consumer", None),
        ("in generator", jobs["generator"]),
        ("consumer", None),
    ]
    assert seen.observe.internal_errors.counts == {}


def test_a_block_that_is_left_twice(observed: Callable[..., Seen]) -> None:
    """It is one job."""
    seen = observed(FastAPI())
    block = seen.observe.job("a")
    block.__enter__()
    for _ in range(2):
        block.__exit__(None, None, None)
    assert len(job_lines(seen)) == 1


async def test_one_object_is_used_several_times(observed: Callable[..., Seen]) -> None:
    """One after another, inside itself, and by tasks and threads at the same time: each is a job of its own."""
    seen = observed(FastAPI())
    nightly = seen.observe.job("nightly")

    async def work() -> None:
        async with nightly:
            seen.observe.set(step=id(asyncio.current_task()))
            await asyncio.sleep(0.01)

    def in_thread() -> None:
        with nightly:
            pass

    with nightly, nightly:
        pass
    await asyncio.gather(*(work() for _ in range(5)))
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    lines = job_lines(seen)
    assert len({line["trace_id"] for line in lines}) == len(lines) == 8
    assert len({line["fields"]["step"] for line in lines if "step" in line["fields"]}) == 5
    assert seen.sample("jobs_total", job="nightly", outcome="ok") == 8


def test_tail_sampling(observed: Callable[..., Seen]) -> None:
    """A failed or slow job is exported whole although the head sampler did not choose it; others are not."""
    seen = observed(FastAPI(), sample_ratio=0.0, tail_sampling=("errors", "slow"), slow_request_threshold=0.05)
    with seen.observe.job("fine"), seen.observe.operation("step"):
        pass

    def broken() -> None:
        with seen.observe.operation("step"):
            pass
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), seen.observe.job("broken", headers={"traceparent": UNSAMPLED}):
        broken()
    with seen.observe.job("slow"):
        threading.Event().wait(0.06)
    assert [line["fields"]["sampled"] for line in job_lines(seen)] == [False, "tail", "tail"]
    spans = {span.name: span for span in seen.spans}
    assert sorted(spans) == ["broken", "slow", "step"]
    assert spans["broken"].kind.name == "CONSUMER"
    assert spans["slow"].kind.name == "INTERNAL"
    assert (spans["slow"].attributes or {})["fastapi_observe.tail_sampled"] == "slow"
    assert spans["step"].context.trace_id == spans["broken"].context.trace_id == int(PARENT[3:35], 16)


def test_job_of_the_module(observed: Callable[..., Seen]) -> None:
    """It reports to the only install, also if it was made before; without one it runs the block."""

    @job("early")
    def early() -> int:
        return 1

    assert early() == 1
    seen = observed(FastAPI())
    assert early() == 1
    with job("block"):
        pass
    assert [line["fields"]["job"] for line in job_lines(seen)] == ["early", "block"]


def test_wrong_names(observed: Callable[..., Seen]) -> None:
    """An empty name, or none at all, is the caller's error; a secret in a name is redacted."""
    seen = observed(FastAPI())
    with pytest.raises(ValueError, match="expected a name"):
        seen.observe.job(" ")
    with pytest.raises(TypeError, match="expected a name"):
        seen.observe.job(3)  # type: ignore[arg-type]
    with seen.observe.job("x" * 10_000):
        pass
    assert len(job_lines(seen)[0]["fields"]["job"]) == 256


def test_many_names_are_bounded(observed: Callable[..., Seen]) -> None:
    """Names beyond `max_values_per_label` share a series."""
    seen = observed(FastAPI(), max_values_per_label=3)
    for number in range(10):
        with seen.observe.job(f"job {number}"):
            pass
    assert seen.sample("jobs_total", job="__overflow__", outcome="ok") == 7


@pytest.mark.parametrize("options", [{"tracing": False}, {"metrics": False}, {"logs": False}, {"log_requests": False}])
def test_signals_that_are_off(observed: Callable[..., Seen], options: dict[str, Any]) -> None:
    """The others report the job all the same."""
    seen = observed(FastAPI(), **options)
    with seen.observe.job("nightly"):
        pass
    lines, spans, count = len(job_lines(seen)), len(seen.spans), seen.total("jobs_total")
    off = next(iter(options))
    assert (lines, spans, count) == (off not in {"logs", "log_requests"}, off != "tracing", off != "metrics")
    assert seen.observe.internal_errors.counts == {}


def test_the_provider_of_the_user(observed: Callable[..., Seen]) -> None:
    """Jobs are spans of it."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    seen = observed(FastAPI(), tracer_provider=provider, span_processors=())
    with seen.observe.job("nightly", headers={"traceparent": PARENT}):
        pass
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind.name, f"{span.context.trace_id:032x}") == ("nightly", "CONSUMER", PARENT[3:35])


def test_an_internal_error_never_raises(observed: Callable[..., Seen]) -> None:
    """An internal error is counted, and the block runs."""
    seen = observed(FastAPI())
    ran = []
    with failing(JobRecord), seen.observe.job("nightly"):
        ran.append(1)
    assert ran == [1]
    assert seen.observe.internal_errors.counts == {"job.open": 1}
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_metric_of_the_user_with_the_same_name(observed: Callable[..., Seen]) -> None:
    """It is left as it is; one warning says that jobs are not counted, and the other signals report them."""
    seen = observed(FastAPI())
    seen.observe.metrics.counter("jobs_total", "Jobs of mine.").inc()
    for _ in range(2):
        with seen.observe.job("nightly"):
            pass
    assert seen.samples("jobs_total") == {(): 1}
    assert len(job_lines(seen)) == 2
    warnings = [line["message"] for line in seen.lines if line["level"] == "warn"]
    assert len(warnings) == 1
    assert warnings[0].startswith("Jobs (observe.job) are not counted")
    assert seen.observe.internal_errors.counts == {}


def test_text_lines(observed: Callable[..., Seen], capsys: pytest.CaptureFixture[str]) -> None:
    """A readable line each; below a failed job its spans and its exception. Request lines show the fields."""
    app = FastAPI()

    @app.get("/")
    async def read(observe: ObservabilityDep) -> None:
        observe.set(tenant="acme\x1b[2J")

    seen = observed(app, log_format="text", log_level="info")
    with seen.observe.job("fine"), seen.observe.operation("unseen"):
        pass
    with pytest.raises(ValueError, match="x"), seen.observe.job("broken"), seen.observe.operation("step"):
        raise ValueError("x")
    with TestClient(app) as client:
        client.get("/")
    seen.observe.flush()
    text = capsys.readouterr().out
    assert "job completed" in text
    assert "unseen" not in text
    _, _, failed = text.partition("job failed")
    assert failed.count("ValueError: x") == 1
    assert "step" in failed
    assert "tenant=acme" in next(row for row in text.splitlines() if "GET /" in row)
    assert "\x1b[2J" not in text

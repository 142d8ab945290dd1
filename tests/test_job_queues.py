"""`observe.job` in workers of real queues: a trace goes from the request through the queue to the job."""

from __future__ import annotations

import functools
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging
from fastapi import FastAPI
from fastapi.testclient import TestClient
from taskiq import Context, InMemoryBroker, TaskiqDepends

from fastapi_observe import get_observability, install_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Seen
    from opentelemetry.sdk.trace import ReadableSpan


@pytest.fixture(autouse=True)
def _root_handlers() -> Iterator[None]:
    """Remove what Celery adds to the root logger when a worker starts."""
    yield
    for handler in [each for each in logging.root.handlers if type(each) is logging.StreamHandler]:
        logging.root.removeHandler(handler)


def ids(span: ReadableSpan | None) -> tuple[int, int]:
    """Return trace id and span id."""
    position = None if span is None else span.get_span_context()
    assert position is not None
    return position.trace_id, position.span_id


def span_named(seen: Seen, name: str) -> ReadableSpan:
    """Return the only span of a name."""
    (found,) = [span for span in seen.spans if span.name == name]
    return found


def check_one_trace(seen: Seen, request: str, job: str, operation: str) -> None:
    """Check that request, job and operation are one trace, each in its place, and that the job was reported."""
    server, consumer, inner = (span_named(seen, name) for name in (request, job, operation))
    assert consumer.kind.name == "CONSUMER"
    assert ids(server)[0] == ids(consumer)[0] == ids(inner)[0]
    assert consumer.parent is not None
    assert consumer.parent.span_id == ids(server)[1]
    assert inner.parent is not None
    assert inner.parent.span_id == ids(consumer)[1]
    assert seen.sample("jobs_total", job=job, outcome="ok") == 1
    (line,) = [line for line in seen.lines if line["logger"] == "fastapi_observe.job"]
    assert line["trace_id"] == f"{ids(server)[0]:032x}"
    assert (line["fields"]["job"], line["fields"]["outcome"], line["fields"]["tenant"]) == (job, "ok", "acme")
    inside = next(line for line in seen.lines if line["message"] == "mail sent")
    assert (inside["trace_id"], inside["span_id"]) == (line["trace_id"], f"{ids(inner)[1]:016x}")


# Celery, with its in-memory broker and a worker in a thread


@pytest.fixture
def celery_app() -> Iterator[Celery]:
    """Return a Celery app whose messages stay in this process."""
    app = Celery("shop", broker="memory://", backend="cache+memory://")
    app.conf.update(broker_connection_retry_on_startup=True)

    def keep_logging(**_: Any) -> None:
        """Keep Celery from adding handlers, as docs/how-to/jobs.md says."""

    setup_logging.connect(keep_logging)
    yield app
    setup_logging.disconnect(keep_logging)
    app.close()


class CeleryShop:
    """A web app that sends mails by Celery."""

    def __init__(self, seen: Callable[..., Seen], celery_app: Celery, **options: Any) -> None:
        self.app = FastAPI()
        self.seen = seen(self.app, **options)
        self.done = threading.Event()
        self.results: list[Any] = []
        observe = self.seen.observe

        @celery_app.task(bind=True, shared=False)  # type: ignore[untyped-decorator]
        def mail(task: Any, order_id: int) -> None:
            try:
                with observe.job("send mail", headers=task.request.headers):
                    observe.set(tenant="acme")
                    with observe.operation("render"):
                        observe.log.info("mail sent", order_id=order_id)
                    if order_id < 0:
                        raise ValueError("no such order")
            finally:
                self.done.set()

        @self.app.post("/orders/{order_id}")
        def order(order_id: int) -> None:
            mail.apply_async((order_id,), headers=observe.tracing.inject({}))

        self.send = functools.partial(self._send, celery_app)

    def _send(self, celery_app: Celery, order_id: int) -> None:
        with start_worker(celery_app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
            TestClient(self.app).post(f"/orders/{order_id}")
            assert self.done.wait(30)


def test_celery_continues_the_trace_of_the_request(observed: Callable[..., Seen], celery_app: Celery) -> None:
    """Request, task and the operation in it are one trace; the job is counted and has its line and fields."""
    shop = CeleryShop(observed, celery_app)
    shop.send(7)
    check_one_trace(shop.seen, "POST /orders/{order_id}", "send mail", "render")


def test_a_celery_task_that_fails_is_tail_sampled(observed: Callable[..., Seen], celery_app: Celery) -> None:
    """Of a request that was not sampled, the task that fails is exported with its operation, in the same trace."""
    shop = CeleryShop(observed, celery_app, sample_ratio=0.0, tail_sampling=["errors"])
    shop.send(-1)
    seen = shop.seen
    job, operation = span_named(seen, "send mail"), span_named(seen, "render")
    assert (job.attributes or {})["fastapi_observe.tail_sampled"] == "errors"
    assert ids(job)[0] == ids(operation)[0]
    assert seen.sample("jobs_total", job="send mail", outcome="error") == 1
    (line,) = [line for line in seen.lines if line["message"] == "job failed"]
    assert line["exception"]["type"] == "ValueError"
    (request,) = seen.request_lines
    assert request["trace_id"] == line["trace_id"] == f"{ids(job)[0]:032x}"


def test_celery_in_a_process_without_an_app(celery_app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    """`install_worker` and a task are enough: jobs have metrics and lines, and Celery's own records are lines too."""
    observe = install_worker(service_name="mailer", metrics_access="private", log_level="info")
    done = threading.Event()

    @celery_app.task(bind=True, shared=False)  # type: ignore[untyped-decorator]
    def mail(task: Any) -> None:
        with observe.job("send mail", headers=task.request.headers):
            assert get_observability() is observe
        done.set()

    with start_worker(celery_app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        mail.delay()
        assert done.wait(30)
    observe.flush()
    headers, body = observe.metrics.render("", "")
    observe.close()
    assert 'jobs_total{job="send mail",outcome="ok"} 1' in body.decode()
    assert headers
    output = capsys.readouterr().out
    assert '"logger":"fastapi_observe.job"' in output
    assert '"logger":"celery.' in output


# taskiq, with its in-memory broker


def test_taskiq_continues_the_trace_of_the_request(observed: Callable[..., Seen]) -> None:
    """Labels of a message carry the trace; request, task and the operation in it are one trace."""
    app, broker = FastAPI(), InMemoryBroker(await_inplace=True)
    seen = observed(app)
    observe = seen.observe

    @broker.task
    async def mail(order_id: int, context: Context = TaskiqDepends()) -> None:  # noqa: B008 - as taskiq documents it
        with observe.job("send mail", headers=context.message.labels):
            observe.set(tenant="acme")
            with observe.operation("render"):
                observe.log.info("mail sent", order_id=order_id)

    @app.post("/orders/{order_id}")
    async def order(order_id: int) -> None:
        await mail.kicker().with_labels(**observe.tracing.inject({})).kiq(order_id)

    TestClient(app).post("/orders/7")
    check_one_trace(seen, "POST /orders/{order_id}", "send mail", "render")


async def test_taskiq_labels_of_any_kind(observed: Callable[..., Seen]) -> None:
    """Labels that are not headers, such as numbers and a hostile traceparent, start a trace of the job's own."""
    broker = InMemoryBroker(await_inplace=True)
    seen = observed(FastAPI())
    outcomes = []

    @broker.task
    async def mail(context: Context = TaskiqDepends()) -> None:  # noqa: B008 - as taskiq documents it
        with seen.observe.job("send mail", headers=context.message.labels):
            found = seen.observe.tracing.current()
            outcomes.append(None if found is None else found.trace_id)

    for labels in ({"retry": 3, "timeout": 1.5}, {"traceparent": "00-\x00-zz"}, {"traceparent": "x" * 100_000}, {}):
        await mail.kicker().with_labels(**labels).kiq()
    assert len(set(outcomes)) == 4
    assert seen.sample("jobs_total", job="send mail", outcome="ok") == 4
    assert all(span.parent is None for span in seen.spans if span.name == "send mail")


async def test_an_outcome_is_that_of_the_task(observed: Callable[..., Seen]) -> None:
    """An exception of a taskiq task is the job's outcome, and taskiq sees it unchanged."""
    broker = InMemoryBroker(await_inplace=True)
    seen = observed(FastAPI())

    @broker.task
    async def mail() -> None:
        with seen.observe.job("send mail"):
            raise TimeoutError("smtp")

    result = await (await mail.kiq()).wait_result()
    assert isinstance(result.error, TimeoutError)
    assert seen.sample("jobs_total", job="send mail", outcome="timeout") == 1


def test_the_instrumentor_of_taskiq_carries_the_trace(observed: Callable[..., Seen]) -> None:
    """Taskiq's own OpenTelemetry instrumentor sends the trace itself; the job continues it from the labels."""
    seen = observed(app := FastAPI(), instrument=["taskiq"])
    broker = InMemoryBroker(await_inplace=True)

    @broker.task
    async def mail(context: Context = TaskiqDepends()) -> None:  # noqa: B008 - as taskiq documents it
        with seen.observe.job("send mail", headers=context.message.labels):
            pass

    @app.post("/orders")
    async def order() -> None:
        await mail.kiq()

    TestClient(app).post("/orders")
    server, job = span_named(seen, "POST /orders"), span_named(seen, "send mail")
    assert ids(server)[0] == ids(job)[0]
    assert job.kind.name == "CONSUMER"
    assert seen.sample("jobs_total", job="send mail", outcome="ok") == 1

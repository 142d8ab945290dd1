"""`observe.operation`, the time breakdown of a request, and its repeated statements."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest
from fastapi import BackgroundTasks, FastAPI
from injection import failing
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.testclient import TestClient

from fastapi_observe import operation
from fastapi_observe.metrics import operations
from fastapi_observe.records.operation import CURRENT_OPERATION
from fastapi_observe.records.pool import PoolState
from fastapi_observe.records.time_breakdown import AGGREGATE_AFTER, MAX_COUNTED_STATEMENTS, TimeBreakdown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen

STATEMENT = "SELECT * FROM lines WHERE id = ?"

# The user's own work


def charge_samples(seen: Seen) -> dict[str, float]:
    """Return `operations_total{operation="charge card"}` by outcome."""
    found = seen.samples("operations_total").items()
    return {dict(labels)["outcome"]: value for labels, value in found if dict(labels)["operation"] == "charge card"}


async def test_an_operation_is_a_count_a_time_and_a_span(observed: Callable[..., Seen]) -> None:
    """The name is the label; details go to the span only."""
    seen = observed(Starlette())
    with seen.observe.operation("charge card", provider="acme") as op:
        op.add_details(order_id=7)
    async with seen.observe.operation("charge card"):
        pass
    assert charge_samples(seen) == {"ok": 2}
    assert seen.sample("operation_duration_seconds_count", operation="charge card") == 2
    span = seen.spans[0]
    assert (span.name, span.kind.name, dict(span.attributes or {})) == (
        "charge card",
        "INTERNAL",
        {"provider": "acme", "order_id": 7},
    )
    assert "acme" not in seen.text
    assert [line["level"] for line in seen.lines] == ["debug", "debug"]


async def test_each_end_has_its_outcome(observed: Callable[..., Seen]) -> None:
    """Errors, time-outs and cancellations have their own outcomes and are raised as the same object."""
    seen = observed(Starlette())
    raised: list[BaseException] = [ValueError("no"), TimeoutError(), asyncio.CancelledError()]
    for exc in raised:
        with pytest.raises(type(exc)) as caught, seen.observe.operation("charge card"):
            raise exc
        assert caught.value is exc
    assert charge_samples(seen) == {"error": 1, "timeout": 1, "cancelled": 1}
    assert [line["fields"]["outcome"] for line in seen.lines] == ["error", "timeout", "cancelled"]
    assert [line["span_id"] for line in seen.lines] == [f"{span.context.span_id:016x}" for span in seen.spans]
    assert {span.status.status_code.name for span in seen.spans} == {"ERROR"}


async def test_as_a_decorator(observed: Callable[..., Seen]) -> None:
    """Each call of a function, coroutine function or generator is one operation."""
    seen = observed(Starlette())
    measured = seen.observe.operation("charge card", provider="acme")

    @measured
    def plain(number: int) -> int:
        return number

    @measured
    async def coroutine(number: int) -> int:
        await asyncio.sleep(0)
        return number

    @measured
    def generator() -> Iterator[Any]:
        yield CURRENT_OPERATION.get()

    @measured
    async def async_generator() -> AsyncIterator[Any]:
        yield CURRENT_OPERATION.get()

    @measured
    def broken() -> None:
        raise KeyError

    assert plain(3) == 3
    assert await asyncio.gather(*(coroutine(number) for number in range(3))) == [0, 1, 2]
    for inside in generator():
        assert (inside.name, CURRENT_OPERATION.get()) == ("charge card", None)
    async for inside in async_generator():
        assert (inside.name, CURRENT_OPERATION.get()) == ("charge card", None)
    with pytest.raises(KeyError):
        broken()
    assert charge_samples(seen) == {"ok": 6, "error": 1}
    assert {dict(span.attributes or {})["provider"] for span in seen.spans} == {"acme"}


async def test_nested_and_side_by_side(observed: Callable[..., Seen]) -> None:
    """Spans nest like the blocks, in tasks, task groups and threads."""
    seen = observed(Starlette())
    work = seen.observe.operation

    async def step(name: str) -> None:
        async with work(name):
            await asyncio.sleep(0)

    with work("whole"):
        async with asyncio.TaskGroup() as group:
            group.create_task(step("a"))
            group.create_task(step("b"))
        await asyncio.gather(step("c"), asyncio.to_thread(lambda: work("d").open().close()))
    parents = {span.name: span.parent.span_id if span.parent else None for span in seen.spans}
    whole = next(span for span in seen.spans if span.name == "whole").context.span_id
    assert parents == {"a": whole, "b": whole, "c": whole, "d": whole, "whole": None}


def test_in_a_thread_of_its_own(observed: Callable[..., Seen]) -> None:
    """An operation works outside any request and event loop."""
    seen = observed(Starlette())

    def work() -> None:
        with seen.observe.operation("charge card"):
            pass

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert charge_samples(seen) == {"ok": 1}


def test_before_anything_is_installed(observed: Callable[..., Seen]) -> None:
    """A module may decorate before `install`; each call is reported to the app that is installed at that time."""

    @operation("charge card", provider="acme")
    def charge() -> int:
        return 7

    assert charge() == 7
    app = Starlette()
    seen = observed(app)
    assert charge() == 7
    assert charge_samples(seen) == {"ok": 1}
    other = FastAPI()
    later = observed(other)
    assert charge() == 7
    other.get("/")(charge)
    assert TestClient(other).get("/").json() == 7
    assert (charge_samples(seen), charge_samples(later)) == ({"ok": 1}, {"ok": 1})
    assert later.spans[0].name == "charge card"


def test_an_object_of_a_module_finds_its_app_each_time(observed: Callable[..., Seen]) -> None:
    """Used again, it is reported to the app of the current request, not to the first one."""
    charge = operation("charge card")
    first, second = FastAPI(), FastAPI()
    seen, later = observed(first), observed(second)

    def page() -> None:
        with charge:
            pass

    for app in (first, second, second):
        app.router.routes.clear()
        app.get("/")(page)
        TestClient(app).get("/")
    assert (charge_samples(seen), charge_samples(later)) == ({"ok": 1}, {"ok": 2})
    with charge:
        pass
    assert (charge_samples(seen), charge_samples(later)) == ({"ok": 1}, {"ok": 2})


def test_without_a_name(observed: Callable[..., Seen]) -> None:
    """An empty name and one that is not a string are errors of the caller."""
    observe = observed(Starlette()).observe
    with pytest.raises(ValueError, match="expected a name, got ' '"):
        observe.operation(" ")
    with pytest.raises(TypeError, match="expected a name as a string, got function"):
        observe.operation(lambda: None)  # type: ignore[arg-type]


def test_an_operation_ends_once(observed: Callable[..., Seen]) -> None:
    """`close` is idempotent; while suspended, the outer operation is the current one."""
    seen = observed(Starlette())
    outer, inner = seen.observe.operation("outer"), seen.observe.operation("inner")
    with outer:
        inner.open()
        assert inner.parent is outer
        inner.suspend()
        inner.suspend()
        assert CURRENT_OPERATION.get() is outer
        assert trace.get_current_span() is outer.span
        inner.resume()
        assert trace.get_current_span() is inner.span
        inner.close(ValueError())
        inner.close()
        assert CURRENT_OPERATION.get() is outer
    assert seen.sample("operations_total", operation="inner", outcome="error") == 1
    assert seen.total("operations_total") == 2


async def test_an_object_that_is_used_again(observed: Callable[..., Seen]) -> None:
    """Each block is one operation: in sequence, nested in itself and concurrently."""
    seen = observed(Starlette())
    charge = seen.observe.operation("charge card", provider="acme")
    with charge as first:
        first.add_details(order_id=1)
        with charge as second, pytest.raises(ValueError, match="no"):
            async with charge:
                raise ValueError("no")
    assert second is not first

    async def one() -> None:
        async with charge:
            await asyncio.sleep(0)

    await asyncio.gather(one(), one())
    assert CURRENT_OPERATION.get() is None
    assert not trace.get_current_span().get_span_context().is_valid
    assert charge_samples(seen) == {"ok": 4, "error": 1}
    assert [dict(span.attributes or {}).get("order_id") for span in seen.spans] == [None, None, 1, None, None]
    with pytest.raises(RuntimeError, match="'charge card' was already started"):
        charge.open()


def test_objects_that_are_not_functions(observed: Callable[..., Seen]) -> None:
    """A property and a number cannot be decorated."""
    work = observed(Starlette()).observe.operation("charge card")
    with pytest.raises(TypeError, match="cannot decorate a property"):
        work(property(lambda _: None))  # type: ignore[type-var]
    with pytest.raises(TypeError, match="cannot decorate a int"):
        work(7)  # type: ignore[type-var]


async def test_a_function_that_returns_a_coroutine(observed: Callable[..., Seen]) -> None:
    """It is measured until the coroutine ends or is closed."""
    seen = observed(Starlette())

    async def inner(exc: Exception | None) -> int:
        await asyncio.sleep(0)
        if exc is not None:
            raise exc
        return 7

    def plain(exc: Exception | None) -> Any:
        return inner(exc)

    make = seen.observe.operation("charge card")(plain)
    assert await make(None) == 7
    with pytest.raises(KeyError):
        await make(KeyError())
    for started in (make(None), seen.observe.operation("charge card")(inner)(None)):
        started.send(None)
        started.close()
    assert charge_samples(seen) == {"ok": 1, "error": 1, "cancelled": 2}
    assert CURRENT_OPERATION.get() is None


def test_outcomes_set_by_the_caller(observed: Callable[..., Seen]) -> None:
    """Every outcome except `ok` and `client_error` is an error of span and line."""
    seen = observed(Starlette())
    with seen.observe.operation("charge card") as op:
        op.outcome = "declined"
    call = seen.observe.external.call("billing", "get").open()
    call.set_status_code(404)
    call.close(KeyError())
    declined, refused = seen.spans
    assert (declined.status.status_code.name, (declined.attributes or {})["error.type"]) == ("ERROR", "declined")
    assert refused.status.status_code.name == "UNSET"
    assert [line["level"] for line in seen.lines] == ["error", "warn"]


def test_a_task_that_outlives_its_parent(observed: Callable[..., Seen]) -> None:
    """An operation that starts after its parent has ended has no parent."""
    observe = observed(Starlette()).observe

    async def late() -> object:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with observe.operation("late") as op:
            return op.parent

    async def run() -> object:
        with observe.operation("early"):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        return await task

    assert asyncio.run(run()) is None


# Where the time went


def shop(seen_app: FastAPI, observe: Callable[[], Any]) -> None:
    """Add routes that query and call."""

    @seen_app.get("/orders/{order_id}")
    async def order(order_id: int) -> int:
        with observe().db.query("SELECT", table="orders"):
            pass
        async with observe().external.call("billing", "get"):
            pass
        return order_id

    @seen_app.get("/many")
    async def many() -> None:
        for number in range(12):
            with observe().db.query("SELECT", table="lines", statement=STATEMENT.replace("?", str(number))):
                pass

    @seen_app.get("/later")
    async def later(tasks: BackgroundTasks) -> None:
        def work() -> None:
            with observe().db.query("DELETE", table="orders"):
                pass

        tasks.add_task(work)

    @seen_app.get("/nothing")
    async def nothing() -> None:
        """Do nothing."""


def test_the_time_breakdown_is_on_line_and_span(observed: Callable[..., Seen]) -> None:
    """Line and span have number and time of queries and calls, and the self time; other requests have none."""
    app = FastAPI()
    seen = observed(app)
    shop(app, lambda: seen.observe)
    client = TestClient(app)
    for path in ("/orders/7", "/later", "/nothing"):
        client.get(path)
    fields, later, nothing = (line["fields"] for line in seen.request_lines)
    span = dict(seen.server_spans[0].attributes or {})
    for name in ("db_ms", "db_count", "external_ms", "external_count", "self_ms"):
        assert span[f"fastapi_observe.{name}"] == fields[name]
        assert name not in later
        assert name not in nothing
    assert (fields["db_count"], fields["external_count"]) == (1, 1)
    waited = fields["db_ms"] + fields["external_ms"]
    assert fields["self_ms"] == pytest.approx(fields["duration_ms"] - waited, abs=0.01)


def test_a_nested_operation_is_not_counted_twice(observed: Callable[..., Seen]) -> None:
    """A call inside a call has its own span and count; only the outer one is waiting time of the request."""
    app = FastAPI()
    seen = observed(app)

    @app.get("/")
    async def nested() -> None:
        with seen.observe.external.call("billing", "get"), seen.observe.operation("retry"):
            for _ in range(2):
                with seen.observe.external.call("billing", "try"):
                    pass

    TestClient(app).get("/")
    assert seen.request_lines[0]["fields"]["external_count"] == 1
    assert seen.total("external_requests_total") == 3


class Timed(NamedTuple):
    """What the time breakdown reads of an operation."""

    started: float
    duration: float
    kind: str = "database"
    ended: bool = True
    repetition_key: str = "q"


def test_concurrent_operations_are_not_subtracted_twice() -> None:
    """Totals add up all operations; the self time is the time in which none was running."""
    work = breakdown(
        Timed(0.6, 0.1), Timed(0.0, 1.0), Timed(0.5, 1.5), Timed(3.0, 1.0), Timed(3.5, 1.5, kind="external")
    )
    work.aggregate(5.0)
    assert work.seconds == pytest.approx({"database": 3.6, "external": 1.5, "pool": 0})
    assert work.counts == {"database": 4, "external": 1, "pool": 0}
    assert work.busy == pytest.approx(4.0)
    assert work.self_time(4.5) == pytest.approx(0.5)
    assert work.self_time(1.0) == 0.0


def breakdown(*operations: Any) -> TimeBreakdown:
    """Return a time breakdown of these operations."""
    work = TimeBreakdown()
    for each in operations:
        work.add(each)
    return work


def test_a_running_operation_is_waiting_time() -> None:
    """It counts as busy until the time of aggregation, and from there on later; one that has not begun does not."""
    running = SimpleNamespace(started=6.0, duration=0.0, kind="external", ended=False)
    waiting = SimpleNamespace(started=0.0, duration=0.0, kind="external", ended=False)
    work = breakdown(running, waiting, Timed(6.2, 0.1), Timed(6.9, 0.5))
    work.aggregate(7.0)
    assert work.busy == pytest.approx(1.0)
    assert work.counts == {"database": 2, "external": 0, "pool": 0}
    running.duration, running.ended = 1.5, True
    waiting.started, waiting.duration, waiting.ended = 8.0, 0.25, True
    work.aggregate(9.0)
    assert work.busy == pytest.approx(1.75)
    assert work.counts == {"database": 2, "external": 2, "pool": 0}


def test_many_operations_use_little_memory() -> None:
    """However many operations a request has, few that have ended are held, and few statements."""
    work = TimeBreakdown()
    for number in range(10 * AGGREGATE_AFTER):
        work.add(Timed(number, 0.5, repetition_key=f"q {number}"))
        assert len(work.operations) <= AGGREGATE_AFTER
    work.aggregate(1e9)
    assert work.operations == []
    assert len(work.statements) <= MAX_COUNTED_STATEMENTS
    for number in range(20):
        work.add(Timed(2000 + number, 0.5, repetition_key="again"))
    work.aggregate(1e9)
    assert work.counts["database"] == 10 * AGGREGATE_AFTER + 20
    assert [(each.statement, each.times) for each in work.repeated(10)] == [("again", 20)]
    for number in range(MAX_COUNTED_STATEMENTS + 1):
        for _ in range(2):
            work.add(Timed(3000, 0.0, repetition_key=f"twice {number}"))
    work.aggregate(1e9)
    assert len(work.statements) == MAX_COUNTED_STATEMENTS


def test_many_running_operations_are_not_aggregated_at_each_start() -> None:
    """However many are running, as many further ones as ever start between two aggregations."""

    class Counting(TimeBreakdown):
        aggregations = 0

        def aggregate(self, until: float) -> None:
            self.aggregations += 1
            super().aggregate(until)

    work = Counting()
    for _ in range(10 * (AGGREGATE_AFTER + 1)):
        work.add(cast("Any", SimpleNamespace(started=1.0, duration=0.0, kind="external", ended=False)))
    assert work.aggregations == 10


# N+1


def test_a_repeated_statement_is_reported(observed: Callable[..., Seen]) -> None:
    """The same statement more than ten times in one request: one line, an attribute, a count of its endpoint."""
    app = FastAPI()
    seen = observed(app)
    shop(app, lambda: seen.observe)
    client = TestClient(app)
    client.get("/many")
    client.get("/orders/7")
    (line,) = [line for line in seen.lines if line["level"] == "warn"]
    assert line["message"] == "database query repeated in one request"
    assert line["fields"].pop("duration_ms") >= 0
    assert line["fields"] == {"endpoint": "/many", "db.query.text": STATEMENT, "count": 12}
    request = seen.request_lines[0]
    assert [line[key] for key in ("trace_id", "span_id", "request_id")] == [
        request[key] for key in ("trace_id", "span_id", "request_id")
    ]
    attributes = dict(seen.server_spans[0].attributes or {})
    assert attributes["fastapi_observe.repeated_queries"] == (STATEMENT,)
    assert seen.samples("db_repeated_queries_total") == {(("endpoint", "/many"),): 1}


def test_fewer_repetitions_are_not_reported(observed: Callable[..., Seen]) -> None:
    """The limit is a setting; at log level `error` no line is written, but they are counted."""
    app = FastAPI()
    seen = observed(app, repeated_query_threshold=12, tracing=False)
    shop(app, lambda: seen.observe)
    TestClient(app).get("/many")
    assert seen.samples("db_repeated_queries_total") == {}
    quiet = FastAPI()
    silent = observed(quiet, log_level="error", tracing=False)
    shop(quiet, lambda: silent.observe)
    TestClient(quiet).get("/many")
    assert [line for line in silent.lines if line["level"] == "warn"] == []
    assert silent.total("db_repeated_queries_total") == 1
    untraced = FastAPI()
    plain = observed(untraced, tracing=False, repeated_query_threshold=1)
    shop(untraced, lambda: plain.observe)
    TestClient(untraced).get("/many")
    (line,) = [line for line in plain.lines if line["level"] == "warn"]
    assert "trace_id" not in line


def test_a_slow_query_is_logged(observed: Callable[..., Seen]) -> None:
    """A query that takes longer than `slow_query_threshold` seconds has a line with its statement."""
    seen = observed(Starlette(), slow_query_threshold=0.000001)
    with seen.observe.db.query(statement="SELECT secret FROM orders WHERE id = 12345"):
        pass
    with seen.observe.operation("slow too"):
        pass
    line, other = seen.lines
    assert (line["level"], other["level"]) == ("warn", "debug")
    assert line["message"] == "slow database query"
    assert line["fields"]["db.query.text"] == "SELECT secret FROM orders WHERE id = ?"


def test_a_time_breakdown_that_fails(observed: Callable[..., Seen]) -> None:
    """The internal error is counted; the query is reported."""
    app = FastAPI()
    seen = observed(app)
    shop(app, lambda: seen.observe)
    with failing(TimeBreakdown.add):
        assert TestClient(app).get("/orders/7").json() == 7
    assert seen.observe.internal_errors.counts == {"time_breakdown": 2}
    assert seen.total("db_queries_total") == 1


# Pools


def test_pools_are_read_at_scrape(observed: Callable[..., Seen]) -> None:
    """The current values are reported under the pool's name until it is removed; missing ones are left out."""
    seen = observed(Starlette())
    states = [PoolState(active=3, idle=1, max=5), PoolState(active=4, idle=0, max=5)]
    remove = seen.observe.db.add_pool("main", lambda: states[0])
    assert seen.sample("db_connections_active", pool="main") == 3
    states.pop(0)
    assert seen.sample("db_connections_active", pool="main") == 4
    assert seen.samples("db_connections_waiting") == {}
    states.clear()
    assert str(seen.sample("db_connections_idle", pool="main")) == "nan"
    assert seen.observe.internal_errors.counts == {"pool": 3 * 1}
    remove()
    remove()
    assert seen.samples("db_connections_active") == {}


def test_a_wait_for_a_connection_is_not_self_time(observed: Callable[..., Seen]) -> None:
    """A request that waited for a connection reports the time; shorter waits are ignored."""
    app = FastAPI()
    seen = observed(app)

    @app.get("/{seconds}")
    def wait(seconds: float) -> None:
        time.sleep(seconds)
        seen.observe.record_connection_wait("main", max(seconds, 0.0001))

    client = TestClient(app)
    client.get("/0.02")
    client.get("/0")
    waited, other = (line["fields"] for line in seen.request_lines)
    assert (waited["pool_wait_count"], waited["pool_wait_ms"]) == (1, 20.0)
    assert waited["self_ms"] == pytest.approx(waited["duration_ms"] - 20, abs=0.01)
    assert "pool_wait_ms" not in other
    assert dict(seen.server_spans[0].attributes or {})["fastapi_observe.pool_wait_ms"] == 20.0
    assert seen.total("db_connection_wait_seconds_count") == 2


def test_waits_and_events_of_connections(observed: Callable[..., Seen]) -> None:
    """Waiting time for a connection and events of connections are counted."""
    seen = observed(Starlette())
    seen.observe.record_connection_wait("main", 0.002)
    seen.observe.record_connection_event("main", "commit")
    assert seen.sample("db_connection_wait_seconds_count", pool="main") == 1
    assert seen.sample("db_connection_events_total", pool="main", event="commit") == 1


def test_the_cache_of_label_sets_is_bounded(observed: Callable[..., Seen]) -> None:
    """Label sets beyond the limit are looked up each time and counted."""
    many = operations.MAX_CACHED_LABEL_SETS + 1
    seen = observed(Starlette(), max_values_per_label=2 * many, sample_ratio=0.0)
    for name in (*range(many), many, many):
        with seen.observe.operation(str(name)):
            pass
    assert seen.sample("operations_total", operation=str(many), outcome="ok") == 2


def test_an_operation_closed_in_another_context(observed: Callable[..., Seen]) -> None:
    """It ends without an error, also if it has no span."""
    seen = observed(Starlette(), tracing=False)
    op = seen.observe.operation("charge card").open()
    contextvars.Context().run(op.close)
    assert charge_samples(seen) == {"ok": 1}
    again = op.copy().open()
    again.suspend()
    again.resume()
    assert CURRENT_OPERATION.get() is again
    again.close()
    CURRENT_OPERATION.set(None)  # the first one was left from elsewhere
    assert charge_samples(seen) == {"ok": 2}

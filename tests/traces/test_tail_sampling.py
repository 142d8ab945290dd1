"""Tail sampling: a request that the head sampler did not choose is exported whole if it failed, was slow or was new."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from time import sleep
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from servers import serving
from starlette.testclient import TestClient

from fastapi_observe import DatabaseDep, HttpClientDep, Latency, TraceContext, install
from fastapi_observe.settings.model import ObserveSettings
from fastapi_observe.traces import pending
from fastapi_observe.traces.tail_sampling import BURSTS, TailSampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from conftest import Seen

ERRORS = {"sample_ratio": 0.0, "tail_sampling": ("errors",)}


def make_app() -> FastAPI:
    """Return an app that works, fails and queries."""
    app = FastAPI()

    @app.get("/ok")
    async def ok(db: DatabaseDep) -> str:
        async with db.query("SELECT", table="orders"):
            pass
        return "ok"

    @app.get("/fails/{item}")
    async def fails(item: int, db: DatabaseDep) -> str:
        tracer = trace.get_tracer("library", "1.0")
        with tracer.start_as_current_span("outer", attributes={"n": [1, 2]}) as outer:
            outer.add_event("noted", {"k": "v"})
            async with db.query("SELECT", table="orders", statement="SELECT 1") as query:
                query.set_row_count(3)
        with pytest.raises(LookupError), tracer.start_as_current_span("broken"):
            raise LookupError(item)
        trace.get_current_span().set_attribute("item", item)
        raise HTTPException(503)

    return app


def reason(span: ReadableSpan) -> object:
    """Return why a trace was tail-sampled; None if it was sampled by the head sampler."""
    return (span.attributes or {}).get("fastapi_observe.tail_sampled")


def tree(spans: list[ReadableSpan]) -> Any:
    """Return spans as nested tuples, without times, ids and ports."""
    children: dict[int | None, list[ReadableSpan]] = {}
    known = {span.context.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_time or 0):
        parent = span.parent.span_id if span.parent is not None and span.parent.span_id in known else None
        children.setdefault(parent, []).append(span)

    def node(span: ReadableSpan) -> Any:
        attributes = {
            name: value for name, value in (span.attributes or {}).items() if name != "fastapi_observe.tail_sampled"
        }
        timed = {name for name in attributes if name.endswith(("_ms", ".port", "url.full"))}  # which has the port
        events = [(event.name, sorted(event.attributes or {})) for event in span.events]
        return (
            span.name,
            span.kind,
            span.status.status_code,
            {name: value for name, value in attributes.items() if name not in timed},
            events,
            span.context.trace_flags.sampled,  # older SDKs do not pass on the random flag
            span.instrumentation_scope and span.instrumentation_scope.name,
            tuple(node(each) for each in children.get(span.context.span_id, ())),
        )

    return tuple(node(span) for span in children[None])


def test_the_tree_of_a_failure_is_that_of_a_sampled_one(observed: Callable[..., Seen]) -> None:
    """Server span, operations, spans of other libraries, attributes, events, exceptions: nothing is lost."""
    trees = []
    for options in ({"sample_ratio": 1.0}, ERRORS):
        seen = observed(make_app(), **options)
        assert TestClient(seen.observe.app).get("/fails/7").status_code == 503
        trees.append(tree(seen.spans))
        assert reason(seen.server_spans[0]) == ("errors" if options is ERRORS else None)
        seen.observe.close()
    assert trees[0] == trees[1]


def fail_after_call(app: FastAPI, client: httpx.AsyncClient) -> None:
    """Add an endpoint that fails after a call, whose request is garbage by then."""

    @app.get("/")
    async def root() -> None:
        request = client.build_request("POST", "http://u:p@billing:8080/jwt/abc?token=abc&page=2", content=b"12345")
        held = weakref.ref(request)
        await client.send(request)
        del request
        gc.collect()
        assert held() is None
        raise LookupError


def test_the_call_of_a_client_is_described_like_a_sampled_one(observed: Callable[..., Seen]) -> None:
    """Its attributes are built after its end, although the request with its body is not held until then."""
    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    described = []
    for options in ({"sample_ratio": 1.0}, ERRORS):
        seen = observed(FastAPI(), log_level="info", **options)
        fail_after_call(seen.observe.app, seen.observe.http_client(transport=transport))  # type: ignore[arg-type]
        with pytest.raises(LookupError):
            TestClient(seen.observe.app).get("/")
        (call,) = (span for span in seen.spans if span.name == "POST billing")
        described.append(dict(call.attributes or {}))
        seen.observe.close()
    assert described[0] == described[1]
    assert described[0] == {
        "peer.service": "billing",
        "http.request.method": "POST",
        "server.address": "billing",
        "server.port": 8080,
        "url.full": "http://billing:8080/jwt/REDACTED?token=REDACTED&page=REDACTED",
        "http.request.body.size": 5,
        "http.response.status_code": 404,
    }


def test_a_request_without_a_reason_is_not_exported(observed: Callable[..., Seen]) -> None:
    """What worked, was fast and is known leaves no span."""
    seen = observed(make_app(), **ERRORS)
    assert TestClient(seen.observe.app).get("/ok").status_code == 200
    assert seen.spans == []


@pytest.mark.parametrize("parent", ["00", "01"])
def test_a_parent_that_is_not_sampled_does_not_switch_it_off(observed: Callable[..., Seen], parent: str) -> None:
    """The trace goes on with the caller's ids, whatever it decided."""
    seen = observed(make_app(), trust_incoming="always", **ERRORS)
    header = f"00-{'a' * 32}-{'b' * 16}-{parent}"
    TestClient(seen.observe.app).get("/fails/1", headers={"traceparent": header})
    server = seen.server_spans[0]
    assert (server.context.trace_id, server.parent and server.parent.span_id) == (int("a" * 32, 16), int("b" * 16, 16))
    assert reason(server) == ("errors" if parent == "00" else None)


def test_the_ids_that_were_sent_are_the_ones_exported(observed: Callable[..., Seen]) -> None:
    """Lines written and calls made before the decision lead to the exported spans."""
    sent: list[dict[str, str]] = []
    app = FastAPI()

    @app.get("/")
    async def root() -> None:
        async with app.state.observe.external.call("billing", "get") as call:
            headers: dict[str, str] = {}
            app.state.observe.tracing.inject(headers)
            sent.append(headers)
            app.state.observe.log.info("inside")
            call.set_status_code(200)
        raise RuntimeError

    seen = observed(app, **ERRORS)
    TestClient(app, raise_server_exceptions=False).get("/")
    (call,) = [span for span in seen.spans if span.kind.name == "CLIENT"]
    downstream = TraceContext.from_headers(sent[0])
    assert downstream is not None
    assert (downstream.trace_id, downstream.span_id) == (
        f"{call.context.trace_id:032x}",
        f"{call.context.span_id:016x}",
    )
    assert downstream.sampled is False
    (inside,) = [line for line in seen.lines if line["message"] == "inside"]
    assert (inside["trace_id"], inside["span_id"]) == (downstream.trace_id, downstream.span_id)


def test_spans_that_end_after_the_request(observed: Callable[..., Seen]) -> None:
    """A background task of a kept request is exported, that of another one is not."""
    app = FastAPI()

    def task() -> None:
        with trace.get_tracer("x").start_as_current_span("late"):
            pass

    @app.get("/")
    async def root(tasks: BackgroundTasks) -> None:
        tasks.add_task(task)

    seen = observed(app, sample_ratio=0.0, tail_sampling=("first",))
    client = TestClient(app, raise_server_exceptions=False)
    client.get("/")
    assert sorted(span.name for span in seen.spans) == ["GET /", f"background {task.__qualname__}", "late"]
    client.get("/")
    assert len(seen.spans) == 3


def make_late_app() -> FastAPI:
    """Return an app whose requests fail after the response was sent."""
    app = FastAPI()

    async def fails(db: DatabaseDep) -> None:
        with trace.get_tracer("x").start_as_current_span("late"):
            trace.get_current_span().add_event("noted")
            async with db.query("SELECT", table="mails"):
                raise LookupError("late")

    @app.get("/task")
    async def task(tasks: BackgroundTasks, db: DatabaseDep) -> None:
        async with db.query("SELECT", table="orders"):
            tasks.add_task(fails, db)

    async def session(db: DatabaseDep) -> AsyncIterator[None]:
        yield
        await fails(db)

    @app.get("/dependency", dependencies=[Depends(session)])
    async def dependency() -> None:
        trace.get_current_span().set_attribute("inside", 1)

    return app


@pytest.mark.parametrize("path", ["/task", "/dependency"])
def test_a_failure_after_the_response(observed: Callable[..., Seen], path: str) -> None:
    """The tree of a request whose background task or dependency fails is that of a sampled one."""
    trees = []
    for options in ({"sample_ratio": 1.0}, ERRORS):
        seen = observed(make_late_app(), **options)
        response = TestClient(seen.observe.app, raise_server_exceptions=False).get(path)
        assert response.status_code == 200
        trees.append(tree(seen.spans))
        (line,) = [line for line in seen.lines if line["message"] == "HTTP request completed"]
        assert line["fields"]["sampled"] == ("head" if options is not ERRORS else False)
        if options is ERRORS:
            assert reason(seen.server_spans[0]) == "errors"
            assert seen.sample("fastapi_observe_traces_tail_sampled_total", reason="errors") == 1
        seen.observe.close()
    assert trees[0] == trees[1]


def test_late_failures_have_to_be_wanted(observed: Callable[..., Seen]) -> None:
    """Without `errors` among the reasons nothing of such a request is exported."""
    seen = observed(make_late_app(), sample_ratio=0.0, tail_sampling=("slow",))
    TestClient(seen.observe.app, raise_server_exceptions=False).get("/task")
    assert seen.spans == []


def make_calling_app(outer_fails: bool, inner_fails: bool) -> FastAPI:  # noqa: FBT001 - the two facts of the tests
    """Return an app whose path operation calls its own app by HTTP."""
    app = FastAPI()

    @app.get("/inner")
    async def inner(db: DatabaseDep) -> None:
        async with db.query("SELECT", table="stock"):
            pass
        if inner_fails:
            raise HTTPException(503)

    @app.get("/outer")
    async def outer(http: HttpClientDep, db: DatabaseDep) -> None:
        async with db.query("SELECT", table="orders"):
            pass
        await http.get(f"{app.state.url}/inner")
        if outer_fails:
            raise HTTPException(502)

    return app


def call_outer(seen: Seen) -> None:
    """Serve the app and send it one request."""
    app = seen.observe.app
    with serving(app) as port:
        app.state.url = f"http://127.0.0.1:{port}"
        httpx.get(f"{app.state.url}/outer", trust_env=False, timeout=60)


@pytest.mark.parametrize(
    ("outer_fails", "inner_fails"), [(True, False), (False, True), (True, True)], ids=["outer", "inner", "both"]
)
def test_a_request_to_its_own_app_is_a_part_of_its_trace(
    observed: Callable[..., Seen],
    outer_fails: bool,  # noqa: FBT001 - a parameter of the test
    inner_fails: bool,  # noqa: FBT001 - as above
) -> None:
    """Whichever of the two has the reason, the whole trace is exported, once, as that of a sampled one."""
    trees = []
    for options in ({"sample_ratio": 1.0}, ERRORS):
        seen = observed(make_calling_app(outer_fails, inner_fails), **options)
        call_outer(seen)
        trees.append(tree(seen.spans))
        assert len({span.context.span_id for span in seen.spans}) == len(seen.spans) == 5
        assert {reason(span) for span in seen.server_spans} == ({None} if options is not ERRORS else {"errors"})
        if options is ERRORS:
            assert seen.sample("fastapi_observe_traces_tail_sampled_total", reason="errors") == 1
        seen.observe.close()
    assert trees[0] == trees[1]


def test_parts_without_a_reason_leave_nothing(observed: Callable[..., Seen]) -> None:
    """If no part of a trace has a reason, none is exported, and nothing is held."""
    seen = observed(make_calling_app(outer_fails=False, inner_fails=False), **ERRORS)
    call_outer(seen)
    assert seen.spans == []
    sampler = seen.observe.tracing.tail_sampler
    assert sampler is not None
    gc.collect()
    assert (sampler.pending_total.held, len(sampler.pending_total.open)) == (0, 0)


def test_a_job_continues_a_trace_that_was_kept(observed: Callable[..., Seen]) -> None:
    """A message that a failed request has sent is handled later in the same process: its job is exported too."""
    app = FastAPI()
    messages: list[dict[str, str]] = []

    @app.get("/{fails}")
    async def send(fails: bool) -> None:  # noqa: FBT001 - a parameter of the route
        messages.append(app.state.observe.tracing.inject({}))
        if fails:
            raise HTTPException(500)

    seen = observed(app, **ERRORS)
    client = TestClient(app)
    for fails in (True, False):
        client.get(f"/{fails}")
        with seen.observe.job("handle message", headers=messages[-1]):
            pass
    server, job = seen.spans
    assert (job.name, reason(job)) == ("handle message", "errors")
    assert job.context.trace_id == server.context.trace_id


def test_a_trace_without_end_is_bounded(observed: Callable[..., Seen]) -> None:
    """A caller that sends every request in one trace exports no more of them than the allowance has."""
    app = FastAPI()

    @app.get("/{fails}")
    async def root(fails: bool) -> None:  # noqa: FBT001 - a parameter of the route
        app.state.observe.tracing.inject({})
        if fails:
            raise HTTPException(500)

    seen = observed(app, **ERRORS, trust_incoming="always", tail_samples_per_second=0.001)
    client = TestClient(app)
    header = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-00"}
    for fails in (True, *[False] * 150, True):
        client.get(f"/{fails}", headers=header)
    assert len(seen.spans) == BURSTS["errors"] // 2 + 2  # half of the allowance, and the last failure
    assert seen.sample("fastapi_observe_traces_tail_refused_total", reason="errors") == 50


def test_kept_ids_are_bounded() -> None:
    """The oldest ids are forgotten."""
    total = pending.PendingTotal()
    for number in range(pending.MAX_KEPT_IDS + 1):
        total.remember(number, "slow")
    assert [total.reason_to_keep(number) for number in (0, 1, pending.MAX_KEPT_IDS)] == [None, "slow", "slow"]


def test_threads_end_spans_while_it_is_decided(observed: Callable[..., Seen]) -> None:
    """Each span that ends in another thread is exported exactly once, before or after the decision."""
    app = FastAPI()
    threads: list[threading.Thread] = []

    @app.get("/")
    def root() -> None:
        context = trace.set_span_in_context(trace.get_current_span())
        tracer = trace.get_tracer("x")

        def many() -> None:
            for number in range(100):
                tracer.start_span(f"span {number}", context).end()

        threads.extend(threading.Thread(target=many) for _ in range(4))
        for thread in threads:
            thread.start()
        raise HTTPException(500)

    seen = observed(app, **ERRORS)
    TestClient(app).get("/")
    for thread in threads:
        thread.join()
    children = [span for span in seen.spans if span.name.startswith("span ")]
    assert len(children) == len({span.context.span_id for span in children}) == 400


def test_spans_and_bytes_of_a_request_are_bounded(observed: Callable[..., Seen]) -> None:
    """Of many spans with large attributes the newest are kept; the others are counted on the server span."""
    app = FastAPI()

    @app.get("/")
    def root() -> None:
        tracer = trace.get_tracer("x")
        for number in range(100_000 // 20):
            with tracer.start_as_current_span(f"span {number}") as span:
                span.set_attribute("large", "x" * 1000)
                with tracer.start_as_current_span("inside"):
                    pass
        raise HTTPException(500)

    seen = observed(app, **ERRORS)
    TestClient(app).get("/")
    assert len(seen.spans) == pending.MAX_PENDING_SPANS + 1
    held = sum(len(str((span.attributes or {}).get("large", ""))) for span in seen.spans)
    assert 0 < held <= pending.MAX_PENDING_BYTES
    assert any(span.name == "span 4999" for span in seen.spans)
    assert seen.server_spans[0].attributes["fastapi_observe.dropped_items"] > 9_000 // 2  # type: ignore[index,operator]


def test_an_outage_costs_what_few_traces_cost() -> None:
    """At most 200 at once, then `tail_samples_per_second`; what is refused is counted by reason."""
    sampler, now = make_sampler("errors")
    assert sum(sampler.decide(failed()) is not None for _ in range(1000)) == BURSTS["errors"]
    assert (sampler.sampled, sampler.refused) == ({"errors": 200}, {"errors": 800})
    now[0] += 3.05
    assert sum(sampler.decide(failed()) is not None for _ in range(1000)) == 30
    now[0] += 3600
    assert sum(sampler.decide(failed()) is not None for _ in range(1000)) == BURSTS["errors"]


ALL_REASONS = ("errors", "slow", "first", "repeated_queries")


def make_sampler(*reasons: str) -> tuple[TailSampler, list[float]]:
    """Return a sampler with the default limits, and its clock: the list's first item."""
    now = [0.0]
    wanted = reasons or ALL_REASONS
    return TailSampler(wanted, per_second=10, slow_request=1, repeat_limit=10, clock=lambda: now[0]), now


def ended_for(reason: str, number: int) -> Any:
    """Return a request with a reason, on a route of its own if it is its first request, else on one of a few."""
    endpoint = f"/{reason}/{number if reason == 'first' else number % 3}"
    if reason == "errors":
        return Ended(endpoint=endpoint, outcome="server_error", status_code=500)
    if reason == "repeated_queries":
        return Ended(endpoint=endpoint, work=Repeating())
    return Ended(endpoint=endpoint, duration=2.0 if reason == "slow" else 0.1)


@pytest.mark.parametrize("many", ALL_REASONS)
def test_no_reason_takes_the_traces_of_another(many: str) -> None:
    """With 1,000 requests per second for one reason, each request for another reason has its trace."""
    sampler, now = make_sampler()
    others = [reason for reason in ALL_REASONS if reason != many]
    number = 0
    for second in range(60):
        for _ in range(1000):
            number += 1
            sampler.decide(ended_for(many, number))
        for reason in others:
            assert sampler.decide(ended_for(reason, -second)) == reason
        now[0] += 1
    assert {sampler.refused[reason] for reason in others} == {0}
    assert sum(sampler.sampled.values()) <= BURSTS[many] + 10 * 60 + len(others) * 60
    assert sampler.sampled[many] + sampler.refused[many] == 60_000


def test_all_reasons_together_cost_what_the_refill_allows() -> None:
    """If all allowances are spent, each reason has its equal part of `tail_samples_per_second`."""
    sampler, now = make_sampler()
    number = 0
    for _ in range(100):
        for _ in range(300):
            number += 1
            for reason in ALL_REASONS:
                sampler.decide(ended_for(reason, number))
        now[0] += 1
    assert sampler.sampled == {reason: burst + 99 * 10 // 4 for reason, burst in BURSTS.items()}
    assert all(sampler.refused.values())


def test_what_a_full_allowance_does_not_take_refills_the_others() -> None:
    """The refill of reasons that were not used goes to the one that was; after enough time all are full again."""
    sampler, now = make_sampler()

    def sample(reason: str, start: int) -> int:
        return sum(sampler.decide(ended_for(reason, start + at)) == reason for at in range(1000))

    assert sample("errors", 0) == BURSTS["errors"]
    assert [sampler.decide(ended_for("slow", number)) for number in range(10)] == ["slow"] * 10
    now[0] += 2  # 20 places: 10 fill the allowance of slow requests, the other 10 are for failures
    assert sample("errors", 1000) == 10
    assert sample("slow", 0) == BURSTS["slow"]
    now[0] += 20  # 200 places, a half each: the allowance of slow requests is full then
    assert [sample("slow", 0), sample("errors", 2000)] == [100, 100]
    now[0] += 3600
    assert {reason: sample(reason, 5000) for reason in ALL_REASONS} == BURSTS


def test_a_route_that_fails_less_often_than_others_has_a_trace() -> None:
    """If the allowance of failures is spent, the first one of a route is exported as `first`, once."""
    sampler, _ = make_sampler()
    for number in range(1000):
        sampler.decide(ended_for("errors", number))
    rare: Any = Ended(endpoint="/rare", outcome="server_error", status_code=500)
    assert [sampler.decide(rare), sampler.decide(rare)] == ["first", None]
    assert sampler.refused == {"errors": 801, "slow": 0, "repeated_queries": 0, "first": 0}
    without, _ = make_sampler("errors")
    for number in range(1000):
        without.decide(ended_for("errors", number))
    assert without.decide(rare) is None


def test_an_outage_and_slow_requests_at_the_defaults(observed: Callable[..., Seen]) -> None:
    """Of 300 failures 200 have their trace at least, and all 100 slow requests and the first of its route have it."""
    app = make_app()

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(0.002)

    objective = Latency("slow", 99, within="1ms", routes=["/slow"])
    seen = observed(app, sample_ratio=0.0, tail_sampling=ALL_REASONS, slos=[objective])
    client = TestClient(app)
    for _ in range(300):
        client.get("/fails/1")
    for _ in range(100):
        client.get("/slow")
    client.get("/ok")
    counts = Counter(reason(span) for span in seen.server_spans)
    assert counts["errors"] >= 200
    assert (counts["slow"], counts["first"]) == (100, 1)
    for what, count in (("sampled", counts["errors"]), ("refused", 300 - counts["errors"])):
        assert seen.sample(f"fastapi_observe_traces_tail_{what}_total", reason="errors") == count


def test_failures_have_a_share_of_their_own() -> None:
    """A route that is always slow does not take the allowance of failures: their traces are exported."""
    now = [0.0]
    sampler = TailSampler(("errors", "slow"), per_second=10, slow_request=1, repeat_limit=10, clock=lambda: now[0])
    slow: Any = Ended(duration=2.0)
    exported = 0
    for _ in range(120):
        for _ in range(30):
            sampler.decide(slow)
        exported += sampler.decide(failed()) is not None
        now[0] += 1
    assert exported == 120


def test_failures_leave_room_for_other_reasons() -> None:
    """Slow requests are exported during an outage; both together never exceed the refill."""
    now = [0.0]
    sampler = TailSampler(("errors", "slow"), per_second=10, slow_request=1, repeat_limit=10, clock=lambda: now[0])
    slow: Any = Ended(duration=2.0)
    assert sum(sampler.decide(failed()) is not None for _ in range(300)) == BURSTS["errors"]
    assert [sampler.decide(slow) for _ in range(5)] == ["slow"] * 5
    for _ in range(2 * BURSTS["slow"]):
        sampler.decide(slow)
    before = sum(sampler.sampled.values())
    assert before == BURSTS["errors"] + BURSTS["slow"]
    for _ in range(100):
        now[0] += 0.1
        for _ in range(10):
            sampler.decide(failed())
            sampler.decide(slow)
    assert sum(sampler.sampled.values()) - before <= 100
    assert min(sampler.sampled["errors"] - BURSTS["errors"], sampler.sampled["slow"] - BURSTS["slow"]) >= 49


def test_all_requests_together_hold_a_bounded_amount() -> None:
    """Beyond the total no request holds more; what was decided makes room again."""
    total = pending.PendingTotal()
    traces = [pending.PendingTrace(total) for _ in range(100)]
    for trace_ in traces:
        for _ in range(20):
            trace_.reserve(50_000)
    assert total.held <= pending.MAX_TOTAL_BYTES + 100_000
    assert traces[-1].dropped > 0
    for trace_ in traces:
        trace_.discard()
    assert total.held == 0


def test_few_exceptions_are_held_with_their_frames(observed: Callable[..., Seen]) -> None:
    """Objects in the frames of exceptions that a request has handled are released, and the exceptions exported."""
    app = FastAPI()
    alive: list[weakref.ref[Any]] = []

    class Large:
        """An object that a frame holds."""

    def fail() -> None:
        large = Large()
        alive.append(weakref.ref(large))
        raise LookupError("as planned")

    @app.get("/")
    def root() -> int:
        tracing = app.state.observe.tracing
        for _ in range(50):
            with pytest.raises(LookupError), tracing.span("step"):
                fail()
        count = sum(each() is not None for each in alive)
        if count > pending.MAX_HELD_EXCEPTIONS + 1:
            raise AssertionError(count)
        raise HTTPException(500)

    seen = observed(app, **ERRORS)
    assert TestClient(app).get("/").status_code == 500
    steps = [span for span in seen.spans if span.name == "step"]
    assert len(steps) == 50
    assert all(span.events and span.events[0].name == "exception" for span in steps)
    assert all(not span.status.is_ok for span in steps)


def test_a_large_attribute_is_cut_and_spoils_nothing(observed: Callable[..., Seen]) -> None:
    """What follows a value of 2 MB is recorded."""
    app = FastAPI()

    @app.get("/")
    def root() -> None:
        with app.state.observe.tracing.span("large", text="x" * 2_000_000) as span:
            span.set_attribute("after", 1)
        raise HTTPException(500)

    seen = observed(app, **ERRORS)
    TestClient(app).get("/")
    (large,) = [span for span in seen.spans if span.name == "large"]
    assert (large.attributes or {})["after"] == 1
    assert len(str((large.attributes or {})["text"])) == 2048


def test_pending_spans_have_the_attributes_of_the_sdk_s(observed: Callable[..., Seen]) -> None:
    """Code that sees `is_recording()` may read what the SDK's span has, and exclude exceptions."""
    app = FastAPI()
    read: list[Any] = []

    @app.get("/")
    def root() -> None:
        tracer = trace.get_tracer("x")
        with (  # noqa: PT012 - what is tested is inside the block
            pytest.raises(ValueError, match="secret"),
            tracer.start_span("quiet", record_exception=False, set_status_on_exception=False) as span,
        ):
            assert isinstance(span, ReadableSpan)
            read.append((span.status.is_ok, span.events, span.links, span.resource, span.instrumentation_scope))
            raise ValueError("secret")
        raise HTTPException(500)

    seen = observed(app, **ERRORS)
    assert TestClient(app).get("/").status_code == 500
    (quiet,) = [span for span in seen.spans if span.name == "quiet"]
    assert quiet.events == ()
    assert quiet.status.is_unset
    assert read[0][4].name == "x"


class Reading(SpanProcessor):
    """A processor that reads the context in which a span starts, as that for baggage does."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Copy the baggage."""
        span.set_attributes({name: str(value) for name, value in baggage.get_all(parent_context).items()})


def test_processors_see_the_context_of_the_start(observed: Callable[..., Seen]) -> None:
    """Baggage that is set around a span is on it."""
    app = FastAPI()

    @app.get("/")
    def root() -> None:
        context = baggage.set_baggage("tenant", "acme")
        trace.get_tracer("x").start_span("inside", context).end()
        raise HTTPException(500)

    exporter = InMemorySpanExporter()
    seen = observed(app, **ERRORS, span_processors=(Reading(), SimpleSpanProcessor(exporter)))
    TestClient(app).get("/")
    (inside,) = [span for span in exporter.get_finished_spans() if span.name == "inside"]
    assert (inside.attributes or {})["tenant"] == "acme"
    assert seen.spans == []


class Repeating:
    """The time breakdown of a request that repeats a query."""

    def repeated(self, _: int) -> list[str]:
        """Return what is repeated."""
        return ["SELECT"]


class Ended:
    """A request that has ended, as the sampler reads it."""

    websocket = False
    work = None

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(
            {"outcome": "ok", "duration": 0.1, "ttfb": None, "endpoint": "/", "status_code": 200, **facts}
        )


def failed() -> Any:
    """Return a request that failed."""
    return Ended(outcome="server_error", status_code=500)


def test_reasons() -> None:
    """A stream is slow by its first byte, a WebSocket never; a route's own threshold comes first."""
    sampler = TailSampler(("errors", "slow", "first"), per_second=10, slow_request=1, repeat_limit=10)
    sampler.slow_requests = {"/fast": 0.05}
    decide: Any = sampler.decide
    assert decide(Ended()) == "first"
    assert decide(Ended()) is None
    assert decide(Ended(status_code=404)) == "first"
    assert decide(Ended(duration=1.5)) == "slow"
    assert decide(Ended(duration=60, ttfb=0.1)) is None
    assert decide(Ended(duration=60, ttfb=2)) == "slow"
    assert decide(Ended(endpoint="/fast")) == "slow"
    assert decide(failed()) == "errors"
    socket: Any = Ended(duration=60)
    socket.websocket = True
    assert decide(socket) is None


def test_a_first_that_is_refused_is_the_first_later() -> None:
    """A route whose first request found the allowance spent is exported at a later one."""
    sampler, now = make_sampler()
    for number in range(BURSTS["first"]):
        assert sampler.decide(ended_for("first", number)) == "first"
    new = ended_for("first", BURSTS["first"])
    assert sampler.decide(new) is None
    assert sampler.refused["first"] == 1
    now[0] += 0.1
    assert sampler.decide(new) == "first"
    assert sampler.decide(new) is None
    assert sampler.refused["first"] == 1


def test_the_threshold_of_a_latency_objective_is_that_of_its_routes(observed: Callable[..., Seen]) -> None:
    """A request is slow if it misses the objective of its route, whatever `slow_request_threshold` is."""
    app = FastAPI()
    app.get("/strict")(lambda: sleep(0.03))
    app.get("/other")(lambda: sleep(0.03))
    objective = Latency("strict", 99, within="20ms", routes=["/strict"])
    seen = observed(app, sample_ratio=0.0, tail_sampling=("slow",), slos=[objective])
    client = TestClient(app)
    client.get("/other")
    client.get("/strict")
    assert [span.name for span in seen.server_spans] == ["GET /strict"]


def test_repeated_queries(observed: Callable[..., Seen]) -> None:
    """A request that repeats a statement has its trace."""
    app = FastAPI()

    @app.get("/")
    async def root(db: DatabaseDep) -> None:
        for _ in range(12):
            async with db.query("SELECT", table="orders", statement="SELECT * FROM orders WHERE id = 1"):
                pass

    seen = observed(app, sample_ratio=0.0, tail_sampling=("repeated_queries",))
    TestClient(app).get("/")
    assert reason(seen.server_spans[0]) == "repeated_queries"
    assert len(seen.spans) == 13


@pytest.mark.parametrize(
    "options", [{"tail_sampling": None}, {"sampler": "always_off"}, {"tail_sampling": ()}, {"tracing": False}]
)
def test_off(observed: Callable[..., Seen], options: dict[str, Any]) -> None:
    """`tail_sampling=None` and `sampler="always_off"` switch it off."""
    seen = observed(make_app(), **{"sample_ratio": 0.0, **options})
    TestClient(seen.observe.app).get("/fails/1")
    assert seen.spans == []
    assert seen.observe.tracing.tail_sampler is None


def test_the_user_s_provider_decides(capsys: pytest.CaptureFixture[str]) -> None:
    """Only what a provider of the user's records can be exported."""
    app = make_app()
    observe = install(app, tracer_provider=TracerProvider())
    assert observe.tracing.tail_sampler is None
    observe.close()


def test_it_is_counted(observed: Callable[..., Seen]) -> None:
    """`/metrics` has the traces that were tail-sampled and refused, by reason."""
    seen = observed(make_app(), **ERRORS)
    TestClient(seen.observe.app).get("/fails/1")
    families = {family.name for family in text_string_to_metric_families(seen.text)}
    assert {"fastapi_observe_traces_tail_sampled", "fastapi_observe_traces_tail_refused"} <= families
    assert seen.sample("fastapi_observe_traces_tail_sampled_total", reason="errors") == 1
    assert seen.sample("fastapi_observe_traces_tail_refused_total", reason="errors") == 0


class Raising(SpanProcessor):
    """A processor of a user's that raises whenever it can."""

    def on_start(self, *_: Any, **__: Any) -> None:
        """Raise."""
        raise RuntimeError

    def on_end(self, *_: Any) -> None:
        """Raise."""
        raise RuntimeError


def test_a_processor_that_raises_changes_nothing(observed: Callable[..., Seen]) -> None:
    """The response is the app's, and the failure is counted."""
    seen = observed(make_app(), **ERRORS, span_processors=(Raising(),))
    assert TestClient(seen.observe.app).get("/fails/1").status_code == 503
    assert set(seen.observe.internal_errors.counts) == {"span_processor.on_start", "span_processor.on_end"}


def test_attributes_of_any_type(observed: Callable[..., Seen]) -> None:
    """What OpenTelemetry has no type for is left out when the span is recorded; a list is held as it was."""
    app = FastAPI()

    @app.get("/")
    def root() -> None:
        values = [1, 2]
        span = trace.get_current_span()
        attributes: dict[str, Any] = {"list": values, "object": object(), "text": "x", "number": 1, "bytes": b"b"}
        span.set_attributes(attributes)
        values.append(3)
        span.add_link(trace.SpanContext(1, 2, is_remote=True))
        span.update_name("renamed")
        raise HTTPException(500)

    seen = observed(app, **ERRORS)
    TestClient(app).get("/")
    server = seen.server_spans[0]
    assert server.attributes is not None
    assert server.attributes["list"] == (1, 2)
    assert server.name == "GET /"
    assert [link.context.trace_id for link in server.links] == [1]


async def test_a_cancelled_request(observed: Callable[..., Seen]) -> None:
    """A request that is cancelled in an operation is exported as failed, with that operation."""
    app = FastAPI()
    reached = asyncio.Event()

    @app.get("/")
    async def root(db: DatabaseDep) -> None:
        async with db.query("SELECT", table="orders"):
            reached.set()
            await asyncio.sleep(60)

    seen = observed(app, **ERRORS)

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(_: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    request = asyncio.create_task(app(scope, receive, send))
    await reached.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert {span.name for span in seen.spans} == {"GET /", "SELECT orders"}


def test_settings() -> None:
    """The reasons are read from the environment's form too, and checked."""
    assert ObserveSettings(tail_sampling="errors, slow").tail_sampling == ("errors", "slow")
    with pytest.raises(ValueError, match="tail_sampling"):
        ObserveSettings(tail_sampling=("every",))


@pytest.fixture(autouse=True)
def _provider() -> Iterator[None]:
    """Have `trace.get_tracer` use the provider of the test's app: the global one can be set only once."""
    before = trace.get_tracer

    def get_tracer(*names: Any, **options: Any) -> trace.Tracer:
        from fastapi_observe import get_observability  # noqa: PLC0415 - the app of the test

        return get_observability().tracing.provider.get_tracer(*names, **options)

    trace.get_tracer = get_tracer
    yield
    trace.get_tracer = before
